"""Pods of several containers that end at the same moment: their shim must not trip over its own events."""

from __future__ import annotations

import json
from typing import Any

import pytest


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
