"""Helm, by the library that its command line is made of, unmodified."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

SESSION = Path(__file__).with_name("helm_session.py")


def test_a_chart_is_installed_upgraded_rolled_back_and_uninstalled(
    platform: Any, client_env: Callable[[str], Path], tmp_path: Path
) -> None:
    namespace = "helm"
    platform.kubectl("create", "namespace", namespace)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": platform.kubeconfig}
    command = [str(client_env("helm")), str(SESSION), namespace, str(tmp_path / "small")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as session:
        try:
            assert session.stdout is not None
            if session.stdout.readline() == "rolled back\n":
                colour = platform.kubectl("-n", namespace, "get", "cm", "demo", "-o", "jsonpath={.data.colour}")
                assert colour == "blue"
                deployment = platform.kubectl(
                    "-n", namespace, "get", "deploy", "demo", "-o", "jsonpath={.spec.replicas}"
                )
                assert deployment == "1"
            output, errors = session.communicate("\n", timeout=120)
        finally:
            session.kill()
    assert session.returncode == 0 and output.endswith("ok\n"), errors[-4000:]
    left = platform.kubectl("-n", namespace, "get", "deploy,svc,secret", "-o", "name")
    assert left == ""
    platform.kubectl("delete", "namespace", namespace, "--timeout=60s")
