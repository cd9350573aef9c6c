"""The objects of an Informer by something else than their names."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Hashable

from shallop.controller.informer import Change, Informer
from shallop.kube.objects import Key, Object, key_of

__all__ = ["Index"]


class Index:
    """
    Keeps the objects of an Informer by what ``value_of`` says of each; None leaves an object out.

    Handlers that are added to the Informer later find it up to date.
    """

    def __init__(self, informer: Informer, value_of: Callable[[Object], Hashable | None]) -> None:
        self._value_of = value_of
        self._objects: dict[Hashable, dict[Key, Object]] = {}
        informer.add_handler(self._changed)

    def get(self, value: Hashable) -> builtins.list[Object]:
        """Return the objects with this value, in the order they came."""
        return builtins.list(self._objects.get(value, {}).values())

    def touched(self, change: Change) -> set[Hashable]:
        """Return the values whose objects are others after a change."""
        values = {self._value_of(obj) for obj in (change.old, change.new) if obj is not None}
        return values - {None}

    def _changed(self, change: Change) -> None:
        old, new = change.old, change.new
        before = None if old is None else self._value_of(old)
        after = None if new is None else self._value_of(new)
        if old is not None and before is not None and before != after:
            known = self._objects.get(before, {})
            known.pop(key_of(old), None)
            if not known:
                self._objects.pop(before, None)
        if new is not None and after is not None:
            self._objects.setdefault(after, {})[key_of(new)] = new
