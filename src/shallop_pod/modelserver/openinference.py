"""
The gRPC messages of the Open Inference Protocol as requests and answers of its REST form, with binary tensors. Pure.

A tensor is the same bytes in both forms, so that a prediction is the same bit for bit however it was asked. Typed
contents become bytes on the way in, and bytes typed contents on the way out where the request had them.

Source: ``inference.GRPCInferenceService`` of KServe 0.21 and what Triton adds to it; Protocol Buffers, "Encoding".
KServe has the model's name in field 1 of the repository requests, Triton in field 2: both are read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from shallop_pod.modelserver.protocol import ProtocolError, dumps, loads
from shallop_pod.protobuf import (
    ProtobufError,
    bytes_field,
    number_field,
    read_varint,
    text_field,
    varint,
    wire_fields,
)

__all__ = [
    "INFER",
    "METHODS",
    "STREAM_INFER",
    "Method",
    "RestAnswer",
    "RestRequest",
    "read_answer",
    "stream_answer",
    "tensor_values",
]

_SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM_INFER = f"{_SERVICE}ModelInfer", f"{_SERVICE}ModelStreamInfer"
# Datatype -> field of InferTensorContents and code of struct.
_CONTENTS = {
    "BOOL": (1, "?"),
    "INT8": (2, "b"),
    "INT16": (2, "h"),
    "INT32": (2, "i"),
    "INT64": (3, "q"),
    "UINT8": (4, "B"),
    "UINT16": (4, "H"),
    "UINT32": (4, "I"),
    "UINT64": (5, "Q"),
    "FP32": (6, "f"),
    "FP64": (7, "d"),
}
_FIELD_NAMES = {1: "bool", 2: "int", 3: "int64", 4: "uint", 5: "uint64", 6: "fp32", 7: "fp64", 8: "bytes"}
# The names of Triton's DataType, in the order of their numbers.
_CONFIG_TYPES = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING", "BF16"),
)


class RestRequest(NamedTuple):
    """
    What the REST form would be.

    Args:
        tensors: binary ones that follow the JSON of the body.
        raw: the tensors came as raw contents, and those of the answer shall, too.
    """

    method: str
    path: str
    body: bytes = b""
    tensors: Sequence[bytes | memoryview] | None = None
    raw: bool = True


class RestAnswer(NamedTuple):
    """
    What the REST form answered, with status 200 unless the method says that it reads others.

    Args:
        tensors: that follow the JSON of the body; None where all of the answer is JSON.
    """

    status: int
    body: bytes
    tensors: Sequence[bytes | memoryview] | None = None
    raw: bool = True


class Method(NamedTuple):
    """
    How a method is asked and answered.

    Args:
        absent: the message for a model or server that REST says is unknown or not ready; None where that is an error.
    """

    ask: Callable[[bytes | memoryview], RestRequest]
    answer: Callable[[RestAnswer], bytes]
    absent: bytes | None = None


# -- reading


def _content(value: Any) -> memoryview:
    """Return a field's bytes; a field that came as a number is none that was meant."""
    if isinstance(value, int):
        raise ProtocolError("the message has a number where bytes are meant")
    return memoryview(value)


def _fields(message: Any) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and value of each field: an int, or a view of the bytes."""
    try:
        yield from wire_fields(_content(message))
    except ProtobufError as error:
        raise ProtocolError(str(error)) from error


def _text(value: Any) -> str:
    try:
        return bytes(_content(value)).decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a text of the message is no UTF-8: {error}") from error


def _integers(wire: int, value: Any) -> list[int]:
    """Return signed 64-bit integers of one field, packed or not."""
    if wire == 0:
        return [_signed(value)]
    if wire != 2:
        raise ProtocolError("the message has a fixed number where a varying one is meant")
    found, position = [], 0
    try:
        while position < len(value):
            number, position = read_varint(value, position)
            found.append(_signed(number))
    except ProtobufError as error:
        raise ProtocolError(str(error)) from error
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _parameter(value: Any) -> tuple[str, Any]:
    key = ""
    content: Any = None
    for number, _, part in _fields(value):
        if number == 1:
            key = _text(part)
        elif number == 2:
            for choice, wire, chosen in _fields(part):
                if choice == 1:
                    content = bool(chosen)
                elif choice in (2, 5) and wire == 0:
                    content = _signed(chosen) if choice == 2 else chosen
                elif choice == 3:
                    content = _text(chosen)
                elif choice == 4 and wire == 1:
                    content = struct.unpack("<d", chosen)[0]
    return key, content


def _strings(message: bytes | memoryview) -> dict[int, str]:
    """Return the texts of a flat message."""
    return {number: _text(value) for number, wire, value in _fields(message) if wire == 2}


def _contents(datatype: str, parts: Mapping[int, list[tuple[int, Any]]], where: str) -> bytes:
    """Return the raw bytes of typed contents."""
    if datatype == "BYTES":
        number, code = 8, ""
    elif datatype in _CONTENTS:
        number, code = _CONTENTS[datatype]
    else:
        raise ProtocolError(f"{where}: datatype {datatype!r} has no typed contents; send raw_input_contents")
    others = [other for other in parts if other != number]
    if others:
        wrong = _FIELD_NAMES.get(others[0], str(others[0]))
        raise ProtocolError(
            f"{where}: contents of {datatype} are {_FIELD_NAMES[number]}_contents, found {wrong}_contents"
        )
    values = parts.get(number, [])
    if number == 8:
        return b"".join(len(_content(value)).to_bytes(4, "little") + bytes(value) for _, value in values)
    if number in (6, 7):
        return b"".join(_content(value) for _, value in values)
    integers = [integer for wire, value in values for integer in _integers(wire, value)]
    if number == 5:
        integers = [integer & 0xFFFFFFFFFFFFFFFF for integer in integers]
    try:
        return struct.pack(f"<{len(integers)}{code}", *integers)
    except struct.error as error:
        raise ProtocolError(f"{where}: a value does not fit {datatype}: {error}") from error


def tensor_values(datatype: str, raw: bytes | memoryview) -> list[Any]:
    """
    Return a tensor's values as JSON has them.

    Raises:
        ProtocolError: the bytes are no whole number of such values, or texts that JSON cannot hold.
    """
    if datatype == "BYTES":
        values, position = [], 0
        while position < len(raw):
            size = int.from_bytes(raw[position : position + 4], "little")
            if position + 4 + size > len(raw):
                raise ProtocolError(f"an element of {size} bytes goes beyond the tensor's data")
            values.append(_text(raw[position + 4 : position + 4 + size]))
            position += 4 + size
        return values
    code = "e" if datatype == "FP16" else _CONTENTS.get(datatype, (0, ""))[1]
    if not code or len(raw) % struct.calcsize(f"<{code}"):
        raise ProtocolError(f"{len(raw)} bytes are no whole number of values of datatype {datatype!r}")
    return list(struct.unpack(f"<{len(raw) // struct.calcsize(f'<{code}')}{code}", raw))


def _input(message: Any, where: str) -> tuple[dict[str, Any], dict[int, list[tuple[int, Any]]] | None]:
    name, datatype = "", ""
    shape: list[int] = []
    parameters: dict[str, Any] = {}
    contents: dict[int, list[tuple[int, Any]]] | None = None
    for number, wire, value in _fields(message):
        if number == 1:
            name = _text(value)
        elif number == 2:
            datatype = _text(value)
        elif number == 3:
            shape += _integers(wire, value)
        elif number == 4:
            key, content = _parameter(value)
            parameters[key] = content
        elif number == 5 and wire == 2:
            contents = contents if contents is not None else {}
            for field, kind, part in _fields(value):
                contents.setdefault(field, []).append((kind, part))
    if any(size < 0 for size in shape):
        raise ProtocolError(f"{where}.shape: {shape} has a negative size")
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": parameters}, contents


def read_answer(message: bytes | memoryview, *, stream: bool = False) -> dict[str, Any]:
    """
    Return the V2 response in JSON that a ModelInferResponse stands for.

    Args:
        stream: it is a ModelStreamInferResponse, whose error is returned as one of REST.
    """
    if stream:
        fields = {number: value for number, _, value in _fields(message)}
        return {"error": _text(fields[1])} if fields.get(1) else read_answer(fields.get(2, b""))
    said: dict[str, Any] = {"model_name": "", "model_version": "", "id": ""}
    outputs: list[tuple[dict[str, Any], dict[int, list[tuple[int, Any]]] | None]] = []
    raw: list[Any] = []
    for number, _, value in _fields(message):
        if number in (1, 2, 3):
            said[("model_name", "model_version", "id")[number - 1]] = _text(value)
        elif number == 5:
            outputs.append(_input(value, f"outputs[{len(outputs)}]"))
        elif number == 6:
            raw.append(_content(value))
    said["outputs"] = []
    for index, (tensor, contents) in enumerate(outputs):
        chunk = raw[index] if raw else _contents(tensor["datatype"], contents or {}, f"outputs[{index}]")
        said["outputs"].append({**tensor, "data": tensor_values(tensor["datatype"], chunk)})
    return said


def _ask_infer(message: bytes | memoryview) -> RestRequest:
    model = version = id_ = ""
    parameters: dict[str, Any] = {}
    inputs: list[tuple[dict[str, Any], dict[int, list[tuple[int, Any]]] | None]] = []
    outputs: list[dict[str, Any]] = []
    raw: list[Any] = []
    for number, _, value in _fields(message):
        if number == 1:
            model = _text(value)
        elif number == 2:
            version = _text(value)
        elif number == 3:
            id_ = _text(value)
        elif number == 4:
            key, content = _parameter(value)
            parameters[key] = content
        elif number == 5:
            inputs.append(_input(value, f"inputs[{len(inputs)}]"))
        elif number == 6:
            output, _ = _input(value, "outputs")
            outputs.append({"name": output["name"], "parameters": output["parameters"]})
        elif number == 7:
            raw.append(_content(value))
    typed = [index for index, (_, contents) in enumerate(inputs) if contents]
    if raw and typed:
        raise ProtocolError(f"inputs[{typed[0]}].contents: must be empty where raw_input_contents are sent")
    if raw and len(raw) != len(inputs):
        raise ProtocolError(f"raw_input_contents: {len(raw)} for {len(inputs)} inputs; send one for each")
    chunks = []
    for index, (tensor, contents) in enumerate(inputs):
        chunk = raw[index] if raw else _contents(tensor["datatype"], contents or {}, f"inputs[{index}]")
        tensor["parameters"]["binary_data_size"] = len(chunk)
        chunks.append(chunk)
    head: dict[str, Any] = {
        "id": id_,
        "parameters": parameters | {"binary_data_output": True},
        "inputs": [tensor for tensor, _ in inputs],
    }
    if outputs:
        head["outputs"] = outputs
    at_version = f"/versions/{version}" if version else ""
    return RestRequest("POST", f"/v2/models/{model}{at_version}/infer", dumps(head), chunks, bool(raw))


# -- writing


def _text_field(number: int, value: Any) -> bytes:
    return text_field(number, str(value)) if value else b""


def _packed(number: int, values: Iterable[int]) -> bytes:
    content = b"".join(map(varint, values))
    return bytes_field(number, content) if content else b""


def _parameters_field(number: int, parameters: Mapping[str, Any]) -> bytes:
    entries = []
    for key, value in parameters.items():
        if isinstance(value, bool):
            choice = b"\x08" + varint(value)
        elif isinstance(value, int):
            choice = b"\x10" + varint(value)
        elif isinstance(value, float):
            choice = b"\x21" + struct.pack("<d", value)
        else:
            choice = bytes_field(3, (value if isinstance(value, str) else json.dumps(value)).encode())
        entries.append(bytes_field(number, _text_field(1, key) + bytes_field(2, choice)))
    return b"".join(entries)


def _raw_of(output: Mapping[str, Any], chunk: bytes | memoryview | None, where: str) -> bytes | memoryview:
    """Return the raw bytes of an output, also where the REST form wrote it as JSON."""
    if chunk is not None:
        return chunk
    datatype, values = output["datatype"], list(_flat(output.get("data") or ()))
    if datatype == "BYTES":
        encoded = [value if isinstance(value, bytes) else str(value).encode() for value in values]
        return b"".join(len(value).to_bytes(4, "little") + value for value in encoded)
    code = "e" if datatype == "FP16" else _CONTENTS.get(datatype, (0, ""))[1]
    if not code:
        raise ProtocolError(f"{where}: the model answered with datatype {datatype!r}", 500)
    return struct.pack(f"<{len(values)}{code}", *values)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _typed(datatype: str, raw: bytes | memoryview) -> bytes:
    """Write raw bytes as InferTensorContents."""
    if datatype == "BYTES":
        parts, position = [], 0
        while position < len(raw):
            size = int.from_bytes(raw[position : position + 4], "little")
            parts.append(bytes_field(8, bytes(raw[position + 4 : position + 4 + size])))
            position += 4 + size
        return b"".join(parts)
    number, code = _CONTENTS[datatype]
    # A packed list of booleans, floats or doubles is the tensor's own bytes.
    if number in (1, 6, 7):
        return bytes_field(number, bytes(raw)) if raw else b""
    return _packed(number, struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw))


def _answer_infer(answer: RestAnswer) -> bytes:
    head = loads(answer.body)
    chunks = iter(answer.tensors or ())
    outputs = []
    for index, output in enumerate(head.get("outputs") or ()):
        size = (output.get("parameters") or {}).pop("binary_data_size", None)
        chunk = next(chunks) if size is not None else None
        outputs.append((output, _raw_of(output, chunk, f"outputs[{index}]")))
    raw = answer.raw or any(output["datatype"] not in (*_CONTENTS, "BYTES") for output, _ in outputs)
    parts: list[bytes | memoryview] = [_text_field(1, head.get("model_name"))]
    parts += [_text_field(2, head.get("model_version"))]
    parts += [_text_field(3, head.get("id")), _parameters_field(4, head.get("parameters") or {})]
    for output, content in outputs:
        tensor = _text_field(1, output["name"]) + _text_field(2, output["datatype"]) + _packed(3, output["shape"])
        tensor += _parameters_field(4, output.get("parameters") or {})
        parts.append(bytes_field(5, tensor if raw else tensor + bytes_field(5, _typed(output["datatype"], content))))
    if raw:
        for _, content in outputs:
            parts += [varint(6 << 3 | 2), varint(len(content)), content]
    return b"".join(parts)


def stream_answer(infer_response: bytes = b"", error: str = "") -> bytes:
    """Write a ModelStreamInferResponse."""
    return bytes_field(1, error.encode()) if error else bytes_field(2, infer_response)


# -- the methods


def _get(path: str) -> Callable[[bytes | memoryview], RestRequest]:
    return lambda message: RestRequest("GET", path)


def _of_model(rest: str) -> Callable[[bytes | memoryview], RestRequest]:
    def ask(message: bytes | memoryview) -> RestRequest:
        names = _strings(message)
        version = f"/versions/{names[2]}" if names.get(2) else ""
        return RestRequest("GET", f"/v2/models/{names.get(1, '')}{version}{rest}")

    return ask


def _statistics(message: bytes | memoryview) -> RestRequest:
    name = _strings(message).get(1)
    return RestRequest("GET", f"/v2/models/{name}/stats" if name else "/v2/models/stats")


def _control(verb: str) -> Callable[[bytes | memoryview], RestRequest]:
    def ask(message: bytes | memoryview) -> RestRequest:
        names: dict[int, str] = {}
        for number, wire, value in _fields(message):
            if number in (1, 2) and wire == 2:
                names[number] = _text(value)
        return RestRequest("POST", f"/v2/repository/models/{names.get(2) or names.get(1, '')}/{verb}", b"{}")

    return ask


def _json(answer: RestAnswer) -> Any:
    return loads(answer.body) if answer.body else {}


def _server_metadata(answer: RestAnswer) -> bytes:
    found = _json(answer)
    parts = [_text_field(1, found.get("name")), _text_field(2, found.get("version"))]
    return b"".join([*parts, *(_text_field(3, item) for item in found.get("extensions") or ())])


def _tensors(number: int, tensors: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(
        bytes_field(number, _text_field(1, t["name"]) + _text_field(2, t["datatype"]) + _packed(3, t["shape"]))
        for t in tensors
    )


def _model_metadata(answer: RestAnswer) -> bytes:
    found = _json(answer)
    parts = [_text_field(1, found.get("name")), *(_text_field(2, item) for item in found.get("versions") or ())]
    parts += [_text_field(3, found.get("platform")), _tensors(4, found.get("inputs") or ())]
    return b"".join([*parts, _tensors(5, found.get("outputs") or ())])


def _index(answer: RestAnswer) -> bytes:
    names = ("name", "version", "state", "reason")
    return b"".join(
        bytes_field(1, b"".join(_text_field(n, item.get(name)) for n, name in enumerate(names, 1)))
        for item in _json(answer)
    )


def _changed(answer: RestAnswer) -> bytes:
    found = _json(answer)
    return _text_field(1, found.get("name") if isinstance(found, dict) else "") + number_field(2, 1)


def _model_config(answer: RestAnswer) -> bytes:
    found = _json(answer)
    parts = [_text_field(1, found.get("name")), _text_field(2, found.get("platform"))]
    parts.append(number_field(4, int(found.get("max_batch_size") or 0)))
    for number, key in ((5, "input"), (6, "output")):
        for tensor in found.get(key) or ():
            name = str(tensor.get("data_type", "")).removeprefix("TYPE_")
            kind = _CONFIG_TYPES.index(name) if name in _CONFIG_TYPES else 0
            content = _text_field(1, tensor.get("name")) + number_field(2, kind) + _packed(4, tensor.get("dims") or ())
            parts.append(bytes_field(number, content))
    return bytes_field(1, b"".join(parts))


def _model_statistics(answer: RestAnswer) -> bytes:
    kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    parts = []
    for model in _json(answer).get("model_stats") or ():
        durations = model.get("inference_stats") or {}
        spent = [(n, durations[kind]) for n, kind in enumerate(kinds, 1) if kind in durations]
        content = [_text_field(1, model.get("name")), _text_field(2, model.get("version"))]
        content.append(number_field(4, model.get("inference_count") or 0))
        content.append(number_field(5, model.get("execution_count") or 0))
        inner = (bytes_field(n, number_field(1, item["count"]) + number_field(2, item["ns"])) for n, item in spent)
        content.append(bytes_field(6, b"".join(inner)))
        parts.append(bytes_field(1, b"".join(content)))
    return b"".join(parts)


_TRUE = number_field(1, 1)
_READY = _get("/v2/health/ready")
METHODS: Mapping[str, Method] = {
    f"{_SERVICE}ServerLive": Method(_get("/v2/health/live"), lambda answer: _TRUE, b""),
    f"{_SERVICE}ServerReady": Method(_READY, lambda answer: _TRUE, b""),
    f"{_SERVICE}ModelReady": Method(_of_model("/ready"), lambda answer: _TRUE, b""),
    f"{_SERVICE}ServerMetadata": Method(_get("/v2"), _server_metadata),
    f"{_SERVICE}ModelMetadata": Method(_of_model(""), _model_metadata),
    f"{_SERVICE}ModelConfig": Method(_of_model("/config"), _model_config),
    f"{_SERVICE}ModelStatistics": Method(_statistics, _model_statistics),
    f"{_SERVICE}RepositoryIndex": Method(lambda message: RestRequest("POST", "/v2/repository/index", b"{}"), _index),
    f"{_SERVICE}RepositoryModelLoad": Method(_control("load"), _changed),
    f"{_SERVICE}RepositoryModelUnload": Method(_control("unload"), _changed),
    f"{_SERVICE}SystemSharedMemoryStatus": Method(_get("/v2/systemsharedmemory/status"), lambda answer: b""),
    f"{_SERVICE}CudaSharedMemoryStatus": Method(_get("/v2/cudasharedmemory/status"), lambda answer: b""),
    f"{_SERVICE}TraceSetting": Method(_get("/v2/trace/setting"), lambda answer: b""),
    INFER: Method(_ask_infer, _answer_infer),
    STREAM_INFER: Method(_ask_infer, _answer_infer),
    # What kubelets and balancers ask: 1 is SERVING, 2 NOT_SERVING.
    "/grpc.health.v1.Health/Check": Method(_READY, lambda answer: _TRUE, number_field(1, 2)),
}
