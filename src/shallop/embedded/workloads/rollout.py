"""How a Deployment moves its replicas between ReplicaSets: pure arithmetic of a rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Bounds", "Replicas", "bounds_of", "plan_recreate", "plan_rolling", "plan_scaling"]


class Replicas(NamedTuple):
    """
    One ReplicaSet as a rollout sees it.

    Args:
        wanted: ``spec.replicas``.
        available: ``status.availableReplicas``.
        limit: the annotation ``max-replicas`` of its last scaling, 0 when unknown.
        alive: Pods that have not ended yet, terminating ones included.
    """

    name: str
    wanted: int
    available: int = 0
    limit: int = 0
    alive: int = 0


class Bounds(NamedTuple):
    """How far a rollout may go over and under the wanted number of Pods."""

    surge: int
    unavailable: int


def bounds_of(replicas: int, strategy: Mapping[str, Any]) -> Bounds:
    """Resolve percentages: surge rounds up, unavailable rounds down, and both are never 0 together."""
    if strategy.get("type") == "Recreate":
        return Bounds(0, 0)
    rolling = strategy.get("rollingUpdate") or {}
    surge = _resolve(rolling.get("maxSurge", "25%"), replicas, math.ceil)
    unavailable = _resolve(rolling.get("maxUnavailable", "25%"), replicas, math.floor)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return Bounds(surge, min(unavailable, replicas))


def _resolve(value: int | str, total: int, rounding: Any) -> int:
    if isinstance(value, str):
        return int(rounding(int(value.rstrip("%")) * total / 100))
    return value


def plan_scaling(replicas: int, bounds: Bounds, new: Replicas | None, old: Sequence[Replicas]) -> dict[str, int]:
    """
    Spread a change of ``replicas`` over the ReplicaSets without moving the rollout on.

    Returns:
        ReplicaSet name -> wanted replicas, only those that change.
    """
    members = [*([new] if new else []), *old]
    active = [member for member in members if member.wanted > 0]
    if len(active) <= 1:
        target = active[0] if active else (new or (old[-1] if old else None))
        return {target.name: replicas} if target and target.wanted != replicas else {}
    if new and new.wanted == replicas == new.available:
        return {member.name: 0 for member in old if member.wanted}
    return _proportional(replicas + bounds.surge if replicas else 0, active)


def _proportional(allowed: int, active: Sequence[Replicas]) -> dict[str, int]:
    total = sum(member.wanted for member in active)
    missing = allowed - total
    # The largest takes rounding errors; by name where equal, so that the answer does not depend on the order.
    ordered = sorted(active, key=lambda member: (-member.wanted, member.name))
    result: dict[str, int] = {}
    added = 0
    for member in ordered:
        share = round(member.wanted * allowed / (member.limit or total)) - member.wanted if missing else 0
        left = missing - added
        share = max(0, min(share, left)) if missing > 0 else min(0, max(share, left))
        result[member.name] = member.wanted + share
        added += share
    rest = missing - added
    for member in ordered:
        change = max(rest, -result[member.name])
        result[member.name] += change
        rest -= change
    return {member.name: result[member.name] for member in active if result[member.name] != member.wanted}


def plan_rolling(replicas: int, bounds: Bounds, new: Replicas, old: Sequence[Replicas]) -> dict[str, int]:
    """
    Take the next step of a rolling update: grow the new ReplicaSet, or shrink old ones, never both at once.

    Args:
        old: oldest first.

    Returns:
        ReplicaSet name -> wanted replicas; empty when the rollout waits or is over.
    """
    total = new.wanted + sum(member.wanted for member in old)
    if new.wanted > replicas:
        return {new.name: replicas}
    room = min(replicas + bounds.surge - total, replicas - new.wanted)
    if room > 0:
        return {new.name: new.wanted + room}
    return _shrink(replicas - bounds.unavailable, total, new, old)


def _shrink(least: int, total: int, new: Replicas, old: Sequence[Replicas]) -> dict[str, int]:
    budget = total - least - max(0, new.wanted - new.available)
    if budget <= 0:
        return {}
    wanted = {member.name: member.wanted for member in old}
    # Pods that are not available serve nobody: they go first and do not lower the number of available ones.
    for member in old:
        broken = min(budget, max(0, member.wanted - member.available))
        wanted[member.name] -= broken
        budget -= broken
    spare = min(budget, new.available + sum(min(member.available, wanted[member.name]) for member in old) - least)
    for member in old:
        gone = max(0, min(spare, wanted[member.name]))
        wanted[member.name] -= gone
        spare -= gone
    return {member.name: wanted[member.name] for member in old if wanted[member.name] != member.wanted}


def plan_recreate(replicas: int, new: Replicas | None, old: Sequence[Replicas]) -> dict[str, int] | None:
    """
    Take the next step of a Recreate: end all old Pods, then start the new ones.

    Returns:
        ReplicaSet name -> wanted replicas; None while old Pods are ending and nothing may start.
    """
    if shrink := {member.name: 0 for member in old if member.wanted}:
        return shrink
    if any(member.alive for member in old):
        return None
    return {new.name: replicas} if new and new.wanted != replicas else {}
