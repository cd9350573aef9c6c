"""Completion indexes of Indexed Jobs, written as ``0-2,5``."""

from __future__ import annotations

from collections.abc import Iterable

from shallop.kube.objects import Object, annotations_of

__all__ = ["INDEX", "format_indexes", "index_of", "parse_indexes"]

INDEX = "batch.kubernetes.io/job-completion-index"


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
