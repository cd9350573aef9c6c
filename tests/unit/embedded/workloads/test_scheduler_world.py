"""The scheduler against the real API: priorities, preemption, company and claims."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shallop.errors import UnavailableError
from shallop.kube.objects import find_condition, is_deleting

Object = dict[str, Any]


def spec(cpu: str = "0", **fields: Any) -> Object:
    container = {"name": "a", "image": "i", "resources": {"requests": {"cpu": cpu}}}
    return {"containers": [container], "terminationGracePeriodSeconds": 0, **fields}


async def make_class(world: Any, name: str, value: int, **fields: Any) -> None:
    body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value}
    await world.client.create(body | fields)


async def message_of(world: Any, name: str) -> str:
    async def unscheduled() -> str:
        condition = find_condition(await world.get("Pod", name), "PodScheduled") or {}
        return str(condition.get("message", "")) if condition.get("status") == "False" else ""

    return str(await world.eventually(unscheduled))


async def placed(world: Any, name: str) -> Object:
    async def has_node() -> Object | None:
        pod: Object = await world.get("Pod", name)
        return pod if pod["spec"].get("nodeName") else None

    found: Object = await world.eventually(has_node)
    return found


def test_a_more_important_pod_takes_the_place_of_a_less_important_one(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await make_class(world, "urgent", 1000)
        await world.create("Pod", "small", spec=spec("500m"))
        await placed(world, "small")
        await world.create("Pod", "large", spec=spec("1500m"))
        await placed(world, "large")
        await world.create("Pod", "urgent", spec=spec("1", priorityClassName="urgent"))
        await placed(world, "urgent")
        await world.gone("Pod", "large")
        assert not is_deleting(await world.get("Pod", "small")), "no more than needed has to go"
        assert "Preempted" in [event["reason"] for event in await world.list("Event")]

    run(scenario)


def test_a_patient_pod_waits_and_is_served_before_less_important_ones(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await make_class(world, "patient", 10, preemptionPolicy="Never")
        await world.create("Pod", "holder", spec=spec("2"))
        await placed(world, "holder")
        await world.create("Pod", "ordinary", spec=spec("2"))
        assert await message_of(world, "ordinary") == "0/1 nodes are available: 1 Insufficient cpu."
        await world.create("Pod", "patient", spec=spec("2", priorityClassName="patient"))
        await message_of(world, "patient")
        await world.delete("Pod", "holder")
        await placed(world, "patient")
        assert not (await world.get("Pod", "ordinary"))["spec"].get("nodeName")

    run(scenario)


def test_a_pod_waits_for_its_claim(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
        await world.create("Pod", "reader", spec=spec(volumes=volumes))
        expected = '0/1 nodes are available: persistentvolumeclaim "data" not found.'
        assert await message_of(world, "reader") == expected
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        await world.create("PersistentVolumeClaim", "data", spec=claim)
        await placed(world, "reader")

    run(scenario)


def test_pods_keep_away_from_each_other_or_wait_for_company(run: Callable[..., None]) -> None:
    def term(kind: str, app: str) -> Object:
        selector = {"matchLabels": {"app": app}}
        rule = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
        return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [rule]}}

    async def scenario(world: Any) -> None:
        guest = spec(affinity=term("podAffinity", "host"))
        await world.create("Pod", "guest", spec=guest)
        assert "didn't match pod affinity rules" in await message_of(world, "guest")
        labels = {"metadata": {"labels": {"app": "host"}}}
        await world.create("Pod", "host", **labels, spec=spec(affinity=term("podAntiAffinity", "host")))
        await placed(world, "host")
        await placed(world, "guest")
        await world.create("Pod", "second", **labels, spec=spec(affinity=term("podAntiAffinity", "host")))
        assert "didn't match pod anti-affinity rules" in await message_of(world, "second")
        await world.create("Pod", "plain", **labels, spec=spec())
        assert "existing pods anti-affinity rules" in await message_of(world, "plain")
        await world.delete("Pod", "host")
        await placed(world, "second")

    run(scenario)


def test_a_pod_waits_until_its_port_of_the_machine_is_free(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        ports = [{"containerPort": 80, "hostPort": 8080}]
        wanted = {**spec(), "containers": [{"name": "a", "image": "i", "ports": ports}]}
        await world.create("Pod", "first", spec=wanted)
        await placed(world, "first")
        await world.create("Pod", "second", spec=wanted)
        assert "didn't have free ports for the requested pod ports" in await message_of(world, "second")
        await world.delete("Pod", "first")
        await placed(world, "second")

    run(scenario)


def test_a_pod_of_a_controller_is_placed_as_it_is_created_and_others_wait_their_turn(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Pod", "first", spec=spec("1"))
        await placed(world, "first")
        created = await world.create("Pod", "second", spec=spec("500m"))
        assert created["spec"]["nodeName"] == "shallop"
        assert find_condition(created, "PodScheduled")["status"] == "True"

        async def told() -> bool:
            events = await world.list("Event")
            return {e["involvedObject"]["name"] for e in events if e["reason"] == "Scheduled"} == {"first", "second"}

        await world.eventually(told)
        assert not (await world.create("Pod", "large", spec=spec("1")))["spec"].get("nodeName")
        await message_of(world, "large")
        small = await world.create("Pod", "small", spec=spec("100m"))
        assert not small["spec"].get("nodeName"), "who waits is looked at first"
        await placed(world, "small")

    run(scenario)


def test_what_was_offered_to_a_pod_that_was_not_stored_is_free_again(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Pod", "first", spec=spec("1"))
        await placed(world, "first")
        store, put = world.verbs.store, world.verbs.store.put

        async def full(*_: Any) -> None:
            raise UnavailableError("the disk is full")

        store.put = full
        with pytest.raises(UnavailableError):
            await world.create("Pod", "lost", spec=spec("1"))
        store.put = put
        await world.create("Pod", "second", spec=spec("1"))
        await placed(world, "second")

    run(scenario)
