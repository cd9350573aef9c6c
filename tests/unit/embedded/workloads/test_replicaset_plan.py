"""How many Pods a ReplicaSet wants, which go first, whose they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.workloads.claiming import plan_claims
from shallop.embedded.workloads.replicaset import plan_scale, rank_for_deletion, render_status

Object = dict[str, Any]
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def stamp(age_s: int) -> str:
    return (NOW - timedelta(seconds=age_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(
    name: str,
    *,
    phase: str = "Running",
    ready_s: int | None = 60,
    node: str = "n",
    age_s: int = 100,
    cost: str = "",
    restarts: int = 0,
    labels: dict[str, str] | None = None,
    owner: str = "rs-uid",
    deleting: bool = False,
) -> Object:
    conditions = [] if ready_s is None else [{"type": "Ready", "status": "True", "lastTransitionTime": stamp(ready_s)}]
    metadata: Object = {"name": name, "namespace": "default", "uid": name, "creationTimestamp": stamp(age_s)}
    metadata["labels"] = {"app": "a"} if labels is None else labels
    if cost:
        metadata["annotations"] = {"controller.kubernetes.io/pod-deletion-cost": cost}
    if owner:
        metadata["ownerReferences"] = [{"uid": owner, "controller": True}]
    if deleting:
        metadata["deletionTimestamp"] = stamp(0)
    return {
        "metadata": metadata,
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "conditions": conditions, "containerStatuses": [{"restartCount": restarts}]},
    }


def replicaset(**spec: Any) -> Object:
    template = {"metadata": {"labels": {"app": "a"}}}
    defaults = {"replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": template}
    return {"metadata": {"name": "rs", "uid": "rs-uid", "generation": 3}, "spec": {**defaults, **spec}}


def test_the_pod_that_hurts_least_goes_first() -> None:
    expected = [
        pod("unplaced", node="", phase="Pending", ready_s=None),
        pod("pending", phase="Pending", ready_s=None),
        pod("not-ready", ready_s=None),
        pod("cheap", cost="-5"),
        pod("young", ready_s=10),
        pod("restarted", restarts=3),
        pod("old"),
    ]
    assert [p["metadata"]["name"] for p in rank_for_deletion(expected[::-1], NOW)] == [
        p["metadata"]["name"] for p in expected
    ]


def test_ended_and_ending_pods_are_replaced() -> None:
    pods = [pod("a"), pod("b", phase="Failed"), pod("c", deleting=True)]
    assert plan_scale(3, pods, NOW) == (2, [])


def test_claims_follow_the_selector() -> None:
    left = pod("left", labels={"app": "other"})
    orphan, foreign = pod("orphan", owner=""), pod("foreign", owner="someone")
    claims = plan_claims(
        replicaset(), [pod("mine"), left], [left, orphan, foreign, pod("dead", owner="", phase="Failed")]
    )
    assert (claims.release, claims.adopt) == ([left], [orphan])


def test_status_counts() -> None:
    pods = [pod("a"), pod("b", ready_s=5), pod("c", ready_s=None), pod("d", deleting=True), pod("e", phase="Failed")]
    assert render_status(replicaset(minReadySeconds=10), pods, "", NOW) == {
        "replicas": 3,
        "fullyLabeledReplicas": 3,
        "readyReplicas": 2,
        "availableReplicas": 1,
        "terminatingReplicas": 1,
        "observedGeneration": 3,
    }


def test_a_failed_create_is_a_condition_until_it_works() -> None:
    failed = render_status(replicaset(), [], "quota exceeded", NOW)
    assert failed["conditions"][0]["type"] == "ReplicaFailure"
    assert "conditions" not in render_status(replicaset() | {"status": failed}, [], "", NOW)
    # The next attempt names another Pod: a status that changed for it would bring one more at once.
    again = render_status(replicaset() | {"status": failed}, [], "quota exceeded for another name", NOW)
    assert again == failed


@given(
    st.integers(0, 8),
    st.lists(st.tuples(st.sampled_from(["Pending", "Running", "Failed"]), st.booleans(), st.booleans()), max_size=10),
)
def test_the_plan_always_arrives_at_replicas(replicas: int, states: list[tuple[str, bool, bool]]) -> None:
    pods = [
        pod(f"p{n}", phase=phase, ready_s=5 if ready else None, deleting=deleting)
        for n, (phase, ready, deleting) in enumerate(states)
    ]
    missing, surplus = plan_scale(replicas, pods, NOW)
    active = [p for p in pods if p["status"]["phase"] != "Failed" and "deletionTimestamp" not in p["metadata"]]
    assert len(active) + missing - len(surplus) == replicas
    assert not (missing and surplus)
    ready_gone = sum(bool(p["status"]["conditions"]) for p in surplus)
    unready_left = sum(not p["status"]["conditions"] for p in active if p not in surplus)
    assert not (ready_gone and unready_left) or any(p["status"]["phase"] == "Pending" for p in surplus)
