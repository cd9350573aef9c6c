"""
A small task, as the launcher would run it, before there is one.

A fork-server runs it once itself, so that what is made when it is first needed is there for all its processes; and once
in a process that it forks, to learn which memory a task writes to, see ``shallop_pod.pages``. Everything that a
rehearsal changes is put back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from typing import Iterator  # noqa: UP035  environments may be Python 3.9

from shallop_pod import pages

__all__ = ["rehearse", "written_pages"]

_EXECUTOR = "kfp.dsl.executor_main"
# The shape of a component's command, as kfp_component recognises it; no shell runs.
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


def rehearse() -> None:
    """Run a Python component where the environment is one for them; what goes wrong is of no importance."""
    if _EXECUTOR not in sys.modules:
        return
    with contextlib.suppress(Exception), _undone(), tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        outputs = {"parameters": {"Output": {"outputFile": f"{folder}/Output"}}, "outputFile": f"{folder}/output.json"}
        executor_input = {"inputs": {"parameterValues": {"number": 1, "text": "a"}}, "outputs": outputs}
        task = {"name": "rehearsal", "dir": folder, "executorInput": executor_input}
        task["outputParameters"] = {"Output": "STRING"}
        command = ["sh", "-ec", _SCRIPT, _SOURCE, "--executor_input", "{{$}}", "--function_to_execute", "rehearsal"]
        sys.modules["shallop_pod.launcher"].main(["--task", json.dumps(task), "--", *command])


def written_pages() -> pages.Ranges:
    """Return which memory that it shares with this process a forked task writes to; empty where none is rehearsed."""
    if _EXECUTOR not in sys.modules:
        return []
    answer, told = os.pipe()
    if (pid := os.fork()) == 0:
        with contextlib.suppress(Exception), open(told, "w") as file:
            rehearse()
            json.dump(pages.written(), file)
        os._exit(0)
    os.close(told)
    with open(answer) as file:
        text = file.read()
    os.waitpid(pid, 0)
    with contextlib.suppress(ValueError):  # it was killed before it had told everything
        return [(start, length) for start, length in json.loads(text)]
    return []


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
