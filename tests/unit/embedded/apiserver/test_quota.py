"""ResourceQuota and LimitRange: what is counted, what is refused, what is filled in."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from shallop.embedded.apiserver.quantities import format_quantity
from shallop.embedded.apiserver.usage import in_scopes, pod_amounts, usage_of

CORE = "/api/v1/namespaces/default"


def quota(name: str = "q", **hard: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}}


def container(name: str = "a", cpu: str = "", limit: str = "", **fields: Any) -> dict[str, Any]:
    resources = {key: {"cpu": value} for key, value in (("requests", cpu), ("limits", limit)) if value}
    return {"name": name, "image": "x", "resources": resources, **fields}


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    spec = {"containers": list(containers) or [container()], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


async def used(http: Any, name: str = "q", **wanted: str) -> None:
    async with asyncio.timeout(30):
        while True:
            found = (await http("GET", f"{CORE}/resourcequotas/{name}")).body["status"].get("used") or {}
            if wanted.items() <= found.items():
                return
            await asyncio.sleep(0.005)


def test_writes_at_the_same_time_do_not_share_the_last_place(api: Any) -> None:
    async def test(http: Any) -> None:
        await http("POST", f"{CORE}/resourcequotas", quota(pods="3"))
        answers = await asyncio.gather(*(http("POST", f"{CORE}/pods", pod(f"p{i}")) for i in range(10)))
        assert sorted(answer.status for answer in answers) == [201] * 3 + [403] * 7
        refused = next(answer for answer in answers if answer.status == 403)
        assert "exceeded quota: q, requested: pods=1, used: pods=3, limited: pods=3" in refused.message
        await used(http, pods="3")

    api(test)


def test_what_is_deleted_or_finished_is_free_again(api: Any) -> None:
    async def test(http: Any) -> None:
        await http("POST", f"{CORE}/resourcequotas", quota(**{"pods": "1", "count/pods": "2"}))
        await http("POST", f"{CORE}/pods", pod("a"))
        assert (await http("POST", f"{CORE}/pods", pod("b"))).status == 403
        status = [("content-type", "application/merge-patch+json")]
        await http("PATCH", f"{CORE}/pods/a/status", {"status": {"phase": "Succeeded"}}, headers=status)
        assert (await http("POST", f"{CORE}/pods", pod("b"))).status == 201
        assert (await http("POST", f"{CORE}/pods", pod("c"))).status == 403, "a finished Pod is still an object"
        await http("DELETE", f"{CORE}/pods/a")
        await http("DELETE", f"{CORE}/pods/b")
        assert (await http("POST", f"{CORE}/pods", pod("c"))).status == 201
        await used(http, pods="1", **{"count/pods": "1"})

    api(test)


def test_a_dry_run_is_refused_and_uses_nothing(api: Any) -> None:
    async def test(http: Any) -> None:
        await http("POST", f"{CORE}/resourcequotas", quota(pods="1"))
        assert (await http("POST", f"{CORE}/pods?dryRun=All", pod("a"))).status == 201
        assert (await http("POST", f"{CORE}/pods", pod("a"))).status == 201
        assert (await http("POST", f"{CORE}/pods?dryRun=All", pod("b"))).status == 403

    api(test)


def test_a_quota_counts_what_was_there_before_it_and_any_kind(api: Any) -> None:
    async def test(http: Any) -> None:
        await http("POST", f"{CORE}/configmaps", {"metadata": {"name": "a"}})
        await http(
            "POST", f"{CORE}/resourcequotas", quota(**{"configmaps": "2", "count/leases.coordination.k8s.io": "0"})
        )
        await used(http, configmaps="1")
        assert (await http("POST", f"{CORE}/configmaps", {"metadata": {"name": "b"}})).status == 201
        assert (await http("POST", f"{CORE}/configmaps", {"metadata": {"name": "c"}})).status == 403
        leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
        assert (await http("POST", leases, {"metadata": {"name": "l"}})).status == 403
        patch = [("content-type", "application/merge-patch+json")]
        more = {"spec": {"hard": {"configmaps": "5"}}}
        assert (await http("PATCH", f"{CORE}/resourcequotas/q", more, headers=patch)).status == 200
        assert (await http("POST", f"{CORE}/configmaps", {"metadata": {"name": "c"}})).status == 201
        await used(http, configmaps="3")
        assert (
            await http("POST", "/api/v1/namespaces/kube-system/configmaps", {"metadata": {"name": "c"}})
        ).status == 201

    api(test)


def test_scopes_select_pods(api: Any) -> None:
    async def test(http: Any) -> None:
        scoped = quota(pods="0") | {"spec": {"hard": {"pods": "0"}, "scopes": ["BestEffort"]}}
        await http("POST", f"{CORE}/resourcequotas", scoped)
        assert (await http("POST", f"{CORE}/pods", pod("a"))).status == 403
        assert (await http("POST", f"{CORE}/pods", pod("a", container(cpu="1m")))).status == 201

    api(test)
    expression = {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}
    spec = {"scopeSelector": {"matchExpressions": [expression]}}
    assert in_scopes(spec, "pods", {"spec": {"priorityClassName": "high"}})
    assert not in_scopes(spec, "pods", {"spec": {}})
    assert not in_scopes(spec, "services", {"spec": {"priorityClassName": "high"}})
    assert in_scopes({"scopes": ["Terminating"]}, "pods", {"spec": {"activeDeadlineSeconds": 5}})


def test_init_containers_count_by_their_highest_and_sidecars_always() -> None:
    spec = {
        "initContainers": [
            container("first", cpu="3"),
            container("sidecar", cpu="1", restartPolicy="Always"),
            container("second", cpu="4"),
        ],
        "containers": [container("main", cpu="2"), container("other", cpu="1")],
        "overhead": {"cpu": "500m"},
    }
    assert pod_amounts(spec, "requests") == {"cpu": Decimal("5.5")}
    assert pod_amounts(spec | {"initContainers": []}, "requests") == {"cpu": Decimal("3.5")}


def test_services_and_claims_count_by_what_they_take() -> None:
    ports = {"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}
    found = usage_of("services", ports)
    assert (found["services.loadbalancers"], found["services.nodeports"]) == (1, 2)
    claim = {"spec": {"resources": {"requests": {"storage": "2Gi"}}, "storageClassName": "fast"}}
    found = usage_of("persistentvolumeclaims", claim)
    assert found["fast.storageclass.storage.k8s.io/requests.storage"] == found["requests.storage"] == 2 * 1024**3


def test_defaults_of_a_limit_range_fill_what_a_container_leaves_out(api: Any) -> None:
    async def test(http: Any) -> None:
        limits = [
            {"type": "Container", "default": {"cpu": "1", "memory": "1024Mi"}, "min": {"cpu": "0.1"}},
            {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}},
        ]
        limit_range = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": limits}}
        stored = (await http("POST", f"{CORE}/limitranges", limit_range)).body["spec"]["limits"][0]
        assert stored["defaultRequest"] == {"cpu": "1", "memory": "1Gi"} and stored["min"] == {"cpu": "100m"}
        made = (await http("POST", f"{CORE}/pods", pod("a", container(cpu="200m"), container("b")))).body
        assert [c["resources"] for c in made["spec"]["containers"]] == [
            {"requests": {"cpu": "200m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        ]
        assert made["status"]["qosClass"] == "Burstable"
        refused = await http("POST", f"{CORE}/pods", pod("c", container(cpu="50m")))
        assert refused.message == 'pods "c" is forbidden: minimum cpu usage per Container is 100m, but request is 50m'
        claim = {
            "metadata": {"name": "c"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
        }
        refused = await http("POST", f"{CORE}/persistentvolumeclaims", claim)
        assert refused.status == 403
        assert "maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi" in refused.message

    api(test)


@pytest.mark.parametrize(
    ("amount", "binary", "text"),
    [
        (Decimal("0.25"), False, "250m"),
        (Decimal(200 * 1024**2), True, "200Mi"),
        (Decimal(500_000_000), True, "500M"),
        (Decimal(0), True, "0"),
    ],
)
def test_amounts_are_written_as_quantities(amount: Decimal, binary: bool, text: str) -> None:
    assert format_quantity(amount, binary=binary) == text


def test_services_made_at_the_same_time_get_different_addresses(api: Any) -> None:
    async def test(http: Any) -> None:
        body = {"spec": {"ports": [{"port": 80}]}}
        answers = await asyncio.gather(
            *(http("POST", f"{CORE}/services", body | {"metadata": {"name": f"s{i}"}}) for i in range(20))
        )
        assert len({answer.body["spec"]["clusterIP"] for answer in answers}) == 20

    api(test)
