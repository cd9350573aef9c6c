"""Logging in to a cluster by a command, a rotating token, a client certificate, through a proxy; over real sockets."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from shallop.errors import UnauthorizedError
from shallop.kube.credentials import Credentials, ExecPlugin


def plugin(tmp_path: Path, output: Any, **fields: Any) -> ExecPlugin:
    script = tmp_path / "login"
    script.write_text(
        f"#!/bin/sh\necho \"$KUBERNETES_EXEC_INFO\" >'{tmp_path}/info'\ncat <<'E'\n{json.dumps(output)}\nE\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    section = {"apiVersion": "client.authentication.k8s.io/v1", "command": "./login", "interactiveMode": "Never"}
    return ExecPlugin.parse(section | fields, tmp_path, {"server": "https://127.0.0.1:1"})


def credential(**status: str) -> dict[str, Any]:
    return {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status}


def test_a_login_command_is_told_of_the_cluster_and_asked_again_when_its_answer_expires(tmp_path: Path) -> None:
    asked = plugin(
        tmp_path, credential(token="abc", expirationTimestamp="2020-01-01T00:00:00Z"), provideClusterInfo=True
    )
    grant = asked()
    assert (grant.token, grant.until) == ("abc", 1577836800.0)
    info = json.loads((tmp_path / "info").read_text())
    assert info["spec"] == {"interactive": False, "cluster": {"server": "https://127.0.0.1:1"}}
    (tmp_path / "info").unlink()
    credentials = Credentials(asked, None)
    asyncio.run(credentials.login())
    (tmp_path / "info").unlink()
    asyncio.run(credentials.login())
    assert (tmp_path / "info").exists()


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ({"kind": "Pod", "apiVersion": "v1"}, "kind and apiVersion must be"),
        (credential(), "neither a token nor a client certificate"),
        (credential(clientCertificateData="x"), "neither a token nor a client certificate"),
    ],
)
def test_a_login_command_that_prints_something_else_is_said(tmp_path: Path, output: Any, problem: str) -> None:
    with pytest.raises(UnauthorizedError, match=problem):
        plugin(tmp_path, output)()


def test_a_login_command_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UnauthorizedError, match=r"failed: .*Get it from the shop"):
        plugin(tmp_path, {}, command="./other", installHint="Get it from the shop")()
    with pytest.raises(UnauthorizedError, match="needs a terminal"):
        plugin(tmp_path, {}, interactiveMode="Always")()
