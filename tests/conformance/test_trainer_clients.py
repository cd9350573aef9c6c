"""The unmodified SDKs of Kubeflow train: ``kubeflow`` with TrainJobs, ``kubeflow-training`` with the classic jobs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("client", "session"),
    [("kubeflow", "trainer_session.py"), ("kubeflow-training", "training_v1_session.py")],
    ids=["kubeflow", "kubeflow-training"],
)
def test_the_sdk_trains(
    platform: Any, client_env: Callable[[str], Path], kubectl: str, client: str, session: str
) -> None:
    namespace = f"sdk-{client}"
    platform.kubectl("create", "namespace", namespace)
    script = Path(__file__).with_name(session)
    command = [str(client_env(client)), str(script), platform.kubeconfig, namespace]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
    platform.kubectl("delete", "namespace", namespace, "--wait=false")
