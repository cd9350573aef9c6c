"""Resources between the wire and the rows: decoding, checking and encoding of bodies."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from shallop.errors import BadRequestError, InvalidError
from shallop.registry.resources import Field, ResourceType

__all__ = ["Draft", "Entry", "decode_draft", "decode_json", "encode_entry", "parse_id", "pick_type"]

_COMMON = ("externalId", "description", "customProperties")
_SERVER_SET = ("id", "createTimeSinceEpoch", "lastUpdateTimeSinceEpoch")
_ID = re.compile(r"[1-9][0-9]{0,17}")
_INTEGER = re.compile(r"[-+]?[0-9]{1,19}")


class Draft(msgspec.Struct, frozen=True):
    """What a body gives; None means that it was not given. ``fields`` has only given ones, as stored."""

    name: str | None
    external_id: str | None
    description: str | None
    custom: dict[str, Any] | None
    fields: dict[str, Any]


class Entry(msgspec.Struct, frozen=True):
    """A stored resource; times in milliseconds since the epoch."""

    type: str
    id: int
    name: str
    external_id: str | None
    description: str | None
    custom: dict[str, Any]
    fields: dict[str, Any]
    created_ms: int
    updated_ms: int


def decode_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object; raises BadRequestError, also for NUL characters, which no database keeps."""
    if b"\0" in body or b"\\u0000" in body:
        raise BadRequestError("the body contains a NUL character; remove it")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequestError("the body must be a JSON object")
    return value


def parse_id(text: object, what: str) -> int:
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise BadRequestError(f"invalid {what} ID: {text!r} is not a positive decimal number")
    return int(text)


def pick_type(types: Iterable[ResourceType], body: Mapping[str, Any]) -> ResourceType:
    """Choose the type that a body is of by its ``artifactType``; a collection of one type needs none."""
    types = tuple(types)
    wanted = body.get("artifactType")
    if len(types) == 1 and not wanted:
        return types[0]
    for type_ in types:
        if type_.artifact_type and type_.artifact_type == wanted:
            return type_
    known = ", ".join(type_.artifact_type for type_ in types)
    if not wanted:
        raise BadRequestError(f"artifactType is missing; use one of {known}")
    raise BadRequestError(f"artifactType {wanted!r} is not one of {known}")


def decode_draft(type_: ResourceType, body: Mapping[str, Any], *, create: bool, strict: bool, entity: bool) -> Draft:
    """
    Check a body against its type.

    Args:
        create: required fields must be there and defaults are set; otherwise the body is a patch.
        strict: fields that the type does not have are refused (bodies of artifact unions accept them).
        entity: the body may be a whole resource with what the server sets; that is ignored.
    """
    given = {key: value for key, value in body.items() if value is not None}
    if strict:
        _refuse_unknown(type_, given, create=create, entity=entity)
    if create:
        _require(type_, given)
    fields = {
        name: _decode_field(name, field, given[name])
        for name, field in type_.fields.items()
        if name in given and (create or not field.immutable)
    }
    if create:
        fields = {name: field.values[0] for name, field in type_.fields.items() if field.values} | fields
    texts = {name: _text(name, given[name]) for name in ("name", "externalId", "description") if name in given}
    custom = given.get("customProperties")
    return Draft(
        name=texts.get("name") if create else None,
        external_id=texts.get("externalId"),
        description=texts.get("description"),
        custom=None if custom is None else _decode_custom(custom),
        fields=fields,
    )


def _refuse_unknown(type_: ResourceType, given: Mapping[str, Any], *, create: bool, entity: bool) -> None:
    allowed = {*_COMMON, *(name for name, field in type_.fields.items() if create or not field.immutable)}
    allowed |= {"name"} if create else set()
    allowed |= set(_SERVER_SET) if entity else set()
    allowed |= {"artifactType"} if type_.artifact_type else set()
    for name in given:
        if name not in allowed:
            raise BadRequestError(f'json: unknown field "{name}"')


def _require(type_: ResourceType, given: Mapping[str, Any]) -> None:
    required = [name for name, field in type_.fields.items() if field.required]
    for name in (["name"] if type_.named else []) + required:
        if name not in given or given[name] == "":
            message = f"required field '{name}' is zero value."
            # Upstream refuses a metric without value while it decodes, so with another status.
            raise (BadRequestError if type_.artifact_type else InvalidError)(message)


def _decode_field(name: str, field: Field, value: Any) -> Any:
    decoded = _DECODERS[field.kind](name, value)
    if field.values and decoded not in field.values:
        raise BadRequestError(f"{name}: {decoded!r} is not one of {', '.join(field.values)}")
    return decoded


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRequestError(f"{name}: expected text, got {_type_name(value)}")
    return value


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise BadRequestError(f"{name}: expected a list of texts, got {_type_name(value)}")
    return [_text(f"{name}[{index}]", item) for index, item in enumerate(value)]


def _number(name: str, value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequestError(f"{name}: expected a number, got {_type_name(value)}")
    return value


def _integer(name: str, value: Any) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise BadRequestError(f"{name}: expected a whole number of 64 bits, got {_type_name(value)}")
    return value


def _reference(name: str, value: Any) -> str:
    return str(parse_id(value, name))


_DECODERS: Mapping[str, Callable[[str, Any], Any]] = {
    "text": _text,
    "texts": _texts,
    "number": _number,
    "integer": _integer,
    "millis": lambda name, value: str(_integer(name, value)),
    "id": _reference,
}


def _type_name(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def _decode_custom(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequestError(f"customProperties: expected an object, got {_type_name(value)}")
    return {name: _decode_property(f"customProperties.{name}", item) for name, item in value.items()}


def _decode_property(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequestError(f"{path}: expected an object with metadataType, got {_type_name(value)}")
    kind = value.get("metadataType")
    if not isinstance(kind, str) or kind not in _PROPERTIES:
        raise BadRequestError(f"{path}.metadataType: {kind!r} is not one of {', '.join(_PROPERTIES)}")
    key, decode = _PROPERTIES[kind]
    for name in value:
        if name not in (key, "metadataType"):
            raise BadRequestError(f'json: unknown field "{name}"')
    if value.get(key) is None:
        raise BadRequestError(f"{path}.{key}: is missing")
    return {key: decode(f"{path}.{key}", value[key]), "metadataType": kind}


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRequestError(f"{name}: expected a boolean, got {_type_name(value)}")
    return value


def _struct(name: str, value: Any) -> str:
    try:
        msgspec.json.decode(base64.b64decode(_text(name, value), validate=True))
    except (binascii.Error, msgspec.DecodeError, ValueError) as error:
        raise BadRequestError(f"{name}: expected JSON in base64: {error}") from error
    return str(value)


_PROPERTIES: Mapping[str, tuple[str, Callable[[str, Any], Any]]] = {
    "MetadataStringValue": ("string_value", _text),
    "MetadataIntValue": ("int_value", lambda name, value: str(_integer(name, value))),
    "MetadataDoubleValue": ("double_value", _number),
    "MetadataBoolValue": ("bool_value", _bool),
    "MetadataStructValue": ("struct_value", _struct),
}


def encode_entry(entry: Entry, type_: ResourceType, *, text_integers: bool) -> dict[str, Any]:
    """Return the resource as it goes on the wire; ``text_integers``: 64-bit integers travel as text (v1)."""
    fields = dict(entry.fields)
    for name, field in type_.fields.items():
        if field.kind == "integer" and name in fields and text_integers:
            fields[name] = str(fields[name])
    encoded: dict[str, Any] = {"id": str(entry.id), "name": entry.name}
    encoded |= {} if entry.description is None else {"description": entry.description}
    encoded |= {} if entry.external_id is None else {"externalId": entry.external_id}
    encoded |= {"artifactType": type_.artifact_type} if type_.artifact_type else {}
    times = {"createTimeSinceEpoch": str(entry.created_ms), "lastUpdateTimeSinceEpoch": str(entry.updated_ms)}
    return encoded | fields | {"customProperties": entry.custom} | times
