"""A local copy of the objects of one kind, kept by list and watch."""

from __future__ import annotations

import asyncio
import builtins
import logging
import random
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

from shallop.errors import ApiError, ExpiredError, NotFoundError
from shallop.kube.client import Client, WatchEvent
from shallop.kube.objects import Gvk, Key, Object, key_of

__all__ = ["Change", "Informer", "Store"]

log = logging.getLogger(__name__)
_FIRST_RETRY_S = 0.05
_MAX_RETRY_S = 10.0
# A watch that lasted so long, or that brought anything, was a good one.
_GOOD_WATCH_S = 5.0
# How often we look whether a kind that the server lacks has come.
_ABSENT_S = 5.0


class Change(NamedTuple):
    """What happened to one object; ``new`` is None when it is gone, ``old`` when it was not known."""

    old: Object | None
    new: Object | None


class Store:
    """The last known objects of one kind; read only for everybody but its Informer."""

    def __init__(self) -> None:
        self._objects: dict[Key, Object] = {}
        self._namespaces: dict[str, dict[Key, Object]] = {}
        # Owner -> its objects, kept in order: an owner of thousands is asked for them whenever one changes.
        self._owned: dict[str, builtins.list[Key]] = {}

    def get(self, key: Key) -> Object | None:
        return self._objects.get(key)

    def list(self, namespace: str = "") -> builtins.list[Object]:
        objects = self._namespaces.get(namespace, {}) if namespace else self._objects
        return builtins.list(objects.values())

    def by_owner(self, uid: str) -> builtins.list[Object]:
        """Return the objects that have an owner reference to ``uid``, by namespace and name."""
        keys = self._owned.get(uid)
        return [self._objects[key] for key in keys] if keys else []

    def _put(self, key: Key, obj: Object | None) -> Object | None:
        old = self._objects.get(key)
        if _references_of(old) != _references_of(obj):
            self._move(key, _owners_of(old), _owners_of(obj))
        if obj is None:
            self._objects.pop(key, None)
            names = self._namespaces.get(key.namespace, {})
            names.pop(key, None)
            if not names:
                self._namespaces.pop(key.namespace, None)
            return old
        self._objects[key] = obj
        self._namespaces.setdefault(key.namespace, {})[key] = obj
        return old

    def _move(self, key: Key, before: set[str], after: set[str]) -> None:
        for uid in before - after:
            keys = self._owned[uid]
            del keys[bisect_left(keys, key)]
            if not keys:
                del self._owned[uid]
        for uid in after - before:
            insort(self._owned.setdefault(uid, []), key)


def _references_of(obj: Object | None) -> Sequence[Object]:
    return obj["metadata"].get("ownerReferences") or () if obj is not None else ()


def _owners_of(obj: Object | None) -> set[str]:
    return {reference["uid"] for reference in _references_of(obj)}


class Informer:
    """
    Keeps a Store in step with the API server and tells handlers of every change, in order.

    A stream that ends or breaks goes on from the last revision. Where that fails, or the revision has expired, the kind
    is listed again and handlers hear of the differences: no change is told twice, none is missed in its result.
    A kind that the server does not have is an empty one (``served`` is False) until it appears.

    Informers of one kind by one client share a stream and a Store, which last as long as one of them runs.
    """

    def __init__(self, client: Client, gvk: Gvk) -> None:
        self.gvk = gvk
        feeds = _FEEDS.setdefault(client, WeakValueDictionary())
        self._feed = feeds.get(gvk) or feeds.setdefault(gvk, _Feed(client, gvk))
        self._handlers: list[Callable[[Change], None]] = []
        self._appeared: list[Callable[[], None]] = []

    @property
    def store(self) -> Store:
        return self._feed.store

    @property
    def synced(self) -> asyncio.Event:
        return self._feed.synced

    @property
    def served(self) -> bool:
        return self._feed.served

    def add_handler(self, handler: Callable[[Change], None]) -> None:
        """Call ``handler`` for each later change, and now for each known object."""
        self._handlers.append(handler)
        self._feed.handlers.append(handler)
        for obj in self.store.list():
            handler(Change(None, obj))

    def on_appeared(self, call: Callable[[], None]) -> None:
        """Call when the server has the kind after all."""
        self._appeared.append(call)
        self._feed.appeared.append(call)

    async def run(self) -> None:
        """List and watch until cancelled; handlers hear nothing afterwards."""
        task = self._feed.join()
        try:
            await asyncio.shield(task)
        finally:
            for handler in self._handlers:
                self._feed.handlers.remove(handler)
            for call in self._appeared:
                self._feed.appeared.remove(call)
            self._handlers, self._appeared = [], []
            await self._feed.leave()


class _Feed:
    """What Informers share."""

    def __init__(self, client: Client, gvk: Gvk) -> None:
        self.gvk = gvk
        self.store = Store()
        self.synced = asyncio.Event()
        self.served = True
        self.handlers: list[Callable[[Change], None]] = []
        self.appeared: list[Callable[[], None]] = []
        self._client = client
        self._revision = ""
        self._heard = False
        self._users = 0
        self._task: asyncio.Task[None] | None = None

    def join(self) -> asyncio.Task[None]:
        """Return the task that follows the kind; the first who asks begins it."""
        self._users += 1
        if self._task is None:
            # What happened since the last one ended is not known.
            self._revision = ""
            self.synced.clear()
            self._task = asyncio.create_task(self._run(), name=f"informer {self.gvk.kind}")
        return self._task

    async def leave(self) -> None:
        """Undo a ``join``; the last one waits for the end of the task."""
        self._users -= 1
        if not self._users and self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        failures = 0
        while True:
            began, self._heard = time.monotonic(), False
            try:
                if not self._revision:
                    await self._relist()
                await self._watch()
                problem = None
            except (TimeoutError, ApiError, OSError) as error:
                problem = error
            good = self._heard or time.monotonic() - began > _GOOD_WATCH_S
            failures = 0 if good else failures + 1
            await asyncio.sleep(self._pause_s(problem, failures))

    def _pause_s(self, problem: Exception | None, failures: int) -> float:
        """Decide how to go on after a watch has ended, and how soon."""
        if problem is None and failures < 3:
            # A server ends watches now and then; going on from the last revision loses nothing.
            return 0.01
        delay = min(_FIRST_RETRY_S * 2.0 ** min(failures, 30), _MAX_RETRY_S) * random.uniform(0.8, 1.2)
        if isinstance(problem, NotFoundError):
            self._absent()
            return _ABSENT_S * random.uniform(0.8, 1.2)
        if isinstance(problem, ExpiredError) and self._revision:
            log.info("watch of %s: %s; listing again", self.gvk.kind, problem)
            self._revision = ""
            return 0.0 if failures < 2 else delay
        if problem is not None:
            log.warning("watch of %s lost, retry in %.1f s: %s", self.gvk.kind, delay, problem)
        if failures:
            # It did not go on: the server may be another one by now, or have been restored. Trust only a list.
            self._revision = ""
        return delay

    def _absent(self) -> None:
        if self.served or not self.synced.is_set():
            log.warning("%s %s: not served; what needs it is off until it appears", self.gvk.api_version, self.gvk.kind)
        self.served, self._revision = False, ""
        for obj in self.store.list():
            self._change(key_of(obj), None)
        self.synced.set()

    async def _relist(self) -> None:
        listing = await self._client.list(self.gvk)
        appeared, self.served = not self.served, True
        current = {key_of(obj): obj for obj in listing.items}
        for obj in self.store.list():
            now = current.get(key_of(obj))
            if now is None or now["metadata"]["uid"] != obj["metadata"]["uid"]:
                self._change(key_of(obj), None)
        for key, obj in current.items():
            known = self.store.get(key)
            if known is None or known["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
                self._change(key, obj)
        self._revision = listing.resource_version
        self.synced.set()
        if appeared:
            log.info("%s %s: served now", self.gvk.api_version, self.gvk.kind)
            for call in self.appeared:
                call()

    async def _watch(self) -> None:
        await self._client.follow(self.gvk, resource_version=self._revision, tell=self._told)

    def _told(self, event: WatchEvent) -> None:
        self._revision, self._heard = event.object["metadata"]["resourceVersion"], True
        if event.type != "BOOKMARK":
            self._change(key_of(event.object), None if event.type == "DELETED" else event.object)

    def _change(self, key: Key, obj: Object | None) -> None:
        old = self.store._put(key, obj)
        if old is None and obj is None:
            return
        change = Change(old, obj)
        for handler in self.handlers:
            handler(change)


_FEEDS: WeakKeyDictionary[Client, WeakValueDictionary[Gvk, _Feed]] = WeakKeyDictionary()
