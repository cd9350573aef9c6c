"""
Runs one pipeline task inside its Pod and leaves ``result.json`` behind.

``python3 -m shallop_pod.launcher --task JSON -- ARGV...`` (or ``--task @FILE``). ARGV is the component's own command
and arguments with all placeholders resolved; an element that is exactly ``{{$}}`` is replaced by the executor input, so
that a large one need not be carried twice. The task, a JSON object::

    name               the task's name, for messages
    dir                the task's folder: made when absent, holds result.json; parameter files are usually here too
    executorInput      the executor input: inputs{parameterValues, artifacts}, outputs{parameters{n: {outputFile}},
                       artifacts{n: {artifacts: [{name, type, uri, metadata}]}}, outputFile}; empty parts may be absent
    executorInputFile  path of a JSON file with it, instead of executorInput
    outputParameters   {name: type}, type one of STRING NUMBER_INTEGER NUMBER_DOUBLE BOOLEAN LIST STRUCT
    optionalOutputs    [name], declared output parameters that may stay absent (default none)
    retryIndex         attempt, from 0 (default 0)

URIs are plain paths (``file://`` too); ``shallop_pod.paths`` is where object stores join.

Before: what an earlier attempt left at the places of result and outputs is removed; parents of output files and
artifacts are made. The component: a KFP Python component (recognised by shape, ``shallop_pod.kfp_component``) runs in
this very process, with no pip, shell or second interpreter, its source and the files of its output parameters in a
folder that is gone afterwards; anything else is a subprocess whose stdout and stderr pass through. SIGTERM reaches it.

``result.json`` in ``dir``, written to a temporary name and renamed, before the process exits::

    state       "SUCCEEDED" or "FAILED"
    exitCode    the component's (128+n for signal n); 1 when it was 0 but its outputs are not what it declared
    parameters  {name: value}, typed: integers are integers; {} after a failure
    artifacts   {name: [{name, type, uri, metadata, digest, sizeBytes}]}; digest "sha256:..." of a file's or a
                directory's content, null and sizeBytes 0 when nothing was written; {} after a failure
    error       null, or {"message": TEXT}: the last lines of the traceback, or what was wrong with the outputs
    usage       {"cpuSeconds", "maxRssBytes"}
    environment "sha256:..." of the packages that the task ran with, null outside of a cached environment
    retryIndex, startedAt, endedAt   RFC 3339, UTC

The exit code of the process is ``exitCode``. After a failure nothing is left at the places of the output artifacts. No
result.json means that the process was killed, or that not even a small file could be written: the Pod's exit code and
log tell which.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, Iterator, NoReturn, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod.kfp_component import PythonComponent, installs_at_run_time, recognise_component
from shallop_pod.outputs import OutputError, read_outputs
from shallop_pod.paths import UnsupportedUriError, local_path

__all__ = ["PAUSED", "Task", "foresee", "main", "parse_arguments"]

# Set in a Pod that somebody looks around in: the task is not run, the process waits for its end.
PAUSED = "SHALLOP_TASK_PAUSED"

_RESULT = "result.json"
_MEMORY = "/dev/shm"
_MESSAGE_LINES = 12
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of IPython, in what a notebook raises


class TaskError(Exception):
    """The task ends here, with this exit code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Task:
    """What the module's docstring calls the task."""

    name: str
    folder: str
    executor_input: dict[str, Any]
    output_parameters: dict[str, str] = field(default_factory=dict)
    optional_outputs: frozenset[str] = frozenset()
    retry_index: int = 0

    @property
    def output_file(self) -> str:
        return str(self._outputs.get("outputFile", ""))

    @property
    def parameter_files(self) -> dict[str, str]:
        parameters = self._outputs.get("parameters", {})
        return {name: value["outputFile"] for name, value in parameters.items() if value.get("outputFile")}

    @property
    def artifacts(self) -> dict[str, list[dict[str, Any]]]:
        return {name: value.get("artifacts", []) for name, value in self._outputs.get("artifacts", {}).items()}

    @property
    def _outputs(self) -> dict[str, Any]:
        return self.executor_input.get("outputs") or {}

    def noted_in(self, folder: str) -> Task:
        """Return the task with the files that its component writes for the launcher in another folder."""
        parameters = self._outputs.get("parameters", {})
        moved = {name: {**value, "outputFile": f"{folder}/parameters/{name}"} for name, value in parameters.items()}
        outputs = {**self._outputs, "parameters": moved, "outputFile": f"{folder}/output_metadata.json"}
        return replace(self, executor_input={**self.executor_input, "outputs": outputs})

    def artifact_paths(self) -> list[str]:
        """Where output artifacts of this machine will be; others are none of our business."""
        paths = []
        for artifact in (artifact for artifacts in self.artifacts.values() for artifact in artifacts):
            with contextlib.suppress(UnsupportedUriError):
                paths.append(local_path(artifact.get("uri", "")))
        return paths


def parse_arguments(argv: Sequence[str]) -> tuple[Task, list[str]]:
    """Return the task and the component's argv, as they were given; ValueError says which argument is wrong."""
    words = list(argv)
    if len(words) < 3 or words[0] != "--task" or words[2] != "--":
        raise ValueError("usage: python3 -m shallop_pod.launcher --task JSON|@FILE -- COMMAND [ARGUMENT...]")
    text = words[1]
    if text.startswith("@"):
        with open(text[1:], encoding="utf-8") as file:
            text = file.read()
    raw = json.loads(text)
    executor_input = raw.get("executorInput", {})
    if path := raw.get("executorInputFile"):
        with open(path, encoding="utf-8") as file:
            executor_input = json.load(file)
    task = Task(
        raw["name"],
        raw["dir"],
        executor_input,
        raw.get("outputParameters", {}),
        frozenset(raw.get("optionalOutputs", ())),
        raw.get("retryIndex", 0),
    )
    return task, words[3:]


def foresee(argv: Sequence[str]) -> None:
    """Remember for processes that are forked later how to read a command; other tasks have much of it in common."""
    recognise_component(argv[3:])


def _filled_in(words: Sequence[str], task: Task) -> list[str]:
    return [json.dumps(task.executor_input) if word == "{{$}}" else word for word in words]


def main(argv: Sequence[str]) -> int:
    """Run the task; returns its exit code."""
    if os.environ.get(PAUSED):
        signal.signal(signal.SIGTERM, _terminated)
        while True:
            signal.pause()
    try:
        task, command = parse_arguments(argv)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        print(f"launcher: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    started, cpu_s = _now(), _cpu_s()
    result: dict[str, Any] = {"state": "FAILED", "exitCode": 1, "parameters": {}, "artifacts": {}, "error": None}
    try:
        result["parameters"], result["artifacts"] = _run(task, command)
        result.update(state="SUCCEEDED", exitCode=0)
        _write_result(task, result, started, cpu_s)
    except (TaskError, OutputError, OSError) as error:
        result.update(state="FAILED", exitCode=getattr(error, "code", 1), parameters={}, artifacts={})
        result["error"] = {"message": _message_of(error)}
        if not isinstance(error, TaskError):
            print(f"launcher: {result['error']['message']}", file=sys.stderr)
        _fail(task, result, started, cpu_s)
    return int(result["exitCode"])


def _message_of(error: Exception) -> str:
    if isinstance(error, OSError):
        where = error.filename or "the task's folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"No space left for the outputs: {where}. Free space on that disk and run the task again."
        return f"{where}: {error.strerror or error}"
    return str(error)


def _fail(task: Task, result: dict[str, Any], started: str, cpu_s: float) -> None:
    """Remove outputs first: on a full disk it is they who leave no room for the result."""
    for path in task.artifact_paths():
        _remove(path)
    try:
        _write_result(task, result, started, cpu_s)
    except OSError as error:
        print(f"launcher: {task.folder}/{_RESULT} cannot be written: {error.strerror}", file=sys.stderr)


def _prepare(task: Task) -> None:
    os.makedirs(task.folder, exist_ok=True)
    files = [*task.parameter_files.values(), *([task.output_file] if task.output_file else [])]
    for path in [os.path.join(task.folder, _RESULT), *files, *task.artifact_paths()]:
        _remove(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


# --- running --------------------------------------------------------------------------------------------------------


def _run(task: Task, command: list[str]) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Run the component to its end and return its outputs; TaskError unless it ended well."""
    component = recognise_component(command)
    if component is None:
        _prepare(task)
        _run_program(_filled_in(command, task))
        return read_outputs(task)
    with _own_folder() as folder:
        if not any(task.folder in word for word in component.arguments):
            task = task.noted_in(folder)
        _prepare(task)
        arguments = _filled_in(component.arguments, task)
        _run_function(replace(component, arguments=tuple(arguments)), os.path.join(folder, "ephemeral_component.py"))
        return read_outputs(task)


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """Make a folder for what the launcher and a component in its process give each other."""
    if os.getpid() == 1 and os.access(_MEMORY, os.W_OK):
        # A container's own memory: no disk has work with it, and it goes with the container's first process.
        folder = f"{_MEMORY}/component-{os.urandom(4).hex()}"
        os.mkdir(folder, 0o700)
        yield folder
        return
    folder = tempfile.mkdtemp(prefix="component-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_function(component: PythonComponent, source_path: str) -> None:
    signal.signal(signal.SIGTERM, _terminated)
    try:
        component.run(source_path)
        _end_threads()
    except SystemExit as error:
        _exited(error)
    except BaseException as error:
        traceback.print_exc()
        lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip().splitlines()
        raise TaskError(1, _COLOURS.sub("", "\n".join(lines[-_MESSAGE_LINES:]))) from error
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows is short and must not be torn
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()


def _end_threads() -> None:
    """Wait for the component's threads as the interpreter does at its end: first idle pools are told to stop."""
    for stop in reversed(getattr(threading, "_threading_atexits", ())):
        stop()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


def _exited(error: SystemExit) -> None:
    """Take ``sys.exit`` as the interpreter does: None is success, a text is printed and means 1."""
    if error.code is None or error.code == 0:
        return
    if isinstance(error.code, int):
        code = error.code & 0xFF
        reason = (
            "It was terminated." if code == 128 + signal.SIGTERM else f"The component called sys.exit({error.code})."
        )
        raise TaskError(code, reason) from error
    print(error.code, file=sys.stderr)
    raise TaskError(1, str(error.code)) from error


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _run_program(command: list[str]) -> None:
    if not command:
        raise TaskError(128, "The component has no command, and its image no known entrypoint.")
    with _own_packages(command) as env:
        try:
            process = subprocess.Popen(command, env=env)
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            message = f"Cannot start {command[0]!r}: {error.strerror}."
            if error.errno == errno.E2BIG:
                message += " An argument is longer than 128 KiB: pass it as an artifact, or use a Python component."
            print(f"launcher: {message}", file=sys.stderr)
            raise TaskError(code, message) from error
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if code:
        reason = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
        raise TaskError(code if code > 0 else 128 - code, f"The command {command[0]!r} {reason}; its log says more.")


@contextlib.contextmanager
def _own_packages(command: list[str]) -> Any:
    """Give a command that runs pip a folder of its own: the environment is shared and stays as it is."""
    if not installs_at_run_time(command):
        yield dict(os.environ)
        return
    folder = tempfile.mkdtemp(prefix="packages-")
    env = dict(os.environ, PIP_TARGET=folder)
    env["PYTHONPATH"] = os.pathsep.join([folder, *([env["PYTHONPATH"]] if env.get("PYTHONPATH") else [])])
    env["PATH"] = f"{folder}/bin{os.pathsep}{env.get('PATH', os.defpath)}"
    try:
        yield env
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- the result -----------------------------------------------------------------------------------------------------


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")  # noqa: UP017


def _usages() -> list[resource.struct_rusage]:
    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


def _cpu_s() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in _usages())


def _usage(cpu_s: float) -> dict[str, Any]:
    unit = 1 if sys.platform == "darwin" else 1024
    # What the process used before, as it was prepared for any task, is not this one's.
    used = round(_cpu_s() - cpu_s, 6)
    return {"cpuSeconds": used, "maxRssBytes": max(usage.ru_maxrss for usage in _usages()) * unit}


@lru_cache(maxsize=1)  # a fork-server's rehearsal looks it up for all its processes
def _environment_digest() -> str | None:
    try:
        with open(os.path.join(sys.prefix, "shallop-environment.json"), encoding="utf-8") as file:
            return str(json.load(file)["digest"])
    except (OSError, ValueError, KeyError):
        return None


def _write_result(task: Task, result: dict[str, Any], started: str, cpu_s: float) -> None:
    record = {**result, "usage": _usage(cpu_s), "environment": _environment_digest(), "retryIndex": task.retry_index}
    record.update(startedAt=started, endedAt=_now())
    text = json.dumps(record, allow_nan=False)
    path = os.path.join(task.folder, _RESULT)
    temporary = f"{path}.{os.getpid()}"
    try:
        # No fsync: the result must survive a killed process, which the page cache does; a sync costs more than a task.
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        _remove(temporary)
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
