"""
Trials with Ray Tune, on a Ray of its own that only loopback reaches: ``ray_tune.py TRIALS SECONDS``.

Each takes it a second or more: it runs a fifth of them, and stops when its time is over.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}

import ray
from ray import tune

TRIALS, SECONDS = int(sys.argv[1]), float(sys.argv[2])
LIMIT_S = 60


def train(config: dict[str, float]) -> None:
    time.sleep(SECONDS)
    tune.report({"loss": config["x"]})


def search(peer: str, trials: int, folder: str, *, reuse: bool) -> None:
    start = time.perf_counter()
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            num_samples=trials, max_concurrent_trials=2, reuse_actors=reuse, time_budget_s=LIMIT_S
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    seconds = time.perf_counter() - start
    assert not results.errors
    ended = sum("loss" in (result.metrics or {}) for result in results)
    if peer:
        print(json.dumps({"peer": peer, "trials": ended, "seconds": seconds}), flush=True)


with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=folder, log_to_driver=False)
    search("", 2, folder, reuse=False)
    search("Ray Tune, a process for each trial", TRIALS // 5, folder, reuse=False)
    search("Ray Tune, reuse_actors", TRIALS // 5, folder, reuse=True)
    ray.shutdown()
