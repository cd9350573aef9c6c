"""
Schemas as trees of nodes, read from ``openAPIV3Schema`` (``parse_schema``) or from the table of built-in types
(``message_schema``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from shallop.embedded.apiserver import builtin_types

MISSING: Any = object()


@dataclass(slots=True, eq=False)
class Schema:
    """
    One node of a schema.

    Args:
        type: "object", "array", "string", "integer", "number", "boolean", or "" for anything.
        additional: schema of the values of a map.
        list_type: of an array: "atomic", "set" or "map" with ``keys``; of an object: "atomic" or "".
        source: the OpenAPI keywords the node was made from (constraints, description); empty for built-in types.
        type_name: message of a built-in type, for ``$ref`` in OpenAPI.
    """

    type: str = ""
    properties: Mapping[str, Schema] = field(default_factory=dict)
    additional: Schema | None = None
    items: Schema | None = None
    list_type: str = ""
    keys: tuple[str, ...] = ()
    preserve: bool = False
    embedded: bool = False
    int_or_string: bool = False
    nullable: bool = False
    default: Any = MISSING
    required: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    type_name: str = ""


def parse_schema(openapi: Mapping[str, Any]) -> Schema:
    """Read one node of an ``openAPIV3Schema`` and all below it."""
    additional = openapi.get("additionalProperties")
    items = openapi.get("items")
    kind = openapi.get("type", "")
    atomic_map = "atomic" if openapi.get("x-kubernetes-map-type") == "atomic" else ""
    return Schema(
        type=kind,
        properties={name: parse_schema(child) for name, child in (openapi.get("properties") or {}).items()},
        additional=parse_schema(additional) if isinstance(additional, dict) else Schema() if additional else None,
        items=parse_schema(items) if isinstance(items, dict) else None,
        list_type=openapi.get("x-kubernetes-list-type") or ("atomic" if kind == "array" else atomic_map),
        keys=tuple(openapi.get("x-kubernetes-list-map-keys") or ()),
        preserve=bool(openapi.get("x-kubernetes-preserve-unknown-fields")),
        embedded=bool(openapi.get("x-kubernetes-embedded-resource")),
        int_or_string=bool(openapi.get("x-kubernetes-int-or-string")),
        nullable=bool(openapi.get("nullable")),
        default=openapi.get("default", MISSING),
        required=tuple(openapi.get("required") or ()),
        source=openapi,
    )


# ---- Built-in types

_SPECIAL: Mapping[str, Schema] = {
    "string": Schema(type="string"),
    "bytes": Schema(type="string", source={"format": "byte"}),
    "bool": Schema(type="boolean"),
    "int32": Schema(type="integer", source={"format": "int32"}),
    "int64": Schema(type="integer", source={"format": "int64"}),
    "double": Schema(type="number", source={"format": "double"}),
    "quantity": Schema(source={"x-shallop-quantity": True}, type_name="quantity"),
    "intorstring": Schema(int_or_string=True, type_name="intorstring"),
    "time": Schema(type="string", source={"format": "date-time"}, type_name="time"),
    "microtime": Schema(type="string", source={"format": "date-time"}, type_name="microtime"),
    "duration": Schema(type="string"),
    "raw": Schema(preserve=True, list_type="atomic", type_name="raw"),
    "fieldsv1": Schema(type="object", preserve=True, list_type="atomic", type_name="fieldsv1"),
    "stringlist": Schema(type="array", items=Schema(type="string"), list_type="atomic"),
}


TYPE_META = {"apiVersion": _SPECIAL["string"], "kind": _SPECIAL["string"]}
# Times that the real server writes as null when they are not set.
_NULL_TIMES: Mapping[str, dict[str, Schema]] = {
    "core.v1.PodCondition": {"lastProbeTime": replace(_SPECIAL["time"], nullable=True)},
}


@cache
def message_schema(name: str) -> Schema:
    """Schema of a message of the table of built-in types; one object per message."""
    facts = builtin_types.fields(name)
    # A kind inside another one (volumeClaimTemplates) may carry its own kind and apiVersion.
    type_meta = TYPE_META if name in builtin_types.kinds().values() else {}
    return Schema(
        type="object",
        properties=type_meta | {key: _field_schema(value) for key, value in facts.items()} | _NULL_TIMES.get(name, {}),
        list_type="atomic" if builtin_types.is_atomic(name) else "",
        required=tuple(key for key, value in facts.items() if value.required),
        type_name=name,
    )


def _field_schema(facts: builtin_types.Field) -> Schema:
    inner = _SPECIAL.get(facts.type) or message_schema(facts.type)
    if facts.shape == "list":
        return Schema(type="array", items=inner, list_type=facts.list_type or "atomic", keys=facts.keys)
    if facts.shape == "map":
        return Schema(type="object", additional=inner, list_type=facts.list_type)
    if facts.granular or (facts.list_type == "atomic" and not inner.list_type):
        return Schema(type="object", properties=inner.properties, list_type=facts.list_type, type_name=inner.type_name)
    return inner


def find_old_item(schema: Schema, item: Any, old: Any) -> Any:
    """The item of the old list that ``item`` continues: known for lists of type map only, else MISSING."""
    if schema.list_type == "map" and isinstance(old, list) and isinstance(item, dict):
        for entry in old:
            if isinstance(entry, dict) and all(entry.get(key) == item.get(key) for key in schema.keys):
                return entry
    return MISSING


def json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return names.get(type(value), "null")
