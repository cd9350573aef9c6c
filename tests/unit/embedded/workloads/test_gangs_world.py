"""Pods of a PodGroup against the real API and scheduler: together or not at all. The node has 2 CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shallop.kube.objects import find_condition

Object = dict[str, Any]


def member(group: str, cpu: str) -> Object:
    container = {"name": "a", "image": "i", "resources": {"requests": {"cpu": cpu}}}
    return {
        "metadata": {"labels": {"scheduling.x-k8s.io/pod-group": group}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }


async def make_gang(world: Any, name: str, cpu: str, count: int, **spec: Any) -> list[str]:
    await world.create("PodGroup", name, spec={"minMember": count, **spec})
    names = [f"{name}-{number}" for number in range(count)]
    for pod in names:
        await world.create("Pod", pod, **member(name, cpu))
    return names


async def has_node(world: Any, name: str) -> bool:
    return bool((await world.get("Pod", name))["spec"].get("nodeName"))


async def placed(world: Any, names: list[str]) -> list[bool]:
    return [await has_node(world, name) for name in names]


async def all_placed(world: Any, names: list[str]) -> None:
    async def check() -> bool:
        return all(await placed(world, names))

    await world.eventually(check)


async def reason_of(world: Any, name: str) -> str:
    async def unscheduled() -> str:
        condition = find_condition(await world.get("Pod", name), "PodScheduled") or {}
        return str(condition.get("message", "")) if condition.get("status") == "False" else ""

    return str(await world.eventually(unscheduled))


def test_two_gangs_that_each_half_fit_run_one_after_the_other(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        # Interleaved: without groups each of them would get one of the two places.
        for name in ("a", "b"):
            await world.create("PodGroup", name, spec={"minMember": 2})
        for number in range(2):
            for name in ("a", "b"):
                await world.create("Pod", f"{name}-{number}", **member(name, "1"))
        groups = {name: [f"{name}-0", f"{name}-1"] for name in ("a", "b")}

        async def one_runs() -> str:
            states = {name: await placed(world, pods) for name, pods in groups.items()}
            return next((name for name, state in states.items() if all(state)), "")

        first = await world.eventually(one_runs)
        other = "b" if first == "a" else "a"
        message = await reason_of(world, f"{other}-1")
        assert message == (
            f"0/1 nodes are available: 1 Insufficient cpu. PodGroup default/{other} starts 2 Pods together or none."
        )
        assert await placed(world, groups[other]) == [False, False]
        for name in groups[first]:
            await world.delete("Pod", name)
        await all_placed(world, groups[other])

        async def counted() -> bool:
            return (await world.get("PodGroup", other)).get("status", {}).get("phase") == "Running"

        await world.eventually(counted)

    run(scenario)


def test_a_gang_waits_for_all_of_its_pods_and_for_its_group(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Pod", "g-0", **member("g", "1"))
        assert await reason_of(world, "g-0") == "PodGroup default/g is not there"
        await world.create("PodGroup", "g", spec={"minMember": 2})

        async def waits_for_more() -> bool:
            return await reason_of(world, "g-0") == "PodGroup default/g starts 2 Pods together; 1 are there"

        await world.eventually(waits_for_more)
        await world.create("Pod", "g-1", **member("g", "1"))
        await all_placed(world, ["g-0", "g-1"])

    run(scenario)


def test_a_member_that_has_failed_is_replaced_by_itself(run: Callable[..., None], pods_that: Any) -> None:
    async def scenario(world: Any) -> None:
        names = await make_gang(world, "g", "1", 2)
        await all_placed(world, names)
        await world.set_status(await world.get("Pod", "g-0"), **pods_that["end"](await world.get("Pod", "g-0"), 1))
        await world.create("Pod", "again", **member("g", "1"))
        await all_placed(world, ["again"])

    run(scenario)


def test_min_resources_keep_room_for_what_comes_later(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Pod", "small", **{"spec": member("", "500m")["spec"]})
        await all_placed(world, ["small"])
        names = await make_gang(world, "g", "500m", 2, minResources={"cpu": "2"})
        assert (await reason_of(world, "g-1")).startswith("Insufficient cpu for minResources.")
        await world.delete("Pod", "small")
        await all_placed(world, names)

    run(scenario)


async def make_priority(world: Any, name: str, value: int) -> None:
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
    await world.client.create({**kind, "metadata": {"name": name}, "value": value})


async def fill(world: Any, names: list[str], cpu: str, priority: int) -> None:
    await make_priority(world, f"p{priority}", priority)
    for name in names:
        await world.create("Pod", name, spec={**member("", cpu)["spec"], "priorityClassName": f"p{priority}"})
    await all_placed(world, names)


async def make_important_gang(world: Any, cpu: str, count: int, **spec: Any) -> list[str]:
    await make_priority(world, "high", 1000)
    await world.create("PodGroup", "g", spec={"minMember": count, **spec})
    names = [f"g-{number}" for number in range(count)]
    for name in names:
        pod = member("g", cpu)
        await world.create("Pod", name, **{**pod, "spec": {**pod["spec"], "priorityClassName": "high"}})
    return names


def test_a_gang_of_higher_priority_ends_as_many_as_make_room_for_all_of_it(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await fill(world, ["low-0", "low-1"], "500m", 1)
        await fill(world, ["mid-0", "mid-1"], "500m", 10)
        await all_placed(world, await make_important_gang(world, "500m", 3))
        left = [pod["metadata"]["name"] for pod in (await world.list("Pod"))]
        assert len([name for name in left if name.startswith("mid")]) == 1 and not [n for n in left if "low" in n]

    run(scenario)


@pytest.mark.parametrize(("cpu", "spec"), [("1200m", {}), ("500m", {"minResources": {"cpu": "3"}})])
def test_nobody_is_ended_for_a_gang_that_would_not_fit_whole(
    run: Callable[..., None], cpu: str, spec: dict[str, Any]
) -> None:
    async def scenario(world: Any) -> None:
        await fill(world, ["low-0", "low-1"], "1", 1)
        names = await make_important_gang(world, cpu, 2, **spec)
        for name in names:
            await reason_of(world, name)
        assert await placed(world, ["low-0", "low-1"]) == [True, True]
        # What fits alone is served, so the scheduler has looked at everything before.
        await world.create("Pod", "tiny", spec=member("", "0")["spec"])
        await all_placed(world, ["tiny"])
        assert await placed(world, [*names, "low-0", "low-1"]) == [False, False, True, True]

    run(scenario)


@pytest.mark.parametrize("writes", range(1, 12))
def test_a_gang_that_was_half_placed_when_the_platform_died_is_completed(
    killed_after: Callable[..., None], writes: int
) -> None:
    async def before(world: Any) -> None:
        await make_gang(world, "g", "1", 2)
        await world.dead.wait()

    async def after(world: Any) -> None:
        await all_placed(world, ["g-0", "g-1"])

    killed_after(writes, before, after)
