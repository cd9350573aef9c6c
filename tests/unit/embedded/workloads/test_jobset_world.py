"""JobSets on the real API server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shallop.errors import InvalidError
from shallop.kube.objects import find_condition, is_condition_true

Object = dict[str, Any]
Behaviours = dict[str, Callable[..., dict[str, Any]]]
PREFIX = "jobset.sigs.k8s.io/"


def rjob(name: str = "node", replicas: int = 1, pods: int = 1, **more: Any) -> Object:
    pod_spec = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "app:1"}]}
    job_spec = {"parallelism": pods, "completions": pods, "backoffLimit": 0, "template": {"spec": pod_spec}}
    return {"name": name, "replicas": replicas, "template": {"spec": job_spec}, **more}


async def condition(world: Any, type_: str, name: str = "s") -> Object:
    async def true() -> Object | None:
        obj: Object = await world.get("JobSet", name)
        return obj if is_condition_true(obj, type_) else None

    result: Object = await world.eventually(true)
    return result


def of_job(pods: Behaviours, code: int, *names: str) -> Callable[[Object], Object]:
    """Pods of the replicated Jobs ``names`` end with ``code``, others run for ever."""

    def behave(pod: Object) -> Object:
        ends = pod["metadata"]["labels"].get(f"{PREFIX}replicatedjob-name") in names
        return pods["end"](pod, code) if ends else pods["run"](pod)

    return behave


def test_a_jobset_completes(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = pods_that["end"]
        spec = {"replicatedJobs": [rjob("driver"), rjob("node", replicas=2, pods=2)]}
        await world.create("JobSet", "s", spec=spec)
        done = await condition(world, "Completed")
        assert done["status"]["terminalState"] == "Completed"
        assert find_condition(done, "Completed")["reason"] == "AllJobsCompleted"
        counts = {count["name"]: count["succeeded"] for count in done["status"]["replicatedJobsStatus"]}
        assert counts == {"driver": 1, "node": 2}
        jobs = await world.list("Job")
        assert [job["metadata"]["name"] for job in jobs] == ["s-driver-0", "s-node-0", "s-node-1"]
        labels = jobs[2]["metadata"]["labels"]
        expected = {
            "jobset-name": "s",
            "jobset-uid": done["metadata"]["uid"],
            "replicatedjob-name": "node",
            "replicatedjob-replicas": "2",
            "global-replicas": "3",
            "job-index": "1",
            "job-global-index": "2",
            "job-group-index": "2",
            "group-name": "default",
            "group-replicas": "3",
            "restart-attempt": "0",
        }
        assert {key: labels[f"{PREFIX}{key}"] for key in expected} == expected
        pods = await world.list("Pod", f"{PREFIX}job-index=1")
        assert {pod["spec"]["subdomain"] for pod in pods} == {"s"}
        assert {pod["spec"]["hostname"] for pod in pods} == {"s-node-1-0", "s-node-1-1"}
        assert all(pod["metadata"]["annotations"][f"{PREFIX}job-key"] == labels[f"{PREFIX}job-key"] for pod in pods)
        service = await world.get("Service", "s")
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["selector"] == {f"{PREFIX}jobset-name": "s"}
        assert service["spec"]["publishNotReadyAddresses"] is True

    run(scenario)


def test_a_failed_job_fails_the_jobset_and_ends_the_others(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = of_job(pods_that, 1, "bad")
        await world.create("JobSet", "s", spec={"replicatedJobs": [rjob("good"), rjob("bad")]})
        failed = await condition(world, "Failed")
        message = find_condition(failed, "Failed")["message"]
        assert message == "jobset failed due to one or more job failures (first failed job: s-bad-0)"
        await world.gone("Job", "s-good-0")
        assert await world.get("Job", "s-bad-0")

    run(scenario)


@pytest.mark.parametrize("late", [None, 3])
def test_a_jobset_restarts_as_a_whole_until_its_limit(
    run: Callable[..., None], pods_that: Behaviours, late: int | None
) -> None:
    async def scenario(world: Any) -> None:
        world.behave = of_job(pods_that, 1, "bad")
        spec = {"failurePolicy": {"maxRestarts": 2}, "replicatedJobs": [rjob("good"), rjob("bad")]}
        await world.create("JobSet", "s", spec=spec)
        failed = await condition(world, "Failed")
        assert failed["status"]["restarts"] == 2
        assert failed["status"]["restartsCountTowardsMax"] == 2
        assert find_condition(failed, "Failed")["reason"] == "ReachedMaxRestarts"
        job = await world.get("Job", "s-bad-0")
        assert job["metadata"]["labels"][f"{PREFIX}restart-attempt"] == "2"

    run(scenario, late)


def test_a_rule_of_the_failure_policy_decides(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = of_job(pods_that, 1, "bad")
        rules = [
            {"action": "FailJobSet", "targetReplicatedJobs": ["good"]},
            {"action": "FailJobSet", "onJobFailureReasons": ["BackoffLimitExceeded"], "name": "limit"},
        ]
        policy = {"maxRestarts": 5, "rules": rules}
        await world.create("JobSet", "s", spec={"failurePolicy": policy, "replicatedJobs": [rjob("good"), rjob("bad")]})
        failed = await condition(world, "Failed")
        assert find_condition(failed, "Failed")["reason"] == "FailJobSetFailurePolicyAction"
        assert failed["status"]["restarts"] == 0
        assert failed["spec"]["failurePolicy"]["rules"][0]["name"] == "failurePolicyRule0"

    run(scenario)


def test_jobs_start_when_those_they_depend_on_are_complete(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        depends = [{"name": "init", "status": "Complete"}]
        spec = {"replicatedJobs": [rjob("init"), rjob("node", dependsOn=depends)]}
        await world.create("JobSet", "s", spec=spec)

        async def ready() -> bool:
            status = (await world.get("JobSet", "s")).get("status") or {"replicatedJobsStatus": [{"ready": 0}]}
            return status["replicatedJobsStatus"][0]["ready"] == 1

        await world.eventually(ready)
        assert [job["metadata"]["name"] for job in await world.list("Job")] == ["s-init-0"]
        world.behave = pods_that["end"]
        (pod,) = await world.list("Pod")
        await world.set_status(pod, **pods_that["end"](pod))
        await condition(world, "Completed")

    run(scenario)


def test_in_order_startup_waits_for_ready_jobs(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = lambda pod: None
        spec = {
            "startupPolicy": {"startupPolicyOrder": "InOrder"},
            "replicatedJobs": [rjob("first"), rjob("second")],
        }
        await world.create("JobSet", "s", spec=spec)
        await condition(world, "StartupPolicyInProgress")

        async def first_pod() -> Object | None:
            return next(iter(await world.list("Pod")), None)

        pod = await world.eventually(first_pod)
        assert [job["metadata"]["name"] for job in await world.list("Job")] == ["s-first-0"]
        world.behave = pods_that["run"]
        await world.set_status(pod, **pods_that["run"](pod))
        done = await condition(world, "StartupPolicyCompleted")
        assert find_condition(done, "StartupPolicyInProgress")["status"] == "False"
        assert len(await world.list("Job")) == 2

    run(scenario)


def test_suspend_and_resume(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("JobSet", "s", spec={"suspend": True, "replicatedJobs": [rjob(pods=2)]})
        await condition(world, "Suspended")

        async def job_suspended() -> Object | None:
            job: Object = await world.get("Job", "s-node-0")
            return job if job["spec"]["suspend"] else None

        await world.eventually(job_suspended)
        template = {"metadata": {"labels": {"queue": "a"}}, "spec": {"nodeSelector": {}}}
        rjobs = (await world.get("JobSet", "s"))["spec"]["replicatedJobs"]
        changed = rjobs[0]["template"]["spec"]["template"]
        changed["metadata"] = template["metadata"]
        await world.patch("JobSet", "s", {"spec": {"suspend": False, "replicatedJobs": rjobs}})

        async def pods() -> bool:
            return len(await world.list("Pod", "queue=a")) == 2

        await world.eventually(pods)
        assert find_condition(await world.get("JobSet", "s"), "Suspended")["reason"] == "ResumeJobs"
        await world.patch("JobSet", "s", {"spec": {"suspend": True}})

        async def no_pods() -> bool:
            return not await world.list("Pod")

        await world.eventually(no_pods)

    run(scenario)


def test_any_of_the_targets_is_enough(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = of_job(pods_that, 0, "leader")
        spec = {
            "successPolicy": {"operator": "Any", "targetReplicatedJobs": ["leader"]},
            "replicatedJobs": [rjob("leader"), rjob("worker", replicas=2)],
            "ttlSecondsAfterFinished": 0,
        }
        await world.create("JobSet", "s", spec=spec)
        await world.gone("JobSet", "s")

        async def nothing() -> bool:
            return not (await world.list("Job") + await world.list("Pod"))

        await world.eventually(nothing)

    run(scenario)


def test_claims_are_mounted_where_a_container_names_them(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        job = rjob()
        container = job["template"]["spec"]["template"]["spec"]["containers"][0]
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        policy = {"templates": [{"metadata": {"name": "data"}, "spec": claim}]}
        await world.create("JobSet", "s", spec={"volumeClaimPolicies": [policy], "replicatedJobs": [job]})
        pod = await world.eventually(lambda: first(world, "Pod"))
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "data-s"}} in pod["spec"]["volumes"]
        await world.delete("JobSet", "s")
        await world.gone("PersistentVolumeClaim", "data-s")

    run(scenario)


async def first(world: Any, kind: str) -> Object | None:
    return next(iter(await world.list(kind)), None)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"replicatedJobs": [rjob("a" * 60)]}, "spec.replicatedJobs[0].name"),
        ({"replicatedJobs": [rjob("A")]}, "spec.replicatedJobs[0].name"),
        ({"replicatedJobs": [rjob("a", dependsOn=[{"name": "a", "status": "Ready"}])]}, "dependsOn[0].name"),
        (
            {"replicatedJobs": [rjob()], "successPolicy": {"operator": "All", "targetReplicatedJobs": ["x"]}},
            "spec.successPolicy.targetReplicatedJobs[0]",
        ),
        ({"replicatedJobs": [rjob()], "managedBy": "me"}, "spec.managedBy"),
        ({"replicatedJobs": [rjob()], "coordinator": {"replicatedJob": "node", "podIndex": 1}}, "coordinator.podIndex"),
        (
            {"replicatedJobs": [rjob()], "failurePolicy": {"rules": [{"action": "RestartJob"}]}},
            "spec.failurePolicy.rules[0].action",
        ),
        ({"replicatedJobs": [rjob()], "network": {"subdomain": "A.b"}}, "spec.network.subdomain"),
    ],
)
def test_what_cannot_work_is_refused_with_its_path(run: Callable[..., None], spec: Object, field: str) -> None:
    async def scenario(world: Any) -> None:
        with pytest.raises(InvalidError) as refused:
            await world.create("JobSet", "s", spec=spec)
        assert field in str(refused.value)

    run(scenario)


def test_a_running_jobset_keeps_its_templates(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("JobSet", "s", spec={"replicatedJobs": [rjob()]})
        with pytest.raises(InvalidError):
            await world.patch("JobSet", "s", {"spec": {"replicatedJobs": [rjob(pods=2)]}})

    run(scenario)
