"""
Fork-servers, one for each environment in use: started when first asked for, adopted after a restart, ended when idle.

The protocol is that of ``shallop_pod.zygote``; who starts a process talks to the socket itself (``zygote.spawn``), so
that a process and its exit code do not depend on the control plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
from collections import OrderedDict
from pathlib import Path

import anyio
import anyio.to_thread

import shallop_pod
from shallop.embedded.kubelet.environments import Environment
from shallop.errors import NodeError
from shallop.priority import steps_behind
from shallop.settings import Settings
from shallop_pod.zygote import connect

__all__ = ["ForkServer", "Zygotes", "link_pod_package"]

_START_TIMEOUT_S = 120.0
_LAST_FILE = "last-with-imports"


def link_pod_package(settings: Settings) -> Path:
    """
    Return the folder for PYTHONPATH of a Pod's processes: it holds ``shallop_pod``, its ``sitecustomize``, and no more.

    The package's own parent would not do: it is the site-packages folder of the control plane.
    """
    folder = settings.run / "python"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _link(folder / "shallop_pod", _package_folder())
    _link(folder / "sitecustomize.py", _package_folder() / "sitecustomize.py")
    return folder


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and Path(os.readlink(link)) == target:
        return
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    os.replace(temporary, link)


def _package_folder() -> Path:
    return Path(shallop_pod.__path__[0]).resolve()


def _code_stamp() -> str:
    """A name for the code that a fork-server has loaded; after an upgrade the old ones are not adopted."""
    stats = [(path.name, path.stat().st_mtime_ns) for path in sorted(_package_folder().rglob("*.py"))]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:8]


class ForkServer:
    """A fork-server that listened; its process is held by a descriptor, so that asking whether it lives is cheap."""

    def __init__(self, path: Path, pid: int) -> None:
        self.path = path
        self._pid = pid
        self._process = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
        self._news = select.poll()
        if self._process >= 0:
            self._news.register(self._process, select.POLLIN)

    @classmethod
    def at(cls, path: Path) -> ForkServer | None:
        """Return the one that listens at a socket; None when none does."""
        pid = _pid_at(path)
        return None if pid is None else cls(path, pid)

    def is_alive(self) -> bool:
        if self._process < 0:
            return _pid_at(self.path) == self._pid
        # One that was told to stop takes its socket away and goes on for its processes.
        return not self._news.poll(0) and os.path.exists(self.path)

    def end(self) -> None:
        """Let it take no more work; processes that it started go on."""
        if self.is_alive():
            os.kill(self._pid, signal.SIGTERM)
        self.forget()

    def forget(self) -> None:
        if self._process >= 0:
            os.close(self._process)
            self._process = -1


def _pid_at(path: Path) -> int | None:
    """Return who listens at a socket; None when nobody does."""
    try:
        with connect(str(path)) as connection:
            return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    except OSError:
        return None


class Zygotes:
    """
    The fork-servers of one instance.

    Args:
        folder: for sockets and logs, one of each a fork-server; 0700.
        python_path: what :func:`link_pod_package` returned.
        limit: how many are kept; the least recently asked for ends first.
        idle_s: seconds without work after which one ends by itself.
    """

    def __init__(self, folder: Path, python_path: Path, *, limit: int, idle_s: float) -> None:
        self._folder = folder
        self._python_path = python_path
        self._limit = limit
        self._idle_s = idle_s
        self._zygotes: OrderedDict[str, ForkServer] = OrderedDict()
        self._starting: dict[str, anyio.Lock] = {}
        self._starts: set[asyncio.Future[ForkServer]] = set()
        self._stamp = _code_stamp()

    @classmethod
    def of(cls, settings: Settings) -> Zygotes:
        """The fork-servers that one instance uses."""
        limit, idle_s = settings.max_zygotes, settings.zygote_idle_s
        return cls(settings.run / "zygotes", link_pod_package(settings), limit=limit, idle_s=idle_s)

    async def socket(self, environment: Environment) -> Path:
        """
        Return the socket of the environment's fork-server, which listens; the first call takes as long as its imports.

        It may still end before it is used (idle, killed): ``zygote.spawn`` then raises ZygoteError, and the caller asks
        again or starts the process without it.

        Raises:
            NodeError: it cannot be started; the text has what it printed.
        """
        key = environment.key
        async with self._starting.setdefault(key, anyio.Lock()):
            zygote = self._zygotes.get(key)
            if zygote is None or not zygote.is_alive():
                if zygote is not None:
                    zygote.forget()
                path = self._folder / f"{key[:16]}-{self._stamp}.sock"
                zygote = ForkServer.at(path) or await self._start_whole(environment, path)
                self._zygotes[key] = zygote
            self._zygotes.move_to_end(key)
        self._end_oldest()
        return zygote.path

    def ready(self, environment: Environment) -> Path | None:
        """Return the socket of a fork-server that listens, as ``socket`` does; None when that must be seen to."""
        zygote = self._zygotes.get(environment.key)
        if zygote is None or not zygote.is_alive():
            return None
        self._zygotes.move_to_end(environment.key)
        return zygote.path

    @property
    def count(self) -> int:
        """How many were asked for and not ended for lack of room."""
        return len(self._zygotes)

    def last_with_imports(self) -> str:
        """Return the key of the environment whose fork-server with imports was started last in this home."""
        try:
            return (self._folder / _LAST_FILE).read_text()
        except OSError:
            return ""

    async def settle(self) -> None:
        """Wait for those that are being started: ``stop`` finds only those that listen."""
        await asyncio.gather(*self._starts, return_exceptions=True)

    def stop(self) -> None:
        """End all, those of an earlier process too; one whose processes still run ends after the last of them."""
        told = set()
        for zygote in self._zygotes.values():
            zygote.end()
            told.add(zygote.path)
        self._zygotes.clear()
        for path in set(self._folder.glob("*.sock")) - told:
            with contextlib.suppress(ProcessLookupError):  # it ends by itself just now
                if (left := ForkServer.at(path)) is not None:
                    left.end()

    def _end_oldest(self) -> None:
        while len(self._zygotes) > self._limit:
            self._zygotes.popitem(last=False)[1].end()

    async def _start_whole(self, environment: Environment, path: Path) -> ForkServer:
        """Start one to the end, though the caller be cancelled: see ``settle``."""
        start = asyncio.ensure_future(self._start(environment, path))
        self._starts.add(start)
        start.add_done_callback(self._starts.discard)
        return await asyncio.shield(start)

    async def _start(self, environment: Environment, path: Path) -> ForkServer:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = path.with_suffix(".log")
        ready = await anyio.to_thread.run_sync(self._spawn, environment, path, log)
        try:
            # The pipe ends with the process. Should it start too late, it finds nobody at the pipe and ends.
            with anyio.move_on_after(_START_TIMEOUT_S):
                await anyio.to_thread.run_sync(os.read, ready, 16, abandon_on_cancel=True)
        finally:
            os.close(ready)
        zygote = ForkServer.at(path)
        if zygote is None:
            text = log.read_text(errors="replace")[-500:].strip() or "it printed nothing"
            raise NodeError(
                f"image '{environment.spec.image}': the fork-server of {environment.path} did not start: {text}. "
                f"Remove the environment ('shallop env remove {environment.key}'), it will be built again."
            )
        if environment.preload:
            with contextlib.suppress(OSError):  # a note for the next start, no more
                (self._folder / _LAST_FILE).write_text(environment.key)
        return zygote

    def _spawn(self, environment: Environment, path: Path, log: Path) -> int:
        """Start the process; returns the pipe on which it says that it listens."""
        read_end, write_end = os.pipe()
        command = [str(environment.python), "-m", "shallop_pod.zygote", "--socket", str(path)]
        command += [word for module in environment.preload for word in ("--preload", module)]
        command += ["--idle-s", str(self._idle_s), "--ready-fd", str(write_end), "--nicer", str(steps_behind())]
        try:
            log.touch(mode=0o600)
            with log.open("wb") as output:
                subprocess.run(
                    command,
                    env={
                        "PATH": f"{environment.path}/bin:{os.environ.get('PATH', os.defpath)}",
                        "PYTHONPATH": str(self._python_path),
                        "HOME": "/",
                        "LANG": "C.UTF-8",
                    },
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[write_end],
                    check=False,  # a failure shows on the pipe and in the log
                )
        except OSError as error:
            os.close(read_end)
            raise NodeError(f"{environment.python}: {error.strerror}") from error
        finally:
            os.close(write_end)
        return read_end
