"""
Kubernetes' protobuf request bodies, decoded by table.

- ``decode(body) -> Object``: the object of a ``k8s\\0`` envelope as its JSON form; raises BadRequestError for what is
  no such body and UnsupportedMediaTypeError for a kind that has no protobuf form here.
- ``MEDIA_TYPE``: ``application/vnd.kubernetes.protobuf``.

Nothing is ever encoded: a client that sends protobuf accepts JSON. Source: Kubernetes "API concepts", protobuf.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from shallop.embedded.apiserver import builtin_types
from shallop.embedded.apiserver.builtin_types import Field
from shallop.errors import BadRequestError, UnsupportedMediaTypeError
from shallop.kube.objects import Gvk, Object
from shallop_pod.protobuf import fields_of

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"

_MAGIC = b"k8s\x00"

# Numbers and booleans that Go writes even when they are zero but leaves out of JSON then. Others are pointers, where
# zero is a value of its own ("replicas: 0").
_OMIT_ZERO = frozenset(
    {
        "currentReplicas",
        "failureThreshold",
        "generation",
        "globalDefault",
        "healthCheckNodePort",
        "hostIPC",
        "hostNetwork",
        "hostPID",
        "hostPort",
        "initialDelaySeconds",
        "minReadySeconds",
        "nodePort",
        "number",
        "observedGeneration",
        "paused",
        "periodSeconds",
        "publishNotReadyAddresses",
        "readOnly",
        "stdin",
        "stdinOnce",
        "successThreshold",
        "timeoutSeconds",
        "tty",
    }
)
# Structs that Go writes even when they are empty: no value of their own.
_OMIT_EMPTY = frozenset({"metadata", "resources", "spec", "status", "strategy", "updateStrategy"})


def decode(body: bytes) -> Object:
    """
    Decode a request body.

    Returns:
        The object with ``apiVersion`` and ``kind`` from the envelope.
    """
    if not body.startswith(_MAGIC):
        raise BadRequestError('the body is not Kubernetes protobuf: it does not begin with "k8s\\0"')
    try:
        return _decode_envelope(body[len(_MAGIC) :])
    # Fields of the wrong wire type surface as TypeError or AttributeError, absurd times as OverflowError.
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
        msgspec.MsgspecError,
    ) as error:
        raise BadRequestError(f"the protobuf body cannot be decoded: {error}") from error


def _decode_envelope(data: bytes) -> Object:
    envelope = dict(fields_of(data))
    type_meta = dict(fields_of(envelope.get(1, b"")))
    gvk = Gvk(type_meta.get(1, b"").decode(), type_meta.get(2, b"").decode())
    if envelope.get(3):
        raise BadRequestError(f"the protobuf body has an unsupported encoding {envelope[3]!r}")
    raw = envelope.get(2, b"")
    if envelope.get(4) == b"application/json":
        decoded: Object = msgspec.json.decode(raw)
        return decoded
    message = builtin_types.type_name(gvk)
    if not message:
        raise UnsupportedMediaTypeError(f"{gvk.api_version} {gvk.kind} has no protobuf form; send JSON or YAML")
    return {"apiVersion": gvk.api_version, "kind": gvk.kind, **_decode_message(raw, message)}


def _by_number(message: str) -> Mapping[int, tuple[str, Field]]:
    return {field.number: (name, field) for name, field in builtin_types.wire_fields(message).items()}


def _decode_message(data: bytes, message: str) -> Object:
    known = _by_number(message)
    result: Object = {}
    for number, raw in fields_of(data):
        if number not in known:
            continue
        name, field = known[number]
        if field.shape == "map":
            key, value = _decode_entry(raw, field)
            result.setdefault(name, {})[key] = value
        elif field.shape == "list":
            result.setdefault(name, []).append(_decode_value(raw, field.type))
        else:
            value = _decode_value(raw, field.type)
            if field.inline:
                result |= value
            elif not _is_omitted(name, field, value, message):
                result[name] = value
    return result


def _decode_entry(data: bytes, field: Field) -> tuple[str, Any]:
    entry = dict(fields_of(data))
    empty: Any = 0 if field.type in ("bool", "int32", "int64") else b""
    return entry.get(1, b"").decode(), _decode_value(entry.get(2, empty), field.type)


def _is_omitted(name: str, field: Field, value: Any, message: str) -> bool:
    """Whether Go leaves this value out of JSON; a status that a client sends is made of zeros only."""
    if value is None:
        return True
    if value == "":
        return not field.required
    if value == {}:
        return name in _OMIT_EMPTY
    if value != 0:
        return False
    return message.endswith("Status") or (name in _OMIT_ZERO and not field.required)


def _decode_value(raw: Any, kind: str) -> Any:
    match kind:
        case "string":
            return raw.decode()
        case "bytes":
            return base64.b64encode(raw).decode()
        case "bool":
            return bool(raw)
        case "int32" | "int64":
            return raw - (1 << 64) if raw >> 63 else raw
        case "double":
            return struct.unpack("<d", raw)[0]
        case "quantity":
            return dict(fields_of(raw)).get(1, b"").decode() or "0"
        case "intorstring":
            return _decode_int_or_string(raw)
        case "time" | "microtime":
            return _decode_time(raw, "auto" if kind == "time" else "microseconds")
        case "duration":
            return _format_duration(dict(fields_of(raw)).get(1, 0))
        case "raw" | "fieldsv1":
            data = dict(fields_of(raw)).get(1, b"")
            return msgspec.json.decode(data) if data else None
        case "stringlist":
            return [item.decode() for number, item in fields_of(raw) if number == 1]
    return _decode_message(raw, kind)


def _decode_int_or_string(raw: bytes) -> int | str:
    parts = dict(fields_of(raw))
    if parts.get(1, 0) == 1:
        return str(parts.get(3, b"").decode())
    return int(_decode_value(parts.get(2, 0), "int32"))


def _decode_time(raw: bytes, precision: str) -> str | None:
    """RFC 3339; None for Go's zero time, which is an empty message."""
    parts = dict(fields_of(raw))
    if not parts:
        return None
    seconds = _decode_value(parts.get(1, 0), "int64")
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=parts.get(2, 0) // 1000)
    timespec = "seconds" if precision == "auto" else precision
    return time.isoformat(timespec=timespec).replace("+00:00", "Z")


def _format_duration(nanoseconds: int) -> str:
    seconds = _decode_value(nanoseconds, "int64") / 10**9
    return f"{seconds:g}s"
