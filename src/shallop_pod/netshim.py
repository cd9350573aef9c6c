"""
Pod addresses and names where Pods share the machine's network: hooks in Python's socket module.

Ten Pods may listen on 0.0.0.0:8080: each binds its own address of 127.0.0.0/8 instead (``SHALLOP_POD_IP``), also where
it asks for loopback; a connection to loopback goes there when the Pod listens, else to the machine. Names of Services
and Pods come from the file ``SHALLOP_HOSTS`` first.

Limits: programs that are not Python and extensions with sockets of their own (gRPC, Gloo, NCCL) do not see this, and
what a Pod offers on loopback can be reached by other Pods. See docs/design/isolation.md.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

__all__ = ["LOW_PORTS_AT", "install", "is_listening"]

# An ordinary user cannot listen on ports below 1024: there a Service's port N is this plus N.
LOW_PORTS_AT = 60_000

_WILDCARDS = ("", "0.0.0.0", "::")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LISTEN_STATE = "0A"


def install() -> None:
    """Hook in when the node says that this process shares the machine's network; twice is as good as once."""
    address, hosts = os.environ.get("SHALLOP_POD_IP"), os.environ.get("SHALLOP_HOSTS")
    if not address or not hosts or getattr(socket, "_shallop_hooked", False):
        return
    socket._shallop_hooked = True  # type: ignore[attr-defined]
    if address != "127.0.0.1":
        _hook_addresses(address)
    _hook_names(hosts)


def _hook_addresses(pod_address: str) -> None:
    bind, connect, connect_ex = socket.socket.bind, socket.socket.connect, socket.socket.connect_ex

    def pod_bind(self: socket.socket, where: Any) -> None:
        bind(self, _own_address(self, where, pod_address))

    def pod_connect(self: socket.socket, where: Any) -> None:
        connect(self, _near_address(self, where, pod_address))

    def pod_connect_ex(self: socket.socket, where: Any) -> int:
        return connect_ex(self, _near_address(self, where, pod_address))

    for name, function in (("bind", pod_bind), ("connect", pod_connect), ("connect_ex", pod_connect_ex)):
        setattr(socket.socket, name, function)


def _own_address(sock: socket.socket, where: Any, pod_address: str) -> Any:
    """Return what to bind instead of ``where``."""
    if not isinstance(where, tuple) or where[0] not in (*_WILDCARDS, *_LOOPBACK):
        return where
    if sock.family == socket.AF_INET:
        return (pod_address, *where[1:])
    if sock.family == socket.AF_INET6:
        if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            # The second half of a server on both protocols. All Pods have one loopback address of IPv6: any port of it.
            return ("::1", 0, *where[2:])
        return (f"::ffff:{pod_address}", *where[1:])
    return where


def _near_address(sock: socket.socket, where: Any, pod_address: str) -> Any:
    """Return what to connect to instead of ``where``: what listens on loopback in this Pod is at its own address."""
    if not isinstance(where, tuple) or sock.family != socket.AF_INET:
        return where
    host, port = where[0], int(where[1])
    if host in _LOOPBACK:
        return (pod_address, port) if is_listening(pod_address, port) else where
    if host.startswith("127.") and port < 1024 and not is_listening(host, port):
        return (host, LOW_PORTS_AT + port) if is_listening(host, LOW_PORTS_AT + port) else where
    return where


def is_listening(address: str, port: int) -> bool:
    """Look in the kernel's tables: a trial connection would be one that the server does not expect."""
    wanted = f"{struct.unpack('=I', socket.inet_aton(address))[0]:08X}:{port:04X}"
    mapped = f"0000000000000000FFFF0000{wanted}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                if any(row[1] in (wanted, mapped) and row[3] == _LISTEN_STATE for row in map(str.split, file)):
                    return True
        except OSError:
            continue
    return False


def _hook_names(path: str) -> None:
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, _with_names(getattr(socket, name), path))


def _with_names(original: Any, path: str) -> Any:
    def resolve(host: Any, *arguments: Any, **keywords: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return original(_lookup(path, name) or host, *arguments, **keywords)

    resolve.__name__ = resolve.__qualname__ = original.__name__
    return resolve


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
