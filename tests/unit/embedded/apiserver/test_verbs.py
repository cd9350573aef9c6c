"""The verbs through the in-process client: paging, watching, conflicts, kinds of ours."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shallop.controller import Kind
from shallop.embedded.apiserver import ApiServer
from shallop.embedded.apiserver.client import LocalClient
from shallop.embedded.apiserver.requests import ListQuery
from shallop.errors import AlreadyExistsError, ConflictError, ExpiredError, FieldError, InvalidError, NotFoundError
from shallop.kube.objects import Gvk

CONFIG_MAP = Gvk("v1", "ConfigMap")
POD = Gvk("v1", "Pod")


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": data,
    }


def run(test: Callable[[ApiServer, LocalClient], Awaitable[None]]) -> None:
    async def inside() -> None:
        server = ApiServer(None, admin_token="t")
        await server.start()
        try:
            await test(server, server.client())
        finally:
            await server.stop()

    asyncio.run(inside())


def test_pages_keep_the_revision_of_the_first() -> None:
    async def test(server: ApiServer, client: LocalClient) -> None:
        resource = server.registry.by_gvk(CONFIG_MAP)
        assert resource is not None
        for name in "abcde":
            await client.create(config_map(name))
        first = await server.verbs.list(resource, "default", ListQuery(limit=2))
        assert [stored.name for stored in first.items] == ["a", "b"]
        assert first.remaining == 3
        await client.delete(CONFIG_MAP, "d", "default")
        await client.create(config_map("c2"))
        second = await server.verbs.list(resource, "default", ListQuery(limit=2, continue_=first.continue_))
        third = await server.verbs.list(resource, "default", ListQuery(limit=2, continue_=second.continue_))
        assert [stored.name for stored in (*second.items, *third.items)] == ["c", "d", "e"]
        assert {first.revision, second.revision, third.revision} == {first.revision}
        assert third.continue_ == ""

    run(test)


def test_a_write_that_changes_nothing_makes_no_event() -> None:
    async def test(server: ApiServer, client: LocalClient) -> None:
        created = await client.apply(config_map("a", k="1"))
        again = await client.apply(config_map("a", k="1"))
        patched = await client.patch(CONFIG_MAP, "a", "default", {"data": {"k": "1"}})
        versions = {obj["metadata"]["resourceVersion"] for obj in (created, again, patched)}
        assert len(versions) == 1

    run(test)


def test_a_stale_update_conflicts_and_a_second_create_too() -> None:
    async def test(server: ApiServer, client: LocalClient) -> None:
        old = await client.create(config_map("a"))
        await client.patch(CONFIG_MAP, "a", "default", {"data": {"k": "1"}})
        with pytest.raises(ConflictError):
            await client.update(old)
        with pytest.raises(AlreadyExistsError):
            await client.create(config_map("a"))

    run(test)


def test_concurrent_patches_are_all_kept() -> None:
    async def test(server: ApiServer, client: LocalClient) -> None:
        await client.create(config_map("a"))
        await asyncio.gather(*(client.patch(CONFIG_MAP, "a", "default", {"data": {f"k{n}": "v"}}) for n in range(50)))
        assert len((await client.get(CONFIG_MAP, "a", "default"))["data"]) == 50

    run(test)


def test_a_watch_from_a_list_misses_nothing() -> None:
    async def test(server: ApiServer, client: LocalClient) -> None:
        await client.create(config_map("a"))
        listing = await client.list(CONFIG_MAP, "default")
        await client.patch(CONFIG_MAP, "a", "default", {"data": {"k": "1"}})
        await client.delete(CONFIG_MAP, "a", "default")
        seen = []
        async for event in client.watch(CONFIG_MAP, "default", resource_version=listing.resource_version):
            seen.append((event.type, event.object["metadata"]["name"]))
            if event.type == "DELETED":
                break
        assert seen == [("MODIFIED", "a"), ("DELETED", "a")]

    run(test)


def test_entering_and_leaving_a_selection_are_creation_and_deletion() -> None:
    async def test(server: ApiServer, client: LocalClient) -> None:
        start = (await client.list(CONFIG_MAP)).resource_version
        await client.create(config_map("a"))
        for label in ("x", "x", None):
            await client.patch(CONFIG_MAP, "a", "default", {"metadata": {"labels": {"l": label, "n": str(label)}}})
            await client.patch(CONFIG_MAP, "a", "default", {"data": {"touched": str(label)}})
        types = []
        async for event in client.watch(CONFIG_MAP, resource_version=start, label_selector="l=x"):
            types.append(event.type)
            if event.type == "DELETED":
                break
        assert types == ["ADDED", "MODIFIED", "DELETED"]

    run(test)


def test_a_version_before_the_history_is_expired() -> None:
    async def test(server: ApiServer, client: LocalClient) -> None:
        with pytest.raises(ExpiredError):
            async for _ in client.watch(CONFIG_MAP, resource_version="1"):
                break

    run(test)


def test_watches_end_when_the_server_stops() -> None:
    async def inside() -> None:
        server = ApiServer(None, admin_token="t")
        await server.start()
        client = server.client()
        revision = (await client.list(CONFIG_MAP)).resource_version

        async def watch() -> None:
            async for _ in client.watch(CONFIG_MAP, resource_version=revision):
                pass

        task = asyncio.create_task(watch())
        await asyncio.sleep(0)
        await server.stop()
        await asyncio.wait_for(task, 2)

    asyncio.run(inside())


def test_a_scheduled_pod_is_deleted_in_two_steps() -> None:
    async def test(server: ApiServer, client: LocalClient) -> None:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"containers": [{"name": "a", "image": "x"}]},
        }
        await client.create(pod)
        body = {"target": {"kind": "Node", "name": "n"}}
        await client.create_subresource(POD, "p", "default", "binding", body)
        await client.delete(POD, "p", "default")
        marked = await client.get(POD, "p", "default")
        assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
        assert marked["spec"]["nodeName"] == "n"
        await client.delete(POD, "p", "default", grace_period_s=0)
        with pytest.raises(NotFoundError):
            await client.get(POD, "p", "default")

    run(test)


def _boat(**spec: object) -> dict[str, Any]:
    return {
        "apiVersion": "harbour.example.com/v1",
        "kind": "Boat",
        "metadata": {"name": "b", "namespace": "default"},
        "spec": spec,
    }


def _default(obj: dict[str, Any]) -> dict[str, Any]:
    return obj | {"spec": {"sails": 1} | obj["spec"]}


def _validate(obj: dict[str, Any], old: dict[str, Any] | None) -> list[FieldError]:
    return [] if obj["spec"]["sails"] < 9 else [FieldError.invalid("spec.sails", obj["spec"]["sails"], "too many")]


BOAT = Kind(
    api_version="harbour.example.com/v1",
    kind="Boat",
    plural="boats",
    schema={
        "type": "object",
        "properties": {
            "spec": {"type": "object", "properties": {"sails": {"type": "integer"}}},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    },
    default=_default,
    validate=_validate,
)


def test_kinds_of_ours_are_served_with_their_admission() -> None:
    async def test(server: ApiServer, client: LocalClient) -> None:
        await server.register_kinds([BOAT])
        created = await client.create(_boat())
        assert created["spec"] == {"sails": 1}
        with pytest.raises(InvalidError, match="too many"):
            await client.patch(BOAT.gvk, "b", "default", {"spec": {"sails": 9}})
        with_status = await client.patch_status(created, {"afloat": True})
        assert with_status["status"] == {"afloat": True}
        assert with_status["metadata"]["generation"] == 1

    run(test)
