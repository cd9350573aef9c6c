"""
The status of an InferenceService, computed from what exists; pure.

Source: KServe v1beta1 ``InferenceServiceStatus``, Standard and Knative mode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from shallop.kube.objects import Object, find_condition, is_deleting, set_condition
from shallop.serving.admission import mode_of
from shallop.serving.podtemplate import CONTAINER
from shallop.serving.traffic import Rollout, next_rollout

__all__ = [
    "CanaryState",
    "Component",
    "Failure",
    "Observed",
    "Verdict",
    "blocked_status",
    "canary_state",
    "find_failure",
    "merge_status",
    "render_status",
    "rollout_of",
    "stopped_status",
]

Verdict = tuple[str, str, str]
"""Status, reason and message of a condition."""

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


class Component(NamedTuple):
    """
    What exists for one component.

    Args:
        workload: its Deployment or, in Knative mode, its Knative Service, as last seen.
        pods: of every revision.
        slices: EndpointSlices of its Service; of Standard mode only.
        url: where clients reach it.
        address: where Pods reach it.
    """

    workload: Object
    pods: Sequence[Object]
    slices: Sequence[Object] = ()
    url: str = ""
    address: str = ""

    @property
    def is_knative(self) -> bool:
        return bool(self.workload["kind"] == "Service")


class CanaryState(NamedTuple):
    """A canary of Standard mode, as its status shows it."""

    name: str
    ready: bool
    percent: int
    replicas: int
    model_status: dict[str, Any]


class Observed(NamedTuple):
    """
    What exists for one InferenceService.

    Args:
        components: by name; the predictor is always there.
        runtime: what serves the model; None for a predictor of its own making.
        url: where clients reach the service.
    """

    components: Mapping[str, Component]
    routes: Sequence[Object]
    runtime: Object | None
    url: str
    canaries: Sequence[CanaryState] = ()


_PREFIXES = {"predictor": "Predictor", "transformer": "Transformer", "explainer": "Explainer"}


def render_status(service: Object, observed: Observed, now: datetime) -> dict[str, Any]:
    """Return the status of an InferenceService whose objects have been applied."""
    predictor = observed.components["predictor"]
    verdicts = {name: _verdict(component) for name, component in observed.components.items()}
    failure = find_failure(predictor.pods)
    ingress = _ingress(observed, verdicts)
    front = observed.components.get("transformer", predictor)
    address = front.address
    if front.is_knative:
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        address = f"http://{name}.{namespace}.svc.cluster.local"
    status: dict[str, Any] = {
        "observedGeneration": service["metadata"].get("generation", 0),
        "deploymentMode": "Knative" if predictor.is_knative else "Standard",
        "components": {
            name: _component_status(service, name, component) for name, component in observed.components.items()
        },
        "modelStatus": _model_status(predictor, failure, available=verdicts["predictor"][0] == "True"),
        "url": observed.url,
        "address": {"url": address},
        "conditions": _conditions(service, _all_conditions(observed, verdicts, ingress), now),
    }
    if observed.canaries:
        status["canaryStatuses"] = [
            {"name": item.name, "ready": item.ready, "trafficPercent": item.percent, "modelStatus": item.model_status}
            for item in observed.canaries
        ]
    if observed.runtime is not None:
        clustered = observed.runtime["kind"] == "ClusterServingRuntime"
        key = "clusterServingRuntimeName" if clustered else "servingRuntimeName"
        status[key] = observed.runtime["metadata"]["name"]
    return _keep_annotations(service, status)


def _verdict(component: Component) -> Verdict:
    """Say whether a component can take requests."""
    workload = component.workload
    failure = find_failure(component.pods)
    if component.is_knative:
        found = find_condition(workload, "Ready") or {}
        status = workload.get("status") or {}
        if status.get("observedGeneration") != workload["metadata"].get("generation"):
            return "Unknown", "Progressing", _progress(component.pods)
        if found.get("status") == "True":
            return "True", "", ""
        if found.get("status") == "False":
            return "False", found.get("reason") or "RevisionFailed", found.get("message") or ""
        return "Unknown", "Progressing", _progress(component.pods)
    available = (find_condition(workload, "Available") or {}).get("status") == "True"
    return ("True", "", "") if available else _not_available(workload, component.pods, failure)


def _all_conditions(observed: Observed, verdicts: Mapping[str, Verdict], ingress: Verdict) -> dict[str, Verdict]:
    wanted: dict[str, Verdict] = {"IngressReady": ingress, "Stopped": ("False", "", "")}
    for name, verdict in verdicts.items():
        wanted[f"{_PREFIXES[name]}Ready"] = verdict
    parts = [*verdicts.values(), ingress]
    worst = next((part for part in parts if part[0] == "False"), None)
    wanted["Ready"] = worst or next((part for part in parts if part[0] != "True"), ("True", "", ""))
    if observed.components["predictor"].is_knative:
        routes, configurations = [], []
        for name, component in observed.components.items():
            routed, configured = (
                _copied(component.workload, type_) for type_ in ("RoutesReady", "ConfigurationsReady")
            )
            suffix = "RoutesReady" if name == "explainer" else "RouteReady"
            wanted[f"{_PREFIXES[name]}{suffix}"] = routed
            wanted[f"{_PREFIXES[name]}ConfigurationReady"] = configured
            routes.append(routed)
            configurations.append(configured)
        wanted["RoutesReady"] = next((item for item in routes if item[0] != "True"), ("True", "", ""))
        wanted["LatestDeploymentReady"] = next((item for item in configurations if item[0] != "True"), ("True", "", ""))
    if observed.canaries:
        waiting = [item.name for item in observed.canaries if not item.ready]
        wanted["CanaryPredictorReady"] = (
            ("False", "CanariesNotReady", f"not ready: {', '.join(waiting)}")
            if waiting
            else ("True", "AllCanariesReady", "")
        )
    return wanted


def _copied(obj: Object, type_: str) -> Verdict:
    found = find_condition(obj, type_) or {}
    return found.get("status") or "Unknown", found.get("reason") or "", found.get("message") or ""


def rollout_of(service: Object, component: str) -> Rollout:
    """Return what the status remembers of a component's revisions."""
    known = ((service.get("status") or {}).get("components") or {}).get(component) or {}
    return Rollout(
        known.get("latestCreatedRevision", ""),
        known.get("latestReadyRevision", ""),
        known.get("latestRolledoutRevision", ""),
        known.get("previousRolledoutRevision", ""),
    )


def _component_status(service: Object, name: str, component: Component) -> dict[str, Any]:
    found: dict[str, Any] = {"url": component.url, "restUrl": component.url, "address": {"url": component.address}}
    workload = component.workload
    if not component.is_knative:
        revision = (workload["metadata"].get("annotations") or {}).get("deployment.kubernetes.io/revision", "1")
        available = (find_condition(workload, "Available") or {}).get("status") == "True"
        ready = {"latestReadyRevision": revision} if available and _is_complete(workload) else {}
        return {"latestCreatedRevision": revision} | ready | found
    status = workload.get("status") or {}
    traffic = status.get("traffic") or []
    created, ready_name = status.get("latestCreatedRevisionName", ""), status.get("latestReadyRevisionName", "")
    rollout = next_rollout(rollout_of(service, name), created, ready_name, traffic)
    named = {
        "latestCreatedRevision": rollout.latest_created,
        "latestReadyRevision": rollout.latest_ready,
        "latestRolledoutRevision": rollout.latest_rolled_out,
        "previousRolledoutRevision": rollout.previous_rolled_out,
    }
    return {key: value for key, value in named.items() if value} | found | ({"traffic": traffic} if traffic else {})


def blocked_status(service: Object, failure: Failure, now: datetime, *, transition: str) -> dict[str, Any]:
    """Return the status when nothing can be made yet; what already runs keeps its URL and Pods."""
    old = service.get("status") or {}
    predictor: Verdict = ("False", failure.reason, failure.message)
    ingress: Verdict = ("Unknown", failure.reason, "")
    wanted = {"IngressReady": ingress, "PredictorReady": predictor, "Ready": predictor, "Stopped": ("False", "", "")}
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
        "deploymentMode": mode_of(service),
        "modelStatus": model,
        "conditions": _conditions(service, wanted, now),
    }
    return _keep_annotations(service, status | kept)


def stopped_status(service: Object, now: datetime) -> dict[str, Any]:
    """Return the status of a service that the user has stopped."""
    stopped: Verdict = ("False", "Stopped", "")
    wanted = {"IngressReady": stopped, "PredictorReady": stopped, "Ready": stopped, "Stopped": ("True", "Stopped", "")}
    for name in ("transformer", "explainer"):
        wanted |= {f"{_PREFIXES[name]}Ready": stopped} if (service.get("spec") or {}).get(name) else {}
    conditions = _conditions(service, wanted, now)
    generation = service["metadata"].get("generation", 0)
    status = {"observedGeneration": generation, "deploymentMode": mode_of(service), "conditions": conditions}
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


def _ingress(observed: Observed, verdicts: Mapping[str, Verdict]) -> Verdict:
    """Judge the way in: False when a gateway refused a route, Unknown until the gateway can have an endpoint."""
    for route in observed.routes:
        for parent in (route.get("status") or {}).get("parents") or ():
            for condition in parent.get("conditions") or ():
                if condition.get("type") in ("Accepted", "ResolvedRefs") and condition.get("status") == "False":
                    said = condition.get("message") or "refused by the gateway"
                    message = f"HTTPRoute {route['metadata']['name']}: {said}"
                    return "False", condition.get("reason") or "HTTPRouteNotReady", message
    for name, component in observed.components.items():
        if component.is_knative:
            if not (component.workload.get("status") or {}).get("traffic"):
                return "Unknown", f"{_PREFIXES[name]}NotReady", ""
        elif verdicts[name][0] != "True":
            return "Unknown", f"{_PREFIXES[name]}NotReady", ""
        elif not any(_has_ready_endpoint(item) for item in component.slices):
            return "Unknown", "NoReadyEndpoint", f"the Service of the {name} has no ready endpoint yet"
    return "True", "", ""


def _has_ready_endpoint(item: Object) -> bool:
    return any((endpoint.get("conditions") or {}).get("ready", True) for endpoint in item.get("endpoints") or ())


def _conditions(service: Object, wanted: Mapping[str, Verdict], now: datetime) -> list[dict[str, Any]]:
    conditions = [item for item in (service.get("status") or {}).get("conditions") or [] if item.get("type") in wanted]
    for type_, (value, reason, message) in wanted.items():
        conditions = set_condition(conditions, type_, value, reason, message, now)
    return sorted(conditions, key=lambda condition: str(condition["type"]))


def _is_complete(deployment: Object) -> bool:
    """Whether every replica is of the current revision and available."""
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    return status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0) and counts == [wanted] * 3


def _is_up_to_date(component: Component) -> bool:
    if not component.is_knative:
        return _is_complete(component.workload)
    status = component.workload.get("status") or {}
    return bool(status.get("latestReadyRevisionName") == status.get("latestCreatedRevisionName"))


def _model_status(predictor: Component, failure: Failure | None, *, available: bool) -> dict[str, Any]:
    living = [pod for pod in predictor.pods if not is_deleting(pod)]
    loaded = available or bool((predictor.workload.get("status") or {}).get("latestReadyRevisionName"))
    if available and _is_up_to_date(predictor) and living:
        transition, target = "UpToDate", "Loaded"
    elif failure:
        transition, target = "BlockedByFailedLoad", "FailedToLoad"
    else:
        # Without any Pod, at zero too, as upstream shows it: ready, with a model that is loaded when it is asked for.
        transition, target = "InProgress", "Loading" if living else "Pending"
    ready = sum((find_condition(pod, "Ready") or {}).get("status") == "True" for pod in living)
    failed = sum(find_failure([pod]) is not None for pod in living)
    status: dict[str, Any] = {
        "transitionStatus": transition,
        "states": {"activeModelState": "Loaded" if loaded else "", "targetModelState": target},
        "copies": {"failedCopies": failed, "totalCopies": ready},
    }
    if failure and transition == "BlockedByFailedLoad":
        status["lastFailureInfo"] = _failure_info(failure)
    return status


def canary_state(name: str, percent: int, replicas: int, canary: Component) -> CanaryState:
    """Return the state of a canary of Standard mode."""
    available = _verdict(canary)[0] == "True"
    model = _model_status(canary, find_failure(canary.pods), available=available)
    return CanaryState(name, available, percent, replicas, model)


def _failure_info(failure: Failure) -> dict[str, Any]:
    info: dict[str, Any] = {"reason": failure.kind, "message": failure.detail or failure.message}
    info |= {"location": failure.location} if failure.location else {}
    info |= {"exitCode": failure.exit_code} if failure.exit_code is not None else {}
    return info | ({"time": failure.time} if failure.time else {})


def _keep_annotations(service: Object, status: dict[str, Any]) -> dict[str, Any]:
    annotations = (service.get("status") or {}).get("annotations")
    return status | ({"annotations": annotations} if annotations else {})
