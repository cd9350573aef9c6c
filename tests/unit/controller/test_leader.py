"""Of several replicas at most one may write at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shallop.controller.leader import LEASE, Elector, LeaseTimes, Seen, next_lease
from shallop.embedded.apiserver import ApiServer
from shallop.errors import UnavailableError
from shallop.kube.objects import Key

WALL = datetime(2030, 1, 1, tzinfo=UTC)
TIMES = LeaseTimes(15, 10, 2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def serving() -> AsyncIterator[Any]:
    server = ApiServer(None, admin_token="t")
    await server.start()
    try:
        yield server.client()
    finally:
        await server.stop()


def lease(holder: str, seconds: int = 15) -> dict[str, Any]:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": 1}
    return {"metadata": {"name": "l"}, "spec": spec}


def test_a_lease_is_taken_only_when_it_was_silent_for_its_duration() -> None:
    assert next_lease(lease("other"), "me", Seen("1", 100.0), 114.9, WALL) is None
    taken = next_lease(lease("other"), "me", Seen("1", 100.0), 115.0, WALL)
    assert taken is not None and (taken["holderIdentity"], taken["leaseTransitions"]) == ("me", 2)


def test_a_lease_that_was_given_back_is_taken_at_once_and_ones_own_is_renewed() -> None:
    taken = next_lease(lease(""), "me", Seen("1", 100.0), 100.0, WALL)
    assert taken is not None and taken["leaseTransitions"] == 2
    renewed = next_lease(lease("me"), "me", Seen("1", 100.0), 100.0, WALL)
    assert renewed is not None and renewed["leaseTransitions"] == 1


def test_the_durations_must_leave_a_gap() -> None:
    with pytest.raises(ValueError, match="retry_s < renew_s < lease_s"):
        LeaseTimes(10, 10, 2)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 9)), max_size=40))
def test_two_never_may_write_at_once(steps: list[tuple[str, float]]) -> None:
    """Each step lets some time pass and one of the two try; whoever is stopped just does not try."""

    async def play() -> None:
        async with serving() as client:
            clock = Clock()
            electors = {n: Elector(client, Key("default", "l"), n, TIMES, clock=clock) for n in "ab"}
            for name, passed in steps:
                clock.now += passed
                await electors[name]._try()
                assert sum(elector.may_write() for elector in electors.values()) <= 1

    asyncio.run(play())


def test_a_leader_that_cannot_renew_stops_before_its_lease_can_be_taken() -> None:
    class Cut:
        """A connection that fails from some moment on."""

        def __init__(self, client: Any) -> None:
            self.client, self.broken = client, False

        def __getattr__(self, name: str) -> Any:
            if self.broken:
                raise UnavailableError("no route to host")
            return getattr(self.client, name)

    async def play() -> None:
        async with serving() as client:
            cut, begun = Cut(client), asyncio.Event()
            stopped = False

            async def act() -> None:
                nonlocal stopped
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped = True

            elector = Elector(cut, Key("default", "l"), "a", LeaseTimes(0.4, 0.2, 0.02))
            leading = asyncio.create_task(elector.lead(act))
            await begun.wait()
            assert elector.may_write()
            cut.broken = True
            await asyncio.wait_for(leading, 30)
            assert stopped and not elector.may_write()

    asyncio.run(play())


def test_the_end_of_the_work_is_the_end_of_the_lead_and_the_lease_is_given_back() -> None:
    async def play() -> None:
        async with serving() as client:

            async def fail() -> None:
                raise RuntimeError("work failed")

            elector = Elector(client, Key("default", "l"), "a", TIMES)
            with pytest.raises(RuntimeError, match="work failed"):
                await elector.lead(fail)
            assert (await client.get(LEASE, "l", "default"))["spec"]["holderIdentity"] == "a"
            await elector.release()
            assert (await client.get(LEASE, "l", "default"))["spec"].get("holderIdentity", "") == ""
            assert not elector.may_write()

    asyncio.run(play())
