"""How a task's Pod ended: from the Pod and the launcher's ``result.json`` to the planner's event."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from shallop.kube.objects import Object
from shallop.pipelines.inputs import TaskError
from shallop.pipelines.ir import ArtifactType

__all__ = [
    "NAMESPACE",
    "ResultArtifact",
    "TaskResult",
    "is_over",
    "is_stuck",
    "is_transient",
    "pod_failure",
    "pod_namespace",
    "read_result",
]

# The Pods of a single-user server live here.
NAMESPACE = "kubeflow"
# A container that waits for one of the first waits for ever: a person has to change something. One of the second may
# wait for what is only being made, such as a claim.
_FATAL_WAITS = (
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "CreateContainerError",
)
_PATIENT_WAITS = ("CreateContainerConfigError",)


class ResultArtifact(Struct, rename="camel"):
    name: str
    uri: str
    type: ArtifactType = ArtifactType()
    metadata: dict[str, Any] = {}
    digest: str | None = None
    size_bytes: int = 0


class ResultError(Struct):
    message: str


class TaskResult(Struct, rename="camel"):
    """What ``result.json`` says; times are RFC 3339 or empty."""

    state: str
    exit_code: int = 0
    parameters: dict[str, Any] = {}
    artifacts: dict[str, list[ResultArtifact]] = {}
    error: ResultError | None = None
    usage: dict[str, float] = {}
    environment: str | None = None
    started_at: str = ""
    ended_at: str = ""


_RESULT = msgspec.json.Decoder(TaskResult)
_CHUNK = 1 << 20


def pod_namespace(row: Mapping[str, Any]) -> str:
    """Return where the Pods of a run are."""
    return row["namespace"] or NAMESPACE


def read_result(folder: str) -> TaskResult | None:
    """Read the result in a task's folder; None when the task left none, or none that can be read."""
    try:
        return _RESULT.decode(_read(f"{folder}/result.json"))
    except (OSError, msgspec.MsgspecError):
        return None


def _read(path: str) -> bytes:
    """Read a small file; each task ends with it, and a file object asks the system three times as often."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while more := os.read(file, _CHUNK):
            data += more
        return data
    finally:
        os.close(file)


def is_over(pod: Object) -> bool:
    """Say whether a Pod has ended, or waits for what will not come by itself."""
    status = pod.get("status") or {}
    return status.get("phase") in ("Succeeded", "Failed") or _wait_for(status, _FATAL_WAITS) is not None


def is_stuck(pod: Object) -> bool:
    """Say whether a Pod waits for something that may still come, or may not."""
    return _wait_for(pod.get("status") or {}, _PATIENT_WAITS) is not None


def _statuses(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _wait_for(status: Mapping[str, Any], reasons: Sequence[str]) -> dict[str, Any] | None:
    for container in _statuses(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in reasons:
            return dict(waiting)
    return None


def pod_failure(pod: Object) -> tuple[TaskError, bool]:
    """
    Say why a Pod without a result failed, and whether trying again can help.

    Returns:
        The error and False when the cause is in what was declared, such as an image nobody can resolve.
    """
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if waiting := _wait_for(status, _FATAL_WAITS + _PATIENT_WAITS):
        return TaskError(f"Pod {name}: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")), False
    for container in _statuses(status):
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended and ended.get("exitCode") != 0:
            return TaskError(_ended_message(name, status, ended)), True
    if status.get("phase") == "Succeeded":
        return TaskError(
            f"Pod {name} ended well but left no result.json: was its folder removed, or is the artifact disk full?"
        ), True
    text = ": ".join(filter(None, (status.get("reason"), status.get("message")))) or "the Pod failed"
    return TaskError(f"Pod {name}: {text}"), status.get("reason") not in ("UnresolvedImage", "InvalidSpec")


def is_transient(pod: Object) -> bool:
    """
    Say whether the node, not what was declared, kept a task without a result from its end: another try may help.

    It could not be started, or it was killed from outside (``kill -9``; not for its memory, nor for its deadline).
    """
    status = pod.get("status") or {}
    for container in _statuses(status):
        state = container.get("state") or {}
        ended = state.get("terminated") or {}
        if ended.get("reason") == "StartError":
            return True
        if ended.get("signal") == 9 and ended.get("reason") == "Error" and not status.get("reason"):
            return True
        if (state.get("waiting") or {}).get("message", "").startswith("the shim of the Pod"):
            return True
    return False


def _ended_message(name: str, status: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    reason = status.get("reason") or ended.get("reason") or "Error"
    said = status.get("message") or ended.get("message") or ""
    code = f" (exit code {ended['exitCode']})" if "exitCode" in ended else ""
    text = f"Pod {name}: {reason}{code}"
    return f"{text}: {said}" if said else f"{text}; its log may say why."
