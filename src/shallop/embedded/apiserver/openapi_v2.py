"""
The smallest OpenAPI v2 document that kubectl accepts: in protobuf, with one operation.

kubectl asks it one thing, for a ``List`` of objects: whether PATCH of a Namespace knows ``fieldValidation``. It then
leaves all validation to this server. Schemas are in OpenAPI v3 only.

Source: gnostic, OpenAPIv2.proto (field numbers); kubectl 1.32 observed.
"""

from __future__ import annotations

__all__ = ["DOCUMENT", "MEDIA_TYPE", "WANTED"]

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
