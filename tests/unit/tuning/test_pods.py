"""What Pods of trials get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shallop.settings import Settings
from shallop.tuning.pods import rejoin, render_pod

SETTINGS = Settings(home=Path("/home/x"))


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        (["python3", "a.py"], ["--lr=0.1"], ["python3", "a.py", "--lr=0.1"]),
        (["python3", "a.py"], ['--ops=\'["a", "b"]\''], ["python3", "a.py", '--ops=["a", "b"]']),
        (["python3"], ["a.py", "two words"], ["python3", "a.py", "two", "words"]),
        (["python3", "a.py", "$HOME"], [], ["sh", "-c", "python3 a.py $HOME"]),
        (["python3", "a.py", "|", "tee", "x"], [], ["sh", "-c", "python3 a.py | tee x"]),
        (["bash", "-c"], ["echo 1", "2"], ["bash", "-c", "echo 1 2"]),
        (["python3", "-c", "print(f'loss={1 + 1}')"], ["a b"], ["python3", "-c", "print(f'loss={1 + 1}')", "a b"]),
        (["python3", "-c", "'print(1)'"], ["a b"], ["python3", "-c", "print(1)", "a", "b"]),
        (["python3", "-c", '"print($X)"'], [], ["sh", "-c", 'python3 -c "print($X)"']),
        ([], ["x"], []),
    ],
)
def test_a_command_is_joined_and_read_again_as_katib_does(
    command: list[str], args: list[str], expected: list[str]
) -> None:
    found = rejoin(command, args)
    assert [*found.get("command", []), *found.get("args", [])] == expected


def trial(kind: str, **collector: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "t-1", "namespace": "team", "labels": {"katib.kubeflow.org/experiment": "t"}},
        "spec": {
            "primaryContainerName": "main",
            "primaryPodLabels": {"role": "master"},
            "metricsCollector": {"collector": {"kind": kind, **collector.pop("collector", {})}, **collector},
        },
    }


def pod(**labels: str) -> dict[str, Any]:
    containers = [{"name": "main", "command": ["python3", "a.py", "'x y'"]}, {"name": "side"}]
    return {"metadata": {"name": "p", "labels": labels}, "spec": {"containers": containers}}


def test_every_pod_is_labelled_and_knows_its_trial() -> None:
    found = render_pod(pod(role="worker"), trial("StdOut"), SETTINGS)
    assert found["metadata"]["labels"]["katib.kubeflow.org/trial"] == "t-1"
    for container in found["spec"]["containers"]:
        assert {"name": "KATIB_TRIAL_NAME", "value": "t-1"} in container["env"]
    assert found["spec"]["containers"][0]["command"] == ["python3", "a.py", "'x y'"], "only the primary Pod changes"


def test_files_of_the_primary_container_are_on_this_machine() -> None:
    source = {"fileSystemPath": {"path": "/katib/out.log", "kind": "File"}}
    found = render_pod(pod(role="master"), trial("File", source=source), SETTINGS)
    main, side = found["spec"]["containers"]
    assert main["volumeMounts"] == [{"name": "katib-metrics", "mountPath": "/katib"}]
    assert main["command"] == ["python3", "a.py", "x y"]
    assert "volumeMounts" not in side
    assert found["spec"]["volumes"][0]["hostPath"]["path"] == "/home/x/tuning/team/t-1"
    log_of = {"log-of.shallop.dev/metrics-logger-and-collector": "main"}
    assert found["metadata"]["annotations"] == log_of | {"start.shallop.dev/warm": "true"}


def test_a_custom_collector_shares_the_folder() -> None:
    custom = {"customCollector": {"name": "collector", "image": "c"}}
    source = {"fileSystemPath": {"path": "/katib/out.log", "kind": "File"}}
    found = render_pod(pod(role="master"), trial("Custom", collector=custom, source=source), SETTINGS)
    main, _, collector = found["spec"]["containers"]
    assert main["volumeMounts"] == collector["volumeMounts"]
    assert main["command"] == ["python3", "a.py", "'x y'"], "custom collectors leave the command alone"


def test_a_member_of_a_population_finds_its_checkpoint() -> None:
    found = render_pod(pod(role="master"), trial("StdOut"), SETTINGS, "/ckpt/")
    assert found["spec"]["containers"][0]["volumeMounts"] == [{"name": "katib-checkpoints", "mountPath": "/ckpt"}]
