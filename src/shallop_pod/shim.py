"""
The shim of one Pod: holds its network, starts its containers, writes their logs, remembers how they ended.

``python3 -m shallop_pod.shim --folder <home>/pods/<uid> [--bridge NAME --veth NAME --address A --prefix N
--gateway G]``, forked from the control plane's own zygote. It outlives the control plane, which finds it again by its
socket ``<folder>/shim.sock`` and ``<folder>/shim.json`` (``pid``, ``start`` = start time of /proc/PID/stat).

Lines of JSON on the socket; the newest connection is the one that is told. Asking:

- ``{"op": "start", "id": "main-0", "socket": zygote, "log": file, "request": {...}}``: ``request`` as
  ``shallop_pod.zygote.Request``; a plan with ``"netns": "pod"`` gets the Pod's network. It may also follow the object
  after a tab, and is passed on unread then: a plan names the network that ``pid`` holds. With ``"attach": {"stdin":
  bool, "tty": bool, "once": bool}`` clients get its input and output as ``shallop_pod.attach`` says. With ``"brief_s":
  seconds`` its start is told when it has run for so long, and not at all when it is over before.
- ``{"op": "signal", "id": ..., "signal": 15}``; ``{"op": "quit"}``: kill everything and end.
- ``{"op": "folder", "folder": path}``: its files have been moved there.

Told: ``{"event": "state", "pid": N, "started": {id: {...}}}`` on connecting; ``started`` (``id, pid, at``), ``failed``
(``id, error, unreachable``: no fork-server listens), ``exited`` (``id, code, signal, at, cpu_s, max_rss_bytes``). An
end is written to ``<folder>/<id>.exit`` before it is told, so that it is known even when the shim itself is killed
afterwards; until then ``<folder>/<id>.pid`` says which process it is, so that the node can end it should the shim be
killed.

Logs have the CRI format: ``RFC3339Nano stdout|stderr F|P text``; ``"rotate": [bytes, files]`` of a start says when a
file is renamed to ``.1``, ``.2`` ..., and how many are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import os
import selectors
import signal
import socket
import time
from typing import Any, Callable, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod.attach import Attachments
from shallop_pod.zygote import Child, Request, ZygoteError, connect, listen, spawn

__all__ = ["main", "process_start"]

_CLONE_NEWNET = 0x40000000
# After how many bytes a log file is begun anew, and how many are kept, when an order does not say.
_ROTATE = (10 * 2**20, 5)
_MAX_LINE = 16 * 1024
# What becomes the next ``.pid``. The node leaves the record of an earlier Pod here: to make a file takes ext4 0.1 ms.
_NEXT_RECORD = "record.next"


def process_start(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot, None when there is none; with the pid it names one."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


class _Log:
    """One container's log file."""

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size

    def write(self, stream: str, lines: list[bytes], rest: bytes = b"") -> None:
        nanoseconds = time.time_ns()
        seconds, fraction = divmod(nanoseconds, 10**9)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z {stream}"
        full, part = f"{stamp} F ".encode(), f"{stamp} P ".encode()
        data = b"".join(full + line + b"\n" for line in lines) + (part + rest + b"\n" if rest else b"")
        with contextlib.suppress(OSError):  # a full disk must not stop the container
            os.write(self._file, data)
        self._size += len(data)
        if self._size > self._max_bytes:
            self._rotate()

    def _rotate(self) -> None:
        os.close(self._file)
        for number in range(self._files - 1, 0, -1):
            source = f"{self._path}.{number - 1}" if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                os.replace(source, f"{self._path}.{number}")
        if self._files == 1:
            os.unlink(self._path)
        self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._size = 0

    def close(self) -> None:
        os.close(self._file)


class _Stream:
    """A pipe of a container; complete lines go to its log."""

    def __init__(self, name: str, descriptor: int, log: _Log) -> None:
        self.descriptor = descriptor
        self.show: Callable[[bytes], None] | None = None
        self._name = name
        self._log = log
        self._rest = b""

    def read(self) -> bool | None:
        """Pass on what is there; None when there is nothing now, False at the end."""
        try:
            data = os.read(self.descriptor, 65536)
        except BlockingIOError:
            return None
        except OSError:
            data = b""  # a terminal that nobody has open any more
        if not data:
            self.flush()
            return False
        if self.show is not None:
            self.show(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        part = b""
        if len(self._rest) > _MAX_LINE:
            part, self._rest = self._rest, b""
        if lines or part:
            self._log.write(self._name, lines, part)
        return True

    def flush(self) -> None:
        """Write a last line that has no end."""
        if self._rest:
            self._log.write(self._name, [self._rest])
            self._rest = b""


class _Container:
    def __init__(self, child: Child, streams: list[_Stream], log: _Log, at: float) -> None:
        self.child = child
        self.news = child.fileno()
        self.streams = streams
        self.log = log
        self.at = at
        self.tell_at: float | None = None  # when its start is to be told, by time.monotonic
        self.attachments: Attachments | None = None


class _Shim:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self._containers: dict[str, _Container] = {}
        self._early: dict[str, int] = {}  # signals, by the id of a container that has not been started
        self._connection: socket.socket | None = None
        self._received = b""
        # Before the socket: who finds a shim must be able to end it.
        self._write("shim.json", {"pid": os.getpid(), "start": process_start(os.getpid())})
        self._listener = listen(os.path.join(folder, "shim.sock"))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._quitting = False
        # For the next container, made when there is time.
        self._stdio: tuple[tuple[int, int, int], list[int], int] | None = None

    def run(self) -> None:
        while not self._quitting:
            for key, _ in self._selector.select(self._tell_starts()):
                # What came before in this batch may have closed it, and its number may be another's already. By number:
                # a closed socket has none any more, and asking for it is an error.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
        self._kill_all()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._folder, "shim.sock"))

    def _tell_starts(self) -> float | None:
        """Tell of the starts that are due; returns in how many seconds the next one is."""
        left = []
        for name, container in self._containers.items():
            if container.tell_at is None:
                continue
            if (after := container.tell_at - time.monotonic()) > 0:
                left.append(after)
            else:
                self._tell_start(name, container)
        return min(left, default=None)

    def _tell_start(self, name: str, container: _Container) -> None:
        container.tell_at = None
        self._tell({"event": "started", "id": name, "pid": container.child.pid, "at": container.at})

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._drop_connection()
        self._connection, self._received = connection, b""
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection))
        for container in self._containers.values():
            container.tell_at = None
        started = {name: {"pid": c.child.pid, "at": c.at} for name, c in self._containers.items()}
        self._tell({"event": "state", "pid": os.getpid(), "started": started})

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._selector.unregister(self._connection)
            self._connection.close()
            self._connection = None

    def _tell(self, event: dict[str, Any]) -> None:
        if self._connection is None:
            return
        try:
            self._connection.sendall(json.dumps(event).encode() + b"\n")
        except OSError:
            self._drop_connection()

    def _receive(self, connection: socket.socket) -> None:
        if connection is not self._connection:
            return  # replaced by a newer one in the same round: reading that one would wait for ever
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._drop_connection()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            order, _, request = line.partition(b"\t")
            self._obey(json.loads(order), request)

    def _obey(self, order: dict[str, Any], request: bytes) -> None:
        if order["op"] == "start":
            self._start(order, request or self._complete(order["request"]))
        elif order["op"] == "signal":
            container = self._containers.get(order["id"])
            if container is not None:
                _kill(container.child.pid, order["signal"])
            else:
                # Told to end before the order to start it came; for one that has ended this means nothing.
                self._early[order["id"]] = order["signal"]
        elif order["op"] == "folder":
            self._folder = order["folder"]
        elif order["op"] == "quit":
            self._quitting = True

    def _complete(self, fields: dict[str, Any]) -> Request:
        request = Request(**fields)
        if request.plan and request.plan.get("netns") == "pod":
            request.plan["netns"] = f"/proc/{os.getpid()}/ns/net"
        return request

    def _start(self, order: dict[str, Any], request: Request | bytes) -> None:
        name = order["id"]
        if name in self._containers or os.path.exists(os.path.join(self._folder, f"{name}.exit")):
            # Asked twice: the control plane was killed between asking and remembering.
            return
        logs: list[_Log] = []

        def open_log() -> None:
            logs.append(_Log(order["log"], *order.get("rotate", _ROTATE)))

        attach = order.get("attach") or {}
        if attach or self._stdio is None:
            theirs, ours, given = _stdio(attach)
        else:
            (theirs, ours, given), self._stdio = self._stdio, None
        try:
            child = spawn(order["socket"], request, theirs, meanwhile=open_log)
            (log,) = logs
        except ZygoteError as error:
            for descriptor in [*ours, *([given] if given >= 0 else ())]:
                os.close(descriptor)
            if not logs:
                open_log()
            logs[0].write("stderr", [str(error).encode()])
            logs[0].close()
            unreachable = not _listens(order["socket"])
            self._tell({"event": "failed", "id": name, "error": str(error), "unreachable": unreachable})
            return
        finally:
            for descriptor in set(theirs):
                os.close(descriptor)
        streams = [_Stream(stream, pipe, log) for stream, pipe in zip(("stdout", "stderr"), ours)]  # noqa: B905
        container = self._containers[name] = _Container(child, streams, log, time.time())
        if attach:
            path = os.path.join(self._folder, f"{name}.sock")
            served = Attachments(self._selector, path, given, tty=attach["tty"], once=attach["once"])
            container.attachments = served
            for channel, stream in enumerate(streams, start=1):
                stream.show = functools.partial(served.show, channel)
        self._write(f"{name}.pid", {"pid": child.pid, "start": process_start(child.pid)}, by=_NEXT_RECORD)
        for stream in streams:
            os.set_blocking(stream.descriptor, False)
            self._selector.register(stream.descriptor, selectors.EVENT_READ, lambda s=stream: self._read(s))
        self._selector.register(container.news, selectors.EVENT_READ, lambda: self._check(name))
        if brief_s := order.get("brief_s"):
            container.tell_at = time.monotonic() + brief_s
        else:
            self._tell_start(name, container)
        if number := self._early.pop(name, 0):
            _kill(child.pid, number)

    def _read(self, stream: _Stream) -> None:
        if stream.descriptor < 0:
            return  # closed in the same round, when its container had ended
        if stream.read() is False:
            self._close(stream)

    def _check(self, name: str) -> None:
        container = self._containers[name]
        ended = container.child.wait(timeout_s=0)
        if ended is None:
            return
        self._selector.unregister(container.news)
        # What it left running goes with it, as in a container; with a PID namespace the kernel has done so already.
        _kill(container.child.pid, signal.SIGKILL)
        for stream in container.streams:
            self._drain(stream)
        if container.attachments is not None:
            container.attachments.close()
        del self._containers[name]
        record = {
            "id": name,
            "code": ended.code,
            "signal": ended.signal,
            "started_at": container.at,
            "at": time.time(),
            "cpu_s": ended.cpu_s,
            "max_rss_bytes": ended.max_rss_bytes,
        }
        # The file that said which process it is becomes the one that says how it ended.
        self._write(f"{name}.exit", record, by=f"{name}.pid")
        self._tell({"event": "exited", **record})
        container.child.close()
        container.log.close()
        if self._stdio is None:
            self._stdio = _stdio({})

    def _drain(self, stream: _Stream) -> None:
        if stream.descriptor < 0:
            return
        # Not to its end: someone who escaped the process group may hold the pipe open for ever.
        while stream.read():
            pass
        stream.flush()
        self._close(stream)

    def _close(self, stream: _Stream) -> None:
        self._selector.unregister(stream.descriptor)
        os.close(stream.descriptor)
        stream.descriptor = -1

    def _write(self, name: str, record: dict[str, Any], by: str = "") -> None:
        """Write a file as a whole, under the name ``by`` first."""
        path, new = (os.path.join(self._folder, file) for file in (name, by or f"{name}.new"))
        with contextlib.suppress(OSError):  # a full disk must not stop the container
            descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                # Not O_TRUNC: of a file that was made empty ext4 writes the new content to the disk when it is closed,
                # and removing that again waits for the disk.
                os.ftruncate(descriptor, os.write(descriptor, json.dumps(record).encode()))
            finally:
                os.close(descriptor)
            os.replace(new, path)

    def _kill_all(self) -> None:
        for container in self._containers.values():
            _kill(container.child.pid, signal.SIGKILL)
        for container in self._containers.values():
            container.child.wait(timeout_s=5)


def _stdio(attach: dict[str, Any]) -> tuple[tuple[int, int, int], list[int], int]:
    """Make a container's stdin, stdout and stderr; returns its side, ours to read, and its input, -1 without one."""
    if attach.get("tty"):
        terminal, side = os.openpty()
        given = os.dup(terminal)
        os.set_blocking(given, False)
        return (side, side, side), [terminal], given
    given = -1
    if attach.get("stdin"):
        stdin, given = os.pipe()
        os.set_blocking(given, False)
    else:
        stdin = os.open(os.devnull, os.O_RDONLY)
    (out, out_side), (err, err_side) = os.pipe(), os.pipe()
    return (stdin, out_side, err_side), [out, err], given


def _listens(zygote: str) -> bool:
    try:
        connect(zygote).close()
    except OSError:
        return False
    return True


def _kill(pid: int, number: int) -> None:
    """
    Signal a container: its first process, as a container engine does; SIGKILL takes the whole process group.

    In a PID namespace everything in it dies with its first process.
    """
    send = os.killpg if number == signal.SIGKILL else os.kill
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, number)


def _enter_network(options: argparse.Namespace) -> None:
    """Make the Pod's network namespace, joined to the node's bridge; this process holds it."""
    from shallop_pod.netlink import Netlink

    libc = ctypes.CDLL(None, use_errno=True)
    with Netlink() as host:
        bridge = socket.if_nametoindex(options.bridge)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        host.add_veth(options.veth, bridge, "eth0", namespace)
        os.close(namespace)
    with Netlink() as inside:
        inside.set_up(socket.if_nametoindex("lo"))
        index = socket.if_nametoindex("eth0")
        inside.add_address(index, options.address, options.prefix)
        inside.set_up(index)
        inside.add_default_route(options.gateway, index)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="shim")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--bridge", default="")
    parser.add_argument("--veth", default="")
    parser.add_argument("--address", default="")
    parser.add_argument("--prefix", type=int, default=24)
    parser.add_argument("--gateway", default="")
    options = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Only "quit" ends a shim: a stray signal to the node's processes must not end a training.
        signal.signal(number, signal.SIG_IGN)
    if options.bridge:
        _enter_network(options)
    shim = _Shim(options.folder)
    shim.run()
    return 0
