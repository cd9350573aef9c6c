"""
What Pods of trials get when they are created, whichever controller makes them: labels, the trial's name, the folder in
which files are collected.

The command of the primary container is joined by blanks and read again as a shell would, as Katib does for the
collectors StdOut, File and TensorFlowEvent: templates rely on it for quotes inside arguments. A line that needs no
shell becomes arguments again, so that no shell and no cold interpreter start stands before the program. The text of a
Python program that nobody has quoted, which Katib cuts at its blanks, stays one argument.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shallop.controller import Admission, Services
from shallop.errors import NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Key, Object, controller_of, labels_of
from shallop.settings import Settings
from shallop.tuning.algorithms.pbt import GENERATION
from shallop.tuning.checkpoints import checkpoint_folder
from shallop.tuning.collect import metrics_folder, shared_directory
from shallop.tuning.earlystopping import settings_of
from shallop.tuning.names import EXPERIMENT, EXPERIMENT_LABEL, TRIAL, TRIAL_LABEL, experiment_of

__all__ = ["POD", "pod_admission", "rejoin", "render_pod"]

POD = Gvk("v1", "Pod")
_DEPTH = 6
_LOG_OF = "log-of.shallop.dev/"
# Trials are many of a kind: the node forks their Python programs from an interpreter that runs already.
_WARM = "start.shallop.dev/warm"
_WRAPPED = ("StdOut", "File", "TensorFlowEvent")
# What a shell would do something with, beyond quotes.
_SHELL = re.compile(r"[$`|&;<>(){}*?\[\]~!#\n\\]")
_PYTHON = re.compile(r"python[0-9.]*")
_VOLUME = "katib-metrics"


def pod_admission(services: Services) -> Mapping[Gvk, Admission]:
    """Return the admission of Pods."""

    async def admit(pod: Object) -> Object:
        trial = await _trial_of(services.client, pod)
        if trial is None:
            return pod
        directory = await _checkpoints(services, trial)
        return render_pod(pod, trial, services.settings, directory)

    return {POD: admit}


async def _trial_of(client: Client, pod: Object) -> Object | None:
    """Follow the controllers of a Pod up to a Trial."""
    namespace, obj = pod["metadata"].get("namespace", ""), pod
    for _ in range(_DEPTH):
        reference = controller_of(obj)
        if reference is None:
            return None
        gvk = Gvk(reference["apiVersion"], reference["kind"])
        try:
            obj = await client.get(gvk, reference["name"], namespace)
        except NotFoundError:
            return None
        if gvk == TRIAL:
            return obj
    return None


async def _checkpoints(services: Services, trial: Object) -> str:
    """Return the directory in which a member of a population finds its checkpoint; empty for other trials."""
    if GENERATION not in labels_of(trial):
        return ""
    key = Key(trial["metadata"]["namespace"], experiment_of(trial))
    try:
        experiment = await services.client.get(EXPERIMENT, key.name, key.namespace)
    except NotFoundError:
        return ""
    return settings_of(experiment["spec"]["algorithm"]).get("suggestion_trial_dir", "")


def render_pod(pod: Object, trial: Object, settings: Settings, checkpoints: str = "") -> Object:
    """
    Return the Pod of a trial with what it needs.

    Args:
        checkpoints: where the container sees the folder of a member of a population.
    """
    spec, name = trial["spec"], trial["metadata"]["name"]
    labels = labels_of(pod) | labels_of(trial) | {TRIAL_LABEL: name}
    if experiment := experiment_of(trial):
        labels[EXPERIMENT_LABEL] = experiment
    annotations = {_WARM: "true", **(pod["metadata"].get("annotations") or {})}
    metadata = {**pod["metadata"], "labels": labels, "annotations": annotations}
    variable = {"name": "KATIB_TRIAL_NAME", "value": name}
    containers = [
        {**container, "env": [*(container.get("env") or ()), variable]} for container in pod["spec"]["containers"]
    ]
    pod_spec = {**pod["spec"], "containers": containers}
    if not (spec.get("primaryPodLabels") or {}).items() <= labels.items():
        return {**pod, "metadata": metadata, "spec": pod_spec}
    collector = spec.get("metricsCollector") or {}
    kind = (collector.get("collector") or {}).get("kind", "StdOut")
    primary = next((c for c in containers if c["name"] == spec.get("primaryContainerName")), None)
    if primary is None:
        return {**pod, "metadata": metadata, "spec": pod_spec}
    if kind in _WRAPPED:
        primary.update(rejoin(primary.get("command") or (), primary.get("args") or ()))
        shown = "metrics-logger-and-collector" if kind != "TensorFlowEvent" else "metrics-collector"
        annotations[_LOG_OF + shown] = primary["name"]
    if custom := (collector.get("collector") or {}).get("customCollector"):
        containers.append({**custom, "env": [*(custom.get("env") or ()), variable]})
        pod_spec["shareProcessNamespace"] = True
    volumes = [*(pod_spec.get("volumes") or ())]
    if directory := shared_directory(collector):
        folder = metrics_folder(settings, trial["metadata"]["namespace"], name)
        volumes.append(_volume(_VOLUME, folder))
        for container in [primary, *(containers[-1:] if custom else ())]:
            _mount(container, _VOLUME, directory)
    if checkpoints:
        folder = checkpoint_folder(settings, trial["metadata"]["namespace"], name)
        volumes.append(_volume("katib-checkpoints", folder))
        _mount(primary, "katib-checkpoints", checkpoints)
    if volumes:
        pod_spec["volumes"] = volumes
    return {**pod, "metadata": metadata, "spec": pod_spec}


def _volume(name: str, folder: Path) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"}}


def _mount(container: dict[str, Any], volume: str, directory: str) -> None:
    mounts = [*(container.get("volumeMounts") or ())]
    path = directory.rstrip("/") or "/"
    if not any(mount["mountPath"].rstrip("/") == path for mount in mounts):
        container["volumeMounts"] = [*mounts, {"name": volume, "mountPath": path}]


def rejoin(command: Sequence[str], args: Sequence[str]) -> dict[str, list[str]]:
    """Return command and args of a container after joining and reading again; unchanged without a command."""
    if not command:
        return {}
    # A container's $(NAME) is not a shell's: Kubernetes puts the value in before a shell sees it, and so does the node.
    words = [*command, *args]
    if words[0].rpartition("/")[2] in ("sh", "bash") and words[1:2] == ["-c"]:
        return {"command": words[:2], "args": [" ".join(words[2:])]}
    if _is_program_text(words):
        return {"command": words, "args": []}
    line = " ".join(words)
    quoted = re.sub(r"'[^']*'", "", line)
    if not _SHELL.search(quoted):
        try:
            return {"command": shlex.split(line), "args": []}
        except ValueError:
            pass
    return {"command": ["sh", "-c"], "args": [line]}


def _is_program_text(words: Sequence[str]) -> bool:
    """Say whether a command carries a Python program as one word: cut at its blanks it could never run."""
    if len(words) < 3 or words[1] != "-c" or not _PYTHON.fullmatch(words[0].rpartition("/")[2]):
        return False
    if words[2].lstrip()[:1] in ("'", '"'):
        return False  # quoted for the shell
    try:
        ast.parse(words[2])
    except (SyntaxError, ValueError):
        return False
    return True
