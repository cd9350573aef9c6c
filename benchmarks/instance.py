"""A fresh instance of shallop for a benchmark, its processes, and how results are written."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHALLOP = str(ROOT / ".venv" / "bin" / "shallop")


@contextlib.contextmanager
def running() -> Iterator[dict[str, Any]]:
    """Start an instance on an empty home and free ports; yield its status; stop it and remove its home."""
    home = make_home()
    try:
        yield start(home)
    finally:
        stop(home)
        shutil.rmtree(home, ignore_errors=True)


def make_home() -> Path:
    """Make an empty home beside the usual one; below /tmp, which every Pod has for itself, it takes more mounts."""
    return Path(tempfile.mkdtemp(prefix=".shallop-benchmark-", dir=Path.home()))


def start(home: Path) -> dict[str, Any]:
    command = [SHALLOP, "up", "--detach", "--port", "auto", "--home", str(home)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    text = subprocess.run([SHALLOP, "status", "-o", "json", "--home", str(home)], capture_output=True, check=True)
    status: dict[str, Any] = json.loads(text.stdout)
    return status


def stop(home: Path) -> None:
    subprocess.run([SHALLOP, "down", "--home", str(home)], stdout=subprocess.DEVNULL, check=False, timeout=90)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processes_of(home: Path, pid: int) -> dict[int, str]:
    """Return every process of an instance, with its command: the control plane, what names the home, their children."""
    commands, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {number for number, command in commands.items() if number == pid or str(home) in command}
    found -= {os.getpid()}
    while more := {number for number, parent in parents.items() if parent in found} - found:
        found |= more
    return {number: commands[number] for number in sorted(found) if commands[number]}


def write(name: str, rows: list[dict[str, Any]], *, key: str = "") -> None:
    """
    Print the rows as a table and write them, with the machine, to ``results/NAME.json``.

    Args:
        key: a column that tells rows apart: those in the file of which none is measured now stay. Each row then has
            its own time and load: those that :func:`stamp` gave it, else those of now.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([_show(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    machine = {
        "machine": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    document = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **machine, "load": os.getloadavg()[0]}
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    if key:
        rows = [row if "load" in row else row | stamp() for row in rows]
        known = json.loads(path.read_text())["results"] if path.exists() else []
        names = {row[key] for row in rows}
        rows = [row for row in known if row[key] not in names] + rows
    path.write_text(json.dumps({**document, "results": rows}, indent=2) + "\n")


def stamp() -> dict[str, Any]:
    """Return when a row was measured, and how busy the machine was in the minute before, its own load included."""
    return {"at": datetime.now(UTC).isoformat(timespec="seconds"), "load": round(os.getloadavg()[0], 1)}


def uv_environ() -> dict[str, str]:
    """Return an environment in which uv honours pip's settings: they may offer the build of torch for CPUs."""
    # Not at the top: client environments that measure do not have shallop.
    from shallop.embedded.kubelet.pip_settings import (
        machine_options,
        pip_config_files,
        read_pip_settings,
        uv_environment,
    )

    settings = read_pip_settings(os.environ, pip_config_files(os.environ, Path(sys.base_prefix)))
    return uv_environment(os.environ, settings) | machine_options(os.environ, settings).uv_environment()


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def wait_until(condition: Any, what: str, timeout_s: float = 120.0) -> Any:
    """Return the first true value of ``condition()``."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.05)
    return value
