"""InferenceServices as rows of a table, and first requests to try them with. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shallop.kube.objects import Object, find_condition, is_deleting, labels_of

__all__ = ["count_pods", "endpoint_rows", "example_request", "pod_row", "predict_path"]

_SERVICE_LABEL = "serving.kserve.io/inferenceservice"
_SAMPLE_ROWS = 2
_MAX_SAMPLE = 64


def endpoint_rows(services: Iterable[Object], pods: Iterable[Object]) -> list[dict[str, Any]]:
    """Return one slim row for each InferenceService, in order of namespace and name."""
    by_service: dict[tuple[str, str], list[Object]] = {}
    for pod in pods:
        name = labels_of(pod).get(_SERVICE_LABEL)
        if name and not is_deleting(pod):
            by_service.setdefault((pod["metadata"]["namespace"], name), []).append(pod)
    rows = [
        _row(service, by_service.get((service["metadata"]["namespace"], service["metadata"]["name"]), []))
        for service in services
    ]
    return sorted(rows, key=lambda row: (row["namespace"], row["name"]))


def _row(service: Object, pods: Sequence[Object]) -> dict[str, Any]:
    metadata, status = service["metadata"], service.get("status") or {}
    predictor = (service.get("spec") or {}).get("predictor") or {}
    model = predictor.get("model") or {}
    ready = find_condition(service, "Ready") or {}
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "url": status.get("url", ""),
        "ready": ready.get("status", "Unknown"),
        "reason": ready.get("reason", ""),
        "message": _message(status, ready),
        "format": (model.get("modelFormat") or {}).get("name", ""),
        "runtime": status.get("clusterServingRuntimeName") or status.get("servingRuntimeName") or "",
        "storage": model.get("storageUri", ""),
        "created_at": metadata.get("creationTimestamp", ""),
        "pods": [pod_row(pod) for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))],
    }


def _message(status: Mapping[str, Any], ready: Mapping[str, Any]) -> str:
    """Say why it is not ready: what the container said last is worth more than the summary."""
    message = str(ready.get("message") or "")
    failure = (status.get("modelStatus") or {}).get("lastFailureInfo") or {}
    detail = str(failure.get("message") or "").strip()
    if ready.get("status") == "False" and detail and detail not in message:
        return f"{message}\n{detail}" if message else detail
    return message


def pod_row(pod: Object) -> dict[str, Any]:
    """Return what a page shows of a Pod."""
    status = pod.get("status") or {}
    return {
        "name": pod["metadata"]["name"],
        "phase": status.get("phase", "Pending"),
        "ready": (find_condition(pod, "Ready") or {}).get("status") == "True",
        "restarts": sum(
            container.get("restartCount", 0)
            for name in ("initContainerStatuses", "containerStatuses")
            for container in status.get(name) or ()
        ),
    }


def count_pods(pods: Iterable[Object]) -> dict[str, int]:
    phases = [(pod.get("status") or {}).get("phase", "Pending") for pod in pods]
    counts = {name.lower(): phases.count(name) for name in ("Running", "Pending", "Failed")}
    return {"total": len(phases)} | counts


def predict_path(protocol: str, model: str) -> str:
    """Return the path of predictions below the URL of an endpoint; protocol is ``v1`` or ``v2``."""
    return f"/v2/models/{model}/infer" if protocol == "v2" else f"/v1/models/{model}:predict"


def example_request(protocol: str, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Make a request of the right shape, with zeros.

    Args:
        protocol: ``v1`` or ``v2``.
        metadata: the answer of ``/v2/models/NAME``; its inputs give names, types and shapes (-1: any).
    """
    inputs = [_sample(tensor) for tensor in (metadata or {}).get("inputs") or ()]
    if protocol == "v2":
        return {"inputs": inputs or [_sample({"name": "input-0", "datatype": "FP64", "shape": [-1, 4]})]}
    if len(inputs) > 1:
        return {"instances": [{tensor["name"]: _rows(tensor)[0] for tensor in inputs}]}
    return {"instances": _rows(inputs[0]) if inputs else [[0.0] * 4] * _SAMPLE_ROWS}


def _sample(tensor: Mapping[str, Any]) -> dict[str, Any]:
    shape = [int(size) for size in tensor.get("shape") or [-1]]
    shape = [_SAMPLE_ROWS if size < 1 and index == 0 else max(size, 1) for index, size in enumerate(shape)]
    count = 1
    for size in shape:
        count *= size
    datatype = str(tensor.get("datatype") or "FP64")
    if count > _MAX_SAMPLE * _SAMPLE_ROWS:
        shape, count = [1, *shape[1:]], count // max(shape[0], 1)
    zero: Any = "" if datatype == "BYTES" else False if datatype == "BOOL" else 0.0 if "FP" in datatype else 0
    return {"name": str(tensor.get("name") or "input-0"), "shape": shape, "datatype": datatype, "data": [zero] * count}


def _rows(tensor: Mapping[str, Any]) -> list[Any]:
    """Cut flat data into rows: one for each place of the first dimension."""
    first = max(int(tensor["shape"][0]), 1)
    width = len(tensor["data"]) // first
    if len(tensor["shape"]) == 1:
        return list(tensor["data"])
    return [tensor["data"][index * width : (index + 1) * width] for index in range(first)]
