from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shallop.pipelines.places import Places, RunPlaces


class Run:
    """A run with tasks to start; notes in ``starts`` which run started one."""

    def __init__(self, name: str, places: Places, tasks: int, starts: list[str]) -> None:
        self.name, self.left, self.started, self.starts = name, tasks, 0, starts
        self.places = RunPlaces(places, lambda: asyncio.get_running_loop().call_soon(self.go))

    def go(self) -> None:
        while self.left and self.places.take(f"{self.name}{self.started}"):
            self.left, self.started = self.left - 1, self.started + 1
            self.starts.append(self.name)
        if not self.left:
            self.places.release()


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(main())


async def ended(run: Run, number: int) -> None:
    run.places.give_back(f"{run.name}{number}")
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_small_run_does_not_wait_for_a_large_one() -> None:
    async def scenario() -> None:
        starts: list[str] = []
        places = Places(2)
        large, small = Run("large", places, 100, starts), Run("small", places, 3, starts)
        large.go()
        small.go()
        assert starts == ["large", "large"]
        for number in range(7):
            oldest = starts[number]
            await ended(large if oldest == "large" else small, starts[:number].count(oldest))
        assert starts == ["large"] * 3 + ["small", "large"] * 3

    play(scenario)


def test_places_that_are_not_needed_go_to_others() -> None:
    async def scenario() -> None:
        starts: list[str] = []
        places = Places(1)
        first, canceled, last = (Run(name, places, 1, starts) for name in ("first", "canceled", "last"))
        first.go()
        canceled.go()
        last.go()
        canceled.left = 0
        await ended(first, 0)
        assert starts == ["first", "last"]
        last.places.close()
        first.left = 1
        first.go()
        assert starts == ["first", "last", "first"]

    play(scenario)


def test_a_pod_that_waits_for_long_keeps_nobody_from_starting() -> None:
    async def scenario() -> None:
        starts: list[str] = []
        places = Places(1)
        stuck, other = Run("stuck", places, 1, starts), Run("other", places, 1, starts)
        stuck.go()
        other.go()
        while other.left:
            await asyncio.sleep(0.01)
        assert starts == ["stuck", "other"]
        stuck.places.give_back("stuck0")
        other.places.give_back("other0")
        third = Run("third", places, 2, starts)
        third.go()
        assert starts.count("third") == 1

    play(scenario)
