"""
Reads what a trial's Pods have written: their logs, and files in a folder that they share with this process.

The node keeps both on this machine, also after a Pod is gone; reading from the start again finds the same values in
the same order, so a crash costs nothing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from shallop.kube.objects import Object
from shallop.settings import Settings
from shallop.tuning.metrics import parse_json, parse_text, to_microseconds
from shallop.tuning.observation import metric_names
from shallop.tuning.tables import Report
from shallop.tuning.tfevents import read_events

__all__ = [
    "READ",
    "Collected",
    "last_lines",
    "log_folder",
    "metrics_folder",
    "read_metrics",
    "remove_metrics",
    "shared_directory",
    "size_bytes",
]


# The collectors whose metrics are read from logs and files.
READ = ("StdOut", "File", "TensorFlowEvent")
# The log of a run, and what it was renamed to when it was full.
_LOG = re.compile(r"(\d+)\.log(?:\.(\d+))?")


class Collected(NamedTuple):
    """Everything that one source holds until now."""

    source: str
    reports: list[Report]


def metrics_folder(settings: Settings, namespace: str, trial: str) -> Path:
    """Return the folder of this machine that a trial's Pods see as the directory of their metrics file."""
    return settings.home / "tuning" / namespace / trial


def shared_directory(collector: Mapping[str, Any]) -> str:
    """Return the directory in the container whose files are collected; empty when none are."""
    kind = (collector.get("collector") or {}).get("kind")
    path = ((collector.get("source") or {}).get("fileSystemPath") or {}).get("path")
    if kind not in ("File", "TensorFlowEvent", "Custom") or not path:
        return ""
    whole = PurePosixPath(path)
    is_folder = kind == "TensorFlowEvent" or collector["source"]["fileSystemPath"].get("kind") == "Directory"
    return str(whole if is_folder else whole.parent)


def remove_metrics(settings: Settings, namespace: str, trial: str) -> None:
    shutil.rmtree(metrics_folder(settings, namespace, trial), ignore_errors=True)


def read_metrics(settings: Settings, trial: Mapping[str, Any], pods: Sequence[Object]) -> list[Collected]:
    """
    Read the metrics of a trial; blocks on files.

    Args:
        trial: the Trial.
        pods: its primary Pods.
    """
    spec, metadata = trial["spec"], trial["metadata"]
    collector = spec.get("metricsCollector") or {}
    kind = (collector.get("collector") or {}).get("kind", "StdOut")
    names = metric_names(spec["objective"])
    source = collector.get("source") or {}
    formats = (source.get("filter") or {}).get("metricsFormat") or ()
    if kind == "StdOut":
        return [
            Collected(f"{pod['metadata']['uid']}/{run}", parse_text(_log_lines(paths), names, formats))
            for pod in pods
            for run, paths in _logs(settings, pod, spec["primaryContainerName"])
        ]
    folder = metrics_folder(settings, metadata["namespace"], metadata["name"])
    if kind == "File":
        file = source["fileSystemPath"]
        lines = ((0, line) for line in _lines(folder / PurePosixPath(file["path"]).name))
        found = parse_json(lines, names) if file.get("format") == "JSON" else parse_text(lines, names, formats)
        return [Collected("file", found)]
    if kind == "TensorFlowEvent":
        return [Collected("events", read_events(folder, names))]
    return []


def size_bytes(settings: Settings, trial: Mapping[str, Any], pods: Sequence[Object]) -> int:
    """Return about how much ``read_metrics`` would read; blocks on files."""
    metadata, container = trial["metadata"], trial["spec"]["primaryContainerName"]
    kind = ((trial["spec"].get("metricsCollector") or {}).get("collector") or {}).get("kind", "StdOut")
    if kind == "StdOut":
        return sum(_size_bytes(path) for pod in pods for _, paths in _logs(settings, pod, container) for path in paths)
    return sum(map(_size_bytes, metrics_folder(settings, metadata["namespace"], metadata["name"]).rglob("*")))


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # a log that is renamed now


def _logs(settings: Settings, pod: Object, container: str) -> list[tuple[int, list[Path]]]:
    """
    Return the runs of a container, each with the files of its log, the oldest first.

    Asked of a thread beside a busy event loop: each question to the file system may wait for the interpreter's lock.
    """
    folder = log_folder(settings, pod) / container
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found: dict[int, list[tuple[int, Path]]] = {}
    for name in names:
        if match := _LOG.fullmatch(name):
            # The log itself is newer than those that it was renamed to.
            found.setdefault(int(match[1]), []).append((-int(match[2] or 0), folder / name))
    return [(run, [path for _, path in sorted(files)]) for run, files in sorted(found.items())]


def log_folder(settings: Settings, pod: Object) -> Path:
    """Return where the node keeps the logs of a Pod, see ``Settings.logs``."""
    metadata = pod["metadata"]
    return settings.logs / str(metadata["namespace"]) / f"{metadata['name']}_{metadata['uid']}"


def _log_lines(paths: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """Yield the lines of a log with the time when each began, parts of long lines joined."""
    text, since = "", 0
    for path in paths:
        for line in _lines(path):
            parts = line.split(" ", 3)
            if len(parts) < 4:
                continue
            if not text:
                since = _microseconds(parts[0])
            text += parts[3]
            if parts[2] != "P":
                yield since, text
                text = ""
    if text:
        yield since, text


def _microseconds(stamp: str) -> int:
    try:
        return to_microseconds(datetime.fromisoformat(stamp))
    except ValueError:
        return 0


def _lines(path: Path) -> Iterator[str]:
    """Yield whole lines; one that is still being written is left for the next time."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line[:-1].decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return


def last_lines(settings: Settings, pods: Sequence[Object], container: str, count: int = 5) -> str:
    """Return the end of the newest log of a container, for messages."""
    for pod in reversed(pods):
        for _, paths in reversed(_logs(settings, pod, container)):
            lines = [text for _, text in _log_lines(paths)]
            if lines:
                return "\n".join(lines[-count:])[-1024:]
    return ""
