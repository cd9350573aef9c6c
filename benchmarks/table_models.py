"""
Predictions of a forest, XGBoost, LightGBM and a torch MLP, of 1 and of 1,000 rows of 20 numbers, by shallop and peers.

Run: ``.venv/bin/python benchmarks/table_models.py [SECONDS] [--models NAME,...] [--peers PEER,...]``, see
``predictions.py``; results of models that are left out stay. One connection, one request after the other, JSON; through
the gateway, whose Pods have one replica. The floor is uvicorn, orjson and the library. The servers of a model are asked
in turn, round by round, so that what else the machine does falls upon all; shown are medians of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instance import SHALLOP, running, wait_until, write
from predictions import HERE, PATH, PEERS, answers, load, python_of, render, serving

FILES = {"forest": "model.joblib", "xgboost": "model.json", "lightgbm": "model.bst", "torch": "model.pt"}
FORMATS = {"forest": "sklearn", "xgboost": "xgboost", "lightgbm": "lightgbm", "torch": "pytorch"}
COUNTS = (1, 1000)
ROUNDS = 3
# The others bring no server for such models, or no torch.
TORCH_PEERS = ("floor", "kserve")


def rows_of(count: int) -> list[list[float]]:
    return [[((row * 31 + column * 17) % 200 - 100) / 50 for column in range(20)] for row in range(count)]


def measure(model: str, servers: Sequence[tuple[str, str, str]], seconds: float) -> list[dict[str, Any]]:
    """Ask servers, each a name, the peer whose requests it takes and its URL, in turn."""
    found = []
    for count in COUNTS:
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in servers}
        for number in range(ROUNDS + 1):
            for name, kind, url in servers:
                result = load(url, render(kind, rows_of(count)), 1, seconds / ROUNDS)
                if number:  # the first round warms up
                    seen[name].append(result)
        for name, results in seen.items():
            row: dict[str, Any] = {"model": model, "server": name, "rows": count}
            if failed := [result["failed"] for result in results if "failed" in result]:
                row["failed"] = failed[0]
            else:
                row |= {key: round(statistics.median(r[key] for r in results), 3) for key in results[0]}
            found.append(row)
            print(row, flush=True)
    return found


def serve_with_shallop(status: dict[str, Any], model: str, folder: Path) -> str:
    path = folder / model / FILES[model]
    path.parent.mkdir()
    script = str(HERE / "model_servers.py")
    subprocess.run([python_of(PEERS["floor"]), script, "train", str(path), model], check=True)
    predictor = {"model": {"modelFormat": {"name": FORMATS[model]}, "storageUri": str(path.parent)}}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": f"bench-{model}"},
        "spec": {"predictor": predictor},
    }
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"bench-{model}"}}
    manifest = Path(status["home"]) / "model.json"
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [namespace, service]}))
    subprocess.run([SHALLOP, "apply", "-f", str(manifest), "--home", status["home"]], check=True)
    url = f"{status['gateway']}/serving/bench-{model}/iris{PATH}"
    wait_until(lambda: answers(url, render("floor", rows_of(1))), f"the InferenceService of {model}", 300)
    return url


def main(seconds: float, models: Sequence[str], peers: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, running() as status:
        for model in models:
            servers = [("shallop, gateway", "floor", serve_with_shallop(status, model, Path(folder)))]
            with contextlib.ExitStack() as stack:
                for kind in peers if model != "torch" else [peer for peer in peers if peer in TORCH_PEERS]:
                    own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    served = serving(python_of(PEERS[kind]), kind, own, FILES[model], model)
                    servers.append((PEERS[kind].name, kind, stack.enter_context(served)))
                # Each by itself: a run that is cut short has not been for nothing.
                write("table_models", measure(model, servers, seconds), key="model")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float, nargs="?", default=3.0)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(FILES))
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS))
    arguments = parser.parse_args()
    main(arguments.seconds, arguments.models, arguments.peers)
