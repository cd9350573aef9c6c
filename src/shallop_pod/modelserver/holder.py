"""
A process that has loaded a replica's models and forks the replicas: they share its memory until somebody writes to it.

Forked from an environment's zygote, with the variables of a replica, as ``main(["--socket", PATH, "--plan", JSON,
"--idle-s", S, "--", *argv])``. It visits the place where the replica would run (mounts, network, control groups), loads
there what a server with ``argv`` would load, comes back, and is a zygote from then on. Asked for this module with
``argv``, a child of it serves what was loaded, as ``shallop_pod.modelserver`` does; what was printed while loading is
printed by each.

It says one word on stdout: ``ready``, or ``refused`` and why, and ends then. Nobody is served by a process that
lacks something because it was forked: threads, open files and temporary files that loading has left are refused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shallop_pod.isolation import visiting
from shallop_pod.modelserver import server
from shallop_pod.modelserver.dialects import Options, OptionsError, parse_options
from shallop_pod.modelserver.models import LoadError, survives_fork
from shallop_pod.zygote import count_threads, serve_forks

__all__ = ["main"]

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


class _Held(NamedTuple):
    loaded: server.Loaded
    printed: tuple[str, str]


# One in a process that holds models and in its children, none elsewhere.
_held: list[_Held] = []


class _Refused(Exception):
    """Replicas must load their models themselves; the message says why."""


def main(argv: Sequence[str]) -> int:
    """Load and hold; in a child of who has done so, serve."""
    for held in _held:
        for stream, text in zip((sys.stdout, sys.stderr), held.printed, strict=True):
            stream.write(text)
            stream.flush()
        return server.main(list(argv), held.loaded)
    parser = argparse.ArgumentParser(prog="holder")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--plan", type=json.loads, required=True)
    parser.add_argument("--idle-s", type=float, required=True)
    parser.add_argument("argv", nargs="*")
    options = parser.parse_args(argv)
    word = os.dup(1)
    try:
        _hold(options.plan, options.argv)
        serve_forks(options.socket, idle_s=options.idle_s, ready=lambda: _say(word, "ready"))
    except (_Refused, LoadError, OptionsError, OSError) as error:
        _say(word, f"refused: {error}")
        return 1
    return 0


def _say(pipe: int, text: str) -> None:
    os.write(pipe, text.encode())
    os.close(pipe)


def _hold(plan: dict[str, Any], argv: Sequence[str]) -> None:
    options = parse_options(argv, os.environ)
    count_threads()  # namespaces are entered and left by processes with one
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _printing_to(out.fileno(), err.fileno()), visiting(plan):
            loaded = _load(options)
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode(errors="replace"))
    _held.append(_Held(loaded, (printed[0], printed[1])))


def _load(options: Options) -> server.Loaded:
    """Load here; there must be nothing of it that a child would not have."""
    if os.environ.get("SHALLOP_MULTI_MODEL") == "true":
        raise _Refused("models come later")
    if not survives_fork(Path(options.folder), server.how_to_load(options)):
        raise _Refused("the library of the model does not survive a fork")
    before = _files()
    loaded = server.load_all(options)
    if (threads := count_threads()) > 1:
        raise _Refused(f"loading has left {threads - 1} threads")
    if left := _files() - before:
        raise _Refused(f"loading has left files: {', '.join(sorted(left))}")
    return loaded


def _files() -> set[str]:
    """Return what is open, and what is in folders of which each replica has its own."""
    found = {f"{folder}/{name}" for folder in _TEMPORARY for name in os.listdir(folder)}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            target = os.readlink(f"/proc/self/fd/{number}")
            found |= set() if target.startswith("/proc/") else {f"{number}: {target}"}
    return found


@contextlib.contextmanager
def _printing_to(*files: int) -> Iterator[None]:
    """Let what is printed, by libraries too, go to these files."""
    kept = [os.dup(target) for target in (1, 2)]
    try:
        for target, file in enumerate(files, start=1):
            os.dup2(file, target)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, original in enumerate(kept, start=1):
            os.dup2(original, target)
            os.close(original)
