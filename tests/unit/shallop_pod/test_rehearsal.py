"""What a rehearsal changes in its process is put back."""

from __future__ import annotations

import concurrent.futures.thread
import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

from shallop_pod import rehearsal


def test_pools_of_threads_work_after_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def main(argv: Sequence[str]) -> None:
        # What a task's end does, see launcher._end_threads.
        concurrent.futures.thread._shutdown = True  # type: ignore[attr-defined]
        ended.append(True)

    launcher = ModuleType("shallop_pod.launcher")
    launcher.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shallop_pod.launcher", launcher)
    monkeypatch.setitem(sys.modules, rehearsal._EXECUTOR, ModuleType("executor"))
    rehearsal.rehearse(times=1)
    assert ended == [True]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(int, "7").result() == 7
