"""The Pod of a shell, and how a command in it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shallop.runner.shell import render_shell_pod
from shallop.runner.terminal import exit_code_of


def test_the_pod_of_a_shell_has_all_that_the_step_had_and_belongs_to_no_run() -> None:
    container: dict[str, Any] = {"name": "main", "image": "python:3.11", "args": ["--task", "{}", "--", "x"]}
    container |= {"env": [{"name": "A", "value": "1"}], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    labels = {"pipeline/runid": "r", "pipelines.kubeflow.org/v2_component": "true", "own": "label"}
    spec = {"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}], "nodeName": "n"}
    pod = {"metadata": {"name": "train", "namespace": "team", "labels": labels, "uid": "u"}, "spec": spec}
    made = render_shell_pod(pod, Path("/tmp/folder"))
    assert made["metadata"]["labels"] == {"own": "label"}
    assert (made["metadata"]["namespace"], "uid" in made["metadata"]) == ("team", False)
    (shown,) = made["spec"]["containers"]
    assert shown["args"] == container["args"]
    assert shown["env"] == [{"name": "A", "value": "1"}, {"name": "SHALLOP_TASK_PAUSED", "value": "1"}]
    assert [mount["mountPath"] for mount in shown["volumeMounts"]] == ["/data", "/tmp/folder"]
    assert made["spec"]["volumes"][1] == {"name": "shell", "hostPath": {"path": "/tmp/folder"}}
    assert "nodeName" not in made["spec"]
    assert len(container["env"]) == 1  # the step's own is as it was


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"status": "Success"}, 0),
        ({"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}}, 7),
        ({"status": "Failure", "message": "no such file"}, 1),
    ],
)
def test_a_status_says_how_a_command_ended(status: dict[str, Any], code: int) -> None:
    assert exit_code_of(json.dumps(status).encode()) == code
