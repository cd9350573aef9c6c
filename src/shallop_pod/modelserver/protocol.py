"""The V1 and V2 inference protocols: bytes to arrays, arrays to bytes. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
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

    def loads(value: bytes) -> Any:
        """Read JSON, as strictly as orjson: NaN is none, and neither is what nests too deep."""
        try:
            return json.loads(value, parse_constant=_refuse)
        except RecursionError as error:
            raise ValueError("it nests too deep") from error

    def _refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON value")

    def dumps(value: Any) -> bytes:
        """Write JSON, as orjson does: what is no number is null."""
        try:
            return json.dumps(value, default=_plain, allow_nan=False).encode()
        except ValueError:
            return json.dumps(_finite(json.loads(json.dumps(value, default=_plain)))).encode()

    def _finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: _finite(item) for name, item in value.items()}
        if isinstance(value, list):
            return [_finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = [
    "DTYPES",
    "ProtocolError",
    "Request",
    "Tensor",
    "arrange",
    "datatype_of",
    "dumps",
    "loads",
    "named_arrays",
    "parse_v1",
    "parse_v2",
    "render_v1",
    "render_v2",
]

# V2 datatype -> numpy; BYTES and FP16 have rules of their own below.
DTYPES = {
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
_DATATYPES = {code.lstrip("<"): name for name, code in DTYPES.items()} | {"b1": "BOOL"}


class ProtocolError(Exception):
    """A request that cannot be answered as it is; ``status`` is the HTTP code."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Tensor(NamedTuple):
    """What a model says of an input or output; ``datatype`` in V2's words, a size of -1 is any."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Request(NamedTuple):
    """
    What to predict.

    Args:
        rows: array ``(rows, ...)``, DataFrame, or for a model of named tensors a dict of arrays.
        id: V2 request id, echoed.
        binary: V2: answer with binary tensors.
        outputs: V2: names of the outputs that are wanted; empty for all.
        columns: V1: the request was in TensorFlow's column form, and so is the answer.
        signature: V1: the function of the model that is asked; empty for the default one.
    """

    rows: Any
    id: str = ""
    binary: bool = False
    outputs: tuple[str, ...] = ()
    columns: bool = False
    signature: str = ""


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


def parse_v1(
    body: bytes,
    inputs: Sequence[Tensor] | None = None,
    signature_inputs: Callable[[str], Sequence[Tensor]] | None = None,
) -> Request:
    """
    Read ``{"instances": [...]}``; ``inputs`` is accepted too.

    Args:
        inputs: of a model of named tensors; None for one that takes rows.
        signature_inputs: gives those of a signature that the request names; None for a model without any.
    """
    payload = _body(body)
    if not isinstance(payload, dict):
        raise ProtocolError('Expected an object with "instances", a list of rows')
    signature = payload.get("signature_name")
    if signature not in (None, "", "serving_default"):
        if signature_inputs is None or not isinstance(signature, str):
            raise ProtocolError('"signature_name": only "serving_default" is served; leave it out')
        return _parse_named_v1(payload, signature_inputs(signature))._replace(signature=signature)
    if inputs is not None:
        return _parse_named_v1(payload, inputs)
    rows = payload.get("instances", payload.get("inputs"))
    if not isinstance(rows, list):
        raise ProtocolError('Expected "instances" to be a list')
    if not rows:
        raise ProtocolError('"instances" is empty; send at least one row')
    if isinstance(rows[0], dict) or (isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], dict)):
        return Request(_frame(rows))
    return Request(_array(rows, '"instances"'))


def _parse_named_v1(payload: dict[str, Any], inputs: Sequence[Tensor]) -> Request:
    if "instances" not in payload and "inputs" in payload:
        given = payload["inputs"]
        columns = given if isinstance(given, dict) else {_only(inputs): given}
        tensors = [(name, _column(values, f'"inputs".{name}')) for name, values in columns.items()]
        return Request(arrange(tensors, inputs=inputs), columns=True)
    rows = payload.get("instances")
    if not isinstance(rows, list):
        raise ProtocolError('Expected "instances" to be a list')
    if not rows:
        raise ProtocolError('"instances" is empty; send at least one row')
    if not isinstance(rows[0], dict) or set(rows[0]) == {"b64"}:
        return Request({_only(inputs): _column(rows, '"instances"')})
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise ProtocolError('"instances": every row must be an object with the same names')
    tensors = [(name, _column([row[name] for row in rows], f'"instances".{name}')) for name in rows[0]]
    return Request(arrange(tensors, inputs=inputs))


def _only(inputs: Sequence[Tensor]) -> str:
    if len(inputs) > 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise ProtocolError(f"the model has several inputs; send objects with the names {names}")
    return inputs[0].name if inputs else "input-0"


def _column(values: Any, what: str) -> np.ndarray[Any, Any]:
    """Return an array; ``{"b64": text}`` in it, TensorFlow's way to send bytes, is decoded."""
    import numpy as np

    if isinstance(values, list) and values and isinstance(values[0], dict):
        try:
            return np.array([base64.b64decode(value["b64"]) for value in values], dtype=object)
        except (KeyError, TypeError, binascii.Error) as error:
            raise ProtocolError(f'{what}: expected {{"b64": text}}') from error
    return _array(values, what)


def arrange(tensors: Sequence[tuple[str, Any]], *, frame: bool = False, inputs: Sequence[Tensor] | None = None) -> Any:
    """
    Make what a model takes of the tensors of a request, which REST and gRPC have read.

    Args:
        tensors: names and arrays, in the order of the request; at least one.
        frame: the request asks for columns of a DataFrame.
        inputs: of a model of named tensors, empty when it does not know them; None for one that takes rows.

    Returns:
        The first array, a DataFrame of several, or a dict of arrays. Names that the model does not know stand for its
        inputs in their order when there are as many.
    """
    if inputs is not None:
        known = [tensor.name for tensor in inputs]
        given = [name for name, _ in tensors]
        if not known or set(given) <= set(known):
            return dict(tensors)
        if len(given) != len(known):
            raise ProtocolError(f"inputs: the model has {', '.join(known)}; the request has {', '.join(given)}")
        return dict(zip(known, (array for _, array in tensors), strict=True))
    if not frame and len(tensors) == 1:
        return tensors[0][1]
    pd = _pandas()

    lengths = {len(array) for _, array in tensors}
    if len(lengths) != 1:
        raise ProtocolError(f"inputs: columns must have the same number of rows, found {sorted(lengths)}")
    return pd.DataFrame({name: array.reshape(len(array), -1)[:, 0] for name, array in tensors})


def _pandas() -> Any:
    """Return the library; servers of tensors and texts have none, and their models no columns."""
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ProtocolError(
            "the model takes rows: send one list of numbers or texts for each, not named columns"
        ) from error
    return pd


def _frame(rows: list[Any]) -> Any:
    """
    Return instances of named values as one DataFrame.

    An instance is an object of values, an object of columns, or a list of objects of values, as KServe's LightGBM
    server takes them; what one of them lacks is missing (NaN).
    """
    pd = _pandas()

    kinds = {type(row) for row in rows}
    if kinds == {dict} and not any(isinstance(value, list) for value in rows[0].values()):
        return pd.DataFrame(rows)
    if len(kinds) > 1 or not all(isinstance(item, dict) for row in rows if kinds == {list} for item in row):
        raise ProtocolError('"instances" mixes objects with other rows; send either all objects or all lists')
    try:
        return pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f'"instances": columns must have the same number of rows: {error}') from error


def _array(values: Any, what: str, dtype: str | None = None) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        return np.array(values, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError(f"{what}: rows must all have the same length and type: {error}") from error


def render_v1(result: Any, *, columns: bool = False) -> bytes:
    """Write ``{"predictions": [...]}``, or for ``columns`` ``{"outputs": ...}``, TensorFlow's column form."""
    if isinstance(result, Mapping):
        arrays = {name: _contiguous(array) for name, array in result.items()}
        if columns:
            return dumps({"outputs": next(iter(arrays.values())) if len(arrays) == 1 else arrays})
        if len(arrays) == 1:
            return dumps({"predictions": next(iter(arrays.values()))})
        lists = {name: array.tolist() if hasattr(array, "tolist") else array for name, array in arrays.items()}
        rows = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
        return dumps({"predictions": rows})
    return dumps({"predictions": _contiguous(result)})


def _contiguous(result: Any) -> Any:
    # orjson writes only C-contiguous arrays of native types; anything else goes through lists.
    # DataFrames have flags, too, which are of another kind.
    contiguous = getattr(getattr(result, "flags", None), "c_contiguous", None)
    if contiguous and result.dtype.kind in "biuf":
        return result
    if contiguous is not None and result.dtype == object:
        return _texts(result).tolist()
    if hasattr(result, "columns"):
        return result.to_dict(orient="records")
    return result.tolist() if hasattr(result, "tolist") else result


def _texts(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array of objects with bytes as texts: of UTF-8, else of base64."""
    import numpy as np

    texts = np.empty(array.shape, dtype=object)
    for index, value in np.ndenumerate(array):
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                value = base64.b64encode(value).decode()
        texts[index] = value
    return texts


def parse_v2(
    body: bytes,
    header_length: int | None,
    inputs: Sequence[Tensor] | None = None,
    binary: Sequence[bytes | memoryview] | None = None,
) -> Request:
    """
    Read an inference request of the Open Inference Protocol.

    Args:
        header_length: value of ``Inference-Header-Content-Length``; None when the whole body is JSON.
        inputs: of a model of named tensors; None for one that takes rows.
        binary: one binary tensor for each input, where they are not in the body.
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
        parameters = _parameters(tensor, where)
        size = parameters.get("binary_data_size")
        if size is not None and (not isinstance(size, int) or size < 0):
            raise ProtocolError(f"{where}.parameters.binary_data_size: expected a number of bytes, found {size!r}")
        raw = None
        if binary is not None:
            raw = memoryview(binary[position])
        elif size is not None:
            raw, offset = memoryview(body)[offset : offset + size], offset + size
            if len(raw) != size:
                raise ProtocolError(f"{where}: binary_data_size is {size}, the body has {len(raw)} bytes left")
        array = _tensor(tensor, where, raw)
        codec = _CODECS.get(parameters["content_type"]) if isinstance(parameters.get("content_type"), str) else None
        if codec:
            array = _decoded(array, codec, f"{where}: content_type {parameters['content_type']}")
        tensors.append((str(tensor.get("name", position)), array))
    frame = _parameters(payload, "the request").get("content_type") == "pd"
    wanted = payload.get("outputs") or ()
    if not isinstance(wanted, list | tuple) or not all(isinstance(output, dict) for output in wanted):
        raise ProtocolError("outputs: expected a list of objects with a name")
    outputs = tuple(str(output["name"]) for output in wanted if output.get("name"))
    rows = arrange(tensors, frame=frame, inputs=inputs)
    return Request(rows, str(payload.get("id") or ""), _wants_binary(payload), outputs)


def _parameters(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = item.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ProtocolError(f"{where}: parameters: expected an object, found {parameters!r:.100}")
    return parameters


def _decoded(array: np.ndarray[Any, Any], codec: Callable[[str], Any], where: str) -> np.ndarray[Any, Any]:
    """Return texts as what they stand for, in the words of MLServer's codecs; ``np`` and ``str`` are as they are."""
    import numpy as np

    try:
        values = [codec(text) for text in array.reshape(-1).tolist()]
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"{where}: {error}") from error
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found.reshape(array.shape)


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


# What KServe and MLServer do not know either is left as it is.
_CODECS: Mapping[Any, Callable[[str], Any]] = {"base64": _from_base64, "datetime": datetime.fromisoformat}


def _wants_binary(payload: dict[str, Any]) -> bool:
    if (payload.get("parameters") or {}).get("binary_data_output"):
        return True
    return any(_parameters(output, "outputs").get("binary_data") for output in payload.get("outputs") or ())


def _tensor(tensor: dict[str, Any], where: str, raw: memoryview | None) -> np.ndarray[Any, Any]:
    import numpy as np

    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ProtocolError(f"{where}.shape: expected a list of sizes, found {shape!r}")
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in DTYPES):
        known = ", ".join([*DTYPES, "BYTES"])
        raise ProtocolError(f"{where}.datatype: {datatype!r} is not known; use one of {known}")
    if raw is not None and datatype == "BYTES":
        array: np.ndarray[Any, Any] = np.array(_split_bytes(raw, where), dtype=object)
    elif raw is not None:
        if len(raw) % np.dtype(DTYPES[datatype]).itemsize:
            raise ProtocolError(f"{where}: {len(raw)} bytes are no whole number of {datatype} values")
        array = np.frombuffer(raw, DTYPES[datatype])
    elif "data" not in tensor:
        raise ProtocolError(f"{where}.data: missing")
    else:
        dtype = "O" if datatype == "BYTES" else DTYPES[datatype]
        array = _array(tensor["data"], f"{where}.data", dtype).reshape(-1)
    wanted = math.prod(shape)
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


def render_v2(model: str, request: Request, result: Any) -> tuple[bytes, list[bytes | memoryview] | None]:
    """
    Write an inference response.

    Returns:
        The JSON, and the tensors that follow it in binary form, if so: views of the result where its bytes allow it.
    """
    import numpy as np

    outputs: list[dict[str, Any]] = []
    chunks: list[bytes | memoryview] = []
    for name, array in named_arrays(result, request.outputs).items():
        datatype = datatype_of(array)
        output: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if request.binary:
            flat: Any = np.ascontiguousarray(array).reshape(-1)
            chunk = _join_bytes(array) if datatype == "BYTES" else memoryview(flat.view("u1"))
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
    return head, chunks if request.binary else None


def named_arrays(result: Any, wanted: Sequence[str] = ()) -> dict[str, np.ndarray[Any, Any]]:
    """
    Return what a model answered as arrays by the names of outputs; REST and gRPC write them.

    Args:
        wanted: names of outputs; those that the model has are chosen, when it has any of them.
    """
    import numpy as np

    if hasattr(result, "columns"):
        arrays = {str(column): result[column].to_numpy() for column in result.columns}
    elif isinstance(result, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in result.items()}
    else:
        arrays = {"output-0": _as_array(result)}
    return {name: arrays[name] for name in wanted if name in arrays} or arrays


def _as_array(result: Any) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        array = np.asarray(result)
    except ValueError:  # rows of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype == object and isinstance(result, list) and any(isinstance(row, list | dict) for row in result):
        return np.array([dumps(row).decode() for row in result], dtype=object)
    return array


def datatype_of(array: np.ndarray[Any, Any]) -> str:
    """Return V2's name of an array's type; texts and anything unknown are BYTES."""
    return _DATATYPES.get(array.dtype.str.lstrip("<>|="), "BYTES")


def _join_bytes(array: np.ndarray[Any, Any]) -> bytes:
    encoded = [value if isinstance(value, bytes) else str(value).encode() for value in array.reshape(-1)]
    return b"".join(len(value).to_bytes(4, "little") + value for value in encoded)
