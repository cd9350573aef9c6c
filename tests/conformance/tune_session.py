"""What a user of the unmodified ``kubeflow`` SDK does with its OptimizerClient: SCRIPT KUBECONFIG NAMESPACE."""

from __future__ import annotations

import sys
import time

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.optimizer import (
    GridSearch,
    Objective,
    OptimizerClient,
    RandomSearch,
    Search,
    TrainJobTemplate,
    TrialConfig,
)
from kubeflow.trainer import CustomTrainer


def train(rate, depth):
    loss = (float(rate) - 0.03) ** 2 + int(depth)
    print(f"loss={loss}", flush=True)


def score(rate, kind):
    print(f"score={float(rate) + len(kind)}", flush=True)
    print(f"size={len(kind)}", flush=True)


def search_in_other_ways(client, runtime):
    """Seeds repeat a random search, a grid ends by itself, more metrics are read, and a trial's own logs."""
    template = TrainJobTemplate(runtime=runtime, trainer=CustomTrainer(func=score, num_nodes=1))
    objectives = [Objective(metric="score", direction="maximize"), Objective(metric="size", direction="maximize")]
    kinds = Search.choice(["a", "bb"])
    runs = [
        ({"rate": Search.uniform(0, 1), "kind": kinds}, RandomSearch(random_state=7), 2),
        ({"rate": Search.uniform(0, 1), "kind": kinds}, RandomSearch(random_state=7), 2),
        ({"rate": Search.choice([1, 2]), "kind": kinds}, GridSearch(), 4),
    ]
    names = [
        client.optimize(
            template,
            search_space=space,
            objectives=objectives,
            algorithm=algorithm,
            trial_config=TrialConfig(num_trials=count, parallel_trials=2),
        )
        for space, algorithm, count in runs
    ]
    jobs = [client.wait_for_job_status(name, timeout=200, polling_interval=1) for name in names]
    given = [sorted(tuple(sorted(trial.parameters.items())) for trial in job.trials) for job in jobs]
    assert given[0] == given[1], given
    assert given[2] == [(("kind", kind), ("rate", rate)) for kind in ("a", "bb") for rate in ("1", "2")], given
    best = client.get_best_results(names[2])
    assert best.parameters == {"kind": "bb", "rate": "2"}, best
    assert {metric.name: float(metric.max) for metric in best.metrics} == {"score": 4.0, "size": 2.0}, best
    worst = next(trial for trial in jobs[2].trials if trial.parameters == {"kind": "a", "rate": "1"})
    assert any("score=2.0" in line for line in client.get_job_logs(names[2], trial_name=worst.name))
    assert {type(job.algorithm).__name__ for job in client.list_jobs()} == {"RandomSearch", "GridSearch"}
    for name in names:
        client.delete_job(name)


def main(kubeconfig: str, namespace: str) -> None:
    client = OptimizerClient(KubernetesBackendConfig(config_file=kubeconfig, namespace=namespace))
    runtime = next(found for found in client.backend.trainer_backend.list_runtimes() if found.name == "plain")
    name = client.optimize(
        TrainJobTemplate(runtime=runtime, trainer=CustomTrainer(func=train, num_nodes=1)),
        search_space={"rate": Search.loguniform(0.01, 0.1), "depth": Search.choice([1, 2])},
        objectives=[Objective(metric="loss", direction="minimize")],
        trial_config=TrialConfig(num_trials=3, parallel_trials=2, max_failed_trials=1),
    )
    seen = []
    done = client.wait_for_job_status(
        name, timeout=200, polling_interval=1, callbacks=[lambda job: seen.append(job.status)]
    )
    assert len(done.trials) == 3 and done.status == "Complete", done
    assert set(seen) <= {"Created", "Running", "Complete"}, seen
    losses = {trial.name: float(trial.metrics[0].latest) for trial in done.trials}
    for trial in done.trials:
        assert trial.trainjob.status == "Complete", trial
        expected = (float(trial.parameters["rate"]) - 0.03) ** 2 + int(trial.parameters["depth"])
        assert losses[trial.name] == expected, (trial, losses)
    best = client.get_best_results(name)
    assert float(best.metrics[0].min) == min(losses.values()), (best, losses)
    logs = list(client.get_job_logs(name))
    assert any(f"loss={min(losses.values())}" in line for line in logs), logs
    deadline = time.monotonic() + 30
    while not {event.reason for event in client.get_job_events(name)} >= {
        "TrialSucceeded",
        "ExperimentMaxTrialsReached",
    }:
        assert time.monotonic() < deadline, client.get_job_events(name)
        time.sleep(0.1)
    assert [job.name for job in client.list_jobs()] == [name]
    search_in_other_ways(client, runtime)
    client.delete_job(name)
    deadline = time.monotonic() + 60
    while client.list_jobs():
        assert time.monotonic() < deadline, "the job is still there"
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    print("ok")
