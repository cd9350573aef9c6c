"""Events do not stay for ever: an hour after they were written last, as on Kubernetes, or when there are very many."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict

from shallop.embedded.apiserver.objects_store import Change, ObjectsStore
from shallop.errors import UnavailableError

__all__ = ["EventRetention"]

log = logging.getLogger(__name__)
KEEP_S = 3600.0
MAX_EVENTS = 10_000
_LOOK_S = 30.0
_STORAGE = "events"


class EventRetention:
    """Removes Events from the store; those that were there at the start count as written then."""

    def __init__(self, store: ObjectsStore) -> None:
        self._store = store
        self._written: OrderedDict[tuple[str, str], float] = OrderedDict()  # the oldest first
        self._too_many = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        for stored in sorted(self._store.list(_STORAGE), key=lambda stored: stored.revision):
            self._written[(stored.namespace, stored.name)] = time.monotonic()
        self._store.listen((_STORAGE,), self._changed)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="retention of Events")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _changed(self, change: Change) -> None:
        key = (change.new.namespace, change.new.name)
        self._written.pop(key, None)
        if not change.deleted:
            self._written[key] = change.at
            if len(self._written) > MAX_EVENTS:
                self._too_many.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._too_many.wait()
            self._too_many.clear()
            try:
                await self._sweep()
            except UnavailableError as error:
                log.warning("old Events cannot be removed, next try in %.0f s: %s", _LOOK_S, error)
                await asyncio.sleep(_LOOK_S)

    async def _sweep(self) -> None:
        oldest = time.monotonic() - KEEP_S
        # A tenth at once: with very many, not every Event should cost a look.
        room = MAX_EVENTS if len(self._written) <= MAX_EVENTS else MAX_EVENTS * 9 // 10
        while self._written:
            (namespace, name), at = next(iter(self._written.items()))
            if at >= oldest and len(self._written) <= room:
                return
            await self._remove(namespace, name)

    async def _remove(self, namespace: str, name: str) -> None:
        async with self._store.lock(_STORAGE, namespace, name):
            stored = self._store.get(_STORAGE, namespace, name)
            if stored is None:
                self._written.pop((namespace, name), None)
                return
            last = stored.object | {"metadata": dict(stored.object["metadata"])}
            await self._store.remove(_STORAGE, namespace, name, last)
