"""What a new object gets from the cluster: addresses and node ports of a Service, priority of a Pod."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from shallop.embedded.apiserver import failures
from shallop.embedded.apiserver.objects_store import ObjectsStore
from shallop.embedded.apiserver.resources import Resource
from shallop.errors import FieldError
from shallop.kube.objects import Object

__all__ = ["KUBERNETES_IP", "allocate", "with_priority"]

_NETWORK = ipaddress.ip_network("10.96.0.0/16")
_PRIORITY_CLASSES = "priorityclasses.scheduling.k8s.io"
KUBERNETES_IP = "10.96.0.1"
_NODE_PORTS = range(30000, 32768)


def allocate(store: ObjectsStore, resource: Resource, obj: Object, old: Object | None) -> Object:
    """
    Return a Service with the addresses it is due; everything else unchanged.

    Raises:
        InvalidError: a wanted address or port is taken or outside the range.
    """
    if resource.storage != "services" or obj["spec"].get("type") == "ExternalName":
        return obj
    spec = dict(obj["spec"])
    before = (old or {}).get("spec") or {}
    wanted = spec.get("clusterIP") or before.get("clusterIP", "")
    if not wanted:
        wanted = next(_free_addresses(store))
    elif wanted not in ("None", before.get("clusterIP")):
        _check_address(store, resource, obj, wanted)
    spec["clusterIP"] = wanted
    spec["clusterIPs"] = [wanted]
    if spec.get("type") in ("NodePort", "LoadBalancer"):
        spec["ports"] = _with_node_ports(store, obj, spec.get("ports") or [])
    return obj | {"spec": spec}


def with_priority(store: ObjectsStore, resource: Resource, pod: Object) -> Object:
    """
    Give a new Pod the value of its PriorityClass, or of the class that is the default; leave everything else.

    Raises:
        ForbiddenError: there is no such class.
    """
    if resource.storage != "pods":
        return pod
    name = pod["spec"].get("priorityClassName", "")
    if name:
        found = store.get(_PRIORITY_CLASSES, "", name)
        if found is None:
            why = f"no PriorityClass with name {name} was found"
            raise failures.forbidden(resource, pod["metadata"].get("name", ""), why)
        chosen = found.object
    else:
        defaults = [stored.object for stored in store.list(_PRIORITY_CLASSES) if stored.object.get("globalDefault")]
        if not defaults:
            return pod
        chosen = defaults[0]
        name = chosen["metadata"]["name"]
    policy = chosen.get("preemptionPolicy", "PreemptLowerPriority")
    return pod | {
        "spec": pod["spec"]
        | {"priorityClassName": name, "priority": chosen.get("value", 0), "preemptionPolicy": policy}
    }


def _specs(store: ObjectsStore, obj: Object | None = None) -> Iterator[Object]:
    uid = obj["metadata"].get("uid") if obj else None
    for stored in store.list("services"):
        if stored.object["metadata"]["uid"] != uid:
            yield stored.object["spec"]


def _free_addresses(store: ObjectsStore) -> Iterator[str]:
    taken = {spec.get("clusterIP") for spec in _specs(store)} | {KUBERNETES_IP}
    # Counting on from the number of Services finds a free one at once in the usual case.
    size = _NETWORK.num_addresses - 2
    start = len(taken)
    for offset in range(size):
        address = str(_NETWORK[1 + (start + offset) % size])
        if address not in taken:
            yield address


def _check_address(store: ObjectsStore, resource: Resource, obj: Object, wanted: str) -> None:
    name = obj["metadata"]["name"]
    try:
        inside = ipaddress.ip_address(wanted) in _NETWORK
    except ValueError:
        inside = False
    if not inside:
        text = (
            f"failed to allocate IP {wanted}: the provided IP ({wanted}) is not in the valid range. "
            f"The range of valid IPs is {_NETWORK}"
        )
    elif any(spec.get("clusterIP") == wanted for spec in _specs(store, obj)):
        text = f"failed to allocate IP {wanted}: provided IP is already allocated"
    else:
        return
    problem = FieldError("FieldValueInvalid", f'Invalid value: ["{wanted}"]: {text}', "spec.clusterIPs")
    raise failures.invalid(resource, name, [problem])


def _with_node_ports(store: ObjectsStore, obj: Object, ports: list[Object]) -> list[Object]:
    taken = {port.get("nodePort") for spec in _specs(store, obj) for port in spec.get("ports") or ()}
    free = (port for port in _NODE_PORTS if port not in taken)
    return [port if port.get("nodePort") else port | {"nodePort": next(free)} for port in ports]
