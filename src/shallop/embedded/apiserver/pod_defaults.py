"""Defaults of Pods and of the Pod templates inside workloads."""

from __future__ import annotations

import random
from typing import Any

from shallop.embedded.apiserver.quantities import canonical_quantities
from shallop.kube.objects import Object, parse_quantity

__all__ = ["complete_pod", "default_pod", "default_template", "qos_class"]

_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
# Names are no secrets: no question to the system for each letter.
_random = random.Random()
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_DEFAULT_MODES = ("secret", "configMap", "downwardAPI", "projected")


def default_pod(obj: Object, old: Object | None) -> Object:
    """Defaults of a Pod."""
    spec: Object = obj.get("spec") or {}
    # A write of the status shares the stored spec, which has its defaults.
    if not spec or old is None or spec is not old.get("spec"):
        spec = default_pod_spec(spec)
        spec.setdefault("enableServiceLinks", True)
    if old is not None:
        status = obj.get("status") or {}
        if status.get("podIP") and not status.get("podIPs"):
            status = status | {"podIPs": [{"ip": status["podIP"]}]}
        if status and status is not old.get("status"):
            status = _default_status(status)
        return obj | {"spec": spec, "status": status}
    for key in ("containers", "initContainers"):
        if spec.get(key):
            spec[key] = [_requests_from_limits(container) for container in spec[key]]
    return obj | {"spec": spec}


# What the API always writes, even empty.
_STATE_TIMES = {"running": ("startedAt",), "terminated": ("startedAt", "finishedAt")}


def _default_status(status: Object) -> Object:
    status = dict(status)
    if status.get("conditions"):
        status["conditions"] = [
            {"lastProbeTime": None, "lastTransitionTime": None} | condition for condition in status["conditions"]
        ]
    for key in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        if status.get(key):
            status[key] = [_default_container_status(container) for container in status[key]]
    return status


def _default_container_status(container: Object) -> Object:
    states = {key: container.get(key) or {} for key in ("state", "lastState")}
    for key, state in states.items():
        for name, times in _STATE_TIMES.items():
            if isinstance(state.get(name), dict):
                states[key] = state | {name: dict.fromkeys(times) | state[name]}
    required = {"ready": False, "restartCount": 0, "image": "", "imageID": ""}
    return required | container | states


def complete_pod(obj: Object) -> Object:
    """Give a new Pod its priority, service account, tolerations, token and status."""
    spec = dict(obj["spec"])
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec.setdefault("priority", 0)
    spec.setdefault("serviceAccountName", spec.get("serviceAccount") or "default")
    spec["serviceAccount"] = spec["serviceAccountName"]
    spec["tolerations"] = _with_tolerations(spec.get("tolerations") or [])
    if spec.get("automountServiceAccountToken") is not False:
        spec = _with_token(spec)
    status: Object = {"phase": "Pending", "qosClass": qos_class(spec)}
    if spec.get("schedulingGates"):
        gated = {
            "type": "PodScheduled",
            "status": "False",
            "lastProbeTime": None,
            "lastTransitionTime": obj["metadata"]["creationTimestamp"],
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }
        status["conditions"] = [gated]
    return obj | {"spec": spec, "status": status}


def default_template(template: Object) -> Object:
    return template | {"metadata": template.get("metadata") or {}, "spec": default_pod_spec(template.get("spec") or {})}


def default_pod_spec(spec: Object) -> Object:
    spec = {key: value for key, value in spec.items() if value is not None}
    spec.setdefault("restartPolicy", "Always")
    if spec.setdefault("terminationGracePeriodSeconds", 30) < 0:
        spec["terminationGracePeriodSeconds"] = 1
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    if spec.get("serviceAccountName"):
        spec["serviceAccount"] = spec["serviceAccountName"]
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    for key in ("containers", "initContainers", "ephemeralContainers"):
        if spec.get(key):
            host_network = bool(spec.get("hostNetwork"))
            spec[key] = [default_container(c, host_network=host_network) for c in spec[key]]
    if spec.get("volumes"):
        spec["volumes"] = [_default_volume(volume) for volume in spec["volumes"]]
    for constraint in spec.get("topologySpreadConstraints") or ():
        constraint.setdefault("whenUnsatisfiable", "DoNotSchedule")
    return spec


def default_container(container: Object, *, host_network: bool = False) -> Object:
    container = dict(container)
    container["resources"] = _canonical_resources(container.get("resources") or {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    container.setdefault("imagePullPolicy", _pull_policy(container.get("image", "")))
    if container.get("ports"):
        container["ports"] = [_default_port(port, host_network=host_network) for port in container["ports"]]
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(key):
            container[key] = _default_probe(container[key])
    if container.get("lifecycle"):
        container["lifecycle"] = {
            key: _default_handler(value) if isinstance(value, dict) else value
            for key, value in container["lifecycle"].items()
        }
    if container.get("env"):
        container["env"] = [_default_env(variable) for variable in container["env"]]
    return container


def _canonical_resources(resources: Object) -> Object:
    found = {key: canonical_quantities(resources[key]) for key in ("limits", "requests") if resources.get(key)}
    return resources | found


def _pull_policy(image: str) -> str:
    name = image.rsplit("/", 1)[-1]
    if "@" in name:
        return "IfNotPresent"
    tag = name.partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def _default_port(port: Object, *, host_network: bool) -> Object:
    port = {"protocol": "TCP", **port}
    if host_network:
        port.setdefault("hostPort", port.get("containerPort"))
    return port


def _default_probe(probe: Object) -> Object:
    numbers = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
    probe = probe | {key: value for key, value in numbers.items() if not probe.get(key)}
    return _default_handler(probe)


def _default_handler(handler: Object) -> Object:
    if isinstance(handler.get("httpGet"), dict):
        http = handler["httpGet"]
        return handler | {"httpGet": http | {"path": http.get("path") or "/", "scheme": http.get("scheme") or "HTTP"}}
    if isinstance(handler.get("grpc"), dict):
        return handler | {"grpc": {"service": ""} | handler["grpc"]}
    return handler


def _default_env(variable: Object) -> Object:
    source = variable.get("valueFrom") or {}
    if source.get("fieldRef"):
        return variable | {"valueFrom": source | {"fieldRef": {"apiVersion": "v1"} | source["fieldRef"]}}
    if source.get("resourceFieldRef"):
        reference = {"divisor": "0"} | source["resourceFieldRef"]
        return variable | {"valueFrom": source | {"resourceFieldRef": reference}}
    return variable


def _default_volume(volume: Object) -> Object:
    if set(volume) <= {"name"}:
        return volume | {"emptyDir": {}}
    for kind in _DEFAULT_MODES:
        if isinstance(volume.get(kind), dict):
            source = {"defaultMode": 420} | volume[kind]
            if kind == "projected":
                source["sources"] = [_default_projection(item) for item in source.get("sources") or ()]
            return volume | {kind: _default_items(source)}
    if isinstance(volume.get("hostPath"), dict):
        return volume | {"hostPath": {"type": ""} | volume["hostPath"]}
    if isinstance(volume.get("iscsi"), dict):
        return volume | {"iscsi": {"iscsiInterface": "default"} | volume["iscsi"]}
    if isinstance(volume.get("ephemeral"), dict):
        return volume | {"ephemeral": _default_ephemeral(volume["ephemeral"])}
    return volume


def _default_ephemeral(source: Object) -> Object:
    template = source.get("volumeClaimTemplate") or {}
    spec = {"volumeMode": "Filesystem"} | (template.get("spec") or {})
    return source | {"volumeClaimTemplate": template | {"metadata": template.get("metadata") or {}, "spec": spec}}


def _default_projection(source: Object) -> Object:
    if isinstance(source.get("serviceAccountToken"), dict):
        return source | {"serviceAccountToken": {"expirationSeconds": 3600} | source["serviceAccountToken"]}
    if isinstance(source.get("downwardAPI"), dict):
        return source | {"downwardAPI": _default_items(source["downwardAPI"])}
    return source


def _default_items(source: Object) -> Object:
    if not source.get("items"):
        return source
    items = [
        item | {"fieldRef": {"apiVersion": "v1"} | item["fieldRef"]} if item.get("fieldRef") else item
        for item in source["items"]
    ]
    return source | {"items": items}


def _with_tolerations(tolerations: list[Object]) -> list[Object]:
    result = list(tolerations)
    for condition in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{condition}"
        covered = any(
            entry.get("key") in (key, None, "") and entry.get("effect") in ("NoExecute", None, "")
            for entry in tolerations
        )
        if not covered:
            result.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
    return result


def _with_token(spec: Object) -> Object:
    """Mount a token of the service account where a container does not mount something there itself."""
    name = "kube-api-access-" + "".join(_random.choices(_SUFFIX_ALPHABET, k=5))
    mount = {"name": name, "readOnly": True, "mountPath": _TOKEN_PATH}
    mounted = False
    spec = dict(spec)
    for key in ("initContainers", "containers"):
        containers = []
        for container in spec.get(key) or ():
            mounts = container.get("volumeMounts") or []
            if any(entry.get("mountPath") == _TOKEN_PATH for entry in mounts):
                containers.append(container)
                continue
            mounted = True
            containers.append(container | {"volumeMounts": [*mounts, mount]})
        if containers:
            spec[key] = containers
    if mounted:
        spec["volumes"] = [*(spec.get("volumes") or ()), {"name": name, "projected": _token_projection()}]
    return spec


def _token_projection() -> Object:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    return {
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [namespace]}},
        ],
        "defaultMode": 420,
    }


def _requests_from_limits(container: Object) -> Object:
    resources: dict[str, Any] = container.get("resources") or {}
    limits = resources.get("limits")
    if not limits:
        return container
    return container | {"resources": resources | {"requests": {**limits, **(resources.get("requests") or {})}}}


def qos_class(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort, from requests and limits of CPU and memory."""
    requests: set[str] = set()
    guaranteed = True
    for container in [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]:
        resources = container.get("resources") or {}
        found_limits = _positive(resources.get("limits"))
        found_requests = _positive(resources.get("requests"))
        requests |= found_requests.keys() | found_limits.keys()
        if set(found_limits) != {"cpu", "memory"} or found_limits != (found_requests or found_limits):
            guaranteed = False
    if not requests:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _positive(quantities: Object | None) -> dict[str, Any]:
    found = {}
    for name in ("cpu", "memory"):
        value = (quantities or {}).get(name)
        if value is not None and (amount := parse_quantity(value)) > 0:
            found[name] = amount
    return found
