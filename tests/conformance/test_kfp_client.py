"""The unmodified kfp SDK and CLI against the real server, and a server that is killed while it drives a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Platform

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def kfp_python(client_env: Callable[[str], Path]) -> str:
    """The interpreter of an environment with kfp 2.17.0, for clients and for the tasks' Pods."""
    return str(client_env("demo"))


class Server:
    """A server process over one home; ``kill`` and ``start`` as often as wanted."""

    def __init__(self, home: Path, python: str) -> None:
        self.home, self._python = home, python
        self.url = ""

    def start(self) -> None:
        port = self.home / "port"
        port.unlink(missing_ok=True)
        command = [sys.executable, str(HERE / "kfp_server.py"), str(self.home), self._python, str(port)]
        self._log = (self.home / "server.log").open("ab")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 60
        while not (port.exists() and port.read_text()):
            assert time.monotonic() < deadline, (self.home / "server.log").read_text()[-2000:]
            assert self._process.poll() is None, (self.home / "server.log").read_text()[-2000:]
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{port.read_text()}"

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/apis/v2beta1{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def ended(self, run_id: str) -> Any:
        deadline = time.monotonic() + 60
        while True:
            seen = self.call(f"/runs/{run_id}/tasks")
            if seen["run"]["state"] in ("SUCCEEDED", "FAILED"):
                return seen
            assert time.monotonic() < deadline, seen
            time.sleep(0.02)


@pytest.fixture
def server(tmp_path: Path, kfp_python: str) -> Iterator[Server]:
    server = Server(tmp_path, kfp_python)
    server.start()
    yield server
    server.kill()


def test_sdk_and_cli(server: Server, kfp_python: str) -> None:
    command = [kfp_python, "-W", "ignore", str(HERE / "kfp_session.py"), server.url]
    env = {"PATH": os.environ["PATH"], "HOME": str(server.home)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")


def test_several_users(own_platform: Platform, kfp_python: str, tmp_path: Path) -> None:
    own_platform.up("--multi-user")
    script = HERE / "kfp_users_session.py"
    command = [kfp_python, "-W", "ignore", str(script), own_platform.web, own_platform.kubeconfig]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
    # The administrator's command line says where to work.
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps(chain(tmp_path, 1)))
    ran = own_platform.command("run", str(file), "--namespace", "team-b", "--watch", check=False)
    assert "SUCCEEDED" in ran.stdout, ran.stdout + ran.stderr
    assert "t0" in own_platform.command("why", "latest", "--namespace", "team-b").stdout
    nowhere = own_platform.command("run", str(file), "--namespace", "nowhere", check=False)
    assert "no namespace 'nowhere'" in nowhere.stderr


def test_a_kubeconfig_is_enough(platform: Platform, kfp_python: str, tmp_path: Path) -> None:
    command = [kfp_python, "-W", "ignore", str(HERE / "kfp_proxied_session.py"), platform.web]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": platform.kubeconfig}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")


def chain(folder: Path, length: int) -> dict[str, Any]:
    """Each task adds a line to a file of its own, slowly; its name is the number of its place."""
    tasks: dict[str, Any] = {}
    executors: dict[str, Any] = {}
    for number in range(length):
        script = f"sleep 0.1; echo $$ >> {folder}/{number}"
        executors[f"exec-{number}"] = {"container": {"image": "alpine", "command": ["sh", "-c", script]}}
        tasks[f"t{number}"] = {"componentRef": {"name": f"comp-{number}"}, "taskInfo": {"name": f"t{number}"}}
        if number:
            tasks[f"t{number}"]["dependentTasks"] = [f"t{number - 1}"]
    return {
        "pipelineInfo": {"name": "chain"},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": tasks}},
        "components": {f"comp-{number}": {"executorLabel": f"exec-{number}"} for number in range(length)},
        "deploymentSpec": {"executors": executors},
    }


def test_a_killed_server_goes_on_and_repeats_nothing(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    body = {"display_name": "chain", "pipeline_spec": chain(folder, 10)}
    run_id = server.call("/runs", body)["run_id"]
    for pause in (0.05, 0.17, 0.31, 0.43):
        time.sleep(pause)  # moments to be killed at, not moments to wait for
        server.kill()
        server.start()
    seen = server.ended(run_id)
    assert seen["run"]["state"] == "SUCCEEDED", seen
    assert {file.name: len(file.read_text().splitlines()) for file in folder.iterdir()} == {
        str(number): 1 for number in range(10)
    }
    assert [len(task["pods"]) for task in seen["tasks"] if task["kind"] == "container"] == [1] * 10


def test_a_run_that_is_deleted_leaves_nothing_running(server: Server, tmp_path: Path) -> None:
    document = chain(tmp_path, 1)
    document["deploymentSpec"]["executors"]["exec-0"]["container"]["command"] = ["sleep", "60"]
    run_id = server.call("/runs", {"display_name": "sleep", "pipeline_spec": document})["run_id"]
    deadline = time.monotonic() + 60
    while not (pids := list(tmp_path.glob("*.pid"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    request = urllib.request.Request(f"{server.url}/apis/v2beta1/runs/{run_id}", method="DELETE")
    urllib.request.urlopen(request, timeout=30).close()
    while _is_alive(int(pids[0].read_text())):
        assert time.monotonic() < deadline, "the task still runs"
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_states_are_streamed_while_a_run_goes_on(server: Server, tmp_path: Path) -> None:
    run_id = server.call("/runs", {"display_name": "chain", "pipeline_spec": chain(tmp_path, 3)})["run_id"]
    states: dict[str, list[str]] = {}
    with urllib.request.urlopen(f"{server.url}/apis/v2beta1/runs/{run_id}:watch", timeout=30) as stream:
        event = ""
        for line in stream:
            text = line.decode().rstrip("\n")
            if text.startswith("event: "):
                event = text[7:]
            if text.startswith("data: ") and event == "tasks":
                for task in json.loads(text[6:]):
                    states.setdefault(task["name"], []).append(task["own_state"])
    assert event == "end"
    assert {name: seen[-1] for name, seen in states.items()} == dict.fromkeys(("root", "t0", "t1", "t2"), "SUCCEEDED")
    assert "RUNNING" in states["t2"]


def test_a_log_is_followed_to_the_end_of_its_task(server: Server, tmp_path: Path) -> None:
    document = chain(tmp_path, 1)
    script = "for i in 1 2 3; do echo line $i; sleep 0.2; done"
    document["deploymentSpec"]["executors"]["exec-0"]["container"]["command"] = ["sh", "-c", script]
    run_id = server.call("/runs", {"display_name": "log", "pipeline_spec": document})["run_id"]
    deadline = time.monotonic() + 60
    while not (tasks := [task for task in server.call(f"/runs/{run_id}/tasks")["tasks"] if task["pods"]]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    base = f"{server.url}/apis/v2beta1/runs/{run_id}/tasks/{tasks[0]['task_id']}/log"
    with urllib.request.urlopen(f"{base}?follow=true", timeout=30) as stream:
        assert stream.read() == b"line 1\nline 2\nline 3\n"
    node = f"{server.url}/apis/v1alpha1/runs/{run_id}/nodes/{tasks[0]['pod_name']}/log"
    with urllib.request.urlopen(node, timeout=30) as stream:
        assert stream.read() == b"line 1\nline 2\nline 3\n"
