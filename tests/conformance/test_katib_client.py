"""The unmodified ``kubeflow-katib`` client tunes, waits, reads trials and metrics, edits budgets and deletes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SESSION = Path(__file__).with_name("katib_session.py")


@pytest.mark.timeout(300)
def test_the_client_runs_experiments(platform: Any, client_env: Callable[[str], Path]) -> None:
    status = json.loads(platform.command("status", "-o", "json").stdout)
    command = [str(client_env("katib")), str(SESSION), platform.kubeconfig, status["katib"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
