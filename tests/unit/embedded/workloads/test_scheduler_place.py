"""Where a Pod fits, and what is said when it does not."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.workloads.pods import requests_of
from shallop.embedded.workloads.scheduler import Placement, needs_of, place, signature_of

Object = dict[str, Any]


def pod(requests: dict[str, str] | None = None, **spec: Any) -> Object:
    resources = {"requests": requests} if requests else {}
    return {
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "a", "resources": resources}], **spec},
    }


def node(name: str = "n", *, labels: dict[str, str] | None = None, **allocatable: str) -> Object:
    amounts = {"cpu": "2", "memory": "4Gi", "pods": "110", **allocatable}
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": {}, "status": {"allocatable": amounts}}


def test_the_message_names_what_lacks() -> None:
    assert place(pod({"nvidia.com/gpu": "1"}), [node()], {}) == Placement(
        "", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    )


def test_no_node_is_a_message_too() -> None:
    assert place(pod(), [], {}).message == "no nodes available to schedule pods"


def test_reasons_are_counted_over_nodes() -> None:
    nodes = [node("a"), node("b"), node("c", **{"nvidia.com/gpu": "1"}, cpu="1")]
    message = place(pod({"nvidia.com/gpu": "1", "cpu": "2"}), nodes, {}).message
    assert message == "0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu."


def test_what_others_take_counts() -> None:
    gpu_node = node(**{"nvidia.com/gpu": "1"})
    used = {"n": {"nvidia.com/gpu": Decimal(1)}}
    assert place(pod({"nvidia.com/gpu": "1"}), [gpu_node], {}).node == "n"
    assert place(pod({"nvidia.com/gpu": "1"}), [gpu_node], used).node == ""


def test_a_node_without_room_for_one_more_pod_says_so() -> None:
    assert place(pod(), [node(pods="1")], {"n": {"pods": Decimal(1)}}).message.endswith("1 Too many pods.")


def test_the_emptiest_node_wins() -> None:
    assert place(pod(), [node("a"), node("b", memory="8Gi")], {}).node == "b"


TAINT = {"key": "gpu", "value": "only", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("tolerations", "fits"),
    [
        ([], False),
        ([{"key": "gpu", "operator": "Exists"}], True),
        ([{"key": "gpu", "value": "only", "effect": "NoSchedule"}], True),
        ([{"key": "gpu", "value": "other"}], False),
        ([{"operator": "Exists"}], True),
        ([{"key": "gpu", "operator": "Exists", "effect": "NoExecute"}], False),
    ],
)
def test_taints(tolerations: list[Object], fits: bool) -> None:
    tainted = node()
    tainted["spec"]["taints"] = [TAINT]
    assert bool(place(pod(tolerations=tolerations), [tainted], {}).node) is fits


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ({"key": "disk", "operator": "In", "values": ["ssd"]}, True),
        ({"key": "disk", "operator": "NotIn", "values": ["ssd"]}, False),
        ({"key": "zone", "operator": "DoesNotExist"}, True),
        ({"key": "cores", "operator": "Gt", "values": ["3"]}, True),
        ({"key": "cores", "operator": "Lt", "values": ["3"]}, False),
    ],
)
def test_node_affinity(expression: Object, fits: bool) -> None:
    required = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    placement = place(pod(affinity=affinity), [node(labels={"disk": "ssd", "cores": "8"})], {})
    assert bool(placement.node) is fits
    if not fits:
        assert placement.message == "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."


def test_node_selector() -> None:
    assert not place(pod(nodeSelector={"disk": "ssd"}), [node()], {}).node
    assert place(pod(nodeSelector={"disk": "ssd"}), [node(labels={"disk": "ssd"})], {}).node == "n"


def test_init_containers_take_their_peak_and_sidecars_add_up() -> None:
    def container(cpu: str, **more: str) -> Object:
        return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}

    spec = {
        "containers": [container("1"), container("1")],
        "initContainers": [container("500m", restartPolicy="Always"), container("3")],
    }
    assert requests_of({"spec": spec})["cpu"] == Decimal("3.5")


amounts = st.fixed_dictionaries({"cpu": st.integers(0, 5), "memory": st.integers(0, 5), "x.io/d": st.integers(0, 3)})


@given(st.lists(amounts, max_size=12), st.lists(amounts, min_size=1, max_size=3))
def test_nothing_is_promised_twice(wanted: list[dict[str, int]], capacities: list[dict[str, int]]) -> None:
    nodes = [node(f"n{i}", **{k: str(v) for k, v in amount.items()}) for i, amount in enumerate(capacities)]
    usage: dict[str, dict[str, Decimal]] = {}
    for amount in wanted:
        candidate = pod({name: str(value) for name, value in amount.items() if value})
        chosen = place(candidate, nodes, usage).node
        if chosen:
            taken = usage.setdefault(chosen, {})
            for name, value in requests_of(candidate).items():
                taken[name] = taken.get(name, Decimal(0)) + value
    for i, capacity in enumerate(capacities):
        assert all(usage.get(f"n{i}", {}).get(name, 0) <= limit for name, limit in capacity.items())


def test_pods_that_fit_alike_wait_together() -> None:
    assert signature_of(pod({"cpu": "1"})) == signature_of(pod({"cpu": "1000m"}) | {"metadata": {"name": "other"}})
    assert signature_of(pod({"cpu": "1"})) != signature_of(pod({"cpu": "2"}))


def with_port(port: int, address: str = "", protocol: str = "TCP") -> Object:
    wanted = {"containerPort": port, "hostPort": port, "protocol": protocol, "hostIP": address}
    return {**pod(), "spec": {"containers": [{"name": "a", "ports": [wanted]}]}}


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        (with_port(80), with_port(80), False),
        (with_port(80), with_port(81), True),
        (with_port(80), with_port(80, protocol="UDP"), True),
        (with_port(80), with_port(80, "127.0.0.1"), False),
        (with_port(80, "127.0.0.1"), with_port(80, "0.0.0.0"), False),
        (with_port(80, "127.0.0.1"), with_port(80, "127.0.0.2"), True),
        (with_port(80, "127.0.0.1"), with_port(80, "127.0.0.1"), False),
    ],
)
def test_a_port_of_the_machine_is_given_once(first: Object, second: Object, fits: bool) -> None:
    placement = place(second, [node()], {"n": needs_of(first)})
    said = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    assert placement == (Placement("n") if fits else Placement("", said))


def spread(key: str, selector: Object | None = None, **fields: Any) -> Object:
    constraint = {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", **fields}
    constraint["labelSelector"] = {"matchLabels": {"app": "web"}} if selector is None else selector
    wanted = pod(topologySpreadConstraints=[constraint])
    return {**wanted, "metadata": {**wanted["metadata"], "labels": {"app": "web"}}}


def on(name: str, wanted: Object) -> Object:
    return {**wanted, "spec": {**wanted["spec"], "nodeName": name}}


HOST = "kubernetes.io/hostname"


def test_pods_of_one_node_are_spread_over_it_however_many_they_are() -> None:
    here = node(labels={HOST: "n"})
    others = [on("n", spread(HOST)) for _ in range(5)]
    assert place(spread(HOST), [here], {}, others).node == "n"
    # There should be two domains, and one has five already.
    assert place(spread(HOST, minDomains=2), [here], {}, others) == Placement(
        "", "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints."
    )
    assert place(spread(HOST, minDomains=2), [here], {}, []).node == "n"


def test_a_node_without_the_label_of_a_constraint_cannot_take_the_pod() -> None:
    wanted = spread("topology.kubernetes.io/zone")
    assert place(wanted, [node(labels={HOST: "n"})], {}).message == (
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)."
    )
    assert place(spread("topology.kubernetes.io/zone", whenUnsatisfiable="ScheduleAnyway"), [node()], {}).node == "n"


def test_pods_are_spread_over_several_nodes() -> None:
    nodes = [node("a", labels={HOST: "a"}), node("b", labels={HOST: "b"}, memory="1Gi")]
    assert place(spread(HOST), nodes, {}, [on("a", spread(HOST))]).node == "b"
    leaving = on("a", spread(HOST))
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    other_namespace = on("a", spread(HOST))
    other_namespace["metadata"] = {**other_namespace["metadata"], "namespace": "other"}
    assert place(spread(HOST), nodes, {}, [leaving, other_namespace]).node == "a"
    # A node that the Pod may not use at all is no domain.
    pinned = spread(HOST)
    pinned["spec"]["nodeSelector"] = {HOST: "a"}
    assert place(pinned, nodes, {}, [on("a", spread(HOST))]).node == "a"
