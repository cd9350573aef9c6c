"""MLflow models, by their python_function flavour, with the types that their signature says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shallop_pod.modelserver.models import LoadOptions, Model
from shallop_pod.modelserver.protocol import Tensor, datatype_of

__all__ = ["load"]


def load(name: str, path: Path, options: LoadOptions) -> Model:
    """Load a folder with ``MLmodel``."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(path), suppress_warnings=True)
    schema = model.metadata.get_input_schema()
    columns = None if schema is None or schema.is_tensor_spec() else list(schema.inputs)

    def predict(rows: Any) -> Any:
        if columns is not None:
            rows = _frame(rows, columns)
        elif schema is not None and len(schema.inputs) == 1 and hasattr(rows, "dtype"):
            rows = rows.astype(schema.inputs[0].type, copy=False)
        result = model.predict(rows)
        result = result.to_numpy() if type(result).__name__ == "Series" else result
        return {"output-1": result} if options.mlserver and hasattr(result, "dtype") else result

    return Model(name, "mlflow", predict, len(columns or ()), _tensors(schema), batches=False)


def _tensors(schema: Any) -> tuple[Tensor, ...]:
    import numpy as np

    if schema is None:
        return ()
    if schema.is_tensor_spec():
        return tuple(
            Tensor(item.name or f"input-{number}", datatype_of(np.empty(0, item.type)), tuple(item.shape))
            for number, item in enumerate(schema.inputs)
        )
    return tuple(Tensor(str(item.name), datatype_of(np.empty(0, _numpy_type(item))), (-1, 1)) for item in schema.inputs)


def _numpy_type(column: Any) -> Any:
    to_numpy = getattr(column.type, "to_numpy", None)
    return to_numpy() if to_numpy else object


def _frame(rows: Any, columns: list[Any]) -> Any:
    """Return rows as the DataFrame that the signature wants: JSON has one kind of number, columns have many."""
    import numpy as np
    import pandas as pd

    if not hasattr(rows, "columns"):
        array = np.atleast_2d(rows)
        names = [item.name for item in columns]
        if array.shape[1] != len(names):
            wanted = ", ".join(map(str, names))
            raise ValueError(f"rows have {array.shape[1]} values; the model has the columns {wanted}")
        rows = pd.DataFrame(array, columns=names if all(names) else None)
    changes = {}
    for item in columns:
        wanted = np.dtype(_numpy_type(item))
        if item.name not in rows.columns or wanted.kind not in "iufb":
            continue
        values = rows[item.name]
        if values.dtype != wanted and values.dtype.kind in "iufb":
            converted = values.astype(wanted)
            if (converted == values).all() or wanted.kind == "f":
                changes[item.name] = converted
    return rows.assign(**changes) if changes else rows
