"""Probes: is a container started, alive, ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from shallop.embedded.kubelet.grpc_health import check_health
from shallop.errors import NodeError

__all__ = ["Exec", "check", "watch_probe"]

# argv -> exit code and output; cancelling ends the process
Exec = Callable[[list[str]], Awaitable[tuple[int, str]]]

_MAX_OUTPUT = 1024


async def check(probe: Mapping[str, Any], container: Mapping[str, Any], address: str, execute: Exec) -> str:
    """Probe once; returns what is wrong, empty when all is well."""
    timeout = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(timeout):
            if "exec" in probe:
                code, output = await execute(list(probe["exec"].get("command") or ()))
                return (output.strip()[-_MAX_OUTPUT:] or f"command exited with {code}") if code else ""
            if "httpGet" in probe:
                return await _http(probe["httpGet"], container, address)
            if "grpc" in probe:
                action = probe["grpc"]
                return await check_health(address, int(action["port"]), action.get("service") or "")
            action = probe.get("tcpSocket") or {}
            _, writer = await asyncio.open_connection(action.get("host") or address, _port(action, container))
            writer.close()
            return ""
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    except (OSError, NodeError) as error:
        return str(error)


async def _http(action: Mapping[str, Any], container: Mapping[str, Any], address: str) -> str:
    host, port = action.get("host") or address, _port(action, container)
    path = quote(action.get("path") or "/", safe="/?&=:%+,;@~")
    headers = {header["name"]: header["value"] for header in action.get("httpHeaders") or ()}
    headers = {"Host": f"{host}:{port}", "User-Agent": "kube-probe/1.36", "Connection": "close"} | headers
    reader, writer = await asyncio.open_connection(host, port)
    try:
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        first = await reader.readline()
    finally:
        writer.close()
    parts = first.split()
    if len(parts) < 2 or not parts[1].isdigit():
        return "HTTP probe failed: the answer is no HTTP"
    code = int(parts[1])
    return "" if 200 <= code < 400 else f"HTTP probe failed with statuscode: {code}"


def _port(action: Mapping[str, Any], container: Mapping[str, Any]) -> int:
    wanted = action.get("port")
    if isinstance(wanted, int) or str(wanted).isdigit():
        return int(str(wanted))
    for port in container.get("ports") or ():
        if port.get("name") == wanted:
            return int(port["containerPort"])
    raise NodeError(f"the probe's port {wanted!r} is not a port of container {container['name']!r}")


async def watch_probe(
    probe: Mapping[str, Any],
    once: Callable[[], Awaitable[str]],
    report: Callable[[bool, str], None],
    *,
    until_success: bool = False,
    first_period_s: float | None = None,
) -> None:
    """
    Probe for ever (or until the first success) and report each change of verdict after its threshold.

    Args:
        first_period_s: look this often until the first success: a start is then seen when it happens, not up to a
            period later.
    """
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    period = float(probe.get("periodSeconds") or 10)
    needed = {True: int(probe.get("successThreshold") or 1), False: int(probe.get("failureThreshold") or 3)}
    seen_success = False
    verdict: bool | None = None
    count, last = 0, None
    clock = asyncio.get_running_loop().time
    started = clock()
    while True:
        problem = await once()
        good = not problem
        # Quick looks at the start count as failures only at the pace that was declared.
        early = not seen_success and first_period_s is not None and clock() - started < period * needed[False]
        if good or not early:
            count = count + 1 if good is last else 1
            last = good
            if count >= needed[good] and (verdict is not good or not good):
                verdict = good
                report(good, problem)
        seen_success = seen_success or good
        if good and until_success:
            return
        await asyncio.sleep(min(first_period_s, period) if early and not good and first_period_s else period)
