"""``metrics.k8s.io/v1beta1``: what Pods and the node use now, for ``kubectl top``. Nothing of it is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping

from shallop.embedded.apiserver import failures
from shallop.embedded.apiserver.requests import ListQuery
from shallop.embedded.apiserver.resources import Registry, Resource
from shallop.embedded.apiserver.verbs import Verbs
from shallop.errors import UnavailableError
from shallop.kube.node import NodeApi, Usage
from shallop.kube.objects import Gvk, Object, format_time

__all__ = ["is_metrics", "read_metrics"]


def is_metrics(resource: Resource) -> bool:
    return resource.group == "metrics.k8s.io" and not resource.custom


async def read_metrics(
    node: NodeApi | None, verbs: Verbs, registry: Registry, resource: Resource, namespace: str, name: str,
    query: ListQuery,
) -> Object:  # fmt: skip
    """
    Return the metrics of one Pod or node, or the list of those that a query selects.

    Raises:
        NotFoundError: it does not exist, or does not run.
        UnavailableError: no node is connected.
    """
    if node is None:
        raise UnavailableError("the node that measures is not connected; start shallop with its node")
    measured = registry.by_gvk(Gvk("v1", "Pod" if resource.kind == "PodMetrics" else "Node"))
    assert measured is not None
    objects = [verbs.get(measured, namespace, name)] if name else None
    if objects is None:
        page = await verbs.list(measured, namespace, ListQuery(query.label_selector, query.field_selector))
        objects = [stored.object for stored in page.items]
    usage = await node.usage()
    now = format_time(verbs.now())
    items = [item for obj in objects if (item := _render(resource, obj, usage, now)) is not None]
    if not name:
        head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": {}}
        return {**head, "items": items}
    if not items:
        raise failures.not_found(resource, name)
    return items[0]


def _render(resource: Resource, obj: Object, usage: Mapping[str, Usage], now: str) -> Object | None:
    metadata = obj["metadata"]
    shown = {key: metadata[key] for key in ("name", "namespace", "labels") if key in metadata}
    head: Object = {"kind": resource.kind, "apiVersion": resource.api_version, "timestamp": now}
    head["metadata"] = {**shown, "creationTimestamp": now}
    if resource.kind == "NodeMetrics":
        return head | {"window": _window(usage[""]), "usage": _amounts(usage[""])}
    prefix = f"{metadata['uid']}/"
    found = [
        (container["name"], usage[prefix + container["name"]])
        for container in obj["spec"]["containers"]
        if prefix + container["name"] in usage
    ]
    if not found:
        return None
    containers = [{"name": name, "usage": _amounts(used)} for name, used in found]
    return head | {"window": _window(found[0][1]), "containers": containers}


def _window(usage: Usage) -> str:
    return f"{usage.window_s:.3f}s"


def _amounts(usage: Usage) -> dict[str, str]:
    return {"cpu": f"{math.ceil(usage.cpu_cores * 1e9)}n", "memory": f"{usage.memory_bytes // 1024}Ki"}
