"""What a user of the unmodified ``kubeflow-training`` client does. Arguments: kubeconfig, namespace."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time

from kubeflow.training import (
    KubeflowOrgV1JAXJob,
    KubeflowOrgV1JAXJobSpec,
    KubeflowOrgV1PyTorchJob,
    KubeflowOrgV1PyTorchJobSpec,
    KubeflowOrgV1TFJob,
    KubeflowOrgV1TFJobSpec,
    KubeflowOrgV1XGBoostJob,
    KubeflowOrgV1XGBoostJobSpec,
    TrainingClient,
)
from kubeflow.training import (
    KubeflowOrgV1ReplicaSpec as V1ReplicaSpec,
)
from kubeflow.training import (
    KubeflowOrgV1RunPolicy as V1RunPolicy,
)
from kubernetes.client import V1Container, V1ObjectMeta, V1PodSpec, V1PodTemplateSpec

TIMEOUT_S = 500


def add_up():
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1) * (dist.get_rank() + 1)
    dist.all_reduce(total)
    print("sum", int(total.item()), "of", dist.get_world_size(), flush=True)
    dist.destroy_process_group()


def replica(container: str, script: str, count: int = 1, policy: str = "Never") -> V1ReplicaSpec:
    main = V1Container(name=container, image="python:3.11", command=["python3", "-c", script])
    spec = V1PodSpec(containers=[main])
    return V1ReplicaSpec(replicas=count, restart_policy=policy, template=V1PodTemplateSpec(spec=spec))


def main(kubeconfig: str, namespace: str) -> None:
    client = TrainingClient(config_file=kubeconfig, namespace=namespace)
    client.create_job(
        name="sums",
        job_kind="PyTorchJob",
        train_func=add_up,
        num_workers=2,
        base_image="docker.io/pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime",
    )
    classic = jobs(namespace)
    for job in classic:
        client.create_job(job)
    followed(client, namespace)
    for job in classic:
        wait(client, job.metadata.name, job.kind)
    expected = {"tf": '"worker"', "xgb": "xgb-master-0 2", "jax": "jax-worker-0 2"}
    for job in classic:
        name = job.metadata.name
        logs, _ = client.get_job_logs(name, job_kind=job.kind, is_master=True)
        assert any(expected[name] in text for text in logs.values()), logs
    statuses = client.get_job("xgb", job_kind="XGBoostJob").status.replica_statuses
    assert statuses["Master"].succeeded == 1, statuses
    wait(client, "sums", "PyTorchJob")
    assert client.is_job_succeeded("sums", job_kind="PyTorchJob")
    logs, _ = client.get_job_logs("sums", job_kind="PyTorchJob", replica_type="worker")
    assert all("sum 3 of 2" in text for text in logs.values()), logs
    failing(client, namespace)
    ours = [("sums", "PyTorchJob"), ("again", "PyTorchJob"), ("held", "PyTorchJob")]
    for name, kind in [*ours, *((j.metadata.name, j.kind) for j in classic)]:
        client.delete_job(name, job_kind=kind)
    deadline = time.monotonic() + 60
    while client.core_api.list_namespaced_pod(namespace).items:
        assert time.monotonic() < deadline, "Pods are still there"
        time.sleep(0.2)


def wait(client: TrainingClient, name: str, kind: str) -> None:
    client.wait_for_job_conditions(name, job_kind=kind, wait_timeout=TIMEOUT_S, polling_interval=1)


def jobs(namespace: str) -> list:
    config = "import os; print('cluster', os.environ['TF_CONFIG'])"
    xgboost = "import os; print(os.environ['MASTER_ADDR'], os.environ['WORLD_SIZE'])"
    jax = "import os; print(os.environ['COORDINATOR_ADDRESS'], os.environ['NUM_PROCESSES'])"
    policy = V1RunPolicy(clean_pod_policy="None")

    def meta(name: str) -> V1ObjectMeta:
        return V1ObjectMeta(name=name, namespace=namespace)

    api = {"api_version": "kubeflow.org/v1"}
    tf = {"Worker": replica("tensorflow", config, 2)}
    xgb = {"Master": replica("xgboost", xgboost), "Worker": replica("xgboost", xgboost)}
    return [
        KubeflowOrgV1TFJob(
            **api,
            kind="TFJob",
            metadata=meta("tf"),
            spec=KubeflowOrgV1TFJobSpec(run_policy=policy, tf_replica_specs=tf),
        ),
        KubeflowOrgV1XGBoostJob(
            **api,
            kind="XGBoostJob",
            metadata=meta("xgb"),
            spec=KubeflowOrgV1XGBoostJobSpec(run_policy=policy, xgb_replica_specs=xgb),
        ),
        KubeflowOrgV1JAXJob(
            **api,
            kind="JAXJob",
            metadata=meta("jax"),
            spec=KubeflowOrgV1JAXJobSpec(run_policy=policy, jax_replica_specs={"Worker": replica("jax", jax, 2)}),
        ),
    ]


def followed(client: TrainingClient, namespace: str) -> None:
    """A job that is held back and let go; its Pods by role and number; its log while it runs."""
    script = "import time\nfor n in range(4):\n    print('line', n, flush=True)\n    time.sleep(0.3)"
    replicas = {"Master": replica("pytorch", script), "Worker": replica("pytorch", script, 2)}
    policy = V1RunPolicy(clean_pod_policy="None", suspend=True)
    job = KubeflowOrgV1PyTorchJob(
        api_version="kubeflow.org/v1",
        kind="PyTorchJob",
        metadata=V1ObjectMeta(name="held", namespace=namespace),
        spec=KubeflowOrgV1PyTorchJobSpec(run_policy=policy, pytorch_replica_specs=replicas),
    )
    client.create_job(job)
    deadline = time.monotonic() + 60
    while not client.is_job_created("held", job_kind="PyTorchJob"):
        assert time.monotonic() < deadline, "the job is not created"
        time.sleep(0.1)
    assert not client.get_job_pod_names("held")
    job = client.get_job("held", job_kind="PyTorchJob")
    job.spec.run_policy.suspend = False
    client.update_job(job, "held", job_kind="PyTorchJob")
    client.wait_for_job_conditions(
        "held",
        job_kind="PyTorchJob",
        expected_conditions={"Running", "Succeeded"},
        wait_timeout=TIMEOUT_S,
        polling_interval=0.2,
    )
    names = {"held-master-0", "held-worker-0", "held-worker-1"}
    assert set(client.get_job_pod_names("held")) == names
    assert client.get_job_pod_names("held", is_master=True) == ["held-master-0"]
    assert client.get_job_pod_names("held", replica_type="worker", replica_index=1) == ["held-worker-1"]
    assert len(client.get_job_pods("held", replica_type="worker")) == 2
    assert "held" in {item.metadata.name for item in client.list_jobs(job_kind="PyTorchJob")}
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        client.get_job_logs("held", job_kind="PyTorchJob", follow=True)
    assert output.getvalue().count("line 3") == 1, output.getvalue()
    wait(client, "held", "PyTorchJob")
    conditions = client.get_job_conditions("held", job_kind="PyTorchJob")
    assert {item.type for item in conditions} == {"Created", "Suspended", "Running", "Succeeded"}, conditions
    for check in (client.is_job_running, client.is_job_restarting, client.is_job_failed):
        assert not check("held", job_kind="PyTorchJob")
    logs, events = client.get_job_logs("held", job_kind="PyTorchJob", replica_index=0, verbose=True)
    assert list(logs) == ["held-master-0"], logs
    assert any("Created pod: held-master-0" in text for text in events["pytorchjob/held"]), events


def failing(client: TrainingClient, namespace: str) -> None:
    """A permanent exit code ends the job; the condition says why."""
    script = "raise SystemExit('no such column')"
    job = KubeflowOrgV1PyTorchJob(
        api_version="kubeflow.org/v1",
        kind="PyTorchJob",
        metadata=V1ObjectMeta(name="again", namespace=namespace),
        spec=KubeflowOrgV1PyTorchJobSpec(
            run_policy=V1RunPolicy(clean_pod_policy="None"),
            pytorch_replica_specs={"Master": replica("pytorch", script, policy="ExitCode")},
        ),
    )
    client.create_job(job)
    try:
        wait(client, "again", "PyTorchJob")
    except RuntimeError:
        pass
    else:
        raise AssertionError("a job that failed has succeeded")
    condition = client.get_job("again", job_kind="PyTorchJob").status.conditions[-1]
    assert condition.type == "Failed" and "no such column" in condition.message, json.dumps(condition.to_dict())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    print("ok")
