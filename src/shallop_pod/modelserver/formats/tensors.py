"""Arrays of requests as the typed tensors that a model of named inputs takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shallop_pod.modelserver.protocol import DTYPES, Tensor

__all__ = ["cast", "feed"]


def feed(given: Mapping[str, Any], inputs: Sequence[Tensor], optional: Sequence[str] = ()) -> dict[str, Any]:
    """
    Return every input with its type.

    Raises:
        ValueError: an input is missing, or its values cannot have the type without loss.
    """
    missing = [tensor.name for tensor in inputs if tensor.name not in given and tensor.name not in optional]
    if missing:
        raise ValueError(f"the model has the inputs {', '.join(t.name for t in inputs)}; missing: {', '.join(missing)}")
    return {tensor.name: cast(given[tensor.name], tensor) for tensor in inputs if tensor.name in given}


def cast(array: Any, tensor: Tensor) -> Any:
    """Return an array with the type of an input; itself where it has the type."""
    import numpy as np

    if tensor.datatype == "BYTES":
        return np.asarray(array).astype(object)
    dtype = np.dtype(DTYPES[tensor.datatype])
    if array.dtype == dtype:
        return array
    if dtype.kind in "iu" and array.dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        fits = array.size == 0 or (array.min() >= bounds.min and array.max() <= bounds.max)
    else:
        fits = np.can_cast(array.dtype, dtype, "same_kind")
    if not fits:
        raise ValueError(f"input {tensor.name}: wants {tensor.datatype}, the values are {array.dtype}")
    return array.astype(dtype)
