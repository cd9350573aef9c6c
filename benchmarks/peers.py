"""
Overhead per step of shallop and of other runners of pipelines, on the same shapes, one after the other.

Run: ``python benchmarks/peers.py [NAME...]``; without names all of them. Each runner has an environment of its own,
made with uv in ``--environments`` on the first run (a few minutes; not measured). The shapes are a chain of 20 and of
100 steps and a fan-out of 100; a step adds one to a number. ``isolation`` says what a step runs in: rows without a
process of their own for each step measure less. A shape is run twice and the faster counts; a runner that needs more
than 0.6 s per step is spared the long shapes, and one that needs more than 2.5 s gets a chain of 5 only. All of them
listen on loopback only, with telemetry off. The floor is a fork of a process that has the same modules imported.
Results are in ``results/peers.json``: rows that are measured replace those of the same runner, and each says how busy
the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from instance import ROOT, running, write

UV = str(ROOT / ".venv" / "bin" / "uv")
SCRIPTS = Path(__file__).with_name("peers")
LIMIT_S = 150
NO_TELEMETRY = {"DO_NOT_TRACK": "1", "DAGSTER_DISABLE_TELEMETRY": "1", "ZENML_ANALYTICS_OPT_IN": "false"}
Row = dict[str, Any]


class Peer(NamedTuple):
    script: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...] = ()


KFP = ("kfp==2.17.0",)
PEERS = {
    "floor": Peer("floor.py", KFP),
    "shallop": Peer("shallop.py", KFP),
    "kfp": Peer("kfp_local.py", KFP),
    "metaflow": Peer("metaflow_flow.py", ("metaflow",)),
    "prefect": Peer("prefect_flow.py", ("prefect",)),
    "prefect-processes": Peer("prefect_flow.py", ("prefect",), ("processes",)),
    "dagster": Peer("dagster_job.py", ("dagster",)),
    "luigi": Peer("luigi_tasks.py", ("luigi",)),
    "zenml": Peer("zenml_pipeline.py", ("zenml[local]",)),
    "flyte": Peer("flyte_workflow.py", ("flytekit",)),
}


def python_of(peer: Peer, folder: Path) -> str:
    """Return the interpreter of an environment with a peer's requirements; made when it is not there."""
    place = folder / re.sub(r"[^a-z0-9.]+", "-", "-".join(peer.requirements))
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)], check=True)
        subprocess.run([UV, "pip", "install", "--quiet", "--python", str(python), *peer.requirements], check=True)
        (place / "complete").touch()
    return str(python)


def measure(peer: Peer, python: str, *arguments: str) -> Row:
    with tempfile.TemporaryDirectory() as home:
        command = [python, "-W", "ignore", str(SCRIPTS / peer.script), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SHALLOP_", "PYTHON"))}
        environment |= {"HOME": home, "PYTHONPATH": str(SCRIPTS), **NO_TELEMETRY}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=home, env=environment, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return {"runner": peer.script, "error": f"not within {LIMIT_S} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"runner": peer.script, "error": done.stderr[-300:]}
    row: Row = json.loads(lines[-1])
    if first := re.search(r"first step after start: (\d+) ms", done.stderr):
        row["first step, ms"] = int(first[1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peers", nargs="*", metavar="|".join(PEERS))
    parser.add_argument("--environments", default=str(Path(tempfile.gettempdir()) / "shallop-peers"), metavar="FOLDER")
    options = parser.parse_args()
    pythons = {}
    for name in options.peers or PEERS:
        try:
            pythons[name] = python_of(PEERS[name], Path(options.environments))
        except subprocess.CalledProcessError as error:
            print(f"{name}: no environment: {error}", file=sys.stderr)
    for name, python in pythons.items():
        if name == "shallop":
            with running() as status:
                row = measure(PEERS[name], python, status["web"])
        else:
            row = measure(PEERS[name], python, *PEERS[name].arguments)
        write("peers", [row], key="runner")


if __name__ == "__main__":
    main()
