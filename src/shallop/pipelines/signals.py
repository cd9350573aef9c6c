"""In-process notices: a run has changed, or tasks of it. How is in the rows; a notice only says "look again"."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Iterator, Sequence

from shallop.store.database import Database

__all__ = ["News", "Signals", "signals_of"]


class News:
    """What has changed in a run since one reader looked; with ``only``, of its tasks that one counts."""

    def __init__(self, only: str = "") -> None:
        self._only = only
        self._tasks: set[str] = set()
        self._changed = asyncio.Event()

    def add(self, tasks: Sequence[str]) -> None:
        if not tasks or not self._only or self._only in tasks:
            self._tasks.update(tasks)
            self._changed.set()

    async def wait(self) -> None:
        await self._changed.wait()

    def take(self) -> list[str]:
        """Return the ids of tasks that have changed, and forget them; call before looking."""
        tasks = list(self._tasks)
        self._tasks.clear()
        self._changed.clear()
        return tasks


class Signals:
    """
    Notices from the driver to those who show a run, and from the API to the driver.

    ``artifacts`` is the highest id of an artifact that was given out: both make some.
    """

    def __init__(self) -> None:
        self.artifacts = 0
        self._readers: dict[str, set[News]] = {}
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

    def notify(self, run_id: str, tasks: Sequence[str] = ()) -> None:
        """Tell those who show this run that its row, and these of its tasks, have changed."""
        for news in self._readers.get(run_id, ()):
            news.add(tasks)

    @contextlib.contextmanager
    def subscribed(self, run_id: str, only: str = "") -> Iterator[News]:
        """Collect what changes in a run, or in one task of it, from now on."""
        news = News(only)
        self._readers.setdefault(run_id, set()).add(news)
        try:
            yield news
        finally:
            self._readers[run_id].discard(news)
            if not self._readers[run_id]:
                del self._readers[run_id]


_BY_DATABASE: weakref.WeakKeyDictionary[Database, Signals] = weakref.WeakKeyDictionary()


def signals_of(database: Database) -> Signals:
    """Return the signals of one instance: its routes and its driver share a database and nothing else."""
    return _BY_DATABASE.setdefault(database, Signals())
