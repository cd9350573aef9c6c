"""
Pipelines compiled by others, run on a whole platform: end state, outputs and what single tasks saw.

``SHALLOP_TEST_KFP_URL`` names a running server to use instead; its namespace must have the secrets of ``SECRETS``.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

FIXTURES = Path(__file__).parents[2] / ".." / "shared" / "fixtures" / "kfp"
FILES = sorted(FIXTURES.glob("*.yaml"))
DEADLINE_S = 240.0
SECRETS = {
    "test-secret-1": {"username": "user1"},
    "test-secret-2": {"password": "psw1"},
    "test-secret-3": {"password": "psw2"},
}
FAIL = {
    "fail_v2",
    "pipeline_with_exit_handler",
    "pipeline_with_task_final_status",
    "pipeline_with_task_using_ignore_upstream_failure",
}
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
VALUES: dict[str, Any] = {
    "NUMBER_INTEGER": 5,
    "NUMBER_DOUBLE": 2.5,
    "STRING": "text",
    "BOOLEAN": True,
    "LIST": ["item"],
    "STRUCT": {"A": "1", "B": "2"},
}

pytestmark = pytest.mark.skipif(not FILES, reason=f"{FIXTURES} is not there")


class Kfp:
    """The REST API at one URL."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/apis/v2beta1"
        self.runs: dict[str, str] = {}

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def submit(self, file: Path) -> str:
        text = file.read_text()
        if file.stem == "embedded_artifact":
            # Its own pin has no dsl.EmbeddedInput; upstream's tests, too, put a newer kfp in its place.
            text = text.replace("kfp==2.14.3", "kfp==2.17.0")
        documents = list(yaml.safe_load_all(text))
        spec = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        wanted = documents[0]["root"].get("inputDefinitions", {}).get("parameters", {})
        parameters = {
            name: VALUES[one["parameterType"]]
            for name, one in wanted.items()
            if "defaultValue" not in one and not one.get("isOptional")
        }
        body = {"display_name": file.stem, "pipeline_spec": spec, "runtime_config": {"parameters": parameters}}
        return str(self.call("/runs", body)["run_id"])

    def ended(self, run_id: str) -> dict[str, Any]:
        """Wait for the end; return the run, its outputs and its tasks."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            seen: dict[str, Any] = self.call(f"/runs/{run_id}/tasks")
            if seen["run"]["state"] in ENDED:
                return seen
            assert time.monotonic() < deadline, f"still {seen['run']['state']}: {_states(seen)}"
            time.sleep(0.1)

    def log(self, run_id: str, task: dict[str, Any]) -> str:
        with urllib.request.urlopen(f"{self._url}/runs/{run_id}/tasks/{task['task_id']}/log", timeout=30) as answer:
            return str(answer.read().decode())


def _states(seen: dict[str, Any]) -> dict[str, str]:
    return {task["path"]: task["own_state"] for task in seen["tasks"]}


@pytest.fixture(scope="module")
def kfp(request: pytest.FixtureRequest) -> Kfp:
    """A server to which every fixture has been submitted once."""
    url = os.environ.get("SHALLOP_TEST_KFP_URL")
    if not url:
        platform = request.getfixturevalue("platform")
        url = platform.web
        _create_secrets(Path(platform.kubeconfig))
    kfp = Kfp(url)
    kfp.runs = {file.stem: kfp.submit(file) for file in FILES}
    return kfp


def _create_secrets(kubeconfig: Path) -> None:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    for name, data in SECRETS.items():
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
        request = urllib.request.Request(
            f"{cluster['server']}/api/v1/namespaces/kubeflow/secrets",
            json.dumps(secret).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {user['token']}"},
        )
        urllib.request.urlopen(request, context=tls, timeout=30).close()


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_a_fixture_ends_as_upstream_says(kfp: Kfp, name: str) -> None:
    seen = kfp.ended(kfp.runs[name])
    expected = "FAILED" if name in FAIL else "SUCCEEDED"
    assert seen["run"]["state"] == expected, (seen["run"].get("error"), _states(seen))
    check = CHECKS.get(name)
    if check:
        check(kfp, seen)


def _task(seen: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the only task of this name."""
    (task,) = [task for task in seen["tasks"] if task["name"] == name]
    return dict(task)


def _output(seen: dict[str, Any], name: str) -> Any:
    return _task(seen, name)["output_parameters"]["Output"]


def _check_sum(kfp: Kfp, seen: dict[str, Any]) -> None:
    assert _output(seen, "add-numbers") == 10
    assert seen["outputs"]["parameters"] == {"Output": 10}


def _check_concat(kfp: Kfp, seen: dict[str, Any]) -> None:
    assert _output(seen, "concat-message") == "texttext"


def _check_env(kfp: Kfp, seen: dict[str, Any]) -> None:
    (task,) = [task for task in seen["tasks"] if task["kind"] == "container"]
    assert "env_var_value" in json.dumps(task["output_parameters"]) + kfp.log(task["run_id"], task)


def _check_nested_return(kfp: Kfp, seen: dict[str, Any]) -> None:
    (task,) = [task for task in seen["tasks"] if task["kind"] == "container"]
    assert task["output_parameters"]["Output"] == [{"A_a": "1", "B_b": "2"}, {"A_a": "10", "B_b": "20"}]


def _check_one_branch(kfp: Kfp, seen: dict[str, Any]) -> None:
    states = [task["own_state"] for task in seen["tasks"] if task["name"].startswith("condition-")]
    assert "SKIPPED" in states
    assert "SUCCEEDED" in states


def _check_collected(kfp: Kfp, seen: dict[str, Any]) -> None:
    consumers = [task for task in seen["tasks"] if task["name"] == "consume-ids"]
    assert len(consumers) == 2
    for task in consumers:
        assert task["input_parameters"] == {"ids": ["model_id_s1", "model_id_s2", "model_id_s3"]}


def _check_nested_loops(kfp: Kfp, seen: dict[str, Any]) -> None:
    values = [task["output_parameters"].get("Output") for task in seen["tasks"]]
    assert [[4, 6, 8], [6, 8, 10], [8, 10, 12]] in values + [
        value for task in seen["tasks"] for value in task["input_parameters"].values()
    ]
    assert 72 in values


def _check_workspace(kfp: Kfp, seen: dict[str, Any]) -> None:
    logs = [kfp.log(task["run_id"], task) for task in seen["tasks"] if task["kind"] == "container"]
    assert any("Hello from workspace!" in log for log in logs)


def _check_cache(kfp: Kfp, seen: dict[str, Any]) -> None:
    again = kfp.ended(kfp.submit(FIXTURES / "artifact_cache.yaml"))
    assert again["run"]["state"] == "SUCCEEDED"
    for task in again["tasks"]:
        if task["kind"] == "container":
            before = _task(seen, task["name"])
            assert (task["own_state"], task["state"]) == ("CACHED", "SKIPPED")
            assert task["output_parameters"] == before["output_parameters"]
            assert task.get("outputs") == before.get("outputs")
            assert before["run_id"] in task["note"]


def _check_limit(kfp: Kfp, seen: dict[str, Any]) -> None:
    for loop in (task for task in seen["tasks"] if task["kind"] == "loop"):
        iterations = [task for task in seen["tasks"] if task.get("parent_task_id") == loop["task_id"]]
        starts = [(task["start_time"], 1) for task in iterations]
        ends = [(task["end_time"], -1) for task in iterations]
        running = most = 0
        for _, change in sorted(starts + ends):
            running += change
            most = max(most, running)
        assert most <= 2 or loop["name"] not in LIMITED, (loop["path"], most)


def _check_exit(kfp: Kfp, seen: dict[str, Any]) -> None:
    after = [task for task in seen["tasks"] if task["kind"] == "container" and task["own_state"] == "SUCCEEDED"]
    assert after, _states(seen)


def _limited_loops() -> set[str]:
    file = FIXTURES / "pipeline_with_parallelfor_parallelism.yaml"
    if not file.exists():
        return set()
    document = next(yaml.safe_load_all(file.read_text()))
    dags = [document["root"], *document["components"].values()]
    tasks = [item for dag in dags if "dag" in dag for item in dag["dag"]["tasks"].items()]
    return {name for name, task in tasks if task.get("iteratorPolicy", {}).get("parallelismLimit") in (1, 2)}


LIMITED = _limited_loops()
CHECKS: dict[str, Callable[[Kfp, dict[str, Any]], None]] = {
    "add_numbers": _check_sum,
    "concat_message": _check_concat,
    "component_with_env_variable": _check_env,
    "nested_return": _check_nested_return,
    "flip_coin": _check_one_branch,
    "parameter_oneof": _check_one_branch,
    "collected_parameters": _check_collected,
    "nested_with_parameters": _check_nested_loops,
    "pipeline_with_workspace": _check_workspace,
    "artifact_cache": _check_cache,
    "pipeline_with_parallelfor_parallelism": _check_limit,
    "pipeline_with_exit_handler": _check_exit,
    "pipeline_with_task_final_status": _check_exit,
    "pipeline_with_task_using_ignore_upstream_failure": _check_exit,
}
