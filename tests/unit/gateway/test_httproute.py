"""What the gateway says of routes that ask for more than it does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shallop.controller.manager import Manager
from shallop.embedded.apiserver import ApiServer
from shallop.gateway.httproute import HTTPROUTE, find_unsupported
from shallop.kube.objects import Object
from shallop.settings import Settings
from shallop.store.database import Database

pytestmark = pytest.mark.anyio
MIRROR = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "b"}}}


def route(*filters: Any) -> Object:
    rule = {"filters": list(filters), "backendRefs": [{"name": "a", "port": 80}]}
    metadata = {"name": "a", "namespace": "default"}
    return {"apiVersion": HTTPROUTE.api_version, "kind": "HTTPRoute", "metadata": metadata, "spec": {"rules": [rule]}}


def test_what_is_not_honoured_is_named_by_its_field() -> None:
    rewrite = {"type": "URLRewrite", "urlRewrite": {"hostname": "x", "path": {"type": "ReplaceFullPath"}}}
    spec: dict[str, Any] = route(MIRROR, rewrite)["spec"]
    spec["rules"][0]["backendRefs"][0]["filters"] = [MIRROR]
    spec["rules"].append(
        {"backendRefs": [{"kind": "InferencePool", "name": "p"}], "timeouts": {"backendRequest": "1s"}}
    )
    assert find_unsupported(spec) == [
        "spec.rules[0].filters[0] (RequestMirror)",
        "spec.rules[0].filters[1].urlRewrite.hostname",
        "spec.rules[0].backendRefs[0].filters",
        "spec.rules[1].backendRefs[0].kind",
        "spec.rules[1].timeouts.backendRequest",
    ]


async def test_the_status_of_a_route_says_whether_it_is_accepted(tmp_path: Path) -> None:
    server, database = ApiServer(None, admin_token="token"), Database(f"sqlite:///{tmp_path}/rows.db")
    await server.start()
    await server.register_kinds([HTTPROUTE])
    client = server.client()
    manager, started = Manager(client, Settings(home=tmp_path), database, [HTTPROUTE]), asyncio.Event()
    running = asyncio.create_task(manager.run(started))

    async def accepted(value: str) -> str:
        async with asyncio.timeout(20):
            while True:
                found = await client.get(HTTPROUTE.gvk, "a", "default")
                for parent in (found.get("status") or {}).get("parents") or ():
                    condition = next(item for item in parent["conditions"] if item["type"] == "Accepted")
                    if condition["status"] == value:
                        return str(condition.get("message"))
                await asyncio.sleep(0.005)

    try:
        await started.wait()
        await client.create(route(MIRROR))
        assert "spec.rules[0].filters[0] (RequestMirror)" in await accepted("False")
        await client.apply(route())
        await accepted("True")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await manager.events.flush()
        await server.stop()
        database.close()
