"""When probes change their verdict."""

from __future__ import annotations

import asyncio
from typing import Any

from shallop.embedded.kubelet.probes import check, watch_probe


def reports(answers: str, **options: Any) -> list[str]:
    """Watch a probe that answers ``+`` or ``-`` in turn; returns what is reported, with the number of the look."""
    found: list[str] = []
    looks = 0

    async def once() -> str:
        nonlocal looks
        if looks == len(answers):
            raise asyncio.CancelledError
        looks += 1
        return "" if answers[looks - 1] == "+" else "no"

    async def main() -> None:
        probe = {"periodSeconds": 0.0001, "failureThreshold": 3, "successThreshold": 1, **options}
        task = asyncio.create_task(
            watch_probe(probe, once, lambda good, _: found.append(f"{looks}{'+' if good else '-'}"))
        )
        await asyncio.wait([task])

    asyncio.run(main())
    return found


def test_failures_count_up_to_the_threshold() -> None:
    assert reports("+--+") == ["1+"]
    assert reports("+---+") == ["1+", "4-", "5+"]


def test_successes_count_too() -> None:
    assert reports("---+-++", successThreshold=2)[-1] == "7+"


def test_a_command_that_fails_says_what_it_printed_or_its_code() -> None:
    def problem(code: int, output: str) -> str:
        async def execute(argv: list[str]) -> tuple[int, str]:
            return code, output

        probe = {"exec": {"command": ["a", "b"]}}
        return asyncio.run(check(probe, {"name": "main"}, "127.0.0.1", execute))

    assert problem(2, "") == "command exited with 2"
    assert problem(2, "no disk\n") == "no disk"
    assert problem(0, "fine") == ""


def test_a_port_may_be_named() -> None:
    async def execute(argv: list[str]) -> tuple[int, str]:
        return 0, ""

    probe = {"tcpSocket": {"port": "web"}}
    problem = asyncio.run(check(probe, {"name": "main", "ports": []}, "127.0.0.1", execute))
    assert problem == "the probe's port 'web' is not a port of container 'main'"
