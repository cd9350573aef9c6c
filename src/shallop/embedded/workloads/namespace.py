"""Namespace: when one is deleted, everything in it goes first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from shallop.controller import Context, Kind, Resource, Result
from shallop.embedded.workloads.pods import POD
from shallop.errors import ApiError, ConflictError, MethodNotAllowedError, NotFoundError
from shallop.kube.objects import Gvk, Object, ResourceType, is_deleting, key_of, set_condition

__all__ = ["NAMESPACE", "plan_conditions", "select_types"]

_NAMESPACE = Gvk("v1", "Namespace")
# Looking takes time for each object that is left: not at each one's end, but so often.
_LOOK_AGAIN_S = 0.25
_AT_ONCE = 16


def select_types(types: Iterable[ResourceType]) -> list[ResourceType]:
    """
    Return the types whose objects can live in a namespace and be deleted, each storage once.

    Pods come first, and the rest waits for their end: what they need, and what guards them, outlives them.
    """
    chosen: dict[tuple[str, str], ResourceType] = {}
    for type_ in types:
        if type_.namespaced and {"list", "delete"} <= set(type_.verbs):
            chosen.setdefault((type_.gvk.group, type_.plural), type_)
    return sorted(chosen.values(), key=lambda type_: type_.gvk != POD)


def plan_conditions(
    namespace: Object, remaining: list[Object], failures: list[str], now: datetime
) -> list[dict[str, Any]]:
    """Say why a namespace is still there: what could not be deleted, what is left, whose finalizers hold it."""
    conditions = list((namespace.get("status") or {}).get("conditions") or ())
    counts: dict[str, int] = {}
    finalizers: dict[str, int] = {}
    for obj in remaining:
        name = f"{obj['kind']} ({obj['apiVersion']})"
        counts[name] = counts.get(name, 0) + 1
        for finalizer in obj["metadata"].get("finalizers") or ():
            finalizers[finalizer] = finalizers.get(finalizer, 0) + 1
    left = ", ".join(f"{name} has {count} resource instances" for name, count in sorted(counts.items()))
    held = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(finalizers.items()))
    for type_, bad, text, good in (
        ("NamespaceDeletionContentFailure", "ContentDeletionFailed", "; ".join(failures), "ContentDeleted"),
        ("NamespaceContentRemaining", "SomeResourcesRemain", left, "ContentRemoved"),
        ("NamespaceFinalizersRemaining", "SomeFinalizersRemain", held, "ContentHasNoFinalizers"),
    ):
        if text:
            conditions = set_condition(conditions, type_, "True", bad, f"Remaining: {text}", now)
        elif any(condition["type"] == type_ for condition in conditions):
            conditions = set_condition(conditions, type_, "False", good, "Nothing of this kind holds it", now)
    return conditions


async def reconcile(ctx: Context, namespace: Resource[dict[str, Any]]) -> Result:
    """Empty a namespace that is being deleted, then let it go."""
    raw = namespace.raw
    if not is_deleting(raw) or "kubernetes" not in (namespace.spec.get("finalizers") or ()):
        return Result()
    remaining: list[Object] = []
    failures: list[str] = []
    for type_ in select_types(await ctx.client.resource_types()):
        if remaining and remaining[0]["kind"] == POD.kind:
            break
        try:
            remaining += await _empty(ctx, type_, namespace.name)
        except (NotFoundError, MethodNotAllowedError):
            # The type vanished between discovery and now.
            continue
        except ApiError as error:
            failures.append(str(error))
    if remaining or failures:
        conditions = plan_conditions(raw, remaining, failures, ctx.now())
        if conditions != namespace.status.get("conditions", []):
            await ctx.client.patch_status(raw, {"conditions": conditions})
        return Result(requeue_after_s=_LOOK_AGAIN_S)
    rest = [name for name in namespace.spec["finalizers"] if name != "kubernetes"]
    await ctx.client.update({**raw, "spec": {**raw["spec"], "finalizers": rest}}, subresource="finalize")
    return Result()


async def _empty(ctx: Context, type_: ResourceType, namespace: str) -> list[Object]:
    """Delete the objects of one type and return those that stay for a while."""
    items = (await ctx.client.list(type_.gvk, namespace)).items
    doomed = iter([obj for obj in items if not is_deleting(obj)])
    errors: list[ApiError] = []

    async def delete() -> None:
        # Each takes the next of the same iterator; several at a time share a commit.
        for obj in doomed:
            key = key_of(obj)
            try:
                await ctx.client.delete(type_.gvk, key.name, key.namespace, uid=obj["metadata"]["uid"])
            except (NotFoundError, ConflictError):
                continue
            except ApiError as error:
                errors.append(error)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(_AT_ONCE, len(items))):
            tasks.create_task(delete())
    if errors:
        raise errors[0]
    return (await ctx.client.list(type_.gvk, namespace)).items if items else []


NAMESPACE = Kind(
    api_version="v1",
    kind="Namespace",
    plural="namespaces",
    namespaced=False,
    reconcile=reconcile,
)
