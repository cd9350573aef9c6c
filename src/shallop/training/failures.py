"""Why a training process ended badly, in words for users: which container, exit code, memory, its last lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from shallop.kube.objects import Object

__all__ = [
    "Failure",
    "explain",
    "failing_start",
    "first_failure",
    "missing_program",
    "start_problem",
    "unknown_image",
]

_LINES, _CHARACTERS = 8, 700
# Waiting reasons that no amount of waiting cures by itself.
_STUCK = ("ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "InvalidImageName")
# As the node words it.
_UNKNOWN_IMAGE = "no local environment for image"
# Last line of a Python program that ends by it.
_NO_MODULE = "ModuleNotFoundError: No module named"
_NOT_FOUND = 127
_SIGNALS = {130: "interrupted", 137: "killed", 139: "crashed: segmentation fault", 143: "ended from outside"}


class Failure(NamedTuple):
    """
    One end of one container.

    Args:
        identity: the same for the same end, different for the next restart.
        at: RFC 3339 time of the end.
    """

    identity: str
    at: str
    message: str


def first_failure(pods: Iterable[Object]) -> Failure | None:
    """Return the container that failed first: what came after is often a consequence, such as lost peers."""
    found = [failure for pod in pods for failure in _failures(pod)]
    # A process that was told to end did not cause anything.
    return min(found, key=lambda item: (item[0], item[1].at), default=(0, None))[1]


def _failures(pod: Object) -> Iterable[tuple[int, Failure]]:
    status = pod.get("status") or {}
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            for state in (container.get("lastState") or {}, container.get("state") or {}):
                ended = state.get("terminated")
                if ended and ended.get("exitCode"):
                    consequence = ended["exitCode"] in (143, 130) or (
                        ended["exitCode"] == 137 and ended.get("reason") != "OOMKilled"
                    )
                    identity = f"{pod['metadata']['uid']}/{container['name']}/{ended.get('finishedAt', '')}"
                    at = str(ended.get("finishedAt") or "")
                    yield int(consequence), Failure(identity, at, explain(pod, container["name"], ended))


def explain(pod: Object, container: str, ended: dict[str, Any]) -> str:
    """Say how a container ended."""
    code = int(ended["exitCode"])
    text = f"container {container} of Pod {pod['metadata']['name']} ended with exit code {code}"
    if ended.get("reason") == "OOMKilled":
        text += ": out of memory; raise its memory limit or make batches smaller"
    elif code in _SIGNALS:
        text += f" ({_SIGNALS[code]})"
    elif code == _NOT_FOUND:
        text += " (command not found)"
    lines = [line for line in str(ended.get("message") or "").splitlines() if line.strip()][-_LINES:]
    if lines:
        text += "; last lines:\n" + "\n".join(lines)[-_CHARACTERS:]
    return text


def start_problem(pod: Object) -> str:
    """Return why a Pod cannot start, empty when nothing is known to be wrong."""
    status = pod.get("status") or {}
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in _STUCK:
                return f"{waiting['reason']}: {waiting.get('message', '')}"
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    return ""


def failing_start(pod: Object) -> str:
    """Return how an init container ended that is started again and again, empty when there is none."""
    for container in (pod.get("status") or {}).get("initContainerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        ended = (container.get("lastState") or {}).get("terminated") or {}
        if waiting.get("reason") == "CrashLoopBackOff" and ended.get("exitCode"):
            return f"init {explain(pod, container['name'], ended)}"
    return ""


def unknown_image(pod: Object) -> str:
    """Return the message about an image that no environment stands for, empty when all are known."""
    status = pod.get("status") or {}
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            message = str(((container.get("state") or {}).get("waiting") or {}).get("message") or "")
            if _UNKNOWN_IMAGE in message:
                return f"Pod {pod['metadata']['name']}: {message}"
    return ""


def missing_program(pod: Object) -> str:
    """
    Return what a container ended for and will end for again, empty when there is no such thing.

    An environment does not change: a command or a Python module that it lacks is missing at each restart.
    """
    status = pod.get("status") or {}
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        now = container.get("state") or {}
        if (now.get("terminated") or {}).get("exitCode") == 0:
            continue
        for state in (now, container.get("lastState") or {}):
            ended = state.get("terminated") or {}
            lines = str(ended.get("message") or "").strip().splitlines()
            if ended.get("exitCode") == _NOT_FOUND or (lines and lines[-1].startswith(_NO_MODULE)):
                return explain(pod, container["name"], ended)
    return ""
