"""A shell where a step ran: its environment, its variables, its inputs, and a script that runs it again."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shallop_pod
from shallop.errors import NotFoundError, ShallopError
from shallop.kube.objects import Gvk
from shallop.settings import Settings
from shallop_pod.kfp_component import recognise_component

__all__ = ["open_shell", "prepare_folder"]

_KEPT = ("HOME", "TERM", "LANG", "USER", "SHELL", "PATH")
Json = dict[str, Any]


def open_shell(settings: Settings, kubeconfig: str, pod: Json, folder: Path, script: str = "") -> int:
    """
    Run a shell, or ``script`` in one, as the step of ``pod`` would run; returns its exit code.

    The processes are not isolated as in the Pod: paths that it mounts are not there.
    """
    from shallop.embedded.kubelet.environments import Environments

    container = pod["spec"]["containers"][0]
    task, argv = json.loads(container["args"][1]), container["args"][3:]
    environments = Environments.of(settings)
    spec = environments.resolve(container["image"], argv)
    environment = asyncio.run(environments.ensure(spec, lambda text: print(text, file=sys.stderr)))
    prepare_folder(folder, task, argv)
    environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environ["PATH"] = f"{environment.path / 'bin'}{os.pathsep}{environ.get('PATH', os.defpath)}"
    environ["PYTHONPATH"] = str(folder / ".shallop")
    environ |= dict(spec.env) | asyncio.run(_variables(container.get("env", []), pod, kubeconfig))
    command = ["sh", "-c", script] if script else [os.environ.get("SHELL") or "/bin/sh"]
    if not script:
        print(f"step {task['name']} in {folder}\n  ./run.sh runs it again, outputs go to outputs/", file=sys.stderr)
        print("  inputs/ has its artifacts, inputs.json its parameters", file=sys.stderr)
    return subprocess.run(command, cwd=folder, env=environ, check=False).returncode


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
    (folder / ".shallop").mkdir(exist_ok=True)
    package = folder / ".shallop" / "shallop_pod"
    if not package.is_symlink():
        package.symlink_to(Path(str(shallop_pod.__file__)).parent)
    words = [shlex.quote(word) for word in argv]
    component = recognise_component(list(argv))
    if component is not None and component.source in argv:
        # The script takes the source from the file: a correction is tried by editing it.
        _write_once(folder / "component.py", component.source)
        words[list(argv).index(component.source)] = '"$(cat component.py)"'
    command = f"exec python3 -m shallop_pod.launcher --task @task.json -- {' '.join(words)}"
    _write_once(folder / "run.sh", f'#!/bin/sh\ncd "$(dirname "$0")"\n{command}\n')
    (folder / "run.sh").chmod(0o755)


def _write_once(path: Path, text: str) -> None:
    """Leave a file alone that the user may have changed since."""
    if not path.exists():
        path.write_text(text)


async def _variables(env: Sequence[Mapping[str, Any]], pod: Json, kubeconfig: str) -> dict[str, str]:
    """Resolve the variables of the container, those from Secrets and ConfigMaps too."""
    from shallop.kube.remote import RemoteClient, load_kubeconfig

    values: dict[str, str] = {}
    async with RemoteClient(load_kubeconfig(kubeconfig)) as client:
        for one in env:
            source = one.get("valueFrom") or {}
            if not source:
                values[one["name"]] = one.get("value", "")
            elif field_path := (source.get("fieldRef") or {}).get("fieldPath", "").removeprefix("metadata."):
                values[one["name"]] = str(pod["metadata"].get(field_path, ""))
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if reference := source.get(field):
                    try:
                        obj = await client.get(Gvk("v1", kind), reference["name"], pod["metadata"]["namespace"])
                        raw = obj["data"][reference["key"]]
                    except (NotFoundError, KeyError):
                        if reference.get("optional"):
                            continue
                        message = f"variable {one['name']}: {kind} {reference['name']!r} has no {reference['key']!r}."
                        raise ShallopError(message) from None
                    values[one["name"]] = base64.b64decode(raw).decode() if kind == "Secret" else raw
    return values
