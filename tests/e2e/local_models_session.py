"""Models kept on nodes, by an unmodified ``kserve`` client; run by test_local_models.py, with that client's Python."""

import json
import sys

from kserve import (
    KServeClient,
    V1beta1InferenceService,
    V1beta1InferenceServiceSpec,
    V1beta1PredictorSpec,
    V1beta1SKLearnSpec,
)
from kserve.models import (
    V1alpha1LocalModelCache,
    V1alpha1LocalModelCacheSpec,
    V1alpha1LocalModelNamespaceCache,
    V1alpha1LocalModelNamespaceCacheSpec,
    V1alpha1LocalModelNodeGroup,
    V1alpha1LocalModelNodeGroupSpec,
)
from kubernetes import client as k8s

VERSION = "serving.kserve.io/v1alpha1"
kubeconfig, namespace, first, second, folder = sys.argv[1:]
client = KServeClient(config_file=kubeconfig)


def service(name, uri):
    predictor = V1beta1PredictorSpec(sklearn=V1beta1SKLearnSpec(storage_uri=uri))
    return V1beta1InferenceService(
        api_version="serving.kserve.io/v1beta1",
        kind="InferenceService",
        metadata=k8s.V1ObjectMeta(name=name, namespace=namespace),
        spec=V1beta1InferenceServiceSpec(predictor=predictor),
    )


def keep():
    linux = k8s.V1NodeSelectorRequirement(key="kubernetes.io/os", operator="In", values=["linux"])
    term = k8s.V1NodeSelectorTerm(match_expressions=[linux])
    volume = k8s.V1PersistentVolumeSpec(
        access_modes=["ReadWriteOnce"],
        capacity={"storage": "1Gi"},
        local=k8s.V1LocalVolumeSource(path=folder),
        node_affinity=k8s.V1VolumeNodeAffinity(required=k8s.V1NodeSelector(node_selector_terms=[term])),
        persistent_volume_reclaim_policy="Delete",
        storage_class_name="standard",
    )
    claim = k8s.V1PersistentVolumeClaimSpec(
        access_modes=["ReadWriteOnce"],
        resources=k8s.V1VolumeResourceRequirements(requests={"storage": "1Gi"}),
        storage_class_name="standard",
    )
    group = V1alpha1LocalModelNodeGroupSpec(
        storage_limit="1Gi", persistent_volume_spec=volume, persistent_volume_claim_spec=claim
    )
    metadata = k8s.V1ObjectMeta(name="disk")
    client.create_local_model_node_group(
        V1alpha1LocalModelNodeGroup(api_version=VERSION, kind="LocalModelNodeGroup", metadata=metadata, spec=group)
    )
    spec = V1alpha1LocalModelCacheSpec(model_size="1Mi", node_groups=["disk"], source_model_uri=first)
    client.create_local_model_cache(
        V1alpha1LocalModelCache(
            api_version=VERSION, kind="LocalModelCache", metadata=k8s.V1ObjectMeta(name="one"), spec=spec
        )
    )
    own = V1alpha1LocalModelNamespaceCacheSpec(model_size="1Mi", node_groups=["disk"], source_model_uri=second)
    metadata = k8s.V1ObjectMeta(name="two", namespace=namespace)
    client.create_local_model_namespace_cache(
        V1alpha1LocalModelNamespaceCache(
            api_version=VERSION, kind="LocalModelNamespaceCache", metadata=metadata, spec=own
        ),
        namespace=namespace,
    )
    # Before the models are there: the services wait for them.
    client.create(service("here", first))
    client.create(service("second", second))
    wait = {"timeout_seconds": 60, "polling_interval": 1}
    client.wait_local_model_cache_ready("one", nodes=["shallop"], **wait)
    client.wait_local_model_namespace_cache_ready("two", namespace, nodes=["shallop"], **wait)
    print(json.dumps(client.get_local_model_cache("one")["status"]))


keep()
