"""
The fork-server of one environment: a process starts by a fork, not by an interpreter start.

Started by the node as ``<environment>/bin/python -m shallop_pod.zygote --socket PATH [--preload MODULE]...
[--idle-s S] [--ready-fd N]``. It leaves its parent (forks once), imports the preload list, then listens on a Unix
socket (0600, same user only) and says so on the ready descriptor. Any local process may ask it: the control plane, or
the shim of a Pod. It goes on when the control plane is killed.

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
``Exit(137, 9)``.

What happens in the child, in this order: new session, stdio from the request, every other descriptor closed, signal
handlers and mask at their defaults, umask 022; ``shallop_pod.isolation.enter(plan)`` when there is a plan (below); the
request's environment replaces the zygote's completely; chdir; ``sys.path`` as ``python3 -m`` would make it (the
working directory and the request's PYTHONPATH first); random generators reseeded; thread pools sized by
OMP_NUM_THREADS; then ``import_module(module).main(argv)``. Its return value (None is 0) or SystemExit is the exit
code; an uncaught exception prints its traceback and exits with 1. Threads are joined, atexit functions run, streams
flushed.

Namespaces: ``shallop_pod.isolation.enter(plan)`` runs in the forked child; an error there means that nothing starts.
When it returns True the plan (a PID namespace) waits for the next fork: the zygote's child then forks once more, stays
outside as the one who reaps and reports, and the process is the grandchild (PID 1 of its namespace, ``child.pid`` is
its number outside); it calls ``isolation.finish(plan)`` first. The one outside calls ``isolation.end(plan)`` after it.

A shim that was itself forked from a zygote needs no socket for a container of the same environment: it calls
:func:`become` in a child that it forks itself, and reaps that child.

Stopping: SIGTERM (or idle time without living children) closes the socket; children go on, the zygote ends after the
last one.
"""

from __future__ import annotations

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
from dataclasses import asdict, dataclass
from typing import Any, Callable, Iterator, NoReturn, Sequence  # noqa: UP035  environments may be Python 3.9

__all__ = ["Child", "Exit", "Request", "ZygoteError", "become", "connect", "listen", "main", "spawn"]

_HEADER = struct.Struct("!I")
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_REQUEST_TIMEOUT_S = 10.0
_KILLED = 128 + signal.SIGKILL


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


def spawn(socket_path: str, request: Request, stdio: tuple[int, int, int]) -> Child:
    """
    Start a process by the zygote at ``socket_path``; takes a few milliseconds.

    Raises:
        ZygoteError: no zygote listens there, or it could not start the process (the text says why).
    """
    try:
        connection = connect(socket_path)
    except OSError as error:
        raise ZygoteError(f"zygote {socket_path}: {error.strerror or error}") from error
    try:
        connection.settimeout(_REQUEST_TIMEOUT_S)
        _send(connection, asdict(request), stdio)
        connection.settimeout(None)
        answer = _receive(connection)
    except OSError as error:
        # One that stops accepts the connection and goes away before it reads.
        connection.close()
        raise ZygoteError(f"zygote {socket_path}: {error.strerror or error}") from error
    if answer is None or "pid" not in answer:
        connection.close()
        raise ZygoteError((answer or {}).get("error", f"zygote {socket_path} ended before it started the process"))
    return Child(answer["pid"], connection)


@contextlib.contextmanager
def _short_address(path: str) -> Iterator[str]:
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
        with _short_address(path) as address:
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
        with _short_address(path) as address:
            listener.bind(address)
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _send(connection: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    body = json.dumps(message).encode()
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


def _receive_request(connection: socket.socket) -> tuple[Request, list[int]] | None:
    """Read a request and its descriptors; None when the client only looked whether someone listens."""
    data, ancillary, _, _ = connection.recvmsg(_HEADER.size, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    try:
        rest = _receive_exactly(connection, _HEADER.size - len(data)) if data else None
        if rest is None:
            raise EOFError
        (size,) = _HEADER.unpack(data + rest)
        if size > _MAX_MESSAGE_BYTES or len(descriptors) != 3:
            raise ValueError("a request is one JSON object with three descriptors")
        body = _receive_exactly(connection, size)
        if body is None:
            raise EOFError
        return Request(**json.loads(body)), list(descriptors)
    except BaseException as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(error, EOFError):
            return None
        raise


# --- the server -----------------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, socket_path: str, idle_s: float) -> None:
        self._path = socket_path
        self._idle_s = idle_s
        self._listener: socket.socket | None = None
        self._children: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._stopping = False

    def run(self, ready: Callable[[], None]) -> None:
        self._listener = listen(self._path)
        inode = os.stat(self._path).st_ino
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
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == inode:
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

    def _stop(self) -> None:
        """Take no more work; who asks now finds nobody and starts its process without us."""
        self._stopping = True
        if self._listener is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._listener)
            self._listener.close()

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
            received = _receive_request(connection)
            if received is None:
                connection.close()
                return
            request, descriptors = received
            connection.settimeout(None)
            pid = os.fork()
        except Exception as error:  # a client's nonsense must not end everyone's zygote
            with contextlib.suppress(OSError):
                _send(connection, {"error": f"zygote: {type(error).__name__}: {error}"})
            connection.close()
        else:
            if pid == 0:
                become(request, descriptors, connection)
            self._children[pid] = connection
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
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
    _send(connection, {"exit": asdict(exit_), "final": final})


# --- the child ------------------------------------------------------------------------------------------------------


def become(request: Request, stdio: Sequence[int], connection: socket.socket | None = None) -> NoReturn:
    """
    Turn the calling, freshly forked process into the requested one; never returns.

    Args:
        request: what to run.
        stdio: descriptors of stdin, stdout, stderr; any numbers.
        connection: where to say pid and exit; None when the caller reaps by itself.
    """
    code = 1
    try:
        _clean(stdio, connection)
        _enter(request, connection)
        code = _run(request) if _prepare(request) else 128
    except BaseException:  # nothing may unwind into the zygote's own stack
        traceback.print_exc()
    finally:
        _flush()
        if connection is not None:
            with contextlib.suppress(OSError):
                own = _usage_of(resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
                _report(connection, Exit(code, None, *own), final=False)
        os._exit(code & 0xFF)


def _clean(stdio: Sequence[int], connection: socket.socket | None) -> None:
    """Drop what is the zygote's: session, signals, descriptors, frozen randomness."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(PermissionError):  # already a leader: a shim's own child that called setsid
        os.setsid()
    os.umask(0o022)
    # Copies first: a given descriptor may itself be 0, 1 or 2.
    for target, copy in enumerate([os.dup(descriptor) for descriptor in stdio]):
        os.dup2(copy, target)
    kept = -1 if connection is None else connection.fileno()
    if kept > 2:
        os.closerange(3, kept)
    os.closerange(max(3, kept + 1), _highest_descriptor() + 1)
    _reopen_streams()


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


def _enter(request: Request, connection: socket.socket | None) -> None:
    """Enter the planned namespaces and report the pid; returns in the process to be."""
    fork_again = False
    try:
        if request.plan is not None:
            from shallop_pod import isolation

            fork_again = isolation.enter(request.plan)
        told, tell = os.pipe() if fork_again else (-1, -1)
        pid = os.fork() if fork_again else os.getpid()
        if pid == 0:
            os.close(tell)
            os.setsid()  # the session so far is that of the one who stays outside
            isolation.finish(request.plan or {})
            # A process that is quicker than the word of its start would look like one that never started.
            os.read(told, 1)
            os.close(told)
            return
    except Exception as error:
        _refuse(connection, f"isolation: {error}")
    if connection is not None:
        _send(connection, {"pid": pid})
    if not fork_again:
        return
    os.close(told)
    os.close(tell)
    _, status, usage = os.wait4(pid, 0)
    ended = _exit_of(status, usage)
    isolation.end(request.plan or {})
    if connection is not None:
        with contextlib.suppress(OSError):
            _report(connection, ended, final=True)
    os._exit(ended.code)


def _refuse(connection: socket.socket | None, message: str) -> NoReturn:
    """Say that nothing was started, with the exit code that a container engine uses."""
    if connection is not None:
        with contextlib.suppress(OSError):
            _send(connection, {"error": message})
    print(message, file=sys.stderr, flush=True)
    os._exit(128)


def _prepare(request: Request) -> bool:
    os.environ.clear()
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
    _reseed()
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


def _run(request: Request) -> int:
    """Run ``main`` and end as an interpreter ends, except for freeing memory that the kernel frees faster."""
    code = _exit_code_of(lambda: importlib.import_module(request.module).main(list(request.argv)))
    for ending in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            ending()
        except BaseException:
            traceback.print_exc()
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
_OWN_MODULES = ("shallop_pod.isolation", "shallop_pod.execute", "shallop_pod.shim", "shallop_pod.netlink")


def _preload(modules: Sequence[str]) -> None:
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "1"
    os.environ["_KFP_RUNTIME"] = "true"
    for module in (*_OWN_MODULES, *modules):
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken library must fail in the process that uses it, not here
            print(f"zygote: {module} is not preloaded: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    _find_thread_pools()
    # OpenBLAS ends its threads before a fork and starts them again when they are needed: from here on there is one.
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop or idle for too long."""
    parser = argparse.ArgumentParser(prog="shallop_pod.zygote", description="Fork-server of one environment.")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--preload", action="append", default=[])
    parser.add_argument("--idle-s", type=float, default=600.0)
    parser.add_argument("--ready-fd", type=int, default=-1)
    options = parser.parse_args(argv)
    if os.fork():
        os._exit(0)  # nobody's child: no zombie for who started us, no end when that ends
    os.setsid()
    _preload(options.preload)
    if (threads := _count_threads()) > 1:
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
