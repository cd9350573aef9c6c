"""A control plane that is killed after any number of its writes: the next one reaches the same state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shallop.kube.objects import find_condition, is_condition_true, is_deleting, labels_of

Object = dict[str, Any]
Behaviours = dict[str, Callable[..., dict[str, Any]]]
ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"


def pod_template(app: str, policy: str = "Always") -> Object:
    return {
        "metadata": {"labels": {"app": app}},
        "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]},
    }


def selected(app: str, **more: Any) -> Object:
    return {"selector": {"matchLabels": {"app": app}}, "template": pod_template(app), **more}


@pytest.mark.parametrize("writes", [1, 3, 6, 10, 16, 25, 40])
def test_the_state_that_is_reached_does_not_depend_on_when(
    killed_after: Callable[..., None], pods_that: Behaviours, writes: int
) -> None:
    def behave(pod: Object) -> Object:
        labels = labels_of(pod)
        if labels.get("app") == "job":
            fails = labels["batch.kubernetes.io/job-completion-index"] == "1"
        elif labels.get("app") == "jobset":
            fails = labels[ATTEMPT] == "0" and labels["jobset.sigs.k8s.io/replicatedjob-name"] == "bad"
        else:
            return pods_that["run"](pod)
        return pods_that["end"](pod, int(fails))

    async def before(world: Any) -> None:
        world.behave = behave
        job = {"completionMode": "Indexed", "completions": 3, "parallelism": 2, "backoffLimitPerIndex": 0}
        await world.create("Job", "j", spec={**job, "template": pod_template("job", "Never")})
        once = {"template": {"spec": {"backoffLimit": 0, "template": pod_template("jobset", "Never")}}}
        rjobs = [{"name": "good", **once}, {"name": "bad", **once}]
        await world.create("JobSet", "s", spec={"failurePolicy": {"maxRestarts": 1}, "replicatedJobs": rjobs})
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        claims = [{"metadata": {"name": "c"}, "spec": claim}]
        await world.create(
            "StatefulSet", "s", spec=selected("sts", replicas=2, serviceName="s", volumeClaimTemplates=claims)
        )
        await world.create("DaemonSet", "s", spec=selected("ds"))
        await world.create("Deployment", "d", spec=selected("deploy", replicas=2))

        async def over() -> bool:
            return bool(world.dead.is_set() or await reached(world))

        await world.eventually(over, 20)

    async def reached(world: Any) -> bool:
        sts = (await world.get("StatefulSet", "s")).get("status") or {}
        daemon = (await world.get("DaemonSet", "s")).get("status") or {}
        deployment = (await world.get("Deployment", "d")).get("status") or {}
        return (
            is_condition_true(await world.get("Job", "j"), "Failed")
            and is_condition_true(await world.get("JobSet", "s"), "Completed")
            and sts.get("readyReplicas") == 2
            and daemon.get("numberReady") == 1
            and deployment.get("availableReplicas") == 2
            and not any(is_deleting(pod) for pod in await world.list("Pod"))
        )

    async def after(world: Any) -> None:
        world.behave = behave
        await world.eventually(lambda: reached(world), 20)
        job = await world.get("Job", "j")
        assert find_condition(job, "Failed")["reason"] == "FailedIndexes"
        counts = [job["status"][key] for key in ("completedIndexes", "failedIndexes", "succeeded", "failed")]
        assert counts == ["0,2", "1", 2, 1]

        async def let_go() -> bool:
            pods = await world.list("Pod", "app=job")
            return len(pods) == 3 and not any(pod["metadata"].get("finalizers") for pod in pods)

        await world.eventually(let_go)
        assert (await world.get("JobSet", "s"))["status"]["restarts"] == 1
        jobs = await world.list("Job", f"{ATTEMPT}")
        assert {j["metadata"]["name"]: labels_of(j)[ATTEMPT] for j in jobs} == {"s-good-0": "1", "s-bad-0": "1"}
        assert {pod["metadata"]["name"] for pod in await world.list("Pod", "app=sts")} == {"s-0", "s-1"}
        assert len(await world.list("Pod", "app=deploy")) == 2
        assert len(await world.list("Pod", "app=ds")) == 1
        assert len(await world.list("ReplicaSet")) == 1
        assert len(await world.list("ControllerRevision")) == 2
        assert {c["metadata"]["name"] for c in await world.list("PersistentVolumeClaim")} == {"c-s-0", "c-s-1"}

    killed_after(writes, before, after)
