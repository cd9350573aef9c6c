"""
The few rtnetlink requests that Pod networks need: bridge, veth, addresses, routes. No tool has to be installed.

Source: rtnetlink(7), linux/if_link.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

__all__ = ["Netlink"]

_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE = 16, 17, 20, 21, 24
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 10, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY = 4, 5
_UP = 1


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


class Netlink:
    """Requests to the network namespace in which it was made, wherever the process goes afterwards."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_bridge(self, name: str) -> None:
        """Create a bridge; FileExistsError when there is one of that name."""
        info = _attribute(_IFLA_LINKINFO, _text(_INFO_KIND, "bridge"))
        self._request(_NEWLINK, _CREATE | _EXCL, _link(0) + _text(_IFLA_IFNAME, name) + info)

    def add_veth(self, name: str, master: int, peer: str, peer_namespace: int) -> None:
        """Create a pair: ``name`` here, up and in the bridge ``master``; ``peer`` in the namespace of a descriptor."""
        far = _link(0) + _text(_IFLA_IFNAME, peer) + _number(_IFLA_NET_NS_FD, peer_namespace)
        data = _attribute(_INFO_DATA, _attribute(_VETH_PEER, far))
        info = _attribute(_IFLA_LINKINFO, _text(_INFO_KIND, "veth") + data)
        message = _link(0, up=True) + _text(_IFLA_IFNAME, name) + _number(_IFLA_MASTER, master) + info
        self._request(_NEWLINK, _CREATE | _EXCL, message)

    def set_up(self, index: int) -> None:
        self._request(_NEWLINK, 0, _link(index, up=True))

    def delete_link(self, index: int) -> None:
        self._request(_DELLINK, 0, _link(index))

    def add_address(self, index: int, address: str, prefix: int) -> None:
        """Give an interface an address; one that it has already is fine."""
        with contextlib.suppress(FileExistsError):
            self._request(_NEWADDR, _CREATE | _EXCL, _address(index, address, prefix))

    def delete_address(self, index: int, address: str, prefix: int) -> None:
        """Take an address away; one that it has not is fine."""
        try:
            self._request(_DELADDR, 0, _address(index, address, prefix))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise

    def add_default_route(self, gateway: str, index: int) -> None:
        route = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0)
        route += _attribute(_RTA_GATEWAY, socket.inet_aton(gateway)) + _number(_RTA_OIF, index)
        self._request(_NEWROUTE, _CREATE | _EXCL, route)

    def _request(self, kind: int, flags: int, payload: bytes) -> None:
        self._sequence += 1
        header = struct.pack("=IHHII", 16 + len(payload), kind, _REQUEST | _ACK | flags, self._sequence, 0)
        self._socket.send(header + payload)
        answer = self._socket.recv(65536)
        code = -struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(code, f"network request {kind}: {os.strerror(code)}")


def _link(index: int, *, up: bool = False) -> bytes:
    return struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, _UP if up else 0, _UP if up else 0)


def _address(index: int, address: str, prefix: int) -> bytes:
    packed = socket.inet_aton(address)
    head = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index)
    return head + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
