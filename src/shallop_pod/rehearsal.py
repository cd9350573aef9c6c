"""
A small task, as the launcher would run it, before there is one.

A fork-server runs it some times itself, so that what is made when it is first needed, and the interpreter's faster form
of code that runs often, is there for all its processes; and once as a process that is asked for, to learn which memory
such a process writes to, see ``shallop_pod.pages``. Everything that a rehearsal changes is put back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from typing import Iterator, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod import pages

__all__ = ["is_possible", "main", "rehearse"]

_EXECUTOR = "kfp.dsl.executor_main"
# Python 3.11 looks at code that is called for the eighth time, and what it makes of it settles with the next.
_TIMES = 10
# The shape of a component's command, as kfp_component recognises it; no shell runs.
_INSTALL = """
if ! [ -x "$(command -v pip)" ]; then
    python3 -m ensurepip || python3 -m ensurepip --user || apt-get install python3-pip
fi

PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip install --quiet --no-warn-script-location 'kfp' && "$0" "$@"
"""
_SCRIPT = """
program_path=$(mktemp -d)
printf "%s" "$0" > "$program_path/ephemeral_component.py"
python3 -m kfp.dsl.executor_main --component_module_path "$program_path/ephemeral_component.py" "$@"
"""
_SOURCE = """
import kfp
from kfp import dsl
from kfp.dsl import *
from typing import *

def rehearsal(number: int, text: str) -> str:
    return text * number
"""


def is_possible() -> bool:
    """Say whether the environment is one for Python components."""
    return _EXECUTOR in sys.modules


def rehearse(times: int = _TIMES) -> None:
    """Run a Python component where it is possible; what goes wrong is of no importance."""
    for _ in range(times if is_possible() else 0):
        with contextlib.suppress(Exception):
            _rehearse_once()


def _rehearse_once() -> None:
    with _undone(), tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        _run_task(folder)


def _run_task(folder: str) -> None:
    outputs = {"parameters": {"Output": {"outputFile": f"{folder}/Output"}}, "outputFile": f"{folder}/output.json"}
    executor_input = {"inputs": {"parameterValues": {"number": 1, "text": "a"}}, "outputs": outputs}
    task = {"name": "rehearsal", "dir": folder, "executorInput": executor_input}
    task["outputParameters"] = {"Output": "STRING"}
    command = ["sh", "-c", _INSTALL, "sh", "-ec", _SCRIPT, _SOURCE]
    arguments = ["--executor_input", "{{$}}", "--function_to_execute", "rehearsal"]
    sys.modules["shallop_pod.launcher"].main(["--task", json.dumps(task), "--", *command, *arguments])


def main(argv: Sequence[str]) -> None:
    """As a process of a fork-server: say on stderr, last, which of the fork-server's memory this one has written to."""
    folder = tempfile.mkdtemp(prefix="rehearsal-")
    try:
        _run_task(folder)
        print(json.dumps(pages.written()), file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    """Put back what a task changes in its process."""
    root = logging.getLogger()
    modules, path, argv = set(sys.modules), list(sys.path), list(sys.argv)
    environ, no_bytecode = dict(os.environ), sys.dont_write_bytecode
    handlers, level = list(root.handlers), root.level
    streams = sys.stdin, sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:
        sys.stdout = sys.stderr = null
        try:
            yield
        finally:
            sys.stdin, sys.stdout, sys.stderr = streams
            for name in set(sys.modules) - modules:
                del sys.modules[name]
            sys.path[:], sys.argv[:] = path, argv
            os.environ.clear()
            os.environ.update(environ)
            sys.dont_write_bytecode = no_bytecode
            # The end of a task tells the pools of concurrent.futures that the interpreter ends, which is for good.
            for module, flag in (("thread", "_shutdown"), ("process", "_global_shutdown")):
                if pools := sys.modules.get(f"concurrent.futures.{module}"):
                    setattr(pools, flag, False)
            root.handlers[:] = handlers
            root.setLevel(level)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
