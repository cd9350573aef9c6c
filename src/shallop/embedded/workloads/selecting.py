"""From an object to the selectors that match it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shallop.kube.objects import Key, Object, labels_of
from shallop.kube.selectors import match_selector

__all__ = ["Selectors"]


class Selectors:
    """The selectors of the objects that a controller has seen, so that a Pod's event can find them."""

    def __init__(self) -> None:
        self._by_namespace: dict[str, dict[str, Mapping[str, Any]]] = {}

    def put(self, key: Key, selector: Mapping[str, Any]) -> None:
        self._by_namespace.setdefault(key.namespace, {})[key.name] = selector

    def drop(self, key: Key) -> None:
        self._by_namespace.get(key.namespace, {}).pop(key.name, None)

    def keys(self) -> list[Key]:
        """Return every key that has a selector."""
        return [Key(namespace, name) for namespace, known in self._by_namespace.items() for name in known]

    def matching(self, obj: Object) -> list[Key]:
        """Return the keys whose selector, a ``metav1.LabelSelector``, matches the labels of ``obj``."""
        namespace = obj["metadata"].get("namespace", "")
        labels = labels_of(obj)
        known = self._by_namespace.get(namespace, {})
        return [Key(namespace, name) for name, selector in known.items() if match_selector(selector, labels)]
