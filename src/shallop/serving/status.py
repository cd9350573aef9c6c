"""
The status of an InferenceService, computed from what exists; pure.

Source: KServe v1beta1 ``InferenceServiceStatus``, Standard mode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from shallop.kube.objects import Object, find_condition, is_deleting, set_condition
from shallop.serving.podtemplate import CONTAINER

__all__ = ["Failure", "Observed", "blocked_status", "find_failure", "merge_status", "render_status", "stopped_status"]

_MESSAGE_LENGTH = 400
# ErrImagePull, ImagePullBackOff, InvalidImageName, CreateContainerConfigError ...; others are stages of a start.
_IS_FAILURE = re.compile(r"^(Err|Invalid)|(Error|BackOff)$")


class Failure(NamedTuple):
    """
    Why a predictor does not become ready.

    Args:
        reason: of the condition, one word.
        message: of the condition, one line.
        kind: the reason of ``modelStatus.lastFailureInfo``.
        detail: what the container said last, or the message.
    """

    reason: str
    message: str
    kind: str
    detail: str = ""
    location: str = ""
    exit_code: int | None = None
    time: str = ""


class Observed(NamedTuple):
    """
    What exists for one InferenceService.

    Args:
        deployment: as last seen; its status may be of an older generation.
        pods: of every revision.
        slices: EndpointSlices of the predictor's Service.
        url: where clients reach the service.
        address: where Pods reach it.
        runtime: what serves the model; None for a predictor of its own making.
    """

    deployment: Object
    pods: Sequence[Object]
    slices: Sequence[Object]
    routes: Sequence[Object]
    runtime: Object | None
    url: str
    address: str


def render_status(service: Object, observed: Observed, now: datetime) -> dict[str, Any]:
    """Return the status of an InferenceService whose objects have been applied."""
    deployment = observed.deployment
    failure = find_failure(observed.pods)
    available = (find_condition(deployment, "Available") or {}).get("status") == "True"
    predictor = ("True", "", "") if available else _not_available(deployment, observed.pods, failure)
    ingress = _ingress(observed, available=available)
    revision = (deployment["metadata"].get("annotations") or {}).get("deployment.kubernetes.io/revision", "1")
    component = {"latestCreatedRevision": revision, "url": observed.url, "restUrl": observed.url}
    component |= {"address": {"url": observed.address}}
    component |= {"latestReadyRevision": revision} if available and _is_complete(deployment) else {}
    status: dict[str, Any] = {
        "observedGeneration": service["metadata"].get("generation", 0),
        "deploymentMode": "Standard",
        "components": {"predictor": component},
        "modelStatus": _model_status(deployment, observed.pods, failure, available=available),
        "url": observed.url,
        "address": {"url": observed.address},
        "conditions": _conditions(service, predictor, ingress, now),
    }
    if observed.runtime is not None:
        clustered = observed.runtime["kind"] == "ClusterServingRuntime"
        key = "clusterServingRuntimeName" if clustered else "servingRuntimeName"
        status[key] = observed.runtime["metadata"]["name"]
    return _keep_annotations(service, status)


def blocked_status(service: Object, failure: Failure, now: datetime, *, transition: str) -> dict[str, Any]:
    """Return the status when nothing can be made yet; what already runs keeps its URL and Pods."""
    old = service.get("status") or {}
    predictor = ("False", failure.reason, failure.message)
    model = {
        "transitionStatus": transition,
        "states": {
            "activeModelState": ((old.get("modelStatus") or {}).get("states") or {}).get("activeModelState", ""),
            "targetModelState": "FailedToLoad" if transition == "BlockedByFailedLoad" else "",
        },
        "copies": {"failedCopies": 0},
        "lastFailureInfo": _failure_info(failure),
    }
    kept = {key: old[key] for key in ("url", "address", "components") if key in old}
    status = {
        "observedGeneration": service["metadata"].get("generation", 0),
        "deploymentMode": "Standard",
        "modelStatus": model,
        "conditions": _conditions(service, predictor, ("Unknown", failure.reason, ""), now),
    }
    return _keep_annotations(service, status | kept)


def stopped_status(service: Object, now: datetime) -> dict[str, Any]:
    """Return the status of a service that the user has stopped."""
    stopped = ("False", "Stopped", "")
    conditions = set_condition(_conditions(service, stopped, stopped, now), "Stopped", "True", "Stopped", "", now)
    generation = service["metadata"].get("generation", 0)
    status = {"observedGeneration": generation, "deploymentMode": "Standard", "conditions": conditions}
    return _keep_annotations(service, status)


def merge_status(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch that makes ``old`` into ``new``: what is no longer there becomes null."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        nested = isinstance(value, Mapping) and isinstance(before, Mapping)
        patch[key] = merge_status(before, value) if nested else value  # type: ignore[arg-type]
    return patch


def find_failure(pods: Sequence[Object]) -> Failure | None:
    """Return the newest thing that keeps a Pod from serving, None when nothing has failed."""
    living = [pod for pod in pods if not is_deleting(pod)]
    for pod in sorted(living, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True):
        for container, initial in _container_statuses(pod):
            if failure := _container_failure(pod, container, initial=initial):
                return failure
        status = pod.get("status") or {}
        if status.get("phase") == "Failed":
            said = status.get("message") or status.get("reason") or "it failed"
            return _failure(pod, status.get("reason") or "PodFailed", f"Pod {_name(pod)}: {said}", "RuntimeUnhealthy")
    return None


def _container_statuses(pod: Object) -> Iterator[tuple[Mapping[str, Any], bool]]:
    status = pod.get("status") or {}
    for name, initial in (("initContainerStatuses", True), ("containerStatuses", False)):
        for container in status.get(name) or ():
            yield container, initial


def _container_failure(pod: Object, container: Mapping[str, Any], *, initial: bool) -> Failure | None:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    waiting = state.get("waiting")
    # Between two attempts of a container that keeps failing its last end still counts, so that status does not flap.
    ended = state.get("terminated") or (None if container.get("ready") else last.get("terminated"))
    where = f"Pod {_name(pod)}, container {container['name']}"
    if ended and ended.get("exitCode"):
        reason = "StorageInitializerFailed" if initial else "ModelLoadFailed"
        said = (ended.get("message") or "").strip()
        line = _last_line(said) or ended.get("reason") or "it said nothing; see its log"
        message = f"{where} ended with code {ended['exitCode']}: {line}"
        kind = "ModelLoadFailed" if initial or container["name"] == CONTAINER else "RuntimeUnhealthy"
        failure = _failure(pod, reason, message, kind)
        return failure._replace(
            detail=said or message, exit_code=int(ended["exitCode"]), time=str(ended.get("finishedAt") or "")
        )
    reason = (waiting or {}).get("reason") or ""
    if not waiting or not _IS_FAILURE.search(reason) or reason == "CrashLoopBackOff":
        return None
    return _failure(pod, reason, f"{where}: {waiting.get('message') or reason}", "RuntimeUnhealthy")


def _failure(pod: Object, reason: str, message: str, kind: str) -> Failure:
    return Failure(reason, message[:_MESSAGE_LENGTH], kind, detail=message, location=_name(pod))


def _name(pod: Object) -> str:
    return str(pod["metadata"]["name"])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _not_available(deployment: Object, pods: Sequence[Object], failure: Failure | None) -> tuple[str, str, str]:
    if failure:
        return "False", failure.reason, failure.message
    for type_, bad in (("ReplicaFailure", "True"), ("Progressing", "False")):
        condition = find_condition(deployment, type_) or {}
        if condition.get("status") == bad:
            return "False", condition.get("reason") or type_, condition.get("message") or ""
    return "Unknown", "Progressing", _progress(pods)


def _progress(pods: Sequence[Object]) -> str:
    """Say what is being waited for, in one line."""
    for pod in pods:
        if is_deleting(pod):
            continue
        scheduled = find_condition(pod, "PodScheduled") or {}
        if scheduled.get("status") == "False":
            return f"Pod {_name(pod)}: {scheduled.get('message') or 'cannot be scheduled'}"
        for container, _ in _container_statuses(pod):
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("message"):
                return f"Pod {_name(pod)}, container {container['name']}: {waiting['message']}"
        return f"Pod {_name(pod)} starts" if pod.get("status", {}).get("phase") != "Running" else "the model is loading"
    return "waiting for the first Pod"


def _ingress(observed: Observed, *, available: bool) -> tuple[str, str, str]:
    """Judge the way in: False when a gateway refused a route, Unknown until the gateway can have an endpoint."""
    for route in observed.routes:
        for parent in (route.get("status") or {}).get("parents") or ():
            for condition in parent.get("conditions") or ():
                if condition.get("type") in ("Accepted", "ResolvedRefs") and condition.get("status") == "False":
                    said = condition.get("message") or "refused by the gateway"
                    message = f"HTTPRoute {route['metadata']['name']}: {said}"
                    return "False", condition.get("reason") or "HTTPRouteNotReady", message
    if not available:
        return "Unknown", "PredictorNotReady", ""
    if not any(_has_ready_endpoint(item) for item in observed.slices):
        return "Unknown", "NoReadyEndpoint", "the Service of the predictor has no ready endpoint yet"
    return "True", "", ""


def _has_ready_endpoint(item: Object) -> bool:
    return any((endpoint.get("conditions") or {}).get("ready", True) for endpoint in item.get("endpoints") or ())


def _conditions(
    service: Object, predictor: tuple[str, str, str], ingress: tuple[str, str, str], now: datetime
) -> list[dict[str, Any]]:
    worst = next((part for part in (predictor, ingress) if part[0] == "False"), None)
    worst = worst or next((part for part in (predictor, ingress) if part[0] != "True"), ("True", "", ""))
    conditions = list((service.get("status") or {}).get("conditions") or [])
    wanted = {"IngressReady": ingress, "PredictorReady": predictor, "Ready": worst, "Stopped": ("False", "", "")}
    for type_, (value, reason, message) in wanted.items():
        conditions = set_condition(conditions, type_, value, reason, message, now)
    return sorted(conditions, key=lambda condition: str(condition["type"]))


def _is_complete(deployment: Object) -> bool:
    """Whether every replica is of the current revision and available."""
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    return status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0) and counts == [wanted] * 3


def _model_status(
    deployment: Object, pods: Sequence[Object], failure: Failure | None, *, available: bool
) -> dict[str, Any]:
    living = [pod for pod in pods if not is_deleting(pod)]
    if available and _is_complete(deployment):
        transition, target = "UpToDate", "Loaded"
    elif failure:
        transition, target = "BlockedByFailedLoad", "FailedToLoad"
    else:
        transition, target = "InProgress", "Loading" if living else "Pending"
    ready = sum((find_condition(pod, "Ready") or {}).get("status") == "True" for pod in living)
    failed = sum(find_failure([pod]) is not None for pod in living)
    status: dict[str, Any] = {
        "transitionStatus": transition,
        "states": {"activeModelState": "Loaded" if available else "", "targetModelState": target},
        "copies": {"failedCopies": failed, "totalCopies": ready},
    }
    if failure and transition == "BlockedByFailedLoad":
        status["lastFailureInfo"] = _failure_info(failure)
    return status


def _failure_info(failure: Failure) -> dict[str, Any]:
    info: dict[str, Any] = {"reason": failure.kind, "message": failure.detail or failure.message}
    info |= {"location": failure.location} if failure.location else {}
    info |= {"exitCode": failure.exit_code} if failure.exit_code is not None else {}
    return info | ({"time": failure.time} if failure.time else {})


def _keep_annotations(service: Object, status: dict[str, Any]) -> dict[str, Any]:
    annotations = (service.get("status") or {}).get("annotations")
    return status | ({"annotations": annotations} if annotations else {})
