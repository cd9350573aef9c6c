"""
What Kubernetes adds to CEL: quantities, addresses and networks, URLs, sets, and ``format`` of strings.

Source: Kubernetes "Common Expression Language in Kubernetes", CEL-Go extensions for sets and strings.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from shallop.embedded.apiserver.cel_functions import equal
from shallop.embedded.apiserver.cel_types import BOOL, DOUBLE, INT, STRING, CelError, Duration, Type, to_json
from shallop.errors import BadRequestError
from shallop.kube.objects import parse_quantity

__all__ = ["FUNCTIONS", "METHODS", "QUALIFIED", "text_of"]

_QUANTITY, _IP, _CIDR, _URL = map(Type, ("kubernetes.Quantity", "net.IP", "net.CIDR", "kubernetes.URL"))
_MAX_INT = 2**63 - 1


# ---- Quantities


@dataclass(frozen=True)
class Quantity:
    value: Decimal


def _quantity(text: Any) -> Quantity:
    if not isinstance(text, str):
        raise CelError("no such overload")
    try:
        return Quantity(parse_quantity(text))
    except (ValueError, ArithmeticError, BadRequestError) as error:
        raise CelError(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        ) from error


def _is_quantity(text: Any) -> bool:
    return _succeeds(_quantity, text)


def _succeeds(parse: Callable[[Any], Any], text: Any) -> bool:
    if not isinstance(text, str):
        raise CelError("no such overload")
    try:
        parse(text)
    except CelError:
        return False
    return True


def _is_integer(quantity: Quantity) -> bool:
    return quantity.value == int(quantity.value) and abs(quantity.value) <= _MAX_INT


def _as_integer(quantity: Quantity) -> int:
    if not _is_integer(quantity):
        raise CelError("cannot convert value to integer")
    return int(quantity.value)


def _amount(value: Any) -> Decimal:
    if isinstance(value, Quantity):
        return value.value
    if type(value) is int:
        return Decimal(value)
    raise CelError("no such overload")


def _compare(left: Quantity, right: Quantity) -> int:
    return (_amount(left) > _amount(right)) - (_amount(left) < _amount(right))


# ---- Addresses and networks

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def _ip(text: Any) -> _Address:
    if not isinstance(text, str):
        raise CelError("no such overload")
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise CelError(f'IP Address "{text}" parse error during conversion from string: {error}') from error
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped is not None or address.scope_id):
        raise CelError(f'IP Address "{text}": IPv4-mapped IPv6 addresses and zones are not allowed')
    return address


def _is_ip(text: Any) -> bool:
    return _succeeds(_ip, text)


def _is_canonical(text: Any) -> bool:
    return bool(str(_ip(text)) == text)


def _is_global_unicast(address: _Address) -> bool:
    broadcast = address == ipaddress.IPv4Address("255.255.255.255")
    special = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    return not (broadcast or special)


def _is_link_local_multicast(address: _Address) -> bool:
    return address in ipaddress.ip_network("224.0.0.0/24" if address.version == 4 else "ff02::/16")


def _cidr(text: Any) -> _Network:
    if not isinstance(text, str):
        raise CelError("no such overload")
    try:
        if "/" not in text or not text.rpartition("/")[2].isdigit():
            raise ValueError("no '/' and number of bits")
        return ipaddress.ip_interface(text)
    except ValueError as error:
        raise CelError(f"network address parse error during conversion from string: {error}") from error


def _is_cidr(text: Any) -> bool:
    return _succeeds(_cidr, text)


def _contains_ip(network: _Network, address: Any) -> bool:
    address = _ip(address) if isinstance(address, str) else address
    return address.version == network.version and address in network.network


def _contains_cidr(network: _Network, other: Any) -> bool:
    other = _cidr(other) if isinstance(other, str) else other
    if other.version != network.version:
        return False
    return bool(other.network.subnet_of(network.network))


def _masked(network: _Network) -> _Network:
    return ipaddress.ip_interface(network.network)


# ---- URLs


def _url(text: Any) -> SplitResult:
    if not isinstance(text, str):
        raise CelError("no such overload")
    try:
        parts = urlsplit(text)
        # Reading the port checks it.
        sound = parts.port is None or parts.port >= 0
    except ValueError as error:
        raise CelError(f"URL parse error during conversion from string: {error}") from error
    absolute = bool(parts.scheme and (parts.netloc or parts.path)) or text.startswith("/")
    if not sound or not absolute or re.search(r"[\x00-\x20\x7f]|%(?![0-9a-fA-F]{2})", text):
        raise CelError(f'URL parse error during conversion from string: parse "{text}": invalid URI for request')
    return parts


def _is_url(text: Any) -> bool:
    return _succeeds(_url, text)


def _host(url: SplitResult) -> str:
    return url.netloc.rpartition("@")[2]


def _hostname(url: SplitResult) -> str:
    host = _host(url)
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


# ---- Sets and texts


def _set_contains(items: list[Any], wanted: list[Any]) -> bool:
    return all(any(equal(item, known) for known in items) for item in wanted)


def _set_equivalent(left: list[Any], right: list[Any]) -> bool:
    return _set_contains(left, right) and _set_contains(right, left)


def _set_intersects(left: list[Any], right: list[Any]) -> bool:
    return any(equal(item, known) for known in right for item in left)


_CLAUSE = re.compile(r"%(?:\.(\d+))?([sdfebxXo%])")


def _format(pattern: str, values: list[Any]) -> str:
    rest = iter(values)

    def clause(found: re.Match[str]) -> str:
        if found[2] == "%":
            return "%"
        try:
            value = next(rest)
        except StopIteration:
            raise CelError(f"index {len(values)} out of range") from None
        return _formatted(value, found[2], found[1])

    if "%" in _CLAUSE.sub("", pattern):
        raise CelError(f"could not parse formatting clause in {json.dumps(pattern)}")
    return _CLAUSE.sub(clause, pattern)


def _formatted(value: Any, kind: str, precision: str | None) -> str:
    try:
        if kind == "s":
            return text_of(value)
        if kind in "fe":
            return f"{float(value):.{precision or 6}{kind}}"
        if kind in "xX" and isinstance(value, str | bytes):
            digits = (value.encode() if isinstance(value, str) else value).hex()
            return digits.upper() if kind == "X" else digits
        if kind == "b" and type(value) is bool:
            return str(int(value))
        if type(value) is not int:
            raise CelError(f"error during formatting: %{kind} needs an integer")
        return f"{value:{kind}}"
    except (TypeError, ValueError) as error:
        raise CelError(f"error during formatting: {error}") from error


def text_of(value: Any) -> str:
    """A value as ``%s`` shows it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Duration | datetime):
        return str(to_json(value))
    if isinstance(value, list):
        return f"[{', '.join(map(text_of, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{text_of(key)}: {text_of(item)}' for key, item in sorted(value.items()))}}}"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


_Function = tuple[Any, tuple[str, ...], Type | Callable[[Type], Type]]
FUNCTIONS: Mapping[str, _Function] = {
    "quantity": (_quantity, ("string",), _QUANTITY),
    "isQuantity": (_is_quantity, ("string",), BOOL),
    "ip": (_ip, ("string",), _IP),
    "isIP": (_is_ip, ("string",), BOOL),
    "cidr": (_cidr, ("string",), _CIDR),
    "isCIDR": (_is_cidr, ("string",), BOOL),
    "url": (_url, ("string",), _URL),
    "isURL": (_is_url, ("string",), BOOL),
}
QUALIFIED: Mapping[str, _Function] = {
    "ip.isCanonical": (_is_canonical, ("string",), BOOL),
    "sets.contains": (_set_contains, ("list",), BOOL),
    "sets.equivalent": (_set_equivalent, ("list",), BOOL),
    "sets.intersects": (_set_intersects, ("list",), BOOL),
}
_Q, _I, _N, _U = (_QUANTITY.name,), (_IP.name,), (_CIDR.name,), (_URL.name,)
METHODS: Mapping[str, _Function] = {
    "sign": (lambda quantity: _compare(quantity, Quantity(Decimal(0))), _Q, INT),
    "isInteger": (_is_integer, _Q, BOOL),
    "asInteger": (_as_integer, _Q, INT),
    "asApproximateFloat": (lambda quantity: float(_amount(quantity)), _Q, DOUBLE),
    "add": (lambda left, right: Quantity(_amount(left) + _amount(right)), _Q, _QUANTITY),
    "sub": (lambda left, right: Quantity(_amount(left) - _amount(right)), _Q, _QUANTITY),
    "compareTo": (_compare, _Q, INT),
    "isGreaterThan": (lambda left, right: _compare(left, right) > 0, _Q, BOOL),
    "isLessThan": (lambda left, right: _compare(left, right) < 0, _Q, BOOL),
    "family": (lambda address: address.version, _I, INT),
    "isUnspecified": (lambda address: address.is_unspecified, _I, BOOL),
    "isLoopback": (lambda address: address.is_loopback, _I, BOOL),
    "isLinkLocalMulticast": (_is_link_local_multicast, _I, BOOL),
    "isLinkLocalUnicast": (lambda address: address.is_link_local, _I, BOOL),
    "isGlobalUnicast": (_is_global_unicast, _I, BOOL),
    "containsIP": (_contains_ip, _N, BOOL),
    "containsCIDR": (_contains_cidr, _N, BOOL),
    "ip": (lambda network: network.ip, _N, _IP),
    "masked": (_masked, _N, _CIDR),
    "prefixLength": (lambda network: network.network.prefixlen, _N, INT),
    "getScheme": (lambda url: url.scheme, _U, STRING),
    "getHost": (_host, _U, STRING),
    "getHostname": (_hostname, _U, STRING),
    "getPort": (lambda url: str(url.port or ""), _U, STRING),
    "getEscapedPath": (lambda url: url.path, _U, STRING),
    "getQuery": (
        lambda url: parse_qs(url.query, keep_blank_values=True),
        _U,
        Type("map", (STRING, Type("list", (STRING,)))),
    ),
    "format": (_format, ("string",), STRING),
}
