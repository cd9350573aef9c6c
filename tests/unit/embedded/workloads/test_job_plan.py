"""What a Job does next, for every state of its Pods."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shallop.embedded.workloads.job import JobPlan, plan_job, render_pod
from shallop.embedded.workloads.job_failures import back_off_s
from shallop.embedded.workloads.job_indexes import format_indexes, parse_indexes

Object = dict[str, Any]
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
FINALIZER = "batch.kubernetes.io/job-tracking"


def stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def job(status: Object | None = None, **spec: Any) -> Object:
    template = {"metadata": {"labels": {"job-name": "j"}}, "spec": {"containers": [{"name": "a"}]}}
    defaults = {"parallelism": 1, "completions": 1, "backoffLimit": 6, "template": template}
    metadata = {"name": "j", "namespace": "default", "uid": "job-uid", "creationTimestamp": stamp(NOW)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {**defaults, **spec},
        "status": status or {},
    }


def pod(name: str, phase: str = "Running", *, index: int = -1, code: int = 1, **metadata: Any) -> Object:
    rendered = {
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "creationTimestamp": stamp(NOW),
        "finalizers": [FINALIZER],
        **metadata,
    }
    if index >= 0:
        rendered["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    status: Object = {"phase": phase}
    if phase in ("Succeeded", "Failed"):
        ended = {"exitCode": 0 if phase == "Succeeded" else code, "finishedAt": stamp(NOW - timedelta(hours=1))}
        status["containerStatuses"] = [{"name": "a", "state": {"terminated": ended}}]
    return {"metadata": rendered, "spec": {}, "status": status}


def counted(*pods: Object) -> list[Object]:
    """The Pods after their finalizers are gone."""
    return [{**p, "metadata": {**p["metadata"], "finalizers": []}} for p in pods]


def types_of(plan: JobPlan) -> list[str]:
    return [c["type"] for c in plan.status.get("conditions", ()) if c["status"] == "True"]


def run_to_rest(obj: Object, pods: Sequence[Object]) -> JobPlan:
    """Do what the controller does with Pods that ended until nothing changes."""
    current = list(pods)
    for _ in range(10):
        plan = plan_job(obj, current, NOW)
        if plan.status == obj["status"] and not plan.release:
            return plan
        obj = {**obj, "status": plan.status}
        released = {p["metadata"]["uid"] for p in plan.release}
        current = [counted(p)[0] if p["metadata"]["uid"] in released else p for p in current]
    raise AssertionError("the plan never comes to rest")


def test_a_new_job_starts_its_pods() -> None:
    plan = plan_job(job(parallelism=3, completions=5), [], NOW)
    assert plan.create == (-1, -1, -1)
    assert plan.status["startTime"] == stamp(NOW)


def test_success_is_reported_as_kubernetes_does() -> None:
    status = run_to_rest(job({"startTime": stamp(NOW)}), [pod("p", "Succeeded")]).status
    condition = {
        "status": "True",
        "lastProbeTime": stamp(NOW),
        "lastTransitionTime": stamp(NOW),
        "reason": "CompletionsReached",
        "message": "Reached expected number of succeeded pods",
    }
    assert status == {
        "conditions": [{"type": "SuccessCriteriaMet", **condition}, {"type": "Complete", **condition}],
        "startTime": stamp(NOW),
        "completionTime": stamp(NOW),
        "succeeded": 1,
        "terminating": 0,
        "uncountedTerminatedPods": {},
        "ready": 0,
    }


def test_an_end_is_written_down_before_the_pod_is_let_go() -> None:
    plan = plan_job(job(completions=2), [pod("p", "Succeeded")], NOW)
    assert plan.status["uncountedTerminatedPods"] == {"succeeded": ["uid-p"]}
    assert [p["metadata"]["name"] for p in plan.release] == ["p"]
    again = plan_job(job(plan.status, completions=2), [pod("p", "Succeeded")], NOW)
    assert again.status["uncountedTerminatedPods"] == {"succeeded": ["uid-p"]}


def test_the_end_that_a_job_is_over_with_counts_at_once() -> None:
    plan = plan_job(job({"succeeded": 1}, completions=2), [pod("p", "Succeeded")], NOW)
    assert plan.status["succeeded"] == 2
    assert plan.status["uncountedTerminatedPods"] == {}
    assert types_of(plan) == ["SuccessCriteriaMet", "Complete"]
    assert [p["metadata"]["name"] for p in plan.release] == ["p"]
    again = plan_job(job(plan.status, completions=2), [pod("p", "Succeeded")], NOW)
    assert again.status == plan.status
    assert [p["metadata"]["name"] for p in again.release] == ["p"]


def test_a_deleted_pod_that_was_counted_stays_counted() -> None:
    before = {"uncountedTerminatedPods": {"succeeded": ["uid-p"]}, "startTime": stamp(NOW)}
    plan = plan_job(job(before, completions=2), [], NOW)
    assert plan.status["succeeded"] == 1
    assert plan.create == (-1,)


def test_the_backoff_limit_ends_a_job() -> None:
    plan = run_to_rest(job(backoffLimit=0), [pod("p", "Failed")])
    assert types_of(plan) == ["FailureTarget", "Failed"]
    assert plan.status["failed"] == 1
    assert plan.status["conditions"][0]["reason"] == "BackoffLimitExceeded"
    assert plan.status["conditions"][0]["message"] == "Job has reached the specified backoff limit"


def test_a_failure_holds_the_next_pod_back() -> None:
    failed = pod("p", "Failed")
    failed["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = stamp(NOW - timedelta(seconds=4))
    plan = plan_job(job(), [failed], NOW)
    assert plan.create == ()
    assert plan.requeue_after_s == 6.0


def test_the_back_off_doubles_and_a_success_resets_it() -> None:
    def failed(name: str, ago_s: int) -> Object:
        result = pod(name, "Failed")
        ended = stamp(NOW - timedelta(seconds=ago_s))
        result["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = ended
        return result

    assert back_off_s([failed("a", 30), failed("b", 0)], [], NOW) == 20
    success = failed("c", 10)
    assert back_off_s([failed("a", 30), failed("b", 0)], [success], NOW) == 10
    assert back_off_s([failed(str(n), 0) for n in range(12)], [], NOW) == 600


def test_the_deadline_ends_a_job_and_its_pods() -> None:
    status = {"startTime": stamp(NOW - timedelta(seconds=61))}
    plan = plan_job(job(status, activeDeadlineSeconds=60), [pod("p")], NOW)
    assert types_of(plan) == ["FailureTarget"]
    assert plan.status["conditions"][0]["reason"] == "DeadlineExceeded"
    assert [p["metadata"]["name"] for p in plan.delete] == ["p"]
    waiting = plan_job(job({"startTime": stamp(NOW)}, activeDeadlineSeconds=60), [pod("p")], NOW)
    assert waiting.requeue_after_s == 60


def test_suspend_and_resume() -> None:
    status = {"startTime": stamp(NOW)}
    plan = plan_job(job(status, suspend=True), [pod("p")], NOW)
    assert "startTime" not in plan.status
    assert types_of(plan) == ["Suspended"]
    assert [p["metadata"]["name"] for p in plan.delete] == ["p"]
    resumed = plan_job(job(plan.status), [], NOW)
    assert types_of(resumed) == []
    assert resumed.create == (-1,)


def test_the_time_to_live_counts_from_the_end() -> None:
    done = run_to_rest(job({"startTime": stamp(NOW)}), [pod("p", "Succeeded")]).status
    later = plan_job(job(done, ttlSecondsAfterFinished=30), [], NOW + timedelta(seconds=10))
    assert (later.requeue_after_s, later.delete_job) == (20, False)
    assert plan_job(job(done, ttlSecondsAfterFinished=30), [], NOW + timedelta(seconds=30)).delete_job


def test_indexes_that_are_done_or_running_are_not_started() -> None:
    pods = [pod("a", "Succeeded", index=0), pod("b", index=2)]
    plan = plan_job(job(completionMode="Indexed", completions=4, parallelism=3), pods, NOW)
    assert plan.create == (1, 3)
    assert plan.status["completedIndexes"] == "0"


def test_two_pods_of_one_index_become_one() -> None:
    pods = [pod("a", index=0), pod("b", index=0)]
    plan = plan_job(job(completionMode="Indexed", completions=2, parallelism=2), pods, NOW)
    assert len(plan.delete) == 1


@pytest.mark.parametrize(
    ("action", "types", "failed"), [("FailJob", ["FailureTarget", "Failed"], 1), ("Ignore", [], 0), ("Count", [], 1)]
)
def test_pod_failure_policy(action: str, types: list[str], failed: int) -> None:
    rule = {"action": action, "onExitCodes": {"operator": "In", "values": [42]}}
    plan = run_to_rest(job({}, podFailurePolicy={"rules": [rule]}), [pod("p", "Failed", code=42)])
    assert types_of(plan) == types
    assert plan.status.get("failed", 0) == failed
    if types:
        assert plan.status["conditions"][0]["message"] == (
            "Container a for pod default/p failed with exit code 42 matching FailJob rule at index 0"
        )


def test_a_work_queue_is_done_when_one_succeeded_and_none_runs() -> None:
    spec = {"completions": None, "parallelism": 2}
    assert plan_job(job(**spec), [], NOW).create == (-1, -1)
    half = plan_job(job(**spec), [pod("a", "Succeeded"), pod("b")], NOW)
    assert half.create == ()
    assert types_of(run_to_rest(job(**spec), [pod("a", "Succeeded"), pod("b", "Succeeded")]))[-1] == "Complete"


def test_an_indexed_pod_knows_its_index() -> None:
    rendered = render_pod(job(completionMode="Indexed"), 3)
    assert rendered["metadata"]["generateName"] == "j-3-"
    assert rendered["spec"]["hostname"] == "j-3"
    assert rendered["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "3"
    assert rendered["spec"]["containers"][0]["env"][0]["name"] == "JOB_COMPLETION_INDEX"


@given(st.sets(st.integers(0, 60)))
def test_indexes_survive_a_round_trip(indexes: set[int]) -> None:
    assert parse_indexes(format_indexes(indexes)) == indexes


def test_indexes_are_written_as_kubernetes_does() -> None:
    assert format_indexes({0, 1, 2, 5, 7, 8}) == "0-2,5,7,8"


@settings(max_examples=150)
@given(
    st.integers(0, 4),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["Succeeded", "Failed", "delete"])), max_size=40),
)
def test_a_job_never_exceeds_its_parallelism_and_counts_every_end_once(
    parallelism: int, completions: int, indexed: bool, limit: int, happenings: list[tuple[int, str]]
) -> None:
    mode = "Indexed" if indexed else "NonIndexed"
    obj = job(parallelism=parallelism, completions=completions, completionMode=mode, backoffLimit=limit)
    pods: list[Object] = []
    ends = {"Succeeded": 0, "Failed": 0}
    made = 0
    clock = NOW
    for which, what in [(0, "")] + happenings + [(0, "")] * 4:
        clock += timedelta(hours=1)
        alive = [p for p in pods if p["status"]["phase"] == "Running"]
        if alive and what:
            victim = alive[which % len(alive)]
            if what == "delete":
                victim["metadata"]["deletionTimestamp"] = stamp(clock)
            else:
                victim["status"] = pod("x", what)["status"]
            ends["Succeeded" if what == "Succeeded" else "Failed"] += 1
        plan = plan_job(obj, pods, clock)
        obj = {**obj, "status": plan.status}
        for released in plan.release:
            released["metadata"]["finalizers"] = []
        pods = [p for p in pods if p not in plan.delete and not (_deleted(p) and not p["metadata"]["finalizers"])]
        for index in plan.create:
            made += 1
            pods.append(pod(f"p{made}", index=index))
        assert sum(p["status"]["phase"] == "Running" and not _deleted(p) for p in pods) <= parallelism
    status = obj["status"]
    waiting = status["uncountedTerminatedPods"]
    assert status.get("succeeded", 0) + len(waiting.get("succeeded", ())) == ends["Succeeded"]
    assert status.get("failed", 0) + len(waiting.get("failed", ())) == ends["Failed"]
    ended = [c["type"] for c in status.get("conditions", ())]
    if ends["Succeeded"] >= completions:
        assert "SuccessCriteriaMet" in ended
    if ends["Failed"] > limit and ends["Succeeded"] < completions:
        assert "FailureTarget" in ended


def _deleted(obj: Object) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def per_index(status: Object | None = None, **spec: Any) -> Object:
    defaults = {"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 1}
    return job(status, **{**defaults, "backoffLimit": 2**31 - 1, **spec})


def failed(name: str, index: int, failures: int = 0) -> Object:
    result = pod(name, "Failed", index=index)
    result["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"] = str(failures)
    return result


def test_a_failed_index_is_tried_again_and_carries_its_count_on() -> None:
    pods = [failed("a", 0), pod("b", index=1), pod("c", index=2)]
    plan = plan_job(per_index(), pods, NOW)
    assert plan.create == (0,)
    assert plan.failures is not None
    rendered = render_pod(per_index(), 0, plan.failures[0])
    assert rendered["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"] == "1"
    # Until the next Pod carries the number, the failed one stays and does not count.
    assert plan.release == ()
    assert "failed" not in plan.status
    later = plan_job(
        per_index(), [*pods, {**rendered, "metadata": {**pod("d")["metadata"], **rendered["metadata"]}}], NOW
    )
    assert [p["metadata"]["name"] for p in later.release] == ["a"]


def test_an_index_waits_for_its_own_back_off() -> None:
    recent = failed("a", 0)
    state = recent["status"]["containerStatuses"][0]["state"]["terminated"]
    state["finishedAt"] = stamp(NOW - timedelta(seconds=4))
    plan = plan_job(per_index(), [recent], NOW)
    assert plan.create == (1, 2)
    assert plan.requeue_after_s == 6


def test_an_index_fails_at_its_limit_and_the_job_when_all_are_done() -> None:
    plan = plan_job(per_index({"completedIndexes": "1-2", "succeeded": 2}), [failed("a", 0, failures=1)], NOW)
    assert plan.status["failedIndexes"] == "0"
    assert [c["reason"] for c in plan.status["conditions"]] == ["FailedIndexes", "FailedIndexes"]
    assert plan.create == ()


def test_too_many_failed_indexes_end_the_job() -> None:
    plan = plan_job(per_index({"failedIndexes": "2"}, maxFailedIndexes=1), [failed("a", 0, 1), pod("b", index=1)], NOW)
    assert plan.status["conditions"][0]["reason"] == "MaxFailedIndexesExceeded"
    assert [p["metadata"]["name"] for p in plan.delete] == ["b"]


def test_the_policy_can_fail_an_index_at_once() -> None:
    rule = {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}}
    spec = per_index(backoffLimitPerIndex=5, podFailurePolicy={"rules": [rule]})
    assert plan_job(spec, [failed("a", 1)], NOW).status["failedIndexes"] == "1"


@pytest.mark.parametrize(
    ("rule", "done", "reached"),
    [
        ({"succeededIndexes": "0"}, "0", True),
        ({"succeededIndexes": "0-1"}, "0", False),
        ({"succeededCount": 2}, "0,2", True),
        ({"succeededIndexes": "1-2", "succeededCount": 1}, "2", True),
    ],
)
def test_a_success_policy_ends_the_job_early(rule: Object, done: str, reached: bool) -> None:
    before = {"completedIndexes": done, "succeeded": len(parse_indexes(done))}
    spec = job(before, completionMode="Indexed", completions=3, parallelism=1, successPolicy={"rules": [rule]})
    conditions = plan_job(spec, [pod("b", index=1)], NOW).status.get("conditions") or []
    assert [c["reason"] for c in conditions] == (["SuccessPolicy"] if reached else [])
