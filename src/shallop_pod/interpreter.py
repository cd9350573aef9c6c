"""
Run a Python program as ``python3`` would, in a process that a fork-server has forked: ``interpreter.main(argv)``.

An interpreter's start costs 15 ms or more, imports of frameworks seconds; a search runs the same program a hundred
times. ``-c``, ``-m`` and scripts run here, with ``-u``; options and variables that only an interpreter's start can
honour, other versions and other programs are started as they are (``shallop_pod.execute``).

Different from a start of its own: modules of the fork-server are imported already, all of its processes hash strings
alike, and ``ps`` shows the fork-server's command.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import importlib.util
import io
import os
import runpy
import shutil
import sys
import types
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, SourceFileLoader
from typing import Any, Mapping, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod import execute

__all__ = ["Program", "main", "recognise"]

# Variables of the interpreter that mean the same at any time.
_HONOURED = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")


@dataclass(frozen=True)
class Program:
    """A Python program: ``kind`` is ``-c``, ``-m`` or empty for a script, ``what`` its text, module or path."""

    kind: str
    what: str
    arguments: tuple[str, ...]
    unbuffered: bool = False

    def run(self) -> None:
        """Run it as ``__main__``; raises what it raises."""
        if self.unbuffered:
            sys.stdout = sys.__stdout__ = _unbuffered(sys.stdout)  # type: ignore[misc]
            sys.stderr = sys.__stderr__ = _unbuffered(sys.stderr)  # type: ignore[misc]
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            sys.dont_write_bytecode = True
        sys.argv = [self.kind or self.what, *self.arguments]
        if self.kind == "-m":
            runpy.run_module(self.what, run_name="__main__", alter_sys=True)
            return
        module: Any = types.ModuleType("__main__")
        module.__builtins__, module.__loader__, module.__annotations__ = builtins, BuiltinImporter, {}
        if self.kind == "-c":
            sys.path[0], code = "", compile(self.what, "<string>", "exec")
        else:
            path = os.path.abspath(self.what)
            module.__file__, module.__cached__, module.__loader__ = path, None, SourceFileLoader("__main__", path)
            sys.path[0] = os.path.dirname(os.path.realpath(path))
            with io.open_code(path) as file:
                code = compile(file.read(), path, "exec")
        sys.modules["__main__"] = module
        exec(code, module.__dict__)


def _unbuffered(stream: Any) -> Any:
    raw = io.FileIO(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, write_through=True)


def recognise(argv: Sequence[str], environ: Mapping[str, str]) -> Program | None:
    """Return the program that ``argv`` runs, None when this interpreter cannot stand for the one that it names."""
    if not argv or not _is_this(argv[0], environ) or any(_matters(name, environ) for name in environ):
        return None
    words, unbuffered = list(argv[1:]), bool(environ.get("PYTHONUNBUFFERED"))
    while words[:1] == ["-u"]:
        words, unbuffered = words[1:], True
    if words[:1] == ["-c"] or words[:1] == ["-m"]:
        if len(words) < 2 or (words[0] == "-m" and not _has_module(words[1])):
            return None
        return Program(words[0], words[1], tuple(words[2:]), unbuffered)
    if not words or words[0].startswith("-") or not os.path.isfile(words[0]):
        return None
    return Program("", words[0], tuple(words[1:]), unbuffered) if words[0].endswith(".py") else None


def _matters(name: str, environ: Mapping[str, str]) -> bool:
    return name.startswith("PYTHON") and name not in _HONOURED and bool(environ[name])


def _is_this(program: str, environ: Mapping[str, str]) -> bool:
    """Say whether a command is this interpreter, of the same environment."""
    name = os.path.basename(program)
    if name not in ("python", "python3", "python{}.{}".format(*sys.version_info)):
        return False
    found = shutil.which(program, path=environ.get("PATH", os.defpath))
    return found is not None and os.path.dirname(found) == os.path.dirname(sys.executable)


def _has_module(name: str) -> bool:
    """Say whether there is a module to run; what is wrong with it otherwise, Python itself says best."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def main(argv: Sequence[str]) -> int | None:
    """Run the program, or start it as it is."""
    program = recognise(argv, os.environ)
    if program is None:
        return execute.main(argv)
    sys.orig_argv, sys.executable = list(argv), shutil.which(argv[0]) or sys.executable
    return execute.run_below(lambda: _run(program))


def _run(program: Program) -> int | None:
    atexit.register(_let_go)  # the first to be registered runs last
    try:
        program.run()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        error = error.with_traceback(_own_part(error.__traceback__))
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return None


def _let_go() -> None:
    """Let what the program has left end as with an interpreter: files are written out and finalizers run."""
    sys.modules.pop("__main__", None)
    # First: what is collected together may be finalized in any order, a buffer before the text that goes through it.
    _flush_files()
    gc.collect()
    _flush_files()


def _flush_files() -> None:
    for left in gc.get_objects():
        if issubclass(type(left), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
            with contextlib.suppress(ValueError, OSError):
                left.flush()


def _own_part(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """Return a traceback without what stands above the program."""
    above = (__file__, execute.__file__, runpy.__file__, "<frozen runpy>")
    part = traceback
    while part is not None and part.tb_frame.f_code.co_filename in above:
        part = part.tb_next
    return part
