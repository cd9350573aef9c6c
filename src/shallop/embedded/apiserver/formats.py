"""
The string formats and the regular-expression dialect that a Kubernetes API server checks.

- ``FORMATS: Mapping[str, Callable[[str], bool]]``: formats that are checked; others are ignored, as in the real server.
- ``go_regex(pattern) -> re.Pattern[str]``: a Go (RE2) pattern for ``.search``; raises ``ValueError`` with the reason.
- ``parse_duration(text) -> int``: Go duration ("1h5m") in nanoseconds; raises ``ValueError``.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from functools import cache
from urllib.parse import urlsplit

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7F",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1F\x7F",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}


@cache
def go_regex(pattern: str) -> re.Pattern[str]:
    """
    Compile a Go pattern.

    Go's ``$`` is the end of text only, ``\\z`` is Python's ``\\Z``, and classes such as ``[:alpha:]`` exist.
    """
    parts = []
    in_class = False
    position = 0
    while position < len(pattern):
        if in_class and (posix := re.compile(r"\[:(\w+):\]").match(pattern, position)):
            parts.append(_POSIX.get(posix[1], ""))
            position = posix.end()
            continue
        token = pattern[position : position + 2] if pattern[position] == "\\" else pattern[position]
        position += len(token)
        if in_class:
            if token == "]" and parts[-1] not in ("[", "[^"):
                in_class = False
            parts.append("^" if token == "^" else r"\[" if token == "[" else token)
            if parts[-2:] == ["[", "^"]:
                parts[-2:] = ["[^"]
        elif token == "[":
            in_class = True
            parts.append("[")
        elif token == "$":
            parts.append(r"\Z")
        else:
            parts.append(r"\Z" if token == r"\z" else token)
    try:
        return re.compile("".join(parts), re.ASCII)
    except re.error as error:
        if "unterminated subpattern" in str(error):
            raise ValueError(f"error parsing regexp: missing closing ): `{pattern}`") from error
        raise ValueError(f"error parsing regexp: {error}: `{pattern}`") from error


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"([-+]?)((?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(text: str) -> int:
    if text in ("0", "+0", "-0"):
        return 0
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"not a duration: {text!r}; write numbers with units, such as 1h30m or 500ms")
    total = 0.0
    exact = 0
    for number, unit in _DURATION_PART.findall(found[2]):
        if "." in number:
            total += float(number) * _UNITS[unit]
        else:
            exact += int(number) * _UNITS[unit]
    nanoseconds = exact + round(total)
    return -nanoseconds if found[1] == "-" else nanoseconds


def parse_timestamp(text: str) -> datetime:
    """Read an RFC 3339 time with its offset; raises ValueError."""
    if not _DATE_TIME.fullmatch(text):
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    # Python keeps microseconds: further digits are cut.
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.upper()))


_DATE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")
# The format also takes weeks and days ("1 w", "2 days"), as the OpenAPI library of the real server does.
_LONG_DURATION = re.compile(r"(\d+(\.\d+)?\s*(ns|us|µs|ms|s|m|h|d|w|[a-z]+)\s*)+")
_LONG_UNITS = {
    *("ns", "nano", "us", "µs", "micro", "ms", "milli", "s", "sec", "second", "m", "min", "minute"),
    *("h", "hr", "hour", "d", "day", "w", "wk", "week"),
}
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_UUID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}")
_HOSTNAME = re.compile(
    r"([a-zA-Z0-9]([-a-zA-Z0-9_]{0,61}[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([-a-zA-Z0-9_]{0,61}[a-zA-Z0-9])?\.?"
)
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def _parses(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parse(text)
        except (ValueError, binascii.Error):
            return False
        return True

    return check


def _is_duration(text: str) -> bool:
    if _parses(parse_duration)(text):
        return True
    if not _LONG_DURATION.fullmatch(text):
        return False
    units = re.findall(r"[a-zµ]+", text)
    return all(unit in _LONG_UNITS or unit.removesuffix("s") in _LONG_UNITS for unit in units)


def _parse_uri(text: str) -> None:
    parts = urlsplit(text)
    _ = parts.port
    if not parts.scheme and not text.startswith("/"):
        raise ValueError(text)


FORMATS: Mapping[str, Callable[[str], bool]] = {
    "bsonobjectid": lambda text: bool(re.fullmatch(r"[0-9a-fA-F]{24}", text)),
    "byte": _parses(lambda text: base64.b64decode(text, validate=True)),
    "cidr": _parses(lambda text: ipaddress.ip_interface(text) if "/" in text else int("x")),
    "date": _parses(date.fromisoformat),
    "date-time": _parses(parse_timestamp),
    "datetime": _parses(parse_timestamp),
    "duration": _is_duration,
    "email": lambda text: bool(_EMAIL.fullmatch(text)),
    "hostname": lambda text: len(text) <= 255 and bool(_HOSTNAME.fullmatch(text)),
    "ipv4": _parses(ipaddress.IPv4Address),
    "ipv6": _parses(ipaddress.IPv6Address),
    "k8s-long-name": lambda text: len(text) <= 253 and bool(_DNS_SUBDOMAIN.fullmatch(text)),
    "k8s-short-name": lambda text: len(text) <= 63 and bool(_DNS_LABEL.fullmatch(text)),
    "mac": lambda text: bool(re.fullmatch(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}", text)),
    "uri": _parses(_parse_uri),
    "uuid": lambda text: bool(_UUID.fullmatch(text)),
    "uuid3": lambda text: bool(_UUID.fullmatch(text)),
    "uuid4": lambda text: bool(_UUID.fullmatch(text)),
    "uuid5": lambda text: bool(_UUID.fullmatch(text)),
}
