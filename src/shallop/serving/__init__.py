"""Serving: models behind addresses (InferenceService), what serves them (ServingRuntime), and versions (Revision)."""

from __future__ import annotations

from shallop.controller.kind import Part
from shallop.serving.inferencegraph import INFERENCE_GRAPH
from shallop.serving.inferenceservice import INFERENCE_SERVICE
from shallop.serving.knativeservice import KNATIVE_SERVICE
from shallop.serving.revision import REVISION
from shallop.serving.servingruntime import CLUSTER_SERVING_RUNTIME, SERVING_RUNTIME, load_runtimes
from shallop.serving.trainedmodel import TRAINED_MODEL

__all__ = ["PART"]

PART = Part(
    name="serving",
    kinds=(
        *(INFERENCE_SERVICE, INFERENCE_GRAPH, SERVING_RUNTIME, CLUSTER_SERVING_RUNTIME, KNATIVE_SERVICE, REVISION),
        TRAINED_MODEL,
    ),
    objects=load_runtimes(),
)
