"""
Garbage collection: dependents go after their owners, or before them when asked (foreground), or stay (orphan).

It watches every type that the server serves and can delete. Dependents are found by the uid of their owner; an owner is
gone when its uid was seen to be deleted, or when the server does not have that name with that uid.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from shallop.controller.informer import Change, Informer
from shallop.controller.queue import WorkQueue
from shallop.errors import ApiError, ConflictError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Key, Object, ResourceType, gvk_of, is_deleting, key_of

__all__ = ["GarbageCollector", "Owners", "classify_owners", "plan_dependent"]

log = logging.getLogger(__name__)
_CRD = Gvk("apiextensions.k8s.io/v1", "CustomResourceDefinition")
_FOREGROUND = "foregroundDeletion"
_ORPHAN = "orphan"
# Written all the time and never owned: not worth watching.
_IGNORED = frozenset(("events", "leases"))
_REMEMBERED_UIDS = 5000
_WORKERS = 4
_DISCOVERY_DELAY_S = 0.2


class Item(NamedTuple):
    """An object's address in the graph."""

    gvk: Gvk
    key: Key


class Owners(NamedTuple):
    """Owner references by the state of the owner: there, gone, or waiting for its dependents to go."""

    solid: list[dict[str, Any]]
    dangling: list[dict[str, Any]]
    waiting: list[dict[str, Any]]


def classify_owners(obj: Object, states: dict[str, str]) -> Owners:
    """Sort the owner references of ``obj``; ``states`` maps uid -> ``solid``, ``dangling`` or ``waiting``."""
    owners = Owners([], [], [])
    for reference in obj["metadata"].get("ownerReferences") or ():
        getattr(owners, states[reference["uid"]]).append(reference)
    return owners


def plan_dependent(obj: Object, owners: Owners, *, has_blocking_dependents: bool) -> str | list[dict[str, Any]] | None:
    """
    Decide what happens to an object that has owners.

    Returns:
        A propagation policy to delete it with, a list of owner references to keep instead of the present ones, or None
        when nothing is to do.
    """
    if is_deleting(obj) or not (owners.dangling or owners.waiting):
        return None
    if owners.solid:
        return owners.solid
    finalizers = obj["metadata"].get("finalizers") or ()
    if _ORPHAN in finalizers:
        return "Orphan"
    if owners.waiting and has_blocking_dependents:
        return "Foreground"
    return "Foreground" if _FOREGROUND in finalizers else "Background"


def select_types(types: Iterable[ResourceType]) -> list[ResourceType]:
    """Return the types to watch, each storage once."""
    chosen: dict[tuple[str, str], ResourceType] = {}
    for type_ in types:
        if {"list", "watch", "delete"} <= set(type_.verbs) and type_.plural not in _IGNORED:
            chosen.setdefault((type_.gvk.group, type_.plural), type_)
    return list(chosen.values())


class GarbageCollector:
    """Runs until cancelled; every step may be repeated, so it may be killed at any time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: WorkQueue[Item] = WorkQueue()
        self._informers: dict[tuple[str, str], tuple[ResourceType, Informer, asyncio.Task[None]]] = {}
        self._kinds: dict[tuple[str, str], ResourceType] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._discover = asyncio.Event()

    async def run(self) -> None:
        """Watch all types and work off what their changes ask for."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(_WORKERS):
                tasks.create_task(self._work(), name=f"garbage worker {number}")
            definitions = Informer(self._client, _CRD)
            definitions.add_handler(lambda _: self._discover.set())
            tasks.create_task(definitions.run(), name="garbage discovery")
            while True:
                await self._refresh(tasks)
                await self._discover.wait()
                # A definition is served a moment after it was written; many come at once.
                await asyncio.sleep(_DISCOVERY_DELAY_S)
                self._discover.clear()

    async def _refresh(self, tasks: asyncio.TaskGroup) -> None:
        try:
            types = await self._client.resource_types()
        except (ApiError, OSError, TimeoutError) as error:
            log.warning("discovery failed, garbage collection goes on with the types it knows: %s", error)
            self._discover.set()
            return
        self._kinds = {(type_.gvk.group, type_.gvk.kind): type_ for type_ in types}
        wanted = {(type_.gvk.group, type_.plural): type_ for type_ in select_types(types)}
        for name in self._informers.keys() - wanted.keys():
            self._informers.pop(name)[2].cancel()
        fresh = []
        for name in wanted.keys() - self._informers.keys():
            informer = Informer(self._client, wanted[name].gvk)
            informer.add_handler(self._changed)
            task = tasks.create_task(informer.run(), name=f"garbage {name[1]}")
            self._informers[name] = (wanted[name], informer, task)
            fresh.append(informer)
        if fresh:
            tasks.create_task(self._look_again(fresh), name="garbage of new types")

    async def _look_again(self, fresh: Sequence[Informer]) -> None:
        """Judge anew what has an owner that is not known: it may have come and gone before its type was watched."""
        for informer in fresh:
            await informer.synced.wait()
        self._add(
            obj
            for _, informer, _ in list(self._informers.values())
            for obj in informer.store.list()
            if any(self._cached_owner(obj, r) is None for r in obj["metadata"].get("ownerReferences") or ())
        )

    def _changed(self, change: Change) -> None:
        old, new = change.old, change.new
        if old and (new is None or old["metadata"]["uid"] != new["metadata"]["uid"]):
            self._forget(old["metadata"]["uid"])
            self._add(self._dependents(old["metadata"]["uid"]))
            # Its owner may wait for it in the foreground.
            self._add(self._owners(old))
        if new is None or (old and _concern(old) == _concern(new)):
            return
        metadata = new["metadata"]
        references = metadata.get("ownerReferences")
        if references or (is_deleting(new) and {_FOREGROUND, _ORPHAN} & set(metadata.get("finalizers") or ())):
            self._add([new])
        if old and references != old["metadata"].get("ownerReferences"):
            self._add(self._owners(old))

    def _forget(self, uid: str) -> None:
        self._gone[uid] = None
        while len(self._gone) > _REMEMBERED_UIDS:
            self._gone.popitem(last=False)

    def _add(self, objects: Iterable[Object]) -> None:
        for obj in objects:
            self._queue.add(Item(gvk_of(obj), key_of(obj)))

    def _dependents(self, uid: str) -> list[Object]:
        found: list[Object] = []
        for _, informer, _ in self._informers.values():
            found += informer.store.by_owner(uid)
        return found

    def _owners(self, obj: Object) -> list[Object]:
        found = []
        for reference in obj["metadata"].get("ownerReferences") or ():
            owner = self._cached_owner(obj, reference)
            if owner is not None:
                found.append(owner)
        return found

    def _cached_owner(self, obj: Object, reference: dict[str, Any]) -> Object | None:
        type_ = self._type_of(reference)
        known = self._informers.get((type_.gvk.group, type_.plural)) if type_ else None
        if type_ is None or known is None:
            return None
        namespace = obj["metadata"].get("namespace", "") if type_.namespaced else ""
        owner = known[1].store.get(Key(namespace, reference["name"]))
        return owner if owner and owner["metadata"]["uid"] == reference["uid"] else None

    def _type_of(self, reference: dict[str, Any]) -> ResourceType | None:
        return self._kinds.get((Gvk(reference["apiVersion"], "").group, reference["kind"]))

    async def _work(self) -> None:
        while True:
            item = await self._queue.get()
            try:
                await self._process(item)
            except NotFoundError:
                self._queue.forget(item)
            except (ApiError, OSError, TimeoutError):
                self._queue.retry(item)
            else:
                self._queue.forget(item)
            finally:
                self._queue.done(item)

    async def _process(self, item: Item) -> None:
        type_ = self._kinds.get((item.gvk.group, item.gvk.kind))
        known = self._informers.get((type_.gvk.group, type_.plural)) if type_ else None
        obj = known[1].store.get(item.key) if known else None
        if obj is None:
            return
        finalizers = set(obj["metadata"].get("finalizers") or ())
        if not is_deleting(obj):
            await self._process_dependent(obj)
        elif finalizers & {_ORPHAN, _FOREGROUND}:
            if not all(informer.synced.is_set() for _, informer, _ in self._informers.values()):
                # A dependent that is not known yet would be lost.
                self._queue.add_after(item, _DISCOVERY_DELAY_S)
            elif _ORPHAN in finalizers:
                await self._orphan(obj)
            else:
                await self._finish_foreground(obj)

    async def _orphan(self, owner: Object) -> None:
        uid = owner["metadata"]["uid"]
        for dependent in self._dependents(uid):
            keep = [r for r in dependent["metadata"]["ownerReferences"] if r["uid"] != uid]
            await self._keep_owners(dependent, keep)
        await self._remove_finalizer(owner, _ORPHAN)

    async def _finish_foreground(self, owner: Object) -> None:
        uid = owner["metadata"]["uid"]
        dependents = self._dependents(uid)
        self._add(dependent for dependent in dependents if not is_deleting(dependent))
        if not any(_blocks(dependent, uid) for dependent in dependents):
            await self._remove_finalizer(owner, _FOREGROUND)

    async def _process_dependent(self, obj: Object) -> None:
        references = obj["metadata"].get("ownerReferences") or ()
        states = {reference["uid"]: await self._state_of(obj, reference) for reference in references}
        owners = classify_owners(obj, states)
        if not (owners.dangling or owners.waiting):
            return  # as of nearly everything that is made
        uid = obj["metadata"]["uid"]
        blocking = any(_blocks(dependent, uid) for dependent in self._dependents(uid))
        decision = plan_dependent(obj, owners, has_blocking_dependents=blocking)
        if isinstance(decision, str):
            key = key_of(obj)
            try:
                await self._client.delete(gvk_of(obj), key.name, key.namespace, propagation=decision, uid=uid)
            except ConflictError:
                # Another object has this name by now.
                return
        elif decision is not None:
            await self._keep_owners(obj, decision)

    async def _state_of(self, obj: Object, reference: dict[str, Any]) -> str:
        if reference["uid"] in self._gone:
            return "dangling"
        owner = self._cached_owner(obj, reference)
        if owner is None:
            type_ = self._type_of(reference)
            if type_ is None:
                # Not served (any more, or not yet): nobody can say that the owner is gone.
                return "solid"
            namespace = obj["metadata"].get("namespace", "") if type_.namespaced else ""
            try:
                owner = await self._client.get(type_.gvk, reference["name"], namespace)
            except NotFoundError:
                owner = None
            if owner is None or owner["metadata"]["uid"] != reference["uid"]:
                self._forget(reference["uid"])
                return "dangling"
        waits = is_deleting(owner) and _FOREGROUND in (owner["metadata"].get("finalizers") or ())
        return "waiting" if waits else "solid"

    async def _keep_owners(self, obj: Object, references: Sequence[dict[str, Any]]) -> None:
        await self._patch(obj, {"ownerReferences": list(references) or None})

    async def _remove_finalizer(self, obj: Object, name: str) -> None:
        rest = [finalizer for finalizer in obj["metadata"]["finalizers"] if finalizer != name]
        await self._patch(obj, {"finalizers": rest or None})

    async def _patch(self, obj: Object, metadata: dict[str, Any]) -> None:
        key = key_of(obj)
        guard = {"uid": obj["metadata"]["uid"], "resourceVersion": obj["metadata"]["resourceVersion"]}
        try:
            await self._client.patch(gvk_of(obj), key.name, key.namespace, {"metadata": {**guard, **metadata}})
        except NotFoundError:
            pass


def _concern(obj: Object) -> tuple[Any, ...]:
    """Return what of an object matters here: most changes are of status, and of many Pods."""
    metadata = obj["metadata"]
    return tuple(metadata.get(name) for name in ("uid", "ownerReferences", "finalizers", "deletionTimestamp"))


def _blocks(dependent: Object, owner_uid: str) -> bool:
    references = dependent["metadata"].get("ownerReferences") or ()
    return any(reference["uid"] == owner_uid and reference.get("blockOwnerDeletion") for reference in references)
