"""Completion indexes of Indexed Jobs, written as ``0-2,5``; how often each has failed; which of them are enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from shallop.kube.objects import Object, annotations_of

__all__ = [
    "INDEX",
    "Failures",
    "failures_of",
    "format_indexes",
    "index_of",
    "match_success_policy",
    "newest_failures",
    "parse_indexes",
]

INDEX = "batch.kubernetes.io/job-completion-index"
_COUNTED = "batch.kubernetes.io/job-index-failure-count"
_IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"


class Failures(NamedTuple):
    """How often an index had failed before a Pod was made; each Pod carries it as annotations."""

    counted: int = 0
    ignored: int = 0

    @property
    def total(self) -> int:
        return self.counted + self.ignored

    def annotations(self) -> dict[str, str]:
        ignored = {_IGNORED: str(self.ignored)} if self.ignored else {}
        return {_COUNTED: str(self.counted), **ignored}


def failures_of(pod: Object) -> Failures:
    annotations = annotations_of(pod)
    counted, ignored = annotations.get(_COUNTED, "0"), annotations.get(_IGNORED, "0")
    return Failures(int(counted) if counted.isdigit() else 0, int(ignored) if ignored.isdigit() else 0)


def newest_failures(pods: Iterable[Object]) -> dict[int, int]:
    """Return index -> the largest number of failures that a Pod of it was made after."""
    newest: dict[int, int] = {}
    for pod in pods:
        index = index_of(pod)
        newest[index] = max(newest.get(index, 0), failures_of(pod).total)
    return newest


def match_success_policy(policy: Mapping[str, Any] | None, succeeded: set[int]) -> str:
    """Say which rule of ``spec.successPolicy`` holds, empty when none does."""
    for number, rule in enumerate((policy or {}).get("rules") or ()):
        wanted = parse_indexes(rule["succeededIndexes"]) if rule.get("succeededIndexes") else None
        reached = succeeded if wanted is None else succeeded & wanted
        enough = rule.get("succeededCount") or (len(wanted) if wanted is not None else 1)
        if len(reached) >= enough:
            return f"Matched rules at index {number}"
    return ""


def parse_indexes(text: str) -> set[int]:
    result: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first:
            result.update(range(int(first), int(last or first) + 1))
    return result


def format_indexes(indexes: Iterable[int]) -> str:
    """Write indexes in ascending order; two or more neighbours become a range, two of them a pair."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(_format_run(first, last) for first, last in runs)


def _format_run(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first},{last}" if last == first + 1 else f"{first}-{last}"


def index_of(pod: Object) -> int:
    """Return the completion index of a Pod, -1 when it has none."""
    text = annotations_of(pod).get(INDEX, "")
    return int(text) if text.isdigit() else -1
