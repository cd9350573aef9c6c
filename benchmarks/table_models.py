"""
Predictions of a forest, XGBoost and LightGBM, of 1 and of 1,000 rows of 20 numbers, by shallop and its peers.

Run: ``.venv/bin/python benchmarks/table_models.py [SECONDS] [PEER...]``, see ``predictions.py``. One connection, one
request after the other, JSON; through the gateway, whose Pods have one replica. The floor is uvicorn, orjson and the
library.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instance import SHALLOP, running, wait_until, write
from predictions import HERE, PATH, PEERS, answers, load, python_of, render, serving

FILES = {"forest": "model.joblib", "xgboost": "model.json", "lightgbm": "model.txt"}
FORMATS = {"forest": "sklearn", "xgboost": "xgboost", "lightgbm": "lightgbm"}
COUNTS = (1, 1000)


def rows_of(count: int) -> list[list[float]]:
    return [[((row * 31 + column * 17) % 200 - 100) / 50 for column in range(20)] for row in range(count)]


def measure(server: str, model: str, url: str, kind: str, seconds: float) -> list[dict[str, Any]]:
    found = []
    for count in COUNTS:
        body = render(kind, rows_of(count))
        load(url, body, 1, 0.5)
        found.append({"model": model, "server": server, "rows": count, **load(url, body, 1, seconds)})
        print(found[-1], flush=True)
    return found


def serve_with_shallop(seconds: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, running() as status:
        for model, file in FILES.items():
            path = Path(folder) / model / file
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
            wait_until(lambda: answers(url, render("floor", rows_of(1))), f"the InferenceService of {model}", 200)  # noqa: B023
            rows += measure("shallop, gateway", model, url, "floor", seconds)
    return rows


def main(seconds: float, peers: Sequence[str]) -> None:
    rows = serve_with_shallop(seconds)
    for model, file in FILES.items():
        for kind in peers:
            python = python_of(PEERS[kind])
            with tempfile.TemporaryDirectory() as folder, serving(python, kind, Path(folder), file, model) as url:
                rows += measure(PEERS[kind].name, model, url, kind, seconds)
    write("table_models", rows)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0, sys.argv[2:] or list(PEERS))
