"""Places of Pods that are being started, shared among runs in turn: no run waits for the whole of a large one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["Places", "RunPlaces"]

# A Pod that waits for long, for an environment, a GPU or a claim, must not keep others from starting.
_HELD_S = 1.0


class Places:
    """
    A number of places; runs that find none free get the next ones in turn. Belongs to one event loop.

    Args:
        count: how many Pods may be starting at once.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._queue: deque[RunPlaces] = deque()

    def take(self, run: RunPlaces) -> bool:
        """Take a place at once, or stand in line for one."""
        if self._free and not self._queue:
            self._free -= 1
            return True
        if run not in self._queue:
            self._queue.append(run)
        return False

    def give_back(self) -> None:
        if self._queue:
            self._queue.popleft().grant()
        else:
            self._free += 1

    def leave(self, run: RunPlaces) -> None:
        """Stand in line no more."""
        if run in self._queue:
            self._queue.remove(run)


class RunPlaces:
    """
    What one run holds of them.

    Args:
        wake: called when the run was given a place that it stood in line for.
    """

    def __init__(self, places: Places, wake: Callable[[], None]) -> None:
        self._places = places
        self._wake = wake
        self._granted = 0
        self._held: dict[str, asyncio.TimerHandle] = {}  # by the name of the Pod

    def grant(self) -> None:
        self._granted += 1
        self._wake()

    def take(self, name: str) -> bool:
        """Take a place for a Pod; False: ``wake`` is called when there is one."""
        if self._granted:
            self._granted -= 1
        elif not self._places.take(self):
            return False
        self._held[name] = asyncio.get_running_loop().call_later(_HELD_S, self.give_back, name)
        return True

    def give_back(self, name: str) -> None:
        """Give the place of a Pod to others: it has started, or never will. Nothing happens when it has none."""
        if handle := self._held.pop(name, None):
            handle.cancel()
            self._places.give_back()

    def release(self) -> None:
        """Give back what was granted and is not needed."""
        while self._granted:
            self._granted -= 1
            self._places.give_back()

    def close(self) -> None:
        """Give back everything."""
        self._places.leave(self)
        self.release()
        for name in list(self._held):
            self.give_back(name)
