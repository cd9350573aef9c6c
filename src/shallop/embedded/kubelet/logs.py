"""Container logs: files in the CRI format, read as ``pods/log`` wants them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from shallop.kube.objects import Object
from shallop.settings import Settings

__all__ = ["follow_log", "follow_streams", "last_lines", "log_file", "log_folder", "log_path"]

# Nobody is woken when nobody follows; a follower looks this often.
_POLL_S = 0.05
_BLOCK = 64 * 1024


def log_folder(settings: Settings, pod: Object) -> Path:
    """Return where the logs of a Pod are, also long after it is gone."""
    metadata = pod["metadata"]
    return settings.logs / str(metadata["namespace"]) / f"{metadata['name']}_{metadata['uid']}"


def log_path(settings: Settings, pod: Object, container: str, restart: int) -> Path:
    return Path(log_file(settings, pod, container, restart))


def log_file(settings: Settings, pod: Object, container: str, restart: int) -> str:
    """Return the path of a log as text: every start of a container needs it."""
    metadata = pod["metadata"]
    return f"{settings.logs}/{metadata['namespace']}/{metadata['name']}_{metadata['uid']}/{container}/{restart}.log"


def _files(path: Path) -> list[Path]:
    found = {int(file.suffix[1:]): file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdigit()}
    return [found[number] for number in sorted(found, reverse=True)] + ([path] if path.exists() else [])


def last_lines(path: Path, count: int, limit_bytes: int = 2048) -> str:
    """Return the end of a log as text, for messages."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64 * 1024))
            lines = file.read().splitlines()[-count:]
    except OSError:
        return ""
    return b"\n".join(_text(line) for line in lines).decode(errors="replace")[-limit_bytes:]


def _text(line: bytes) -> bytes:
    parts = line.split(b" ", 3)
    return parts[3] if len(parts) == 4 else b""


async def follow_streams(path: Path, is_running: Callable[[], bool]) -> AsyncIterator[tuple[int, bytes]]:
    """Yield (1 or 2, text) of what is written to a log from now on, until its container has ended."""
    reader = _Reader(path)
    rest = b""
    try:
        await asyncio.to_thread(reader.read_all, 0)
        while True:
            running = is_running()
            data = await asyncio.to_thread(reader.read_on)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if text := _render(line, timestamps=False):
                    yield 2 if line.split(b" ", 2)[1] == b"stderr" else 1, text
            if not data:
                if not running:
                    return
                await asyncio.sleep(_POLL_S)
    finally:
        reader.close()


async def follow_log(
    path: Path,
    *,
    follow: bool,
    tail_lines: int | None,
    since: datetime | None,
    timestamps: bool,
    limit_bytes: int | None,
    is_running: Callable[[], bool],
) -> AsyncIterator[bytes]:
    """
    Yield a log's text, whole lines at a time.

    Args:
        since: earlier lines are left out.
        is_running: whether more may come; asked before each look, so that nothing written before the end is missed.
    """
    left = limit_bytes if limit_bytes is not None else -1
    start = b"" if since is None else since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
    rest = b""
    reader = _Reader(path)
    try:
        data = await asyncio.to_thread(reader.read_all, tail_lines)
        while True:
            running = is_running()
            *lines, rest = (rest + data).split(b"\n")
            shown = b"".join(_render(line, timestamps=timestamps) for line in lines if line[:19] >= start)
            if left >= 0:
                shown, left = shown[:left], left - len(shown)
            if shown:
                yield shown
            if (limit_bytes is not None and left <= 0) or not follow:
                return
            data = await asyncio.to_thread(reader.read_on)
            if not data:
                if not running:
                    return
                await asyncio.sleep(_POLL_S)
    finally:
        reader.close()


def _render(line: bytes, *, timestamps: bool) -> bytes:
    parts = line.split(b" ", 3)
    if len(parts) < 4:
        return b""
    end = b"" if parts[2] == b"P" else b"\n"
    return (parts[0] + b" " if timestamps else b"") + parts[3] + end


def _read_tail(file: FileIO, count: int) -> bytes:
    """Return the last lines of a file, read from its end, and leave it there."""
    end = start = file.seek(0, os.SEEK_END)
    data = b""
    while start and data.count(b"\n") <= count and count:
        start = max(0, start - _BLOCK)
        file.seek(start)
        data = file.read(min(_BLOCK, end - start - len(data))) + data
    file.seek(end)
    return b"".join(data.splitlines(keepends=True)[-count:]) if count else b""


class _Reader:
    """Reads a log on and on, also when it is renamed and begun anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def read_all(self, tail_lines: int | None) -> bytes:
        """Return what is there, or the last lines of it; ``read_on`` goes on after it."""
        data = b""
        lines = 0
        seen: set[int] = set()
        for path in reversed(_files(self._path)):
            if tail_lines is not None and lines >= tail_lines and self._file is not None:
                break
            with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                # Files are renamed while we look: one may come twice.
                if (inode := os.fstat(file.fileno()).st_ino) not in seen:
                    seen.add(inode)
                    found = file.read() if tail_lines is None else _read_tail(file, tail_lines - lines)
                    lines += found.count(b"\n")
                    data = found + data
                    if self._file is None:
                        self._file = os.fdopen(os.dup(file.fileno()), "rb")
        return data

    def read_on(self) -> bytes:
        """Return what was added, up to 1 MiB; empty when nothing was."""
        if self._file is not None and (data := self._file.read(1 << 20)):
            return data
        following = self._next_file()
        if following is None:
            return b""
        self.close()
        self._file = following
        return following.read(1 << 20)

    def _next_file(self) -> BinaryIO | None:
        """Open the file after ours; None while ours is the newest."""
        own = None if self._file is None else os.fstat(self._file.fileno()).st_ino
        try:
            files = _files(self._path)
            inodes = [file.stat().st_ino for file in files]
            # Ours may be gone already when much is written: then the oldest one follows.
            position = inodes.index(own) + 1 if own in inodes else 0
            return open(files[position], "rb") if position < len(files) else None
        except FileNotFoundError:
            return None  # renamed while we looked; the next look finds it

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def since_of(now: datetime, since_s: int | None, since_time: datetime | None) -> datetime | None:
    """Return the earliest time to show."""
    return now - timedelta(seconds=since_s) if since_s is not None else since_time
