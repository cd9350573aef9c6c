"""
Overhead per step of shallop and of other runners of pipelines, on the same shapes, one after the other.

Run: ``python benchmarks/peers.py [--minutes 12] [NAME...]``; without names all but one. Each runner has an environment
of its own, made with uv in ``--environments`` on the first run (a few minutes; not measured). The shapes are a chain of
20 and of 100 steps and a fan-out of 100; a step adds one to a number. ``isolation`` says what a step runs in: rows
without a process of their own for each step measure less. A shape is run up to three times, ``runs`` says how often,
and the fastest counts. Each runner gets an even part of the time that is left, the slowest ones, which come last, what
the others do not need; what would take longer is cut down or left out, and the row says so. All of them listen on
loopback only, with telemetry off. The floor is a fork of a process that has the same modules imported. Results are in
``results/peers.json``: rows that are measured replace those of the same runner, and each says how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from instance import ROOT, running, write

UV = str(ROOT / ".venv" / "bin" / "uv")
SCRIPTS = Path(__file__).with_name("peers")
# A runner that misjudges its time is ended so much later.
GRACE_S = 60
NO_TELEMETRY = {"DO_NOT_TRACK": "1", "DAGSTER_DISABLE_TELEMETRY": "1", "ZENML_ANALYTICS_OPT_IN": "false"}
Row = dict[str, Any]


class Peer(NamedTuple):
    script: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    is_extra: bool = False  # measured only when it is named


KFP = ("kfp==2.17.0",)
PEERS = {
    "floor": Peer("floor.py", KFP),
    "shallop": Peer("shallop.py", KFP),
    "luigi": Peer("luigi_tasks.py", ("luigi",)),
    "flyte": Peer("flyte_workflow.py", ("flytekit",)),
    "kfp": Peer("kfp_local.py", KFP),
    "prefect": Peer("prefect_flow.py", ("prefect",)),
    "zenml": Peer("zenml_pipeline.py", ("zenml[local]",)),
    "metaflow": Peer("metaflow_flow.py", ("metaflow",)),
    "dagster": Peer("dagster_job.py", ("dagster",)),
    "prefect-processes": Peer("prefect_flow.py", ("prefect",), ("processes",), is_extra=True),
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


def measure(peer: Peer, python: str, seconds: float, *arguments: str) -> Row:
    with tempfile.TemporaryDirectory() as home:
        command = [python, "-W", "ignore", str(SCRIPTS / peer.script), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SHALLOP_", "PYTHON"))}
        environment |= {"HOME": home, "PYTHONPATH": str(SCRIPTS), "BENCHMARK_SECONDS": str(seconds), **NO_TELEMETRY}
        output, errors = Path(home, "output.txt"), Path(home, "errors.txt")
        with output.open("w") as out, errors.open("w") as err:
            try:
                subprocess.run(
                    command, stdout=out, stderr=err, cwd=home, env=environment, timeout=seconds + GRACE_S, check=False
                )
                problem = {}
            except subprocess.TimeoutExpired:
                problem = {"error": f"not within {seconds + GRACE_S:.0f} s"}
        lines = [line for line in output.read_text().splitlines() if line.startswith("{")]
        said = errors.read_text()
    if not lines:
        return {"runner": peer.script, "error": said[-300:], **problem}
    row: Row = json.loads(lines[-1]) | problem
    if first := re.search(r"first step after start: (\d+) ms", said):
        row["first step, ms"] = int(first[1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peers", nargs="*", metavar="|".join(PEERS))
    parser.add_argument("--environments", default=str(Path(tempfile.gettempdir()) / "shallop-peers"), metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=12, help="for all of them; environments not counted")
    options = parser.parse_args()
    pythons = {}
    for name in options.peers or [name for name, peer in PEERS.items() if not peer.is_extra]:
        try:
            pythons[name] = python_of(PEERS[name], Path(options.environments))
        except subprocess.CalledProcessError as error:
            print(f"{name}: no environment: {error}", file=sys.stderr)
    end = time.monotonic() + 60 * options.minutes
    for count, (name, python) in enumerate(pythons.items()):
        seconds = max(10.0, end - time.monotonic()) / (len(pythons) - count)
        if name == "shallop":
            with running() as status:
                row = measure(PEERS[name], python, seconds, status["web"])
        else:
            row = measure(PEERS[name], python, seconds, *PEERS[name].arguments)
        write("peers", [row], key="runner")


if __name__ == "__main__":
    main()
