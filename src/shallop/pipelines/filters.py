"""List filters: from the client's JSON to checked predicates. What they mean in SQL is in ``tables.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from shallop.errors import BadRequestError
from shallop.pipelines.messages import FILTER, parse_message, parse_micros

__all__ = ["FilterKey", "Predicate", "parse_filter"]

_VALUES = (
    "int_value",
    "long_value",
    "string_value",
    "timestamp_value",
    "int_values",
    "long_values",
    "string_values",
)
_SECOND = 1_000_000


class FilterKey(NamedTuple):
    """
    A key that clients may filter and sort by.

    Args:
        column: of the table, the JSON of it where it is no text; empty = the empty text, which is what a single-user
            server has for namespaces, and this server for what only upstream stores.
        kind: ``text``, ``number``, ``time`` (clients compare whole seconds) or ``tags`` (``<key>.<tag>``, not sorted).
    """

    column: str
    kind: str = "text"


class Predicate(NamedTuple):
    """
    One comparison; all of a filter must hold.

    Args:
        operation: EQUALS, NOT_EQUALS, GREATER_THAN, GREATER_THAN_EQUALS, LESS_THAN, LESS_THAN_EQUALS, IN, IS_SUBSTRING.
        value: text, microseconds at a whole second for times, or a tuple of them for IN.
        tag: name of the tag when the key's kind is ``tags``.
    """

    key: FilterKey
    operation: str
    value: Any
    tag: str = ""


def parse_filter(text: str, keys: Mapping[str, FilterKey]) -> tuple[Predicate, ...]:
    """
    Read a filter; the empty text selects everything.

    Args:
        text: JSON, possibly URL-encoded once more: some clients encode it themselves before their HTTP library does.

    Raises:
        BadRequestError: names the predicate and what is wrong with it.
    """
    if not text:
        return ()
    try:
        value = json.loads(text if text.lstrip().startswith("{") else unquote(text))
    except ValueError as error:
        raise BadRequestError(f"filter: not JSON: {error}") from error
    predicates = parse_message(FILTER, value, "filter").get("predicates", [])
    return tuple(_predicate(item, keys, f"filter.predicates[{index}]") for index, item in enumerate(predicates))


def _predicate(item: Mapping[str, Any], keys: Mapping[str, FilterKey], path: str) -> Predicate:
    name, operation = item.get("key", ""), item.get("operation", "OPERATION_UNSPECIFIED")
    if operation == "OPERATION_UNSPECIFIED":
        raise BadRequestError(f"{path}.operation: required; one of EQUALS, IN, IS_SUBSTRING, ...")
    given = [field for field in _VALUES if field in item]
    if not given:
        raise BadRequestError(f"{path}: a value is required, such as string_value")
    key, tag = _key(name, keys, path)
    if key.kind == "tags" and (operation != "EQUALS" or given[0] != "string_value"):
        raise BadRequestError(f"{path}: tags can only be compared with EQUALS and string_value")
    if (operation == "IN") != given[0].endswith("values"):
        raise BadRequestError(f"{path}: {operation} with {given[0]}: IN takes a list of values, the others one value")
    if operation == "IS_SUBSTRING" and given[0] != "string_value":
        raise BadRequestError(f"{path}: IS_SUBSTRING takes string_value, not {given[0]}")
    raw = item[given[0]]
    if operation == "IN":
        return Predicate(key, operation, tuple(_value(key, given[0], one, path) for one in raw.get("values", [])))
    return Predicate(key, operation, _value(key, given[0], raw, path), tag)


def _key(name: str, keys: Mapping[str, FilterKey], path: str) -> tuple[FilterKey, str]:
    if name in keys and keys[name].kind != "tags":
        return keys[name], ""
    head, _, tag = name.partition(".")
    if tag and head in keys and keys[head].kind == "tags":
        return keys[head], tag
    raise BadRequestError(f"{path}.key: {name!r} cannot be filtered by; use one of {', '.join(keys)}")


def _value(key: FilterKey, field: str, value: Any, path: str) -> Any:
    if key.kind == "number":
        try:
            return int(value)
        except ValueError:
            raise BadRequestError(f"{path}.{field}: {value!r} is no whole number") from None
    if key.kind != "time":
        return str(value)
    if field == "timestamp_value":
        return int(value) // _SECOND * _SECOND
    try:
        # Upstream's own tests compare times with unix seconds in a string.
        return int(value) * _SECOND
    except ValueError:
        pass
    try:
        return parse_micros(value) // _SECOND * _SECOND
    except ValueError:
        raise BadRequestError(f"{path}.{field}: {value!r} is neither unix seconds nor an RFC 3339 time") from None
