"""Values in messages, written as the real server's language writes them: clients of old show them to users."""

from __future__ import annotations

import json
from typing import Any

from shallop.kube.objects import Object

__all__ = ["render_patch", "render_patched"]

# The order in which a real server writes metadata.
_METADATA = (
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
)
_RANK = {name: rank for rank, name in enumerate(_METADATA)}


_ORDER = "$setElementOrder/"


def render_patch(value: Any) -> str:
    """
    Write a strategic patch as Go prints it: ``map[spec:map[replicas:1]]``, keys sorted.

    Lists whose order the patch gives are left out, as they are by whoever merges them.
    """
    if isinstance(value, dict):
        merged = {key.removeprefix(_ORDER) for key in value if key.startswith(_ORDER)}
        shown = sorted(key for key in value if key.removeprefix(_ORDER) not in merged)
        return f"map[{' '.join(f'{key}:{render_patch(value[key])}' for key in shown)}]"
    if isinstance(value, list):
        return f"[{' '.join(map(render_patch, value))}]"
    if value is None:
        return "<nil>"
    return str(value).lower() if isinstance(value, bool) else str(value)


def render_patched(old: Object, new: Object) -> str:
    """Write a patched object as JSON: keys are sorted where the patch was, elsewhere they stand as they did."""
    arranged = {key: _arranged(old.get(key), new[key], metadata=key == "metadata") for key in sorted(new)}
    return json.dumps(arranged, separators=(",", ":"), ensure_ascii=False)


def _arranged(old: Any, new: Any, *, metadata: bool = False) -> Any:
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    if new != old:
        return {key: _arranged(old.get(key), new[key]) for key in sorted(new)}
    return dict(sorted(new.items(), key=lambda item: _RANK.get(item[0], len(_RANK)))) if metadata else new
