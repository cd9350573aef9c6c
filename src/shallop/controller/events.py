"""Events: what users read first when something does not happen."""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from weakref import WeakKeyDictionary

from shallop.errors import AlreadyExistsError, ApiError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, format_time

__all__ = ["EventRecorder"]

log = logging.getLogger(__name__)
_EVENT = Gvk("v1", "Event")
_REMEMBERED = 4096
# What happened is of more hurry than telling of it: what is recorded meanwhile is written together, which takes a third
# of the time for each. While one thing happens after the other, more waits for each other.
_DELAY_S, _MAX_DELAY_S = 0.05, 0.2
_PAUSE_S = 0.3
_MOST = 32


class _Told(NamedTuple):
    recorder: EventRecorder
    obj: Object
    reason: str
    message: str
    type: str
    field_path: str
    at: datetime


@dataclass
class _Batch:
    """What waits to be written, or is being written, by one client: all its recorders write together."""

    waiting: list[_Told] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    delay_s: float = _DELAY_S
    begun_at: float = 0.0
    counts: OrderedDict[str, int] = field(default_factory=OrderedDict)  # by the names of Events
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    last: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # by the names of Events


class EventRecorder:
    """
    Writes core/v1 Events in the background; repetitions of one message only count up.

    Recording never waits and never fails the caller: an Event that cannot be written is logged.
    """

    def __init__(self, client: Client, component: str, now: Callable[[], datetime], *, host: str = "") -> None:
        self._client = client
        self._component = component
        self._host = host
        self._now = now
        self._batch = _BATCHES.setdefault(client, _Batch())

    def named(self, component: str) -> EventRecorder:
        """Return a recorder for another component that shares all else with this one."""
        other = copy.copy(self)
        other._component = component
        return other

    def record(self, obj: Object, reason: str, message: str, type: str = "Normal", *, field_path: str = "") -> None:
        """Record that ``reason`` happened to ``obj``; type is Normal or Warning, field_path names a container."""
        batch = self._batch
        batch.waiting.append(_Told(self, obj, reason, message, type, field_path, self._now()))
        if len(batch.waiting) >= _MOST:
            self._begin()
        elif batch.timer is None:
            batch.timer = asyncio.get_running_loop().call_later(batch.delay_s, self._begin)

    async def flush(self) -> None:
        """Write what has been recorded so far, now, and wait for it."""
        self._begin()
        while self._batch.tasks:
            await asyncio.gather(*self._batch.tasks, return_exceptions=True)

    def _begin(self) -> None:
        batch = self._batch
        waiting, batch.waiting = batch.waiting, []
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        now = asyncio.get_running_loop().time()
        goes_on = len(waiting) > 1 and now - batch.begun_at < _PAUSE_S
        batch.begun_at = now
        batch.delay_s = min(2 * batch.delay_s, _MAX_DELAY_S) if goes_on else _DELAY_S
        for told in waiting:
            event = told.recorder._render(told)
            name = event["metadata"]["name"]
            task = asyncio.get_running_loop().create_task(self._write(event, batch.last.get(name)))
            batch.last[name] = task
            batch.tasks.add(task)
            task.add_done_callback(functools.partial(self._finish, name))

    def _count(self, name: str) -> int:
        """Count an Event; 1 = it has not been written yet, as far as we remember."""
        counts = self._batch.counts
        count = counts.pop(name, 0) + 1
        counts[name] = count
        while len(counts) > _REMEMBERED:
            counts.popitem(last=False)
        return count

    def _finish(self, name: str, task: asyncio.Task[None]) -> None:
        self._batch.tasks.discard(task)
        if self._batch.last.get(name) is task:
            del self._batch.last[name]

    def _render(self, told: _Told) -> Object:
        _, obj, reason, message, type_, field_path, at = told
        metadata, now = obj["metadata"], format_time(at)
        involved = {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        if metadata.get("namespace"):
            involved["namespace"] = metadata["namespace"]
        if field_path:
            involved["fieldPath"] = field_path
        identity = "\0".join((involved["uid"], field_path, reason, message, type_, self._component))
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        source = {"component": self._component} | ({"host": self._host} if self._host else {})
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": metadata.get("namespace") or "default"},
            "involvedObject": involved,
            "reason": reason,
            "message": message[:1024],
            "type": type_,
            "source": source,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }

    async def _write(self, event: Object, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        count = self._count(event["metadata"]["name"])
        try:
            if count == 1:
                try:
                    await self._client.create(event)
                    return
                except AlreadyExistsError:
                    count = await self._known_count(event) + 1
            try:
                await self._count_up(event, count)
            except NotFoundError:
                await self._client.create(event)
        except ApiError as error:
            log.warning("event %s of %s not written: %s", event["reason"], event["involvedObject"]["name"], error)

    async def _known_count(self, event: Object) -> int:
        known = await self._client.get(_EVENT, event["metadata"]["name"], event["metadata"]["namespace"])
        count = int(known.get("count", 1))
        self._batch.counts[event["metadata"]["name"]] = count + 1
        return count

    async def _count_up(self, event: Object, count: int) -> None:
        patch = {"count": count, "lastTimestamp": event["lastTimestamp"]}
        await self._client.patch(_EVENT, event["metadata"]["name"], event["metadata"]["namespace"], patch)


_BATCHES: WeakKeyDictionary[Client, _Batch] = WeakKeyDictionary()
