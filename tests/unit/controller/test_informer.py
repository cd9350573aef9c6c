"""An informer ends up with what the server has, and tells every change once, whatever happens to its connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shallop.controller import Informer
from shallop.controller.informer import Change
from shallop.embedded.apiserver import ApiServer
from shallop.errors import ExpiredError, NotFoundError, UnavailableError
from shallop.kube.objects import Gvk, Key

CONFIG_MAP = Gvk("v1", "ConfigMap")


def config_map(name: str, **data: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


class Line:
    """A client whose connection can be cut; ``failures`` are raised by the next calls of list and watch."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.failures: list[Exception] = []
        self.calls: list[str] = []
        self._cut = asyncio.Event()

    def cut(self) -> None:
        self._cut.set()

    async def list(self, gvk: Gvk) -> Any:
        self.calls.append("list")
        if self.failures:
            raise self.failures.pop(0)
        return await self.client.list(gvk)

    async def watch(self, gvk: Gvk, *, resource_version: str) -> AsyncIterator[Any]:
        self.calls.append("watch")
        if self.failures:
            raise self.failures.pop(0)
        self._cut.clear()
        stream = self.client.watch(gvk, resource_version=resource_version)
        cut = asyncio.ensure_future(self._cut.wait())
        event = asyncio.ensure_future(anext(stream))
        try:
            while True:
                await asyncio.wait({event, cut}, return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    raise UnavailableError("connection reset by peer")
                yield event.result()
                event = asyncio.ensure_future(anext(stream))
        finally:
            for task in (cut, event):
                task.cancel()
            await asyncio.wait({cut, event})
            await stream.aclose()

    async def follow(self, gvk: Gvk, *, resource_version: str, tell: Callable[[Any], None]) -> None:
        async for event in self.watch(gvk, resource_version=resource_version):
            tell(event)


@asynccontextmanager
async def informing() -> AsyncIterator[tuple[Any, Line, Informer, list[Change]]]:
    server = ApiServer(None, admin_token="t")
    await server.start()
    line, changes = Line(server.client()), []
    informer = Informer(line, CONFIG_MAP)  # type: ignore[arg-type]
    informer.add_handler(changes.append)
    task = asyncio.create_task(informer.run())
    try:
        await asyncio.wait_for(informer.synced.wait(), 30)
        yield server.client(), line, informer, changes
    finally:
        task.cancel()
        await asyncio.wait({task})
        await server.stop()


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0.005)


def told(changes: list[Change], name: str) -> list[str]:
    states = [(c.new or {}).get("data", {}).get("n", "gone") for c in changes if _name(c) == name]
    return [str(state) for state in states]


def _name(change: Change) -> str:
    return str((change.new or change.old or {})["metadata"]["name"])


def test_a_broken_stream_goes_on_from_the_last_revision() -> None:
    async def play() -> None:
        async with informing() as (client, line, informer, changes):
            await client.create(config_map("a", n="1"))
            await until(lambda: told(changes, "a") == ["1"])
            line.cut()
            await client.update(config_map("a", n="2"))
            await client.update(config_map("a", n="3"))
            await until(lambda: told(changes, "a") == ["1", "2", "3"])
            # Events that were there already come before the news that the line is cut.
            await until(lambda: line.calls == ["list", "watch", "watch"])
            assert informer.store.get(Key("default", "a")) is not None

    asyncio.run(play())


@pytest.mark.parametrize("failure", [ExpiredError("too old"), UnavailableError("connection refused")])
def test_what_happened_meanwhile_is_found_by_a_list(failure: Exception) -> None:
    async def play() -> None:
        async with informing() as (client, line, informer, changes):
            for name in ("kept", "changed", "deleted", "replaced"):
                await client.create(config_map(name, n="1"))
            await until(lambda: len(changes) >= 4 and told(changes, "replaced") == ["1"])
            line.failures = [failure] * 3
            line.cut()
            await client.update(config_map("changed", n="2"))
            await client.delete(CONFIG_MAP, "deleted", "default")
            await client.delete(CONFIG_MAP, "replaced", "default")
            await client.create(config_map("replaced", n="2"))
            await client.create(config_map("new", n="1"))
            await until(lambda: told(changes, "new") == ["1"])
            assert told(changes, "kept") == ["1"]
            assert told(changes, "changed") == ["1", "2"]
            assert told(changes, "deleted") == ["1", "gone"]
            assert told(changes, "replaced")[:1] + told(changes, "replaced")[-2:] == ["1", "gone", "2"]
            stored = {obj["metadata"]["name"] for obj in informer.store.list("default")}
            assert {"kept", "changed", "replaced", "new"} <= stored and "deleted" not in stored

    asyncio.run(play())


def test_a_kind_that_is_not_served_is_an_empty_one_until_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shallop.controller.informer._ABSENT_S", 0.01)

    async def play() -> None:
        async with informing() as (client, line, informer, changes):
            appeared: list[bool] = []
            informer.on_appeared(lambda: appeared.append(informer.served))
            await client.create(config_map("a", n="1"))
            await until(lambda: told(changes, "a") == ["1"])
            line.failures = [NotFoundError("no such kind")] * 3
            line.cut()
            await until(lambda: not informer.served)
            assert not informer.store.list() and informer.synced.is_set()
            await until(lambda: appeared == [True])
            assert told(changes, "a") == ["1", "gone", "1"]

    asyncio.run(play())


def test_the_store_lists_a_namespace_and_what_an_owner_has() -> None:
    async def play() -> None:
        async with informing() as (client, _, informer, _changes):
            await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
            other = config_map("b")
            other["metadata"] |= {"namespace": "team", "ownerReferences": [reference("uid-1")]}
            await client.create(config_map("a"))
            await client.create(other)
            await until(lambda: len(informer.store.list("team")) == 1 and len(informer.store.list("default")) == 1)
            assert [obj["metadata"]["name"] for obj in informer.store.by_owner("uid-1")] == ["b"]
            await client.delete(CONFIG_MAP, "b", "team")
            await until(lambda: not informer.store.list("team"))
            assert informer.store.by_owner("uid-1") == []

    asyncio.run(play())


def reference(uid: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}


def test_informers_of_one_client_and_kind_share_a_stream_as_long_as_one_runs() -> None:
    async def play() -> None:
        async with informing() as (client, line, first, _):
            await client.create(config_map("a", n="1"))
            second, changes = Informer(line, CONFIG_MAP), []  # type: ignore[arg-type]
            await until(lambda: second.store.get(Key("default", "a")) is not None)
            second.add_handler(changes.append)
            assert told(changes, "a") == ["1"]
            task = asyncio.create_task(second.run())
            await client.update(config_map("a", n="2"))
            await until(lambda: told(changes, "a") == ["1", "2"])
            assert (line.calls, second.store is first.store) == (["list", "watch"], True)
            task.cancel()
            await asyncio.wait({task})
            await client.update(config_map("a", n="3"))
            await until(lambda: (first.store.get(Key("default", "a")) or {})["data"]["n"] == "3")
            assert told(changes, "a") == ["1", "2"]

    asyncio.run(play())


def test_an_informer_that_runs_again_hears_what_has_changed_meanwhile() -> None:
    async def play() -> None:
        server = ApiServer(None, admin_token="t")
        await server.start()
        client, changes = server.client(), []
        informer = Informer(client, CONFIG_MAP)
        for number in "12":
            informer.add_handler(changes.append)
            task = asyncio.create_task(informer.run())
            await until(informer.synced.is_set)
            task.cancel()
            await asyncio.wait({task})
            await client.apply(config_map("a", n=number))
        informer.add_handler(changes.append)
        task = asyncio.create_task(informer.run())
        await until(lambda: told(changes, "a")[-1:] == ["2"])
        task.cancel()
        await asyncio.wait({task})
        await server.stop()

    asyncio.run(play())
