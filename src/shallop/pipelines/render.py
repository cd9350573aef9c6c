"""
The Pod of a container task, and the claims that tasks and runs ask for.

A Pod runs ``shallop_pod.launcher``, which runs the component and leaves ``result.json`` in the task's folder. Its name
is a function of run, task and attempt: a create that is repeated after a crash finds the same Pod.

Honoured of ``KubernetesExecutorConfig`` (kfp-kubernetes): all its fields; what the node makes of them is its matter.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from shallop.kube.objects import Object, labels_of
from shallop.pipelines.inputs import executor_input, parameters_with_defaults, placeholder_names
from shallop.pipelines.ir import Accelerator, Component, Container, Pipeline, ResourceSpec
from shallop.pipelines.placeholders import WORKSPACE_PATH, Placeholders, local_path
from shallop.pipelines.plan import ImportArtifact, StartTask
from shallop.pipelines.values import RunInfo, plain

__all__ = [
    "CREATE_PVC",
    "DELETE_PVC",
    "MAIN_CONTAINER",
    "RUN_LABEL",
    "WORKSPACE_SUFFIX",
    "built_in_image",
    "claim_name",
    "is_of_run",
    "pod_name",
    "render_claim",
    "render_pod",
    "render_workspace_claim",
    "task_folder",
    "workspace_claim_name",
]

CREATE_PVC = "argostub/createpvc"
DELETE_PVC = "argostub/deletepvc"
MAIN_CONTAINER = "main"
LAUNCHER = ("python3", "-m", "shallop_pod.launcher")

_JSON = json.JSONEncoder(ensure_ascii=False)
_NO_RESOURCES = ResourceSpec()
_WORKSPACE_VOLUME = "kfp-workspace"
RUN_LABEL = "pipeline/runid"
WORKSPACE_SUFFIX = "-kfp-workspace"
_COMPONENT_LABEL = "pipelines.kubeflow.org/v2_component"
_PATH_ANNOTATION = "pipelines.shallop.dev/task-path"


class _PodParts(Struct):
    """What a Pod is put together from; owned by one ``render_pod``."""

    env: list[dict[str, Any]]
    resources: dict[str, Any]
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    affinity: dict[str, Any] = {}

    def mount(self, name: str, source: Mapping[str, Any], path: str, sub_path: str = "") -> None:
        """Add a volume, once per name and source, and mount it."""
        name = _label(name)
        volume = {"name": name, **source}
        taken = next((one for one in self.volumes if one["name"] == name), None)
        if taken is not None and taken != volume:
            volume["name"] = name = f"{name[:58]}-{len(self.volumes)}"
            taken = None
        if taken is None:
            self.volumes.append(volume)
        mount = {"name": name, "mountPath": path}
        self.mounts.append({**mount, "subPath": sub_path} if sub_path else mount)


# ---- names and places


def pod_name(run: RunInfo, action: StartTask) -> str:
    """Name the Pod of one attempt: a DNS label of at most 63 characters, readable first, unique last."""
    return f"{_pod_stem(run.run_id, run.resource_name, action.path, action.task_name)}-{action.attempt}"


@functools.lru_cache(4096)
def _pod_stem(run_id: str, resource_name: str, path: str, task_name: str) -> str:
    run_label, task_label = _label(resource_name)[:27].strip("-"), _label(task_name)[:20].strip("-")
    return f"{run_label}-{task_label}-{_digest(f'{run_id}/{path}', 10)}"


def task_folder(run: RunInfo, action: StartTask | ImportArtifact) -> str:
    """Place one attempt's outputs and ``result.json``: ``<root>/<pipeline>/<run id>/<task>/<uuid>[-<attempt>]``."""
    root = run.local_root or run.pipeline_root.partition("?")[0].rstrip("/")
    attempt = f"-{action.attempt}" if action.attempt else ""
    return f"{root}/{run.pipeline_name}/{run.run_id}/{action.task_name}/{action.uuid}{attempt}"


def workspace_claim_name(run: RunInfo) -> str:
    return f"{run.resource_name}{WORKSPACE_SUFFIX}"


@functools.lru_cache(256)
def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:63].strip("-") or "x"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


# ---- the Pod


def render_pod(
    pipeline: Pipeline, run: RunInfo, action: StartTask, *, namespace: str, service_account: str = ""
) -> Object:
    """
    Render the Pod of one attempt of a container task.

    Args:
        service_account: of the run; empty = the namespace's default.
    """
    component = pipeline.components[action.component]
    container = pipeline.executor_of(component).container
    if container is None:
        raise LookupError(f"executor '{action.executor_label}' of {action.path} is no container")
    folder = task_folder(run, action)
    given = executor_input(component, action.inputs, folder)
    placeholders = Placeholders(
        parameters_with_defaults(component, action.inputs),
        {**{name: [] for name in component.input_definitions.artifacts}, **action.inputs.artifacts},
        placeholder_names(run, action.task_name, action.uuid),
        given,
    )
    parts = _render_parts(pipeline, run, action, container, placeholders)
    _pass_task_config(component, parts, given)
    config = action.kubernetes
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "initContainers": [_render_init_container(one, placeholders) for one in config.get("initContainers", [])],
        "containers": [_render_container(component, container, config, placeholders, parts, folder, action)],
        "volumes": parts.volumes,
        "nodeSelector": parts.node_selector,
        "tolerations": parts.tolerations,
        "affinity": parts.affinity,
        "imagePullSecrets": [{"name": _name_in(one, "secretName")} for one in config.get("imagePullSecret", [])],
        "serviceAccountName": service_account,
    }
    if deadline := int(config.get("activeDeadlineSeconds", 0)):
        spec["activeDeadlineSeconds"] = deadline
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _render_metadata(run, action, namespace),
        "spec": _without_empty(spec),
    }


def is_of_run(pod: Object) -> bool:
    """Say whether a Pod is one that ``render_pod`` has made."""
    labels = labels_of(pod)
    return RUN_LABEL in labels and labels.get(_COMPONENT_LABEL) == "true"


def _render_metadata(run: RunInfo, action: StartTask, namespace: str) -> dict[str, Any]:
    own = action.kubernetes.get("podMetadata", {})
    return {
        "name": pod_name(run, action),
        "namespace": namespace,
        "labels": {**own.get("labels", {}), _COMPONENT_LABEL: "true", RUN_LABEL: run.run_id},
        "annotations": {**own.get("annotations", {}), _PATH_ANNOTATION: action.path},
    }


def _render_container(
    component: Component,
    container: Container,
    config: Mapping[str, Any],
    placeholders: Placeholders,
    parts: _PodParts,
    folder: str,
    action: StartTask,
) -> dict[str, Any]:
    task = {
        "name": action.task_name,
        "dir": local_path(folder),
        "executorInput": placeholders.executor_input,
        "outputParameters": {name: one.kind for name, one in component.output_definitions.parameters.items()},
        "retryIndex": action.retry_index,
    }
    argv = placeholders.argv([*container.command, *container.args])
    rendered = {
        "name": MAIN_CONTAINER,
        "image": placeholders.text(container.image),
        "command": list(LAUNCHER),
        "args": ["--task", _JSON.encode(task), "--", *argv],
        "env": list({one["name"]: one for one in [*parts.env, *_engine_env(action)]}.values()),
        "resources": parts.resources,
        "volumeMounts": parts.mounts,
        "imagePullPolicy": config.get("imagePullPolicy", ""),
        "securityContext": _render_security(config.get("securityContext", {})),
        # A task that ends without a result says why in the words of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return _without_empty(rendered)


def _render_parts(
    pipeline: Pipeline, run: RunInfo, action: StartTask, container: Container, placeholders: Placeholders
) -> _PodParts:
    config = action.kubernetes
    parts = _PodParts(
        env=_render_env(action, container, placeholders),
        resources=_render_resources(container.resources, placeholders),
    )
    if config:
        _add_settings(parts, config)
    if pipeline.config.workspace is not None:
        claim = {"persistentVolumeClaim": {"claimName": workspace_claim_name(run)}}
        parts.mount(_WORKSPACE_VOLUME, claim, WORKSPACE_PATH)
    return parts


def _add_settings(parts: _PodParts, config: Mapping[str, Any]) -> None:
    parts.node_selector = dict(_node_selector(config.get("nodeSelector", {})))
    parts.tolerations = [one for entry in config.get("tolerations", []) for one in _render_toleration(entry)]
    parts.affinity = _render_affinity(config)
    _add_volumes(parts, config)


def _render_env(action: StartTask, container: Container, placeholders: Placeholders) -> list[dict[str, Any]]:
    config = action.kubernetes
    env: list[dict[str, Any]] = [{"name": one.name, "value": placeholders.text(one.value)} for one in container.env]
    for entry in config.get("secretAsEnv", []):
        name, optional = _name_in(entry, "secretName"), _optional(entry)
        for pair in entry.get("keyToEnv", []):
            reference = {"name": name, "key": pair.get("secretKey", ""), **optional}
            env.append({"name": pair["envVar"], "valueFrom": {"secretKeyRef": reference}})
    for entry in config.get("configMapAsEnv", []):
        name, optional = _name_in(entry, "configMapName"), _optional(entry)
        for pair in entry.get("keyToEnv", []):
            reference = {"name": name, "key": pair.get("configMapKey", ""), **optional}
            env.append({"name": pair["envVar"], "valueFrom": {"configMapKeyRef": reference}})
    for entry in config.get("fieldPathAsEnv", []):
        env.append({"name": entry["name"], "valueFrom": {"fieldRef": {"fieldPath": entry["fieldPath"]}}})
    return env


def _engine_env(action: StartTask) -> list[dict[str, Any]]:
    return [
        {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "KFP_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": "KFP_RETRY_INDEX", "value": str(action.retry_index)},
    ]


def _name_in(entry: Mapping[str, Any], key: str) -> str:
    """Read a name from ``<key>Parameter``, already resolved to a value, or the deprecated ``<key>``."""
    return str(entry.get(f"{key}Parameter") or entry.get(key, ""))


def _optional(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {"optional": True} if entry.get("optional") else {}


def _render_resources(spec: ResourceSpec, placeholders: Placeholders) -> dict[str, Any]:
    if spec == _NO_RESOURCES:
        return {}

    def quantity(text: str, number: float, unit: str = "") -> str:
        resolved = placeholders.text(text)
        return resolved or (f"{plain(float(number))}{unit}" if number else "")

    requests = {
        "cpu": quantity(spec.resource_cpu_request, spec.cpu_request),
        "memory": quantity(spec.resource_memory_request, spec.memory_request, "G"),
    }
    limits = {
        "cpu": quantity(spec.resource_cpu_limit, spec.cpu_limit),
        "memory": quantity(spec.resource_memory_limit, spec.memory_limit, "G"),
        **_render_accelerator(spec.accelerator, placeholders),
    }
    return _without_empty({"requests": _without_empty(requests), "limits": _without_empty(limits)})


def _render_accelerator(accelerator: Accelerator | None, placeholders: Placeholders) -> dict[str, str]:
    if accelerator is None:
        return {}
    kind = placeholders.text(accelerator.resource_type or accelerator.type)
    count = placeholders.text(accelerator.resource_count) or str(accelerator.count or "")
    if not kind or count in ("", "0"):
        return {}
    return {kind if "/" in kind else "nvidia.com/gpu": count}


def _add_volumes(parts: _PodParts, config: Mapping[str, Any]) -> None:
    for entry in config.get("secretAsVolume", []):
        name = _name_in(entry, "secretName")
        parts.mount(name, {"secret": {"secretName": name, **_optional(entry)}}, entry["mountPath"])
    for entry in config.get("configMapAsVolume", []):
        name = _name_in(entry, "configMapName")
        parts.mount(name, {"configMap": {"name": name, **_optional(entry)}}, entry["mountPath"])
    for entry in config.get("pvcMount", []):
        name = _name_in(entry, "pvcName")
        source = {"persistentVolumeClaim": {"claimName": name}}
        parts.mount(name, source, entry["mountPath"], entry.get("subPath", ""))
    for entry in config.get("emptyDirMounts", []):
        options = _without_empty({"medium": entry.get("medium"), "sizeLimit": entry.get("sizeLimit")})
        parts.mount(entry["volumeName"], {"emptyDir": options}, entry["mountPath"])
    for entry in config.get("genericEphemeralVolume", []):
        template = {"metadata": entry.get("metadata", {}), "spec": _claim_spec(entry)}
        claim = {"volumeClaimTemplate": _without_empty(template)}
        parts.mount(entry["volumeName"], {"ephemeral": claim}, entry["mountPath"])
    if shared := config.get("enabledSharedMemory"):
        options = _without_empty({"medium": "Memory", "sizeLimit": shared.get("size")})
        parts.mount(shared.get("volumeName") or "shm", {"emptyDir": options}, "/dev/shm")


def _claim_spec(entry: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": list(entry.get("accessModes", [])) or ["ReadWriteOnce"],
        "resources": {"requests": {"storage": entry.get("size") or "1Gi"}},
    }
    if entry.get("storageClassName") and not entry.get("defaultStorageClass"):
        spec["storageClassName"] = entry["storageClassName"]
    return spec


def _node_selector(selector: Mapping[str, Any]) -> Mapping[str, str]:
    chosen: Mapping[str, str] = selector.get("nodeSelectorJson") or selector.get("labels", {})
    return chosen


def _render_toleration(entry: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    chosen = entry.get("tolerationJson")
    if isinstance(chosen, list):
        return [dict(one) for one in chosen]
    toleration = dict(chosen or entry)
    if "tolerationSeconds" in toleration:
        toleration["tolerationSeconds"] = int(toleration["tolerationSeconds"])
    return [toleration] if toleration else []


def _render_affinity(config: Mapping[str, Any]) -> dict[str, Any]:
    affinity: dict[str, Any] = {}
    for entry in config.get("nodeAffinity", []):
        _merge(affinity.setdefault("nodeAffinity", {}), entry.get("nodeAffinityJson") or _node_affinity(entry))
    for entry in config.get("podAffinity", []):
        side = "podAntiAffinity" if entry.get("anti") else "podAffinity"
        _merge(affinity.setdefault(side, {}), _pod_affinity(entry))
    return affinity


def _node_affinity(entry: Mapping[str, Any]) -> dict[str, Any]:
    term = {key: entry[key] for key in ("matchExpressions", "matchFields") if entry.get(key)}
    if "weight" in entry:
        preferred = {"weight": int(entry["weight"]), "preference": term}
        return {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}


def _pod_affinity(entry: Mapping[str, Any]) -> dict[str, Any]:
    def selector(labels: str, expressions: str) -> dict[str, Any]:
        return _without_empty({"matchLabels": entry.get(labels), "matchExpressions": entry.get(expressions)})

    term = _without_empty(
        {
            "labelSelector": selector("matchPodLabels", "matchPodExpressions"),
            "namespaceSelector": selector("matchNamespaceLabels", "matchNamespaceExpressions"),
            "namespaces": entry.get("namespaces"),
            "topologyKey": entry.get("topologyKey"),
        }
    )
    if "weight" in entry:
        preferred = {"weight": int(entry["weight"]), "podAffinityTerm": term}
        return {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Append the terms of a further affinity to those that are there."""
    for key, value in more.items():
        if isinstance(value, list):
            into[key] = [*into.get(key, []), *value]
        elif isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _render_security(context: Mapping[str, Any]) -> dict[str, Any]:
    ids = {key: int(context[key]) for key in ("runAsUser", "runAsGroup") if context.get(key) is not None}
    return {**ids, "runAsNonRoot": context["runAsNonRoot"]} if "runAsNonRoot" in context else dict(ids)


def _render_init_container(entry: Mapping[str, Any], placeholders: Placeholders) -> dict[str, Any]:
    mounts = entry.get("volumeMounts", [])
    rendered = {
        "name": entry["name"],
        "image": placeholders.text(entry["image"]),
        "command": placeholders.argv(entry.get("command", [])),
        "args": placeholders.argv(entry.get("args", [])),
        "env": [
            {"name": one["name"], "value": placeholders.text(one.get("value", ""))} for one in entry.get("env", [])
        ],
        "volumeMounts": [{"name": _label(one["volumeName"]), "mountPath": one["mountPath"]} for one in mounts],
        "resources": entry.get("resources", {}),
        "restartPolicy": entry.get("restartPolicy", ""),
    }
    return _without_empty(rendered)


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value or value == 0}


def _pass_task_config(component: Component, parts: _PodParts, given: dict[str, Any]) -> None:
    """Hand the task's own settings to a component that asks for them, and take from the Pod what it does not keep."""
    names = [name for name, one in component.input_definitions.parameters.items() if one.kind == "TASK_CONFIG"]
    if not names:
        return
    config: dict[str, Any] = {}
    for passthrough in component.task_config_passthroughs:
        for key, attribute in _TASK_CONFIG_FIELDS.get(passthrough.field, ()):
            value = getattr(parts, attribute)
            config[key] = value
            if not passthrough.apply_to_task:
                setattr(parts, attribute, type(value)())
    values = given.setdefault("inputs", {}).setdefault("parameterValues", {})
    values.update(dict.fromkeys(names, config))


_TASK_CONFIG_FIELDS: dict[str, tuple[tuple[str, str], ...]] = {
    "RESOURCES": (("resources", "resources"),),
    "ENV": (("env", "env"),),
    "KUBERNETES_AFFINITY": (("affinity", "affinity"),),
    "KUBERNETES_TOLERATIONS": (("tolerations", "tolerations"),),
    "KUBERNETES_NODE_SELECTOR": (("nodeSelector", "node_selector"),),
    "KUBERNETES_VOLUMES": (("volumes", "volumes"), ("volumeMounts", "mounts")),
}


# ---- claims


def built_in_image(pipeline: Pipeline, action: StartTask) -> str:
    """Return CREATE_PVC or DELETE_PVC where the engine itself does the task, else an empty text."""
    container = pipeline.executor_of(pipeline.components[action.component]).container
    return container.image if container and container.image in (CREATE_PVC, DELETE_PVC) else ""


def claim_name(run: RunInfo, action: StartTask) -> str:
    """
    Name the claim that a built-in task creates or deletes; it is the output ``name`` of the one that creates.

    A suffix gives ``<run>-<suffix>``, with the iteration's digest in between inside a loop.
    """
    parameters = action.inputs.parameters
    if parameters.get("pvc_name"):
        return str(parameters["pvc_name"])
    suffix = str(parameters.get("pvc_name_suffix") or action.task_name).lstrip("-")
    iteration = f"{_digest(action.path, 6)}-" if "[" in action.path else ""
    return f"{run.resource_name}-{iteration}{suffix}"


def render_claim(run: RunInfo, action: StartTask, *, namespace: str) -> Object:
    """Render the PersistentVolumeClaim of an ``argostub/createpvc`` task."""
    parameters = action.inputs.parameters
    spec: dict[str, Any] = {
        "accessModes": list(parameters.get("access_modes") or ["ReadWriteOnce"]),
        "resources": {"requests": {"storage": str(parameters.get("size") or "1Gi")}},
    }
    if "storage_class_name" in parameters:
        spec["storageClassName"] = parameters["storage_class_name"]
    if parameters.get("volume_name"):
        spec["volumeName"] = parameters["volume_name"]
    if parameters.get("data_source"):
        spec["dataSource"] = parameters["data_source"]
    return _claim(claim_name(run, action), namespace, run, spec, parameters.get("annotations") or {})


def render_workspace_claim(pipeline: Pipeline, run: RunInfo, *, namespace: str) -> Object | None:
    """Render the volume that all tasks of a run share; None for a pipeline without a workspace."""
    workspace = pipeline.config.workspace
    if workspace is None:
        return None
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": workspace.size or "1Gi"}},
        **workspace.kubernetes.pvc_spec_patch,
    }
    return _claim(workspace_claim_name(run), namespace, run, spec, {})


def _claim(name: str, namespace: str, run: RunInfo, spec: Mapping[str, Any], annotations: Mapping[str, str]) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": {RUN_LABEL: run.run_id}}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": dict(spec)}
