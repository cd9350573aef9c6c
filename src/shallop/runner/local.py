"""``--local-only``: the same engine for the time of one command, on a home of its own; no server stays behind."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from shallop import instance
from shallop.errors import SettingsError
from shallop.settings import Settings

__all__ = ["run_locally"]


def run_locally(settings: Settings, session: Callable[[str], int]) -> int:
    """
    Start the engine, call ``session`` with its URL in a thread, stop it.

    Its home is kept, so that the next command finds cached steps; while another command uses it, a temporary one.
    """
    logging.basicConfig(level=logging.ERROR)
    ports: dict[str, Any] = {field.name: 0 for field in fields(settings) if field.name.endswith("_port")}
    settings = replace(settings, home=settings.cache / "local", **ports)
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
        async with platform.running() as bound:
            try:
                return await asyncio.to_thread(session, bound.web_url)
            finally:
                platform.keep_pods = False

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
