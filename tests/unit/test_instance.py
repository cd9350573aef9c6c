"""Who may use a home: one process at a time, and the next one as soon as that has ended."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shallop import instance
from shallop.errors import SettingsError
from shallop.settings import Settings

HOLD = """
import sys
from pathlib import Path
from shallop.instance import Lock
from shallop.settings import Settings
lock = Lock(Settings(home=Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a home."""
    command = [sys.executable, "-c", HOLD, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_home_has_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "_ENDING_S", 0.05)
    settings = Settings(home=tmp_path)
    assert instance.running_pid(settings) is None
    with holder(tmp_path) as process:
        assert instance.running_pid(settings) == process.pid
        with pytest.raises(SettingsError, match=rf"already running there \(process {process.pid}\)"):
            instance.Lock(settings)
        with pytest.raises(SettingsError, match=rf"already running there \(process {process.pid}\)"):
            instance.start_detached([], settings)


def test_a_process_that_is_gone_does_not_run_although_its_files_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "_ENDING_S", 60.0)
    settings = Settings(home=tmp_path)
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        # What it was about to start has its files a little longer.
        with open(settings.run / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            started = subprocess.Popen(["sleep", "0.3"], pass_fds=[file.fileno()])
        with started:
            assert not instance.stop(settings, keep_pods=False)
            assert instance.running_pid(settings) is None


def test_the_next_process_starts_right_after_one_that_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        with holder(tmp_path) as following:
            assert instance.running_pid(Settings(home=tmp_path)) == following.pid
            # Stopped and killed at once: this one does not wait for whom nobody can stop.
            following.kill()
            instance.stop(Settings(home=tmp_path), keep_pods=False)
            assert instance.running_pid(Settings(home=tmp_path)) is None
