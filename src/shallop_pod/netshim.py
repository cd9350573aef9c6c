"""
Pod addresses and names where Pods share the machine's network: hooks in Python's socket module.

Ten Pods may listen on 0.0.0.0:8080: each binds its own address of 127.0.0.0/8 instead (``SHALLOP_POD_IP``). Names of
Services and Pods come from the file ``SHALLOP_HOSTS`` first. Programs that are not Python do not see this; see
docs/limits.md.
"""

from __future__ import annotations

import os
import socket
from typing import Any

__all__ = ["install"]


def install() -> None:
    """Hook in when the node says that this process shares the machine's network; twice is as good as once."""
    address, hosts = os.environ.get("SHALLOP_POD_IP"), os.environ.get("SHALLOP_HOSTS")
    if not address or not hosts or getattr(socket, "_shallop_hooked", False):
        return
    socket._shallop_hooked = True  # type: ignore[attr-defined]
    _hook_bind(address)
    _hook_names(hosts)


def _hook_bind(pod_address: str) -> None:
    original = socket.socket.bind

    def bind(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and self.family == socket.AF_INET and address[0] in ("", "0.0.0.0"):
            address = (pod_address, *address[1:])
        elif isinstance(address, tuple) and self.family == socket.AF_INET6 and address[0] in ("", "::"):
            self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            address = (f"::ffff:{pod_address}", *address[1:])
        original(self, address)

    socket.socket.bind = bind  # type: ignore[assignment, method-assign]


def _hook_names(path: str) -> None:
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **keywords: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return original(_lookup(path, name) or host, *arguments, **keywords)

    socket.getaddrinfo = getaddrinfo


def _lookup(path: str, name: str | None) -> str | None:
    if not name or name == "localhost":
        return None
    try:
        with open(path) as file:
            for line in file:
                address, *names = line.split()
                if name.rstrip(".").lower() in names:
                    return address
    except (OSError, ValueError):
        return None
    return None
