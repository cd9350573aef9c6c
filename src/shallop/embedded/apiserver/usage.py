"""What an object uses of a ResourceQuota."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from shallop.kube.objects import Object, parse_quantity
from shallop.kube.selectors import Requirement, matches

__all__ = ["Amounts", "add_amounts", "in_scopes", "pod_amounts", "usage_of"]

Amounts = dict[str, Decimal]
_COUNTED = frozenset({"configmaps", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas", "secrets"})
_ONE = Decimal(1)
_CLASS_SUFFIX = ".storageclass.storage.k8s.io/"


def add_amounts(*each: Mapping[str, Decimal]) -> Amounts:
    total: Amounts = {}
    for amounts in each:
        for key, value in amounts.items():
            total[key] = total.get(key, Decimal(0)) + value
    return total


def _parsed(quantities: Object | None) -> Amounts:
    return {key: parse_quantity(value) for key, value in (quantities or {}).items()}


def pod_amounts(spec: Object, which: str) -> Amounts:
    """
    Return the ``requests`` or ``limits`` of a whole Pod.

    Init containers run one after another, beside those sidecars that started before them.
    """
    running: Amounts = {}
    highest: Amounts = {}
    for container in spec.get("initContainers") or ():
        own = _parsed((container.get("resources") or {}).get(which))
        if container.get("restartPolicy") == "Always":
            running = add_amounts(running, own)
            own = {}
        highest = _highest(highest, add_amounts(running, own))
    for container in spec.get("containers") or ():
        running = add_amounts(running, _parsed((container.get("resources") or {}).get(which)))
    total = _highest(highest, running)
    total |= _parsed((spec.get("resources") or {}).get(which))
    overhead = _parsed(spec.get("overhead"))
    return add_amounts(total, overhead if which == "requests" else {k: v for k, v in overhead.items() if k in total})


def _highest(left: Amounts, right: Amounts) -> Amounts:
    return {key: max(left.get(key, Decimal(0)), right.get(key, Decimal(0))) for key in left | right}


def usage_of(storage: str, obj: Object) -> Amounts:
    """Return what an object uses; ``storage`` is the resource with its group, such as ``jobs.batch``."""
    usage = {f"count/{storage}": _ONE}
    spec = obj.get("spec") or {}
    if storage in _COUNTED:
        usage[storage] = _ONE
    if storage == "pods" and (obj.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
        usage["pods"] = _ONE
        requests, limits = (pod_amounts(spec, which) for which in ("requests", "limits"))
        usage |= {f"requests.{key}": value for key, value in requests.items()}
        usage |= {key: requests[key] for key in ("cpu", "memory", "ephemeral-storage") if key in requests}
        usage |= {f"limits.{key}": value for key, value in limits.items()}
    elif storage == "services":
        usage["services"] = _ONE
        kind = spec.get("type")
        if kind == "LoadBalancer":
            usage["services.loadbalancers"] = _ONE
        if kind == "NodePort" or (kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False):
            usage["services.nodeports"] = Decimal(len(spec.get("ports") or ()))
    elif storage == "persistentvolumeclaims":
        size = _parsed((spec.get("resources") or {}).get("requests")).get("storage", Decimal(0))
        usage["requests.storage"] = size
        if name := spec.get("storageClassName"):
            usage[f"{name}{_CLASS_SUFFIX}requests.storage"] = size
            usage[f"{name}{_CLASS_SUFFIX}persistentvolumeclaims"] = _ONE
    return usage


def in_scopes(quota_spec: Object, storage: str, obj: Object) -> bool:
    """Whether a quota with scopes counts an object; scopes select Pods only."""
    selector = (quota_spec.get("scopeSelector") or {}).get("matchExpressions") or []
    wanted = [*({"scopeName": scope, "operator": "Exists"} for scope in quota_spec.get("scopes") or ()), *selector]
    if not wanted:
        return True
    return storage == "pods" and all(_in_scope(expression, obj) for expression in wanted)


def _in_scope(expression: Object, pod: Object) -> bool:
    spec = pod.get("spec") or {}
    scope, operator = expression["scopeName"], expression.get("operator", "Exists")
    if scope in ("Terminating", "NotTerminating"):
        return bool((spec.get("activeDeadlineSeconds") is not None) == (scope == "Terminating"))
    if scope in ("BestEffort", "NotBestEffort"):
        return bool((not _has_compute(spec)) == (scope == "BestEffort"))
    if scope == "PriorityClass":
        name = spec.get("priorityClassName") or None
        operators = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!exists"}
        requirement = Requirement("", operators[operator], tuple(expression.get("values") or ()))
        return matches((requirement,), lambda _: name)
    if scope == "CrossNamespacePodAffinity":
        return any(term.get("namespaces") or term.get("namespaceSelector") is not None for term in _affinity(spec))
    return False


def _has_compute(spec: Object) -> bool:
    amounts = pod_amounts(spec, "requests") | pod_amounts(spec, "limits")
    return any(amounts.get(key) for key in ("cpu", "memory"))


def _affinity(spec: Object) -> Iterable[Object]:
    affinity = spec.get("affinity") or {}
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind) or {}
        yield from rules.get("requiredDuringSchedulingIgnoredDuringExecution") or ()
        for term in rules.get("preferredDuringSchedulingIgnoredDuringExecution") or ():
            yield term.get("podAffinityTerm") or {}
