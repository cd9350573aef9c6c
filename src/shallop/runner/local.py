"""``--local-only``: the same engine for the time of one command, on a home of its own; no server stays behind."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from shallop import instance
from shallop.errors import SettingsError
from shallop.runner.client import PipelinesClient
from shallop.settings import Settings

__all__ = ["run_locally"]

_ENDING_S = 10.0


def run_locally(settings: Settings, session: Callable[[str], int]) -> int:
    """
    Start the engine, call ``session`` with its URL in a thread, stop it.

    The home is kept, so that the next command finds cached steps; while another command uses it, a temporary one.
    Ctrl-C and SIGTERM end the session's runs with it: none goes on when the engine is started again.
    """
    logging.basicConfig(level=logging.ERROR)
    ports: dict[str, Any] = {field.name: 0 for field in fields(settings) if field.name.endswith("_port")}
    settings = replace(settings, **ports)
    try:
        lock = instance.Lock(settings)
    except SettingsError:
        folder = Path(tempfile.mkdtemp(prefix="shallop-local-"))
        try:
            return _run(replace(settings, home=folder), session)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    code = _run(settings, session)
    del lock
    return code


def _run(settings: Settings, session: Callable[[str], int]) -> int:
    import uvloop

    from shallop.platform import Platform

    async def main() -> int:
        platform = Platform(settings)
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with platform.running() as bound:
            working = asyncio.create_task(asyncio.to_thread(session, bound.web_url))
            try:
                return await asyncio.shield(working)
            except asyncio.CancelledError:
                await asyncio.to_thread(PipelinesClient(bound.web_url).terminate_runs)
                # It hears that its run is over.
                await asyncio.wait([working], timeout=_ENDING_S)
                raise
            finally:
                platform.keep_pods = False

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(main())
        except asyncio.CancelledError:
            return 128 + signal.SIGTERM
