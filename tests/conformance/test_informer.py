"""The informer of the official client misses nothing and hears nothing twice when the control plane is killed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

SESSION = Path(__file__).parent / "informer_session.py"
KILLS = 2


def config_map(name: str, n: int) -> dict[str, Any]:
    metadata = {"name": name, "labels": {"run": "informer"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"n": str(n)}}


@pytest.mark.timeout(300)
def test_an_informer_of_the_official_client_survives_restarts(
    own_platform: Any, client_env: Callable[[str], Path], kubectl: str
) -> None:
    platform = own_platform
    python = client_env("informer")
    platform.up("--bare", "--isolation", "none")
    port = str(urlsplit(platform.api).port)
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(config_map("first", 0)))
    command = [str(python), str(SESSION), platform.kubeconfig, "default"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as session:
        try:
            assert session.stdout is not None
            heard = [json.loads(session.stdout.readline())]
            expected = [("ADDED", "first", "0")]
            for number in range(KILLS):
                name = f"before-{number}"
                platform.kubectl("apply", "-f", "-", stdin=json.dumps(config_map(name, number)))
                platform.kill()
                platform.up("--bare", "--isolation", "none", "--api-port", port)
                platform.kubectl("apply", "-f", "-", stdin=json.dumps(config_map("first", number + 1)))
                platform.kubectl("delete", "configmap", name)
                expected += [("ADDED", name, str(number)), ("MODIFIED", "first", str(number + 1))]
                expected.append(("DELETED", name, str(number)))
            platform.kubectl("apply", "-f", "-", stdin=json.dumps(config_map("end", 0)))
            expected.append(("ADDED", "end", "0"))
            heard += [json.loads(line) for line in session.stdout]
        finally:
            session.kill()
    events = [event for event in heard if event[0] in ("ADDED", "MODIFIED", "DELETED")]
    assert [tuple(event[:3]) for event in events] == expected
    revisions = [int(event[3]) for event in events]
    assert revisions == sorted(set(revisions))
    assert ["CACHE", {"first": str(KILLS), "end": "0"}] in heard
