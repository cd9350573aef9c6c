"""The unmodified ``kubeflow`` SDK's OptimizerClient searches with TrainJobs as trials."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SESSION = Path(__file__).with_name("tune_session.py")


@pytest.mark.timeout(300)
def test_the_sdk_optimizes_a_training_function(platform: Any, client_env: Callable[[str], Path]) -> None:
    platform.kubectl("create", "namespace", "optimizer-sdk")
    command = [str(client_env("kubeflow")), str(SESSION), platform.kubeconfig, "optimizer-sdk"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
