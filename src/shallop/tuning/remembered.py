"""Answers about objects that hold until the object changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from shallop.kube.objects import Object

__all__ = ["Remembered"]

T = TypeVar("T")
_MOST = 100_000


class Remembered(Generic[T]):
    """
    A pure function of an object, asked once for each of its resourceVersions.

    An Experiment looks at all of its Trials whenever one of them changes; without this a thousand of them cost a
    thousand times a thousand looks.
    """

    def __init__(self, answer: Callable[[Object], T]) -> None:
        self._answer = answer
        self._known: dict[str, tuple[str, T]] = {}

    def __call__(self, obj: Object) -> T:
        uid, version = obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]
        known = self._known.get(uid)
        if known is not None and known[0] == version:
            return known[1]
        if len(self._known) >= _MOST:
            self._known.clear()
        found = self._answer(obj)
        self._known[uid] = version, found
        return found
