"""A platform that is killed while a pipeline runs: it goes on, and no finished step runs again."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any, Protocol


class Instance(Protocol):
    """The fixture ``own_platform``."""

    home: Path
    web: str

    def up(self, *arguments: str) -> None: ...

    def kill(self) -> None: ...


def call(instance: Instance, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{instance.web}/apis/v2beta1{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def chain(length: int) -> dict[str, Any]:
    """Each task prints its process id once, after a moment."""
    tasks: dict[str, Any] = {}
    for number in range(length):
        tasks[f"t{number}"] = {"componentRef": {"name": "comp"}, "taskInfo": {"name": f"t{number}"}}
        if number:
            tasks[f"t{number}"]["dependentTasks"] = [f"t{number - 1}"]
    container = {"image": "alpine", "command": ["sh", "-c", "sleep 0.2; echo ran as $$"]}
    return {
        "pipelineInfo": {"name": "chain"},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": tasks}},
        "components": {"comp": {"executorLabel": "exec"}},
        "deploymentSpec": {"executors": {"exec": {"container": container}}},
    }


def test_a_killed_platform_goes_on_and_repeats_nothing(own_platform: Instance) -> None:
    own_platform.up()
    run_id = call(own_platform, "/runs", {"display_name": "chain", "pipeline_spec": chain(8)})["run_id"]
    for pause in (0.3, 0.1, 0.5):
        time.sleep(pause)  # moments to be killed at, not moments to wait for
        own_platform.kill()
        own_platform.up()
    deadline = time.monotonic() + 60
    while (seen := call(own_platform, f"/runs/{run_id}/tasks"))["run"]["state"] not in ("SUCCEEDED", "FAILED"):
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)
    assert seen["run"]["state"] == "SUCCEEDED", seen["run"].get("error")
    tasks = [task for task in seen["tasks"] if task["kind"] == "container"]
    assert [len(task["pods"]) for task in tasks] == [1] * 8
    for task in tasks:
        with urllib.request.urlopen(
            f"{own_platform.web}/apis/v2beta1/runs/{run_id}/tasks/{task['task_id']}/log", timeout=30
        ) as log:
            assert log.read().count(b"ran as") == 1, task["name"]
