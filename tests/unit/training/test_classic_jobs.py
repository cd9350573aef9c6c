"""The classic jobs: variables of replicas, and what a job does next."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shallop.kube.objects import Object, find_condition
from shallop.training.classic import CLASSIC_KINDS, default_job, validate_job
from shallop.training.classic_plan import ClassicPlan, plan_classic
from shallop.training.classic_render import render_autoscaler, render_config, render_pod, render_service
from shallop.training.classic_table import CLASSIC, ClassicKind
from shallop.training.gang import gang_types, render_classic_group

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = {kind.kind: kind for kind in CLASSIC}


def job(kind: str, replicas: dict[str, int], *, policy: str | None = None, **spec: Any) -> Object:
    table = KINDS[kind]
    container = {"name": table.container, "image": "python", "command": ["true"]}
    specs = {
        name: {"replicas": count, "template": {"spec": {"containers": [dict(container)]}}}
        | ({"restartPolicy": policy} if policy else {})
        for name, count in replicas.items()
    }
    metadata = {"name": "j", "namespace": "team", "uid": "u"}
    raw = {"apiVersion": "kubeflow.org/v1", "kind": kind, "metadata": metadata, "spec": {table.specs: specs, **spec}}
    return default_job(table, raw)


def env(raw: Object, type_: str, index: int) -> dict[str, str]:
    table = KINDS[raw["kind"]]
    entries = table.variables(table.view(raw), type_, index)
    return {entry["name"]: entry.get("value", "") for entry in entries}


def test_pytorch_names_its_master_and_ranks() -> None:
    raw = job("PyTorchJob", {"Master": 1, "Worker": 2}, nprocPerNode="2")
    assert env(raw, "Worker", 1) == {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "j-master-0",
        "PET_MASTER_ADDR": "j-master-0",
        "MASTER_PORT": "23456",
        "PET_MASTER_PORT": "23456",
        "WORLD_SIZE": "6",
        "RANK": "2",
        "PET_NODE_RANK": "2",
        "PET_NPROC_PER_NODE": "2",
        "PET_NNODES": "3",
    }
    assert env(raw, "Master", 0)["RANK"] == "0"


def test_an_elastic_pytorch_job_meets_at_its_first_worker() -> None:
    elastic = {"minReplicas": 1, "maxReplicas": 3, "maxRestarts": 4, "rdzvConf": [{"key": "a", "value": "b"}]}
    values = env(job("PyTorchJob", {"Worker": 2}, elasticPolicy=elastic), "Worker", 0)
    assert values["PET_NNODES"] == "1:3" and values["PET_RDZV_ENDPOINT"] == "j-worker-0:23456"
    assert values["PET_RDZV_BACKEND"] == "c10d" and values["PET_MAX_RESTARTS"] == "4"
    assert values["PET_RDZV_CONF"] == "a=b" and "MASTER_ADDR" not in values
    assert values["PET_RDZV_ID"] == "j" and values["PET_NPROC_PER_NODE"] == "auto"
    elastic = {"maxReplicas": 3, "rdzvHost": "h", "rdzvPort": 1, "rdzvBackend": "etcd", "standalone": True}
    raw = job("PyTorchJob", {"Worker": 2}, elasticPolicy={**elastic, "nProcPerNode": 4})
    values = env(raw, "Worker", 1)
    assert values["PET_NNODES"] == "3:3" and values["PET_RDZV_ENDPOINT"] == "h:1" and values["PET_STANDALONE"] == ""
    assert values["PET_RDZV_BACKEND"] == "etcd" and values["PET_NPROC_PER_NODE"] == "4"


def test_metrics_of_an_elastic_policy_become_an_autoscaler() -> None:
    metrics = [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]
    table = KINDS["PyTorchJob"]
    raw = job("PyTorchJob", {"Worker": 2}, elasticPolicy={"minReplicas": 1, "maxReplicas": 3, "metrics": metrics})
    scaler = render_autoscaler(table, table.view(raw))
    assert scaler is not None and scaler["spec"] == {
        "scaleTargetRef": {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "j"},
        "minReplicas": 1,
        "maxReplicas": 3,
        "metrics": metrics,
    }
    raw = job("PyTorchJob", {"Worker": 2}, elasticPolicy={"minReplicas": 1})
    assert render_autoscaler(table, table.view(raw)) is None


def test_a_priority_class_goes_to_pods_that_name_none() -> None:
    raw = job("JAXJob", {"Worker": 1}, runPolicy={"schedulingPolicy": {"priorityClass": "high"}})
    table = KINDS["JAXJob"]
    pod = render_pod(table, table.view(raw), "Worker", 0)
    assert pod["spec"]["priorityClassName"] == "high"
    raw["spec"]["jaxReplicaSpecs"]["Worker"]["template"]["spec"]["priorityClassName"] = "low"
    assert render_pod(table, table.view(raw), "Worker", 0)["spec"]["priorityClassName"] == "low"


def test_tensorflow_gets_its_cluster() -> None:
    raw = job("TFJob", {"Worker": 2, "PS": 1})
    config = json.loads(env(raw, "Worker", 1)["TF_CONFIG"])
    assert config["cluster"] == {
        "worker": ["j-worker-0.team.svc:2222", "j-worker-1.team.svc:2222"],
        "ps": ["j-ps-0.team.svc:2222"],
    }
    assert config["task"] == {"type": "worker", "index": 1}
    assert env(job("TFJob", {"Worker": 1}), "Worker", 0) == {}


@pytest.mark.parametrize(
    ("kind", "replicas", "replica", "expected"),
    [
        (
            "XGBoostJob",
            {"Master": 1, "Worker": 2},
            ("Worker", 1),
            {
                "PYTHONUNBUFFERED": "1",
                "MASTER_ADDR": "j-master-0",
                "MASTER_PORT": "9999",
                "WORLD_SIZE": "3",
                "RANK": "2",
                "WORKER_PORT": "9999",
                "WORKER_ADDRS": "j-worker-0,j-worker-1",
            },
        ),
        (
            "XGBoostJob",
            {"Master": 1},
            ("Master", 0),
            {
                "PYTHONUNBUFFERED": "1",
                "MASTER_ADDR": "j-master-0",
                "MASTER_PORT": "9999",
                "WORLD_SIZE": "1",
                "RANK": "0",
            },
        ),
        (
            "JAXJob",
            {"Worker": 2},
            ("Worker", 1),
            {
                "PYTHONUNBUFFERED": "1",
                "COORDINATOR_ADDRESS": "j-worker-0",
                "COORDINATOR_PORT": "6666",
                "NUM_PROCESSES": "2",
                "PROCESS_ID": "1",
            },
        ),
        (
            "PaddleJob",
            {"Worker": 2},
            ("Worker", 0),
            {
                "PYTHONUNBUFFERED": "1",
                "PADDLE_JOB_ID": "j",
                "PADDLE_NNODES": "2",
                "POD_IP_DUMMY": "status.podIP",
                "PADDLE_MASTER": "$(POD_IP_DUMMY):36543",
            },
        ),
        (
            "PaddleJob",
            {"Worker": 2},
            ("Worker", 1),
            {
                "PYTHONUNBUFFERED": "1",
                "PADDLE_JOB_ID": "j",
                "PADDLE_NNODES": "2",
                "PADDLE_MASTER": "j-worker-0:36543",
            },
        ),
        (
            "PaddleJob",
            {"Master": 1, "Worker": 2},
            ("Master", 0),
            {
                "PYTHONUNBUFFERED": "1",
                "PADDLE_JOB_ID": "j",
                "PADDLE_NNODES": "3",
                "POD_IP_DUMMY": "status.podIP",
                "PADDLE_MASTER": "$(POD_IP_DUMMY):36543",
                "PADDLE_SERVER_NUM": "1",
            },
        ),
        (
            "PaddleJob",
            {"Master": 1, "Worker": 2},
            ("Worker", 1),
            {
                "PYTHONUNBUFFERED": "1",
                "PADDLE_JOB_ID": "j",
                "PADDLE_NNODES": "3",
                "PADDLE_MASTER": "j-master-0:36543",
                "PADDLE_TRAINER_NUM": "1",
            },
        ),
        (
            "MPIJob",
            {"Launcher": 1, "Worker": 2},
            ("Launcher", 0),
            {
                "SHALLOP_RSH_KEY": "/etc/mpi/key",
                "OMPI_MCA_plm_rsh_agent": "python3 -m shallop_pod.rsh",
                "OMPI_MCA_orte_default_hostfile": "/etc/mpi/hostfile",
                "OMPI_MCA_orte_keep_fqdn_hostnames": "true",
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "I_MPI_HYDRA_HOST_FILE": "/etc/mpi/hostfile",
                "I_MPI_HYDRA_BOOTSTRAP": "rsh",
                "I_MPI_HYDRA_BOOTSTRAP_EXEC": "python3 -m shallop_pod.rsh",
                "NVIDIA_VISIBLE_DEVICES": "",
                "NVIDIA_DRIVER_CAPABILITIES": "",
            },
        ),
    ],
)
def test_a_replica_gets_the_variables_of_its_kind_and_no_others(
    kind: str, replicas: dict[str, int], replica: tuple[str, int], expected: dict[str, str]
) -> None:
    raw = job(kind, replicas)
    table = KINDS[kind]
    entries = table.variables(table.view(raw), *replica)
    found = {
        entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] if "valueFrom" in entry else entry["value"]
        for entry in entries
    }
    assert found == expected
    # PADDLE_MASTER refers to a variable before it: references only look backwards.
    names = [entry["name"] for entry in entries]
    assert "POD_IP_DUMMY" not in names or names.index("POD_IP_DUMMY") < names.index("PADDLE_MASTER")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "MPIJob"])
def test_variables_go_to_all_containers_but_those_of_tensorflow(kind: str) -> None:
    raw = job(kind, {"Master": 1, "Worker": 2} if kind not in ("TFJob", "JAXJob") else {"Worker": 2})
    table = KINDS[kind]
    spec = raw["spec"][table.specs]["Worker"]["template"]["spec"]
    spec["containers"] = [
        {"name": "side", "image": "python", "env": [{"name": "A", "value": "b"}]},
        *spec["containers"],
    ]
    side, main = render_pod(table, table.view(raw), "Worker", 1)["spec"]["containers"]
    variables = table.variables(table.view(raw), "Worker", 1)
    assert main["env"] == variables and variables
    assert side["env"] == [{"name": "A", "value": "b"}, *([] if kind == "TFJob" else variables)]


def test_tensorflow_leaves_evaluators_out_and_dynamic_workers_alone() -> None:
    raw = job("TFJob", {"Chief": 1, "Worker": 1, "Evaluator": 1})
    config = json.loads(env(raw, "Evaluator", 0)["TF_CONFIG"])
    assert config["task"] == {"type": "evaluator", "index": 0} and config["environment"] == "cloud"
    assert config["cluster"] == {"chief": ["j-chief-0.team.svc:2222"], "worker": ["j-worker-0.team.svc:2222"]}
    raw = job("TFJob", {"PS": 1, "Worker": 2}, enableDynamicWorker=True)
    sparse = {"ps": ["j-ps-0.team.svc:2222"], "worker": {"1": "j-worker-1.team.svc:2222"}}
    config = json.loads(env(raw, "Worker", 1)["TF_CONFIG"])
    assert config == {"sparseCluster": sparse, "task": {"type": "worker", "index": 1}}


def test_pods_and_services_have_the_names_and_labels_of_kubeflow() -> None:
    raw = job("PyTorchJob", {"Master": 1, "Worker": 1}, policy="ExitCode")
    table = KINDS["PyTorchJob"]
    pod, service = (make(table, table.view(raw), "Master", 0) for make in (render_pod, render_service))
    prefix = "training.kubeflow.org"
    assert pod["metadata"]["name"] == service["metadata"]["name"] == "j-master-0"
    assert pod["metadata"]["labels"] == {
        f"{prefix}/operator-name": "pytorchjob-controller",
        f"{prefix}/job-name": "j",
        f"{prefix}/replica-type": "master",
        f"{prefix}/replica-index": "0",
        f"{prefix}/job-role": "master",
    }
    assert pod["spec"]["restartPolicy"] == "Never" and service["spec"]["clusterIP"] == "None"
    assert set(service["spec"]["selector"].items()) <= set(pod["metadata"]["labels"].items())


def test_an_mpi_worker_waits_to_be_called_and_the_launcher_comes_last() -> None:
    raw = job("MPIJob", {"Launcher": 1, "Worker": 2}, slotsPerWorker=2)
    table = KINDS["MPIJob"]
    view = table.view(raw)
    assert render_config(view)["data"]["hostfile"] == "j-worker-0 slots=2\nj-worker-1 slots=2\n"
    command = render_pod(table, view, "Worker", 0)["spec"]["containers"][0]["command"]
    assert command == ["python3", "-m", "shallop_pod.rsh", "serve", "--", "true"]
    assert plan(raw, []).create == (("Worker", 0), ("Worker", 1))
    workers = [pod(raw, "Worker", index, "Running") for index in (0, 1)]
    assert plan(raw, workers).create == (("Launcher", 0),)
    done = plan(raw, [*workers, pod(raw, "Launcher", 0, "Succeeded")])
    assert types(done) == {"Created": "True", "Succeeded": "True"}


def test_containers_of_an_mpi_job_may_have_any_names() -> None:
    raw = job("MPIJob", {"Launcher": 1, "Worker": 1})
    table = KINDS["MPIJob"]
    raw["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["name"] = "w"
    assert fields(raw) == []
    (container,) = render_pod(table, table.view(raw), "Worker", 0)["spec"]["containers"]
    assert container["command"][:3] == ["python3", "-m", "shallop_pod.rsh"]


def pod(
    raw: Object, type_: str, index: int, phase: str, code: int = 0, restarts: int = 0, said: str = "last words"
) -> Object:
    table = KINDS[raw["kind"]]
    made = render_pod(table, table.view(raw), type_, index)
    state = {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z", "message": said}}
    container = {
        "name": table.container,
        "restartCount": restarts,
        "lastState": state if restarts else {},
        "state": state if phase in ("Failed", "Succeeded") else {"running": {}},
    }
    metadata = made["metadata"] | {"uid": f"{type_}{index}{phase}"}
    return made | {"metadata": metadata, "status": {"phase": phase, "containerStatuses": [container]}}


def plan(raw: Object, pods: list[Object], now: datetime = NOW) -> ClassicPlan:
    return plan_classic(KINDS[raw["kind"]], raw, pods, now)


def types(result: ClassicPlan) -> dict[str, str]:
    return {item["type"]: item["status"] for item in result.status["conditions"]}


def after(raw: Object, result: ClassicPlan) -> Object:
    return raw | {"status": json.loads(json.dumps(result.status))}


def test_a_job_is_created_runs_and_succeeds_with_its_master() -> None:
    raw = job("PyTorchJob", {"Master": 1, "Worker": 1})
    first = plan(raw, [])
    assert first.create == (("Master", 0), ("Worker", 0)) and types(first) == {"Created": "True"}
    raw = after(raw, first)
    pods = [pod(raw, "Master", 0, "Running"), pod(raw, "Worker", 0, "Running")]
    second = plan(raw, pods)
    assert types(second) == {"Created": "True", "Running": "True"} and not second.create
    assert second.status["replicaStatuses"]["Worker"]["active"] == 1
    raw = after(raw, second)
    third = plan(raw, [pod(raw, "Master", 0, "Succeeded"), pods[1]])
    assert types(third) == {"Created": "True", "Running": "False", "Succeeded": "True"}
    assert third.status["conditions"][-1]["reason"] == "PyTorchJobSucceeded" and third.status["completionTime"]


@pytest.mark.parametrize(
    ("policy", "code", "expected"),
    [("Never", 1, "Failed"), ("ExitCode", 1, "Failed"), ("ExitCode", 137, "Restarting")],
)
def test_what_a_failed_replica_does_depends_on_its_restart_policy(policy: str, code: int, expected: str) -> None:
    raw = job("TFJob", {"Worker": 2}, policy=policy)
    pods = [pod(raw, "Worker", 0, "Running"), pod(raw, "Worker", 1, "Failed", code)]
    result = plan(raw, pods)
    assert types(result)[expected] == "True"
    if expected == "Failed":
        assert "exit code 1; last lines:\nlast words" in result.status["conditions"][-1]["message"]
    else:
        assert [item["metadata"]["name"] for item in result.delete] == ["j-worker-1"]
        assert result.status["restartCount"] == 1


@pytest.mark.parametrize(
    ("code", "said", "ends"),
    [
        (1, "Traceback ...\nModuleNotFoundError: No module named 'acme'\n", True),
        (127, "sh: acme: not found", True),
        # Said on the way, but not what it ended for.
        (1, "ModuleNotFoundError: No module named 'acme'\nConnectionRefusedError: the master is not there", False),
    ],
)
def test_what_a_restart_does_not_bring_ends_a_job_that_would_restart(code: int, said: str, ends: bool) -> None:
    raw = job("PyTorchJob", {"Master": 1}, policy="OnFailure")
    result = plan(raw, [pod(raw, "Master", 0, "Running", code, restarts=1, said=said)])
    failed = find_condition({"status": result.status}, "Failed")
    assert (failed is not None and "acme" in failed["message"]) is ends


def test_too_many_restarts_end_a_job() -> None:
    raw = job("PyTorchJob", {"Worker": 1}, runPolicy={"backoffLimit": 2})
    assert "Failed" not in types(plan(raw, [pod(raw, "Worker", 0, "Running", restarts=2)]))
    assert types(plan(raw, [pod(raw, "Worker", 0, "Running", restarts=3)]))["Failed"] == "True"


def test_a_deadline_ends_a_job() -> None:
    raw = job("JAXJob", {"Worker": 1}, runPolicy={"activeDeadlineSeconds": 60})
    first = plan(raw, [])
    assert first.requeue_after_s == 60
    late = plan(after(raw, first), [], NOW + timedelta(seconds=61))
    assert types(late)["Failed"] == "True" and not late.create


def test_suspending_ends_pods_and_resuming_makes_them_again() -> None:
    raw = job("XGBoostJob", {"Master": 1}, runPolicy={"suspend": True})
    held = plan(raw, [pod(raw, "Master", 0, "Running")])
    assert len(held.delete) == 1 and types(held)["Suspended"] == "True" and held.status["startTime"] is None
    raw = after(raw, held)
    raw["spec"]["runPolicy"]["suspend"] = False
    resumed = plan(raw, [])
    assert types(resumed)["Suspended"] == "False" and resumed.create == (("Master", 0),)


@pytest.mark.parametrize(("clean", "left"), [("None", 2), ("Running", 1), ("All", 0)])
def test_pods_of_a_finished_job_go_as_its_policy_says(clean: str, left: int) -> None:
    raw = job("PyTorchJob", {"Master": 1, "Worker": 1}, runPolicy={"cleanPodPolicy": clean})
    pods = [pod(raw, "Master", 0, "Succeeded"), pod(raw, "Worker", 0, "Running")]
    finished = after(raw, plan(raw, pods))
    assert len(pods) - len(plan(finished, pods).delete) == left


def test_a_finished_job_goes_when_its_time_is_over_and_never_runs_again() -> None:
    raw = job("PyTorchJob", {"Worker": 1}, runPolicy={"ttlSecondsAfterFinished": 5})
    finished = after(raw, plan(raw, [pod(raw, "Worker", 0, "Succeeded")]))
    assert plan(finished, []).create == () and plan(finished, []).requeue_after_s == 5
    assert plan(finished, [], NOW + timedelta(seconds=6)).delete_job


def test_fewer_replicas_end_the_last_ones() -> None:
    raw = job("PyTorchJob", {"Worker": 1}, elasticPolicy={"minReplicas": 1, "maxReplicas": 3})
    result = plan(raw, [pod(raw, "Worker", index, "Running") for index in (0, 1)])
    assert [item["metadata"]["name"] for item in result.delete] == ["j-worker-1"]


def fields(raw: Object) -> list[str]:
    return [error.field for error in validate_job(KINDS[raw["kind"]], raw, None)]


def test_bad_jobs_are_refused_with_the_field() -> None:
    assert fields(job("PyTorchJob", {"Master": 2})) == ["spec.pytorchReplicaSpecs[Master].replicas"]
    assert fields(job("XGBoostJob", {"Worker": 1})) == ["spec.xgbReplicaSpecs[Master]"]
    assert fields(job("PyTorchJob", {"Foo": 1})) == ["spec.pytorchReplicaSpecs[Foo]"]
    raw = job("TFJob", {"Worker": 1}, policy="Sometimes")
    template = raw["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    template["name"], template["image"] = "main", ""
    path = "spec.tfReplicaSpecs[Worker]"
    assert fields(raw) == [
        f"{path}.template.spec.containers[0].image",
        f"{path}.template.spec.containers",
        f"{path}.restartPolicy",
    ]
    raw = job("JAXJob", {"Worker": 1}, runPolicy={"cleanPodPolicy": "Some"})
    raw["metadata"]["name"] = "9lives"
    assert fields(raw) == ["metadata.name", "spec.runPolicy.cleanPodPolicy"]


def test_replica_types_are_spelled_as_the_table_spells_them() -> None:
    assert list(job("TFJob", {"worker": 1, "ps": 1})["spec"]["tfReplicaSpecs"]) == ["Worker", "PS"]
    assert len(CLASSIC_KINDS) == 6 and isinstance(CLASSIC[0], ClassicKind)
    assert find_condition({"status": plan(job("JAXJob", {"Worker": 1}), []).status}, "Created")


def test_a_job_whose_image_stands_for_nothing_fails_at_once() -> None:
    raw = job("PyTorchJob", {"Master": 1})
    waiting = {"reason": "ErrImagePull", "message": "no local environment for image 'acme/train:7'. Map it"}
    status = {"phase": "Pending", "containerStatuses": [{"name": "pytorch", "state": {"waiting": waiting}}]}
    labels = {"training.kubeflow.org/replica-type": "master", "training.kubeflow.org/replica-index": "0"}
    pod = {"metadata": {"name": "j-master-0", "uid": "p", "labels": labels}, "spec": {}, "status": status}
    plan = plan_classic(KINDS["PyTorchJob"], raw, [pod], NOW)
    failed = find_condition({"status": plan.status}, "Failed")
    assert failed and "Pod j-master-0: no local environment for image 'acme/train:7'" in failed["message"]


def test_a_job_whose_init_container_fails_again_and_again_says_why_it_waits() -> None:
    raw = job("PyTorchJob", {"Master": 1}, policy="OnFailure", runPolicy={"backoffLimit": 3})
    ended = {"exitCode": 3, "message": "fetching\nno such bucket\n", "finishedAt": "2026-01-01T00:00:00Z"}
    looping = {"name": "fetch", "restartCount": 2, "lastState": {"terminated": ended}}
    looping["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    starting = pod(raw, "Master", 0, "Pending")
    starting["status"] |= {"initContainerStatuses": [looping], "containerStatuses": []}
    result = plan(raw, [starting])
    assert types(result) == {"Created": "True", "Restarting": "True"}
    said = result.status["conditions"][-1]["message"]
    assert "init container fetch of Pod j-master-0 ended with exit code 3; last lines:\nfetching\nno such" in said
    assert types(plan(after(raw, result), [pod(raw, "Master", 0, "Running")])) == {"Created": "True", "Running": "True"}
    ended["message"] = "ModuleNotFoundError: No module named 'acme'\n"
    missing = find_condition({"status": plan(raw, [starting]).status}, "Failed")
    assert missing and "No module named 'acme'" in missing["message"], "it would lack it again"
    ended["message"] = "no such bucket\n"
    looping["restartCount"] = 4
    failed = find_condition({"status": plan(raw, [starting]).status}, "Failed")
    assert failed and "backoff limit" in failed["message"] and "no such bucket" in failed["message"]


@pytest.mark.parametrize(
    ("kind", "replicas", "spec", "least"),
    [
        ("PyTorchJob", {"Master": 1, "Worker": 2}, {}, 3),
        ("PyTorchJob", {"Worker": 4}, {"elasticPolicy": {"minReplicas": 2}}, 2),
        ("MPIJob", {"Launcher": 1, "Worker": 2}, {}, 3),
    ],
)
def test_a_scheduling_policy_starts_replicas_together(
    kind: str, replicas: dict[str, int], spec: dict[str, Any], least: int
) -> None:
    raw = job(kind, replicas, **spec)
    table = KINDS[kind]
    assert render_classic_group(table.view(raw)) is None
    raw["spec"]["runPolicy"]["schedulingPolicy"] = {"minResources": {"cpu": "2"}, "queue": "q"}
    group = render_classic_group(table.view(raw))
    assert group is not None and group["spec"] == {"minMember": least, "minResources": {"cpu": "2"}}
    assert set(gang_types(table.view(raw))) == set(replicas)
    # All are made at once, a launcher too.
    assert len(plan(raw, []).create) == sum(replicas.values())
    raw["spec"]["runPolicy"]["schedulingPolicy"] = {"minAvailable": 1}
    group = render_classic_group(table.view(raw))
    assert group is not None and group["spec"] == {"minMember": 1}
