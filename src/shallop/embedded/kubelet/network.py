"""Addresses of Pods, the bridge between them, and Services: a proxy for each port, names in ``/etc/hosts``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import itertools
import json
import logging
import os
import socket
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from shallop.embedded.kubelet.hosts import HostsFiles
from shallop.embedded.kubelet.outside import close_way_out, open_way_out, reachable_resolv_conf
from shallop.kube.objects import Object, labels_of
from shallop.settings import Settings
from shallop_pod.netlink import Netlink
from shallop_pod.netshim import LOW_PORTS_AT

__all__ = ["Network", "ServicePort", "endpoints_of", "routed_networks", "service_of_slice", "service_ports"]

log = logging.getLogger(__name__)
_SO_BINDTODEVICE = 25
# With networks of their own: each bridge, of which there are 255, has 1024 addresses, as it can have 1023 ports.
_BRIDGED_PODS = ipaddress.IPv4Network("10.244.0.0/14")
# Without networks of their own: each instance has one of 4096 shares of both, 1024 addresses large.
_LOOPBACK_PODS = ipaddress.IPv4Network("127.64.0.0/10")
_LOOPBACK_SERVICES = ipaddress.IPv4Network("127.128.0.0/10")
_SHARES, _SHARE_PREFIX = 4096, 22
_CLAIM_PORT = 61_999


class ServicePort(NamedTuple):
    """Where a Service listens for Pods."""

    namespace: str
    service: str
    cluster_ip: str
    port: int
    name: str


def service_ports(services: Iterable[Object]) -> list[ServicePort]:
    """Return the TCP ports of all Services that have a cluster IP."""
    found = []
    for service in services:
        spec, metadata = service.get("spec") or {}, service["metadata"]
        if spec.get("clusterIP") in (None, "", "None"):
            continue
        for port in spec.get("ports") or ():
            if port.get("protocol", "TCP") == "TCP":
                name = port.get("name") or ""
                found.append(
                    ServicePort(metadata["namespace"], metadata["name"], spec["clusterIP"], port["port"], name)
                )
    return found


def endpoints_of(slices: Iterable[Object], service: ServicePort) -> list[tuple[str, int]]:
    """Return the ready endpoints behind a Service port; ``slices`` are those of its Service."""
    found = []
    for item in slices:
        ports = item.get("ports") or []
        chosen = [p for p in ports if (p.get("name") or "") == service.name] or (ports if len(ports) == 1 else [])
        for endpoint in item.get("endpoints") or ():
            if chosen and (endpoint.get("conditions") or {}).get("ready", True):
                found += [(address, int(chosen[0]["port"])) for address in endpoint["addresses"]]
    return found


def service_of_slice(item: Object) -> tuple[str, str]:
    """Return namespace and name of the Service that an EndpointSlice belongs to."""
    return item["metadata"]["namespace"], labels_of(item).get("kubernetes.io/service-name", "")


class _Served(NamedTuple):
    """A Service as it was last seen, where it is reached, and where it listens."""

    service: Object | None
    address: str
    listens: frozenset[tuple[str, int]]


def _naming(service: Object | None) -> object:
    """Return what names depend on."""
    spec = (service or {}).get("spec") or {}
    return service is None, spec.get("clusterIP"), spec.get("selector"), bool(spec.get("ports"))


class Network:
    """
    The Pod network of one node.

    Args:
        own_network: True when Pods have network namespaces: addresses of a bridge of ours. Otherwise Pods and Services
            get addresses of 127.0.0.0/8, of which every one can be bound.
    """

    def __init__(self, settings: Settings, *, own_network: bool) -> None:
        self._settings = settings
        self.own_network = own_network
        self.bridge = ""
        # What Pods have to see as /etc/resolv.conf; None leaves them the machine's.
        self.resolv_conf: Path | None = None
        self._subnet = _LOOPBACK_PODS
        self._service_subnet = _LOOPBACK_SERVICES
        self._claim: socket.socket | None = None
        self.problem = ""
        self._used: dict[str, str] = {}
        self._next = itertools.count()
        self._listeners: dict[tuple[str, int], asyncio.Server] = {}
        self._targets: dict[tuple[str, int], list[tuple[str, int]]] = {}
        self._service_addresses: dict[tuple[str, str], str] = {}
        self._services: dict[tuple[str, str], _Served] = {}
        self.hosts = HostsFiles(settings.run / "hosts")

    @property
    def gateway(self) -> str:
        return str(self._subnet[1])

    @property
    def prefix(self) -> int:
        return self._subnet.prefixlen

    def start(self) -> None:
        """Make the bridge, or find the one of this home's last run: Pods that go on are connected to it."""
        self.hosts.start()
        if not self.own_network:
            self._claim_share()
            return
        record = self._settings.run / "network.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            self.bridge = json.loads(record.read_text())["bridge"]
        if not self.bridge or not _exists(self.bridge):
            self.bridge = _make_bridge()
            record.write_text(json.dumps({"bridge": self.bridge}))
        self._subnet = _subnet_of(int(self.bridge.removeprefix("shallop")))
        index = socket.if_nametoindex(self.bridge)
        with Netlink() as netlink:
            netlink.add_address(index, self.gateway, self.prefix)
            netlink.set_up(index)
        try:
            open_way_out(self.bridge, self._subnet)
        except OSError as error:
            self.problem = f"Pods cannot reach other machines: {error}"
            log.warning("%s", self.problem)
        self.resolv_conf = reachable_resolv_conf()

    def _claim_share(self) -> None:
        """Choose addresses that no other instance uses: those of this home's last run when they are free."""
        first = zlib.crc32(os.fsencode(self._settings.home.absolute()))
        for number in range(first, first + _SHARES):
            offset = number % _SHARES << 32 - _SHARE_PREFIX
            subnet = ipaddress.IPv4Network((int(_LOOPBACK_PODS[0]) + offset, _SHARE_PREFIX))
            claim = socket.socket()
            try:
                claim.bind((str(subnet[1]), _CLAIM_PORT))
                claim.listen(1)
            except OSError as error:
                claim.close()
                if error.errno == errno.EADDRNOTAVAIL:
                    # Other systems than Linux have 127.0.0.1 alone.
                    self.problem = "all Pods share the address 127.0.0.1"
                    self._subnet = ipaddress.IPv4Network("127.0.0.1/32")
                    return
                continue
            self._claim, self._subnet = claim, subnet
            self._service_subnet = ipaddress.IPv4Network((int(_LOOPBACK_SERVICES[0]) + offset, _SHARE_PREFIX))
            return
        raise OSError(f"all {_SHARES} shares of {_LOOPBACK_PODS} are in use by other instances")

    def remove(self) -> None:
        """Take the bridge away; nothing of this node may run any more."""
        if self.bridge and _exists(self.bridge):
            with contextlib.suppress(OSError):
                close_way_out(self.bridge)
            with Netlink() as netlink:
                netlink.delete_link(socket.if_nametoindex(self.bridge))
        (self._settings.run / "network.json").unlink(missing_ok=True)

    def allocate(self, uid: str, wanted: str = "") -> str:
        """Return the address of a Pod; ``wanted`` is the one it had before, which may be of another network by now."""
        if uid in self._used:
            return self._used[uid]
        if self._subnet.prefixlen == 32:
            return str(self._subnet[0])
        if wanted and ipaddress.ip_address(wanted) not in self._subnet:
            wanted = ""
        taken = set(self._used.values())
        size = self._subnet.num_addresses - 3
        candidates = (str(self._subnet[2 + next(self._next) % size]) for _ in range(size))
        address = wanted or next((candidate for candidate in candidates if candidate not in taken), "")
        if not address:
            raise OSError(f"all {size} Pod addresses of {self._subnet} are in use")
        self._used[uid] = address
        return address

    def hand_over(self, name: str, uid: str) -> None:
        """Let a Pod have the address that was kept under another name."""
        self._used[uid] = self._used.pop(name)

    def release(self, uid: str) -> None:
        self._used.pop(uid, None)

    async def update(self, changes: Mapping[tuple[str, str], tuple[Object | None, Sequence[Object]]]) -> None:
        """
        Make listeners match, and the names of Services.

        Args:
            changes: (namespace, name) -> the Service as it is now, None when it is gone, and its EndpointSlices.
        """
        renamed = False
        for key, (service, slices) in changes.items():
            before = self._services.pop(key, _Served(None, "", frozenset()))
            ports = {} if service is None else {port: self._address_of(port) for port in service_ports([service])}
            targets = {(address, port.port): endpoints_of(slices, port) for port, address in ports.items()}
            address = next(iter(ports.values()), "")
            for gone in before.listens - targets.keys():
                self._targets.pop(gone, None)
                if listener := self._listeners.pop(gone, None):
                    listener.close()
            if before.address and before.address != address:
                self._drop_address(before.address)
            self._targets |= targets
            for place in targets:
                if place not in self._listeners:
                    await self._listen(place)
            if service is not None:
                self._services[key] = _Served(service, address, frozenset(targets))
            else:
                self._service_addresses.pop(key, None)
            renamed = renamed or _naming(before.service) != _naming(service)
        if renamed or self.hosts.is_waiting:
            addresses = {key: served.address for key, served in self._services.items() if served.address}
            self.hosts.set_services([s.service for s in self._services.values() if s.service is not None], addresses)

    def _address_of(self, port: ServicePort) -> str:
        if self.own_network:
            return port.cluster_ip
        key = (port.namespace, port.service)
        if key not in self._service_addresses:
            taken = set(self._service_addresses.values())
            # By the name, so that it stays over restarts: Pods that go on have it in use.
            first, size = zlib.crc32(repr(key).encode()), self._service_subnet.num_addresses
            candidates = (str(self._service_subnet[(first + n) % size]) for n in range(size))
            self._service_addresses[key] = next(address for address in candidates if address not in taken)
        return self._service_addresses[key]

    async def _listen(self, key: tuple[str, int]) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if self.own_network:
                with Netlink() as netlink:
                    netlink.add_address(socket.if_nametoindex(self.bridge), key[0], 32)
                # Another instance may have the same cluster IP on its own bridge.
                sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, self.bridge.encode() + b"\0")
            try:
                sock.bind(key)
            except PermissionError:
                sock.bind((key[0], LOW_PORTS_AT + key[1]))
            sock.listen(1024)
        except OSError as error:
            sock.close()
            log.warning("Service address %s:%d cannot be served: %s", *key, error)
            return
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        self._listeners[key] = await loop.create_server(lambda: _Inbound(self, key), sock=sock)

    def _drop_address(self, address: str) -> None:
        if self.own_network and _exists(self.bridge):
            with Netlink() as netlink:
                netlink.delete_address(socket.if_nametoindex(self.bridge), address, 32)

    def pick(self, key: tuple[str, int]) -> tuple[str, int] | None:
        """Return an endpoint for a new connection, in turn."""
        targets = self._targets.get(key)
        return targets[next(self._next) % len(targets)] if targets else None

    def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        if self._claim is not None:
            self._claim.close()


def _exists(name: str) -> bool:
    return os.path.exists(f"/sys/class/net/{name}")


def _subnet_of(number: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network((int(_BRIDGED_PODS[0]) + 1024 * number, 22))


def _make_bridge() -> str:
    """Make a bridge, if possible one whose addresses lead nowhere else on this machine: clusters like 10.244.0.0/16."""
    taken = routed_networks(Path("/proc/net/route").read_text())
    numbers = sorted(range(255), key=lambda number: any(_subnet_of(number).overlaps(network) for network in taken))
    for number in numbers:
        name = f"shallop{number}"
        with contextlib.suppress(FileExistsError), Netlink() as netlink:
            netlink.add_bridge(name)
            return name
    raise OSError("all 255 bridges of shallop are in use; 'shallop down' frees those of other homes")


def routed_networks(table: str) -> list[ipaddress.IPv4Network]:
    """Return the networks that a text like /proc/net/route has ways to, without default routes."""
    rows = [line.split() for line in table.splitlines()[1:]]
    pairs = [(int(row[1], 16).to_bytes(4, "little"), int(row[7], 16).to_bytes(4, "little")) for row in rows]
    networks = [ipaddress.IPv4Network((address, str(ipaddress.IPv4Address(mask)))) for address, mask in pairs]
    return [network for network in networks if network.prefixlen]


class _Inbound(asyncio.Protocol):
    """A Pod's connection to a Service; bytes go to one endpoint and back."""

    def __init__(self, network: Network, key: tuple[str, int]) -> None:
        self._network = network
        self._key = key
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._outbound: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._task = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        endpoint = self._network.pick(self._key)
        if endpoint is None:
            self._transport.abort()
            return
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: _Outbound(self._transport), *endpoint
            )
        except OSError:
            self._transport.abort()
            return
        self._outbound = transport
        for data in self._waiting:
            transport.write(data)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        if self._outbound is None:
            self._waiting.append(data)
        else:
            self._outbound.write(data)

    def eof_received(self) -> bool:
        if self._outbound is not None and self._outbound.can_write_eof():
            self._outbound.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._outbound is not None:
            self._outbound.pause_reading()

    def resume_writing(self) -> None:
        if self._outbound is not None:
            self._outbound.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._outbound is not None:
            self._outbound.close()


class _Outbound(asyncio.Protocol):
    """The other half: from the endpoint back to the Pod."""

    def __init__(self, inbound: asyncio.Transport) -> None:
        self._inbound = inbound

    def data_received(self, data: bytes) -> None:
        self._inbound.write(data)

    def pause_writing(self) -> None:
        self._inbound.pause_reading()

    def resume_writing(self) -> None:
        self._inbound.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inbound.close()
