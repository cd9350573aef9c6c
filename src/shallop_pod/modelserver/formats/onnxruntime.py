"""ONNX models, by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shallop_pod.modelserver.formats.tensors import feed
from shallop_pod.modelserver.models import LoadError, LoadOptions, Model
from shallop_pod.modelserver.protocol import Tensor

__all__ = ["load"]

_TYPES = {
    "float": "FP32", "double": "FP64", "float16": "FP16", "bool": "BOOL", "string": "BYTES",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
}  # fmt: skip


def load(name: str, path: Path, options: LoadOptions) -> Model:
    """Load a graph; its outputs have its own names."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    # Threads that wait busily take the CPU from the event loop.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    inputs = tuple(_tensor(item) for item in session.get_inputs())
    outputs = tuple(_tensor(item) for item in session.get_outputs())
    if unknown := next((tensor for tensor in inputs if not tensor.datatype), None):
        raise LoadError(f"{path.name}: the input {unknown.name} is no tensor; only tensors can be sent.")
    names = [tensor.name for tensor in outputs]
    wrong = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument

    def predict(tensors: Any) -> Any:
        try:
            return dict(zip(names, session.run(names, feed(tensors, inputs)), strict=True))
        except wrong as error:
            raise ValueError(str(error)) from error

    shape = inputs[0].shape
    features = shape[1] if len(inputs) == 1 and len(shape) == 2 and shape[1] > 0 else 0
    return Model(name, "onnxruntime_onnx", predict, features, inputs, outputs, named=True, batches=False)


def _tensor(item: Any) -> Tensor:
    kind = item.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in item.shape or ())
    return Tensor(item.name, _TYPES.get(kind, ""), shape)
