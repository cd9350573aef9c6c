"""Which Pods of lower priority make room for one of higher priority. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

__all__ = ["Candidate", "choose_victims"]

_ZERO = Decimal(0)


class Candidate(NamedTuple):
    """A Pod that may have to go, and what it takes."""

    key: Hashable
    priority: int
    amounts: Mapping[str, Decimal]


def choose_victims(
    lacking: Mapping[str, Decimal], priority: int, candidates: Sequence[Candidate]
) -> list[Hashable] | None:
    """
    Return the Pods to end, the least important ones and no more than needed; None when ending all would not do.

    Args:
        lacking: how much of each resource is not free.
        priority: of the Pod that wants to run; only lower ones give way.
    """
    chosen: list[Candidate] = []
    missing = {name: amount for name, amount in lacking.items() if amount > 0}
    for candidate in sorted(candidates, key=lambda candidate: candidate.priority):
        if candidate.priority >= priority or not missing:
            break
        if any(candidate.amounts.get(name, _ZERO) > 0 for name in missing):
            chosen.append(candidate)
            missing = _less(missing, candidate.amounts)
    if missing:
        return None
    # What came early may not be needed after what came late; the most important ones are spared first.
    for candidate in reversed(list(chosen)):
        rest = [other for other in chosen if other is not candidate]
        left = dict(lacking)
        for other in rest:
            left = _less(left, other.amounts)
        if not left:
            chosen = rest
    return [candidate.key for candidate in chosen]


def _less(missing: Mapping[str, Decimal], amounts: Mapping[str, Decimal]) -> dict[str, Decimal]:
    left = {name: amount - amounts.get(name, _ZERO) for name, amount in missing.items()}
    return {name: amount for name, amount in left.items() if amount > 0}
