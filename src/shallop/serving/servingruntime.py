"""ServingRuntime and ClusterServingRuntime: how models of some formats are served. All fields but ModelMesh's count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import yaml

from shallop.controller.kind import Admission, Column, Kind, Resource, Result
from shallop.controller.manager import Context
from shallop.errors import FieldError, InvalidError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Key, Object, gvk_of
from shallop.serving.schemas import SERVING_RUNTIME as SCHEMA

__all__ = ["CLUSTER_SERVING_RUNTIME", "SERVING_RUNTIME", "load_runtimes", "refuse_equal_priorities", "rivals"]

_SERVICE = Gvk("serving.kserve.io/v1beta1", "InferenceService")
# In the status of a service: the runtime that last changed. Writing it makes the service look at its runtime again.
_SEEN = "serving.shallop.dev/runtime"


def load_runtimes() -> tuple[Object, ...]:
    """Return the ClusterServingRuntimes that come with the package."""
    folder = resources.files("shallop.serving") / "runtimes"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return tuple(yaml.safe_load(file.read_text()) for file in files)


def validate(runtime: Object, old: Object | None) -> list[FieldError]:
    """Check what a schema cannot say."""
    spec = runtime.get("spec") or {}
    errors = _check_formats(spec.get("supportedModelFormats") or [])
    if old and (old.get("spec") or {}).get("workerSpec") and not spec.get("workerSpec"):
        errors.append(FieldError.forbidden("spec.workerSpec", "a runtime for several nodes stays one"))
    if not spec.get("containers"):
        errors.append(FieldError.required("spec.containers", "give a container named kserve-container"))
    return errors


def _check_formats(formats: list[dict[str, Any]]) -> list[FieldError]:
    errors, priorities = [], defaultdict[str, set[Any]](set)
    for index, supported in enumerate(formats):
        path = f"spec.supportedModelFormats[{index}].priority"
        priority = supported.get("priority")
        if priority is not None and priority < 1:
            errors.append(FieldError.invalid(path, priority, "must be greater than zero"))
        if supported.get("autoSelect") and priority is not None:
            priorities[supported["name"]].add(priority)
            if len(priorities[supported["name"]]) > 1:
                detail = f"every entry of format {supported['name']} must have the same priority"
                errors.append(FieldError.invalid(path, priority, detail))
    return errors


def refuse_equal_priorities(client: Client) -> Admission:
    """Refuse a runtime that is to be chosen just as much as another one of its scope, which takes a look at those."""
    shipped = {str(runtime["metadata"]["name"]) for runtime in load_runtimes()}

    async def check(runtime: Object) -> Object:
        metadata = runtime.get("metadata") or {}
        name, namespace = str(metadata.get("name") or ""), str(metadata.get("namespace") or "")
        # Ours come with a new version, whatever users have of their own.
        if name not in shipped:
            others = (await client.list(gvk_of(runtime), namespace)).items
            if errors := rivals(runtime, [other for other in others if other["metadata"]["name"] != name]):
                raise InvalidError.of(str(runtime["kind"]), "serving.kserve.io", name, errors)
        return runtime

    return check


def rivals(runtime: Object, others: Iterable[Object]) -> list[FieldError]:
    """Find the formats that another runtime of the scope serves with the same priority and a protocol in common."""
    errors = []
    for index, mine in enumerate(_chosen_formats(runtime)):
        for other in others:
            spoken = [set((item.get("spec") or {}).get("protocolVersions") or ()) for item in (runtime, other)]
            if all(spoken) and not spoken[0] & spoken[1]:
                continue
            if mine is not None and mine in _chosen_formats(other):
                detail = f"{runtime['kind']} {other['metadata']['name']} has it for {mine[0]} too"
                path = f"spec.supportedModelFormats[{index}].priority"
                errors.append(FieldError.invalid(path, mine[2], f"{detail}: neither could be chosen over the other"))
    return errors


def _chosen_formats(runtime: Object) -> list[tuple[str, str, int] | None]:
    """Return name, version and priority of the formats that a runtime may be chosen for; None for the others."""
    spec = runtime.get("spec") or {}
    formats = spec.get("supportedModelFormats")
    found: list[tuple[str, str, int] | None] = []
    for item in formats if isinstance(formats, list) else ():
        usable = isinstance(item, Mapping) and item.get("autoSelect") and isinstance(item.get("priority"), int)
        on = usable and not spec.get("disabled") and not spec.get("multiModel") and not spec.get("workerSpec")
        found.append((str(item.get("name")), str(item.get("version") or ""), item["priority"]) if on else None)
    return found


async def reconcile(ctx: Context, runtime: Resource[Any]) -> Result:
    """Tell the services that use a runtime, or have none, that it changed."""
    await _tell_services(ctx, runtime.key, str(runtime.raw["metadata"].get("generation", 0)))
    return Result()


async def on_gone(ctx: Context, key: Key) -> None:
    await _tell_services(ctx, key, "gone")


async def _tell_services(ctx: Context, runtime: Key, version: str) -> None:
    name_field = "servingRuntimeName" if runtime.namespace else "clusterServingRuntimeName"
    for service in ctx.cache(_SERVICE).list(runtime.namespace):
        status = service.get("status") or {}
        used = status.get("servingRuntimeName") or status.get("clusterServingRuntimeName")
        if used and status.get(name_field) != runtime.name:
            continue
        try:
            await ctx.client.patch_status(service, {"annotations": {_SEEN: f"{runtime}@{version}"}})
        except NotFoundError:
            continue


_COLUMNS = (
    Column("Disabled", "boolean", ".spec.disabled"),
    Column("ModelType", "string", ".spec.supportedModelFormats[*].name"),
    Column("Containers", "string", ".spec.containers[*].name"),
    Column("Age", "date", ".metadata.creationTimestamp"),
)

SERVING_RUNTIME = Kind(
    api_version="serving.kserve.io/v1alpha1",
    kind="ServingRuntime",
    plural="servingruntimes",
    schema=SCHEMA,
    columns=_COLUMNS,
    validate=validate,
    reconcile=reconcile,
    on_gone=on_gone,
)
CLUSTER_SERVING_RUNTIME = Kind(
    api_version="serving.kserve.io/v1alpha1",
    kind="ClusterServingRuntime",
    plural="clusterservingruntimes",
    namespaced=False,
    schema=SCHEMA,
    columns=_COLUMNS,
    validate=validate,
    reconcile=reconcile,
    on_gone=on_gone,
)
