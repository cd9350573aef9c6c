"""
InferenceService: a model behind an address.

Honoured: ``spec.predictor`` with ``model`` (or a legacy framework key) or ``containers`` of its own, ``minReplicas``,
``timeout``, ``labels``, ``annotations``, ``deploymentStrategy``, Pod fields; annotations ``serving.kserve.io/stop`` and
``storage.kserve.io/readonly``. What is not honoured is named in an Event, see ``admission.ignored_fields``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from shallop.controller.kind import Column, Kind, Resource, Result, Watch
from shallop.controller.manager import Context
from shallop.errors import NotFoundError, UnavailableError
from shallop.kube.objects import Gvk, Key, Object, annotations_of, find_condition, is_deleting, labels_of
from shallop.serving import render
from shallop.serving.admission import default, ignored_fields, validate
from shallop.serving.inspect_model import inspect_model
from shallop.serving.podtemplate import CONTAINER, Storage, render_pod_template, workload_name
from shallop.serving.registrymodels import ModelNotFoundError, http_fetch, resolve_model
from shallop.serving.schemas import INFERENCE_SERVICE as SCHEMA
from shallop.serving.selection import ModelFormat, SelectionError, select_runtime
from shallop.serving.status import (
    Failure,
    Observed,
    blocked_status,
    merge_status,
    render_status,
    stopped_status,
)
from shallop.serving.storage import REGISTRY, claim_of, local_path

__all__ = ["INFERENCE_SERVICE", "InferenceServiceSpec"]

DEPLOYMENT, SERVICE, POD = Gvk("apps/v1", "Deployment"), Gvk("v1", "Service"), Gvk("v1", "Pod")
ENDPOINT_SLICE = Gvk("discovery.k8s.io/v1", "EndpointSlice")
HTTP_ROUTE = Gvk("gateway.networking.k8s.io/v1", "HTTPRoute")
RUNTIME = Gvk("serving.kserve.io/v1alpha1", "ServingRuntime")
CLUSTER_RUNTIME = Gvk("serving.kserve.io/v1alpha1", "ClusterServingRuntime")

STOP = "serving.kserve.io/stop"
LABEL = "serving.kserve.io/inferenceservice"
# On the Deployment: what the URI was resolved to and what the model needs, for this generation of the service.
PINNED_GENERATION = "serving.shallop.dev/generation"
PINNED_URI = "serving.shallop.dev/model-uri"
PINNED_REQUIREMENTS = "serving.shallop.dev/model-requirements"
_RETRY_S = 5.0


class ModelSpec(msgspec.Struct, frozen=True, rename="camel"):
    model_format: ModelFormat
    storage_uri: str = ""
    runtime: str = ""
    protocol_version: str = ""


class StorageUri(msgspec.Struct, frozen=True, rename="camel"):
    uri: str


class PredictorSpec(msgspec.Struct, frozen=True, rename="camel"):
    model: ModelSpec | None = None
    containers: list[dict[str, Any]] = []
    storage_uris: list[StorageUri] = []

    @property
    def storage_uri(self) -> str:
        """Where the model lies; empty when the predictor brings it along."""
        if self.storage_uris:
            return self.storage_uris[0].uri
        if self.model is not None:
            return self.model.storage_uri
        serving = next((item for item in self.containers if item.get("name") == CONTAINER), {})
        env = {item["name"]: item.get("value") or "" for item in serving.get("env") or ()}
        return str(env.get("STORAGE_URI", ""))


class InferenceServiceSpec(msgspec.Struct, frozen=True):
    predictor: PredictorSpec


async def reconcile(ctx: Context, service: Resource[InferenceServiceSpec]) -> Result:
    """Keep one Deployment, Service and pair of HTTPRoutes per InferenceService, and say how it is."""
    if is_deleting(service.raw):
        return Result()
    if annotations_of(service.raw).get(STOP) == "true":
        await _remove_children(ctx, service.raw, keep=())
        await _set_status(ctx, service.raw, stopped_status(service.raw, ctx.now()))
        return Result()
    _warn_of_ignored(ctx, service.raw)
    try:
        runtime = _choose_runtime(ctx, service)
        storage, pins = await _resolve_storage(ctx, service)
    except SelectionError as error:
        failure = Failure(error.reason, error.message, error.reason)
        await _set_status(ctx, service.raw, blocked_status(service.raw, failure, ctx.now(), transition="InvalidSpec"))
        return Result()  # a runtime that changes tells its services
    except (ModelNotFoundError, UnavailableError) as error:
        reason = "ModelNotFound" if isinstance(error, ModelNotFoundError) else "RegistryUnavailable"
        failure = Failure(reason, str(error), "ModelLoadFailed")
        status = blocked_status(service.raw, failure, ctx.now(), transition="BlockedByFailedLoad")
        await _set_status(ctx, service.raw, status)
        return Result(requeue_after_s=_RETRY_S)
    observed = await _apply(ctx, service.raw, runtime, storage, pins)
    await _set_status(ctx, service.raw, render_status(service.raw, observed, ctx.now()))
    return Result()


def _choose_runtime(ctx: Context, service: Resource[InferenceServiceSpec]) -> Object | None:
    model = service.spec.predictor.model
    if model is None:
        return None
    namespaced, clustered = ctx.cache(RUNTIME).list(service.namespace), ctx.cache(CLUSTER_RUNTIME).list()
    return select_runtime(model.model_format, model.protocol_version or "v1", model.runtime, namespaced, clustered)


async def _resolve_storage(ctx: Context, service: Resource[InferenceServiceSpec]) -> tuple[Storage, dict[str, str]]:
    """
    Find the model and what it needs; once per generation, so that a Pod template never changes by itself.

    Returns:
        The storage, and the annotations of the Deployment that remember it.
    """
    uri = service.spec.predictor.storage_uri
    if not uri:
        return Storage(), {}
    generation = str(service.raw["metadata"].get("generation", 0))
    deployment = ctx.cache(DEPLOYMENT).get(Key(service.namespace, workload_name(service.raw)))
    pins = annotations_of(deployment or {})
    if pins.get(PINNED_GENERATION) == generation:
        kept = {key: pins[key] for key in (PINNED_GENERATION, PINNED_URI, PINNED_REQUIREMENTS) if key in pins}
        uri, requirements = pins.get(PINNED_URI, uri), tuple(pins.get(PINNED_REQUIREMENTS, "").splitlines())
        return Storage(uri, requirements, _host_path(uri)), kept
    if uri.startswith(REGISTRY):
        uri = await resolve_model(uri, http_fetch(ctx.settings.web_url))
    path = local_path(uri, service.namespace, ctx.settings.volumes)
    inspection = await asyncio.to_thread(inspect_model, path) if path else None
    found_requirements = inspection.requirements if inspection else ()
    if path and inspection is None:
        # Not there yet: the storage initializer will say so; look again when something changes.
        return Storage(uri), {}
    found = {PINNED_GENERATION: generation, PINNED_URI: uri, PINNED_REQUIREMENTS: "\n".join(found_requirements)}
    return Storage(uri, found_requirements, _host_path(uri)), found


def _host_path(uri: str) -> str:
    """Return the folder or file of a plain path or ``file://``, empty for other URIs."""
    path = None if claim_of(uri) else local_path(uri, "", Path())
    return str(path) if path else ""


async def _apply(
    ctx: Context, service: Object, runtime: Object | None, storage: Storage, pins: Mapping[str, str]
) -> Observed:
    template = render_pod_template(service, runtime, storage)
    deployment = await ctx.client.apply(render.render_deployment(service, template, pins), owner=service)
    await ctx.client.apply(render.render_service(service, template), owner=service)
    rendered = render.render_routes(service) if ctx.serves(HTTP_ROUTE) else []
    routes = [await ctx.client.apply(route, owner=service) for route in rendered]
    names = {workload_name(service), *(route["metadata"]["name"] for route in routes)}
    await _remove_children(ctx, service, keep=names)
    namespace = service["metadata"]["namespace"]
    name = service["metadata"]["name"]
    address = f"http://{workload_name(service)}.{namespace}.svc.cluster.local"
    return Observed(
        deployment=deployment,
        pods=[pod for pod in ctx.cache(POD).list(namespace) if labels_of(pod).get(LABEL) == name],
        slices=[
            item
            for item in ctx.cache(ENDPOINT_SLICE).list(namespace)
            if labels_of(item).get("kubernetes.io/service-name") == workload_name(service)
        ],
        routes=routes,
        runtime=runtime,
        url=ctx.settings.gateway_url + render.path_prefix(service) if ctx.settings.gateway_url else address,
        address=address,
    )


async def _remove_children(ctx: Context, service: Object, keep: Iterable[str]) -> None:
    kept = set(keep)
    for gvk in (HTTP_ROUTE, SERVICE, DEPLOYMENT):
        for child in ctx.cache(gvk).by_owner(service["metadata"]["uid"]):
            metadata = child["metadata"]
            if metadata["name"] in kept or is_deleting(child):
                continue
            try:
                await ctx.client.delete(gvk, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            except NotFoundError:
                continue


def _warn_of_ignored(ctx: Context, service: Object) -> None:
    """Once per generation, name the fields that have no effect."""
    if (service.get("status") or {}).get("observedGeneration") == service["metadata"].get("generation"):
        return
    if ignored := ignored_fields(service):
        message = f"{', '.join(ignored)}: stored, but without effect in this version of shallop"
        ctx.events.record(service, "NotHonoured", message, "Warning")


async def _set_status(ctx: Context, service: Object, status: dict[str, Any]) -> None:
    """Write the status and record an Event when the service became ready, or is not for another reason."""
    before = find_condition(service, "Ready") or {}
    after = find_condition({"status": status}, "Ready") or {}
    await ctx.client.patch_status(service, merge_status(service.get("status") or {}, status))
    name, message = service["metadata"]["name"], after.get("message") or after.get("reason") or ""
    if after.get("status") == "True" and before.get("status") != "True":
        ctx.events.record(service, "InferenceServiceReady", f"InferenceService [{name}] is Ready")
    elif after.get("status") == "False":
        if (before.get("status"), before.get("message") or before.get("reason")) == ("False", message):
            return
        lost = "no longer Ready because of" if before.get("status") == "True" else "not Ready"
        kind = "Normal" if after.get("reason") == "Stopped" else "Warning"
        ctx.events.record(service, "InferenceServiceNotReady", f"InferenceService [{name}] is {lost}: {message}", kind)


def _labelled_service(obj: Object) -> Iterable[Key]:
    """Pods carry the label by their template, EndpointSlices as a copy of their Service's."""
    name = labels_of(obj).get(LABEL)
    return [Key(obj["metadata"]["namespace"], name)] if name else []


_PREV = "?(@.tag=='prev')"
_LATEST = "?(@.latestRevision==true)"
_TRAFFIC = ".status.components.predictor.traffic"

INFERENCE_SERVICE = Kind(
    api_version="serving.kserve.io/v1beta1",
    kind="InferenceService",
    plural="inferenceservices",
    short_names=("isvc",),
    spec=InferenceServiceSpec,
    schema=SCHEMA,
    columns=(
        Column("URL", "string", ".status.url"),
        Column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status"),
        Column("Prev", "integer", f"{_TRAFFIC}[{_PREV}].percent"),
        Column("Latest", "integer", f"{_TRAFFIC}[{_LATEST}].percent"),
        Column("PrevRolledoutRevision", "string", f"{_TRAFFIC}[{_PREV}].revisionName"),
        Column("LatestReadyRevision", "string", f"{_TRAFFIC}[{_LATEST}].revisionName"),
        Column("Age", "date", ".metadata.creationTimestamp"),
    ),
    default=default,
    validate=validate,
    reconcile=reconcile,
    owns=(DEPLOYMENT, SERVICE, HTTP_ROUTE),
    watches=(Watch(POD, _labelled_service), Watch(ENDPOINT_SLICE, _labelled_service)),
)
