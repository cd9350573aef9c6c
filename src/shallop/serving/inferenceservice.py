"""
InferenceService: a model behind an address.

Honoured: ``spec.predictor`` with ``model`` (or a legacy framework key) or ``containers`` of its own, ``transformer``,
``explainer``, both deployment modes, ``canaryTrafficPercent`` (Knative) and ``spec.canary`` (Standard), scaling fields,
``containerConcurrency``, ``timeout``, ``storageUris``, ``labels``, ``annotations``, ``deploymentStrategy``, Pod fields,
``workerSpec`` (Standard, see ``multinode``);
annotations ``serving.kserve.io/stop``, ``autoscalerClass``, ``enable-tag-routing``, ``storage.kserve.io/readonly``.
What is not honoured is named in an Event, see ``admission.ignored_fields``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shallop.controller.callers import own_headers
from shallop.controller.kind import Column, Kind, Resource, Result, Watch
from shallop.controller.manager import Context
from shallop.errors import NotFoundError, ShallopError, UnavailableError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    annotations_of,
    find_condition,
    gvk_of,
    is_deleting,
    key_of,
    labels_of,
)
from shallop.serving import render
from shallop.serving.access import account_env, configured_storage, logger_env
from shallop.serving.admission import COMPONENTS, MODEL_CHECKSUM, default, ignored_fields, mode_of, validate
from shallop.serving.clusterstoragecontainer import (
    CLUSTER_STORAGE_CONTAINER,
    StorageContainerError,
    select_container,
)
from shallop.serving.credentials import CredentialsError
from shallop.serving.inspect_model import Inspection, inspect_model
from shallop.serving.libraries import requirements_for
from shallop.serving.localmodelnodegroup import LOCAL_MODEL_NODE_GROUP
from shallop.serving.localmodels import (
    CACHE_LABEL,
    CLAIM_NOTE,
    NAMESPACE_NOTE,
    SOURCE_NOTE,
    cached_uri,
    covers,
    find_cache,
    folder_of,
    marks_of,
)
from shallop.serving.multinode import (
    GENERATION,
    head_service_name,
    is_multi_node,
    plan_layout,
    render_head,
    render_head_service,
    render_strategy,
    render_workers,
    worker_name,
)
from shallop.serving.podtemplate import (
    CONTAINER,
    MODEL_PATH,
    Source,
    Storage,
    is_multi_model,
    render_pod_template,
    serving_container,
    workload_name,
)
from shallop.serving.registrymodels import ModelNotFoundError, http_fetch, resolve_model
from shallop.serving.revision import REVISION_LABEL
from shallop.serving.schemas import INFERENCE_SERVICE as SCHEMA
from shallop.serving.selection import ModelFormat, SelectionError, select_runtime
from shallop.serving.status import (
    CanaryState,
    Component,
    Failure,
    Observed,
    blocked_status,
    canary_state,
    merge_status,
    render_status,
    rollout_of,
    stopped_status,
)
from shallop.serving.storage import REGISTRY, ModelPathError, check_uri, claim_of, find_missing, local_path
from shallop.serving.traffic import weights
from shallop.serving.trainedmodel import TRAINED_MODEL, models_of, render_model_config

__all__ = ["INFERENCE_SERVICE", "InferenceServiceSpec"]

DEPLOYMENT, SERVICE, POD = Gvk("apps/v1", "Deployment"), Gvk("v1", "Service"), Gvk("v1", "Pod")
CONFIG_MAP = Gvk("v1", "ConfigMap")
KNATIVE_SERVICE = Gvk("serving.knative.dev/v1", "Service")
AUTOSCALER = Gvk("autoscaling/v2", "HorizontalPodAutoscaler")
ENDPOINT_SLICE = Gvk("discovery.k8s.io/v1", "EndpointSlice")
HTTP_ROUTE = Gvk("gateway.networking.k8s.io/v1", "HTTPRoute")
CACHE = Gvk("serving.kserve.io/v1alpha1", "LocalModelCache")
NAMESPACE_CACHE = Gvk("serving.kserve.io/v1alpha1", "LocalModelNamespaceCache")
RUNTIME = Gvk("serving.kserve.io/v1alpha1", "ServingRuntime")
CLUSTER_RUNTIME = Gvk("serving.kserve.io/v1alpha1", "ClusterServingRuntime")

STOP = "serving.kserve.io/stop"
LABEL = "serving.kserve.io/inferenceservice"
# On the workload: what the URIs were resolved to and what the model needs, for this generation of the service.
PINNED_GENERATION = "serving.shallop.dev/generation"
PINNED_URI = "serving.shallop.dev/model-uri"
PINNED_REQUIREMENTS = "serving.shallop.dev/model-requirements"
_RETRY_S = 5.0


class ModelSpec(msgspec.Struct, frozen=True, rename="camel"):
    model_format: ModelFormat
    runtime: str = ""
    protocol_version: str = ""


class PredictorSpec(msgspec.Struct, frozen=True, rename="camel"):
    model: ModelSpec | None = None


class InferenceServiceSpec(msgspec.Struct, frozen=True):
    predictor: PredictorSpec


class LocalModelError(ShallopError):
    """A model is not on any node yet; ``reason`` and ``transition`` are of the service's status."""

    def __init__(self, cache: str, states: Mapping[str, str], *, exists: bool) -> None:
        self.failed = bool(states) and set(states.values()) == {"NodeDownloadError"}
        self.reason = "LocalModelDownloadFailed" if self.failed else "LocalModelNotDownloaded"
        self.transition = "BlockedByFailedLoad" if self.failed else "InProgress"
        said = ", ".join(f"{node}: {state}" for node, state in states.items()) or "no node of its groups is known"
        super().__init__(f"waits for LocalModelCache {cache}: {said if exists else 'it is gone; change the service'}")


class _Applied(NamedTuple):
    """A component whose objects exist, and the routes' share of it."""

    component: Component
    shares: Sequence[render.Share]


async def reconcile(ctx: Context, service: Resource[InferenceServiceSpec]) -> Result:
    """Keep the components of an InferenceService and the routes to them, and say how it is."""
    if is_deleting(service.raw):
        return Result()
    if annotations_of(service.raw).get(STOP) == "true":
        await _remove_children(ctx, service.raw, keep=())
        await _set_status(ctx, service.raw, stopped_status(service.raw, ctx.now()))
        return Result()
    _warn_of_ignored(ctx, service.raw)
    if (marked := await _mark_local_model(ctx, service.raw)) is not service.raw:
        service = replace(service, raw=marked)
    try:
        runtime = _choose_runtime(ctx, service.raw)
        observed = await _apply(ctx, service.raw, runtime)
    except LocalModelError as error:
        failure = Failure(error.reason, str(error), "ModelLoadFailed")
        status = blocked_status(service.raw, failure, ctx.now(), transition=error.transition)
        await _set_status(ctx, service.raw, status)
        return Result(requeue_after_s=_RETRY_S)  # also when its cache says something
    except SelectionError as error:
        failure = Failure(error.reason, error.message, error.reason)
        await _set_status(ctx, service.raw, blocked_status(service.raw, failure, ctx.now(), transition="InvalidSpec"))
        return Result()  # a runtime that changes tells its services
    except (ModelNotFoundError, ModelPathError, UnavailableError, CredentialsError, StorageContainerError) as error:
        reason = "RegistryUnavailable" if isinstance(error, UnavailableError) else "ModelNotFound"
        reason = "StorageConfigInvalid" if isinstance(error, CredentialsError | StorageContainerError) else reason
        failure = Failure(reason, str(error), "ModelLoadFailed")
        status = blocked_status(service.raw, failure, ctx.now(), transition="BlockedByFailedLoad")
        await _set_status(ctx, service.raw, status)
        return Result(requeue_after_s=_RETRY_S)
    await _set_status(ctx, service.raw, render_status(service.raw, observed, ctx.now()))
    return Result()


async def _mark_local_model(ctx: Context, service: Object) -> Object:
    """Mark a service whose model is kept on nodes with the cache that it uses; decided once per generation."""
    seen = (service.get("status") or {}).get("observedGeneration") == service["metadata"].get("generation")
    if seen or not ctx.settings.gateway_url:
        return service
    uri = str((service["spec"]["predictor"].get("model") or {}).get("storageUri") or "")
    caches = [cache for gvk in (CACHE, NAMESPACE_CACHE) for cache in ctx.cache(gvk).list()]
    labels, notes = marks_of(find_cache(service, uri, caches))
    changed = {key: value for key, value in labels.items() if labels_of(service).get(key) != value}
    noted = {key: value for key, value in notes.items() if annotations_of(service).get(key) != value}
    if not changed and not noted:
        return service
    key, metadata = key_of(service), {"uid": service["metadata"]["uid"], "labels": changed, "annotations": noted}
    return await ctx.client.patch(gvk_of(service), key.name, key.namespace, {"metadata": metadata})


def _local_model(ctx: Context, service: Object, uri: str) -> tuple[str, Path | None] | None:
    """
    Return where in a claim, and on this machine, the copy of a service's model is; None when it uses none.

    Raises:
        LocalModelError: it is not there yet.
    """
    notes = annotations_of(service)
    source, claim = notes.get(SOURCE_NOTE, ""), notes.get(CLAIM_NOTE, "")
    if not claim or not covers(source, uri):
        return None
    key = Key(notes.get(NAMESPACE_NOTE, ""), labels_of(service).get(CACHE_LABEL, ""))
    cache = ctx.cache(NAMESPACE_CACHE if key.namespace else CACHE).get(key)
    states = ((cache or {}).get("status") or {}).get("nodeStatus") or {}
    if "NodeDownloaded" not in states.values():
        raise LocalModelError(key.name, states, exists=cache is not None)
    group = ctx.cache(LOCAL_MODEL_NODE_GROUP.gvk).get(Key("", claim.removeprefix(f"{key.name}-")))
    folder = folder_of(group, source) if group else ""
    rest = uri[len(source.rstrip("/")) :].strip("/")
    return cached_uri(claim, source, uri), Path(folder, rest) if folder else None


def _choose_runtime(ctx: Context, service: Object) -> Object | None:
    model = msgspec.convert(service["spec"]["predictor"], PredictorSpec).model
    if model is None:
        return None
    namespaced = ctx.cache(RUNTIME).list(service["metadata"]["namespace"])
    clustered = ctx.cache(CLUSTER_RUNTIME).list()
    return select_runtime(
        model.model_format,
        model.protocol_version or "v1",
        model.runtime,
        namespaced,
        clustered,
        multi_node=is_multi_node(service),
    )


def storage_uris(component: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a component wants brought into its Pods and where to; the model first."""
    if several := component.get("storageUris"):
        return [(item["uri"], item.get("mountPath") or MODEL_PATH) for item in several]
    for name in ("model", "art"):
        if uri := (component.get(name) or {}).get("storageUri"):
            return [(uri, MODEL_PATH)]
    containers = component.get("containers") or []
    serving: Mapping[str, Any] = next((item for item in containers if item.get("name") == CONTAINER), {})
    env = {item["name"]: item.get("value") or "" for item in serving.get("env") or ()}
    return [(env["STORAGE_URI"], MODEL_PATH)] if env.get("STORAGE_URI") else []


async def _resolve_storage(
    ctx: Context, service: Object, runtime: Object | None, component: str
) -> tuple[Storage, dict[str, str]]:
    """
    Find the model and what it needs; once per generation, so that a Pod template never changes by itself.

    Returns:
        The storage, and the annotations of the workload that remember it.
    """
    wanted = storage_uris(service["spec"][component])
    env: list[dict[str, Any]] = []
    local = _local_model(ctx, service, wanted[0][0]) if len(wanted) == 1 and component == "predictor" else None
    block = (service["spec"][component].get("model") or {}).get("storage")
    if block and not wanted:
        uri, env = await configured_storage(ctx, service, service["metadata"]["namespace"], block)
        wanted = [(uri, MODEL_PATH)]
    if not wanted and is_multi_model(service) and component == "predictor":
        return Storage(env=await _account_env(ctx, service, component)), {}
    if not wanted:
        return Storage(), {}
    if local is not None:
        wanted = [(local[0], wanted[0][1])]
    containers = _storage_containers(ctx, service, component, [uri for uri, _ in wanted])
    if any("://" in uri and not uri.startswith(("file://", "pvc://", REGISTRY)) for uri, _ in wanted):
        env = [*env, *await _account_env(ctx, service, component)]
    if checksum := annotations_of(service).get(MODEL_CHECKSUM) if component == "predictor" else None:
        env = [*env, {"name": "STORAGE_SHA256", "value": checksum}]
    namespace, generation = service["metadata"]["namespace"], str(service["metadata"].get("generation", 0))
    gvk = KNATIVE_SERVICE if mode_of(service) == "Knative" and ctx.settings.gateway_url else DEPLOYMENT
    workload = ctx.cache(gvk).get(Key(namespace, workload_name(service, component)))
    pins, places = annotations_of(workload or {}), [place for _, place in wanted]
    if pins.get(PINNED_GENERATION) == generation:
        kept = {key: pins[key] for key in (PINNED_GENERATION, PINNED_URI, PINNED_REQUIREMENTS) if key in pins}
        uris, requirements = pins.get(PINNED_URI, "").splitlines(), pins.get(PINNED_REQUIREMENTS, "")
        return _storage(uris, places, requirements, containers)._replace(env=env), kept
    if ctx.settings.gateway_url:
        # Without a gateway of ours this is another cluster, whose paths nobody can see from here.
        fields = _storage_fields(service["spec"][component], [uri for uri, _ in wanted])
        if missing := await asyncio.to_thread(find_missing, component, fields):
            raise ModelPathError(missing)
    fetch = http_fetch(ctx.settings.web_url, await own_headers(ctx.settings))
    uris = [await resolve_model(uri, fetch) if uri.startswith(REGISTRY) else uri for uri, _ in wanted]
    path = local[1] if local else local_path(uris[0], namespace, ctx.settings.volumes)
    inspection = await asyncio.to_thread(inspect_model, path) if path else None
    requirements = "\n".join(_requirements(service, runtime, component, inspection))
    if path and inspection is None:
        # Not there yet: the storage initializer will say so; look again when something changes.
        return _storage(uris, places, requirements, containers)._replace(env=env), {}
    found = {PINNED_GENERATION: generation, PINNED_URI: "\n".join(uris), PINNED_REQUIREMENTS: requirements}
    return _storage(uris, places, requirements, containers)._replace(env=env), found


def _storage_fields(component: Mapping[str, Any], uris: Sequence[str]) -> dict[str, str]:
    """Return the field of a component that each URI is from."""
    if component.get("storageUris"):
        return {f"storageUris[{index}].uri": uri for index, uri in enumerate(uris)}
    for name in ("model", "art"):
        if (component.get(name) or {}).get("storageUri"):
            return {f"{name}.storageUri": uris[0]}
    return {"model.storage" if component.get("model") else "containers[].env.STORAGE_URI": uris[0]}


def _requirements(
    service: Object, runtime: Object | None, component: str, inspection: Inspection | None
) -> Sequence[str]:
    """Return what the container that serves needs beyond its image."""
    found = inspection or Inspection(())
    if runtime is None:
        return found.requirements
    declared = serving_container(service["spec"][component], runtime["spec"])
    format_ = str(service["spec"][component]["model"]["modelFormat"]["name"])
    return requirements_for(str(declared.get("image", "")), format_, found.requirements, found.formats)


async def _account_env(ctx: Context, service: Object, component: str) -> list[dict[str, Any]]:
    declared = service["spec"][component]
    account, pull = declared.get("serviceAccountName") or "default", declared.get("imagePullSecrets") or ()
    return await account_env(ctx, service["metadata"]["namespace"], account, [item["name"] for item in pull])


def _storage_containers(
    ctx: Context, service: Object, component: str, uris: Sequence[str]
) -> list[Mapping[str, Any] | None]:
    """
    Return what brings each URI; None for the built-in initializer, or where nothing is to be brought.

    Raises:
        StorageContainerError: the one that the service names does not do, or nothing brings such a URI.
    """
    name = service["spec"][component].get("storageContainerName") or ""
    known, found = ctx.cache(CLUSTER_STORAGE_CONTAINER.gvk).list(), list[Mapping[str, Any] | None]()
    for uri in uris:
        container = None if claim_of(uri) else select_container(uri, known, name=name)
        if container is None and (problem := check_uri(uri)):
            raise StorageContainerError(f"spec.{component}: {uri}: {problem}; or a ClusterStorageContainer for it")
        found.append(container)
    return found


def _storage(
    uris: Sequence[str], places: Sequence[str], requirements: str, containers: Sequence[Mapping[str, Any] | None]
) -> Storage:
    sources = [
        Source(uri, place, _host_path(uri), container or {})
        for uri, place, container in zip(uris, places, containers, strict=True)
    ]
    first, *others = sources
    return Storage(
        first.uri,
        tuple(requirements.splitlines()),
        first.host_path,
        first.mount_path,
        tuple(others),
        container=first.container,
    )


def _host_path(uri: str) -> str:
    """Return the folder or file of a plain path or ``file://``, empty for other URIs."""
    path = None if claim_of(uri) else local_path(uri, "", Path())
    return str(path) if path else ""


async def _apply(ctx: Context, service: Object, runtime: Object | None) -> Observed:
    if is_multi_model(service):
        models = models_of(ctx, service["metadata"]["namespace"], service["metadata"]["name"])
        await ctx.client.apply(render_model_config(service, models), owner=service)
    # Revisions need our gateway, which starts their Pods.
    mode, keep = mode_of(service) if ctx.settings.gateway_url else "Standard", set[tuple[str, str]]()
    apply = _apply_knative if mode == "Knative" else _apply_standard
    applied: dict[str, _Applied] = {}
    canaries, all_shares = await _apply_canaries(ctx, service, keep) if mode == "Standard" else ([], [])
    ready_shares = zip(canaries, all_shares, strict=True)
    canary_shares = [share for canary, share in ready_shares if canary.ready and canary.percent]
    helping = sum(canary.replicas for canary in canaries if canary.ready)
    for name in COMPONENTS:
        if service["spec"].get(name):
            part = _with_fewer(service, helping) if name == "predictor" else service
            applied[name] = await apply(ctx, part, runtime if name == "predictor" else None, name, keep)
    shares = {name: list(item.shares) for name, item in applied.items()}
    if canary_shares:
        stable, port, _ = shares["predictor"][0]
        rest = 100 - sum(weight for _, _, weight in canary_shares)
        # Canaries first: who is in one stays in it while its share grows.
        shares["predictor"] = [*canary_shares, (stable, port, rest)]
    rendered = [*render.render_routes(service, mode, shares), *render.render_canary_routes(service, all_shares)]
    rendered = rendered if ctx.serves(HTTP_ROUTE) else []
    routes = [await ctx.client.apply(route, owner=service) for route in rendered]
    keep |= {("HTTPRoute", route["metadata"]["name"]) for route in routes}
    metadata = service["metadata"]
    if mode == "Knative":
        front = {"name": metadata["name"], "namespace": metadata["namespace"], "labels": {LABEL: metadata["name"]}}
        for obj in render.render_front(front, ctx.settings.host, ctx.settings.gateway_port):
            await ctx.client.apply(obj, owner=service)
        keep.add(("Service", metadata["name"]))
    await _remove_children(ctx, service, keep)
    components = {name: item.component for name, item in applied.items()}
    url = components.get("transformer", components["predictor"]).address
    if ctx.settings.gateway_url:
        url = ctx.settings.gateway_url + render.path_prefix(metadata["namespace"], metadata["name"])
    return Observed(components, routes, runtime, url, canaries)


def _with_fewer(service: Object, helping: int) -> Object:
    """Return a service whose predictor has ``helping`` replicas less: ready canaries stand in for them."""
    if not helping:
        return service
    predictor = service["spec"]["predictor"]
    low = max(1, (predictor.get("minReplicas") or 1) - helping)
    return {**service, "spec": {**service["spec"], "predictor": {**predictor, "minReplicas": low}}}


async def _apply_knative(
    ctx: Context, service: Object, runtime: Object | None, name: str, keep: set[tuple[str, str]]
) -> _Applied:
    storage, pins = await _resolve_storage(ctx, service, runtime, name)
    env = await logger_env(ctx, service, name)
    template = render_pod_template(service, runtime, storage, name, logger_env=env)
    rolled_out = rollout_of(service, name).latest_rolled_out
    wanted = render.render_knative_service(service, template, pins, name, rolled_out)
    workload = await ctx.client.apply(wanted, owner=service)
    keep.add(("Service", workload["metadata"]["name"]))
    status, namespace = workload.get("status") or {}, service["metadata"]["namespace"]
    traffic = status.get("traffic") or []
    shown = {target["revisionName"] for target in traffic} | {status.get("latestCreatedRevisionName")}
    pods = [pod for pod in _pods(ctx, service, name) if labels_of(pod).get(REVISION_LABEL) in shown]
    host = f"{workload['metadata']['name']}.{namespace}.svc.cluster.local"
    component = Component(workload, pods, (), _component_url(ctx, workload), f"http://{host}")
    return _Applied(component, [(revision, 80, share) for revision, share in weights(traffic).items()])


async def _apply_standard(
    ctx: Context, service: Object, runtime: Object | None, name: str, keep: set[tuple[str, str]]
) -> _Applied:
    storage, pins = await _resolve_storage(ctx, service, runtime, name)
    env = await logger_env(ctx, service, name)
    template = render_pod_template(service, runtime, storage, name, logger_env=env)
    layout = plan_layout(service, runtime) if name == "predictor" and is_multi_node(service) else None
    if layout:
        template = render_head(template, service, layout, has_model=bool(storage.uri))
    deployment = render.render_deployment(service, template, pins, name)
    if layout:
        deployment["spec"]["strategy"] = render_strategy(service)
    workload = await ctx.client.apply(deployment, owner=service)
    await ctx.client.apply(render.render_service(service, template, name), owner=service)
    if scaler := render.render_autoscaler(service, name):
        await ctx.client.apply(scaler, owner=service)
    names, namespace = workload["metadata"]["name"], service["metadata"]["namespace"]
    keep |= {("Deployment", names), ("Service", names)} | ({(AUTOSCALER.kind, names)} if scaler else set())
    workload = await _keep_replicas(ctx, service, workload, name)
    url = _component_url(ctx, workload)
    apps = {f"isvc.{names}"}
    if layout and runtime:
        workers = await ctx.client.apply(render_workers(service, runtime, storage, layout), owner=service)
        apps.add(f"isvc.{worker_name(service)}")
        keep |= {("Deployment", worker_name(service)), *await _apply_head_services(ctx, service)}
        # All nodes together are the predictor: it is as ready as the one that lacks most.
        if (find_condition(workers, "Available") or {}).get("status") != "True":
            workload = workers
    pods = [pod for pod in _pods(ctx, service, name) if labels_of(pod).get("app") in apps]
    slices = [
        item
        for item in ctx.cache(ENDPOINT_SLICE).list(namespace)
        if labels_of(item).get("kubernetes.io/service-name") == names
    ]
    address = f"http://{names}.{namespace}.svc.cluster.local"
    url = url if ctx.settings.gateway_url else address
    component = Component(workload, pods, slices, url, address)
    return _Applied(component, [(names, 80, 1)])


async def _apply_head_services(ctx: Context, service: Object) -> set[tuple[str, str]]:
    """Keep the head's Service of this generation, and those of earlier ones that have Pods yet; returns all of them."""
    applied = await ctx.client.apply(render_head_service(service), owner=service)
    generations = {labels_of(pod).get(GENERATION) for pod in _pods(ctx, service, "predictor")} - {None}
    earlier = {("Service", head_service_name(service, str(generation))) for generation in generations}
    return {("Service", applied["metadata"]["name"]), *earlier}


async def _keep_replicas(ctx: Context, service: Object, deployment: Object, name: str) -> Object:
    """Keep the number of replicas within its bounds; within them it is the autoscaler's."""
    class_ = render.autoscaler_class(service)
    low, high = render.replica_bounds(service["spec"][name], "Standard")
    current = int(deployment["spec"].get("replicas", 1))
    wanted = low if class_ == "none" else min(max(current, low), high)
    if wanted == current or class_ in ("external", "keda"):
        return deployment
    metadata = deployment["metadata"]
    return await ctx.client.patch(DEPLOYMENT, metadata["name"], metadata["namespace"], {"spec": {"replicas": wanted}})


async def _apply_canaries(
    ctx: Context, service: Object, keep: set[tuple[str, str]]
) -> tuple[list[CanaryState], list[render.Share]]:
    """Keep the canaries; returns the state and the share of each, whether it is ready or not."""
    states, shares = [], []
    for entry in service["spec"].get("canary") or ():
        percent, name = int(entry.get("trafficPercent") or 0), entry["predictor"]["name"]
        stable = service["spec"]["predictor"]
        given = entry["predictor"].get("minReplicas")
        replicas = given or max(1, math.ceil((stable.get("minReplicas") or 1) * percent / 100))
        predictor = _overlay(stable, entry["predictor"]) | {"minReplicas": replicas, "maxReplicas": replicas}
        predictor.pop("workerSpec", None)
        part = {**service, "spec": {**service["spec"], "predictor": predictor}}
        part["metadata"] = {
            **service["metadata"],
            "annotations": annotations_of(service) | {render.FIXED_REPLICAS: "true"},
        }
        applied = await _apply_standard(ctx, part, _choose_runtime(ctx, part), "predictor", keep)
        state = canary_state(name, percent, replicas, applied.component)
        states.append(state)
        shares.append((applied.shares[0][0], 80, percent))
    return states, shares


def _overlay(stable: Mapping[str, Any], canary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stable predictor with the canary's fields, so far as it has any, over its own."""
    merged = dict(stable)
    for key, value in canary.items():
        if value in (None, "", 0, [], {}):
            continue
        before = merged.get(key)
        merged[key] = _overlay(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return merged


def _pods(ctx: Context, service: Object, component: str) -> list[Object]:
    wanted = {LABEL: service["metadata"]["name"], "component": component}
    pods = ctx.cache(POD).list(service["metadata"]["namespace"])
    return [pod for pod in pods if wanted.items() <= labels_of(pod).items()]


def _component_url(ctx: Context, workload: Object) -> str:
    metadata = workload["metadata"]
    return ctx.settings.gateway_url + render.path_prefix(metadata["namespace"], metadata["name"])


async def _remove_children(ctx: Context, service: Object, keep: Iterable[tuple[str, str]]) -> None:
    """Delete what belongs to the service and is not, by kind and name, to be kept."""
    kept = set(keep)
    for gvk in (HTTP_ROUTE, SERVICE, DEPLOYMENT, AUTOSCALER, KNATIVE_SERVICE):
        for child in ctx.cache(gvk).by_owner(service["metadata"]["uid"]):
            metadata = child["metadata"]
            if (gvk.kind, metadata["name"]) in kept or is_deleting(child):
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


def _service_of_model(model: Object) -> Iterable[Key]:
    name = (model.get("spec") or {}).get("inferenceService")
    return [Key(model["metadata"]["namespace"], name)] if name else []


def _services_of_cache(cache: Object) -> Iterable[Key]:
    users = (cache.get("status") or {}).get("inferenceServices") or ()
    return [Key(user["namespace"], user["name"]) for user in users]


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
    owns=(DEPLOYMENT, SERVICE, HTTP_ROUTE, KNATIVE_SERVICE, AUTOSCALER, CONFIG_MAP),
    watches=(
        Watch(POD, _labelled_service),
        Watch(ENDPOINT_SLICE, _labelled_service),
        Watch(TRAINED_MODEL.gvk, _service_of_model),
        Watch(CACHE, _services_of_cache),
        Watch(NAMESPACE_CACHE, _services_of_cache),
    ),
    # Credentials of models are named by the Pods' ServiceAccount.
    reads=(Gvk("v1", "Secret"), Gvk("v1", "ServiceAccount")),
)
