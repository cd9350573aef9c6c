"""Paddle's inference models: ``NAME.pdmodel`` or ``NAME.json``, with the weights in ``NAME.pdiparams``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shallop_pod.modelserver.formats.tensors import feed
from shallop_pod.modelserver.models import LoadError, LoadOptions, Model
from shallop_pod.modelserver.protocol import Tensor

__all__ = ["load"]

_TYPES = {
    "FLOAT32": "FP32", "FLOAT64": "FP64", "FLOAT16": "FP16", "BOOL": "BOOL", "INT8": "INT8", "UINT8": "UINT8",
    "INT32": "INT32", "INT64": "INT64",
}  # fmt: skip


def load(name: str, path: Path, options: LoadOptions) -> Model:
    """Load the weights at ``path`` and the program beside them."""
    from paddle import inference

    programs = [path.with_suffix(suffix) for suffix in (".pdmodel", ".json")]
    program = next((file for file in programs if file.is_file()), None)
    if program is None:
        raise LoadError(f"{path.name}: the program is missing: {' or '.join(file.name for file in programs)}.")
    config = inference.Config(str(program), str(path))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(options.threads or 1)
    predictor = inference.create_predictor(config)
    handles = {key: predictor.get_input_handle(key) for key in predictor.get_input_names()}
    # Sizes are known once there is an input.
    inputs = tuple(Tensor(key, _TYPES.get(handle.type().name, ""), (-1,)) for key, handle in handles.items())
    if unknown := next((tensor for tensor in inputs if not tensor.datatype), None):
        raise LoadError(f"{path.name}: the input {unknown.name} has a type that cannot be sent.")
    names = [str(key) for key in predictor.get_output_names()]

    def predict(tensors: Any) -> Any:
        for key, array in feed(tensors, inputs).items():
            handles[key].copy_from_cpu(array)
        try:
            predictor.run()
        except (ValueError, RuntimeError) as error:
            raise ValueError(_reason(error)) from error
        return {key: predictor.get_output_handle(key).copy_to_cpu() for key in names}

    return Model(name, "paddle", predict, 0, inputs, named=True, batches=False)


def _reason(error: Exception) -> str:
    """Return the line of Paddle's error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "InvalidArgument" in line), lines[0] if lines else type(error).__name__)
