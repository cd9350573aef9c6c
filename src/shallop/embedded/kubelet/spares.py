"""
Sandboxes made in advance: a shim with its network costs 10-40 ms, which a Pod's start need not wait for.

Those of Pods that are over are used again, with the folders that every container has, so that a chain of tasks makes
none at all: file systems that look for inodes that were not in use lately (ext4) take 0.1 ms for each.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from shallop.embedded.kubelet.network import Network
from shallop.embedded.kubelet.podfolder import clear_folder, clear_quickly
from shallop.embedded.kubelet.sandbox import NetworkOptions, Sandbox, kill_shim
from shallop.embedded.kubelet.volumes import TokenVolume
from shallop.errors import NodeError

__all__ = ["Spares"]

log = logging.getLogger(__name__)
_KEPT = 3
_MOST = 8


class Spares:
    """
    A few sandboxes without a Pod.

    Args:
        folder: for their sockets; 0700.
        zygote: gives the socket of the fork-server that shims come from.
    """

    def __init__(self, folder: Path, network: Network, zygote: Callable[[], Awaitable[Path]]) -> None:
        self._folder = folder
        self._network = network
        self._zygote = zygote
        self._ready: list[tuple[str, Sandbox]] = []
        self._taken = asyncio.Event()

    async def run(self) -> None:
        """Keep the stock filled until cancelled; what is left then is ended by the next start."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            while len(self._ready) < _KEPT:
                try:
                    self._ready.append(await self._make())
                except (NodeError, OSError) as error:
                    log.warning("no spare sandbox: %s", error)
                    await asyncio.sleep(5)
            self._taken.clear()
            await self._taken.wait()

    async def _make(self) -> tuple[str, Sandbox]:
        name = f"spare-{os.urandom(5).hex()}"
        folder = self._folder / name
        folder.mkdir(mode=0o700)
        network = NetworkOptions("", "", 0, "")
        if self._network.own_network:
            address = self._network.allocate(name)
            network = NetworkOptions(self._network.bridge, address, self._network.prefix, self._network.gateway)
        return name, await Sandbox.create(folder, await self._zygote(), network, lambda _: None)

    def take(self, uid: str, folder: Path, tell: Callable[[dict[str, Any] | None], None]) -> Sandbox | None:
        """Return a sandbox that now belongs to a Pod, with its address; None when the stock is empty."""
        while self._ready:
            name, sandbox = self._ready.pop(0)
            self._taken.set()
            if not sandbox.alive:
                self._network.release(name)
                continue
            try:
                os.rename(sandbox.folder, folder)
            except OSError as error:
                # It has files of an earlier start: such a Pod gets a sandbox of its own.
                log.debug("no spare for %s: %s", folder, error)
                self._ready.append((name, sandbox))
                return None
            if self._network.own_network:
                self._network.hand_over(name, uid)
            sandbox.move(folder, tell)
            return sandbox
        return None

    async def give_back(self, uid: str, sandbox: Sandbox, container: str, token: TokenVolume | None) -> bool:
        """
        Keep the sandbox of a Pod that is over for the next one, with its folder; False when it is of no use.

        All its processes must have ended with their PID namespaces; what is kept is the shim, network and address.

        Args:
            container: whose folders are kept, those that are as they were made; empty for none.
            token: what the volume of its token holds.
        """
        if not self._is_wanted(sandbox):
            return False
        if not clear_quickly(str(sandbox.folder), container, token, sandbox.kept):
            sandbox.kept = await asyncio.to_thread(clear_folder, str(sandbox.folder), container, token)
            if not self._is_wanted(sandbox):
                return False
        folder = self._folder / f"spare-{uid}"
        name = folder.name
        os.rename(sandbox.folder, folder)
        sandbox.move(folder, lambda _: None)
        if self._network.own_network:
            self._network.hand_over(uid, name)
        self._ready.append((name, sandbox))
        return True

    def _is_wanted(self, sandbox: Sandbox) -> bool:
        return len(self._ready) < _MOST and sandbox.alive and not sandbox.started

    async def end_all(self) -> None:
        """End every spare of this home, those of an earlier process too."""
        for _, spare in self._ready:
            spare.leave()
        self._ready.clear()
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            sandbox = await Sandbox.adopt(folder, lambda _: None)
            if sandbox is not None:
                await sandbox.quit()
            # One that was just forked may not listen yet: without its folder it ends, or it has written who it is.
            gone = folder.rename(folder.with_name(f".{folder.name}"))
            kill_shim(gone)
            await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)
