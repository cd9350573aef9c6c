"""What this machine lets us do to keep Pods apart; tried once, in children that end at once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import shallop_pod
from shallop.settings import Settings

__all__ = ["IsolationReport", "probe"]

_TRY_NAMESPACES = """
import os, sys
sys.path.insert(0, sys.argv[1])
from shallop_pod import isolation
plan = {"user": sys.argv[2] == "user", "pid": True, "mounts": [{"target": "/shallop-probe/models", "source": "/usr"}]}
pid = 0 if plan["user"] else isolation.fork_first()
if pid == 0:
    entrance = isolation.Entrance(isolation.shape_of(plan))
    pid = os.fork() if entrance.forks else 0
if pid == 0:
    entrance.finish()
    entrance.complete(plan)
    os._exit(0 if os.listdir("/shallop-probe/models") and os.getpid() == 1 else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
_TRY_NETWORK = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from shallop_pod.netlink import Netlink
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
    raise OSError(ctypes.get_errno(), "no network namespace")
with Netlink() as inside:
    inside.add_bridge("probe0")
"""


@dataclass(frozen=True)
class IsolationReport:
    """
    How Pods are kept apart.

    Args:
        level: ``namespaces`` (own mounts, processes, network and address), ``user`` (own mounts and processes, the
            machine's network) or ``none`` (paths and addresses are rewritten).
        why: what stands in the way of a better level; empty for the best one.
    """

    level: str
    why: str = ""


def probe(settings: Settings) -> IsolationReport:
    """
    Find the level to use: the best one that works, not above what ``settings.isolation`` asks for.

    A level that is asked for by name and does not work is reported as the next lower one, with the reason.
    """
    asked = settings.isolation
    if asked == "none":
        return IsolationReport("none", "set by --isolation none")
    if not sys.platform.startswith("linux"):
        return IsolationReport("none", f"{sys.platform} has no namespaces")
    if asked in ("auto", "namespaces"):
        problem = _namespaces_problem()
        if not problem:
            return IsolationReport("namespaces")
    else:
        problem = "set by --isolation user"
    user_problem = _try(_TRY_NAMESPACES, "user")
    if not user_problem:
        return IsolationReport("user", problem)
    return IsolationReport("none", f"{problem}; as an ordinary user: {user_problem}")


def _namespaces_problem() -> str:
    if os.geteuid() != 0:
        return "own networks for Pods need root"
    return _try(_TRY_NAMESPACES, "root") or _try(_TRY_NETWORK)


def _try(program: str, *arguments: str) -> str:
    """Run a trial; returns what went wrong, empty when nothing did."""
    source = os.path.dirname(os.path.dirname(os.path.abspath(shallop_pod.__file__)))
    command = [sys.executable, "-I", "-c", program, source, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"trial ended with {done.returncode}"
