"""
Services' endpoints: EndpointSlices, and the older Endpoints that some clients still read.

Honours selector, ports (targetPort by number or by the name of a container's port), publishNotReadyAddresses and
headless Services. A Service without selector keeps the endpoints that its owner wrote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from shallop.controller import Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.children import is_controlled_by, is_namespace_ending
from shallop.embedded.workloads.pods import POD, is_ready, is_terminal
from shallop.embedded.workloads.selecting import Selectors
from shallop.errors import AlreadyExistsError, ForbiddenError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    format_time,
    is_deleting,
    key_of,
    labels_of,
    owner_reference,
)
from shallop.kube.selectors import match_selector

__all__ = ["SERVICE_ENDPOINTS", "EndpointPort", "plan_slices", "render_endpoints"]

_SLICE = Gvk("discovery.k8s.io/v1", "EndpointSlice")
_ENDPOINTS = Gvk("v1", "Endpoints")
_MANAGER = "endpointslice-controller.k8s.io"
_TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
_HEADLESS = "service.kubernetes.io/headless"
_SAFE = "bcdfghjklmnpqrstvwxz2456789"


class EndpointPort(NamedTuple):
    """A port of a Service as one Pod has it."""

    name: str
    port: int
    protocol: str
    app_protocol: str = ""

    def render(self) -> dict[str, Any]:
        rendered: dict[str, Any] = {"name": self.name, "port": self.port, "protocol": self.protocol}
        return rendered | ({"appProtocol": self.app_protocol} if self.app_protocol else {})


def resolve_ports(service: Object, pod: Object) -> tuple[EndpointPort, ...]:
    """Find the ports of a Service in a Pod; named target ports that no container declares are left out."""
    resolved = []
    for port in service["spec"].get("ports") or ():
        target = port.get("targetPort", port["port"])
        protocol = port.get("protocol", "TCP")
        number = _container_port(pod, target, protocol) if isinstance(target, str) else target or port["port"]
        if number:
            resolved.append(EndpointPort(port.get("name", ""), number, protocol, port.get("appProtocol", "")))
    return tuple(resolved)


def _container_port(pod: Object, name: str, protocol: str) -> int:
    sidecars = [c for c in pod["spec"].get("initContainers") or () if c.get("restartPolicy") == "Always"]
    for container in [*pod["spec"]["containers"], *sidecars]:
        for port in container.get("ports") or ():
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return int(name) if name.isdigit() else 0


def _endpoint(service: Object, pod: Object) -> dict[str, Any]:
    status, spec = pod["status"], pod["spec"]
    serving, terminating = is_ready(pod), is_deleting(pod)
    ready = bool(service["spec"].get("publishNotReadyAddresses")) or (serving and not terminating)
    endpoint: dict[str, Any] = {
        "addresses": [status["podIP"]],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": _target(pod),
    }
    if spec.get("nodeName"):
        endpoint["nodeName"] = spec["nodeName"]
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        endpoint["hostname"] = spec["hostname"]
    return endpoint


def _target(pod: Object) -> dict[str, Any]:
    metadata = pod["metadata"]
    return {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}


def select_pods(service: Object, pods: Sequence[Object]) -> list[Object]:
    """Return the Pods behind a Service that have an address, by name."""
    selector = {"matchLabels": service["spec"].get("selector") or {}}
    chosen = [
        pod
        for pod in pods
        if not is_terminal(pod) and (pod.get("status") or {}).get("podIP") and match_selector(selector, labels_of(pod))
    ]
    return sorted(chosen, key=lambda pod: str(pod["metadata"]["name"]))


def plan_slices(service: Object, pods: Sequence[Object]) -> list[Object]:
    """
    Render the EndpointSlices of a Service: one per distinct set of port numbers, one empty slice without Pods.

    Args:
        pods: what ``select_pods`` gave.
    """
    groups: dict[tuple[EndpointPort, ...], list[Object]] = {}
    for pod in pods:
        groups.setdefault(resolve_ports(service, pod), []).append(pod)
    return [_render_slice(service, ports, members) for ports, members in (groups or {(): []}).items()]


def _render_slice(service: Object, ports: tuple[EndpointPort, ...], pods: Sequence[Object]) -> Object:
    metadata = service["metadata"]
    # The first slice keeps its name while Pods come and go; only a Service with several sets of ports has more.
    varying = any(isinstance(port.get("targetPort"), str) for port in service["spec"].get("ports") or ())
    identity = f"{metadata['uid']}{[port.port for port in ports] if varying and pods else ''}"
    digest = hashlib.sha256(identity.encode()).digest()
    prefix = f"{metadata['name'][:57]}-"
    labels = {**labels_of(service), "endpointslice.kubernetes.io/managed-by": _MANAGER}
    labels["kubernetes.io/service-name"] = metadata["name"]
    if service["spec"].get("clusterIP") == "None":
        labels[_HEADLESS] = ""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": prefix + "".join(_SAFE[byte % len(_SAFE)] for byte in digest[:5]),
            "generateName": prefix,
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(service)],
        },
        "addressType": "IPv4",
        "endpoints": [_endpoint(service, pod) for pod in pods] or None,
        "ports": [port.render() for port in ports] or None,
    }


def render_endpoints(service: Object, pods: Sequence[Object]) -> Object:
    """Render the Endpoints object of a Service."""
    groups: dict[tuple[EndpointPort, ...], dict[str, list[dict[str, Any]]]] = {}
    for pod in pods:
        if is_deleting(pod):
            continue
        ready = is_ready(pod) or service["spec"].get("publishNotReadyAddresses")
        address: dict[str, Any] = {"ip": pod["status"]["podIP"], "targetRef": _target(pod)}
        if pod["spec"].get("nodeName"):
            address["nodeName"] = pod["spec"]["nodeName"]
        subset = groups.setdefault(resolve_ports(service, pod), {})
        subset.setdefault("addresses" if ready else "notReadyAddresses", []).append(address)
    subsets: list[dict[str, Any]] = []
    for ports, subset in groups.items():
        subsets.append({**subset, "ports": [_legacy_port(port) for port in ports]} if ports else {**subset})
    metadata = service["metadata"]
    labels = {**labels_of(service), "endpoints.kubernetes.io/managed-by": "endpoint-controller"}
    if service["spec"].get("clusterIP") == "None":
        labels[_HEADLESS] = ""
    rendered: Object = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels},
    }
    return rendered | ({"subsets": subsets} if subsets else {})


def _legacy_port(port: EndpointPort) -> dict[str, Any]:
    return {key: value for key, value in port.render().items() if key != "name" or value}


class ServiceEndpoints:
    """The controller that keeps endpoints of Services with a selector."""

    def __init__(self) -> None:
        self._selectors = Selectors()

    async def reconcile(self, ctx: Context, service: Resource[dict[str, Any]]) -> Result:
        """Write slices and Endpoints that differ, remove slices of port sets that are gone."""
        selector = service.spec.get("selector")
        if not selector or service.spec.get("type") == "ExternalName" or is_deleting(service.raw):
            self._selectors.drop(service.key)
            return Result()
        self._selectors.put(service.key, {"matchLabels": selector})
        raw = service.raw
        pods = select_pods(raw, ctx.cache(POD).list(service.namespace))
        slices = plan_slices(raw, pods)
        for rendered in slices:
            await _write(ctx, _SLICE, _stamped(rendered, ctx))
        names = {rendered["metadata"]["name"] for rendered in slices}
        for known in ctx.cache(_SLICE).by_owner(raw["metadata"]["uid"]):
            ours = labels_of(known).get("endpointslice.kubernetes.io/managed-by") == _MANAGER
            if ours and known["metadata"]["name"] not in names and is_controlled_by(known, raw["metadata"]["uid"]):
                await ctx.client.delete(_SLICE, known["metadata"]["name"], service.namespace)
        await _write(ctx, _ENDPOINTS, _stamped(render_endpoints(raw, pods), ctx))
        return Result()

    async def on_gone(self, ctx: Context, key: Key) -> None:
        """Remove the Endpoints, which have no owner reference; slices have one."""
        self._selectors.drop(key)
        known = ctx.cache(_ENDPOINTS).get(key)
        if known and labels_of(known).get("endpoints.kubernetes.io/managed-by") == "endpoint-controller":
            await ctx.client.delete(_ENDPOINTS, key.name, key.namespace, uid=known["metadata"]["uid"])

    def keys_of_pod(self, pod: Object) -> list[Key]:
        return self._selectors.matching(pod)


def _stamped(rendered: Object, ctx: Context) -> Object:
    metadata = rendered["metadata"]
    return {**rendered, "metadata": {**metadata, "annotations": {_TRIGGER_TIME: format_time(ctx.now())}}}


async def _write(ctx: Context, gvk: Gvk, wanted: Object) -> None:
    key = key_of(wanted)
    known = ctx.cache(gvk).get(key)
    if known is None:
        try:
            await ctx.client.create(wanted)
            return
        except ForbiddenError as error:
            if is_namespace_ending(error):
                return
            raise
        except AlreadyExistsError:
            known = await ctx.client.get(gvk, key.name, key.namespace)
    if _is_same(known, wanted):
        return
    metadata = {name: wanted["metadata"][name] for name in ("labels", "annotations")}
    body: Object = {
        name: wanted.get(name) for name in ("endpoints", "ports", "subsets") if name in wanted or name in known
    }
    patch: Object = {**body, "metadata": {**metadata, "resourceVersion": known["metadata"]["resourceVersion"]}}
    await ctx.client.patch(gvk, key.name, key.namespace, patch)


def _is_same(known: Object, wanted: Object) -> bool:
    fields = ("endpoints", "ports", "subsets")
    if any((known.get(name) or None) != (wanted.get(name) or None) for name in fields):
        return False
    return labels_of(wanted).items() <= labels_of(known).items()


def _service_of_endpoints(endpoints: Object) -> list[Key]:
    return [key_of(endpoints)]


_CONTROLLER = ServiceEndpoints()

SERVICE_ENDPOINTS = Kind(
    api_version="v1",
    kind="Service",
    plural="services",
    reconcile=_CONTROLLER.reconcile,
    on_gone=_CONTROLLER.on_gone,
    owns=(_SLICE,),
    watches=(Watch(POD, _CONTROLLER.keys_of_pod), Watch(_ENDPOINTS, _service_of_endpoints)),
)
