"""The control plane goes before what it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shallop import priority

PROGRAM = """
import json, os, subprocess
from shallop import priority
priority.take_precedence()
own = os.getpriority(os.PRIO_PROCESS, 0)
usual = priority.at_usual_priority(["sh", "-c", "ps -o ni= -p $$ || nice"])
child = int(subprocess.run(usual, capture_output=True, text=True, check=True).stdout)
print(json.dumps({"own": own, "behind": priority.steps_behind(), "child": child}))
"""


def seen(*prefix: str) -> Any:
    command = [*prefix, sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
    return json.loads(done.stdout)


def test_what_it_starts_comes_after_the_control_plane() -> None:
    found = seen()
    assert found["own"] + found["behind"] > found["own"]
    assert found["child"] == 0


def test_a_priority_that_somebody_chose_stays() -> None:
    found = seen("nice", "-n", "3")
    assert (found["own"], found["child"]) == (3, 3)
    assert found["behind"] > 0


@pytest.mark.parametrize(
    ("raised", "own_session", "sessions", "behind"),
    [(False, True, "1", 5), (True, True, "1", 10), (True, False, "1", 15), (True, False, "0", 10)],
)
def test_how_far_pods_come_after(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raised: bool, own_session: bool, sessions: str, behind: int
) -> None:
    (tmp_path / "enabled").write_text(f"{sessions}\n")
    monkeypatch.setattr(priority, "_SESSIONS_COUNT", tmp_path / "enabled")
    monkeypatch.setattr(priority.os, "getpriority", lambda *_: -10 if raised else 0)
    monkeypatch.setattr(priority.os, "getsid", lambda _: os.getpid() if own_session else 1)
    assert priority.steps_behind() == behind
