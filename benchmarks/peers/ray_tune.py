"""Trials with Ray Tune, on a Ray of its own that only loopback reaches: ``ray_tune.py TRIALS SECONDS``."""

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


def train(config: dict[str, float]) -> None:
    time.sleep(SECONDS)
    tune.report({"loss": config["x"]})


def search(trials: int, folder: str, *, reuse: bool) -> float:
    start = time.perf_counter()
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=2, reuse_actors=reuse),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    assert len(results) == trials and not results.errors
    return time.perf_counter() - start


with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=folder, log_to_driver=False)
    search(2, folder, reuse=False)
    rows = [
        {"peer": "Ray Tune, a process for each trial", "seconds": search(TRIALS, folder, reuse=False)},
        {"peer": "Ray Tune, reuse_actors", "seconds": search(TRIALS, folder, reuse=True)},
    ]
    ray.shutdown()
print(json.dumps(rows))
