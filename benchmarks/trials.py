"""
Experiments on a fresh instance: 100 trials of 0.1 s two at a time, and the CPU that 1,000 trials cost.

Run: ``python benchmarks/trials.py [short|many|peers...]``; without names all of them. Peers do the same trials: Optuna
alone, and Ray Tune with a fifth of them, within a time, each in an environment of its own, which is made with uv on the
first run, in ``--environments`` (not measured). The floor is the same processes without anything around them.
``slot_ms`` is how long one of the two places was taken by a trial.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import instance
from peers import SCRIPTS, Peer, python_of

SLEEP = "import sys, time; time.sleep(0.1); print('loss=' + sys.argv[1])"
NOTHING = "import sys; print('loss=' + sys.argv[1])"


def experiment(name: str, script: str, trials: int, parallel: int) -> dict[str, Any]:
    quoted = "'" + script.replace("'", '"') + "'"
    container = {"name": "main", "image": "python:3.11", "command": ["python3", "-c", quoted, "${trialParameters.x}"]}
    pod = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    space = {"min": "0", "max": "1"}
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "objective": {"type": "minimize", "objectiveMetricName": "loss"},
            "algorithm": {"algorithmName": "random"},
            "parallelTrialCount": parallel,
            "maxTrialCount": trials,
            "parameters": [{"name": "x", "parameterType": "double", "feasibleSpace": space}],
            "trialTemplate": {
                "primaryContainerName": "main",
                "trialParameters": [{"name": "x", "reference": "x"}],
                "trialSpec": {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": pod}},
            },
        },
    }


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(status: dict[str, Any], body: dict[str, Any]) -> tuple[float, float]:
    """Run an Experiment to its end; return seconds and CPU seconds of the control plane."""
    kubectl = ["kubectl", "--kubeconfig", status["kubeconfig"]]
    name = body["metadata"]["name"]
    watch = ["wait", f"experiments.kubeflow.org/{name}", "--for=condition=Succeeded", "--timeout=590s"]
    cpu, start = cpu_seconds(status["pid"]), time.perf_counter()
    subprocess.run([*kubectl, "create", "-f", "-"], input=json.dumps(body), text=True, check=True, capture_output=True)
    done = subprocess.run([*kubectl, *watch], check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    return seconds, cpu_seconds(status["pid"]) - cpu


def bare(script: str, trials: int, parallel: int) -> float:
    """Run the same processes without anything around them; return seconds."""
    start = time.perf_counter()
    with ThreadPoolExecutor(parallel) as pool:
        command = [sys.executable, "-c", script, "0.5"]
        list(pool.map(lambda _: subprocess.run(command, check=True, capture_output=True), range(trials)))
    return time.perf_counter() - start


PEERS = (Peer("optuna_alone.py", ("optuna",)), Peer("ray_tune.py", ("ray[tune]",)))
PEER_S = 200


def short() -> list[dict[str, Any]]:
    """Run 100 short trials, each time beside the bare processes."""
    rows = []
    with instance.running() as status:
        run(status, experiment("warm", NOTHING, 4, 2))
        for repeat in range(3):
            seconds, cpu = run(status, experiment(f"sleep-{repeat}", SLEEP, 100, 2))
            floor = bare(SLEEP, 100, 2)
            rows.append(
                {
                    "case": "100 trials of 0.1 s, 2 parallel",
                    "seconds": seconds,
                    "slot_ms": 20 * seconds,
                    "floor_sleep_s": 5.0,
                    "floor_processes_s": floor,
                    "over_floor_percent": 100 * (seconds / floor - 1),
                    "control_plane_cpu_ms_per_trial": 10 * cpu,
                }
            )
    return rows


def many() -> list[dict[str, Any]]:
    with instance.running() as status:
        run(status, experiment("warm", NOTHING, 4, 2))
        seconds, cpu = run(status, experiment("many", NOTHING, 1000, 4))
    floor = bare(NOTHING, 1000, 4)
    case = "1,000 trials that do nothing, 4 parallel"
    return [{"case": case, "seconds": seconds, "floor_processes_s": floor, "control_plane_cpu_ms_per_trial": cpu}]


def peers(environments: Path, trials: int, seconds: float) -> list[dict[str, Any]]:
    """Run the same trials by others; who fails or is too slow has a row that says so."""
    rows = []
    for peer in PEERS:
        command = [python_of(peer, environments), str(SCRIPTS / peer.script), str(trials), str(seconds)]
        problem = ""
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PEER_S)
            output, problem = done.stdout, done.stderr[-300:] if done.returncode else ""
        except subprocess.TimeoutExpired as error:
            output, problem = (error.stdout or b"").decode(), f"not within {PEER_S} s"
        for line in output.splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                case = f"{row['trials']} trials of {seconds} s, 2 parallel: {row['peer']}"
                rows.append({"case": case, "seconds": row["seconds"], "slot_ms": 2000 * row["seconds"] / row["trials"]})
        if problem:
            rows.append({"case": f"trials of {seconds} s: {peer.script}", "error": problem})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="short|many|peers")
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "shallop-peers")
    options = parser.parse_args()
    parts = options.parts or ["short", "many", "peers"]
    rows = []
    if "peers" in parts:
        rows += peers(options.environments, 100, 0.1)
    if "short" in parts:
        rows += short()
    if "many" in parts:
        rows += many()
    instance.write("trials", rows, key="case")


if __name__ == "__main__":
    main()
