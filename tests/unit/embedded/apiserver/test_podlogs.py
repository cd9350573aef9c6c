"""Logs of Pods: what the node refuses is an answer of its own, what is silent begins at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shallop.embedded.apiserver.podlogs import open_logs
from shallop.errors import BadRequestError

_POD = {"metadata": {"name": "train", "namespace": "team"}, "spec": {"nodeName": "n", "containers": [{"name": "main"}]}}


class _Node:
    """Answers with these chunks; an exception among them is raised, an event is waited for."""

    def __init__(self, *answers: Any) -> None:
        self._answers = answers

    async def read_logs(self, pod: Any, container: str, **options: Any) -> AsyncIterator[bytes]:
        for answer in self._answers:
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, asyncio.Event):
                await answer.wait()
            else:
                yield answer


async def _read(node: _Node) -> bytes:
    return b"".join([chunk async for chunk in await open_logs(node, _POD, {})])


def test_a_refusal_of_the_node_is_raised_before_the_stream_begins() -> None:
    async def check() -> None:
        with pytest.raises(BadRequestError, match="is waiting to start"):
            await open_logs(_Node(BadRequestError("container is waiting to start")), _POD, {})

    asyncio.run(check())


def test_all_chunks_come_in_order() -> None:
    assert asyncio.run(_read(_Node(b"one\n", b"two\n", b"three\n"))) == b"one\ntwo\nthree\n"


def test_an_empty_log_is_an_empty_stream() -> None:
    assert asyncio.run(_read(_Node())) == b""


def test_a_silent_container_does_not_hold_the_answer_back() -> None:
    async def check() -> None:
        spoken = asyncio.Event()
        async with asyncio.timeout(5):
            chunks = await open_logs(_Node(spoken, b"late\n"), _POD, {"follow": ["true"]})
            spoken.set()
            assert [chunk async for chunk in chunks] == [b"late\n"]

    asyncio.run(check())
