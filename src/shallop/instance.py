"""One running instance per home: the lock, ``status.json``, starting it in the background, stopping it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from shallop.errors import SettingsError
from shallop.settings import Settings

__all__ = ["Lock", "read_status", "running_pid", "start_detached", "stop", "write_status"]

_STATUS = "status.json"
# How long a home may stay taken by a process that ends: one that was killed holds on to its files until the system has
# taken back all of its memory.
_ENDING_S = 2.0
_PAUSE_S = 0.005


class Lock:
    """
    The right to use a home; freed by the kernel when the process ends, however it ends.

    Raises:
        SettingsError: another process runs on this home.
    """

    def __init__(self, settings: Settings) -> None:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.home.chmod(0o700)
        settings.run.mkdir(mode=0o700, exist_ok=True)
        (settings.run / "lock").touch(mode=0o600)
        self._file: IO[str] = open(settings.run / "lock", "a+")  # noqa: SIM115 held as long as the process lives
        deadline = time.monotonic() + _ENDING_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                # Who asks whether we run holds the lock for a moment, too.
                if time.monotonic() > deadline and (pid := running_pid(settings)) is not None:
                    self._file.close()
                    raise _already_running(settings, pid) from error
                time.sleep(_PAUSE_S)
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()


def running_pid(settings: Settings) -> int | None:
    """
    Return the process that runs on this home, None when there is none.

    The lock may still name the process before: of one that has just begun, and of one that has ended while a process
    that it was about to start had its files. Both are over in a moment, and waited for.
    """
    deadline = time.monotonic() + _ENDING_S
    while (pid := _named_by_lock(settings)) is not None:
        if _is_alive(pid) or time.monotonic() > deadline:
            return pid
        time.sleep(_PAUSE_S)
    return None


def _named_by_lock(settings: Settings) -> int | None:
    """Return what is written in the lock, 0 for nothing; None when nobody holds it."""
    try:
        with open(settings.run / "lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text else 0
            return None
    except FileNotFoundError:
        return None


def _is_alive(pid: int) -> bool:
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _already_running(settings: Settings, pid: int) -> SettingsError:
    return SettingsError(
        f"home {settings.home}: shallop is already running there (process {pid}). "
        "Stop it with 'shallop down', or give another --home."
    )


def write_status(settings: Settings, *, ready: bool, kubeconfig: Path | None = None) -> None:
    """Publish the state of this process atomically; readers see the old file or the new one."""
    status: dict[str, Any] = {
        "ready": ready,
        "pid": os.getpid(),
        "home": str(settings.home),
        "web": settings.web_url,
        "api": settings.api_url,
        "gateway": settings.gateway_url,
        "content": settings.content_url,
        "katib": f"{settings.host}:{settings.katib_port}",
        "kubeconfig": str(kubeconfig or settings.home / "kubeconfig"),
    }
    temporary = settings.home / f".{_STATUS}.{os.getpid()}"
    temporary.write_text(json.dumps(status, indent=2) + "\n")
    temporary.chmod(0o600)
    temporary.rename(settings.home / _STATUS)


def read_status(settings: Settings) -> dict[str, Any]:
    """Return what ``status.json`` says, with ``ready`` false when no process runs on this home."""
    try:
        status: dict[str, Any] = json.loads((settings.home / _STATUS).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        status = {"ready": False, "home": str(settings.home)}
    pid = running_pid(settings)
    if pid is None or pid != status.get("pid"):
        status |= {"ready": False, "pid": pid}
    return status


def start_detached(arguments: Sequence[str], settings: Settings, *, timeout_s: float = 60.0) -> dict[str, Any]:
    """
    Start ``shallop up`` in the background and wait until it is ready.

    Raises:
        SettingsError: it ended before it was ready; the message carries the end of its log.
    """
    deadline = time.monotonic() + _ENDING_S
    while (pid := running_pid(settings)) is not None:
        if time.monotonic() > deadline:
            raise _already_running(settings, pid)
        time.sleep(_PAUSE_S)
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = settings.home / "shallop.log"
    with open(os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "ab") as log:
        offset = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "shallop.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = read_status(settings)
        if status["ready"] and status.get("pid") == process.pid:
            return status
        if process.poll() is not None:
            with open(log_path, "rb") as file:
                file.seek(offset)
                text = file.read().decode(errors="replace").strip()
            raise SettingsError(f"shallop did not start (exit code {process.returncode}):\n{text[-2000:]}")
        time.sleep(0.02)
    raise SettingsError(f"shallop is not ready after {timeout_s:.0f} s; see {log_path}.")


def stop(settings: Settings, *, keep_pods: bool, timeout_s: float = 60.0) -> bool:
    """Stop the instance on this home and wait for its end; False when none runs."""
    pid = running_pid(settings)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP if keep_pods else signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while running_pid(settings) == pid:
        if time.monotonic() > deadline:
            raise SettingsError(f"shallop (process {pid}) did not stop in {timeout_s:.0f} s; see its log, or kill it.")
        time.sleep(0.02)
    return True
