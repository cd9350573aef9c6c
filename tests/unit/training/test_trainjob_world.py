"""TrainJobs and classic jobs with the real API server and the real controllers of Jobs and JobSets; no processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shallop.controller.manager import Manager
from shallop.embedded.apiserver import ApiServer
from shallop.embedded.workloads.job import JOB, Jobs
from shallop.embedded.workloads.jobset import JOBSET
from shallop.embedded.workloads.podgroup import POD_GROUPS
from shallop.errors import ConflictError, InvalidError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, find_condition, format_time, is_condition_true, is_deleting
from shallop.settings import Settings
from shallop.store.database import Database
from shallop.training import PART
from shallop.training.trainjob import check_runtime

pytestmark = pytest.mark.anyio
TRAIN_JOB = Gvk("trainer.kubeflow.org/v1alpha1", "TrainJob")
JOB_SET, POD, EVENT = Gvk("jobset.x-k8s.io/v1alpha2", "JobSet"), Gvk("v1", "Pod"), Gvk("v1", "Event")
DEADLINE_S = 15.0


@dataclass
class World:
    client: Client

    async def until(self, gvk: Gvk, name: str, holds: Callable[[Object], Any]) -> Object:
        """Wait until an object exists and ``holds``."""
        found: Object | None = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    with suppress(NotFoundError):
                        found = await self.client.get(gvk, name, "default")
                        if holds(found):
                            return found
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{gvk.kind} {name} did not get there: {found}") from None

    async def pods(self, count: int) -> list[Object]:
        """Wait for so many Pods that are not on their way out."""
        pods: list[Object] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    pods = [pod for pod in (await self.client.list(POD, "default")).items if not is_deleting(pod)]
                    if len(pods) == count:
                        return pods
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{len(pods)} Pods instead of {count}") from None

    async def set_phase(self, pods: list[Object], phase: str, **container: Any) -> None:
        for pod in pods:
            name = pod["spec"]["containers"][0]["name"]
            status = {"name": name, "image": "i", "imageID": "", "ready": phase == "Running", "restartCount": 0}
            ready = "True" if phase == "Running" else "False"
            condition = {"type": "Ready", "status": ready, "lastTransitionTime": format_time(datetime.now(UTC))}
            await self.client.patch_status(
                pod, {"phase": phase, "conditions": [condition], "containerStatuses": [{**status, **container}]}
            )

    async def kubelet(self) -> None:
        """Let deleted Pods go."""
        listing = await self.client.list(POD)
        async for event in self.client.watch(POD, resource_version=listing.resource_version):
            if event.type in ("ADDED", "MODIFIED") and is_deleting(event.object):
                metadata = event.object["metadata"]
                with suppress(NotFoundError, ConflictError):
                    await self.client.delete(POD, metadata["name"], metadata["namespace"], grace_period_s=0)

    async def event(self, reason: str) -> Object:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for event in (await self.client.list(EVENT, "default")).items:
                    if event["reason"] == reason:
                        return event
                await asyncio.sleep(0.005)


@asynccontextmanager
async def world(home: Path) -> AsyncIterator[World]:
    server = ApiServer(None, admin_token="token")
    database = Database(f"sqlite:///{home}/rows.db")
    await server.start()
    jobs = Jobs()
    kinds = [*PART.kinds, *POD_GROUPS, JOBSET, replace(JOB, reconcile=jobs.reconcile, on_gone=jobs.on_gone)]
    await server.register_kinds([kind for kind in kinds if kind.schema is not None])
    client = server.client()
    for obj in PART.objects:
        await client.apply(obj)
    manager = Manager(client, Settings(home=home), database, kinds)
    started = asyncio.Event()
    here = World(client)
    tasks = [asyncio.create_task(manager.run(started)), asyncio.create_task(here.kubelet())]
    try:
        await started.wait()
        yield here
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await manager.events.flush()
        await server.stop()
        database.close()


def train_job(name: str = "t", runtime: str = "plain", **spec: Any) -> Object:
    trainer = {"numNodes": 2, "command": ["true"]}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"runtimeRef": {"name": runtime}, "trainer": trainer, **spec},
    }


def counts(job: Object) -> dict[str, int]:
    (status,) = (job.get("status") or {}).get("jobsStatus") or [{}]
    return {name: value for name, value in status.items() if name != "name" and value}


async def test_a_job_runs_completes_and_never_runs_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.client.create(train_job())
        pods = await here.pods(2)
        assert sorted(pod["spec"]["hostname"] for pod in pods) == ["t-node-0-0", "t-node-0-1"]
        await here.set_phase(pods, "Running")
        job = await here.until(TRAIN_JOB, "t", lambda job: counts(job).get("ready") == 1)
        assert not job["status"].get("conditions")
        await here.set_phase(pods, "Succeeded", state={"terminated": {"exitCode": 0}})
        job = await here.until(TRAIN_JOB, "t", lambda job: is_condition_true(job, "Complete"))
        await here.until(TRAIN_JOB, "t", lambda job: counts(job) == {"succeeded": 1})
        assert [item["type"] for item in job["status"]["conditions"]] == ["Complete"]
        assert (find_condition(job, "Complete") or {})["reason"] == "AllJobsCompleted"
        await here.client.delete(JOB_SET, "t", "default")
        await here.event("TrainJobComplete")
        with pytest.raises(NotFoundError):
            await here.client.get(JOB_SET, "t", "default")


async def test_a_changed_runtime_does_not_change_a_job(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.client.create(train_job(suspend=True))
        await here.until(TRAIN_JOB, "t", lambda job: is_condition_true(job, "Suspended"))
        gvk = Gvk("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime")
        change = [{"op": "add", "path": "/spec/template/spec/replicatedJobs/0/template/spec/backoffLimit", "value": 9}]
        await here.client.patch(gvk, "plain", "", change, patch_type="json")
        await here.client.patch(TRAIN_JOB, "t", "default", {"spec": {"suspend": False}})
        await here.pods(2)
        jobset = await here.client.get(JOB_SET, "t", "default")
        assert jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] == 0
        job = await here.client.get(TRAIN_JOB, "t", "default")
        assert (find_condition(job, "Suspended") or {})["reason"] == "Resumed"


async def test_suspending_ends_pods_and_resuming_makes_them_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.client.create(train_job())
        await here.pods(2)
        await here.client.patch(TRAIN_JOB, "t", "default", {"spec": {"suspend": True}})
        await here.pods(0)
        await here.until(TRAIN_JOB, "t", lambda job: is_condition_true(job, "Suspended"))
        await here.client.patch(TRAIN_JOB, "t", "default", {"spec": {"suspend": False}})
        await here.pods(2)
        await here.until(TRAIN_JOB, "t", lambda job: (find_condition(job, "Suspended") or {})["status"] == "False")


async def test_a_deadline_ends_a_job(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.client.create(train_job(activeDeadlineSeconds=1))
        job = await here.until(TRAIN_JOB, "t", lambda job: is_condition_true(job, "Failed"))
        assert (find_condition(job, "Failed") or {})["reason"] == "DeadlineExceeded"


async def test_a_failed_process_is_explained_in_the_condition(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.client.create(train_job())
        pods = await here.pods(2)
        ended = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:00:00Z", "message": "allocating"}
        await here.set_phase(pods[:1], "Failed", state={"terminated": ended})
        job = await here.until(TRAIN_JOB, "t", lambda job: is_condition_true(job, "Failed"))
        message = (find_condition(job, "Failed") or {})["message"]
        assert "exit code 137: out of memory" in message and "allocating" in message
        assert "exit code 137" in (await here.event("TrainingProcessFailed"))["message"]


async def test_jobs_that_ask_for_it_have_a_group_before_they_have_pods(tmp_path: Path) -> None:
    group, mark = Gvk("scheduling.x-k8s.io/v1alpha1", "PodGroup"), "scheduling.x-k8s.io/pod-group"
    async with world(tmp_path) as here:
        gvk = Gvk("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime")
        await here.client.patch(gvk, "plain", "", {"spec": {"podGroupPolicy": {"coscheduling": {}}}})
        await here.client.create(train_job())
        pods = await here.pods(2)
        found = await here.client.get(group, "t", "default")
        assert found["spec"]["minMember"] == 2 and found["metadata"]["ownerReferences"][0]["kind"] == "TrainJob"
        assert [pod["metadata"]["labels"][mark] for pod in pods] == ["t", "t"]
        main = {"name": "jax", "image": "python", "command": ["true"]}
        replicas = {"Worker": {"replicas": 3, "template": {"spec": {"containers": [main]}}}}
        spec = {"jaxReplicaSpecs": replicas, "runPolicy": {"schedulingPolicy": {"minAvailable": 2}}}
        metadata = {"name": "c", "namespace": "default"}
        await here.client.create(
            {"apiVersion": "kubeflow.org/v1", "kind": "JAXJob", "metadata": metadata, "spec": spec}
        )
        pods = await here.pods(5)
        assert (await here.client.get(group, "c", "default"))["spec"]["minMember"] == 2
        assert sum(pod["metadata"]["labels"][mark] == "c" for pod in pods) == 3


async def test_an_unknown_image_ends_a_job_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.client.create(train_job())
        pods = await here.pods(2)
        waiting = {"reason": "ErrImagePull", "message": "no local environment for image 'acme/train'; map it"}
        await here.set_phase(pods[:1], "Pending", state={"waiting": waiting})
        job = await here.until(TRAIN_JOB, "t", lambda job: is_condition_true(job, "Failed"))
        condition = find_condition(job, "Failed") or {}
        assert condition["reason"] == "ImageNotAvailable" and "acme/train" in condition["message"]


async def test_a_job_is_told_that_its_runtime_is_deprecated(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        gvk = Gvk("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime")
        labels = {"trainer.kubeflow.org/support": "deprecated"}
        await here.client.patch(gvk, "plain", "", {"metadata": {"labels": labels}})
        await here.client.create(train_job())
        assert "plain is deprecated" in (await here.event("RuntimeDeprecated"))["message"]
        await here.pods(2)


async def test_a_job_of_another_controller_is_left_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.client.create(train_job("theirs", managedBy="kueue.x-k8s.io/multikueue"))
        await here.client.create(train_job("ours"))
        await here.pods(2)
        with pytest.raises(NotFoundError):
            await here.client.get(JOB_SET, "theirs", "default")


def with_initializer(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a runtime's spec with a step that brings a data set."""
    pod = {"containers": [{"name": "dataset-initializer", "image": "i"}]}
    step = {"name": "dataset-initializer", "template": {"spec": {"template": {"spec": pod}}}}
    template = spec["template"]["spec"]
    return {**spec, "template": {"spec": {**template, "replicatedJobs": [step, *template["replicatedJobs"]]}}}


async def test_bad_jobs_are_refused_with_the_field(tmp_path: Path) -> None:
    async with world(tmp_path) as here:

        async def refused(job: Object) -> list[str]:
            with pytest.raises(InvalidError) as caught:
                await here.client.create(await check_runtime(here.client, job))
            return [cause["field"] for cause in (caught.value.details or {})["causes"]]

        assert await refused(train_job(runtime="none")) == ["spec.runtimeRef"]
        assert await refused(train_job(trainer={"numProcPerNode": 0})) == ["spec.trainer.numProcPerNode"]
        assert await refused(train_job(managedBy="me")) == ["spec.managedBy"]
        assert (await refused(train_job(runtimeRef={})))[0] == "spec.runtimeRef.name"
        initializer = {"dataset": {"storageUri": "nowhere"}}
        runtime = PART.objects[-1]
        with_step = {**runtime, "metadata": {"name": "stepped"}, "spec": with_initializer(runtime["spec"])}
        await here.client.create(with_step)
        job = train_job(runtime="stepped", initializer=initializer)
        assert await refused(job) == ["spec.initializer.dataset.storageUri"]
        await here.client.create(train_job(suspend=True))
        with pytest.raises(InvalidError) as caught:
            await here.client.patch(TRAIN_JOB, "t", "default", {"spec": {"trainer": {"numNodes": 3}}})
        assert "spec.trainer" in caught.value.message and "immutable" in caught.value.message
        unknown = train_job("odd", runtimeRef={"name": "x", "kind": "Recipe"})
        await here.client.create(await check_runtime(here.client, unknown))
        job = await here.until(TRAIN_JOB, "odd", lambda job: is_condition_true(job, "Failed"))
        assert (find_condition(job, "Failed") or {})["reason"] == "TrainingRuntimeNotSupported"


async def test_mpi_jobs_get_keys_and_hosts(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.client.create(train_job(runtime="mpi-distributed"))
        secret = await here.until(Gvk("v1", "Secret"), "t-mpi-ssh-auth", lambda _: True)
        hosts = await here.until(Gvk("v1", "ConfigMap"), "t-mpi-hostfile", lambda _: True)
        assert hosts["data"]["hostfile"] == "t-launcher-0-0.t slots=1\nt-node-0-0.t slots=1\n"
        (worker,) = await here.pods(1)
        await here.set_phase([worker], "Running")
        await here.pods(2)
        assert (await here.client.get(Gvk("v1", "Secret"), "t-mpi-ssh-auth", "default"))["data"] == secret["data"]


async def test_a_classic_job_makes_pods_and_services_and_cleans_up(tmp_path: Path) -> None:
    container = {"name": "pytorch", "image": "python", "command": ["true"]}
    replica = {"template": {"spec": {"containers": [container]}}}
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "All"},
            "pytorchReplicaSpecs": {"master": replica, "Worker": {"replicas": 2, **replica}},
        },
    }
    gvk = Gvk("kubeflow.org/v1", "PyTorchJob")
    async with world(tmp_path) as here:
        await here.client.create(job)
        pods = await here.pods(3)
        services = (await here.client.list(Gvk("v1", "Service"), "default")).items
        names = {"p-master-0", "p-worker-0", "p-worker-1"}
        assert {pod["metadata"]["name"] for pod in pods} == names
        assert names <= {service["metadata"]["name"] for service in services}
        await here.set_phase(pods, "Running")
        await here.until(gvk, "p", lambda job: is_condition_true(job, "Running"))
        master = next(pod for pod in pods if pod["metadata"]["name"] == "p-master-0")
        await here.set_phase([master], "Succeeded", state={"terminated": {"exitCode": 0}})
        done = await here.until(gvk, "p", lambda job: is_condition_true(job, "Succeeded"))
        assert done["status"]["replicaStatuses"]["Master"]["succeeded"] == 1
        await here.pods(0)
