"""Conditions as Katib writes them: the one that changed last stands last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from shallop.kube.objects import Object, format_time

__all__ = ["has", "status_patch", "with_condition", "without_condition"]

Conditions = list[dict[str, Any]]


def has(status: Mapping[str, Any], type_: str) -> bool:
    """Whether a status has a condition that is True."""
    return any(c.get("type") == type_ and c.get("status") == "True" for c in status.get("conditions") or ())


def with_condition(
    conditions: Sequence[Mapping[str, Any]], type_: str, status: str, reason: str, message: str, now: datetime
) -> Conditions:
    """
    Return the conditions with one of them set, at the end; unchanged when it had this status and reason already.

    Columns of ``kubectl get`` show the last condition, so the order is part of the interface.
    """
    old = next((c for c in conditions if c.get("type") == type_), None)
    if old is not None and (old.get("status"), old.get("reason")) == (status, reason):
        return [dict(c) for c in conditions]
    time = format_time(now)
    same = old is not None and old.get("status") == status
    changed = old["lastTransitionTime"] if old is not None and same and "lastTransitionTime" in old else time
    condition = {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastUpdateTime": time,
        "lastTransitionTime": changed,
    }
    return [*without_condition(conditions, type_), condition]


def without_condition(conditions: Sequence[Mapping[str, Any]], type_: str) -> Conditions:
    return [dict(c) for c in conditions if c.get("type") != type_]


def status_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object | None:
    """
    Return the merge patch that makes a status ``new``, None when only the time of the look differs.

    A key that is gone becomes null; lists are replaced as a whole.
    """
    patch = {key: value for key, value in new.items() if old.get(key) != value}
    patch |= {key: None for key in old if key not in new}
    return patch if set(patch) - {"lastReconcileTime"} else None
