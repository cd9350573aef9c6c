"""What a new object gets from the cluster: addresses and node ports of a Service, priority of a Pod."""

from __future__ import annotations

import ipaddress

from shallop.embedded.apiserver import failures
from shallop.embedded.apiserver.objects_store import Change, ObjectsStore
from shallop.embedded.apiserver.resources import Resource
from shallop.errors import FieldError, InternalError
from shallop.kube.objects import Object

__all__ = ["KUBERNETES_IP", "ServiceAddresses", "with_priority"]

_NETWORK = ipaddress.ip_network("10.96.0.0/16")
_PRIORITY_CLASSES = "priorityclasses.scheduling.k8s.io"
KUBERNETES_IP = "10.96.0.1"
_NODE_PORTS = range(30000, 32768)


class ServiceAddresses:
    """Addresses and node ports of all Services, by who has them: an index of what is stored."""

    def __init__(self, store: ObjectsStore) -> None:
        self._addresses: dict[str, str] = {KUBERNETES_IP: ""}
        self._ports: dict[int, str] = {}
        for stored in store.list("services"):
            self._take(stored.object)
        # Counting on from the last one gives no address again that was in use a moment ago.
        self._last = len(self._addresses)
        store.listen(("services",), self._changed)

    def _changed(self, change: Change) -> None:
        if change.old is not None:
            self._release(change.old.object)
        if not change.deleted:
            self._take(change.new.object)

    def _take(self, service: Object) -> None:
        uid, spec = service["metadata"]["uid"], service["spec"]
        if spec.get("clusterIP", "None") not in ("", "None"):
            self._addresses[spec["clusterIP"]] = uid
        for port in _node_ports(spec):
            self._ports[port] = uid

    def _release(self, service: Object) -> None:
        uid, spec = service["metadata"]["uid"], service["spec"]
        if self._addresses.get(spec.get("clusterIP", "")) == uid:
            del self._addresses[spec["clusterIP"]]
            self._addresses.setdefault(KUBERNETES_IP, "")
        for port in _node_ports(spec):
            if self._ports.get(port) == uid:
                del self._ports[port]

    def allocate(self, resource: Resource, obj: Object, old: Object | None) -> Object:
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
            wanted = self._free_address()
        elif wanted not in ("None", before.get("clusterIP")):
            self._check_address(resource, obj, wanted)
        spec["clusterIP"] = wanted
        spec["clusterIPs"] = [wanted]
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            spec["ports"] = self._with_node_ports(obj, spec.get("ports") or [])
        return obj | {"spec": spec}

    def _free_address(self) -> str:
        size = _NETWORK.num_addresses - 2
        for offset in range(size):
            number = (self._last + offset) % size
            address = str(_NETWORK[1 + number])
            if address not in self._addresses:
                self._last = number + 1
                return address
        raise InternalError("failed to allocate a serviceIP: range is full")

    def _check_address(self, resource: Resource, obj: Object, wanted: str) -> None:
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
        elif self._addresses.get(wanted) not in (None, "", obj["metadata"].get("uid")):
            text = f"failed to allocate IP {wanted}: provided IP is already allocated"
        else:
            return
        problem = FieldError("FieldValueInvalid", f'Invalid value: ["{wanted}"]: {text}', "spec.clusterIPs")
        raise failures.invalid(resource, name, [problem])

    def _with_node_ports(self, obj: Object, ports: list[Object]) -> list[Object]:
        uid = obj["metadata"].get("uid")
        free = (port for port in _NODE_PORTS if self._ports.get(port, uid) == uid)
        own = {port["nodePort"] for port in ports if port.get("nodePort")}
        return [
            port if port.get("nodePort") else port | {"nodePort": next(number for number in free if number not in own)}
            for port in ports
        ]


def _node_ports(spec: Object) -> list[int]:
    return [port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")]


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
