"""
Leader election by a Lease: of several replicas at most one acts.

The holder renews its Lease every ``RETRY_S``. Others take it when they have seen it unchanged for ``LEASE_S`` by their
own clock. A holder that could not renew for ``RENEW_S``, counted from before its last good renewal was sent, stops, so
that ``LEASE_S - RENEW_S`` remain between its last write and the first of its successor.

Source: coordination.k8s.io/v1; the durations are those of controllers on Kubernetes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from shallop.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Key, Object

__all__ = ["Elector", "LeaseTimes", "Seen", "next_lease"]

log = logging.getLogger(__name__)
LEASE = Gvk("coordination.k8s.io/v1", "Lease")


@dataclass(frozen=True)
class LeaseTimes:
    """How long a Lease holds, how long its holder may act without renewing it, how often it tries; in seconds."""

    lease_s: float = 15.0
    renew_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.retry_s < self.renew_s < self.lease_s:
            raise ValueError("a Lease needs retry_s < renew_s < lease_s")


class Seen(NamedTuple):
    """A state of the Lease and when, by our own clock, we first saw it."""

    version: str
    at: float


def boottime() -> float:
    """Seconds that go on while the machine sleeps: a Lease does not wait for us to wake up."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else time.monotonic()


def next_lease(lease: Object, me: str, seen: Seen, now: float, wall: datetime) -> dict[str, Any] | None:
    """
    Decide what to write into a Lease to hold it.

    Args:
        seen: this version of the Lease and when we first saw it.
        now: our own clock, the one of ``seen``.
        wall: aware UTC time, for people who look at the Lease.

    Returns:
        The new spec without a duration; None while another one holds it.
    """
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    stamp = wall.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if holder == me:
        return {**spec, "renewTime": stamp}
    if holder and now - seen.at < float(spec.get("leaseDurationSeconds") or 0):
        return None
    transitions = int(spec.get("leaseTransitions") or 0) + 1
    return {**spec, "holderIdentity": me, "acquireTime": stamp, "renewTime": stamp, "leaseTransitions": transitions}


class Elector:
    """
    Runs something only while we are the leader.

    Args:
        client: must not be the one that ``may_write`` guards, or nobody could take a Lease.
        me: unique among replicas, also among a Pod's restarts.
    """

    def __init__(
        self,
        client: Client,
        lease: Key,
        me: str,
        times: LeaseTimes | None = None,
        *,
        clock: Callable[[], float] = boottime,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._lease = lease
        self._me = me
        self._times = times or LeaseTimes()
        self._clock = clock
        self._now = now
        self._seen = Seen("", 0.0)
        self._until = float("-inf")

    def may_write(self) -> bool:
        """Whether nobody else can be the leader at this moment; asked before every write."""
        return self._clock() < self._until

    async def lead(self, act: Callable[[], Awaitable[None]]) -> None:
        """Wait until we are the leader and run ``act``; returns when it is over or the lead is lost, then for good."""
        while not (await self._try() and self.may_write()):  # noqa: ASYNC110 other processes change it
            await asyncio.sleep(self._times.retry_s * random.uniform(0.8, 1.2))
        log.info("%s leads (Lease %s)", self._me, self._lease)
        acting = asyncio.ensure_future(act())
        try:
            await self._hold(acting)
        finally:
            acting.cancel()
            await asyncio.wait([acting])
        if not acting.cancelled():
            acting.result()

    async def _hold(self, acting: asyncio.Future[None]) -> None:
        while not acting.done():
            if not self.may_write():
                log.error("%s lost Lease %s: not renewed for %s s", self._me, self._lease, self._times.renew_s)
                return
            await asyncio.wait([acting], timeout=min(self._times.retry_s, max(self._until - self._clock(), 0.0)))
            if not acting.done():
                try:
                    async with asyncio.timeout(max(self._until - self._clock(), 0.0)):
                        held = await self._try()
                except TimeoutError:
                    continue
                if not held and not self.may_write():
                    return

    async def release(self) -> None:
        """Give the Lease back at a planned end, so that the next one need not wait."""
        if self._until == float("-inf"):
            return
        self._until = float("-inf")
        try:
            lease = await self._client.get(LEASE, self._lease.name, self._lease.namespace)
            if (lease.get("spec") or {}).get("holderIdentity") == self._me:
                await self._client.update({**lease, "spec": {**lease["spec"], "holderIdentity": ""}})
        except (ApiError, OSError, TimeoutError) as error:
            log.warning("Lease %s not released: %s", self._lease, error)

    async def _try(self) -> bool:
        """Take or renew the Lease; a failure is one try lost, never an error."""
        sent = self._clock()
        try:
            held = await self._write()
        except (AlreadyExistsError, ConflictError):
            return False  # somebody was faster
        except (ApiError, OSError, TimeoutError) as error:
            log.warning("Lease %s: %s", self._lease, error)
            return False
        if held:
            self._until = sent + self._times.renew_s
        return held

    async def _write(self) -> bool:
        duration = {"leaseDurationSeconds": max(1, round(self._times.lease_s))}
        try:
            lease = await self._client.get(LEASE, self._lease.name, self._lease.namespace)
        except NotFoundError:
            metadata = {"name": self._lease.name, "namespace": self._lease.namespace}
            lease = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata}
            spec = next_lease(lease, self._me, self._seen, self._clock(), self._now())
            await self._client.create({**lease, "spec": {**(spec or {}), **duration}})
            return True
        version = f"{lease['metadata']['uid']} {lease['metadata']['resourceVersion']}"
        if self._seen.version != version:
            self._seen = Seen(version, self._clock())
        spec = next_lease(lease, self._me, self._seen, self._clock(), self._now())
        if spec is None:
            self._until = float("-inf")  # also where somebody took it from us by hand
            return False
        await self._client.update({**lease, "spec": {**spec, **duration}})
        return True
