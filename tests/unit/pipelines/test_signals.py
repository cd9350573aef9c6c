"""Notices of what has changed in a run."""

from __future__ import annotations

import asyncio

from shallop.pipelines.signals import Signals


def test_a_reader_hears_once_of_each_task_that_has_changed() -> None:
    async def read() -> None:
        signals = Signals()
        with signals.subscribed("r") as news:
            signals.notify("r", ["a", "b"])
            signals.notify("r", ["b"])
            signals.notify("other", ["c"])
            await news.wait()
            assert sorted(news.take()) == ["a", "b"]
            assert news.take() == []
            signals.notify("r")
            await asyncio.wait_for(news.wait(), 1)

    asyncio.run(read())


def test_who_follows_one_task_is_not_woken_for_others() -> None:
    async def read() -> None:
        signals = Signals()
        with signals.subscribed("r", "a") as news:
            signals.notify("r", ["b"])
            waiting = asyncio.ensure_future(news.wait())
            await asyncio.sleep(0)
            assert not waiting.done()
            signals.notify("r", ["a", "b"])
            await asyncio.wait_for(waiting, 1)
            news.take()
            signals.notify("r")  # of the run itself: it may be over, or deleted
            await asyncio.wait_for(news.wait(), 1)

    asyncio.run(read())
