"""
Runs whose platform is killed, and runs that are stopped, retried and deleted while they run.

``SHALLOP_TEST_KILLS=100`` kills the platform a hundred times under runs of 200 tasks; ``SHALLOP_TEST_RUNS=20`` asks
twenty runs for something else at any moment.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

SEED = int(os.environ.get("SHALLOP_TEST_SEED", random.randrange(2**32)))
KILLS = int(os.environ.get("SHALLOP_TEST_KILLS", "6"))
RUNS = int(os.environ.get("SHALLOP_TEST_RUNS", "5"))
TASKS = 200 if KILLS > 20 else 40
LANES = TASKS // 10
ENDED = ("SUCCEEDED", "FAILED")


class Instance(Protocol):
    """The fixture ``own_platform``."""

    home: Path
    web: str

    def up(self, *arguments: str) -> None: ...

    def kill(self) -> None: ...


def call(instance: Any, path: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{instance.web}/apis/v2beta1{path}", data, {"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 60
    while not (value := check()):
        assert time.monotonic() < deadline, f"not within 60 s: {what}"
        time.sleep(0.05)
    return value


def pipeline(name: str, tasks: dict[str, Any], script: str, **env: str) -> dict[str, Any]:
    container: dict[str, Any] = {"image": "alpine", "command": ["sh", "-c", script]}
    container["env"] = [{"name": key, "value": value} for key, value in env.items()]
    return {
        "pipelineInfo": {"name": name},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": tasks}},
        "components": {"comp": {"executorLabel": "exec"}},
        "deploymentSpec": {"executors": {"exec": {"container": container}}},
    }


def submit(instance: Any, spec: dict[str, Any]) -> str:
    body = {"display_name": spec["pipelineInfo"]["name"], "pipeline_spec": spec}
    return str(call(instance, "/runs", body)["run_id"])


def lanes(count: int) -> dict[str, Any]:
    """Chains beside each other; each task says once that it ran."""
    tasks: dict[str, Any] = {}
    for number in range(count):
        tasks[f"t{number}"] = {"componentRef": {"name": "comp"}, "taskInfo": {"name": f"t{number}"}}
        if number >= LANES:
            tasks[f"t{number}"]["dependentTasks"] = [f"t{number - LANES}"]
    return pipeline("lanes", tasks, "echo ran as $$; sleep 0.05")


def printed(instance: Any, pod: str) -> dict[str, str]:
    """Return each file of a Pod's logs and what is in it: one Pod that ran twice, or two of one name."""
    files = (instance.home / "logs").rglob(f"{pod}_*/*/*.log*")
    return {str(file.relative_to(instance.home)): file.read_text() for file in files}


def check_once(instance: Any, run_id: str) -> None:
    """Wait for the end of a run of which every task must have run once."""
    until(lambda: call(instance, f"/runs/{run_id}")["state"] in ENDED, "the run ends")
    seen = call(instance, f"/runs/{run_id}/tasks")
    assert seen["run"]["state"] == "SUCCEEDED", seen["run"].get("error")
    tasks = [task for task in seen["tasks"] if task["kind"] == "container"]
    assert len(tasks) == TASKS
    assert {task["name"]: len(task["pods"]) for task in tasks if len(task["pods"]) != 1} == {}
    for task in tasks:
        path = f"{instance.web}/apis/v2beta1/runs/{run_id}/tasks/{task['task_id']}/log"
        with urllib.request.urlopen(path, timeout=30) as log:
            assert log.read().count(b"ran as") == 1, (task, printed(instance, task["pods"][0]["name"]))


@pytest.mark.timeout(max(200, 15 * KILLS))
def test_killed_at_random_moments_a_platform_goes_on_and_repeats_nothing(own_platform: Instance) -> None:
    moments = random.Random(SEED)
    print(f"SHALLOP_TEST_SEED={SEED}")
    command = [sys.executable, "-m", "shallop.cli", "up", "--port", "auto", "--home", str(own_platform.home)]
    own_platform.up()
    run_id = submit(own_platform, lanes(TASKS))
    for _ in range(KILLS):
        # Moments to be killed at, not moments to wait for.
        time.sleep(moments.uniform(0.0, 0.8))
        own_platform.kill()
        if moments.random() < 0.25:
            starting = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(0.3, 2.5))
            starting.kill()
            starting.wait()
        own_platform.up()
        if call(own_platform, f"/runs/{run_id}")["state"] in ENDED:
            check_once(own_platform, run_id)
            run_id = submit(own_platform, lanes(TASKS))
    check_once(own_platform, run_id)


def test_killed_while_it_clears_up_after_a_pod_it_does_not_run_it_again(own_platform: Any) -> None:
    own_platform.up()
    run_id = submit(own_platform, pipeline("one", {"t": {"componentRef": {"name": "comp"}}}, "echo ran as $$"))
    until(lambda: call(own_platform, f"/runs/{run_id}")["state"] == "SUCCEEDED", "the run ends")
    (pod,) = json.loads(own_platform.kubectl("get", "pods", "-n", "kubeflow", "-o", "json"))["items"]
    folder = own_platform.home / "pods" / pod["metadata"]["uid"]
    until(lambda: not folder.exists(), "the Pod's files are removed")
    own_platform.kill()
    folder.mkdir()  # as if its removal had been cut short
    own_platform.up()
    until(lambda: not folder.exists(), "what was left is removed")
    (again,) = json.loads(own_platform.kubectl("get", "pods", "-n", "kubeflow", "-o", "json"))["items"]
    assert again["status"] == pod["status"]
    assert "".join(printed(own_platform, pod["metadata"]["name"]).values()).count("ran as") == 1


def sleepers(mark: str, count: int = 4) -> dict[str, Any]:
    tasks = {f"t{number}": {"componentRef": {"name": "comp"}} for number in range(count)}
    return pipeline("sleepers", tasks, "sleep 500 & sleep 500", MARK=mark)


def marked(mark: str) -> set[int]:
    """Return the processes with ``MARK`` in their environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"MARK={mark}\0".encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def pods_at_work(platform: Any, run_id: str) -> list[str]:
    selector = ("-n", "kubeflow", "-l", f"pipeline/runid={run_id}", "-o", "json")
    items = json.loads(platform.kubectl("get", "pods", *selector))["items"]
    return [pod["metadata"]["name"] for pod in items if pod["status"]["phase"] not in ("Succeeded", "Failed")]


def nothing_runs(platform: Any, run_id: str, mark: str) -> bool:
    return not marked(mark) and not pods_at_work(platform, run_id)


def test_stopped_retried_and_deleted_while_it_runs_a_run_leaves_no_process(platform: Any) -> None:
    mark = "kfp-stopped"
    run_id = submit(platform, sleepers(mark))
    until(lambda: len(marked(mark)) >= 12, "all tasks run")
    call(platform, f"/runs/{run_id}:terminate", {})
    until(lambda: call(platform, f"/runs/{run_id}")["state"] == "FAILED", "the run has ended")
    until(lambda: nothing_runs(platform, run_id, mark), "nothing of the stopped run is left")
    call(platform, f"/runs/{run_id}:retry", {})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        call(platform, f"/runs/{run_id}:retry", {})
    until(lambda: len(marked(mark)) >= 12, "all tasks run again")
    call(platform, f"/runs/{run_id}", method="DELETE")
    until(lambda: nothing_runs(platform, run_id, mark), "nothing of the deleted run is left")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        call(platform, f"/runs/{run_id}")


def test_stopped_at_any_moment_of_its_start_a_run_leaves_no_process(platform: Any) -> None:
    mark = "kfp-early"
    stopped, deleted = [], []
    for number in range(12):
        run_id = submit(platform, sleepers(mark, 2))
        time.sleep(0.01 * number**2)  # a moment to be stopped at
        if number % 2:
            call(platform, f"/runs/{run_id}", method="DELETE")
            deleted.append(run_id)
        else:
            call(platform, f"/runs/{run_id}:terminate", {})
            stopped.append(run_id)
    for run_id in stopped:
        until(lambda run_id=run_id: call(platform, f"/runs/{run_id}")["state"] == "FAILED", "the run has ended")  # type: ignore[misc]
    for run_id in stopped + deleted:
        until(lambda run_id=run_id: not pods_at_work(platform, run_id), "no Pod is left")  # type: ignore[misc]
    until(lambda: not marked(mark), "no process is left")


def mixed(mark: str) -> dict[str, Any]:
    """Steps that end, fail with a pause and another attempt, or last; a loop, and a step that runs whatever happens."""

    def task(component: str, *needs: str, **fields: Any) -> dict[str, Any]:
        return {"componentRef": {"name": component}, "dependentTasks": list(needs), **fields}

    again = {"maxRetryCount": 2, "backoffDuration": "1s", "backoffFactor": 1}
    loop = {"items": {"raw": "[1, 2, 3, 4]"}, "itemInput": "item"}
    inner = {
        "quick": task("quick"),
        "failing": task("failing", "quick", retryPolicy=again),
        "lasting": task("lasting", "quick"),
        "each": task("each", parameterIterator=loop),
    }
    last = task("quick", "body", triggerPolicy={"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"})
    spec = pipeline("mixed", {"body": task("body"), "last": last}, "")
    item = {"parameters": {"item": {"parameterType": "NUMBER_INTEGER"}}}
    spec["components"] = {
        "body": {"dag": {"tasks": inner}},
        "each": {"inputDefinitions": item, "dag": {"tasks": {"quick": task("quick"), "slow": task("slow", "quick")}}},
    }
    scripts = {"quick": "true", "failing": "sleep 0.2; exit 3", "slow": "sleep 1", "lasting": "sleep 500 & sleep 500"}
    env = [{"name": "MARK", "value": mark}]
    for name, script in scripts.items():
        spec["components"][name] = {"executorLabel": name}
        container = {"image": "alpine", "command": ["sh", "-c", script], "env": env}
        spec["deploymentSpec"]["executors"][name] = {"container": container}
    return spec


def ask(platform: Any, run_id: str, what: str) -> None:
    """Terminate, retry or delete a run; a run that cannot be retried now, or is gone, says so."""
    try:
        if what == "delete":
            call(platform, f"/runs/{run_id}", method="DELETE")
        else:
            call(platform, f"/runs/{run_id}:{what}", {})
    except urllib.error.HTTPError as error:
        assert error.code in (400, 404), what


def state_of(platform: Any, run_id: str) -> str:
    try:
        return str(call(platform, f"/runs/{run_id}")["state"])
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return "gone"


@pytest.mark.timeout(max(200, 30 * RUNS))
def test_whatever_is_asked_of_runs_at_any_moment_rows_pods_and_processes_agree_at_the_end(platform: Any) -> None:
    chance = random.Random(SEED)
    print(f"SHALLOP_TEST_SEED={SEED}")
    mark = f"kfp-mixed-{SEED}"
    ids: list[str] = []
    for _ in range(RUNS):
        ids.append(submit(platform, mixed(mark)))
        for _ in range(4):
            time.sleep(chance.uniform(0.0, 0.4))  # a moment to be asked at
            ask(platform, chance.choice(ids), chance.choice(["terminate", "retry", "terminate", "retry", "delete"]))
    for run_id in ids:
        ask(platform, run_id, "terminate")
    for run_id in ids:
        until(lambda run_id=run_id: state_of(platform, run_id) in (*ENDED, "gone"), "the run ends")  # type: ignore[misc]
    until(lambda: not marked(mark), "no process is left")
    for run_id in ids:
        until(lambda run_id=run_id: not pods_at_work(platform, run_id), "no Pod is at work")  # type: ignore[misc]
        if state_of(platform, run_id) == "gone":
            continue
        seen = call(platform, f"/runs/{run_id}/tasks")
        open_ = {
            task["path"]: task["own_state"] for task in seen["tasks"] if task["own_state"] in ("PENDING", "RUNNING")
        }
        assert open_ == {}, seen["run"]
        known = {pod["name"] for task in seen["tasks"] for pod in task["pods"]}
        selector = ("-n", "kubeflow", "-l", f"pipeline/runid={run_id}", "-o", "name")
        pods = {line.removeprefix("pod/") for line in platform.kubectl("get", "pods", *selector).split()}
        assert pods <= known
