"""A local copy of the objects of one kind, kept by list and watch."""

from __future__ import annotations

import asyncio
import builtins
import logging
import random
from collections.abc import Callable
from typing import NamedTuple

from shallop.errors import ApiError, ExpiredError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Key, Object, key_of

__all__ = ["Change", "Informer", "Store"]

log = logging.getLogger(__name__)
_FIRST_RETRY_S = 0.05
_MAX_RETRY_S = 30.0


class Change(NamedTuple):
    """What happened to one object; ``new`` is None when it is gone, ``old`` when it was not known."""

    old: Object | None
    new: Object | None


class Store:
    """The last known objects of one kind; read only for everybody but its Informer."""

    def __init__(self) -> None:
        self._objects: dict[Key, Object] = {}
        self._owned: dict[str, set[Key]] = {}

    def get(self, key: Key) -> Object | None:
        return self._objects.get(key)

    def list(self, namespace: str = "") -> builtins.list[Object]:
        if not namespace:
            return builtins.list(self._objects.values())
        return [obj for key, obj in self._objects.items() if key.namespace == namespace]

    def by_owner(self, uid: str) -> builtins.list[Object]:
        """Return the objects that have an owner reference to ``uid``."""
        return [self._objects[key] for key in sorted(self._owned.get(uid, ()))]

    def _put(self, key: Key, obj: Object | None) -> Object | None:
        old = self._objects.get(key)
        for reference in (old or {"metadata": {}})["metadata"].get("ownerReferences") or ():
            owned = self._owned.get(reference["uid"])
            if owned is not None:
                owned.discard(key)
                if not owned:
                    del self._owned[reference["uid"]]
        if obj is None:
            self._objects.pop(key, None)
            return old
        self._objects[key] = obj
        for reference in obj["metadata"].get("ownerReferences") or ():
            self._owned.setdefault(reference["uid"], set()).add(key)
        return old


class Informer:
    """Keeps a Store in step with the API server and tells handlers of every change, in order."""

    def __init__(self, client: Client, gvk: Gvk) -> None:
        self.gvk = gvk
        self.store = Store()
        self.synced = asyncio.Event()
        self._client = client
        self._handlers: list[Callable[[Change], None]] = []

    def add_handler(self, handler: Callable[[Change], None]) -> None:
        """Call ``handler`` for each later change, and now for each known object."""
        self._handlers.append(handler)
        for obj in self.store.list():
            handler(Change(None, obj))

    async def run(self) -> None:
        """List and watch for ever; a lost connection or an expired revision starts over with a list."""
        delay = _FIRST_RETRY_S
        while True:
            try:
                revision = await self._relist()
                delay = _FIRST_RETRY_S
                await self._watch(revision)
            except ExpiredError:
                continue
            except (TimeoutError, ApiError, OSError) as error:
                log.warning("watch of %s lost, retry in %.1f s: %s", self.gvk.kind, delay, error)
                await asyncio.sleep(delay * random.uniform(0.8, 1.2))
                delay = min(delay * 2, _MAX_RETRY_S)

    async def _relist(self) -> str:
        listing = await self._client.list(self.gvk)
        current = {key_of(obj): obj for obj in listing.items}
        for obj in self.store.list():
            if key_of(obj) not in current:
                self._change(key_of(obj), None)
        for key, obj in current.items():
            known = self.store.get(key)
            if known is None or known["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
                self._change(key, obj)
        self.synced.set()
        return listing.resource_version

    async def _watch(self, revision: str) -> None:
        while True:
            async for event in self._client.watch(self.gvk, resource_version=revision):
                revision = event.object["metadata"]["resourceVersion"]
                if event.type != "BOOKMARK":
                    self._change(key_of(event.object), None if event.type == "DELETED" else event.object)
            # A server ends watches now and then; going on from the last revision loses nothing.
            await asyncio.sleep(0.01)

    def _change(self, key: Key, obj: Object | None) -> None:
        old = self.store._put(key, obj)
        if old is None and obj is None:
            return
        for handler in self._handlers:
            handler(Change(old, obj))
