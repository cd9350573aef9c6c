"""The work queue: nothing lost, nothing twice at once."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from shallop.controller import WorkQueue


def test_a_key_added_twice_is_handed_out_once() -> None:
    async def scenario() -> list[str]:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        queue.add("a")
        queue.add("b")
        return [await queue.get(), await queue.get(), str(len(queue))]

    assert asyncio.run(scenario()) == ["a", "b", "0"]


def test_a_key_added_while_it_is_worked_on_comes_again_only_after_done() -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        key = await queue.get()
        queue.add("a")
        waiter = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        assert not waiter.done()
        queue.done(key)
        assert await asyncio.wait_for(waiter, 1) == "a"

    asyncio.run(scenario())


def test_back_off_doubles_and_forget_resets_it() -> None:
    async def scenario() -> tuple[list[float], float]:
        queue: WorkQueue[str] = WorkQueue()
        delays = [queue.retry("a") for _ in range(20)]
        queue.forget("a")
        return delays, queue.retry("a")

    delays, fresh = asyncio.run(scenario())
    assert delays[:4] == [0.005, 0.01, 0.02, 0.04]
    assert delays[-1] == 60.0
    assert fresh == 0.005


def test_the_earliest_of_several_delays_counts() -> None:
    async def scenario() -> str:
        queue: WorkQueue[str] = WorkQueue()
        queue.add_after("a", 3600)
        queue.add_after("a", 0.001)
        queue.add_after("a", 7200)
        return await asyncio.wait_for(queue.get(), 5)

    assert asyncio.run(scenario()) == "a"


def test_a_cancelled_waiter_does_not_swallow_a_key() -> None:
    async def scenario() -> str:
        queue: WorkQueue[str] = WorkQueue()
        first = asyncio.create_task(queue.get())
        second = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.add("a")
        first.cancel()
        return await asyncio.wait_for(second, 1)

    assert asyncio.run(scenario()) == "a"


@given(st.lists(st.tuples(st.sampled_from(["add", "get", "done"]), st.integers(0, 4)), max_size=60))
def test_no_key_is_lost_and_none_has_two_workers(steps: list[tuple[str, int]]) -> None:
    async def scenario() -> None:
        queue: WorkQueue[int] = WorkQueue()
        active: list[int] = []
        owed: set[int] = set()
        for action, key in steps:
            if action == "add":
                queue.add(key)
                owed.add(key)
            elif action == "get" and len(queue) and any(k not in active for k in owed):
                got = await asyncio.wait_for(queue.get(), 1)
                assert got not in active
                assert got in owed
                active.append(got)
                owed.discard(got)
            elif action == "done" and key in active:
                active.remove(key)
                queue.done(key)
        for key in list(active):
            queue.done(key)
        rest = {await asyncio.wait_for(queue.get(), 1) for _ in range(len(queue))}
        assert rest == owed

    asyncio.run(scenario())
