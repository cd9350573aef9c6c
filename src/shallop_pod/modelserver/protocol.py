"""The V1 and V2 inference protocols: bytes to arrays, arrays to bytes. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

try:
    import orjson

    loads: Callable[[bytes], Any] = orjson.loads

    def dumps(value: Any) -> bytes:
        """Write JSON; arrays are written without a detour over lists."""
        return bytes(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain))
except ModuleNotFoundError:  # the environment of a custom image may lack it
    loads = json.loads

    def dumps(value: Any) -> bytes:
        return json.dumps(value, default=_plain).encode()


__all__ = ["ProtocolError", "Request", "dumps", "parse_v1", "parse_v2", "render_v1", "render_v2"]

# V2 datatype -> numpy; BYTES and FP16 have rules of their own below.
_DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_DATATYPES = {code.lstrip("<"): name for name, code in _DTYPES.items()} | {"b1": "BOOL"}


class ProtocolError(Exception):
    """A request that cannot be answered as it is; ``status`` is the HTTP code."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Request(NamedTuple):
    """
    What to predict.

    Args:
        rows: array ``(rows, ...)`` or DataFrame.
        id: V2 request id, echoed.
        binary: V2: answer with binary tensors.
    """

    rows: Any
    id: str = ""
    binary: bool = False


def _plain(value: Any) -> Any:
    """Turn what numpy and pandas return into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a model answered with {type(value).__name__}, which JSON cannot hold")


def _body(body: bytes) -> Any:
    try:
        return loads(body)
    except ValueError as error:
        raise ProtocolError(f"Unrecognized request format: {error}") from error


def parse_v1(body: bytes) -> Request:
    """Read ``{"instances": [...]}``; ``inputs`` is accepted too."""
    payload = _body(body)
    if not isinstance(payload, dict):
        raise ProtocolError('Expected an object with "instances", a list of rows')
    rows = payload.get("instances", payload.get("inputs"))
    if not isinstance(rows, list):
        raise ProtocolError('Expected "instances" to be a list')
    if not rows:
        raise ProtocolError('"instances" is empty; send at least one row')
    if isinstance(rows[0], dict):
        return Request(_frame(rows))
    return Request(_array(rows, '"instances"'))


def _frame(rows: list[Any]) -> Any:
    import pandas as pd

    if not all(isinstance(row, dict) for row in rows):
        raise ProtocolError('"instances" mixes objects with other rows; send either all objects or all lists')
    return pd.DataFrame(rows)


def _array(values: Any, what: str, dtype: str | None = None) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        return np.array(values, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError(f"{what}: rows must all have the same length and type: {error}") from error


def render_v1(result: Any) -> bytes:
    """Write ``{"predictions": [...]}``."""
    return dumps({"predictions": _contiguous(result)})


def _contiguous(result: Any) -> Any:
    # orjson writes only C-contiguous arrays of native types; anything else goes through lists.
    flags = getattr(result, "flags", None)
    if flags is not None and flags.c_contiguous and result.dtype.kind in "biuf":
        return result
    return result.tolist() if hasattr(result, "tolist") else result


def parse_v2(body: bytes, header_length: int | None) -> Request:
    """
    Read an inference request of the Open Inference Protocol.

    Args:
        header_length: value of ``Inference-Header-Content-Length``; None when the whole body is JSON.
    """
    payload = _body(body if header_length is None else body[:header_length])
    if not isinstance(payload, dict) or not isinstance(payload.get("inputs"), list) or not payload["inputs"]:
        raise ProtocolError('Expected an object with "inputs", a list of at least one tensor')
    tensors = []
    offset = header_length or 0
    for position, tensor in enumerate(payload["inputs"]):
        where = f"inputs[{position}]"
        if not isinstance(tensor, dict):
            raise ProtocolError(f"{where}: expected an object with name, shape, datatype, data")
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        raw = None
        if size is not None:
            raw, offset = memoryview(body)[offset : offset + size], offset + size
            if len(raw) != size:
                raise ProtocolError(f"{where}: binary_data_size is {size}, the body has {len(raw)} bytes left")
        tensors.append((str(tensor.get("name", position)), _tensor(tensor, where, raw)))
    return Request(_rows(payload, tensors), str(payload.get("id") or ""), _wants_binary(payload))


def _rows(payload: dict[str, Any], tensors: list[tuple[str, Any]]) -> Any:
    columns = (payload.get("parameters") or {}).get("content_type") == "pd" or len(tensors) > 1
    if not columns:
        return tensors[0][1]
    import pandas as pd

    lengths = {len(array) for _, array in tensors}
    if len(lengths) != 1:
        raise ProtocolError(f"inputs: columns must have the same number of rows, found {sorted(lengths)}")
    return pd.DataFrame({name: array.reshape(len(array), -1)[:, 0] for name, array in tensors})


def _wants_binary(payload: dict[str, Any]) -> bool:
    if (payload.get("parameters") or {}).get("binary_data_output"):
        return True
    return any((output.get("parameters") or {}).get("binary_data") for output in payload.get("outputs") or ())


def _tensor(tensor: dict[str, Any], where: str, raw: memoryview | None) -> np.ndarray[Any, Any]:
    import numpy as np

    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ProtocolError(f"{where}.shape: expected a list of sizes, found {shape!r}")
    if datatype != "BYTES" and datatype not in _DTYPES:
        known = ", ".join([*_DTYPES, "BYTES"])
        raise ProtocolError(f"{where}.datatype: {datatype!r} is not known; use one of {known}")
    if raw is not None and datatype == "BYTES":
        array: np.ndarray[Any, Any] = np.array(_split_bytes(raw, where), dtype=object)
    elif raw is not None:
        if len(raw) % np.dtype(_DTYPES[datatype]).itemsize:
            raise ProtocolError(f"{where}: {len(raw)} bytes are no whole number of {datatype} values")
        array = np.frombuffer(raw, _DTYPES[datatype])
    elif "data" not in tensor:
        raise ProtocolError(f"{where}.data: missing")
    else:
        dtype = "O" if datatype == "BYTES" else _DTYPES[datatype]
        array = _array(tensor["data"], f"{where}.data", dtype).reshape(-1)
    wanted = int(np.prod(shape)) if shape else 1
    if array.size != wanted:
        raise ProtocolError(f"{where}: shape {shape} means {wanted} values, data has {array.size}")
    return array.reshape(shape)


def _split_bytes(raw: memoryview, where: str) -> list[str]:
    values, position = [], 0
    while position < len(raw):
        length = int.from_bytes(raw[position : position + 4], "little")
        position += 4
        if position + length > len(raw):
            raise ProtocolError(f"{where}: an element of {length} bytes goes beyond the tensor's data")
        values.append(bytes(raw[position : position + length]).decode())
        position += length
    return values


def render_v2(model: str, request: Request, result: Any) -> tuple[bytes, int | None]:
    """
    Write an inference response.

    Returns:
        The body, and the length of its JSON part when tensors follow it in binary form.
    """
    import numpy as np

    arrays = {"output-0": np.asarray(result)}
    if hasattr(result, "columns"):
        arrays = {str(column): result[column].to_numpy() for column in result.columns}
    outputs, chunks = [], []
    for name, array in arrays.items():
        datatype = _DATATYPES.get(array.dtype.str.lstrip("<>|="), "BYTES")
        output: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if request.binary:
            chunk = _join_bytes(array) if datatype == "BYTES" else np.ascontiguousarray(array).tobytes()
            output["parameters"] = {"binary_data_size": len(chunk)}
            chunks.append(chunk)
        else:
            output["data"] = _contiguous(array.reshape(-1))
        outputs.append(output)
    head = dumps(
        {
            "model_name": model,
            "model_version": "1",
            "id": request.id or str(uuid.uuid4()),
            "outputs": outputs,
        }
    )
    return (head + b"".join(chunks), len(head)) if request.binary else (head, None)


def _join_bytes(array: np.ndarray[Any, Any]) -> bytes:
    encoded = [str(value).encode() for value in array.reshape(-1)]
    return b"".join(len(value).to_bytes(4, "little") + value for value in encoded)
