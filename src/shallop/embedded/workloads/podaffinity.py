"""Required affinity between Pods: which nodes a Pod may share with which others. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shallop.kube.objects import Object, labels_of
from shallop.kube.selectors import match_selector

__all__ = ["affinity_problem", "has_pod_terms", "keeps_others_away"]

Term = Mapping[str, Any]


def _terms(pod: Object, kind: str) -> Sequence[Term]:
    affinity = ((pod["spec"].get("affinity") or {}).get(kind)) or {}
    return affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ()


def has_pod_terms(pod: Object) -> bool:
    """Say whether other Pods decide where this one may go."""
    return bool(_terms(pod, "podAffinity") or _terms(pod, "podAntiAffinity"))


def keeps_others_away(pod: Object) -> bool:
    return bool(_terms(pod, "podAntiAffinity"))


def affinity_problem(pod: Object, node: Object, nodes: Iterable[Object], placed: Sequence[Object]) -> str:
    """
    Say why a node cannot take a Pod because of others, in the words of kube-scheduler; empty when it can.

    Args:
        placed: Pods that have a node and have not ended.
    """
    topology = {other["metadata"]["name"]: labels_of(other) for other in nodes}
    here = labels_of(node)

    def together(other: Object, term: Term) -> bool:
        key = term["topologyKey"]
        value = topology.get(other["spec"].get("nodeName"), {}).get(key)
        return value is not None and value == here.get(key)

    for term in _terms(pod, "podAffinity"):
        if term["topologyKey"] not in here:
            return "node(s) didn't match pod affinity rules"
        matching = [other for other in placed if _selects(term, pod, other)]
        # The first of a group that wants company of its own kind may go anywhere.
        if not any(together(other, term) for other in matching) and (matching or not _selects(term, pod, pod)):
            return "node(s) didn't match pod affinity rules"
    for term in _terms(pod, "podAntiAffinity"):
        if any(together(other, term) and _selects(term, pod, other) for other in placed):
            return "node(s) didn't match pod anti-affinity rules"
    for other in placed:
        if any(together(other, term) and _selects(term, other, pod) for term in _terms(other, "podAntiAffinity")):
            return "node(s) didn't satisfy existing pods anti-affinity rules"
    return ""


def _selects(term: Term, owner: Object, other: Object) -> bool:
    """Say whether a term of ``owner`` means another Pod; without a selector it means none."""
    namespaces = term.get("namespaces") or ()
    everywhere = "namespaceSelector" in term
    own = owner["metadata"].get("namespace")
    namespace = other["metadata"].get("namespace")
    if not everywhere and namespace not in (namespaces or (own,)):
        return False
    return term.get("labelSelector") is not None and match_selector(term["labelSelector"], labels_of(other))
