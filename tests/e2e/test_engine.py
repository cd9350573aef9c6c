"""Images that no environment stands for, run by podman; from a file system of our own, because there is no registry."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

IMAGE = "localhost/shallop-test/tiny:1"
# Some machines let nobody raise these limits, and have no control groups that crun understands.
CONFIGURATION = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "{runtime}"
"""


@pytest.fixture
def engine(tmp_path: Path, own_platform: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A platform that may use podman, and an image of a shell and a few programs."""
    podman = shutil.which("podman")
    if podman is None:
        pytest.skip("podman is not on this machine")
    configuration = tmp_path / "containers.conf"
    configuration.write_text(CONFIGURATION.format(runtime="runc" if shutil.which("runc") else "crun"))
    monkeypatch.setenv("CONTAINERS_CONF", str(configuration))
    archive = tmp_path / "root.tar"
    root = make_root(tmp_path / "root")
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    made = subprocess.run([podman, "import", str(archive), IMAGE], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"podman cannot make an image here: {made.stderr[-200:]}")
    command = [podman, "run", "--rm", "--network", "host", IMAGE, "/bin/sh", "-c", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if tried.returncode:
        pytest.skip(f"podman cannot run containers here: {tried.stderr[-200:]}")
    own_platform.up("--engine", "podman")
    yield own_platform
    own_platform.down()
    subprocess.run([podman, "rmi", "--force", IMAGE], capture_output=True, check=False, timeout=60)


def make_root(root: Path) -> Path:
    for folder in ("etc", "tmp", "proc", "sys", "dev", "data"):
        (root / folder).mkdir(parents=True)
    for program in ("sh", "cat", "sleep", "hostname", "test"):
        path = Path(shutil.which(program) or "")
        linked = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=True).stdout
        for file in {f"/bin/{program}", *re.findall(r"(/\S+)", linked)}:
            source = path if file == f"/bin/{program}" else Path(file)
            target = root / file.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.resolve(), target)
    (root / "etc" / "only-in-the-image").write_text("from the image\n")
    return root


def test_an_unknown_image_is_run_by_the_engine(engine: Any) -> None:
    container = {
        "name": "main",
        "image": IMAGE,
        "command": ["sh", "-c"],
        "args": ["cat /etc/only-in-the-image /data/word; echo; echo $COLOUR; hostname; sleep 1000"],
        "env": [{"name": "COLOUR", "value": "blue"}],
        "volumeMounts": [{"name": "words", "mountPath": "/data"}],
        "readinessProbe": {"exec": {"command": ["test", "-e", "/data/word"]}},
    }
    ending = {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", "exit 7"]}
    absent = {**ending, "image": "localhost/shallop-test/absent:1"}
    spec = {"containers": [container], "volumes": [{"name": "words", "configMap": {"name": "words"}}]}
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"}, "data": {"word": "from a map"}},
        pod("stays", {**spec, "terminationGracePeriodSeconds": 2}),
        pod("ends", {"containers": [ending], "restartPolicy": "Never"}),
        pod("absent", {"containers": [absent]}),
    ]
    engine.kubectl("apply", "-f", "-", stdin="\n".join(json.dumps(obj) for obj in objects))
    engine.kubectl("wait", "--for=condition=Ready", "pod/stays", "--timeout=90s")
    assert engine.kubectl("logs", "stays").split("\n")[:4] == ["from the image", "from a map", "blue", "stays"]
    assert engine.kubectl("exec", "stays", "--", "cat", "/etc/only-in-the-image") == "from the image\n"
    engine.kubectl("wait", "--for=jsonpath={.status.phase}=Failed", "pod/ends", "--timeout=60s")
    code = "{.status.containerStatuses[0].state.terminated.exitCode}"
    assert engine.kubectl("get", "pod", "ends", "-o", f"jsonpath={code}") == "7"
    waiting = "{.status.containerStatuses[0].state.waiting.message}"
    engine.kubectl("wait", f"--for=jsonpath={waiting}", "pod/absent", "--timeout=60s")
    assert "does not have it" in engine.kubectl("get", "pod", "absent", "-o", f"jsonpath={waiting}")
    # Other instances on this machine have containers of their own.
    uids = engine.kubectl("get", "pods", "-o", "jsonpath={.items[*].metadata.uid}").split()
    assert len(uids) == 3
    engine.kubectl("delete", "pod", "--all", "--timeout=60s")
    left = subprocess.run(
        ["podman", "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, check=True
    ).stdout
    assert not [uid for uid in uids if f"shallop-{uid}-" in left], left


def pod(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
