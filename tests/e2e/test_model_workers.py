"""Workers of a model server: one that dies is started again, all end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = """
import os, signal, sys
from shallop_pod.modelserver.workers import supervise

def work(number):
    with open(os.path.join(sys.argv[1], f"{number}-{os.getpid()}"), "w"):
        pass
    signal.pause()

sys.exit(supervise(2, work))
"""
BROKEN = """
import sys
from shallop_pod.modelserver.workers import supervise
sys.exit(supervise(2, lambda number: 3))
"""


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_that_dies_is_started_again_and_all_end_together(tmp_path: Path) -> None:
    def started() -> list[tuple[str, int]]:
        return [(name, int(pid)) for name, _, pid in (path.name.partition("-") for path in tmp_path.iterdir())]

    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=subprocess.PIPE, text=True) as server:
        until(lambda: len(started()) == 2)
        victim = next(pid for name, pid in started() if name == "1")
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(started()) == 3)
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=30)
    assert server.returncode == 0
    assert "worker 1 ended with -9; starting it again" in errors
    assert [name for name, _ in started()].count("1") == 2


def test_workers_that_cannot_start_end_the_server() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN], check=False, timeout=30)
    assert done.returncode == 3
