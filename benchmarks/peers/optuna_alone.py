"""Trials with Optuna and two threads, in its process and in a process each: ``optuna_alone.py TRIALS SECONDS``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import optuna

TRIALS, SECONDS = int(sys.argv[1]), float(sys.argv[2])
SCRIPT = f"import sys, time; time.sleep({SECONDS}); print('loss=' + sys.argv[1])"


def inside(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    time.sleep(SECONDS)
    return x


def process(trial: optuna.Trial) -> float:
    command = [sys.executable, "-c", SCRIPT, str(trial.suggest_float("x", 0, 1))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.removeprefix("loss="))


def search(peer: str, objective: Callable[[optuna.Trial], float]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    start = time.perf_counter()
    study.optimize(objective, n_trials=TRIALS, n_jobs=2)
    seconds = time.perf_counter() - start
    print(json.dumps({"peer": peer, "trials": len(study.trials), "seconds": seconds}), flush=True)


optuna.logging.set_verbosity(optuna.logging.ERROR)
search("Optuna alone, threads of one process", inside)
search("Optuna alone, a process for each trial", process)
