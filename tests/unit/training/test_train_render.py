"""From TrainJob and runtime to the JobSet: what each policy sets, and how patches are laid over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shallop.kube.objects import Object
from shallop.training.admission import default, validate, validate_with_runtime
from shallop.training.gang import group_pods
from shallop.training.podsets import NODE, TRAINER, container_named
from shallop.training.policies import render_mpi_objects
from shallop.training.render import CHECKPOINT_CLAIM, render_jobset, train
from shallop.training.trainingruntime import load_runtimes
from shallop.training.trainingruntime import validate as validate_runtime

RUNTIMES = {runtime["metadata"]["name"]: runtime for runtime in load_runtimes()}


def train_job(runtime: str = "torch-distributed", **spec: Any) -> Object:
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "t", "namespace": "team", "uid": "u"},
        "spec": {"runtimeRef": {"name": runtime, "kind": "ClusterTrainingRuntime"}, **spec},
    }


def env_of(jobset: Object, name: str = NODE) -> dict[str, Any]:
    job = next(item for item in jobset["spec"]["replicatedJobs"] if item["name"] == name)
    container = job["template"]["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env") or ()}


def rendered(job: Object) -> Object:
    return render_jobset(train(job, RUNTIMES[job["spec"]["runtimeRef"]["name"]]))


def test_torch_sets_what_torchrun_reads() -> None:
    jobset = rendered(train_job(trainer={"numNodes": 3, "numProcPerNode": 2, "env": [{"name": "A", "value": "b"}]}))
    env = env_of(jobset)
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    assert env == {
        "A": "b",
        "PET_NNODES": "3",
        "PET_NPROC_PER_NODE": "2",
        "PET_NODE_RANK": index,
        "PET_MASTER_ADDR": "t-node-0-0.t",
        "PET_MASTER_PORT": "29500",
    }
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (3, 3)


@pytest.mark.parametrize(
    ("resources", "processes"),
    [
        ({}, "1"),
        ({"requests": {"cpu": "2500m"}}, "3"),
        ({"limits": {"cpu": "2"}}, "2"),
        ({"limits": {"cpu": "2", "nvidia.com/gpu": "1"}}, "auto"),
    ],
)
def test_processes_of_torch_follow_from_what_a_node_asks_for(resources: dict[str, Any], processes: str) -> None:
    env = env_of(rendered(train_job(trainer={"resourcesPerNode": resources})))
    assert env["PET_NPROC_PER_NODE"] == processes


def test_without_spec_trainer_nothing_is_injected() -> None:
    assert env_of(rendered(train_job())) == {}


def test_jax_xgboost_and_tensorflow_know_their_peers() -> None:
    env = env_of(rendered(train_job("jax-distributed", trainer={"numNodes": 2})))
    assert (env["JAX_NUM_PROCESSES"], env["JAX_COORDINATOR_ADDRESS"]) == ("2", "t-node-0-0.t:29500")
    env = env_of(rendered(train_job("xgboost-distributed", trainer={"numNodes": 2})))
    assert (env["DMLC_TRACKER_URI"], env["DMLC_TRACKER_PORT"], env["DMLC_NUM_WORKER"]) == ("t-node-0-0.t", "29500", "2")
    env = env_of(rendered(train_job("tensorflow-distributed", trainer={"numNodes": 2})))
    config = json.loads(env["TF_CONFIG"].replace("$(JOB_COMPLETION_INDEX)", "1"))
    assert config == {
        "cluster": {"worker": ["t-node-0-0.t:29500", "t-node-0-1.t:29500"]},
        "task": {"type": "worker", "index": 1},
    }
    assert "TF_CONFIG" not in env_of(rendered(train_job("tensorflow-distributed", trainer={"numNodes": 1})))


def test_mpi_splits_nodes_into_launcher_and_workers() -> None:
    job = train_job("mpi-distributed", trainer={"numNodes": 3, "numProcPerNode": 2, "image": "mine"})
    training = train(job, RUNTIMES["mpi-distributed"])
    hostfile, secret = render_mpi_objects(training, ("private", "public"))
    hosts = ["t-launcher-0-0.t", "t-node-0-0.t", "t-node-0-1.t"]
    assert hostfile["data"]["hostfile"] == "".join(f"{host} slots=2\n" for host in hosts)
    assert secret["immutable"] and secret["type"] == "kubernetes.io/ssh-auth"
    jobset = render_jobset(training)
    env = env_of(jobset, "launcher")
    assert env["OMPI_MCA_orte_default_hostfile"] == "/etc/mpi/hostfile"
    assert env["OMPI_MCA_orte_set_default_slots"] == "2"
    counts = {item["name"]: item["template"]["spec"]["parallelism"] for item in jobset["spec"]["replicatedJobs"]}
    assert counts == {"node": 2, "launcher": 1}
    workers = training.named(NODE)
    assert workers and (container_named(workers, NODE) or {})["image"] == "mine"
    assert len(render_mpi_objects(training, None)) == 1


def patch(name: str = NODE, container: str = "side", **container_fields: Any) -> dict[str, Any]:
    containers = [{"name": container, **container_fields}]
    pod = {"containers": containers, "nodeSelector": {"disk": "fast"}}
    template = {"metadata": {"labels": {"team": "blue"}}, "spec": {"template": {"spec": pod}}}
    spec = {"replicatedJobs": [{"name": name, "template": template}]}
    return {"manager": "example.com/me", "trainingRuntimeSpec": {"template": {"spec": spec}}}


def test_patches_merge_by_name_and_change_neither_job_nor_runtime() -> None:
    job = train_job(runtimePatches=[patch(container=NODE, volumeMounts=[{"name": "v", "mountPath": "/v"}])], trainer={})
    before = json.dumps([job, RUNTIMES["torch-distributed"]])
    template = rendered(job)["spec"]["replicatedJobs"][0]["template"]
    assert template["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": TRAINER, "team": "blue"}
    pod = template["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"disk": "fast"}
    (container,) = pod["containers"]
    assert container["image"].startswith("pytorch/") and container["volumeMounts"][0]["mountPath"] == "/v"
    assert json.dumps([job, RUNTIMES["torch-distributed"]]) == before


def test_resources_merge_over_those_of_the_runtime() -> None:
    runtime = json.loads(json.dumps(RUNTIMES["plain"]))
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["containers"][0]["resources"] = {"limits": {"cpu": "1", "memory": "1Gi"}}
    job = train_job("plain", trainer={"resourcesPerNode": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}})
    pods = train(job, runtime).step(TRAINER)
    assert pods and pods.containers[0]["resources"] == {
        "limits": {"cpu": "2", "memory": "1Gi"},
        "requests": {"cpu": "1"},
    }


def test_checkpoints_and_progress_are_offered() -> None:
    job = train_job("plain", trainer={})
    job["metadata"]["annotations"] = {CHECKPOINT_CLAIM: "kept"}
    jobset = render_jobset(train(job, RUNTIMES["plain"]), "http://here/status")
    env = env_of(jobset)
    assert env["CHECKPOINT_DIR"] == "/checkpoints" and env["KUBEFLOW_TRAINER_SERVER_URL"] == "http://here/status"
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["volumeMounts"][-1] == {
        "name": "checkpoints",
        "mountPath": "/checkpoints",
        "subPath": "t",
    }


def test_amounts_become_text_and_new_patches_are_stamped() -> None:
    amounts = {"cpu": 1.0, "memory": "1Gi", "nvidia.com/gpu": 2, "x": 0.5}
    stamped = patch() | {"time": "2026-01-01T00:00:00Z"}
    job = default(train_job(trainer={"resourcesPerNode": {"limits": amounts}}, runtimePatches=[patch(), stamped]))
    limits = job["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert limits == {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "2", "x": "500m"}
    first, second = job["spec"]["runtimePatches"]
    assert first["time"] and second["time"] == "2026-01-01T00:00:00Z"


def fields(errors: list[Any]) -> list[str]:
    return [error.field for error in errors]


def test_patches_may_not_set_variables_of_the_trainer_and_change_only_while_suspended() -> None:
    with_env = train_job(runtimePatches=[patch(container=NODE, env=[{"name": "A", "value": "b"}])])
    assert fields(validate(with_env, None)) == ["spec.runtimePatches[0]"]
    old, new = train_job(), train_job(runtimePatches=[patch()])
    assert fields(validate(new, old)) == ["spec.runtimePatches"]
    assert validate(train_job(runtimePatches=[patch()], suspend=True), old) == []


def test_a_job_must_fit_its_runtime() -> None:
    runtime = RUNTIMES["torch-distributed"]
    wanting = train_job(initializer={"dataset": {"storageUri": "hf://a/b"}, "model": {}})
    assert fields(validate_with_runtime(wanting, runtime)) == ["spec.runtimeRef"] * 2
    assert fields(validate_with_runtime(train_job(runtimePatches=[patch("other")]), runtime)) == [
        "spec.runtimePatches[0]"
    ]
    assert fields(validate_with_runtime(train_job(runtimePatches=[patch()]), runtime)) == ["spec.runtimePatches[0]"]
    reserved = train_job(trainer={"env": [{"name": "PET_NNODES", "value": "1"}]})
    assert fields(validate_with_runtime(reserved, runtime)) == ["spec.trainer.env"]
    reserved = train_job(trainer={"env": [{"name": "A"}, {"name": "DMLC_TASK_ID", "value": "1"}]})
    assert fields(validate_with_runtime(reserved, RUNTIMES["xgboost-distributed"])) == ["spec.trainer.env[1]"]
    assert validate_with_runtime(train_job(trainer={"numNodes": 2}), runtime) == []


def test_shipped_runtimes_are_valid_and_a_step_needs_its_container() -> None:
    assert not any(validate_runtime(runtime, None) for runtime in RUNTIMES.values())
    broken = json.loads(json.dumps(RUNTIMES["plain"]))
    job = broken["spec"]["template"]["spec"]["replicatedJobs"][0]
    job["replicas"] = 2
    job["template"]["spec"]["template"]["spec"]["containers"][0]["name"] = "main"
    path = "spec.template.spec.replicatedJobs[0]"
    assert fields(validate_runtime(broken, None)) == [
        f"{path}.replicas",
        f"{path}.template.spec.template.spec.containers",
    ]


def test_pods_that_start_together_carry_their_group() -> None:
    trainer = {"numNodes": 3, "resourcesPerNode": {"requests": {"cpu": "500m"}}}
    training = train(train_job("mpi-distributed", trainer=trainer), RUNTIMES["mpi-distributed"])
    assert group_pods(training, {}) is None
    group = group_pods(training, {"coscheduling": {}})
    assert group is not None and group["apiVersion"] == "scheduling.x-k8s.io/v1alpha1"
    # The launcher does not wait for the two others to run, it is one of those that start.
    spec = {"minMember": 3, "minResources": {"cpu": "1.5"}, "scheduleTimeoutSeconds": 60}
    assert group["spec"] == spec and group["metadata"]["name"] == "t"
    marks = {
        pods.name: (pods.job["template"]["spec"]["template"].get("metadata") or {}).get("labels")
        for pods in training.pod_sets
    }
    mark = {"scheduling.x-k8s.io/pod-group": "t"}
    assert marks == {"node": mark, "launcher": mark}
    assert not any("dependsOn" in pods.job for pods in training.pod_sets)
    volcano = group_pods(training, {"volcano": {}})
    assert volcano is not None and volcano["apiVersion"] == "scheduling.volcano.sh/v1beta1"
