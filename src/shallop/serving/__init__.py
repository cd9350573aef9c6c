"""Serving: models behind addresses (InferenceService), what serves them (ServingRuntime), and versions (Revision)."""

from __future__ import annotations

from shallop.controller.kind import Part
from shallop.serving.admission import refuse_unknown_schemes
from shallop.serving.clusterstoragecontainer import CLUSTER_STORAGE_CONTAINER, DEFAULT_CONTAINER
from shallop.serving.inferencegraph import INFERENCE_GRAPH
from shallop.serving.inferenceservice import INFERENCE_SERVICE
from shallop.serving.knativeservice import KNATIVE_SERVICE
from shallop.serving.localmodelcache import LOCAL_MODEL_CACHE, LOCAL_MODEL_NAMESPACE_CACHE
from shallop.serving.localmodelnode import LOCAL_MODEL_NODE
from shallop.serving.localmodelnodegroup import LOCAL_MODEL_NODE_GROUP
from shallop.serving.revision import REVISION
from shallop.serving.servingruntime import (
    CLUSTER_SERVING_RUNTIME,
    SERVING_RUNTIME,
    load_runtimes,
    refuse_equal_priorities,
)
from shallop.serving.trainedmodel import TRAINED_MODEL

__all__ = ["PART"]

PART = Part(
    name="serving",
    kinds=(
        *(INFERENCE_SERVICE, INFERENCE_GRAPH, SERVING_RUNTIME, CLUSTER_SERVING_RUNTIME, KNATIVE_SERVICE, REVISION),
        TRAINED_MODEL,
        *(LOCAL_MODEL_CACHE, LOCAL_MODEL_NAMESPACE_CACHE, LOCAL_MODEL_NODE, LOCAL_MODEL_NODE_GROUP),
        CLUSTER_STORAGE_CONTAINER,
    ),
    objects=(*load_runtimes(), DEFAULT_CONTAINER),
    admission=lambda services: {
        INFERENCE_SERVICE.gvk: refuse_unknown_schemes(services.client),
        SERVING_RUNTIME.gvk: refuse_equal_priorities(services.client),
        CLUSTER_SERVING_RUNTIME.gvk: refuse_equal_priorities(services.client),
    },
)
