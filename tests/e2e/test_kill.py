"""Any process may be killed at any time: what was declared is reached again, and nothing runs twice or for ever."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from shallop_pod.zygote import connect

DEADLINE_S = 40.0
SERVE = "import http.server as h; h.ThreadingHTTPServer(('0.0.0.0', 8080), h.SimpleHTTPRequestHandler).serve_forever()"
# Waits for a file of its volume, then ends with the code that is in it.
WAIT = "while ! [ -s /signal/$MARK ]; do sleep 0.05; done; exit $(cat /signal/$MARK)"


def until(check: Callable[[], Any], what: str) -> Any:
    """Return the first true result of ``check``."""
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


def processes(text: str) -> set[int]:
    """Return the processes whose environment contains a text."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and text.encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
    return found


def marked(mark: str) -> set[int]:
    """Return the processes of containers with ``MARK`` in their environment."""
    return processes(f"MARK={mark}\0")


def containers_of(mark: str, *command: str, **fields: Any) -> list[dict[str, Any]]:
    env = [{"name": "MARK", "value": mark}]
    return [{"name": "main", "image": "python:3.11", "command": list(command), "env": env, **fields}]


def pod_spec(mark: str, *command: str, signals: Path | None = None, **fields: Any) -> dict[str, Any]:
    mounts = [{"name": "signal", "mountPath": "/signal"}] if signals else []
    volumes = [{"name": "signal", "hostPath": {"path": str(signals)}}] if signals else []
    containers = containers_of(mark, *command, volumeMounts=mounts)
    return {"containers": containers, "volumes": volumes, "terminationGracePeriodSeconds": 2, **fields}


def pod(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def deployment(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    body = {"selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": body}


def service(name: str) -> dict[str, Any]:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def job(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    template = {"spec": {"restartPolicy": "Never", **spec}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"template": template}}


def apply(platform: Any, *objects: dict[str, Any]) -> None:
    platform.kubectl("apply", "-f", "-", stdin="\n".join(json.dumps(obj) for obj in objects))


def status_of(platform: Any, name: str) -> dict[str, Any]:
    text = platform.kubectl("get", "pod", name, "-o", "json", "--ignore-not-found")
    return dict(json.loads(text)["status"]) if text else {}


def container_of(platform: Any, name: str) -> dict[str, Any]:
    statuses = status_of(platform, name).get("containerStatuses") or [{"state": {}, "restartCount": -1}]
    return dict(statuses[0])


def running(platform: Any, name: str) -> dict[str, Any] | None:
    container = container_of(platform, name)
    return container if "running" in container["state"] else None


def restart(platform: Any, *arguments: str) -> None:
    """Start it again as a supervisor would: same home, same ports, same other arguments."""
    urls = {"api": platform.api, "web": platform.web, "gateway": platform.gateway, "content": platform.content}
    ports = [word for name, url in urls.items() for word in (f"--{name}-port", str(urlsplit(url).port))]
    platform.up(*ports, *arguments)


@pytest.fixture
def signals(tmp_path: Path) -> Path:
    folder = tmp_path / "signals"
    folder.mkdir()
    return folder


@pytest.fixture
def nothing_left(own_platform: Any) -> Iterator[Any]:
    """A platform of the test's own; no process of it may be left after ``down``."""
    yield own_platform
    own_platform.down()
    until(lambda: not processes(str(own_platform.home)), f"every process of {own_platform.home} has ended")


@pytest.mark.parametrize("isolation", ["namespaces", "user", "none"])
def test_pods_go_on_when_the_platform_is_killed(nothing_left: Any, signals: Path, isolation: str) -> None:
    if isolation == "namespaces" and os.geteuid() != 0:
        pytest.skip("own networks for Pods need root")
    platform, home = nothing_left, str(signals)
    marks = {name: f"{name}-{home}" for name in ("web", "job", "bare", "stays")}
    marks = {name: f"{name}{abs(hash(text))}" for name, text in marks.items()}
    platform.up("--isolation", isolation)
    apply(
        platform,
        deployment("web", pod_spec(marks["web"], "python3", "-c", SERVE)),
        service("web"),
        job("work", pod_spec(marks["job"], "sh", "-c", WAIT, signals=signals)),
        pod("bare", pod_spec(marks["bare"], "sh", "-c", WAIT, signals=signals, restartPolicy="Never")),
        pod("stays", pod_spec(marks["stays"], "sh", "-c", WAIT, signals=signals, restartPolicy="Always")),
    )
    platform.kubectl("wait", "--for=condition=Available", "deployment/web", "--timeout=60s")
    for mark in marks.values():
        until(lambda: marked(mark), f"{mark} runs")  # noqa: B023 called at once
    before = {name: marked(mark) for name, mark in marks.items()}

    platform.kill()
    (signals / marks["bare"]).write_text("7")
    (signals / marks["job"]).write_text("0")
    until(lambda: not marked(marks["bare"]) and not marked(marks["job"]), "two have ended meanwhile")
    restart(platform, "--isolation", isolation)

    platform.kubectl("wait", "--for=condition=Complete", "job/work", "--timeout=30s")
    until(lambda: "terminated" in container_of(platform, "bare")["state"], "the end of 'bare' is seen")
    assert container_of(platform, "bare")["state"]["terminated"]["exitCode"] == 7
    assert status_of(platform, "bare")["phase"] == "Failed"
    pods = json.loads(platform.kubectl("get", "pods", "-o", "json"))["items"]
    assert {p["status"]["containerStatuses"][0]["restartCount"] for p in pods} == {0}
    assert len(pods) == 4, "nothing ran twice"
    assert before["web"] <= marked(marks["web"]) and before["stays"] & marked(marks["stays"])
    fetch = (
        "import time, urllib.request\n"
        "for _ in range(100):\n"
        "    try: print(urllib.request.urlopen('http://web/', timeout=2).status); break\n"
        "    except OSError: time.sleep(0.05)\n"
    )
    apply(platform, pod("client", pod_spec("client", "python3", "-c", fetch, restartPolicy="Never")))
    platform.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/client", "--timeout=30s")
    assert platform.kubectl("logs", "client").strip() == "200"

    (signals / marks["stays"]).write_text("3")
    until(lambda: container_of(platform, "stays")["restartCount"] >= 1, "an adopted container is restarted")
    platform.kubectl("delete", "deployment/web", "pod/stays", "job/work", "--wait=true")
    until(lambda: not marked(marks["web"]) and not marked(marks["stays"]), "deleted Pods have no processes")


def test_a_killed_process_is_restarted_by_policy(platform: Any) -> None:
    apply(
        platform,
        pod("always", pod_spec("killed-always", "sleep", "1000", restartPolicy="Always")),
        pod("never", pod_spec("killed-never", "sleep", "1000", restartPolicy="Never")),
    )
    for name in ("always", "never"):
        until(lambda: running(platform, name) and marked(f"killed-{name}"), f"{name} runs")  # noqa: B023 called at once
    old = marked("killed-always")
    for pid in old | marked("killed-never"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    container = until(
        lambda: (c := running(platform, "always")) and c["restartCount"] == 1 and c, "'always' is restarted"
    )
    assert container["lastState"]["terminated"]["exitCode"] == 137
    until(lambda: marked("killed-always"), "a new process")
    assert not marked("killed-always") & old
    until(lambda: status_of(platform, "never").get("phase") == "Failed", "'never' has failed")
    assert container_of(platform, "never")["state"]["terminated"]["exitCode"] == 137
    platform.kubectl("delete", "pod", "always", "never")
    assert not marked("killed-always")


@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_a_killed_shim_leaves_no_orphan(nothing_left: Any, isolation: str) -> None:
    platform = nothing_left
    platform.up("--isolation", isolation)
    mark = f"shimless{os.getpid()}"
    # The second process has left the group of the first: without a PID namespace nothing but a search finds it.
    command = ("sh", "-c", "setsid sleep 1000 & exec sleep 1001")
    apply(platform, pod("shimless", pod_spec(mark, *command, restartPolicy="Always")))
    until(lambda: running(platform, "shimless") and len(marked(mark)) >= 2, "it runs")
    old = marked(mark)
    uid = platform.kubectl("get", "pod", "shimless", "-o", "jsonpath={.metadata.uid}")
    os.kill(json.loads((platform.home / "pods" / uid / "shim.json").read_text())["pid"], signal.SIGKILL)
    until(lambda: (c := running(platform, "shimless")) and c["restartCount"] == 1, "it runs again")
    until(lambda: len(marked(mark)) >= 2, "new processes run")
    assert not marked(mark) & old
    platform.kubectl("delete", "pod", "shimless")
    assert not marked(mark)


def test_a_shim_killed_together_with_the_platform_leaves_no_orphan(nothing_left: Any) -> None:
    platform = nothing_left
    platform.up()
    mark = f"both{os.getpid()}"
    apply(platform, pod("both", pod_spec(mark, "sleep", "1000", restartPolicy="Always")))
    until(lambda: running(platform, "both") and marked(mark), "it runs")
    old = marked(mark)
    uid = platform.kubectl("get", "pod", "both", "-o", "jsonpath={.metadata.uid}")
    platform.kill()
    os.kill(json.loads((platform.home / "pods" / uid / "shim.json").read_text())["pid"], signal.SIGKILL)
    restart(platform)
    until(lambda: (c := running(platform, "both")) and c["restartCount"] == 1, "it runs again")
    until(lambda: marked(mark) - old, "a new process runs")
    assert not marked(mark) & old


def test_a_killed_fork_server_is_replaced(nothing_left: Any) -> None:
    platform = nothing_left
    platform.up()
    apply(platform, pod("first", pod_spec("zygote-first", "sleep", "1000")))
    until(lambda: running(platform, "first") and marked("zygote-first"), "it runs")
    old = marked("zygote-first")
    for path in (platform.home / "run" / "zygotes").glob("*.sock"):
        with connect(str(path)) as connection:
            (pid, *_) = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        os.kill(pid, signal.SIGKILL)
    apply(platform, pod("second", pod_spec("zygote-second", "true", restartPolicy="Never")))
    platform.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/second", "--timeout=30s")
    assert marked("zygote-first") >= old, "what it had started goes on"
    assert container_of(platform, "first")["restartCount"] == 0
    platform.kubectl("delete", "pod", "first")
    assert not marked("zygote-first")


def test_down_ends_pods_and_up_starts_them_again(nothing_left: Any) -> None:
    platform = nothing_left
    mark = f"again{os.getpid()}"
    platform.up()
    apply(platform, deployment("again", pod_spec(mark, "sleep", "1000")))
    platform.kubectl("wait", "--for=condition=Available", "deployment/again", "--timeout=60s")
    platform.down()
    assert not marked(mark)
    restart(platform)
    until(lambda: marked(mark), "it runs again")
    platform.kubectl("wait", "--for=condition=Available", "deployment/again", "--timeout=60s")


def test_down_can_leave_pods_running(nothing_left: Any) -> None:
    platform = nothing_left
    mark = f"kept{os.getpid()}"
    platform.up()
    apply(platform, deployment("kept", pod_spec(mark, "sleep", "1000")))
    platform.kubectl("wait", "--for=condition=Available", "deployment/kept", "--timeout=60s")
    before = until(lambda: marked(mark), "it runs")
    platform.command("down", "--keep-pods")
    assert marked(mark) == before
    restart(platform)
    until(lambda: platform.kubectl("get", "pods", "-l", "app=kept", "--no-headers"), "the Pod is known")
    assert marked(mark) == before
    restarts = platform.kubectl("get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}")
    assert restarts == "0"
