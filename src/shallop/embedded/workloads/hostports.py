"""Ports of the machine that Pods reserve, as amounts of a resource, so that they are counted like any other. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from shallop.kube.objects import Object

__all__ = ["host_ports_of", "is_host_port", "offered_host_ports"]

_PREFIX = "hostPort/"
# All addresses of the machine are one whole; each one of them is a part too small to matter to the others.
_WHOLE, _PART = Decimal(1_000_000), Decimal(1)
_ALL = ("", "0.0.0.0", "::")


def host_ports_of(pod: Object) -> dict[str, Decimal]:
    """Return what a Pod takes: all of a port, or a part of it and all of it at one address."""
    spec = pod["spec"]
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    found: dict[str, Decimal] = {}
    for container in (*(spec.get("containers") or ()), *sidecars):
        for port in container.get("ports") or ():
            if not port.get("hostPort"):
                continue
            name = f"{_PREFIX}{port.get('protocol', 'TCP')}/{port['hostPort']}"
            address = port.get("hostIP") or ""
            if address in _ALL:
                found[name] = _WHOLE
            else:
                found[name] = max(found.get(name, _PART), _PART)
                found[f"{name}/{address}"] = _WHOLE
    return found


def offered_host_ports(names: Iterable[str]) -> dict[str, Decimal]:
    """Return what every node has of these."""
    return {name: _WHOLE for name in names if is_host_port(name)}


def is_host_port(name: str) -> bool:
    return name.startswith(_PREFIX)
