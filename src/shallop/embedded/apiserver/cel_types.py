"""The types and values of CEL, and how JSON of a schema looks to an expression."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from shallop.embedded.apiserver.formats import parse_duration, parse_timestamp


class CelError(Exception):
    """An expression that does not compile, or failed on a value."""


class SchemaNode(Protocol):
    """What is read of a schema node (``schema.Schema``)."""

    type: str
    int_or_string: bool
    embedded: bool

    @property
    def properties(self) -> Mapping[str, Any]: ...
    @property
    def additional(self) -> Any: ...
    @property
    def items(self) -> Any: ...
    @property
    def source(self) -> Mapping[str, Any]: ...


class Type(NamedTuple):
    """A static type; ``args`` of list, map and optional; ``fields`` of an object."""

    name: str
    args: tuple[Type, ...] = ()
    fields: Mapping[str, Type] | None = None

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})" if self.args else self.name


DYN, INT, DOUBLE, STRING, BOOL, BYTES, NULL = map(
    Type, ("dyn", "int", "double", "string", "bool", "bytes", "null_type")
)
DURATION, TIMESTAMP, TYPE = Type("duration"), Type("timestamp"), Type("type")


class Duration(int):
    """A span of time in nanoseconds."""


class Optional(NamedTuple):
    """CEL's optional value."""

    present: bool
    held: Any = None


# ---- Schemas as types

_SCALARS = {"string": STRING, "integer": INT, "number": DOUBLE, "boolean": BOOL}
_FORMATS = {"duration": DURATION, "date-time": TIMESTAMP, "date": TIMESTAMP, "byte": BYTES}


def schema_type(schema: SchemaNode, *, root: bool = False) -> Type:
    if schema.int_or_string:
        return DYN
    if schema.type == "array":
        return Type("list", (schema_type(schema.items) if schema.items else DYN,))
    if schema.type == "object":
        if schema.additional is not None and not schema.properties:
            return Type("map", (STRING, schema_type(schema.additional)))
        fields = {name: schema_type(child) for name, child in schema.properties.items() if not (root and name in _META)}
        if root or schema.embedded:
            fields |= _META
        return Type("object", (), fields) if fields else DYN
    if schema.type == "string" and schema.source.get("format") in _FORMATS:
        return _FORMATS[schema.source["format"]]
    return _SCALARS.get(schema.type, DYN)


_META: Mapping[str, Type] = {
    "apiVersion": STRING,
    "kind": STRING,
    "metadata": Type("object", (), {"name": STRING, "generateName": STRING}),
}


def to_cel(kind: Type, value: Any) -> Any:
    """A JSON value as an expression sees it; containers convert their parts when those are read."""
    if value is None or type(value) is not str:
        return float(value) if kind is DOUBLE and type(value) is int else value
    if kind is DURATION:
        return duration_of(value)
    if kind is TIMESTAMP:
        return timestamp_of(value if "T" in value.upper() else value + "T00:00:00Z")
    return base64.b64decode(value) if kind is BYTES else value


def to_json(value: Any) -> Any:
    """
    A value that an expression built, as JSON.

    Raises:
        CelError: it is no data, such as a type.
    """
    if isinstance(value, Duration):
        return f"{value / 1e9:g}s"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, Optional):
        return [to_json(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise CelError(f"a value of type {type(value).__name__} is no data")


def duration_of(text: str) -> Duration:
    try:
        return Duration(parse_duration(text))
    except ValueError as error:
        raise CelError(str(error)) from error


def timestamp_of(text: str) -> datetime:
    try:
        return parse_timestamp(text)
    except ValueError as error:
        raise CelError(str(error)) from error
