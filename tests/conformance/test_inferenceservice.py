"""The unmodified ``kserve`` client creates, waits for, reads, patches, replaces and deletes InferenceServices."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

SESSION = Path(__file__).with_name("inferenceservice_session.py")
MODELS = Path(__file__).parents[1] / "unit" / "serving" / "models"


def test_the_client_manages_an_inference_service(
    platform: Any, client_env: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "model.joblib").write_bytes((MODELS / "plain.joblib").read_bytes())
    command = [str(client_env("kserve")), str(SESSION), platform.kubeconfig, f"file://{tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
