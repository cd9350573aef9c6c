"""Trainings as a user of kubectl sees them: upstream's manifests, crashes of the control plane."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEADLINE_S = 400.0
# Counts its runs in a file that outlives its Pod, then waits to be told to end.
COUNTING = """
import os, time
folder = os.environ["CHECKPOINT_DIR"]
with open(folder + "/runs", "a") as file:
    file.write("x")
while not os.path.exists(folder + "/end"):
    time.sleep(0.05)
"""

# Reports what may not be reported, then what may; prints the answers.
REPORTING = """
import json, os, time, urllib.error, urllib.request
own = os.environ["KUBEFLOW_TRAINER_SERVER_URL"]
with open(os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]) as file:
    token = file.read()
def send(status, url=own, token=token):
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
    try:
        body = json.dumps({"trainerStatus": status}).encode()
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
metric = {"name": "loss", "value": "0.5"}
good = {"progressPercentage": 40, "metrics": [metric], "lastUpdatedTime": "2026-01-01T00:00:00Z"}
other = own.replace("/trainjobs/reports/", "/trainjobs/other/")
print(json.dumps([
    send({**good, "progressPercentage": 140}), send({**good, "metrics": [metric] * 257}),
    send({"progressPercentage": 1}), send("half"), send(good, url=other), send(good, token="x"), send(good),
]))
"""


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        # Each look starts a kubectl, which takes a tenth of a second of a core that the training could use.
        time.sleep(0.4)
    return result


@pytest.fixture
def namespace(platform: Any, kubectl: str, request: pytest.FixtureRequest) -> Iterator[str]:
    name = "train-" + request.node.name.removeprefix("test_").replace("_", "-")[:40].strip("-")
    platform.kubectl("create", "namespace", name)
    yield name
    platform.kubectl("delete", "namespace", name, "--wait=false")


def condition(platform: Any, namespace: str, job: str, *types: str) -> dict[str, Any]:
    """Wait until one of the conditions is true; return it."""

    def found() -> dict[str, Any] | None:
        status = json.loads(platform.kubectl("-n", namespace, "get", job, "-o", "json")).get("status") or {}
        true = [item for item in status.get("conditions") or () if item["status"] == "True" and item["type"] in types]
        return true[0] if true else None

    result: dict[str, Any] = until(found, f"{job} is {' or '.join(types)}")
    return result


def train_job(name: str, runtime: str, command: list[str], nodes: int = 1, **metadata: Any) -> str:
    spec = {"runtimeRef": {"name": runtime}, "trainer": {"numNodes": nodes, "command": command}}
    kind = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"}
    return json.dumps({**kind, "metadata": {"name": name, **metadata}, "spec": spec})


@pytest.mark.timeout(600)
def test_all_examples_of_upstream_are_accepted(platform: Any, kubectl: str, shared: Path) -> None:
    """Their fates are in ``docs/training-examples.md``."""
    platform.kubectl("create", "namespace", "kubeflow", check=False)
    specs = shared / "specs" / "trainer"
    folders = [specs / "examples", specs / "legacy-v1" / "examples", specs / "manifests" / "runtimes"]
    kinds = ("kind: Kustomization", "kind: Component")
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    manifests = [file for file in files if not any(kind in file.read_text() for kind in kinds)]
    assert len(manifests) > 40
    documents = [obj for file in manifests for obj in yaml.safe_load_all(file.read_text()) if obj]
    # Jobs are judged by their runtimes, which a dry run does not keep.
    shipped = platform.kubectl("get", "clustertrainingruntimes", "-o", "name")
    runtimes = [obj for obj in documents if obj["kind"].endswith("TrainingRuntime")]
    runtimes = [obj for obj in runtimes if f"/{obj['metadata']['name']}\n" not in shipped]
    bundle = json.dumps({"apiVersion": "v1", "kind": "List", "items": runtimes})
    platform.kubectl("-n", "default", "apply", "-f", "-", stdin=bundle)
    try:
        arguments = [part for file in manifests for part in ("-f", str(file))]
        said = platform.kubectl("apply", "--dry-run=server", *arguments)
    finally:
        platform.kubectl("-n", "default", "delete", "--ignore-not-found", "-f", "-", stdin=bundle)
    assert said.count("(server dry run)") == len(documents)


@pytest.mark.timeout(600)
def test_examples_of_xgboost_and_jax_run_unchanged(platform: Any, namespace: str, shared: Path) -> None:
    folder = shared / "specs" / "trainer" / "legacy-v1" / "examples"
    # Its manifest names a namespace.
    platform.kubectl("create", "namespace", "kubeflow", check=False)
    examples = [
        ("smoke-dist/xgboostjob_v1alpha1_rabit_test", "xgboost-dist-test", "rank 0 of 3: sum of ranks 3"),
        ("xgboostjob", "xgboost-dist-iris-test-train", "trained by 3 processes; accuracy 0.9"),
    ]
    for name, _, _ in examples:
        platform.kubectl("-n", namespace, "apply", "-f", str(folder / "xgboost" / f"{name}.yaml"))
    platform.kubectl("apply", "-f", str(folder / "jax" / "cpu-demo" / "demo.yaml"))
    for _, job, word in examples:
        ended = condition(platform, namespace, f"xgboostjob/{job}", "Succeeded", "Failed")
        assert ended["reason"] == "XGBoostJobSucceeded", ended
        assert word in platform.kubectl("-n", namespace, "logs", f"{job}-master-0")
    ended = condition(platform, "kubeflow", "jaxjob/jaxjob-simple", "Succeeded", "Failed")
    assert ended["reason"] == "JAXJobSucceeded", ended
    assert "sum over all devices: 2" in platform.kubectl("-n", "kubeflow", "logs", "jaxjob-simple-worker-0")
    platform.kubectl("delete", "-f", str(folder / "jax" / "cpu-demo" / "demo.yaml"), "--wait=false")


@pytest.mark.timeout(600)
def test_a_training_that_needs_more_memory_than_it_may_have_says_so(platform: Any, namespace: str) -> None:
    job = json.loads(train_job("large", "plain", ["python3", "-c", "x = bytearray(400 << 20); print(len(x))"]))
    job["spec"]["trainer"]["resourcesPerNode"] = {"limits": {"memory": "100Mi"}}
    platform.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(job))
    ended = condition(platform, namespace, "trainjob/large", "Complete", "Failed")
    if ended["type"] == "Complete":
        events = platform.kubectl("-n", namespace, "get", "events")
        assert "MemoryLimitIgnored" in events, "the limit was neither kept nor said to be ignored"
        pytest.skip("this machine has no control groups for limits of memory")
    assert "exit code 137: out of memory; raise its memory limit" in ended["message"], ended


@pytest.mark.timeout(600)
def test_what_pods_report_of_their_progress_is_checked(platform: Any, namespace: str) -> None:
    job = train_job("reports", "plain", ["python3", "-c", REPORTING])
    platform.kubectl("-n", namespace, "apply", "-f", "-", stdin=job)
    assert condition(platform, namespace, "trainjob/reports", "Complete", "Failed")["type"] == "Complete"
    log = platform.kubectl("-n", namespace, "logs", "-l", "jobset.sigs.k8s.io/jobset-name=reports")
    assert json.loads(log) == [422, 422, 422, 400, 403, 403, 200]
    status = json.loads(platform.kubectl("-n", namespace, "get", "trainjob", "reports", "-o", "json"))["status"]
    assert status["trainerStatus"] == {
        "progressPercentage": 40,
        "metrics": [{"name": "loss", "value": "0.5"}],
        "lastUpdatedTime": "2026-01-01T00:00:00Z",
    }


@pytest.mark.timeout(600)
def test_a_training_that_starts_again_finds_its_checkpoint(platform: Any, namespace: str) -> None:
    runtime = json.loads(platform.kubectl("get", "clustertrainingruntime", "plain", "-o", "json"))
    own = {"apiVersion": runtime["apiVersion"], "kind": "TrainingRuntime", "metadata": {"name": "again"}}
    own["spec"] = runtime["spec"]
    own["spec"]["template"]["spec"]["failurePolicy"] = {"maxRestarts": 1}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept"}}
    claim["spec"] = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    program = "import os, pathlib; p = pathlib.Path(os.environ['CHECKPOINT_DIR'], 'step'); n = p.exists(); p.touch()"
    program += "; print('found' if n else 'new'); raise SystemExit(not n)"
    annotations = {"training.shallop.dev/checkpoint-claim": "kept"}
    job = json.loads(train_job("twice", "again", ["python3", "-c", program], annotations=annotations))
    job["spec"]["runtimeRef"]["kind"] = "TrainingRuntime"
    items = {"apiVersion": "v1", "kind": "List", "items": [own, claim, job]}
    platform.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(items))
    ended = condition(platform, namespace, "trainjob/twice", "Complete", "Failed")
    assert ended["type"] == "Complete", ended
    jobset = json.loads(platform.kubectl("-n", namespace, "get", "jobset", "twice", "-o", "json"))
    assert jobset["status"]["restarts"] == 1
    log = platform.kubectl("-n", namespace, "logs", "-l", "jobset.sigs.k8s.io/jobset-name=twice")
    assert log.split() == ["found"]


@pytest.mark.timeout(600)
def test_an_example_of_upstream_runs_unchanged(platform: Any, namespace: str, shared: Path) -> None:
    folder = shared / "specs" / "trainer" / "legacy-v1" / "examples" / "pytorch"
    platform.kubectl("-n", namespace, "apply", "-f", str(folder / "smoke-dist" / "pytorch_job_sendrecv.yaml"))
    # An image that nobody knows: the job fails at once, and says what to do.
    platform.kubectl("-n", namespace, "apply", "-f", str(folder / "cpu-demo" / "demo.yaml"))
    job = "pytorchjob/pytorch-dist-basic-sendrecv"
    assert condition(platform, namespace, job, "Succeeded", "Failed")["reason"] == "PyTorchJobSucceeded"
    log = platform.kubectl("-n", namespace, "logs", "pytorch-dist-basic-sendrecv-master-0")
    assert [line.rpartition(" ")[2] for line in log.splitlines() if "received" in line] == ["1", "2", "3"]

    unknown = condition(platform, namespace, "pytorchjob/torchrun-cpu", "Succeeded", "Failed")
    assert unknown["type"] == "Failed" and "no local environment for image" in unknown["message"]


@pytest.mark.timeout(600)
def test_examples_of_the_trainer_run_unchanged(platform: Any, namespace: str, shared: Path) -> None:
    """Of the others one needs the internet and those of Flux its images; Katib's train in images of its own."""
    folder = shared / "specs" / "trainer" / "examples" / "yaml"
    for name in ("01-multi-node", "03-kueue-integration", "04-volcano-integration"):
        platform.kubectl("-n", namespace, "apply", "-f", str(folder / f"{name}.yaml"))
    # Nobody admits it here.
    assert condition(platform, namespace, "trainjob/kueue-example", "Suspended")["reason"] == "Suspended"
    for job, nodes in (("multi-node-example", 3), ("volcano-example", 4)):
        ended = condition(platform, namespace, f"trainjob/{job}", "Complete", "Failed")
        assert ended["type"] == "Complete", ended
        selector = f"jobset.sigs.k8s.io/jobset-name={job}"
        pods = json.loads(platform.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json"))["items"]
        assert [pod["status"]["phase"] for pod in pods] == ["Succeeded"] * nodes
    log = platform.kubectl(
        "-n", namespace, "logs", "--tail=-1", "-l", "jobset.sigs.k8s.io/jobset-name=multi-node-example"
    )
    assert log.count("WORLD_SIZE: 3") == 3
    groups = platform.kubectl("-n", namespace, "get", "podgroups.scheduling.volcano.sh", "-o", "json")
    (group,) = json.loads(groups)["items"]
    assert group["spec"]["minMember"] == 4 and group["metadata"]["name"] == "volcano-example"
    platform.kubectl("delete", "clustertrainingruntime", "torch-distributed-volcano")


@pytest.mark.timeout(600)
def test_a_killed_control_plane_neither_loses_nor_repeats_a_training(own_platform: Any, kubectl: str) -> None:
    platform = own_platform
    platform.up()
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "kept"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(claim))
    annotations = {"training.shallop.dev/checkpoint-claim": "kept"}
    job = train_job("long", "plain", ["python3", "-c", COUNTING], annotations=annotations)
    platform.kubectl("apply", "-f", "-", stdin=job)
    folder = platform.home / "volumes" / "default" / "kept" / "long"
    until(lambda: (folder / "runs").exists(), "the training runs")
    platform.kill()
    (folder / "end").touch()
    platform.up()
    assert condition(platform, "default", "trainjob/long", "Complete", "Failed")["type"] == "Complete"
    assert (folder / "runs").read_text() == "x"
    platform.kubectl("delete", "jobset/long")
    platform.kill()
    platform.up()
    # What another TrainJob needs is done after the restart, so the first one has been looked at as well.
    platform.kubectl("apply", "-f", "-", stdin=train_job("next", "plain", ["true"]))
    condition(platform, "default", "trainjob/next", "Complete")
    assert (folder / "runs").read_text() == "x" and platform.kubectl("get", "jobset", "-o", "name").split() == [
        "jobset.jobset.x-k8s.io/next"
    ]
