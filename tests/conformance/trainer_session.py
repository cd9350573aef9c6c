"""What a user of the unmodified ``kubeflow`` SDK does with trainings. Arguments: kubeconfig, namespace."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import time
import uuid
from pathlib import Path

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import BuiltinTrainer, CustomTrainer, CustomTrainerContainer, TorchTuneConfig, TrainerClient
from kubeflow.trainer.options import (
    ActiveDeadlineSeconds,
    Annotations,
    JobSetSpecPatch,
    JobSetTemplatePatch,
    JobSpecPatch,
    JobTemplatePatch,
    Labels,
    Name,
    PodSpecPatch,
    PodTemplatePatch,
    ReplicatedJobPatch,
    RuntimePatch,
    TrainerArgs,
    TrainerCommand,
    TrainingRuntimeSpecPatch,
)
from kubernetes.stream import stream

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
    builtin(client)
    jobs = [greeted(client), failed(client), unknown_image(client), followed(client)]
    real_training(client)
    packages_of(client)
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


def create(client: TrainerClient, plural: str, name: str, framework: str, container: dict) -> None:
    """Create a runtime of one step; the SDK has no call for that."""
    labels = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = {"containers": [{"name": "node", **container}]}
    step = {"name": "node", "template": {"metadata": {"labels": labels}, "spec": {"template": {"spec": pod}}}}
    kind = "TrainingRuntime" if plural == "trainingruntimes" else "ClusterTrainingRuntime"
    policy = {"torch": {}} if framework == "torchtune" else {}
    body = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "labels": {"trainer.kubeflow.org/framework": framework}},
        "spec": {"mlPolicy": policy, "template": {"spec": {"replicatedJobs": [step]}}},
    }
    place = ("trainer.kubeflow.org", "v1alpha1")
    if kind == "TrainingRuntime":
        client.backend.custom_api.create_namespaced_custom_object(*place, client.backend.namespace, plural, body)
    else:
        client.backend.custom_api.create_cluster_custom_object(*place, plural, body)


def builtin(client: TrainerClient) -> None:
    """A tuning by recipe is accepted; without its packages here, the job says so at once."""
    name, image = "torchtune-llama3.2-1b", "ghcr.io/kubeflow/trainer/torchtune-trainer"
    command = ["tune", "run", "output_dir=/workspace/output"]
    create(client, "clustertrainingruntimes", name, "torchtune", {"image": image, "command": command})
    try:
        trainer = BuiltinTrainer(config=TorchTuneConfig(epochs=2, batch_size=4))
        job = client.train(runtime=name, trainer=trainer)
        client.wait_for_job_status(job, status={"Failed"}, timeout=TIMEOUT_S, polling_interval=1)
        message = told(client, job, "ImageNotAvailable")
        assert image in message and "shallop env add" in message, message
        # The SDK lists no jobs while one names a runtime that is gone.
        client.delete_job(job)
    finally:
        client.backend.custom_api.delete_cluster_custom_object(
            "trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", name
        )


def followed(client: TrainerClient) -> str:
    """A container with options of every kind, by a runtime of the namespace, whose log is followed while it runs."""
    create(client, "trainingruntimes", "own", "plain", {"image": "python:3.11"})
    runtime = client.get_runtime("own")
    assert runtime.kind.value == "TrainingRuntime" and runtime.name in {item.name for item in client.list_runtimes()}
    # Where Pods share the machine's /tmp, nobody else has this name.
    end = f"/tmp/end-{uuid.uuid4().hex}"
    script = (
        "import os, sys, time\nfor n in range(3):\n    print(sys.argv[1], os.environ['WORD'], n, flush=True)\n"
        f"while not os.path.exists('{end}'):\n    time.sleep(0.05)\nprint('over', flush=True)"
    )
    pod = PodTemplatePatch(metadata={"labels": {"patched": "yes"}}, spec=PodSpecPatch(node_selector={}))
    replicated = ReplicatedJobPatch("node", JobTemplatePatch(spec=JobSpecPatch(template=pod)))
    template = JobSetTemplatePatch(spec=JobSetSpecPatch(replicated_jobs=[replicated]))
    options = [
        Labels({"team": "a"}),
        Annotations({"note": "b"}),
        TrainerCommand(["python3", "-c", script]),
        TrainerArgs(["said"]),
        ActiveDeadlineSeconds(TIMEOUT_S),
        RuntimePatch(training_runtime_spec=TrainingRuntimeSpecPatch(template=template)),
    ]
    trainer = CustomTrainerContainer(image="python:3.11", num_nodes=1, env={"WORD": "by image"})
    job = client.train(runtime=runtime, trainer=trainer, options=options)
    found = client.wait_for_job_status(job, status={"Running"}, timeout=TIMEOUT_S, polling_interval=1)
    assert [item.name for item in client.list_jobs(runtime=runtime)] == [job] and found.num_nodes == 1
    (running,) = client.backend.core_api.list_namespaced_pod(client.backend.namespace, label_selector="patched").items
    lines = []
    for line in client.get_job_logs(job, follow=True):
        lines.append(line)
        if len(lines) == 3:
            # What comes after this was printed while the log was followed.
            command = ["python3", "-c", f"open('{end}', 'w')"]
            stream(
                client.backend.core_api.connect_get_namespaced_pod_exec,
                running.metadata.name,
                client.backend.namespace,
                command=command,
                stdout=True,
                stderr=True,
            )
    assert lines == [*[f"said by image {n}" for n in range(3)], "over"], lines
    client.wait_for_job_status(job, timeout=TIMEOUT_S, polling_interval=1)
    raw = client.backend.custom_api.get_namespaced_custom_object(
        "trainer.kubeflow.org", "v1alpha1", client.backend.namespace, "trainjobs", job
    )
    assert raw["metadata"]["labels"] == {"team": "a"} and raw["metadata"]["annotations"]["note"] == "b", raw
    assert client.get_job(job).status == "Complete" and raw["spec"]["activeDeadlineSeconds"] == TIMEOUT_S
    return job


def packages_of(client: TrainerClient) -> None:
    """The SDK runs a job of its own to see what is in a runtime, and takes it away."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        client.get_runtime_packages(client.get_runtime("sklearn"))
    assert "Python: 3." in text.getvalue(), text.getvalue()


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
