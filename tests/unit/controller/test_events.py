"""Events reach the API in the background, however many come at once, and repetitions only count up."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from shallop.controller.events import EventRecorder
from shallop.embedded.apiserver import ApiServer
from shallop.kube.client import Client
from shallop.kube.objects import Gvk

EVENT = Gvk("v1", "Event")


def run(scenario: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        server = ApiServer(None, admin_token="token")
        await server.start()
        try:
            async with asyncio.timeout(30):
                await scenario(server.client())
        finally:
            await server.stop()

    asyncio.run(main())


def recorder(client: Client) -> EventRecorder:
    return EventRecorder(client, "tester", lambda: datetime(2026, 1, 1, tzinfo=UTC))


def pod(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": name}}


async def told(client: Client) -> dict[tuple[str, str, str], int]:
    events = (await client.list(EVENT, "default")).items
    return {(e["involvedObject"]["name"], e["reason"], e["source"]["component"]): e["count"] for e in events}


def test_all_that_is_recorded_is_written_at_last() -> None:
    async def scenario(client: Client) -> None:
        events = recorder(client)
        other = events.named("other")
        wanted = {}
        for number in range(100):
            teller = other if number % 2 else events
            teller.record(pod(f"p{number}"), "Started", "it runs")
            wanted[(f"p{number}", "Started", "other" if number % 2 else "tester")] = 1
        while await told(client) != wanted:
            await asyncio.sleep(0.01)

    run(scenario)


def test_repetitions_count_up_though_the_recorder_is_another() -> None:
    async def scenario(client: Client) -> None:
        events = recorder(client)
        for _ in range(3):
            events.record(pod("p"), "Failed", "once more")
        await events.flush()
        assert await told(client) == {("p", "Failed", "tester"): 3}
        # As after a restart: another client knows nothing of what this one wrote.
        again = recorder(copy.copy(client))
        for _ in range(2):
            again.record(pod("p"), "Failed", "once more")
        await again.flush()
        assert await told(client) == {("p", "Failed", "tester"): 5}

    run(scenario)


def test_recorders_of_one_client_write_together() -> None:
    async def scenario(client: Client) -> None:
        before = int((await client.list(EVENT, "default")).resource_version)
        first, second = recorder(client), EventRecorder(client, "kubelet", lambda: datetime.now(UTC), host="node")
        first.record(pod("p"), "Scheduled", "it has a node")
        second.record(pod("p"), "Started", "it runs")
        await first.flush()
        assert await told(client) == {("p", "Scheduled", "tester"): 1, ("p", "Started", "kubelet"): 1}
        assert int((await client.list(EVENT, "default")).resource_version) == before + 2

    run(scenario)
