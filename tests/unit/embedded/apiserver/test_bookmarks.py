"""Bookmarks keep a watch of a quiet kind from falling behind the history of the busy ones."""

from __future__ import annotations

import asyncio

import pytest

from shallop.embedded.apiserver import ApiServer
from shallop.embedded.apiserver.requests import WatchQuery
from shallop.embedded.apiserver.watching import open_watch
from shallop.kube.objects import Gvk


def test_a_bookmark_tells_the_revision_of_the_store_and_not_that_of_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shallop.embedded.apiserver.watching._BOOKMARK_S", 0.02)

    async def play() -> None:
        server = ApiServer(None, admin_token="t")
        await server.start()
        secrets = server.registry.by_gvk(Gvk("v1", "Secret"))
        assert secrets is not None
        query = WatchQuery("", "", resource_version=str(server.store.revision), bookmarks=True)
        events = open_watch(server.store, server.verbs.converter, secrets, "", query)
        assert await anext(events) == []
        metadata = {"name": "busy", "namespace": "default"}
        await server.client().create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        async with asyncio.timeout(30):
            while (bookmark := (await anext(events))[0].bookmark) is not None:
                if bookmark["metadata"]["resourceVersion"] == str(server.store.revision):
                    break
        assert bookmark is not None
        await events.aclose()
        await server.stop()

    asyncio.run(play())
