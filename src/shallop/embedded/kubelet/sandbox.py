"""The node's side of a Pod's shim: starting it, finding it again, asking it, hearing how containers end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from shallop.embedded.kubelet.podfolder import NOTHING
from shallop.errors import NodeError
from shallop_pod.shim import process_start
from shallop_pod.zygote import Request, ZygoteError, short_address, spawn

__all__ = ["Ended", "NetworkOptions", "Sandbox", "end_orphans", "kill_shim", "read_ended"]

_CONNECT_S = 10.0
_INTERRUPTED = "interrupted.json"


class NetworkOptions(NamedTuple):
    """Where a Pod's network is attached; an empty bridge leaves the Pod in the machine's network."""

    bridge: str
    address: str
    prefix: int
    gateway: str


class Ended(NamedTuple):
    """How one run of a container ended; times in seconds since the epoch."""

    id: str
    code: int
    signal: int | None
    started_at: float
    at: float
    cpu_s: float = 0.0
    max_rss_bytes: int = 0


def read_ended(folder: Path) -> dict[str, Ended]:
    """Return the recorded ends of a Pod's containers, by id."""
    found = {}
    for path in folder.glob("*.exit"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            ended = Ended(**json.loads(path.read_text()))
            found[ended.id] = ended
    return found


def write_interrupted(folder: Path, ids: Sequence[str]) -> None:
    """Note which runs of containers the node itself ended, because the platform was stopped."""
    if ids:
        (folder / _INTERRUPTED).write_text(json.dumps(list(ids)))


def take_interrupted(folder: Path) -> list[str]:
    """Return what was noted, once."""
    try:
        ids: list[str] = json.loads((folder / _INTERRUPTED).read_text())
    except (OSError, ValueError):
        return []
    (folder / _INTERRUPTED).unlink()
    return ids


class Sandbox(asyncio.Protocol):
    """
    A live shim.

    Args:
        started: containers that it runs: id -> ``{"pid": int, "at": seconds}``.
        kept: what its folder has of the Pod before.
        tell: called in the event loop with each event of the shim; None when the shim is gone.
    """

    def __init__(self, folder: Path, tell: Callable[[dict[str, Any] | None], None]) -> None:
        self.folder = folder
        self.started: dict[str, dict[str, Any]] = {}
        self.kept = NOTHING
        self._tell = tell
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        loop = asyncio.get_running_loop()
        # Whether it has said what it runs; done when it is gone.
        self._greeted: asyncio.Future[bool] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._received = b""
        self._pid = 0
        self._early: list[dict[str, Any] | None] | None = []  # told when whoever connects has the sandbox
        # It may have been a spare whose move was cut short.
        self._moved = True

    @classmethod
    async def create(
        cls, folder: Path, zygote: Path, network: NetworkOptions, tell: Callable[[dict[str, Any] | None], None]
    ) -> Sandbox:
        """
        Fork a shim for a new Pod.

        Raises:
            NodeError: it could not be started.
        """
        argv = ["--folder", str(folder)]
        if network.bridge:
            veth = "sh" + os.urandom(5).hex()
            argv += ["--bridge", network.bridge, "--veth", veth, "--address", network.address]
            argv += ["--prefix", str(network.prefix), "--gateway", network.gateway]
        log = os.open(folder / "shim.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        request = Request(
            "shallop_pod.shim", argv, {"PATH": os.defpath, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        )
        try:
            pid = await asyncio.to_thread(_spawn, str(zygote), request, (null, log, log))
        except ZygoteError as error:
            raise NodeError(f"the shim of the Pod cannot be started: {error}") from error
        finally:
            os.close(log)
            os.close(null)
        deadline = asyncio.get_running_loop().time() + _CONNECT_S
        delay = 0.001
        while True:
            found = await cls.adopt(folder, tell)
            if found is not None:
                return found
            if asyncio.get_running_loop().time() > deadline or process_start(pid) is None:
                text = (folder / "shim.log").read_text(errors="replace").strip()[-500:]
                raise NodeError(f"the shim of the Pod ended: {text or 'no message'}")
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 0.05)

    @classmethod
    async def adopt(cls, folder: Path, tell: Callable[[dict[str, Any] | None], None]) -> Sandbox | None:
        """Connect to the shim that runs in a folder; None when there is none."""
        loop = asyncio.get_running_loop()
        try:
            with short_address(str(folder / "shim.sock")) as address:
                _, sandbox = await loop.create_unix_connection(lambda: cls(folder, tell), address)
        except OSError:
            return None
        greeted = False
        try:
            greeted = await sandbox._greeted
        finally:
            if not greeted:
                sandbox.leave()
        loop.call_soon(sandbox._tell_early)
        return sandbox if greeted else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._hear(msgspec.json.decode(line))

    def connection_lost(self, _: Exception | None) -> None:
        # With orders that it did not read, a shim that ends resets the connection.
        if not self._greeted.done():
            self._greeted.set_result(False)
        self._pass_on(None)
        self._ended.set_result(None)

    def _hear(self, event: dict[str, Any]) -> None:
        if event["event"] == "state":
            self.started = event["started"]
            # Shims of before an upgrade do not say it, and read every request themselves.
            self._pid = int(event.get("pid", 0))
            if not self._greeted.done():
                self._greeted.set_result(True)
            return
        if event["event"] == "started":
            self.started[event["id"]] = {"pid": event["pid"], "at": event["at"]}
        elif event["event"] == "exited":
            self.started.pop(event["id"], None)
        self._pass_on(event)

    def _pass_on(self, event: dict[str, Any] | None) -> None:
        if self._early is not None:
            self._early.append(event)
        else:
            self._tell(event)

    def _tell_early(self) -> None:
        early, self._early = self._early or [], None
        for event in early:
            self._tell(event)

    @property
    def alive(self) -> bool:
        return not self._transport.is_closing()

    @property
    def network_namespace(self) -> str:
        """Path of the network namespace that the shim holds."""
        pid = self._pid or json.loads((self.folder / "shim.json").read_text())["pid"]
        return f"/proc/{pid}/ns/net"

    def move(self, folder: Path, tell: Callable[[dict[str, Any] | None], None]) -> None:
        """
        Become the sandbox of the Pod whose files are in ``folder``, which its folder has become.

        The shim is told with its next order, until which it has nothing to write.
        """
        self.folder, self._tell, self._moved = folder, tell, True

    def start(
        self,
        container: str,
        zygote: Path,
        log: tuple[str, int, int],
        request: Request,
        attach: Mapping[str, bool] | None = None,
        brief_s: float = 0.0,
    ) -> None:
        """
        Ask for a container's process; ``started`` or ``failed`` is told.

        Args:
            log: its file, the bytes after which that is begun anew, and how many are kept.
            attach: ``stdin``, ``tty``, ``once`` of a container that has input or a terminal.
            brief_s: if it ends within so many seconds, its end alone is told.
        """
        order: dict[str, Any] = {"op": "start", "id": container, "socket": str(zygote)}
        order |= {"log": log[0], "rotate": log[1:], "attach": attach or {}, "brief_s": brief_s}
        fields = vars(request)
        if not self._pid:
            self._send(order | {"request": fields})
            return
        if request.plan and request.plan.get("netns") == "pod":
            fields = fields | {"plan": request.plan | {"netns": self.network_namespace}}
        self._send(order, _encode(fields))

    async def attach(self, container: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the input and output of a container that was started with ``attach``."""
        with short_address(str(self.folder / f"{container}.sock")) as address:
            return await asyncio.open_unix_connection(address)

    def signal(self, container: str, number: int) -> None:
        self._send({"op": "signal", "id": container, "signal": number})

    def _send(self, order: Mapping[str, Any], request: bytes = b"") -> None:
        # A shim that has gone is told by the end of its stream; uvloop refuses to write to it.
        if self._transport.is_closing():
            return
        text = _encode({"op": "folder", "folder": str(self.folder)}) + b"\n" if self._moved else b""
        self._moved = False
        text += _encode(order)
        self._transport.write(text + b"\t" + request + b"\n" if request else text + b"\n")

    async def quit(self) -> None:
        """Kill what is left and end the shim."""
        self._tell = lambda _: None
        try:
            self._send({"op": "quit"})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(8):
                    await asyncio.shield(self._ended)
            kill_shim(self.folder)
        finally:
            self._transport.close()

    def leave(self) -> None:
        """Disconnect; shim and containers go on."""
        self._tell = lambda _: None
        self._transport.close()


def _encode(order: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(order)
    except UnicodeEncodeError:  # a home whose path is no text
        return json.dumps(order).encode()


def _spawn(zygote: str, request: Request, stdio: tuple[int, int, int]) -> int:
    """Start a process that nobody waits for; returns its pid."""
    child = spawn(zygote, request, stdio)
    child.close()
    return child.pid


def kill_shim(folder: Path) -> None:
    """Kill the shim of a folder if it is still that process."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        record = json.loads((folder / "shim.json").read_text())
        if process_start(record["pid"]) == record["start"]:
            os.kill(record["pid"], signal.SIGKILL)


def end_orphans(folder: Path) -> None:
    """
    Kill what a Pod's shim no longer holds: it was killed itself, or a process left its container's group.

    A process is known by what the shim noted of it, or by the Pod's folder in its environment.
    """
    for path in folder.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads(path.read_text())
            if process_start(record["pid"]) == record["start"]:
                for kill in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError):
                        kill(record["pid"], signal.SIGKILL)
        path.unlink(missing_ok=True)
    mark = os.fsencode(folder) + b"/"
    # Again until none is found: one may have forked while we looked.
    for _ in range(5):
        found = [pid for pid in _own_processes() if mark in _environment_of(pid)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.01)


def _own_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
