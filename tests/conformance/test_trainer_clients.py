"""The unmodified SDKs of Kubeflow train: ``kubeflow`` with TrainJobs, ``kubeflow-training`` with the classic jobs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SESSIONS = {"kubeflow": "trainer_session.py", "kubeflow-training": "training_v1_session.py"}


@pytest.fixture(scope="module")
def sessions(
    platform: Any, client_env: Callable[[str], Path], kubectl: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[subprocess.Popen[bytes], Path]]]:
    """Both at once, each in a namespace of its own and with what it prints in a file: they mostly wait."""
    folder = tmp_path_factory.mktemp("sessions")
    pythons = {client: client_env(client) for client in SESSIONS}
    running = {}
    for client, name in SESSIONS.items():
        python, namespace, output = pythons[client], f"sdk-{client}", folder / client
        platform.kubectl("create", "namespace", namespace)
        command = [str(python), str(Path(__file__).with_name(name)), platform.kubeconfig, namespace]
        with output.open("wb") as file:
            running[client] = (subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT), output)
    yield running
    for client, (process, _) in running.items():
        process.kill()
        process.wait()
        platform.kubectl("delete", "namespace", f"sdk-{client}", "--wait=false")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("client", list(SESSIONS))
def test_the_sdk_trains(sessions: dict[str, tuple[subprocess.Popen[bytes], Path]], client: str) -> None:
    process, output = sessions[client]
    code = process.wait(timeout=1100)
    said = output.read_text()
    assert code == 0, said[-6000:]
    assert "ok" in said.splitlines(), said
