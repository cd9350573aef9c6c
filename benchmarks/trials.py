"""
Experiments on a fresh instance: 100 trials of 0.1 s two at a time, and the CPU that 1,000 trials cost.

Beside them the same trials by Ray Tune and by Optuna alone, each in an environment of its own, which is made with uv on
the first run, in ``--environments`` (not measured). The floor is the same processes without anything around them.
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


PEERS = (Peer("ray_tune.py", ("ray[tune]",)), Peer("optuna_alone.py", ("optuna",)))


def peers(environments: Path, trials: int, seconds: float) -> list[dict[str, Any]]:
    """Run the same trials by others."""
    rows = []
    for peer in PEERS:
        command = [python_of(peer, environments), str(SCRIPTS / peer.script), str(trials), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            sys.exit(f"{peer.script}: {done.stderr[-2000:]}")
        for row in json.loads(done.stdout.splitlines()[-1]):
            case = f"{trials} trials of {seconds} s, 2 parallel: {row['peer']}"
            rows.append({"case": case, "seconds": row["seconds"], "floor_sleep_s": trials * seconds / 2})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "shallop-peers")
    environments = parser.parse_args().environments
    for peer in PEERS:
        python_of(peer, environments)
    rows = []
    with instance.running() as status:
        run(status, experiment("warm", NOTHING, 4, 2))
        for repeat in range(2):
            seconds, cpu = run(status, experiment(f"sleep-{repeat}", SLEEP, 100, 2))
            rows.append(
                {
                    "case": "100 trials of 0.1 s, 2 parallel",
                    "seconds": seconds,
                    "floor_sleep_s": 5.0,
                    "floor_processes_s": (floor := bare(SLEEP, 100, 2)),
                    "over_floor_percent": 100 * (seconds / floor - 1),
                    "control_plane_cpu_ms_per_trial": 1000 * cpu / 100,
                }
            )
        seconds, cpu = run(status, experiment("many", NOTHING, 1000, 4))
        rows.append(
            {
                "case": "1,000 trials that do nothing, 4 parallel",
                "seconds": seconds,
                "floor_processes_s": bare(NOTHING, 1000, 4),
                "control_plane_cpu_ms_per_trial": cpu,
            }
        )
    rows += peers(environments, 100, 0.1)
    instance.write("trials", rows)


if __name__ == "__main__":
    main()
