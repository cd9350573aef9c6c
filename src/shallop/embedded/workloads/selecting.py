"""From an object to the selectors that match it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shallop.kube.objects import Key, Object, labels_of
from shallop.kube.selectors import match_selector

__all__ = ["Selectors"]


class Selectors:
    """
    The selectors of the objects that a controller has seen, so that a Pod's event can find them.

    A selector is looked at only for Pods that have one of the labels it asks for: a thousand Services with a label each
    cost a Pod no more than one.
    """

    def __init__(self) -> None:
        self._known: dict[Key, Mapping[str, Any]] = {}
        # (namespace, label, value) -> keys; label and value are empty for a selector that asks for no value.
        self._by_label: dict[tuple[str, str, str], dict[Key, None]] = {}

    def put(self, key: Key, selector: Mapping[str, Any]) -> None:
        if self._known.get(key) != selector:
            self.drop(key)
            self._known[key] = selector
            self._by_label.setdefault(_place(key, selector), {})[key] = None

    def drop(self, key: Key) -> None:
        selector = self._known.pop(key, None)
        if selector is not None:
            place = _place(key, selector)
            self._by_label[place].pop(key)
            if not self._by_label[place]:
                del self._by_label[place]

    def keys(self) -> list[Key]:
        """Return every key that has a selector."""
        return list(self._known)

    def matching(self, obj: Object) -> list[Key]:
        """Return the keys whose selector, a ``metav1.LabelSelector``, matches the labels of ``obj``."""
        if not self._known:
            return []
        namespace = obj["metadata"].get("namespace", "")
        labels = labels_of(obj)
        places = [(namespace, "", ""), *((namespace, name, value) for name, value in labels.items())]
        return [
            key for place in places for key in self._by_label.get(place, ()) if match_selector(self._known[key], labels)
        ]


def _place(key: Key, selector: Mapping[str, Any]) -> tuple[str, str, str]:
    name, value = next(iter((selector.get("matchLabels") or {}).items()), ("", ""))
    return key.namespace, name, value
