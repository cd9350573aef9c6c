"""
Who goes first where there are more processes than cores: the control plane, then what it starts.

Each of its answers takes several turns on a core; while 200 steps started at once, each turn waited 5 to 60 ms for
theirs. Nodes of Kubernetes give their daemons a share of their own, and Pods that ask for no CPU hardly any.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["at_usual_priority", "steps_behind", "take_precedence"]

# One step is a tenth of the share. A user who may not raise the control plane lowers what it starts, by less: other
# programs go before that, too.
_ABOVE, _BELOW = 10, 5
_SESSION = Path("/proc/self/autogroup")
_SESSIONS_COUNT = Path("/proc/sys/kernel/sched_autogroup_enabled")


def take_precedence() -> None:
    """
    Raise this process, where the system allows it and nobody has chosen a priority for it.

    Belongs to the start of the main thread: threads that are there already keep their priority.
    """
    if sys.platform == "win32" or os.getpriority(os.PRIO_PROCESS, 0) != 0:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -_ABOVE)
    except PermissionError:
        return
    if _owns_session():
        with contextlib.suppress(OSError):
            _SESSION.write_text(str(-_ABOVE))


def steps_behind() -> int:
    """Return how many steps of niceness processes of Pods add to what they inherit from this process."""
    if not _is_raised():
        return _BELOW
    # Linux shares cores among sessions first; one that began elsewhere, such as a terminal's, is not ours to raise.
    return _ABOVE if _owns_session() or not _sessions_count() else _ABOVE + _BELOW


def at_usual_priority(command: Sequence[str]) -> list[str]:
    """Return a command that does not inherit the priority of this process; give it a session of its own, too."""
    return ["nice", "-n", str(_ABOVE), *command] if _is_raised() else list(command)


def _is_raised() -> bool:
    return os.getpriority(os.PRIO_PROCESS, 0) < 0


def _owns_session() -> bool:
    return os.getsid(0) == os.getpid()


def _sessions_count() -> bool:
    try:
        return _SESSIONS_COUNT.read_text().strip() == "1"
    except OSError:
        return False
