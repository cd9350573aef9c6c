"""
Several processes that serve the same models on the same port.

They are forked once the models are loaded, so that they share their memory, where the library survives a fork; else
each loads its own. The kernel spreads connections over them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

__all__ = ["supervise"]

_TOO_SHORT_S = 1.0


def supervise(count: int, work: Callable[[int], int]) -> int:
    """
    Run ``work(0)`` to ``work(count - 1)``, each in a process of its own, until SIGTERM; one that dies is started again.

    Must be called before there are threads and an event loop.

    Args:
        work: returns the exit code of the process.

    Returns:
        0, or the exit code of workers that cannot start.
    """
    stopping = False
    started: dict[int, tuple[int, float]] = {}

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        for pid in started:
            os.kill(pid, signal.SIGTERM)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    for number in range(count):
        started[_fork(number, work)] = (number, time.monotonic())
    while started:
        pid, status = os.waitpid(-1, 0)
        if pid not in started:
            continue  # an orphan: we may be the first process of a container
        number, since = started.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if stopping:
            continue
        if code > 0 and time.monotonic() - since < _TOO_SHORT_S:
            stop(signal.SIGTERM, None)
            return _wait_for_all(started, code)
        print(f"worker {number} ended with {code}; starting it again", file=sys.stderr, flush=True)
        started[_fork(number, work)] = (number, time.monotonic())
    return 0


def _wait_for_all(started: dict[int, tuple[int, float]], code: int) -> int:
    for pid in started:
        os.waitpid(pid, 0)
    return code


def _fork(number: int, work: Callable[[int], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)
        code = work(number)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        # Nothing of the parent's stack may run in the child; its log shall say why it ended.
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
