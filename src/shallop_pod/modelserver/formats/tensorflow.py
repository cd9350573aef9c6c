"""TensorFlow SavedModels, by their signatures, and Keras models."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shallop_pod.modelserver.formats.tensors import feed
from shallop_pod.modelserver.models import LoadError, LoadOptions, Model, Signature
from shallop_pod.modelserver.protocol import Tensor

__all__ = ["load"]

_SIGNATURE = "serving_default"
_TYPES = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "bool": "BOOL", "string": "BYTES", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32",
    "uint64": "UINT64",
}  # fmt: skip


def load(name: str, path: Path, options: LoadOptions) -> Model:
    """Load a folder with ``saved_model.pb`` or a file of Keras."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # a second model finds it set
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    return _load_saved(name, path) if path.is_dir() else _load_keras(name, path)


def _load_saved(name: str, path: Path) -> Model:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    found = {key: _signature(loaded, function) for key, function in loaded.signatures.items()}
    if not found:
        raise LoadError(f"{path.name}: the model has no signature; save it with signatures=, or by model.export().")
    default = found.pop(_SIGNATURE, None) or _no_default(found)
    predict, inputs, outputs = default
    kind = "tensorflow_savedmodel"
    return Model(name, kind, predict, 0, inputs, outputs, named=True, batches=False, signatures=found)


def _signature(loaded: Any, function: Any) -> Signature:
    import tensorflow as tf

    inputs = tuple(_tensor(key, spec) for key, spec in function.structured_input_signature[1].items())
    outputs = tuple(_tensor(key, spec) for key, spec in function.structured_outputs.items())

    # The variables live as long as the object that they were loaded with.
    def predict(arrays: Any, _loaded: Any = loaded) -> Any:
        tensors = {key: tf.convert_to_tensor(array) for key, array in feed(arrays, inputs).items()}
        try:
            result = function(**tensors)
        except (tf.errors.InvalidArgumentError, TypeError) as error:
            raise ValueError(_reason(error)) from error
        return {key: result[key].numpy() for key in sorted(result)}

    return Signature(predict, inputs, outputs)


def _no_default(found: Mapping[str, Signature]) -> Signature:
    def refuse(arrays: Any) -> Any:
        raise ValueError(f'the model has no {_SIGNATURE}; name one of its signatures: "signature_name": {[*found]}')

    return Signature(refuse, (), ())


def _load_keras(name: str, path: Path) -> Model:
    import keras
    import tensorflow as tf

    model = keras.models.load_model(path, compile=False)
    inputs = tuple(_tensor(item.name, item) for item in model.inputs)
    names = getattr(model, "output_names", None) or [f"output-{number}" for number in range(len(model.outputs))]
    outputs = tuple(_tensor(key, item) for key, item in zip(names, model.outputs, strict=True))

    def predict(arrays: Any) -> Any:
        given = feed(arrays, inputs)
        try:
            result = model.predict_on_batch(given if len(inputs) > 1 else next(iter(given.values())))
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(_reason(error)) from error
        results = result if isinstance(result, list) else [result]
        if isinstance(result, dict):
            return result
        return dict(zip(names, results, strict=True))

    return Model(name, "keras", predict, 0, inputs, outputs, named=True, batches=False)


def _reason(error: Exception) -> str:
    """Return the line of TensorFlow's error that is not about where in its graph it was."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith((" ", "\t"))]
    return lines[-1] if lines else type(error).__name__


def _tensor(name: str, spec: Any) -> Tensor:
    dtype = getattr(spec.dtype, "name", spec.dtype)
    shape = () if spec.shape is None else tuple(-1 if size is None else int(size) for size in spec.shape)
    return Tensor(name, _TYPES.get(str(dtype), "BYTES"), shape)
