"""In-process notices: a run has changed. What changed is in the rows; a notice only says "look again"."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Iterator

from shallop.store.database import Database

__all__ = ["Signals", "signals_of"]


class Signals:
    """
    Notices from the driver to those who show a run, and from the API to the driver.

    ``artifacts`` is the highest id of an artifact that was given out: both make some.
    """

    def __init__(self) -> None:
        self.artifacts = 0
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._requested: dict[str, None] = {}
        self._any_requested = asyncio.Event()
        self._schedules = asyncio.Event()

    def request(self, run_id: str) -> None:
        """Tell the driver that a client has written something about this run: new, cancel, retry or delete."""
        self._requested[run_id] = None
        self._any_requested.set()

    async def requested(self) -> list[str]:
        """Wait for requests; return the runs that have some, in order. One caller: the driver."""
        await self._any_requested.wait()
        self._any_requested.clear()
        run_ids = list(self._requested)
        self._requested.clear()
        return run_ids

    def reschedule(self) -> None:
        """Tell the scheduler of recurring runs to look again: one of them is new or different, or a run is over."""
        self._schedules.set()

    async def rescheduled(self) -> None:
        """Wait for such a notice. One caller: the scheduler."""
        await self._schedules.wait()
        self._schedules.clear()

    def notify(self, run_id: str) -> None:
        """Tell those who show this run that its rows have changed."""
        for event in self._waiters.get(run_id, ()):
            event.set()

    @contextlib.contextmanager
    def subscribed(self, run_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever the run changes; clear it before looking."""
        event = asyncio.Event()
        self._waiters.setdefault(run_id, set()).add(event)
        try:
            yield event
        finally:
            self._waiters[run_id].discard(event)
            if not self._waiters[run_id]:
                del self._waiters[run_id]


_BY_DATABASE: weakref.WeakKeyDictionary[Database, Signals] = weakref.WeakKeyDictionary()


def signals_of(database: Database) -> Signals:
    """Return the signals of one instance: its routes and its driver share a database and nothing else."""
    return _BY_DATABASE.setdefault(database, Signals())
