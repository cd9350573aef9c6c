"""Pods of several containers that end at the same moment: their shim must not trip over its own events."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from shallop_pod.zygote import Child, Request, connect, spawn


@pytest.mark.timeout(120)
def test_many_pods_of_two_short_containers_all_succeed(platform: Any) -> None:
    command = ["sh", "-c", "echo one; echo two >&2; echo three"]
    containers = [{"name": name, "image": "python:3.11", "command": command} for name in ("a", "b")]
    for number in range(12):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"short-{number}", "labels": {"test": "short"}},
            "spec": {"restartPolicy": "Never", "containers": containers},
        }
        platform.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    succeeded = "--for=jsonpath={.status.phase}=Succeeded"
    platform.kubectl("wait", "pod", "-l", "test=short", succeeded, "--timeout=60s")
    assert platform.kubectl("logs", "short-0", "-c", "b").splitlines().count("three") == 1


@pytest.fixture
def shim(platform: Any, tmp_path: Path) -> Iterator[Child]:
    """A shim of no Pod, in ``tmp_path``."""
    zygote = next((platform.home / "run" / "zygotes").glob("*.sock"))
    log = os.open(tmp_path / "shim.log", os.O_CREAT | os.O_WRONLY, 0o600)
    environment = {"PATH": os.defpath, "PYTHONPATH": str(platform.home / "run" / "python")}
    request = Request("shallop_pod.shim", ["--folder", str(tmp_path)], environment)
    with contextlib.closing(spawn(str(zygote), request, (log, log, log))) as child:
        os.close(log)
        yield child
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def connected(shim: Child, folder: Path) -> Iterator[TextIO]:
    """Connect to a shim that may only be starting, and take its first word."""
    path = folder / "shim.sock"
    while not path.exists():
        assert shim.wait(0.01) is None
    with connect(str(path)) as connection, connection.makefile("rw") as stream:
        connection.settimeout(40)
        assert json.loads(stream.readline())["event"] == "state"
        yield stream


def start_order(platform: Any, folder: Path, argv: list[str]) -> dict[str, Any]:
    zygote = next((platform.home / "run" / "zygotes").glob("*.sock"))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(platform.home / "run" / "python")}
    request = vars(Request("shallop_pod.launcher", argv, environment))
    return {"op": "start", "id": "main-0", "socket": str(zygote), "log": str(folder / "0.log"), "request": request}


def test_a_connection_that_ends_when_the_next_one_comes_harms_nobody(shim: Child, tmp_path: Path) -> None:
    path = tmp_path / "shim.sock"
    while not path.exists():
        assert shim.wait(0.01) is None
    first = connect(str(path))
    assert b"state" in first.recv(1000)
    # Asleep, it finds both news at once when it wakes: first the new connection, then the end of the old one.
    os.kill(shim.pid, signal.SIGSTOP)
    second = connect(str(path))
    first.close()
    os.kill(shim.pid, signal.SIGCONT)
    with second:
        assert b"state" in second.recv(1000)
        second.sendall(b'{"op": "quit"}\n')
        ended = shim.wait(20)
    assert ended is not None and ended.code == 0, (tmp_path / "shim.log").read_text()


@pytest.mark.parametrize(("brief_s", "told"), [(0.05, ["started", "exited"]), (30, ["exited"])])
def test_the_start_of_a_container_that_ends_soon_is_not_told(
    shim: Child, platform: Any, tmp_path: Path, brief_s: float, told: list[str]
) -> None:
    task = json.dumps({"name": "t", "dir": str(tmp_path / "task"), "executorInput": {}})
    order = start_order(platform, tmp_path, ["--task", task, "--", "sleep", "0.5"]) | {"brief_s": brief_s}
    with connected(shim, tmp_path) as stream:
        stream.write(json.dumps(order) + "\n")
        stream.flush()
        news = [json.loads(stream.readline()) for _ in told]
    assert [event["event"] for event in news] == told
    assert news[-1]["code"] == 0 and news[-1]["started_at"] < news[-1]["at"]


def test_a_container_that_is_told_to_end_before_it_starts_ends(shim: Child, platform: Any, tmp_path: Path) -> None:
    task = json.dumps({"name": "t", "dir": str(tmp_path / "task"), "executorInput": {}})
    orders: tuple[dict[str, Any], ...] = (
        {"op": "signal", "id": "main-0", "signal": signal.SIGTERM},
        start_order(platform, tmp_path, ["--task", task, "--", "sleep", "60"]),
    )
    with connected(shim, tmp_path) as stream:
        for order in orders:
            stream.write(json.dumps(order) + "\n")
        stream.flush()
        while (news := json.loads(stream.readline())).get("event") != "exited":
            assert news.get("event") != "failed", news
    assert news["code"] == 143
