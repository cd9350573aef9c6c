"""Status blocks that a controller owns as a whole, written as merge patches."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from shallop.controller import Context
from shallop.kube.objects import Object, format_time

__all__ = ["replaced", "set_updated_condition", "write_status"]


def replaced(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the merge patch that turns ``old`` into exactly ``new``; empty when they are equal."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := replaced(before, value):
                patch[key] = inner
        elif value != before or key not in old:
            patch[key] = value
    return patch


async def write_status(ctx: Context, obj: Object, status: dict[str, Any]) -> None:
    """Make the status of ``obj`` exactly ``status``; writes nothing when it is."""
    if patch := replaced(obj.get("status") or {}, status):
        await ctx.client.patch_status(obj, patch)


def set_updated_condition(
    conditions: list[dict[str, Any]], type_: str, status: str, reason: str, message: str, now: datetime
) -> list[dict[str, Any]]:
    """Set a condition of the kind that also has ``lastUpdateTime``; nothing changes when the reason stays."""
    stamp = format_time(now)
    fresh = {
        "type": type_,
        "status": status,
        "lastUpdateTime": stamp,
        "lastTransitionTime": stamp,
        "reason": reason,
        "message": message,
    }
    for number, old in enumerate(conditions):
        if old.get("type") != type_:
            continue
        if old.get("status") == status:
            if old.get("reason") == reason and old.get("message") == message:
                return conditions
            fresh["lastTransitionTime"] = old.get("lastTransitionTime", stamp)
        return [*conditions[:number], fresh, *conditions[number + 1 :]]
    return [*conditions, fresh]
