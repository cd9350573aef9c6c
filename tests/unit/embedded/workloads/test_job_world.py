"""Jobs on the real API server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from shallop.kube.objects import find_condition, format_time, is_condition_true, is_deleting

Object = dict[str, Any]
Behaviours = dict[str, Callable[..., dict[str, Any]]]


def job(**spec: Any) -> Object:
    pod_spec = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "app:1"}]}
    return {"template": {"spec": pod_spec}, **spec}


async def condition(world: Any, type_: str, name: str = "j") -> Object:
    async def true() -> Object | None:
        obj: Object = await world.get("Job", name)
        return obj if is_condition_true(obj, type_) else None

    result: Object = await world.eventually(true)
    return result


async def released(world: Any) -> bool:
    return not any(pod["metadata"].get("finalizers") for pod in await world.list("Pod", "job-name=j"))


def test_a_job_completes_and_counts_every_pod(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = pods_that["end"]
        await world.create("Job", "j", spec=job(completions=5, parallelism=2))
        status = (await condition(world, "Complete"))["status"]
        assert status["succeeded"] == 5
        assert status["uncountedTerminatedPods"] == {}
        assert "completionTime" in status
        pods = await world.list("Pod", "job-name=j")
        assert len(pods) == 5
        await world.eventually(lambda: released(world))

    run(scenario)


def test_an_indexed_job_runs_every_index_once(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = pods_that["end"]
        await world.create("Job", "j", spec=job(completions=4, parallelism=3, completionMode="Indexed"))
        done = await condition(world, "Complete")
        assert done["status"]["completedIndexes"] == "0-3"
        pods = await world.list("Pod", "job-name=j")
        key = "batch.kubernetes.io/job-completion-index"
        assert sorted(pod["metadata"]["labels"][key] for pod in pods) == ["0", "1", "2", "3"]
        assert all(pod["metadata"]["name"].startswith(pod["spec"]["hostname"] + "-") for pod in pods)

    run(scenario)


def test_a_job_fails_at_its_limit(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = lambda pod: pods_that["end"](pod, 3)
        await world.create("Job", "j", spec=job(backoffLimit=0))
        failed = await condition(world, "Failed")
        assert failed["status"]["failed"] == 1
        assert find_condition(failed, "FailureTarget")["reason"] == "BackoffLimitExceeded"
        assert len(await world.list("Pod", "job-name=j")) == 1

    run(scenario)


def test_a_pod_that_somebody_deletes_is_replaced(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Job", "j", spec=job())

        async def running_pod() -> Object | None:
            pods = await world.list("Pod", "job-name=j")
            return next((pod for pod in pods if pod["status"]["phase"] == "Running"), None)

        pod = await world.eventually(running_pod)
        await world.delete("Pod", pod["metadata"]["name"])
        await world.gone("Pod", pod["metadata"]["name"])

        async def counted() -> bool:
            return (await world.get("Job", "j"))["status"].get("failed") == 1

        await world.eventually(counted)

    run(scenario)


def test_suspend_ends_pods_without_counting_them(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Job", "j", spec=job(parallelism=2, completions=2))

        async def count(number: int) -> bool:
            pods = await world.list("Pod", "job-name=j")
            return len(pods) == number and all(not is_deleting(pod) for pod in pods)

        await world.eventually(lambda: count(2))
        await world.patch("Job", "j", {"spec": {"suspend": True}})
        suspended = await condition(world, "Suspended")
        assert "startTime" not in suspended["status"]
        await world.eventually(lambda: count(0))
        await world.patch("Job", "j", {"spec": {"suspend": False}})
        await world.eventually(lambda: count(2))
        assert "failed" not in (await world.get("Job", "j"))["status"]

    run(scenario)


def test_the_deadline_ends_a_running_job(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Job", "j", spec=job(activeDeadlineSeconds=1))
        failed = await condition(world, "Failed")
        assert find_condition(failed, "Failed")["reason"] == "DeadlineExceeded"

        async def no_pods() -> bool:
            return not await world.list("Pod", "job-name=j")

        await world.eventually(no_pods)

    run(scenario)


def test_a_finished_job_goes_after_its_time_to_live(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = pods_that["end"]
        await world.create("Job", "j", spec=job(ttlSecondsAfterFinished=0))
        await world.gone("Job", "j")

        async def no_pods() -> bool:
            return not await world.list("Pod", "job-name=j")

        await world.eventually(no_pods)

    run(scenario)


def test_a_deleted_job_lets_its_pods_go(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        for number, propagation in enumerate(("Background", "Foreground", "Orphan")):
            name = f"j{number}"
            await world.create("Job", name, spec=job())

            async def alive(name: str = name) -> list[Object]:
                pods: list[Object] = await world.list("Pod", f"job-name={name}")
                return [pod for pod in pods if pod["status"]["phase"] == "Running"]

            (pod,) = await world.eventually(alive)
            await world.delete("Job", name, propagation=propagation)
            await world.gone("Job", name)
            if propagation == "Orphan":

                async def free(pod: Object = pod) -> bool:
                    metadata = (await world.get("Pod", pod["metadata"]["name"]))["metadata"]
                    return not metadata.get("finalizers") and not metadata.get("ownerReferences")

                await world.eventually(free)
            else:
                await world.gone("Pod", pod["metadata"]["name"])

    run(scenario)


def test_pods_restart_in_place_until_the_limit(run: Callable[..., None], pods_that: Behaviours) -> None:
    def crashing(pod: Object) -> dict[str, Any]:
        now = format_time(datetime.now(UTC))
        state = {"running": {"startedAt": now}}
        status = {"name": "a", "image": "i", "imageID": "", "ready": False, "restartCount": 3, "state": state}
        return {"phase": "Running", "containerStatuses": [status]}

    async def scenario(world: Any) -> None:
        world.behave = crashing
        pod_spec = {"restartPolicy": "OnFailure", "containers": [{"name": "a", "image": "app:1"}]}
        await world.create("Job", "j", spec={"backoffLimit": 3, "template": {"spec": pod_spec}})
        failed = await condition(world, "Failed")
        assert find_condition(failed, "Failed")["reason"] == "BackoffLimitExceeded"

    run(scenario)


def test_one_bad_index_does_not_stop_the_others(run: Callable[..., None], pods_that: Behaviours) -> None:
    def behave(pod: Object) -> Object:
        index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
        return pods_that["end"](pod, 1 if index == "1" else 0)

    async def scenario(world: Any) -> None:
        world.behave = behave
        spec = job(completions=3, parallelism=1, completionMode="Indexed", backoffLimitPerIndex=0)
        await world.create("Job", "j", spec=spec)
        failed = await condition(world, "Failed")
        assert find_condition(failed, "Failed")["reason"] == "FailedIndexes"
        status = failed["status"]
        assert (status["completedIndexes"], status["failedIndexes"]) == ("0,2", "1")
        assert (status["succeeded"], status["failed"]) == (2, 1)

        async def let_go() -> bool:
            return not any(pod["metadata"].get("finalizers") for pod in await world.list("Pod", "job-name=j"))

        await world.eventually(let_go)

    run(scenario)


def test_a_leader_s_success_is_enough(run: Callable[..., None], pods_that: Behaviours) -> None:
    def behave(pod: Object) -> Object:
        leads = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "0"
        return pods_that["end"](pod) if leads else pods_that["run"](pod)

    async def scenario(world: Any) -> None:
        world.behave = behave
        policy = {"rules": [{"succeededIndexes": "0"}]}
        spec = job(completions=3, parallelism=3, completionMode="Indexed", successPolicy=policy)
        await world.create("Job", "j", spec=spec)
        done = await condition(world, "Complete")
        assert find_condition(done, "Complete")["reason"] == "SuccessPolicy"
        assert done["status"]["completedIndexes"] == "0"

    run(scenario)


def test_a_job_of_another_manager_is_left_alone(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = pods_that["end"]
        await world.create("Job", "theirs", spec=job(managedBy="acme.io/jobs"))
        await world.create("Job", "j", spec=job(managedBy="kubernetes.io/job-controller"))
        await condition(world, "Complete")
        assert not await world.list("Pod", "job-name=theirs")
        assert not (await world.get("Job", "theirs")).get("status")

    run(scenario)
