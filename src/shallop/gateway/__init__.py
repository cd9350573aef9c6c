"""
The inference gateway: HTTPRoutes and EndpointSlices become a route table, requests go to ready Pods.

It sees every request, and so it is the activator and autoscaler of revisions too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from shallop.controller import Change, Index, Informer, Part, Services
from shallop.gateway.httproute import HTTPROUTE
from shallop.gateway.podautoscaler import POD_AUTOSCALER, Autoscaler
from shallop.gateway.proxy import Gateway
from shallop.gateway.routes import H2C, RouteTable, endpoints_by_service, parse_routes, service_of
from shallop.kube.objects import Gvk

__all__ = ["PART"]

_SERVICE = Gvk("v1", "Service")
_SLICE = Gvk("discovery.k8s.io/v1", "EndpointSlice")


async def _serve(services: Services) -> None:
    table = RouteTable()
    gateway = Gateway(table, services.captures)
    autoscaler = Autoscaler(services.client, gateway)
    routes, slices, ports = (Informer(services.client, gvk) for gvk in (HTTPROUTE.gvk, _SLICE, _SERVICE))

    def routes_changed(_: object) -> None:
        table.replace_routes(parse_routes(routes.store.list()))

    # Of a thousand Services only the one that has changed is looked at.
    slices_of = Index(slices, service_of)
    names: dict[tuple[str, str, int], str] = {}
    http2: set[tuple[str, str, int]] = set()

    def endpoints_changed(change: Change) -> None:
        endpoints = dict(table.endpoints)
        touched = slices_of.touched(change)
        found = endpoints_by_service(item for key in touched for item in slices_of.get(key))
        for key in touched:
            endpoints.pop(key, None)  # type: ignore[call-overload]
        table.endpoints = endpoints | found
        gateway.close_idle_except(table.addresses())
        gateway.admit_all()

    def services_changed(change: Change) -> None:
        for service in (change.old, change.new):
            if service is None:
                continue
            namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
            for port in (service.get("spec") or {}).get("ports") or ():
                key = namespace, name, port["port"]
                names.pop(key, None)
                http2.discard(key)
                if service is change.new:
                    names[key] = port.get("name") or ""
                    http2.update([key] if port.get("appProtocol") == H2C else ())
        table.port_names, table.http2_ports = names, http2

    routes.add_handler(routes_changed)
    slices.add_handler(endpoints_changed)
    ports.add_handler(services_changed)
    listener = await asyncio.get_running_loop().create_server(gateway.connect, sock=services.sockets["gateway"])
    try:
        async with asyncio.TaskGroup() as tasks:
            for informer in (routes, slices, ports, autoscaler.autoscalers, autoscaler.deployments):
                tasks.create_task(informer.run(), name=f"gateway {informer.gvk.kind}")
            tasks.create_task(autoscaler.run(), name="autoscaler")
    finally:
        listener.close()
        gateway.close()


def _tasks(services: Services) -> Sequence[Callable[[], Awaitable[None]]]:
    return [lambda: _serve(services)]


PART = Part("gateway", kinds=(HTTPROUTE, POD_AUTOSCALER), tasks=_tasks)
