"""
The Pod template of a predictor: the runtime's containers merged with the user's; pure.

Source: KServe predictor reconciler (2026-08): arguments are concatenated, runtime first, so that the user's win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from shallop.kube.objects import Object, annotations_of, labels_of
from shallop.kube.patch import FieldMerge, strategic_merge_patch
from shallop.serving.storage import claim_of

__all__ = ["CONTAINER", "MODEL_PATH", "REQUIREMENTS", "Storage", "render_pod_template", "workload_name"]

CONTAINER = "kserve-container"
MODEL_PATH = "/mnt/models"
REQUIREMENTS = "environment.shallop.dev/requirements"
READ_ONLY = "storage.kserve.io/readonly"
INITIALIZER_IMAGE = "kserve/storage-initializer:v0.21.0"
PORT = 8080

# Fields of spec.predictor.model that are not the container's.
_MODEL_FIELDS = frozenset(
    ("modelFormat", "runtime", "runtimeVersion", "protocolVersion", "storageUri", "storage", "confidential", "name")
)
# Fields of a component that are not the Pod's.
_COMPONENT_FIELDS = frozenset(
    (
        *("model", "name", "containers", "labels", "annotations", "deploymentStrategy", "timeout", "workerSpec"),
        *("minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling"),
        *("containerConcurrency", "canaryTrafficPercent", "logger", "batcher", "storageUris", "storageContainerName"),
    )
)
_RUNTIME_POD_FIELDS = (
    *("nodeSelector", "affinity", "tolerations", "volumes", "imagePullSecrets"),
    *("hostIPC", "schedulerName", "resourceClaims"),
)
_NOT_PROPAGATED = (
    "autoscaling.knative.dev/",
    "internal.serving.kserve.io/",
    "kubectl.kubernetes.io/last-applied-configuration",
    "modelFormat",
)
_LISTS: Mapping[str, Mapping[str, str]] = {
    "Container": {"env": "name", "ports": "containerPort", "volumeMounts": "mountPath", "volumeDevices": "devicePath"},
    "Pod": {"volumes": "name", "imagePullSecrets": "name", "resourceClaims": "name", "initContainers": "name"},
}
_EXPRESSION = re.compile(r"\{\{-?\s*\.(Name|Namespace|Labels|Annotations)(?:\.([\w./-]+))?\s*-?\}\}")


class Storage(NamedTuple):
    """
    The model of a predictor.

    Args:
        uri: where it really lies; empty when the predictor brings its own model.
        requirements: pip requirement lines that it needs; empty for the runtime's own.
        host_path: where ``uri`` is on this machine; the initializer gets it mounted at the same place, because a Pod
            does not see all of the machine's folders (its /tmp is its own).
    """

    uri: str = ""
    requirements: Sequence[str] = ()
    host_path: str = ""


def workload_name(service: Object) -> str:
    name = (service["spec"]["predictor"].get("name") or "").strip()
    return f"{service['metadata']['name']}-{name}-predictor" if name else f"{service['metadata']['name']}-predictor"


def render_pod_template(service: Object, runtime: Object | None, storage: Storage) -> Object:
    """
    Render the template of the predictor's Pods.

    Args:
        service: the InferenceService, defaulted.
        runtime: what serves its model; None for a predictor with containers of its own.
        storage: the model, its URI resolved.
    """
    predictor = service["spec"]["predictor"]
    runtime_spec = (runtime or {}).get("spec") or {}
    containers = _containers(predictor, runtime_spec)
    spec = {name: runtime_spec[name] for name in _RUNTIME_POD_FIELDS if name in runtime_spec}
    pod_fields = {name: value for name, value in predictor.items() if name not in _COMPONENT_FIELDS}
    spec = strategic_merge_patch(spec, pod_fields, "Pod", _merge_rule)
    spec["containers"] = [_finish(container, service) for container in containers]
    return {"metadata": _metadata(service, runtime_spec, storage), "spec": _add_storage(spec, service, storage)}


def _containers(predictor: Mapping[str, Any], runtime_spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    own = list(predictor.get("containers") or [])
    model = predictor.get("model")
    if model is None:
        return own
    base = list(runtime_spec.get("containers") or [])
    serving = next((item for item in base if item.get("name") == CONTAINER), base[0] if base else {})
    user = {name: value for name, value in model.items() if name not in _MODEL_FIELDS}
    merged = _merge_container(serving, user) | {"name": CONTAINER}
    if version := model.get("runtimeVersion"):
        merged["image"] = _with_tag(merged.get("image", ""), version)
    others = {item["name"]: item for item in base if item is not serving}
    for item in own:
        others[item["name"]] = _merge_container(others.get(item["name"], {}), item)
    return [merged, *others.values()]


def _merge_container(base: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    merged = strategic_merge_patch(dict(base), dict(user), "Container", _merge_rule)
    if args := [*(base.get("args") or []), *(user.get("args") or [])]:
        merged["args"] = args
    return merged


def _merge_rule(type_name: str, field: str) -> FieldMerge:
    key = _LISTS.get(type_name, {}).get(field, "")
    return FieldMerge("", bool(key), key)


def _with_tag(image: str, tag: str) -> str:
    if "@" in image:
        return image
    repository, colon, last = image.rpartition(":")
    return f"{repository if colon and '/' not in last else image}:{tag}"


def _finish(container: Mapping[str, Any], service: Object) -> dict[str, Any]:
    finished: dict[str, Any] = _expand(container, service)
    env = [item for item in finished.get("env") or [] if item["name"] != "INFERENCE_SERVICE_NAME"]
    finished["env"] = [*env, {"name": "INFERENCE_SERVICE_NAME", "value": service["metadata"]["name"]}]
    # What a process said last becomes the message that users read when it could not load its model.
    finished.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    if finished.get("name") == CONTAINER:
        ports = finished.get("ports") or []
        port = ports[0]["containerPort"] if ports else PORT
        probe = {"tcpSocket": {"port": port}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 3}
        finished.setdefault("readinessProbe", probe)
    return finished


def _expand(value: Any, service: Object) -> Any:
    if isinstance(value, str):
        return _EXPRESSION.sub(lambda match: _lookup(match, service["metadata"]), value)
    if isinstance(value, Mapping):
        return {name: _expand(item, service) for name, item in value.items()}
    return [_expand(item, service) for item in value] if isinstance(value, list) else value


def _lookup(match: re.Match[str], metadata: Mapping[str, Any]) -> str:
    name, key = match.groups()
    if name in ("Name", "Namespace"):
        return str(metadata.get(name.lower(), ""))
    return str((metadata.get(name.lower()) or {}).get(key, "<no value>"))


def _metadata(service: Object, runtime_spec: Mapping[str, Any], storage: Storage) -> dict[str, Any]:
    predictor, name = service["spec"]["predictor"], service["metadata"]["name"]
    labels = {**(runtime_spec.get("labels") or {}), **labels_of(service), **(predictor.get("labels") or {})}
    labels |= {
        "app": f"isvc.{workload_name(service)}",
        "component": "predictor",
        "serving.kserve.io/inferenceservice": name,
    }
    annotations = {
        **(runtime_spec.get("annotations") or {}),
        **({REQUIREMENTS: "\n".join(storage.requirements)} if storage.requirements else {}),
        **annotations_of(service),
        **(predictor.get("annotations") or {}),
    }
    return {
        "labels": labels,
        "annotations": {key: value for key, value in annotations.items() if not key.startswith(_NOT_PROPAGATED)},
    }


def _add_storage(spec: dict[str, Any], service: Object, storage: Storage) -> dict[str, Any]:
    if not storage.uri:
        return spec
    claim = claim_of(storage.uri)
    name = "kserve-pvc-source" if claim else "kserve-provision-location"
    volume: dict[str, Any] = {"name": name}
    volume |= {"persistentVolumeClaim": {"claimName": claim.name}} if claim else {"emptyDir": {}}
    mount: dict[str, Any] = {"name": name, "mountPath": MODEL_PATH}
    if claim and claim.path:
        mount["subPath"] = claim.path
    read_only = annotations_of(service).get(READ_ONLY, "true") != "false"
    containers = [_mount(container, {**mount, "readOnly": read_only}) for container in spec["containers"]]
    volumes, mounts = [*(spec.get("volumes") or []), volume], [mount]
    if storage.host_path:
        volumes.append({"name": "kserve-host-source", "hostPath": {"path": storage.host_path}})
        mounts.append({"name": "kserve-host-source", "mountPath": storage.host_path, "readOnly": True})
    result = {**spec, "containers": containers, "volumes": volumes}
    if not claim:
        initializer = {
            "name": "storage-initializer",
            "image": INITIALIZER_IMAGE,
            "args": [storage.uri, MODEL_PATH],
            "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}, "limits": {"memory": "1Gi"}},
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": mounts,
        }
        result["initContainers"] = [initializer, *(spec.get("initContainers") or [])]
    return result


def _mount(container: dict[str, Any], mount: Mapping[str, Any]) -> dict[str, Any]:
    """Mount the model in the container that serves it and set its STORAGE_URI, if it asked, to where it is."""
    if container.get("name") != CONTAINER:
        return container
    mounts = [item for item in container.get("volumeMounts") or [] if item["mountPath"] != MODEL_PATH]
    env = [{**item, "value": MODEL_PATH} if item["name"] == "STORAGE_URI" else item for item in container["env"]]
    return {**container, "env": env, "volumeMounts": [*mounts, dict(mount)]}
