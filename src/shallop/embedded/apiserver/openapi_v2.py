"""
OpenAPI v2: in JSON made from the documents of v3; in protobuf the smallest document that kubectl accepts.

kubectl asks that one thing, for a ``List`` of objects: whether PATCH of a Namespace knows ``fieldValidation``. It then
leaves all validation to this server.

Source: gnostic, OpenAPIv2.proto (field numbers); kubectl 1.32 observed; Swagger 2.0 specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

__all__ = ["DOCUMENT", "MEDIA_TYPE", "WANTED", "render"]

# Version 2 has no choice among schemas.
_DROPPED = frozenset(("oneOf", "anyOf", "not", "nullable", "allOf"))
_V3, _V2 = "#/components/schemas/", "#/definitions/"
_GVK = "x-kubernetes-group-version-kind"


def render(documents: Iterable[bytes]) -> bytes:
    """Merge v3 documents into one of v2; takes a tenth of a second."""
    definitions: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for body in documents:
        document = msgspec.json.decode(body)
        definitions |= {name: _schema(value) for name, value in document["components"]["schemas"].items()}
        paths |= document["paths"]
    names = {_key(gvk): name for name, value in definitions.items() for gvk in value.get(_GVK) or ()}
    whole = {
        "swagger": "2.0",
        "info": {"title": "shallop", "version": "unversioned"},
        "paths": {path: _path(path, operations, names) for path, operations in sorted(paths.items())},
        "definitions": dict(sorted(definitions.items())),
        "securityDefinitions": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header"}},
        "security": [{"BearerToken": []}],
    }
    return msgspec.json.encode(whole)


def _key(gvk: Mapping[str, str]) -> tuple[str, str, str]:
    return gvk["group"], gvk["version"], gvk["kind"]


def _schema(value: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: item for key, item in value.items() if key not in _DROPPED}
    choices: list[Any] = value.get("allOf") or []
    if len(choices) == 1 and "$ref" in choices[0]:
        result["$ref"] = choices[0]["$ref"]
    if "oneOf" in value and "type" not in result and "$ref" not in result:
        # A quantity, or a number that may be a name: written as text both can be read.
        result["type"] = "string"
    if "$ref" in result:
        result["$ref"] = result["$ref"].replace(_V3, _V2)
    if "properties" in value:
        result["properties"] = {name: _schema(item) for name, item in value["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(value.get(key), dict):
            result[key] = _schema(value[key])
    return result


def _path(path: str, operations: Mapping[str, Any], names: Mapping[tuple[str, str, str], str]) -> dict[str, Any]:
    in_path = [
        {"name": name, "in": "path", "required": True, "type": "string"} for name in re.findall(r"{(\w+)}", path)
    ]
    return {method: _operation(method, value, names) for method, value in operations.items()} | (
        {"parameters": in_path} if in_path else {}
    )


def _operation(method: str, operation: Mapping[str, Any], names: Mapping[tuple[str, str, str], str]) -> dict[str, Any]:
    parameters = [{"name": p["name"], "in": p["in"], **p["schema"]} for p in operation["parameters"]]
    name = names.get(_key(operation[_GVK]))
    schema = {"$ref": _V2 + name} if name else {"type": "object"}
    if method in ("post", "put", "patch"):
        body = {"type": "object"} if method == "patch" else schema
        parameters.append({"name": "body", "in": "body", "required": True, "schema": body})
    listing = operation["x-kubernetes-action"] in ("list", "delete", "deletecollection")
    answer = {"description": "OK"} | ({} if listing else {"schema": schema})
    return {**operation, "parameters": parameters, "responses": {"200": answer}}


# What clients ask for is no valid media type; what is answered is.
WANTED = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


def _field(number: int, value: bytes | str) -> bytes:
    """Write a length-delimited field; all lengths here are below 16 KiB."""
    data = value.encode() if isinstance(value, str) else value
    size = len(data)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + data


def _render() -> bytes:
    info = _field(1, "shallop") + _field(2, "v1")
    query = _field(2, "query") + _field(4, "fieldValidation")
    parameter = _field(1, _field(2, _field(3, query)))
    kind = _field(1, "x-kubernetes-group-version-kind")
    kind += _field(2, _field(2, 'group: ""\nkind: Namespace\nversion: v1\n'))
    operation = _field(8, parameter) + _field(13, kind)
    path = _field(1, "/api/v1/namespaces/{name}") + _field(2, _field(8, operation))
    return _field(1, "2.0") + _field(2, info) + _field(8, _field(2, path))


DOCUMENT = _render()
