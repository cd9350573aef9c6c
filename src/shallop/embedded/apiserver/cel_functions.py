"""
The operators and functions of CEL.

``OPERATORS[name](left, right)``; ``FUNCTIONS`` and ``METHODS``: name -> (function, types that its first argument may
have (any when empty), type of the result, or a function from the type of the first argument).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from shallop.embedded.apiserver.cel_types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    STRING,
    TIMESTAMP,
    TYPE,
    CelError,
    Duration,
    Type,
    duration_of,
    timestamp_of,
)
from shallop.embedded.apiserver.formats import go_regex


class TypeName(str):
    """A type as a value: ``type(self) == int``."""


TYPE_NAMES = {
    *("bool", "bytes", "double", "duration", "int", "list", "map", "null_type", "string", "timestamp", "type", "uint"),
}


def equal(left: Any, right: Any) -> bool:
    """Equality of CEL: numbers by value, everything else only within its type."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, Duration) is not isinstance(right, Duration):
        return False
    return bool(left == right)


def _member(item: Any, container: Any) -> bool:
    if isinstance(container, dict):
        return item in container
    return any(equal(item, other) for other in container)


def _divide(left: Any, right: Any) -> Any:
    if isinstance(left, float):
        return left / right if right else float("nan") if not left else float("inf") * left
    if right == 0:
        raise CelError("division by zero")
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) is (right < 0) else -quotient


def _modulo(left: Any, right: Any) -> Any:
    if right == 0:
        raise CelError("modulus by zero")
    remainder = abs(left) % abs(right)
    return -remainder if left < 0 else remainder


def _checked(value: Any) -> Any:
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise CelError("integer overflow")
    return value


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, datetime):
        return left + _span(right)
    if isinstance(right, datetime):
        return right + _span(left)
    if isinstance(left, Duration):
        return Duration(int(left) + int(right))
    return _checked(left + right)


def _subtract(left: Any, right: Any) -> Any:
    if isinstance(left, datetime):
        if not isinstance(right, datetime):
            return left - _span(right)
        return Duration((left - right) // timedelta(microseconds=1) * 1000)
    if isinstance(left, Duration):
        return Duration(int(left) - int(right))
    return _checked(left - right)


def _span(duration: int) -> timedelta:
    return timedelta(microseconds=duration / 1000)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def code(left: Any, right: Any) -> bool:
        if isinstance(left, bool) is not isinstance(right, bool):
            raise CelError("no such overload")
        return compare(left, right)

    return code


OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": equal,
    "!=": lambda left, right: not equal(left, right),
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
    "in": _member,
    "+": _add,
    "-": _subtract,
    "*": lambda left, right: _checked(left * right),
    "/": _divide,
    "%": _modulo,
}


# ---- Functions


def _to_int(value: Any) -> int:
    if isinstance(value, datetime):
        return int(value.timestamp())
    try:
        return int(value)
    except (ValueError, OverflowError) as error:
        raise CelError(f"cannot convert {value!r} to int") from error


def _to_double(value: Any) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise CelError(f"cannot convert {value!r} to double") from error


def _to_string(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Duration():
            return f"{value / 10**9:g}s"
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case bytes():
            return value.decode()
        case float() if value.is_integer():
            return str(int(value))
    return str(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "True", "TRUE", "t", "1"):
        return True
    if value in ("false", "False", "FALSE", "f", "0"):
        return False
    raise CelError(f"cannot convert {value!r} to bool")


def _to_duration(value: Any) -> Duration:
    return value if isinstance(value, Duration) else duration_of(value)


def _to_timestamp(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int) else timestamp_of(value)


def _type_of(value: Any) -> TypeName:
    if isinstance(value, Duration):
        return TypeName("duration")
    if isinstance(value, datetime):
        return TypeName("timestamp")
    if isinstance(value, TypeName):
        return TypeName("type")
    names = {bool: "bool", int: "int", float: "double", str: "string", bytes: "bytes", list: "list", dict: "map"}
    return TypeName(names.get(type(value), "null_type"))


def _matches(text: str, pattern: str) -> bool:
    try:
        return go_regex(pattern).search(text) is not None
    except ValueError as error:
        raise CelError(str(error)) from error


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match[0] for match in go_regex(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


def _split(text: str, separator: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if separator == "":
        return list(text) if limit < 0 else [*text[: limit - 1], text[limit - 1 :]]
    return text.split(separator, limit - 1 if limit > 0 else -1)


def _char_at(text: str, index: int) -> str:
    if not 0 <= index <= len(text):
        raise CelError(f"index out of range: {index}")
    return text[index : index + 1]


def _substring(text: str, start: int, end: int = -1) -> str:
    end = len(text) if end == -1 else end
    if not 0 <= start <= end <= len(text):
        raise CelError(f"index out of range: {start}")
    return text[start:end]


def _index_of(container: Any, wanted: Any, start: int = 0) -> int:
    if isinstance(container, str):
        return container.find(wanted, start)
    return next((index for index, item in enumerate(container) if equal(item, wanted)), -1)


def _last_index_of(container: Any, wanted: Any) -> int:
    if isinstance(container, str):
        return container.rfind(wanted)
    return max((index for index, item in enumerate(container) if equal(item, wanted)), default=-1)


def _extreme(choose: Callable[[list[Any]], Any], name: str) -> Callable[[Any], Any]:
    def function(items: Any) -> Any:
        if not items:
            raise CelError(f"{name} called on empty list")
        return choose(items)

    return function


def _optional_value(optional: Any) -> Any:
    if not optional.present:
        raise CelError("optional.none() dereference")
    return optional.held


def _held(kind: Type) -> Type:
    return kind.args[0] if kind.args else DYN


def _part(name: str, shift: int = 0) -> Callable[..., Any]:
    def function(time: Any, zone: str = "UTC") -> Any:
        if isinstance(time, Duration):
            units = {"hour": 3600 * 10**9, "minute": 60 * 10**9, "second": 10**9, "millisecond": 10**6}
            return int(time) // units[name]
        local = time.astimezone(ZoneInfo(zone))
        if name == "weekday":
            return (local.weekday() + 1) % 7
        if name == "yearday":
            return int(local.timetuple().tm_yday) - 1
        if name == "millisecond":
            return int(local.microsecond) // 1000
        return int(getattr(local, name)) + shift

    return function


_Function = tuple[Any, tuple[str, ...], Type | Callable[[Type], Type]]
_SHOWN = ("int", "double", "string", "bool", "bytes", "timestamp", "duration")
_SIZED = ("string", "bytes", "list", "map")
FUNCTIONS: Mapping[str, _Function] = {
    "size": (lambda value: len(value), _SIZED, INT),  # noqa: PLW0108 (calls need a Python signature)
    "int": (_to_int, ("int", "double", "string", "timestamp", "duration"), INT),
    "uint": (_to_int, ("int", "double", "string"), INT),
    "double": (_to_double, ("int", "double", "string"), DOUBLE),
    "string": (_to_string, (*_SHOWN, "net.IP", "net.CIDR"), STRING),
    "bool": (_to_bool, ("bool", "string"), BOOL),
    "bytes": (lambda value: value.encode() if isinstance(value, str) else value, ("string", "bytes"), BYTES),
    "duration": (_to_duration, ("string", "duration"), DURATION),
    "timestamp": (_to_timestamp, ("string", "int", "timestamp"), TIMESTAMP),
    "type": (_type_of, (), TYPE),
    "dyn": (lambda value: value, (), DYN),
    "matches": (_matches, ("string",), BOOL),
}
METHODS: Mapping[str, _Function] = {
    "size": FUNCTIONS["size"],
    "matches": FUNCTIONS["matches"],
    "contains": (lambda text, part: part in text, ("string",), BOOL),
    "startsWith": (lambda text, part: text.startswith(part), ("string",), BOOL),
    "endsWith": (lambda text, part: text.endswith(part), ("string",), BOOL),
    "lowerAscii": (lambda text: text.lower(), ("string",), STRING),
    "upperAscii": (lambda text: text.upper(), ("string",), STRING),
    "trim": (lambda text: text.strip(), ("string",), STRING),
    "reverse": (lambda value: value[::-1], ("string", "list"), lambda kind: kind),
    "replace": (lambda text, old, new, count=-1: text.replace(old, new, count), ("string",), STRING),
    "split": (_split, ("string",), Type("list", (STRING,))),
    "join": (lambda items, separator="": separator.join(items), ("list",), STRING),
    "substring": (_substring, ("string",), STRING),
    "charAt": (_char_at, ("string",), STRING),
    "indexOf": (_index_of, ("string", "list"), INT),
    "lastIndexOf": (_last_index_of, ("string", "list"), INT),
    "find": (lambda text, pattern: (_find_all(text, pattern, 1) or [""])[0], ("string",), STRING),
    "findAll": (_find_all, ("string",), Type("list", (STRING,))),
    "isSorted": (lambda items: all(map(operator.le, items, items[1:])), ("list",), BOOL),
    "sum": (lambda items: sum(items), ("list",), _held),  # noqa: PLW0108
    "min": (_extreme(min, "min"), ("list",), _held),
    "max": (_extreme(max, "max"), ("list",), _held),
    "hasValue": (lambda optional: optional.present, ("optional",), BOOL),
    "value": (_optional_value, ("optional",), _held),
    "orValue": (lambda optional, other: optional.held if optional.present else other, ("optional",), _held),
    "or": (lambda optional, other: optional if optional.present else other, ("optional",), lambda kind: kind),
    "getFullYear": (_part("year"), ("timestamp",), INT),
    "getMonth": (_part("month", -1), ("timestamp",), INT),
    "getDate": (_part("day"), ("timestamp",), INT),
    "getDayOfMonth": (_part("day", -1), ("timestamp",), INT),
    "getDayOfWeek": (_part("weekday"), ("timestamp",), INT),
    "getDayOfYear": (_part("yearday"), ("timestamp",), INT),
    "getHours": (_part("hour"), ("timestamp", "duration"), INT),
    "getMinutes": (_part("minute"), ("timestamp", "duration"), INT),
    "getSeconds": (_part("second"), ("timestamp", "duration"), INT),
    "getMilliseconds": (_part("millisecond"), ("timestamp", "duration"), INT),
}
