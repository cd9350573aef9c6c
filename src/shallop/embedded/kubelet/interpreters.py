"""
Which Python interpreters this machine has.

Only file names are read, nothing is started: the interpreter of the control plane, those that uv and pyenv installed,
and PATH. Environments are built for Python 3.9 and newer, the oldest that ``shallop_pod`` runs on.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Interpreter", "choose_interpreter", "find_interpreters", "is_optimised", "own_version"]

_OLDEST = (3, 9)
# Not PyPy, not the free-threaded builds: wheels for them are rare.
_RELEASE = re.compile(r"(cpython-)?3\.\d+\.\d+(-[a-z0-9_-]+)?")
_EXECUTABLE = re.compile(r"python3\.\d+")


class Interpreter(NamedTuple):
    """One interpreter: ``version`` is X.Y, ``path`` the real file."""

    version: str
    path: str


def own_version() -> str:
    """X.Y of the interpreter that runs the control plane."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def is_optimised(base_prefix: str = sys.base_prefix, options: str | None = None) -> bool:
    """
    Say whether a Python was built with profile-guided optimisation, which makes it about a quarter faster.

    Operating systems build theirs so, and so are those of uv, conda and the images; pyenv does it only when told.

    Args:
        base_prefix: where it is installed.
        options: of its ``configure``; by default those of the running one.
    """
    if options is None:
        options = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    return base_prefix == "/usr" or "--enable-optimizations" in options


def find_interpreters(environ: Mapping[str, str]) -> dict[str, Interpreter]:
    """Return version -> interpreter; of several of one version the one that was installed on purpose."""
    found = {own_version(): Interpreter(own_version(), os.path.realpath(_base_executable()))}
    for path in _candidates(environ):
        version = path.name.removeprefix("python")
        if version not in found and _is_supported(version) and os.access(path, os.X_OK):
            found[version] = Interpreter(version, os.path.realpath(path))
    return found


def _base_executable() -> str:
    # In a virtual environment sys.executable is its link; environments must not depend on the tool's own one.
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    home = Path(environ.get("HOME") or Path.home())
    uv = Path(environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python")
    pyenv = Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    for folder in (uv, pyenv):
        releases = [path for path in _listed(folder, "*/bin/python3.*") if _RELEASE.fullmatch(path.parts[-3])]
        # Newest patch release first: 3.11.10 before 3.11.7.
        yield from sorted(releases, key=lambda path: _numbers(path.parts[-3]), reverse=True)
    for entry in environ.get("PATH", "").split(os.pathsep):
        # A pyenv shim is a script that may refuse to start; the versions themselves were listed above.
        if entry and not entry.rstrip("/").endswith("/shims"):
            yield from (path for path in _listed(Path(entry), "python3.*") if _EXECUTABLE.fullmatch(path.name))


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []  # a folder of another user, named by an inherited environment


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _is_supported(version: str) -> bool:
    return _EXECUTABLE.fullmatch(f"python{version}") is not None and _numbers(version) >= _OLDEST


def choose_interpreter(wanted: str, available: Mapping[str, Interpreter]) -> tuple[Interpreter, str]:
    """
    Choose the interpreter for a version, the nearest one when it is not there: newer before older.

    Args:
        wanted: X.Y, or empty for the control plane's own version.
        available: version -> interpreter, not empty.

    Returns:
        The interpreter and a warning for the Pod's Events, empty when the version is exact.
    """
    wanted = wanted or own_version()
    if wanted in available:
        return available[wanted], ""
    newer = sorted((v for v in available if _numbers(v) > _numbers(wanted)), key=_numbers)
    chosen = newer[0] if newer else max(available, key=_numbers)
    if _numbers(wanted) < _OLDEST:
        return available[
            chosen
        ], f"Python {wanted} is too old to run here (3.9 is the oldest); Python {chosen} is used."
    return available[chosen], (
        f"Python {wanted} is not on this machine; Python {chosen} is used. "
        f"To get what the image has, install it with 'uv python install {wanted}'."
    )
