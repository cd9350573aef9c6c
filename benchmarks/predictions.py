"""
Predictions per second of one scikit-learn model with one replica: shallop's gateway, KServe's Python server, a floor.

All serve the same file to the same load generator, one after the other, on loopback. "shallop, Pod" asks the model
server without the gateway. Run: ``.venv/bin/python benchmarks/predictions.py [SECONDS]`` (per measurement, default 4).
The first run builds ``.venvs/bench-kserve``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instance import ROOT, SHALLOP, running, wait_until, write

from shallop.kube.objects import Gvk
from shallop.kube.remote import RemoteClient, load_kubeconfig

HERE = Path(__file__).parent
PEERS = ROOT / ".venvs" / "bench-kserve"
PACKAGES = ["kserve==0.21.0", "scikit-learn==1.9.1", "joblib", "orjson", "uvloop"]
BODY = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}).encode()
CONNECTIONS = (1, 16)
PATH = "/v1/models/iris:predict"


def main(seconds: float) -> None:
    python = _peer_python()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.joblib"
        subprocess.run([python, str(HERE / "iris_servers.py"), "train", str(model)], check=True)
        rows = []
        with running() as status:
            for name, url in _serve_with_shallop(status, folder):
                rows += _measure(name, url, seconds)
        for name, kind in (("kserve 0.21 Python server", "kserve"), ("floor: uvicorn, orjson", "floor")):
            with _peer(python, kind, model) as url:
                rows += _measure(name, url, seconds)
    write("predictions", rows)


def _peer_python() -> str:
    python = PEERS / "bin" / "python"
    if not (PEERS / "ready").exists():
        uv = str(ROOT / ".venvs" / "tools" / "bin" / "uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(PEERS)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES], check=True)
        (PEERS / "ready").touch()
    return str(python)


def _serve_with_shallop(status: dict[str, Any], folder: str) -> list[tuple[str, str]]:
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": "default"},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": folder}}},
    }
    manifest = Path(status["home"]) / "iris.json"
    manifest.write_text(json.dumps(service))
    subprocess.run([SHALLOP, "apply", "-f", str(manifest), "--home", status["home"]], check=True)
    gateway = f"{status['gateway']}/serving/default/iris{PATH}"
    wait_until(lambda: _answers(gateway), "the InferenceService iris")
    found = [("shallop, gateway", gateway)]
    for address in _pod_addresses(Path(status["home"])):
        if _answers(f"http://{address}:8080{PATH}"):
            found.append(("shallop, Pod", f"http://{address}:8080{PATH}"))
    return found


def _pod_addresses(home: Path) -> list[str]:
    """Return the addresses of the Pods in the namespace default, from the Kubernetes API."""

    async def addresses() -> list[str]:
        async with RemoteClient(load_kubeconfig(str(home / "kubeconfig"))) as client:
            pods = (await client.list(Gvk("v1", "Pod"), "default")).items
            return [pod["status"]["podIP"] for pod in pods if pod.get("status", {}).get("podIP")]

    return asyncio.run(addresses())


@contextlib.contextmanager
def _peer(python: str, kind: str, model: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, str(HERE / "iris_servers.py"), kind, str(model), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}{PATH}"
        wait_until(lambda: _answers(url) or process.poll() is not None, f"the {kind} server")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(url: str) -> bool:
    request = urllib.request.Request(url, BODY, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return bool(json.load(answer)["predictions"])
    except (OSError, ValueError, KeyError):
        return False


def _measure(name: str, url: str, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for connections in CONNECTIONS:
        _load(url, connections, 1.0)
        rows.append({"server": name, "connections": connections, **_load(url, connections, seconds)})
    return rows


def _load(url: str, connections: int, seconds: float) -> dict[str, Any]:
    command = [str(ROOT / ".venv" / "bin" / "python"), str(HERE / "load.py"), url, str(connections), str(seconds)]
    done = subprocess.run(command, input=BODY, capture_output=True, check=True, timeout=seconds + 60)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 4.0)
