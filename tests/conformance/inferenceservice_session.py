"""What a user does with the ``kserve`` client; run by that client's own interpreter: SCRIPT KUBECONFIG STORAGE_URI."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    KServeClient,
    RESTConfig,
    V1beta1InferenceService,
    V1beta1InferenceServiceSpec,
    V1beta1ModelFormat,
    V1beta1ModelSpec,
    V1beta1PredictorSpec,
    V1beta1SKLearnSpec,
)
from kubernetes.client import ApiException, V1ObjectMeta

NAMESPACE = "default"


def service(name: str, predictor: V1beta1PredictorSpec) -> V1beta1InferenceService:
    return V1beta1InferenceService(
        api_version="serving.kserve.io/v1beta1",
        kind="InferenceService",
        metadata=V1ObjectMeta(name=name, namespace=NAMESPACE),
        spec=V1beta1InferenceServiceSpec(predictor=predictor),
    )


def main(kubeconfig: str, uri: str) -> None:
    client = KServeClient(config_file=kubeconfig)
    model = V1beta1ModelSpec(model_format=V1beta1ModelFormat(name="sklearn"), storage_uri=uri)
    client.create(
        service("iris", V1beta1PredictorSpec(model=model)), namespace=NAMESPACE, watch=True, timeout_seconds=120
    )
    client.wait_isvc_ready("iris", namespace=NAMESPACE, polling_interval=1, timeout_seconds=120)
    found = client.get("iris", namespace=NAMESPACE)
    assert found["status"]["url"].endswith(f"/serving/{NAMESPACE}/iris"), found["status"]
    assert found["status"]["modelStatus"]["states"]["activeModelState"] == "Loaded", found["status"]
    asyncio.run(ask(found["status"]["url"]))
    changed = service("iris", V1beta1PredictorSpec(model=model, min_replicas=2))
    patched = client.patch("iris", changed, namespace=NAMESPACE)
    client.wait_isvc_ready(
        "iris",
        namespace=NAMESPACE,
        polling_interval=1,
        timeout_seconds=120,
        expected_generation=patched["metadata"]["generation"],
    )
    replaced = client.replace("iris", service("iris", V1beta1PredictorSpec(model=model)), namespace=NAMESPACE)
    assert "minReplicas" not in replaced["spec"]["predictor"], replaced["spec"]
    legacy_key(client, uri)
    client.delete("iris", namespace=NAMESPACE)
    wait_until_gone(client, "iris")


async def ask(url: str) -> None:
    """Ask a model of four features by REST and by gRPC: the same predictions."""
    rows = [5.1, 3.5, 1.4, 0.2, 6.7, 3.1, 5.6, 2.4]
    parts = urlsplit(url)
    request = InferRequest("iris", [InferInput("input-0", [2, 4], "FP64", rows)], request_id="7")
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    by_rest = await rest.infer(url, request, model_name="iris")
    await rest.close()
    client = InferenceGRPCClient(parts.netloc, channel_args=[("grpc.default_authority", "iris.default.example.com")])
    assert await client.is_server_live()
    assert await client.is_model_ready("iris")
    by_grpc = await client.infer(request)
    await client.close()
    assert by_grpc.id == "7"
    assert by_grpc.outputs[0].as_numpy().tolist() == by_rest.outputs[0].as_numpy().tolist()


def legacy_key(client: KServeClient, uri: str) -> None:
    legacy = service("legacy", V1beta1PredictorSpec(sklearn=V1beta1SKLearnSpec(storage_uri=uri)))
    created: Any = client.create(legacy, namespace=NAMESPACE)
    assert created["spec"]["predictor"]["model"]["modelFormat"] == {"name": "sklearn"}, created["spec"]
    client.delete("legacy", namespace=NAMESPACE)
    bad = service("bad", V1beta1PredictorSpec(sklearn=V1beta1SKLearnSpec(storage_uri="ftp://nowhere")))
    try:
        client.create(bad, namespace=NAMESPACE)
    except RuntimeError as error:
        assert "spec.predictor.sklearn.storageUri" in str(error), error
    else:
        raise AssertionError("a bad URI was accepted")


def wait_until_gone(client: KServeClient, name: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            client.api_instance.get_namespaced_custom_object(
                "serving.kserve.io", "v1beta1", NAMESPACE, "inferenceservices", name
            )
        except ApiException as error:
            assert error.status == 404, error
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} is still there")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    print("ok")
