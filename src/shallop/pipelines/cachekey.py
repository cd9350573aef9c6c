"""
The key under which the outputs of a container task are found again.

Two executions share a key when nothing differs that could change the outputs: parameters, content of input artifacts,
declared outputs, image, command and arguments before placeholders are filled, environment lock, mounted claims. Not
part of it: environment variables, resources, names of runs and tasks (as upstream). The material is stored beside the
key, so that a miss can be explained.

Source: ``cache_key.proto`` of Kubeflow Pipelines; content digests and the environment are ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from shallop.pipelines.ir import Definitions, Pipeline
from shallop.pipelines.plan import StartTask
from shallop.pipelines.values import Artifact, Values, plain

__all__ = ["cache_key", "cache_material", "explain_miss", "fingerprint", "material_of"]

_TITLES = {
    "parameters": "input parameter",
    "artifacts": "content of input artifact",
    "outputs": "declared output",
    "command": "command or arguments",
    "image": "image",
    "environment": "environment (interpreter and locked packages)",
    "claims": "mounted claims",
    "cacheKey": "cache key",
    "component": "component",
}


def cache_material(pipeline: Pipeline, action: StartTask, environment: str) -> dict[str, Any]:
    """
    Collect what the key of a task is made of; JSON.

    Args:
        environment: digest of the interpreter and locked packages that will run it.
    """
    if action.cache_key:
        return {"component": action.component, "cacheKey": action.cache_key}
    claims = {str(mount.get("pvcNameParameter", "")) for mount in action.kubernetes.get("pvcMount", [])}
    parts = material_of(pipeline, action.component, action.inputs)
    return parts | {"environment": environment, "claims": sorted(claims)}


def material_of(pipeline: Pipeline, component_name: str, inputs: Values) -> dict[str, Any]:
    """Collect what a component and its inputs alone contribute; empty for a component that is not there."""
    component = pipeline.components.get(component_name)
    if component is None:
        return {}
    container = pipeline.executor_of(component).container if component.executor_label else None
    return {
        "parameters": plain(inputs.parameters),
        "artifacts": {name: [_identity(one) for one in found] for name, found in inputs.artifacts.items()},
        "outputs": _declared(component.output_definitions),
        "image": container.image if container else "",
        "command": [*container.command, *container.args] if container else [],
    }


def _identity(artifact: Artifact) -> dict[str, Any]:
    """What a task can see of an artifact: content, type and metadata; its place only where the content is unknown."""
    where = {"digest": artifact.digest} if artifact.digest else {"id": artifact.id, "uri": artifact.uri}
    return {**where, "name": artifact.name, "type": artifact.type.schema_title, "metadata": plain(artifact.metadata)}


def _declared(definitions: Definitions) -> dict[str, Any]:
    return {
        "parameters": {name: definition.kind for name, definition in definitions.parameters.items()},
        "artifacts": {
            name: {"type": msgspec.to_builtins(definition.artifact_type), "metadata": plain(definition.metadata)}
            for name, definition in definitions.artifacts.items()
        },
    }


def cache_key(pipeline: Pipeline, action: StartTask, environment: str = "") -> str:
    """Compute the key of a task; see ``cache_material``."""
    return fingerprint(cache_material(pipeline, action, environment))


def fingerprint(material: Mapping[str, Any]) -> str:
    """Hash the material: 64 hexadecimal digits, independent of the order of its keys."""
    text = json.dumps(material, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def explain_miss(material: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """
    Say in words what differs from an earlier execution of the same task.

    Returns:
        One sentence per difference, such as ``input parameter 'epochs' was 3, is 5``; empty when nothing differs.
    """
    reasons: list[str] = []
    for part in dict.fromkeys([*material, *earlier]):
        now, before = material.get(part), earlier.get(part)
        if now == before:
            continue
        title = _TITLES.get(part, part)
        if part in ("parameters", "artifacts"):
            names = sorted({*(now or {}), *(before or {})})
            changed = [name for name in names if (now or {}).get(name) != (before or {}).get(name)]
            reasons.extend(_explain_one(part, title, name, now or {}, before or {}) for name in changed)
        elif isinstance(now, str) and isinstance(before, str):
            reasons.append(f"{title} was {_show(before)}, is {_show(now)}")
        else:
            reasons.append(f"{title} changed")
    return reasons


def _explain_one(part: str, title: str, name: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    if name not in before:
        return f"{title} '{name}' is new"
    if name not in now:
        return f"{title} '{name}' is gone"
    if part == "artifacts":
        return f"{title} '{name}' changed"
    return f"{title} '{name}' was {_show(before[name])}, is {_show(now[name])}"


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
