"""
The way out for Pods with a network of their own: forwarding and masquerading, and name servers that they can reach.

Pods of a developer's machine download data and packages. The rules live in an nf_tables table named as the bridge, set
by netlink, so that neither ``iptables`` nor ``nft`` has to be installed. Nobody outside can open a connection to a Pod
by it: what enters towards the bridge must belong to a connection that a Pod began.

Pods of one bridge see each other's own addresses whatever others have set. Where the machine shows bridged frames to
its packet rules (``bridge-nf-call-iptables``, which container engines turn on), a rule such as "masquerade what comes
from 10.244.0.0/16 and does not leave by my bridge" would hide a Pod behind the bridge's address from its neighbour, and
OpenMPI refuses such a peer. So these packets are not tracked: what is not tracked is not translated.

Source: linux/netfilter/nf_tables.h, nfnetlink.h; the masks of connection states from nf_conntrack_common.h.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

__all__ = ["close_way_out", "open_way_out", "reachable_resolv_conf"]

_NETLINK_NETFILTER = 12
_NFTABLES, _BATCH_BEGIN, _BATCH_END = 10, 0x10, 0x11
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000
_IPV4 = 2
_PREROUTING, _FORWARD, _POSTROUTING = 0, 2, 4
_RAW_PRIORITY, _FILTER_PRIORITY, _SOURCE_NAT_PRIORITY = -300, 0, 100
_EQUAL, _DIFFERENT = 0, 1
_IN_NAME, _OUT_NAME = 6, 7
_NETWORK_HEADER, _SOURCE_ADDRESS, _DESTINATION_ADDRESS = 1, 12, 16
_ESTABLISHED_OR_RELATED = 2 | 4
_NAME_BYTES = 16
_ANSWER_S = 5.0
_RESOLV_CONF = Path("/etc/resolv.conf")
# Where systemd-resolved and NetworkManager keep the real servers when /etc/resolv.conf names their stub on loopback.
_UPSTREAM_RESOLV_CONF = (Path("/run/systemd/resolve/resolv.conf"), Path("/run/NetworkManager/no-stub-resolv.conf"))


def open_way_out(bridge: str, subnet: ipaddress.IPv4Network) -> None:
    """
    Let packets from the bridge's Pods leave this machine under its address; doing it again changes nothing.

    Raises:
        OSError: the kernel refused; the message says what.
    """
    _commit(
        [
            # Made, removed and made again in one transaction: whatever was in it is replaced at once.
            _message(_NEWTABLE, _text(1, bridge), create=True),
            _message(_DELTABLE, _text(1, bridge)),
            _message(_NEWTABLE, _text(1, bridge), create=True),
            _chain(bridge, "within", "filter", _PREROUTING, _RAW_PRIORITY),
            _rule(bridge, "within", [*_stays_within(bridge, subnet), _expression("notrack", b"")]),
            _chain(bridge, "forward", "filter", _FORWARD, _FILTER_PRIORITY),
            _rule(bridge, "forward", [*_goes_in(bridge), *_is_new(), _drop()]),
            _chain(bridge, "leave", "nat", _POSTROUTING, _SOURCE_NAT_PRIORITY),
            _rule(
                bridge, "leave", [*_has_address(_SOURCE_ADDRESS, subnet), *_leaves(bridge), _expression("masq", b"")]
            ),
        ]
    )
    # Not the machine-wide switch: only what comes from Pods and what comes back to them is passed on.
    for name in (bridge, *_default_interfaces()):
        Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").write_text("1")


def close_way_out(bridge: str) -> None:
    """Remove the rules; none being there is fine."""
    _commit([_message(_NEWTABLE, _text(1, bridge), create=True), _message(_DELTABLE, _text(1, bridge))])


def reachable_resolv_conf(candidates: Sequence[Path] = (_RESOLV_CONF, *_UPSTREAM_RESOLV_CONF)) -> Path | None:
    """Return the first file whose name servers are not on loopback, which a Pod's network cannot reach."""
    for path in candidates:
        try:
            lines = [line.split() for line in path.read_text().splitlines()]
        except OSError:
            continue
        servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
        if servers and not any(ipaddress.ip_address(server.partition("%")[0]).is_loopback for server in servers):
            return path
    return None


def _default_interfaces() -> list[str]:
    """Return the interfaces of the default routes, from /proc/net/route."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    names = {row[0] for row in rows if row[1] == "00000000"}
    return sorted(name for name in names if os.path.isdir(f"/proc/sys/net/ipv4/conf/{name}"))


# --- rules ----------------------------------------------------------------------------------------------------------


def _has_address(field: int, subnet: ipaddress.IPv4Network) -> list[bytes]:
    address = subnet.network_address.packed
    return [_load_address(field), _mask(subnet.netmask.packed), _compare(_EQUAL, address)]


def _load_address(field: int) -> bytes:
    return _expression("payload", _be32(1, 1) + _be32(2, _NETWORK_HEADER) + _be32(3, field) + _be32(4, 4))


def _stays_within(bridge: str, subnet: ipaddress.IPv4Network) -> list[bytes]:
    """Match packets between Pods; the bridge's own address is the machine's, whose answers do not pass here."""
    return [
        _expression("meta", _be32(1, 1) + _be32(2, _IN_NAME)),
        _compare(_EQUAL, _interface(bridge)),
        *_has_address(_SOURCE_ADDRESS, subnet),
        *_has_address(_DESTINATION_ADDRESS, subnet),
        _load_address(_DESTINATION_ADDRESS),
        _compare(_DIFFERENT, subnet[1].packed),
    ]


def _leaves(bridge: str) -> list[bytes]:
    return [_expression("meta", _be32(1, 1) + _be32(2, _OUT_NAME)), _compare(_DIFFERENT, _interface(bridge))]


def _goes_in(bridge: str) -> list[bytes]:
    return [
        _expression("meta", _be32(1, 1) + _be32(2, _OUT_NAME)),
        _compare(_EQUAL, _interface(bridge)),
        _expression("meta", _be32(1, 1) + _be32(2, _IN_NAME)),
        _compare(_DIFFERENT, _interface(bridge)),
    ]


def _is_new() -> list[bytes]:
    state = struct.pack("=I", _ESTABLISHED_OR_RELATED)
    return [_expression("ct", _be32(1, 1) + _be32(2, 0)), _mask(state), _compare(_EQUAL, bytes(4))]


def _drop() -> bytes:
    verdict = _nested(2, _be32(1, 0))
    return _expression("immediate", _be32(1, 0) + _nested(2, verdict))


def _mask(mask: bytes) -> bytes:
    zeros = bytes(len(mask))
    values = _nested(4, _attribute(1, mask)) + _nested(5, _attribute(1, zeros))
    return _expression("bitwise", _be32(1, 1) + _be32(2, 1) + _be32(3, len(mask)) + values)


def _compare(operator: int, value: bytes) -> bytes:
    return _expression("cmp", _be32(1, 1) + _be32(2, operator) + _nested(3, _attribute(1, value)))


def _interface(name: str) -> bytes:
    return name.encode().ljust(_NAME_BYTES, b"\0")


def _expression(name: str, data: bytes) -> bytes:
    return _nested(1, _text(1, name) + _nested(2, data))


def _chain(table: str, name: str, kind: str, hook: int, priority: int) -> tuple[int, int, bytes]:
    place = _nested(4, _be32(1, hook) + _be32(2, priority))
    return _message(_NEWCHAIN, _text(1, table) + _text(3, name) + place + _text(7, kind), create=True)


def _rule(table: str, chain: str, expressions: Sequence[bytes]) -> tuple[int, int, bytes]:
    body = _text(1, table) + _text(2, chain) + _nested(4, b"".join(expressions))
    kind, flags, payload = _message(_NEWRULE, body, create=True)
    return kind, flags | _APPEND, payload


# --- the wire -------------------------------------------------------------------------------------------------------


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _be32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _message(kind: int, payload: bytes, *, create: bool = False) -> tuple[int, int, bytes]:
    """Return type, flags and body of one step of a transaction."""
    head = struct.pack("!BBH", _IPV4, 0, 0)
    return _NFTABLES << 8 | kind, _REQUEST | _ACK | (_CREATE if create else 0), head + payload


def _commit(steps: Sequence[tuple[int, int, bytes]]) -> None:
    """Do all steps or none of them."""
    border = struct.pack("!BBH", 0, 0, _NFTABLES)
    batch = [(_BATCH_BEGIN, _REQUEST, border), *steps, (_BATCH_END, _REQUEST, border)]
    data = b"".join(
        struct.pack("=IHHII", 16 + len(body), kind, flags, number, 0) + body
        for number, (kind, flags, body) in enumerate(batch)
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_ANSWER_S)
        netlink.bind((0, 0))
        netlink.send(data)
        answered = 0
        while answered < len(steps):
            answered += _check(netlink.recv(65536))


def _check(answers: bytes) -> int:
    """Count the answers in a datagram; raises OSError for one that refuses."""
    offset = count = 0
    while offset < len(answers):
        (length,) = struct.unpack_from("=I", answers, offset)
        code = -struct.unpack_from("=i", answers, offset + 16)[0]
        if code:
            (number,) = struct.unpack_from("=I", answers, offset + 28)
            raise OSError(code, f"packet rules of Pods, step {number}: {os.strerror(code)}")
        count, offset = count + 1, offset + (length + 3 & ~3)
    return count
