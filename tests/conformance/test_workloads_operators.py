"""Third-party libraries for the Kubernetes API, unmodified, each with a small program of the kind that they are for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SESSION = Path(__file__).with_name("operators_session.py")


@pytest.mark.parametrize("program", ["kr8s", "lightkube", "kopf"])
def test_a_program_runs_unmodified(platform: Any, client_env: Callable[[str], Path], program: str) -> None:
    namespace = f"operators-{program}"
    platform.kubectl("create", "namespace", namespace)
    done = subprocess.run(
        [str(client_env("operators")), "-W", "ignore", str(SESSION), namespace, program],
        env={"PATH": os.environ["PATH"], "HOME": str(platform.home), "KUBECONFIG": platform.kubeconfig},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.stdout.strip().endswith("ok")
    platform.kubectl("delete", "namespace", namespace, "--timeout=60s")
