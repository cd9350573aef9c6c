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
from collections.abc import Callable, Iterable, Iterator

__all__ = ["supervise"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
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
    # Waited for, not handled: a signal cannot slip in between two steps.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    started = {_fork(number, work): (number, time.monotonic()) for number in range(count)}
    ending, result = False, 0
    while started:
        if signal.sigwait(_SIGNALS) != signal.SIGCHLD:
            ending = _end(started)
        for pid, code in _ended():
            if pid not in started:
                continue  # an orphan: we may be the first process of a container
            number, since = started.pop(pid)
            if ending:
                continue
            if code > 0 and time.monotonic() - since < _TOO_SHORT_S:
                ending, result = _end(started), code
                continue
            print(f"worker {number} ended with {code}; starting it again", file=sys.stderr, flush=True)
            started[_fork(number, work)] = (number, time.monotonic())
    return result


def _end(pids: Iterable[int]) -> bool:
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    return True


def _ended() -> Iterator[tuple[int, int]]:
    """Yield the processes that have ended, with their exit codes; one signal may stand for several."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _fork(number: int, work: Callable[[int], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
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
