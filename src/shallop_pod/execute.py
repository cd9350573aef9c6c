"""Run a program as a container's process: ``execute.main(argv)``; as PID 1 it reaps and passes signals on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import sys
import termios
from typing import Callable, NoReturn, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod.zygote import run_to_end

__all__ = ["main", "run_below"]

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(argv: Sequence[str]) -> int | None:
    """Become ``argv[0]``; exit code 127 when there is no such program, 126 when it may not be executed."""
    return run_below(lambda: _replace(argv))


def run_below(program: Callable[[], int | None]) -> int | None:
    """Run ``program``, in a child where this process is PID 1; return its exit code."""
    if os.getpid() != 1:
        return program()
    # The kernel drops signals that PID 1 has no handler for: a plain "sleep" could not be stopped.
    pid = os.fork()
    if pid == 0:
        os._exit(run_to_end(program))
    for number in _PASSED_ON:
        signal.signal(number, lambda received, _frame: os.kill(pid, received))
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _replace(argv: Sequence[str]) -> NoReturn:
    if os.isatty(0):
        _take_terminal()
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126)


def _take_terminal() -> None:
    """Make standard input the controlling terminal, so that Ctrl-C and job control work."""
    with contextlib.suppress(OSError):  # a leader already
        os.setsid()
    with contextlib.suppress(OSError):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
