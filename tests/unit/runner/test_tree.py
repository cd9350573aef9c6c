"""A run as lines of text."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shallop.runner.tree import reason_of, render_tree, waiting_for

NOW = datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)


def task(path: str, state: str, **more: Any) -> dict[str, Any]:
    parent, _, name = path.rpartition("/")
    if name.endswith("]"):
        parent = f"{parent}/{name.partition('[')[0]}"
    made = {"task_id": path, "parent_task_id": parent, "path": path, "display_name": name, "own_state": state}
    return made | {"name": name, "kind": "container", "attempt": 0} | more


def test_steps_are_drawn_below_what_they_belong_to() -> None:
    tasks = [
        task("root", "RUNNING", kind="root"),
        task("root/make", "CACHED", start_time="2026-01-01T00:00:00Z", end_time="2026-01-01T00:00:01Z"),
        task("root/sub", "RUNNING", kind="dag"),
        task("root/sub/train", "RUNNING", start_time="2026-01-01T00:00:07.5Z", attempt=1),
        task("root/sub/check", "FAILED", error={"message": "Traceback\nValueError: no\n"}),
        task("root/last", "PENDING"),
    ]
    assert render_tree(tasks, NOW) == [
        "├─ ✓  make  cached",
        "├─ ●  sub",
        "│  ├─ ●  train  2.5s  attempt 2",
        "│  └─ ✗  check  ValueError: no",
        "└─ ·  last",
    ]


def test_a_long_loop_is_counted_and_only_what_matters_is_listed() -> None:
    tasks = [task("root", "RUNNING", kind="root"), task("root/loop", "RUNNING", kind="loop")]
    states = ["SUCCEEDED"] * 40 + ["FAILED"]
    tasks += [task(f"root/loop[{number}]", state, kind="dag") for number, state in enumerate(states)]
    assert render_tree(tasks, NOW) == [
        "└─ ●  loop",
        "   ├─ ✗  loop[40]",
        "   └─ 41 in all: 40 succeeded, 1 failed",
    ]
    assert render_tree(tasks, NOW, height=2) == ["└─ ●  loop", "… and 2 more lines"]
    assert render_tree(tasks, NOW, width=6)[0] == "└─ ● …"


def test_a_reason_is_always_given() -> None:
    assert reason_of(task("root/a", "SKIPPED", note="Condition is false: 1 > 2")) == "Condition is false: 1 > 2"
    assert reason_of(task("root/a", "PENDING", note="")) == "It waits for the steps that it needs."


def test_what_a_pod_waits_for_is_said() -> None:
    unplaced = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient memory."}
    assert waiting_for({"status": {"conditions": [unplaced]}}) == f"It waits: {unplaced['message']}"
    preparing = {"state": {"waiting": {"reason": "ContainerCreating", "message": "environment: 3 of 5 packages"}}}
    assert waiting_for({"status": {"containerStatuses": [preparing]}}) == "It waits: environment: 3 of 5 packages"
    assert waiting_for({"status": {"conditions": [{**unplaced, "status": "True"}]}}) == waiting_for({}) == ""
