"""``shallop doctor``: what this machine can do, and what to do about what it cannot."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from shallop import instance
from shallop.embedded.kubelet.capability import probe
from shallop.embedded.kubelet.interpreters import find_interpreters, is_optimised, own_version
from shallop.settings import Settings

__all__ = ["Finding", "examine"]

_LEVELS = {
    "namespaces": "Pods have own mounts, processes, network and address",
    "user": "Pods have own mounts and processes; they share the machine's network at addresses of 127.0.0.0/8",
    "none": "Pods share everything; paths and addresses are rewritten in their commands",
}
_ENOUGH_DISK = 5 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line; ``level`` is ``ok``, ``note`` or ``FAIL``, ``advice`` says what to do."""

    level: str
    what: str
    advice: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that commonly stands in the way."""
    return [
        _python(),
        _isolation(settings),
        _interpreters(),
        *(_disk(what, path) for what, path in (("data", settings.home), ("environments", settings.cache))),
        _kubectl(),
        _running(settings),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    what = f"Python {version}, {os.cpu_count()} cores, {sys.platform}"
    if is_optimised():
        return Finding("ok", what)
    return Finding(
        "note",
        f"{what}; built without optimisation, as pyenv does",
        "Everything takes about a quarter longer. Install shallop with another Python, such as "
        f"/usr/bin/python{own_version()} or one of 'uv python install'.",
    )


def _isolation(settings: Settings) -> Finding:
    report = probe(settings)
    level = "ok" if report.level == "namespaces" else "note"
    return Finding(level, f"isolation '{report.level}': {_LEVELS[report.level]}", report.why)


def _interpreters() -> Finding:
    versions = sorted(find_interpreters(os.environ), key=lambda text: [int(part) for part in text.split(".")])
    return Finding(
        "ok",
        f"Python interpreters for images: {', '.join(versions)}",
        "An image with another version runs on the nearest one, with a warning.",
    )


def _disk(what: str, path: Path) -> Finding:
    existing = path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    text = f"{what} in {path}: {free / 2**30:.0f} GiB free"
    if not os.access(existing, os.W_OK):
        return Finding(
            "FAIL", f"{what} in {path}: {existing} cannot be written", "Choose another place: --home, SHALLOP_CACHE."
        )
    if free < _ENOUGH_DISK:
        return Finding("note", text, "Environments with machine-learning libraries need about 1 GiB each.")
    return Finding("ok", text)


def _kubectl() -> Finding:
    path = shutil.which("kubectl")
    if path:
        return Finding("ok", f"kubectl: {path}")
    return Finding(
        "note", "kubectl is not installed", "Not needed: 'shallop apply' and 'shallop logs' work without it."
    )


def _running(settings: Settings) -> Finding:
    status = instance.read_status(settings)
    if status["ready"]:
        return Finding("ok", f"running as process {status['pid']}: {status['web']}")
    return Finding("note", f"not running on {settings.home}", "Start it with 'shallop up --detach'.")
