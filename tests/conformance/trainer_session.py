"""What a user of the unmodified ``kubeflow`` SDK does with trainings. Arguments: kubeconfig, namespace."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import CustomTrainer, CustomTrainerContainer, TrainerClient
from kubeflow.trainer.options import Name

EXAMPLE = Path(__file__).parents[2] / "examples" / "training" / "jobs.py"
SHIPPED = {"torch", "jax", "xgboost", "deepspeed", "mpi", "tensorflow", "sklearn", "plain"}
TIMEOUT_S = 500


def greet(word):
    import json
    import os
    import time
    import urllib.request

    rank = os.environ["JOB_COMPLETION_INDEX"]
    print(word, "from", rank, flush=True)
    if rank == "0":
        with open(os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]) as file:
            token = file.read()
        metrics = [{"name": "loss", "value": "0.5"}]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        report = {"trainerStatus": {"progressPercentage": 40, "metrics": metrics, "lastUpdatedTime": stamp}}
        headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
        url = os.environ["KUBEFLOW_TRAINER_SERVER_URL"]
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(report).encode(), headers)) as answer:
            print("reported", answer.status, flush=True)


def stumble():
    raise SystemExit("the data set is not there")


def main(kubeconfig: str, namespace: str) -> None:
    client = TrainerClient(KubernetesBackendConfig(config_file=kubeconfig, namespace=namespace))
    runtimes = {runtime.name: runtime.trainer for runtime in client.list_runtimes()}
    assert {trainer.framework for trainer in runtimes.values()} >= SHIPPED, runtimes
    assert client.get_runtime("torch-distributed").trainer.num_nodes == 1
    jobs = [greeted(client), failed(client), unknown_image(client)]
    real_training(client)
    assert {job.name for job in client.list_jobs()} >= set(jobs)
    for job in jobs:
        client.delete_job(job)
    deadline = time.monotonic() + 60
    while client.list_jobs() or client.backend.core_api.list_namespaced_pod(namespace).items:
        assert time.monotonic() < deadline, "jobs are still there"
        time.sleep(0.2)


def told(client: TrainerClient, job: str, reason: str) -> str:
    """Return the message of the job's Event of this reason; Events are written a moment after what they tell of."""
    deadline = time.monotonic() + 60
    while not (messages := [event.message for event in client.get_job_events(job) if event.reason == reason]):
        assert time.monotonic() < deadline, f"no Event {reason}: {client.get_job_events(job)}"
        time.sleep(0.2)
    return messages[-1]


def greeted(client: TrainerClient) -> str:
    job = client.train(
        runtime="plain",
        trainer=CustomTrainer(func=greet, func_args={"word": "hello"}, num_nodes=2, resources_per_node={"cpu": 0.1}),
    )
    seen = []
    done = client.wait_for_job_status(
        job, timeout=TIMEOUT_S, polling_interval=1, callbacks=[lambda found: seen.append(found.status)]
    )
    assert [(step.name, step.status) for step in done.steps] == [("node-0", "Succeeded"), ("node-1", "Succeeded")]
    assert set(seen) <= {"Created", "Running", "Complete"}, seen
    logs = list(client.get_job_logs(job, follow=True))
    assert logs == ["hello from 0", "reported 200"], logs
    assert list(client.get_job_logs(job, step="node-1")) == ["hello from 1"]
    status = client.backend.custom_api.get_namespaced_custom_object(
        "trainer.kubeflow.org", "v1alpha1", client.backend.namespace, "trainjobs", job
    )["status"]
    assert status["trainerStatus"]["progressPercentage"] == 40, status
    assert [item["type"] for item in status["conditions"]] == ["Complete"], status
    counts = {"name": "node", "ready": 0, "succeeded": 1, "failed": 0, "active": 0, "suspended": 0}
    assert status["jobsStatus"] == [counts], status
    for reason in ("Scheduled", "Started", "AllJobsCompleted", "TrainJobComplete"):
        told(client, job, reason)
    return job


def failed(client: TrainerClient) -> str:
    job = client.train(runtime="plain", trainer=CustomTrainer(func=stumble))
    try:
        client.wait_for_job_status(job, timeout=TIMEOUT_S, polling_interval=1)
    except RuntimeError as error:
        assert "is Failed" in str(error), error
    else:
        raise AssertionError("a job that failed is complete")
    message = told(client, job, "TrainJobFailed")
    assert "exit code 1" in message and "the data set is not there" in message, message
    return job


def unknown_image(client: TrainerClient) -> str:
    """An image that stands for nothing here ends its job at once, and the job says what to do."""
    trainer = CustomTrainerContainer(image="acme/train:7", num_nodes=1, env={"WORD": "by image"})
    job = client.train(runtime="plain", trainer=trainer, options=[Name("by-image")])
    assert job == "by-image"
    client.wait_for_job_status(job, status={"Failed"}, timeout=TIMEOUT_S, polling_interval=1)
    assert "acme/train:7" in told(client, job, "ImageNotAvailable")
    return job


def real_training(client: TrainerClient) -> None:
    """Two frameworks side by side, one of them on two nodes."""
    spec = importlib.util.spec_from_file_location("jobs", EXAMPLE)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    sys.modules["jobs"] = example
    spec.loader.exec_module(example)
    results = example.run(client, ["torch", "sklearn"], TIMEOUT_S)
    assert results["torch"]["world"] == 2 and results["torch"]["gradient_difference"] < 1e-9, results
    assert results["torch"]["accuracy"] > 0.95, results
    assert results["sklearn"]["accuracy"] > 0.93, results


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    print("ok")
