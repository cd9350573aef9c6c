"""
Predictions per second of one scikit-learn model with one replica: shallop's gateway, its peers, a floor.

All serve the same model to the same load generator, one after the other, on loopback. "shallop, Pod" asks the model
server without the gateway. Run: ``.venv/bin/python benchmarks/predictions.py [SECONDS] [PEER...]`` (per measurement,
default 4; peers are kserve, floor, mlserver, bentoml and ray, by default all). The first run builds an environment for
each, ``.venvs/bench-PEER``. A peer trains the model itself: a pickle belongs to its library's version.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instance import ROOT, SHALLOP, running, uv_environ, wait_until, write

from shallop.kube.objects import Gvk
from shallop.kube.remote import RemoteClient, load_kubeconfig

HERE = Path(__file__).parent
ROWS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
BODY = json.dumps({"instances": ROWS}).encode()
V2 = {"name": "x", "shape": [2, 4], "datatype": "FP64", "data": [value for row in ROWS for value in row]}
CONNECTIONS = (1, 16)
PATH = "/v1/models/iris:predict"
LIBRARIES = ("scikit-learn==1.9.1", "joblib", "xgboost", "lightgbm")


class Peer(NamedTuple):
    """What serves the model beside us; ``environment`` is shared by peers of the same packages."""

    name: str
    environment: str
    packages: tuple[str, ...]
    path: str = PATH
    body: bytes = BODY


KSERVE = ("kserve==0.21.0", *LIBRARIES, "torch==2.13.0", "orjson", "uvloop")
PEERS = {
    "kserve": Peer("kserve 0.21 Python server", "kserve", KSERVE),
    "floor": Peer("floor: uvicorn, orjson", "kserve", KSERVE),
    "mlserver": Peer(
        "MLServer 1.7.1",
        "mlserver",
        ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "mlserver-xgboost==1.7.1", "mlserver-lightgbm==1.7.1"),
        "/v2/models/iris/infer",
        json.dumps({"inputs": [V2]}).encode(),
    ),
    "bentoml": Peer("BentoML", "bentoml", ("bentoml", *LIBRARIES)),
    "ray": Peer("Ray Serve", "ray", ("ray[serve]", *LIBRARIES)),
}


def main(seconds: float, peers: Sequence[str]) -> None:
    pythons = {peer: python_of(PEERS[peer]) for peer in peers}
    rows = []
    with tempfile.TemporaryDirectory() as folder, running() as status:
        trainer = python_of(PEERS["floor"])
        subprocess.run([trainer, str(HERE / "model_servers.py"), "train", f"{folder}/model.joblib"], check=True)
        for name, url in _serve_with_shallop(status, folder):
            rows += _measure(name, url, BODY, seconds)
    for kind in peers:
        peer = PEERS[kind]
        with tempfile.TemporaryDirectory() as folder, serving(pythons[kind], kind, Path(folder)) as url:
            rows += _measure(peer.name, url, peer.body, seconds)
    write("predictions", rows)


def python_of(peer: Peer) -> str:
    folder = ROOT / ".venvs" / f"bench-{peer.environment}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        uv = str(ROOT / ".venvs" / "tools" / "bin" / "uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python), *peer.packages]
        subprocess.run(install, check=True, env=uv_environ())
        (folder / "ready").touch()
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
    wait_until(lambda: answers(gateway), "the InferenceService iris")
    found = [("shallop, gateway", gateway)]
    for address in _pod_addresses(Path(status["home"])):
        if answers(f"http://{address}:8080{PATH}"):
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
def serving(
    python: str, kind: str, folder: Path, file: str = "model.joblib", model_kind: str = "iris"
) -> Iterator[str]:
    """Serve a model of a kind that ``model_servers.py`` knows by a peer; yields the URL of its predictions."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script, model = str(HERE / "model_servers.py"), str(folder / file)
    subprocess.run([python, script, "train", model, model_kind], check=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [python, script, kind, model, str(port)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        url, body = f"http://127.0.0.1:{port}{PEERS[kind].path}", PEERS[kind].body
        if model_kind != "iris":
            body = render(kind, [[0.0] * 20])
        wait_until(lambda: answers(url, body) or process.poll() is not None, f"the {kind} server")
        if process.poll() is not None:
            sys.exit(f"the {kind} server ended:\n{(folder / 'log').read_text()[-3000:]}")
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            # What it started and left behind is in its session.
            os.killpg(process.pid, signal.SIGKILL)


def render(kind: str, rows: list[list[float]]) -> bytes:
    """Return the body of a request for some rows, as a peer takes it."""
    if PEERS[kind].path == PATH:
        return json.dumps({"instances": rows}).encode()
    tensor = {"name": "x", "shape": [len(rows), len(rows[0])], "datatype": "FP64"}
    return json.dumps({"inputs": [tensor | {"data": [value for row in rows for value in row]}]}).encode()


def answers(url: str, body: bytes = BODY) -> bool:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return bool(json.load(answer))
    except (OSError, ValueError):
        return False


def _measure(name: str, url: str, body: bytes, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for connections in CONNECTIONS:
        load(url, body, connections, 1.0)
        rows.append({"server": name, "connections": connections, **load(url, body, connections, seconds)})
        print(rows[-1], flush=True)
    return rows


def load(url: str, body: bytes, connections: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "load.py"), url, str(connections), str(seconds)]
    done = subprocess.run(command, input=body, capture_output=True, check=False, timeout=seconds + 60)
    if done.returncode:
        return {"failed": done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 4.0, sys.argv[2:] or list(PEERS))
