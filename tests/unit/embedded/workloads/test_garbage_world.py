"""Garbage collection and namespaces on the real API server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shallop.embedded.workloads.garbage import classify_owners, plan_dependent
from shallop.kube.objects import Gvk, is_deleting, owner_reference

Object = dict[str, Any]


async def config(world: Any, name: str, *owners: Object, **metadata: Any) -> Object:
    references = [owner_reference(owner, controller=False) for owner in owners]
    if metadata.pop("block", False):
        references = [reference | {"blockOwnerDeletion": True} for reference in references]
    result: Object = await world.create("ConfigMap", name, metadata={"ownerReferences": references, **metadata})
    return result


def test_a_dependent_goes_with_its_last_owner(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        a, b = await config(world, "a"), await config(world, "b")
        await config(world, "child", a, b)
        await world.delete("ConfigMap", "a")

        async def one_owner() -> bool:
            return len((await world.get("ConfigMap", "child"))["metadata"]["ownerReferences"]) == 1

        await world.eventually(one_owner)
        await world.delete("ConfigMap", "b")
        await world.gone("ConfigMap", "child")

    run(scenario)


def test_an_owner_that_never_was_is_gone(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        never = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "never", "uid": "1111"}}
        await config(world, "dangling", never)
        await world.gone("ConfigMap", "dangling")
        unknown = {"apiVersion": "example.com/v1", "kind": "Unknown", "metadata": {"name": "u", "uid": "2222"}}
        await config(world, "kept", unknown)
        await config(world, "dangling", never)
        await world.gone("ConfigMap", "dangling")
        await world.get("ConfigMap", "kept")

    run(scenario)


BOATS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "boats.harbour.example.com"},
    "spec": {
        "group": "harbour.example.com",
        "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def test_a_dependent_goes_though_its_owner_went_before_its_type_was_watched(run: Callable[..., None]) -> None:
    boats = Gvk("harbour.example.com/v1", "Boat")

    async def scenario(world: Any) -> None:
        await world.client.create(BOATS)

        async def served() -> bool:
            return any(type_.gvk == boats for type_ in await world.client.resource_types())

        await world.eventually(served)
        boat = {"apiVersion": boats.api_version, "kind": "Boat", "metadata": {"name": "b", "namespace": "default"}}
        boat = await world.client.create(boat)
        await config(world, "sail", boat)
        await world.client.delete(boats, "b", "default")
        await world.gone("ConfigMap", "sail")

    run(scenario)


def test_chains_go_in_the_background(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        owner = await config(world, "c0")
        for number in range(1, 8):
            owner = await config(world, f"c{number}", owner)
        await world.delete("ConfigMap", "c0")
        await world.gone("ConfigMap", "c7")

    run(scenario)


def test_foreground_waits_for_blocking_dependents(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        owner = await config(world, "owner")
        child = await config(world, "child", owner, block=True)
        await config(world, "grandchild", child, block=True, finalizers=["example.com/hold"])
        await world.delete("ConfigMap", "owner", propagation="Foreground")

        async def reached() -> bool:
            return is_deleting(await world.get("ConfigMap", "grandchild"))

        await world.eventually(reached)
        assert (await world.get("ConfigMap", "child"))["metadata"]["finalizers"] == ["foregroundDeletion"]
        assert (await world.get("ConfigMap", "owner"))["metadata"]["finalizers"] == ["foregroundDeletion"]
        await world.patch("ConfigMap", "grandchild", {"metadata": {"finalizers": None}})
        for name in ("grandchild", "child", "owner"):
            await world.gone("ConfigMap", name)

    run(scenario)


def test_orphans_stay(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        owner = await config(world, "owner")
        await config(world, "child", owner)
        await world.delete("ConfigMap", "owner", propagation="Orphan")
        await world.gone("ConfigMap", "owner")
        assert not (await world.get("ConfigMap", "child"))["metadata"].get("ownerReferences")

    run(scenario)


def test_pods_of_a_namespace_go_before_what_they_use(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Namespace", "team", "")
        await world.create("ConfigMap", "used", "team")
        spec = {"containers": [{"name": "a", "image": "i"}]}
        await world.create("Pod", "p", "team", spec=spec, metadata={"finalizers": ["example.com/hold"]})
        await world.delete("Namespace", "team", "")

        async def waits() -> bool:
            conditions = (await world.get("Namespace", "team", ""))["status"].get("conditions") or ()
            return any("Pod (v1)" in c.get("message", "") for c in conditions)

        await world.eventually(waits)
        assert not is_deleting(await world.get("ConfigMap", "used", "team"))
        await world.patch("Pod", "p", {"metadata": {"finalizers": None}}, "team")
        await world.gone("Namespace", "team", "")

    run(scenario)


def test_a_namespace_takes_everything_along(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Namespace", "team", "")

        async def furnished() -> bool:
            await world.get("ConfigMap", "kube-root-ca.crt", "team")
            return bool(await world.get("ServiceAccount", "default", "team"))

        await world.eventually(furnished)
        template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}}
        spec = {"replicas": 2, "selector": {"matchLabels": {"app": "d"}}, "template": template}
        await world.create("Deployment", "d", "team", spec=spec)
        await world.create("PersistentVolumeClaim", "c", "team", spec=claim_spec())
        await world.create("ConfigMap", "held", "team", metadata={"finalizers": ["example.com/hold"]})

        async def running() -> bool:
            return len(await world.list("Pod", namespace="team")) == 2

        await world.eventually(running)
        await world.delete("Namespace", "team", "")

        async def told() -> bool:
            namespace = await world.get("Namespace", "team", "")
            conditions = {c["type"]: c for c in namespace["status"].get("conditions", ())}
            held = conditions.get("NamespaceFinalizersRemaining", {})
            return "example.com/hold" in held.get("message", "")

        await world.eventually(told)
        await world.patch("ConfigMap", "held", {"metadata": {"finalizers": None}}, "team")
        await world.gone("Namespace", "team", "")
        assert not await world.list("Pod", namespace="team")

    run(scenario)


def test_an_ephemeral_volume_is_a_claim_that_goes_with_its_pod(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        template = {"metadata": {"labels": {"of": "p"}}, "spec": claim_spec()}
        volumes = [{"name": "brief", "ephemeral": {"volumeClaimTemplate": template}}]
        await world.create("Pod", "p", spec={"containers": [{"name": "a", "image": "i"}], "volumes": volumes})

        async def claim() -> Object:
            result: Object = await world.get("PersistentVolumeClaim", "p-brief")
            return result

        made = await world.eventually(claim)
        assert made["metadata"]["labels"] == {"of": "p"}
        assert [owner["kind"] for owner in made["metadata"]["ownerReferences"]] == ["Pod"]
        await world.delete("Pod", "p")
        await world.gone("PersistentVolumeClaim", "p-brief")

    run(scenario)


def test_defaults_of_a_namespace_come_back(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        async def account() -> Object:
            result: Object = await world.get("ServiceAccount", "default")
            return result

        first = await world.eventually(account)
        await world.delete("ServiceAccount", "default")

        async def again() -> bool:
            return bool((await account())["metadata"]["uid"] != first["metadata"]["uid"])

        await world.eventually(again)

        async def certificate() -> Object:
            result: Object = await world.get("ConfigMap", "kube-root-ca.crt")
            return result

        await world.eventually(certificate)
        await world.patch("ConfigMap", "kube-root-ca.crt", {"data": {"ca.crt": "forged"}})

        async def put_back() -> bool:
            return bool((await certificate())["data"] == {"ca.crt": ""})

        await world.eventually(put_back)

    run(scenario)


def claim_spec() -> Object:
    return {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


@pytest.mark.parametrize(
    ("states", "blocking", "expected"),
    [
        ({"a": "solid", "b": "solid"}, False, None),
        ({"a": "solid", "b": "dangling"}, False, ["a"]),
        ({"a": "dangling", "b": "dangling"}, False, "Background"),
        ({"a": "dangling", "b": "waiting"}, True, "Foreground"),
        ({"a": "waiting", "b": "waiting"}, False, "Background"),
    ],
)
def test_what_becomes_of_a_dependent(states: dict[str, str], blocking: bool, expected: Any) -> None:
    obj = {"metadata": {"ownerReferences": [{"uid": "a"}, {"uid": "b"}]}}
    plan = plan_dependent(obj, classify_owners(obj, states), has_blocking_dependents=blocking)
    assert (plan if isinstance(plan, str) or plan is None else [r["uid"] for r in plan]) == expected
