"""Pickled estimators of scikit-learn and its friends."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shallop_pod.modelserver.formats.quick import quickened
from shallop_pod.modelserver.models import LoadOptions, Model

__all__ = ["load"]

_METHODS = ("predict", "predict_proba", "transform")


def load(name: str, path: Path, options: LoadOptions) -> Model:
    """Load a pickle; MLServer's way to ask for ``predict_proba`` or ``transform`` is the name of an output."""
    import joblib

    estimator = joblib.load(path)
    # Fitted on a DataFrame, asked with an array: correct by position, and no news on every request.
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    features = int(getattr(estimator, "n_features_in_", 0))
    method = quickened(estimator) if hasattr(estimator, "predict") else estimator.transform
    if options.env.get("PREDICT_PROBA", "").lower() == "true":
        method = getattr(estimator, "predict_proba", method)
    if not options.mlserver:
        return Model(name, "sklearn", method, features)
    found = {item: getattr(estimator, item) for item in _METHODS if hasattr(estimator, item)}
    if "predict" in found:
        found["predict"] = quickened(estimator)
    methods = {item: _column_wide(ask) for item, ask in found.items()}
    default = methods.get("predict") or methods["transform"]
    label = "predict" if "predict" in methods else "transform"
    return Model(name, "sklearn", lambda rows: {label: default(rows)}, features, batches=False, methods=methods)


def _column_wide(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Give one value per row a dimension of its own, as MLServer's codec does."""

    def predict(rows: Any) -> Any:
        result = method(rows)
        return result.reshape(-1, 1) if getattr(result, "ndim", 0) == 1 else result

    return predict
