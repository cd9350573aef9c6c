"""
The fork-server of one environment: a process starts by a fork, not by an interpreter start.

Started by the node as ``<environment>/bin/python -m shallop_pod.zygote --socket PATH [--preload MODULE]...
[--idle-s S] [--ready-fd N] [--nicer STEPS]``. It leaves its parent (forks once), imports the preload list, then listens
on a Unix socket (0600, same user only) and says so on the ready descriptor. Any local process may ask it: the control
plane, or the shim of a Pod. It goes on when the control plane is killed.

Asking (blocking, standard library; :func:`spawn` does it)::

    child = spawn(socket_path, Request("shallop_pod.launcher", argv, env, cwd, plan), (0, 1, 2))
    child.pid                   # leader of a new session and process group: os.killpg works
    child.wait(timeout_s=None)  # Exit(code, signal, cpu_s, max_rss_bytes), or None when the time is over
    child.fileno()              # readable when wait() has news, for select and asyncio

Wire: each message is a 4-byte big-endian length and JSON. The request carries the three stdio descriptors by
SCM_RIGHTS with its first byte. Answers, on the same connection: ``{"pid": N}`` or ``{"error": TEXT}`` (nothing runs
then), later ``{"exit": {...}, "final": false}`` by the process itself just before it ends, and ``{"exit": {...},
"final": true}`` by its parent that reaped it. So the exit code arrives when the control plane is dead, and even when
the zygote was killed; an end of the connection without any exit means that zygote and process were both killed:
``Exit(137, 9)``. The process's own word is final where nothing of it is left but the thread that says so: what the
kernel then does to take its memory and mounts apart (2 to 4 ms) nobody needs to wait for.

What happens in the child, in this order: new session, every descriptor closed, signal handlers and mask at their
defaults, umask 022; the first half of ``shallop_pod.isolation`` when there is a plan. Then it waits for its request:
stdio from it, the second half of the isolation; the request's environment replaces the zygote's completely; chdir;
``sys.path`` as ``python3 -m`` would make it (the working directory and the request's PYTHONPATH first); random
generators reseeded; thread pools sized by OMP_NUM_THREADS; then ``import_module(module).main(argv)``. Its return value
(None is 0) or SystemExit is the exit code; an uncaught exception prints its traceback and exits with 1. Threads are
joined, atexit functions run, streams flushed.

One child waits in advance: after each request the zygote forks a standby for one of the same shape (see
``isolation.shape_of``), so that a process that is asked for starts without a fork, with its namespaces made and the
memory that it will need its own (``shallop_pod.rehearsal``). A standby ends with the zygote.

With a plan that has a PID namespace the process is PID 1 of it; ``child.pid`` is its number outside. Where that takes a
user namespace, the zygote's child stays outside as the one who reaps and reports, and the process is its child. An
error of the isolation means that nothing starts.

Stopping: SIGTERM (or idle time without living children) closes the socket; children go on, the zygote ends after the
last one.
"""

from __future__ import annotations

from shallop_pod import pages  # isort: skip  what it does after a fork comes before what modules do that are imported now
import argparse
import array
import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import select
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any, Callable, Iterator, NoReturn, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod import rehearsal

__all__ = [
    "Child",
    "Exit",
    "Request",
    "ZygoteError",
    "connect",
    "count_threads",
    "listen",
    "main",
    "run_to_end",
    "serve_forks",
    "short_address",
    "spawn",
]

_HEADER = struct.Struct("!I")
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_REQUEST_TIMEOUT_S = 10.0
_KILLED = 128 + signal.SIGKILL
_LAUNCHER = "shallop_pod.launcher"
_CLOSE_RANGE, _ALL = 436, 2**32 - 1
# Of the kinds that a Pod has.
_REHEARSED_MOUNTS = (
    {"target": "/tmp", "tmpfs": True, "options": "mode=1777"},
    {"target": "/etc/hosts", "source": "/etc/hosts", "readonly": True},
)


if sys.platform == "linux":
    _syscall = ctypes.CDLL(None).syscall
    _syscall.argtypes = (ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)
    _syscall.restype = ctypes.c_long


class ZygoteError(RuntimeError):
    """The zygote cannot be reached or refused; the caller may start the process without it."""


@dataclass(frozen=True)
class Request:
    """
    One process to start.

    Args:
        module: what to run: ``import_module(module).main(argv)``.
        argv: without the program's name.
        env: the complete environment.
        cwd: working directory, as seen after ``plan`` was entered.
        plan: for ``shallop_pod.isolation.enter``; None stays in the zygote's namespaces.
    """

    module: str
    argv: Sequence[str]
    env: dict[str, str]
    cwd: str = "/"
    plan: dict[str, Any] | None = None


@dataclass(frozen=True)
class Exit:
    """How a process ended: ``code`` as a shell gives it (128 + signal), the signal or None, and what it used."""

    code: int
    signal: int | None = None
    cpu_s: float = 0.0
    max_rss_bytes: int = 0


class Child:
    """A process that a zygote started, seen by who asked for it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection
        self._exit: Exit | None = None
        self._closed = False

    def fileno(self) -> int:
        return self._connection.fileno()

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """Return how it ended, or None when it still runs after ``timeout_s`` seconds; may be called again."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._closed:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                if self._exit is None:
                    return None
                self.close()
                break
            message = _receive(self._connection)
            if message is not None:
                self._exit = Exit(**message["exit"])
                # After the process's own word its parent's follows at once, unless the zygote was killed.
                deadline = time.monotonic() + 1.0
            if message is None or message["final"]:
                self.close()
        return self._exit or Exit(_KILLED, signal.SIGKILL)

    def close(self) -> None:
        """Stop listening; the process goes on."""
        self._closed = True
        self._connection.close()


def spawn(
    socket_path: str,
    request: Request | bytes,
    stdio: tuple[int, int, int],
    meanwhile: Callable[[], None] = lambda: None,
) -> Child:
    """
    Start a process by the zygote at ``socket_path``; takes a few milliseconds.

    Args:
        request: as bytes, the JSON of its fields.
        meanwhile: called while the zygote is at work; what it raises is raised when the process has been killed.

    Raises:
        ZygoteError: no zygote listens there, or it could not start the process (the text says why).
    """
    problem = None
    try:
        connection = connect(socket_path)
    except OSError as error:
        raise ZygoteError(f"zygote {socket_path}: {error.strerror or error}") from error
    try:
        connection.settimeout(_REQUEST_TIMEOUT_S)
        _send(connection, request if isinstance(request, bytes) else vars(request), stdio)
        connection.settimeout(None)
        try:
            meanwhile()
        except Exception as error:  # of any kind: nobody would know of the process
            problem = error
        answer = _receive(connection)
    except OSError as error:
        # One that stops accepts the connection and goes away before it reads.
        connection.close()
        raise ZygoteError(f"zygote {socket_path}: {error.strerror or error}") from error
    if answer is None or "pid" not in answer:
        connection.close()
        raise ZygoteError((answer or {}).get("error", f"zygote {socket_path} ended before it started the process"))
    if problem is not None:
        os.killpg(answer["pid"], signal.SIGKILL)
        connection.close()
        raise problem
    return Child(answer["pid"], connection)


@contextlib.contextmanager
def short_address(path: str) -> Iterator[str]:
    """Yield an address for ``path`` within the 107 bytes that a socket address has."""
    if len(os.fsencode(path)) < 108:
        yield path
        return
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)


def connect(path: str) -> socket.socket:
    """Return a connection to the zygote at ``path``; OSError when nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_address(path) as address:
            connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def listen(path: str) -> socket.socket:
    """Return a listening socket at ``path``, 0600 from its first moment, replacing a dead one."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    mask = os.umask(0o177)
    try:
        with short_address(path) as address:
            listener.bind(address)
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _send(connection: socket.socket, message: dict[str, Any] | bytes, descriptors: Sequence[int] = ()) -> None:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    data = _HEADER.pack(len(body)) + body
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = connection.sendmsg([data], rights)
    # Sending nothing is not free of effect: it fails when the other side has read all and gone.
    if sent < len(data):
        connection.sendall(memoryview(data)[sent:])


def _receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    """Read ``count`` bytes; None when the other side went away."""
    data = bytearray()
    while len(data) < count:
        try:
            chunk = connection.recv(min(count - len(data), 1 << 20))
        except ConnectionResetError:
            return None
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    header = _receive_exactly(connection, _HEADER.size)
    if header is None:
        return None
    (size,) = _HEADER.unpack(header)
    if size > _MAX_MESSAGE_BYTES:
        return None
    body = _receive_exactly(connection, size)
    return None if body is None else json.loads(body)


def _receive_with_descriptors(connection: socket.socket, count: int) -> tuple[dict[str, Any], list[int]] | None:
    """Read a message that came with so many descriptors; None when the other side went away before it was whole."""
    size = array.array("i").itemsize
    # Not for programs that this process becomes: who holds a connection hides that its owner has gone.
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, _, _ = connection.recvmsg(_HEADER.size, socket.CMSG_SPACE(count * size), flags)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % size])
    try:
        rest = _receive_exactly(connection, _HEADER.size - len(data)) if data else None
        if rest is None:
            raise EOFError
        (length,) = _HEADER.unpack(data + rest)
        if length > _MAX_MESSAGE_BYTES or len(descriptors) != count:
            raise ValueError(f"a request is one JSON object with {count} descriptors")
        body = _receive_exactly(connection, length)
        if body is None:
            raise EOFError
        return json.loads(body), list(descriptors)
    except BaseException as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(error, EOFError):
            return None
        raise


# --- the server -----------------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, socket_path: str, idle_s: float, *, standby: bool = True) -> None:
        self._path = socket_path
        self._idle_s = idle_s
        self._keeps_standby = standby
        self._listener: socket.socket | None = None
        self._inode = 0
        self._children: dict[int, socket.socket] = {}
        self._standby: _Standby | None = None
        # The shape that the last request had, once there was one.
        self._wanted: tuple[dict[str, Any] | None, ...] = ()
        # The arguments of a launcher that were not looked at yet.
        self._command: Sequence[str] = ()
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        # What each process writes to of the memory that it shares with this one; looked for when there is time.
        self._written: pages.Pages | None = None
        self._machine: _Machine | None = None

    def run(self, ready: Callable[[], None]) -> None:
        self._listener = listen(self._path)
        self._inode = os.stat(self._path).st_ino
        self._listener.setblocking(False)
        wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(wake, selectors.EVENT_READ)
        gc.collect()
        gc.freeze()
        ready()
        try:
            self._loop(wake)
        finally:
            self._unlink()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)

    def _loop(self, wake: int) -> None:
        while self._children or not self._stopping:
            timeout = None if self._children or self._stopping else self._idle_s
            events = self._selector.select(timeout)
            if not events and timeout is not None:
                return
            for key, _ in events:
                if key.fd == wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                else:
                    self._accept()
            self._reap()
            self._prepare_standby()

    def _stop(self) -> None:
        """Take no more work; who asks now finds nobody and starts its process without us."""
        self._stopping = True
        if self._listener is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._listener)
            self._listener.close()
        self._unlink()

    def _accept(self) -> None:
        if self._stopping or self._listener is None:
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        descriptors: list[int] = []
        try:
            connection.settimeout(_REQUEST_TIMEOUT_S)
            received = _receive_with_descriptors(connection, 3)
            if received is None:
                connection.close()
                return
            message, descriptors = received
            connection.settimeout(None)
            self._start(Request(**message), descriptors, connection)
        except Exception as error:  # a client's nonsense must not end everyone's zygote
            with contextlib.suppress(OSError):
                _send(connection, {"error": f"zygote: {type(error).__name__}: {error}"})
            connection.close()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start(self, request: Request, stdio: Sequence[int], connection: socket.socket) -> None:
        shape = None if request.plan is None else _isolation().shape_of(request.plan)
        self._command = request.argv if request.module == _LAUNCHER else ()
        standby = None
        # Who joins a container is like nobody else: the standby is for the others.
        if shape is None or "join" not in shape:
            self._wanted = (shape,)
            standby, self._standby = self._standby, None
        if standby is not None:
            with contextlib.closing(standby), contextlib.suppress(OSError):  # somebody killed it
                if standby.serves(shape):
                    standby.hand_over(request, stdio, connection)
                    self._children[standby.pid] = connection
                    return
        with contextlib.closing(_Standby(shape, self._written or pages.Pages(), self._machine_for(shape))) as fresh:
            self._children[fresh.pid] = connection
            with contextlib.suppress(OSError):  # its namespaces could not be made: it says why
                fresh.hand_over(request, stdio, connection)
                return
            fresh.introduce(connection)

    def _prepare_standby(self) -> None:
        """Fork for the next request once nobody waits for this one."""
        if not self._keeps_standby or self._stopping:
            return
        if self._standby is None and self._wanted and not self._selector.select(0):
            with contextlib.suppress(OSError):  # too many processes, or no memory: the next request will say so
                if self._command:
                    importlib.import_module(_LAUNCHER).foresee(self._command)
                    self._command = ()
                if self._written is None:
                    self._written = self._rehearse(self._wanted[0])
                self._standby = _Standby(self._wanted[0], self._written, self._machine_for(self._wanted[0]))

    def _rehearse(self, shape: dict[str, Any] | None) -> pages.Pages:
        """Run a rehearsal as a process of this shape; return which memory it wrote to."""
        if not rehearsal.is_possible():
            return pages.Pages()
        plan = None if shape is None else {**shape, "mounts": [*shape.get("mounts", ()), *_REHEARSED_MOUNTS]}
        request = Request("shallop_pod.rehearsal", (), dict(os.environ), plan=plan)
        connection, listener = socket.socketpair()
        answer, told = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        with connection, listener, open(answer) as file:
            with contextlib.closing(_Standby(shape, pages.Pages(), self._machine_for(shape))) as standby:
                standby.hand_over(request, (null, null, told), connection)
            os.close(told)
            os.close(null)
            *_, last = file.read().splitlines() or [""]
        with contextlib.suppress(ValueError):  # it was killed before it had told everything
            return pages.Pages(json.loads(last))
        return pages.Pages()

    def _machine_for(self, shape: dict[str, Any] | None) -> _Machine | None:
        """Return the machine as processes of this shape see it now; None for those that see it as this one does."""
        if shape is None or "join" in shape:
            return None
        if self._machine is None or self._machine.shape != shape or self._machine.has_changed():
            if self._machine is not None:
                self._machine.close()
            self._machine = _Machine(shape)
        return self._machine

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._standby is not None and self._standby.pid == pid:
                # Killed by somebody, or its namespaces could not be made: the next request will say why.
                self._standby.close()
                self._standby, self._wanted = None, ()
            connection = self._children.pop(pid, None)
            if connection is not None:
                with contextlib.suppress(OSError):
                    _report(connection, _exit_of(status, usage), final=True)
                connection.close()


def _exit_of(status: int, usage: resource.struct_rusage) -> Exit:
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else None
    return Exit(128 - code if code < 0 else code, number, *_usage_of(usage))


def _usage_of(*usages: resource.struct_rusage) -> tuple[float, int]:
    unit = 1 if sys.platform == "darwin" else 1024
    return sum(u.ru_utime + u.ru_stime for u in usages), max(u.ru_maxrss for u in usages) * unit


def _report(connection: socket.socket, exit_: Exit, *, final: bool) -> None:
    _send(connection, {"exit": vars(exit_), "final": final})


# --- the child ------------------------------------------------------------------------------------------------------


class _Standby:
    """A forked child that waits for its request, seen by the zygote."""

    def __init__(self, shape: dict[str, Any] | None, written: pages.Pages, machine: _Machine | None) -> None:
        self._shape = shape
        self._machine = machine
        # One end for the process, one for who stays outside of its PID namespace and reports.
        self._inlet, inlet = socket.socketpair()
        self._control, control = socket.socketpair()
        # Only root can go without a process in between.
        is_first = shape is not None and shape.get("pid") and not shape.get("user")
        with pages.owned_by_forks(written if shape is None or is_first else pages.Pages()):
            self.pid = _isolation().fork_first() if is_first else os.fork()
            if self.pid == 0:
                _stand_by(shape, machine and machine.surroundings, inlet, control, written)
        inlet.close()
        control.close()

    def serves(self, shape: dict[str, Any] | None) -> bool:
        """Say whether it is of this shape, and what it sees is still what the machine shows."""
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        return self._shape == shape and (self._machine is None or not self._machine.has_changed())

    def hand_over(self, request: Request, stdio: Sequence[int], connection: socket.socket) -> None:
        """Give it its request; OSError when it is no longer there."""
        _send(self._inlet, vars(request), [*stdio, connection.fileno()])
        with contextlib.suppress(OSError):  # nobody stays outside, and the process has begun
            self.introduce(connection)

    def introduce(self, connection: socket.socket) -> None:
        """Tell who stays outside where to report."""
        _send(self._control, {}, [connection.fileno()])

    def close(self) -> None:
        """Let go of it; without a request it ends."""
        self._inlet.close()
        self._control.close()


class _Machine:
    """
    What processes of a shape are shown of this machine, as it was when this was made.

    That is its mounts, and the entries of folders that are shown anew.
    """

    def __init__(self, shape: dict[str, Any]) -> None:
        self.shape = shape
        self._has_changed = False
        self._change_times_then = self._change_times()
        self._mounts = os.open("/proc/self/mounts", os.O_RDONLY)
        self._changes = select.poll()
        # The kernel marks the file as exceptional, once, when something was mounted or unmounted.
        self._changes.register(self._mounts, select.POLLPRI)
        self._changes.poll(0)
        self.surroundings = _isolation().look_around(shape)

    def has_changed(self) -> bool:
        if not self._has_changed:
            self._has_changed = self._change_times() != self._change_times_then or bool(self._changes.poll(0))
        return self._has_changed

    def _change_times(self) -> list[int]:
        folders = filter(os.path.isdir, ("/", "/dev", _isolation().TOKEN_FOLDER.partition("/secrets")[0]))
        return [os.stat(folder).st_mtime_ns for folder in folders]

    def close(self) -> None:
        os.close(self._mounts)


def _stand_by(
    shape: dict[str, Any] | None,
    surroundings: Any,
    inlet: socket.socket,
    control: socket.socket,
    written: pages.Pages,
) -> NoReturn:
    """Be a standby: prepare, wait for the request, run it; never returns."""
    try:
        pid = int(os.readlink("/proc/self")) if os.getpid() == 1 else os.getpid()  # as seen by the fork-server
        _clean(inlet.fileno(), control.fileno())
        entrance = None
        if shape is not None:
            entrance = _isolation().Entrance(shape, surroundings)
            if entrance.forks:
                told, tell = os.pipe()
                with pages.owned_by_forks(written):
                    inner = os.fork()
                if inner:
                    inlet.close()
                    os.close(told)
                    _stay_outside(entrance, inner, tell, control)
                os.close(tell)
                os.setsid()  # the session so far is that of the one who stays outside
                pid = int(os.read(told, 20))
                os.close(told)
            entrance.finish()
        _wait_for_request(pid, entrance, inlet, control)
    except Exception as error:
        text = f"isolation: {error}"
        inlet.close()
        if (received := _receive_with_descriptors(control, 1)) is not None:
            _refuse(socket.socket(fileno=received[1][0]), text)
        print(text, file=sys.stderr, flush=True)
        os._exit(128)


def _wait_for_request(pid: int, entrance: Any, inlet: socket.socket, control: socket.socket) -> NoReturn:
    """Run the request that comes; ``pid`` is this process as seen from outside."""
    os.environ.clear()
    _reseed()
    received = _receive_with_descriptors(inlet, 4)
    if received is None:
        os._exit(0)
    message, descriptors = received
    inlet.close()
    control.close()
    request = Request(**message)
    connection = socket.socket(fileno=descriptors[3])
    code = 1
    try:
        _take_streams(descriptors[:3])
        try:
            if entrance is not None:
                entrance.complete(request.plan)
        except Exception as error:
            _refuse(connection, f"isolation: {error}")
        if request.module == _LAUNCHER:
            # Whoever knows the pid may end it. The first process of a namespace does not hear what nobody handles, and
            # until a task's launcher does, stopping a run would take its whole grace period.
            signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        _send(connection, {"pid": pid})
        code = 128
        if _prepare(request):
            code = run_to_end(lambda: importlib.import_module(request.module).main(list(request.argv)))
    except BaseException:  # nothing may unwind into the zygote's own stack
        traceback.print_exc()
    finally:
        _flush()
        with contextlib.suppress(OSError):
            own = _usage_of(resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
            # A control group can be removed when the kernel is done with the process, not before.
            final = not (request.plan or {}).get("cgroups") and _is_alone()
            if final:
                _close_all_but(connection.fileno())
            _report(connection, Exit(code, None, *own), final=final)
        os._exit(code & 0xFF)


def _is_alone() -> bool:
    """Say whether this thread is all that is left of a container: no other thread, nobody else in its PID namespace."""
    try:
        if os.getpid() != 1 or len(os.listdir("/proc/self/task")) > 1:
            return False
        os.kill(-1, 0)  # no signal: it asks for everybody else in the namespace
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _close_all_but(kept: int) -> None:
    """Let go of ports and locks, as the end of the process would: who hears of it may want them."""
    os.closerange(3, kept)
    _close_from(kept + 1)


def _stay_outside(entrance: Any, pid: int, tell: int, control: socket.socket) -> NoReturn:
    """Wait for the first process of a PID namespace and report its end."""
    os.write(tell, str(pid).encode())
    os.close(tell)
    received = _receive_with_descriptors(control, 1)
    if received is None:
        os.kill(pid, signal.SIGKILL)
        os._exit(0)
    connection = socket.socket(fileno=received[1][0])
    _, status, usage = os.wait4(pid, 0)
    ended = _exit_of(status, usage)
    entrance.end()
    with contextlib.suppress(OSError):
        _report(connection, ended, final=True)
    os._exit(ended.code)


def _isolation() -> Any:
    # Imported where it is used: it needs Linux.
    return importlib.import_module("shallop_pod.isolation")


def _clean(*kept: int) -> None:
    """Drop what is the zygote's: session, signals, descriptors above 2 except some, frozen randomness."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    _weigh_session()
    os.umask(0o022)
    edges = [2, *sorted(kept)]
    for before, after in zip(edges, edges[1:]):  # noqa: B905, RUF007
        os.closerange(before + 1, after)
    _close_from(edges[-1] + 1)


def _weigh_session() -> None:
    """Let a new session of Linux, among which it shares cores first, weigh what its processes do."""
    if (nice := os.getpriority(os.PRIO_PROCESS, 0)) > 0:
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as session:
            session.write(str(nice))


def _take_streams(stdio: Sequence[int]) -> None:
    """Make descriptors, of any numbers above 2, stdin, stdout and stderr."""
    for target, descriptor in enumerate(stdio):
        os.dup2(descriptor, target)
        os.close(descriptor)
    _reopen_streams()


def _close_from(first: int) -> None:
    # By the system call where there is one: to look the highest up takes longer, and not every Python knows the call.
    if sys.platform != "linux" or _syscall(_CLOSE_RANGE, first, _ALL, 0) != 0:
        os.closerange(first, _highest_descriptor() + 1)


def _highest_descriptor() -> int:
    try:
        return max(int(name) for name in os.listdir("/proc/self/fd"))
    except OSError:
        return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536)


def _reopen_streams() -> None:
    # Lines appear in the Pod's log when they are printed; the order of stdout and stderr stays.
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def _refuse(connection: socket.socket, message: str) -> NoReturn:
    """Say that nothing was started, with the exit code that a container engine uses."""
    with contextlib.suppress(OSError):
        _send(connection, {"error": message})
    print(message, file=sys.stderr, flush=True)
    os._exit(128)


def _prepare(request: Request) -> bool:
    os.environ.update(request.env)
    time.tzset()
    try:
        os.chdir(request.cwd)
    except OSError as error:
        print(f"working directory {request.cwd!r}: {error.strerror}", file=sys.stderr, flush=True)
        return False
    extra = [entry for entry in request.env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:0] = [request.cwd, *(entry for entry in extra if entry not in sys.path)]
    sys.argv = [request.module, *request.argv]
    _size_thread_pools(request.env)
    if "SHALLOP_POD_IP" in request.env:
        importlib.import_module("shallop_pod.netshim").install()
    return True


def _reseed() -> None:
    random.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    tempfile.tempdir = None


_POOL_SETTERS = (
    ("OMP_NUM_THREADS", "libgomp", ("omp_set_num_threads",)),
    ("OMP_NUM_THREADS", "libomp", ("omp_set_num_threads",)),
    (
        "OPENBLAS_NUM_THREADS",
        "openblas",
        ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads"),
    ),
)
_pools: list[tuple[str, Callable[[ctypes.c_int], object]]] = []


def _find_thread_pools() -> None:
    """Look up how to size the pools of loaded libraries: once before all forks, 5 ms in each child otherwise."""
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps if ".so" in line}
        for path in sorted(paths):
            for variable, library, setters in _POOL_SETTERS:
                if library in os.path.basename(path):
                    handle = ctypes.CDLL(path)
                    _pools.extend([(variable, getattr(handle, name)) for name in setters if hasattr(handle, name)][:1])


def _size_thread_pools(env: dict[str, str]) -> None:
    """Do what these libraries would have done with the variables, had they been loaded by this process."""
    if not _pools:
        return
    default = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for variable, set_threads in _pools:
        wanted = env.get(variable) or env.get("OMP_NUM_THREADS") or ""
        # OpenBLAS starts its threads when it is told their number; left alone it waits until they are needed.
        if wanted.isdigit() and int(wanted) not in (0, default):
            set_threads(ctypes.c_int(int(wanted)))


def run_to_end(function: Callable[[], Any]) -> int:
    """
    Run ``function`` and end as an interpreter ends, except for freeing memory that the kernel frees faster.

    Returns:
        The exit code that its result, SystemExit or exception means.
    """
    code = _exit_code_of(function)
    for ending in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            ending()
        except BaseException:
            traceback.print_exc()
    _flush()
    return code


def _exit_code_of(function: Callable[[], Any]) -> int:
    try:
        result = function()
    except SystemExit as error:
        result = error.code
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    if result is None:
        return 0
    if isinstance(result, int):
        return result & 0xFF
    print(result, file=sys.stderr)
    return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


# --- start ----------------------------------------------------------------------------------------------------------


# What every child needs before its own code: an import after the fork costs 5 ms in each of them.
_OWN_MODULES = (
    "shallop_pod.isolation",
    "shallop_pod.execute",
    "shallop_pod.interpreter",
    "shallop_pod.shim",
    "shallop_pod.netlink",
)


def _preload(modules: Sequence[str]) -> None:
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "1"
    os.environ["_KFP_RUNTIME"] = "true"
    for module in (*_OWN_MODULES, *modules):
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken library must fail in the process that uses it, not here
            print(f"zygote: {module} is not preloaded: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    rehearsal.rehearse()
    _find_thread_pools()


def count_threads() -> int:
    """Return how many threads a fork would meet."""
    # OpenBLAS ends its threads before a fork and starts them again when they are needed: from here on there is one.
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def serve_forks(socket_path: str, *, idle_s: float, ready: Callable[[], None]) -> None:
    """
    Be a zygote, as what this process has become: children have all of it, and are asked for as ever.

    For processes without threads whose children all have the same variables. None waits in advance.

    Args:
        ready: called when it listens.
    """
    # Sized already, and what this process has done since may have chosen other sizes.
    _pools.clear()
    _Server(socket_path, idle_s, standby=False).run(ready)


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop or idle for too long."""
    parser = argparse.ArgumentParser(prog="shallop_pod.zygote", description="Fork-server of one environment.")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--preload", action="append", default=[])
    parser.add_argument("--idle-s", type=float, default=600.0)
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--nicer", type=int, default=0, help="steps of niceness, added to what is inherited")
    options = parser.parse_args(argv)
    if os.fork():
        os._exit(0)  # nobody's child: no zombie for who started us, no end when that ends
    os.setsid()
    os.nice(options.nicer)
    _weigh_session()
    _preload(options.preload)
    if (threads := count_threads()) > 1:
        print(f"zygote: {threads} threads run after preloading; forks may hang", file=sys.stderr, flush=True)

    def ready() -> None:
        if options.ready_fd >= 0:
            os.write(options.ready_fd, b"ready\n")
            os.close(options.ready_fd)

    _Server(options.socket, options.idle_s).run(ready)
    return 0


if __name__ == "__main__":
    # "python -m" puts the working directory first; each child puts its own there.
    sys.path.pop(0)
    # This module would exist twice, as __main__ too; children must see the one under its own name.
    sys.exit(importlib.import_module("shallop_pod.zygote").main(sys.argv[1:]))
