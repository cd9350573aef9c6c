"""What a user of the unmodified ``kubeflow`` SDK does with its OptimizerClient: SCRIPT KUBECONFIG NAMESPACE."""

from __future__ import annotations

import sys
import time

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.optimizer import Objective, OptimizerClient, Search, TrainJobTemplate, TrialConfig
from kubeflow.trainer import CustomTrainer


def train(rate, depth):
    loss = (float(rate) - 0.03) ** 2 + int(depth)
    print(f"loss={loss}", flush=True)


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
    assert {event.reason for event in client.get_job_events(name)} >= {"TrialSucceeded", "ExperimentMaxTrialsReached"}
    assert [job.name for job in client.list_jobs()] == [name]
    client.delete_job(name)
    deadline = time.monotonic() + 60
    while client.list_jobs():
        assert time.monotonic() < deadline, "the job is still there"
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    print("ok")
