"""A shell where a step ran: in a Pod like the step's own, with its inputs, and a script that runs it again."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shallop.errors import NotFoundError, ShallopError
from shallop.kube.objects import Gvk, labels_of
from shallop.kube.remote import RemoteClient, load_kubeconfig
from shallop.runner.terminal import attach
from shallop_pod.kfp_component import recognise_component
from shallop_pod.launcher import PAUSED

__all__ = ["open_shell", "prepare_folder", "render_shell_pod"]

Json = dict[str, Any]
_POD = Gvk("v1", "Pod")
_LONGEST_S = 86400  # of a Pod whose shell was killed
_LOOK_S = 0.05
# The folder and what is run there come as arguments: nothing is quoted twice.
_ENTER = f'unset {PAUSED}; cd "$0" && exec sh -c "$1"'


def open_shell(kubeconfig: str, pod: Json, folder: Path, script: str = "") -> int:
    """Run a shell, or ``script`` in one, in a Pod that differs from ``pod`` in doing nothing; return its exit code."""
    container = pod["spec"]["containers"][0]
    task, argv = json.loads(container["args"][1]), container["args"][3:]
    prepare_folder(folder, task, argv)
    if not script:
        print(f"step {task['name']} in {folder}\n  ./run.sh runs it again, outputs go to outputs/", file=sys.stderr)
        print("  inputs/ has its artifacts, inputs.json its parameters", file=sys.stderr)
    return asyncio.run(_open(kubeconfig, render_shell_pod(pod, folder), folder, script))


async def _open(kubeconfig: str, pod: Json, folder: Path, script: str) -> int:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    async with RemoteClient(load_kubeconfig(kubeconfig)) as client:
        await client.create(pod)
        try:
            await _started(client, name, namespace)
            tty = not script and sys.stdin.isatty() and sys.stdout.isatty()
            command = ["sh", "-c", _ENTER, str(folder), script or "exec ${SHELL:-/bin/sh}"]
            async with client.exec(name, namespace, command, stdin=not script, tty=tty) as socket:
                return await attach(socket, stdin=not script, tty=tty)
        finally:
            try:
                await asyncio.shield(client.delete(_POD, name, namespace, grace_period_s=0))
            except NotFoundError:
                pass


async def _started(client: RemoteClient, name: str, namespace: str) -> None:
    said = ""
    while True:
        status = (await client.get(_POD, name, namespace)).get("status") or {}
        phase = status.get("phase")
        states = [one.get("state") or {} for one in status.get("containerStatuses") or ()]
        if states and all("running" in state for state in states):
            return
        waiting = next((state["waiting"] for state in states if state.get("waiting", {}).get("message")), None)
        text = f"{waiting['reason']}: {waiting['message']}" if waiting else str(status.get("message") or "")
        if phase in ("Failed", "Succeeded"):
            raise ShallopError(f"Pod {namespace}/{name} of the shell ended at once: {text or phase}")
        if text and text != said:
            print(text, file=sys.stderr)
            said = text
        await asyncio.sleep(_LOOK_S)


def render_shell_pod(pod: Json, folder: Path) -> Json:
    """Render a Pod with all that the step's own has, that waits, belongs to no run, and has ``folder`` at its path."""
    copy: Json = json.loads(json.dumps(pod))
    metadata, spec = copy["metadata"], copy["spec"]
    labels = {key: value for key, value in labels_of(pod).items() if not key.startswith("pipeline")}
    container = spec["containers"][0]
    container["env"] = [*(container.get("env") or ()), {"name": PAUSED, "value": "1"}]
    container["volumeMounts"] = [*(container.get("volumeMounts") or ()), {"name": "shell", "mountPath": str(folder)}]
    spec["volumes"] = [*(spec.get("volumes") or ()), {"name": "shell", "hostPath": {"path": str(folder)}}]
    spec["activeDeadlineSeconds"] = _LONGEST_S
    spec.pop("nodeName", None)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name'][:48].rstrip('-.')}-shell-{uuid.uuid4().hex[:6]}",
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": metadata.get("annotations") or {},
        },
        "spec": spec,
    }


def prepare_folder(folder: Path, task: Json, argv: Sequence[str]) -> None:
    """Write what a step had, and ``run.sh``, which leaves its outputs below ``folder`` instead of in the run."""
    given = task["executorInput"]
    outputs = folder / "outputs"
    moved = json.loads(json.dumps(task).replace(json.dumps(task["dir"])[1:-1], json.dumps(str(outputs))[1:-1]))
    moved["executorInput"]["inputs"] = given.get("inputs", {})
    (folder / "task.json").write_text(json.dumps(moved, indent=2))
    (folder / "inputs.json").write_text(json.dumps(given.get("inputs", {}).get("parameterValues", {}), indent=2))
    (folder / "inputs").mkdir(exist_ok=True)
    for name, value in given.get("inputs", {}).get("artifacts", {}).items():
        for number, artifact in enumerate(value["artifacts"]):
            link = folder / "inputs" / (name if len(value["artifacts"]) == 1 else f"{name}-{number}")
            if artifact["uri"].startswith("/") and not link.is_symlink():
                link.symlink_to(artifact["uri"])
    words = [shlex.quote(word) for word in argv]
    component = recognise_component(list(argv))
    if component is not None and component.source in argv:
        # The script takes the source from the file: a correction is tried by editing it.
        _write_once(folder / "component.py", component.source)
        words[list(argv).index(component.source)] = '"$(cat component.py)"'
    command = f"exec python3 -m shallop_pod.launcher --task @task.json -- {' '.join(words)}"
    _write_once(folder / "run.sh", f'#!/bin/sh\ncd "$(dirname "$0")"\n{command}\n')
    (folder / "run.sh").chmod(0o755)
    os.makedirs(outputs, exist_ok=True)


def _write_once(path: Path, text: str) -> None:
    """Leave a file alone that the user may have changed since."""
    if not path.exists():
        path.write_text(text)
