"""
Knative Service: revisions of a template, and routes that share the traffic among them.

Honoured: ``spec.template`` (one revision per change; what only steers scaling changes the newest revision in place),
``spec.traffic`` with ``percent``, ``tag``, ``latestRevision`` and ``revisionName``, ``containerConcurrency``,
``timeoutSeconds``. Traffic moves only to revisions that have become ready. Pods reach the Service through the gateway,
which starts Pods for them as for anybody.

Source: Knative Serving v1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from shallop.controller.kind import Column, Kind, Resource, Result
from shallop.controller.manager import Context
from shallop.errors import AlreadyExistsError, ConflictError, NotFoundError
from shallop.kube.objects import Gvk, Object, annotations_of, find_condition, is_deleting, labels_of, set_condition
from shallop.serving.render import DOMAINS, cluster_hosts, render_front, render_route
from shallop.serving.revision import CONFIGURATION_LABEL, ROUTING_STATE, SCALING
from shallop.serving.schemas import KNATIVE_SERVICE as SCHEMA
from shallop.serving.status import merge_status
from shallop.serving.traffic import resolve_targets, weights

__all__ = ["KNATIVE_SERVICE", "tag_hosts"]

REVISION = Gvk("serving.knative.dev/v1", "Revision")
HTTP_ROUTE = Gvk("gateway.networking.k8s.io/v1", "HTTPRoute")
SERVICE = Gvk("v1", "Service")
_TEMPLATE = "serving.shallop.dev/template"
_GENERATION = "serving.knative.dev/configurationGeneration"
# As many as Knative's garbage collector keeps at least.
_KEPT = 20


async def reconcile(ctx: Context, service: Resource[Any]) -> Result:
    """Make a revision for a new template, route to revisions that are ready, remove old ones."""
    if is_deleting(service.raw) or not ctx.settings.gateway_url:
        return Result()  # on a cluster these are Knative's own
    revisions = sorted(ctx.cache(REVISION).by_owner(service.raw["metadata"]["uid"]), key=_number)
    newest = await _newest(ctx, service.raw, revisions)
    if newest is None:
        raise ConflictError(f"Service {service.key}: its new revision is not seen yet")
    if not any(item["metadata"]["name"] == newest["metadata"]["name"] for item in revisions):
        revisions.append(newest)
    status = render_status(service.raw, revisions, ctx)
    await _route(ctx, service.raw, status["traffic"])
    await _mark(ctx, revisions, status)
    await ctx.client.patch_status(service.raw, merge_status(service.status, status))
    return Result()


def _number(revision: Object) -> int:
    return int(labels_of(revision).get(_GENERATION) or 0)


def template_digest(template: Mapping[str, Any]) -> str:
    """Return what is the same for templates that make the same Pods."""
    metadata = template.get("metadata") or {}
    notes = {k: v for k, v in (metadata.get("annotations") or {}).items() if not k.startswith(SCALING)}
    spec = {k: v for k, v in template["spec"].items() if k not in ("containerConcurrency", "timeoutSeconds")}
    text = json.dumps([metadata.get("labels") or {}, notes, spec], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def _newest(ctx: Context, service: Object, revisions: Sequence[Object]) -> Object | None:
    """Return the revision of the template as it is; None when it has just been made by somebody else."""
    template, digest = service["spec"]["template"], template_digest(service["spec"]["template"])
    newest = revisions[-1] if revisions else None
    if newest is not None and annotations_of(newest).get(_TEMPLATE) == digest:
        wanted = render_revision(service, _number(newest), digest)
        changed = {"metadata": {"annotations": _replaced(newest, wanted)}}
        limit = template["spec"].get("containerConcurrency")
        if changed["metadata"]["annotations"] or newest["spec"].get("containerConcurrency") != limit:
            name, namespace = newest["metadata"]["name"], newest["metadata"]["namespace"]
            patch = changed | {"spec": {"containerConcurrency": limit}}
            return await ctx.client.patch(REVISION, name, namespace, patch)
        return newest
    number = (_number(newest) if newest else 0) + 1
    try:
        return await ctx.client.create(render_revision(service, number, digest))
    except AlreadyExistsError:
        return None


def _replaced(old: Object, new: Object) -> dict[str, str | None]:
    """Return the patch that makes the scaling annotations of ``old`` those of ``new``."""
    before, after = annotations_of(old), annotations_of(new)
    gone: dict[str, str | None] = {key: None for key in before if key.startswith(SCALING) and key not in after}
    return gone | {key: value for key, value in after.items() if key.startswith(SCALING) and before.get(key) != value}


def render_revision(service: Object, number: int, digest: str) -> Object:
    template, metadata = service["spec"]["template"], service["metadata"]
    name = metadata["name"]
    labels = dict((template.get("metadata") or {}).get("labels") or {})
    labels |= {CONFIGURATION_LABEL: name, "serving.knative.dev/service": name, _GENERATION: str(number)}
    reference = {"apiVersion": service["apiVersion"], "kind": service["kind"], "name": name, "uid": metadata["uid"]}
    return {
        "apiVersion": REVISION.api_version,
        "kind": REVISION.kind,
        "metadata": {
            "name": f"{name}-{number:05d}",
            "namespace": metadata["namespace"],
            "labels": labels | {ROUTING_STATE: "active"},
            "annotations": {**((template.get("metadata") or {}).get("annotations") or {}), _TEMPLATE: digest},
            "ownerReferences": [reference | {"controller": True, "blockOwnerDeletion": True}],
        },
        "spec": template["spec"],
    }


def render_status(service: Object, revisions: Sequence[Object], ctx: Context) -> dict[str, Any]:
    """Return the status; ``revisions`` from the oldest to the newest."""
    old = service.get("status") or {}
    names = [str(revision["metadata"]["name"]) for revision in revisions]
    # Sticky: a revision that loses its Pods for a moment keeps its traffic.
    ready = {name for name in names if name in _ever_ready(old, revisions)}
    latest_ready = next((name for name in reversed(names) if name in ready), "")
    known = [target for target in old.get("traffic") or [] if target.get("revisionName") in names]
    resolved = resolve_targets(service["spec"].get("traffic") or [], latest_ready, ready)
    traffic = known if resolved is None else resolved
    metadata = service["metadata"]
    for target in traffic:
        if target.get("tag"):
            target["url"] = f"http://{tag_hosts(service, target['tag'])[-1]}"
    created = _condition(revisions[-1])
    configured = ("True", "", "") if latest_ready == names[-1] and created[0] == "True" else created
    if latest_ready and latest_ready != names[-1] and configured[0] == "True":
        configured = ("Unknown", "Deploying", "")
    routed = ("True", "", "") if resolved is not None else ("Unknown", "RevisionMissing", "no revision is ready yet")
    conditions = list(old.get("conditions") or [])
    worst = configured if configured[0] != "True" else routed
    wanted = {"ConfigurationsReady": configured, "Ready": worst, "RoutesReady": routed}
    for type_, (value, reason, message) in wanted.items():
        conditions = set_condition(conditions, type_, value, reason, message, ctx.now())
    host = f"{metadata['name']}.{metadata['namespace']}"
    status = {
        "observedGeneration": metadata.get("generation", 0),
        "latestCreatedRevisionName": names[-1],
        "traffic": traffic,
        "url": f"http://{host}.{DOMAINS[-1]}",
        "address": {"url": f"http://{host}.svc.cluster.local"},
        "conditions": sorted(conditions, key=lambda condition: str(condition["type"])),
    }
    return status | ({"latestReadyRevisionName": latest_ready} if latest_ready else {})


def _ever_ready(old: Mapping[str, Any], revisions: Sequence[Object]) -> set[str]:
    found = {str(target.get("revisionName")) for target in old.get("traffic") or []}
    found.add(str(old.get("latestReadyRevisionName")))
    return found | {str(item["metadata"]["name"]) for item in revisions if _condition(item)[0] == "True"}


def _condition(obj: Object) -> tuple[str, str, str]:
    found = find_condition(obj, "Ready") or {}
    return found.get("status", "Unknown"), found.get("reason") or "", found.get("message") or ""


def tag_hosts(service: Object, tag: str) -> list[str]:
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    return [f"{tag}-{name}.{namespace}.{domain}" for domain in DOMAINS]


async def _route(ctx: Context, service: Object, traffic: Sequence[Mapping[str, Any]]) -> None:
    """Keep the Service by which Pods reach the gateway, and the routes of the names and tags."""
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    metadata = {"name": name, "namespace": namespace, "labels": labels_of(service)}
    for obj in render_front(metadata, ctx.settings.host, ctx.settings.gateway_port):
        await ctx.client.apply(obj, owner=service)
    if not traffic:
        return
    timeout_s = int(service["spec"]["template"]["spec"].get("timeoutSeconds") or 300)
    hosts = [*(f"{name}.{namespace}.{domain}" for domain in DOMAINS), *cluster_hosts(namespace, name)]
    shares = [(revision, 80, percent) for revision, percent in weights([dict(t) for t in traffic]).items()]
    wanted = [render_route(metadata, hosts, shares, timeout_s)]
    for target in traffic:
        if tag := target.get("tag"):
            tagged = {**metadata, "name": f"{name}.{tag}"}
            backend = [(str(target["revisionName"]), 80, 1)]
            wanted.append(render_route(tagged, tag_hosts(service, tag), backend, timeout_s))
    for route in wanted:
        await ctx.client.apply(route, owner=service)
    names = {route["metadata"]["name"] for route in wanted}
    for route in ctx.cache(HTTP_ROUTE).by_owner(service["metadata"]["uid"]):
        if route["metadata"]["name"] not in names:
            await _delete(ctx, HTTP_ROUTE, route)


async def _mark(ctx: Context, revisions: Sequence[Object], status: Mapping[str, Any]) -> None:
    """Put revisions without a route in reserve; delete the oldest of many."""
    routed = {target["revisionName"] for target in status["traffic"]} | {status["latestCreatedRevisionName"]}
    idle = [revision for revision in revisions if revision["metadata"]["name"] not in routed]
    for revision in idle[: max(0, len(revisions) - _KEPT)]:
        await _delete(ctx, REVISION, revision)
    for revision in revisions:
        name, namespace = revision["metadata"]["name"], revision["metadata"]["namespace"]
        state = "active" if name in routed else "reserve"
        if labels_of(revision).get(ROUTING_STATE) != state and not is_deleting(revision):
            await ctx.client.patch(REVISION, name, namespace, {"metadata": {"labels": {ROUTING_STATE: state}}})


async def _delete(ctx: Context, gvk: Gvk, obj: Object) -> None:
    metadata = obj["metadata"]
    try:
        await ctx.client.delete(gvk, metadata["name"], metadata["namespace"], uid=metadata["uid"])
    except NotFoundError:
        return


KNATIVE_SERVICE = Kind(
    api_version="serving.knative.dev/v1",
    kind="Service",
    plural="services",
    short_names=("kservice", "ksvc"),
    categories=("knative", "serving"),
    schema=SCHEMA,
    columns=(
        Column("URL", "string", ".status.url"),
        Column("LatestCreated", "string", ".status.latestCreatedRevisionName"),
        Column("LatestReady", "string", ".status.latestReadyRevisionName"),
        Column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status"),
        Column("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason"),
    ),
    reconcile=reconcile,
    owns=(REVISION, HTTP_ROUTE, SERVICE),
)
