"""CustomResourceDefinitions: from the stored object to a served resource, and back when it is deleted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from shallop.embedded.apiserver.objects_store import Change, ObjectsStore
from shallop.embedded.apiserver.requests import WriteOptions
from shallop.embedded.apiserver.resources import Registry, Resource
from shallop.embedded.apiserver.verbs import CRD_CLEANUP, DeleteOptions, Verbs
from shallop.errors import ApiError, NotFoundError
from shallop.kube.objects import Gvk, Object, is_condition_true, set_condition

__all__ = ["CRD", "CrdController"]

log = logging.getLogger(__name__)
CRD = Gvk("apiextensions.k8s.io/v1", "CustomResourceDefinition")
_STORAGE = "customresourcedefinitions.apiextensions.k8s.io"


class CrdController:
    """Establishes CRDs as they are written; a deleted one takes its objects along."""

    def __init__(self, store: ObjectsStore, registry: Registry, verbs: Verbs, now: Callable[[], datetime]) -> None:
        self._store = store
        self._registry = registry
        self._verbs = verbs
        self._now = now
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Serve what is stored, and follow changes from now on."""
        for stored in self._store.list(_STORAGE):
            if is_condition_true(stored.object, "Established"):
                self._registry.add_crd(stored.object)
            else:
                self._spawn(stored.name)
        self._store.listen((_STORAGE,), self._changed)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changed(self, change: Change) -> None:
        crd = change.new.object
        if change.deleted:
            self._registry.remove_crd(crd)
            self._store.close_subscriptions(f"{crd['spec']['names']['plural']}.{crd['spec']['group']}")
            return
        if is_condition_true(crd, "Established") and not crd["metadata"].get("deletionTimestamp"):
            known = change.old.object if change.old else {}
            # Only what is served changes the registry: status updates do not.
            if known.get("spec") != crd["spec"] or not is_condition_true(known, "Established"):
                self._registry.add_crd(crd)
        self._spawn(change.new.name)

    def _spawn(self, name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._reconcile(name), name=f"crd {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reconcile(self, name: str) -> None:
        resource = self._registry.by_gvk(CRD)
        stored = self._store.get(_STORAGE, "", name)
        if resource is None or stored is None:
            return
        try:
            if stored.object["metadata"].get("deletionTimestamp"):
                await self._clean_up(resource, stored.object)
            else:
                await self._verbs.change(resource, "", name, self._established)
        except NotFoundError:
            return
        except ApiError as error:
            log.warning("CustomResourceDefinition %s: %s", name, error)

    def _established(self, crd: Object) -> Object | None:
        status = crd.get("status") or {}
        names = crd["spec"]["names"]
        conditions = status.get("conditions") or []
        problem = self._name_conflict(crd)
        now = self._now()
        if problem:
            conditions = set_condition(conditions, "NamesAccepted", "False", "NameConflict", problem, now)
            conditions = set_condition(
                conditions, "Established", "False", "NotAccepted", "not all names are accepted", now
            )
            accepted = status.get("acceptedNames") or {"plural": "", "kind": ""}
        else:
            conditions = set_condition(conditions, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now)
            conditions = set_condition(
                conditions, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted", now
            )
            accepted = {key: names[key] for key in names}
        new = status | {"conditions": conditions, "acceptedNames": accepted}
        return None if new == status else crd | {"status": new}

    def _name_conflict(self, crd: Object) -> str:
        spec = crd["spec"]
        names = spec["names"]
        for resource in self._registry.all():
            if resource.group != spec["group"] or resource.plural == names["plural"]:
                continue
            if resource.kind == names["kind"] or resource.list_kind == names.get("listKind"):
                return f'"{names["kind"]}" is already in use'
        return ""

    async def _clean_up(self, crd_resource: Resource, crd: Object) -> None:
        """Delete all objects of a CRD that is going, then let it go."""
        spec = crd["spec"]
        if CRD_CLEANUP not in (crd["metadata"].get("finalizers") or ()):
            return
        storage = f"{spec['names']['plural']}.{spec['group']}"
        served = [r for r in self._registry.all() if r.storage == storage]
        # In the version that is stored: what must go should not wait for a webhook that converts.
        resource = min(served, key=lambda r: r.version != r.storage_version, default=None)
        while resource is not None and self._store.count(storage):
            for stored in self._store.list(storage):
                if stored.object["metadata"].get("deletionTimestamp"):
                    continue
                try:
                    await self._verbs.delete(resource, stored.namespace, stored.name, DeleteOptions(), WriteOptions())
                except NotFoundError:
                    continue
            if self._store.count(storage):
                subscription = self._store.subscribe(storage)
                try:
                    if self._store.count(storage):
                        await subscription.next(5)
                finally:
                    self._store.unsubscribe(subscription)

        def released(obj: Object) -> Object:
            finalizers = [name for name in obj["metadata"].get("finalizers") or () if name != CRD_CLEANUP]
            return obj | {"metadata": obj["metadata"] | {"finalizers": finalizers}}

        await self._verbs.change(crd_resource, "", crd["metadata"]["name"], released)
