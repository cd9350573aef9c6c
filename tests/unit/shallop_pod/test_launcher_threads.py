"""A component may leave an idle pool of threads behind, as clients with an event loop do: its task still ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[3] / "src"
PROGRAM = """
import concurrent.futures, threading
from shallop_pod import launcher
done = []
concurrent.futures.ThreadPoolExecutor(1).submit(done.append, "pool")
threading.Thread(target=done.append, args=("thread",)).start()
launcher._end_threads()
assert sorted(done) == ["pool", "thread"], done
assert threading.active_count() == 1
"""


def test_idle_pools_are_stopped_and_threads_waited_for() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
