"""Loading a model from a folder and predicting with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["LoadError", "Model", "load_model"]

_SKLEARN = (".joblib", ".pkl", ".pickle")
_XGBOOST = (".bst", ".ubj", ".json", ".xgb")
# Files that describe a model without being one.
_NOT_MODELS = ("metadata.json", "model-settings.json", "result.json", "config.json")


class LoadError(Exception):
    """The model cannot be served; the message is for the user who deployed it."""


class Model(NamedTuple):
    """
    A loaded model.

    Args:
        predict: takes an array ``(rows, ...)`` or a DataFrame, returns an array with one entry per row.
        features: how many numbers a row has; 0 when the model does not know.
    """

    name: str
    platform: str
    predict: Callable[[Any], Any]
    features: int


def load_model(name: str, folder: str | Path, *, env: Mapping[str, str] = os.environ, threads: int = 1) -> Model:
    """
    Load the one model file of a folder, or the file itself.

    Args:
        env: ``PREDICT_PROBA=true`` makes a classifier answer with probabilities.
        threads: used by XGBoost and LightGBM for one prediction.

    Raises:
        LoadError: none or several candidates, a broken file, a library that is missing or of another version.
    """
    path = _find(Path(folder))
    try:
        if path.suffix in _SKLEARN:
            return _load_sklearn(name, path, env)
        if _is_lightgbm(path):
            return _load_lightgbm(name, path, threads)
        return _load_xgboost(name, path, threads)
    except ModuleNotFoundError as error:
        raise LoadError(
            f"{path.name}: the model needs the package {error.name!r}, which its environment lacks. "
            f"Add a line to the annotation environment.shallop.dev/requirements of the InferenceService."
        ) from error
    except LoadError:
        raise
    except Exception as error:
        # Unpickling runs code of the model's authors, so that anything may be raised here.
        raise LoadError(f"{path.name}: cannot be loaded: {type(error).__name__}: {error}") from error


def _find(folder: Path) -> Path:
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise LoadError(f"model folder {folder} does not exist.")
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in _NOT_MODELS]
    for suffixes in (_SKLEARN, _XGBOOST):
        found = [path for path in files if path.suffix in suffixes]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise LoadError(f"more than one model file in the folder: {names}. Leave the one to serve.")
    names = ", ".join(path.name for path in files) or "nothing"
    wanted = " ".join(_SKLEARN + _XGBOOST)
    raise LoadError(f"no model file in the folder (looked for {wanted}; found {names}).")


def _load_sklearn(name: str, path: Path, env: Mapping[str, str]) -> Model:
    import joblib

    estimator = joblib.load(path)
    method = estimator.predict
    if env.get("PREDICT_PROBA", "").lower() == "true":
        method = getattr(estimator, "predict_proba", method)
    return Model(name, "sklearn", _without_name_warnings(method), int(getattr(estimator, "n_features_in_", 0)))


def _without_name_warnings(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import warnings

    # Fitted on a DataFrame, asked with an array: correct by position, and no news on every request.
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    return method


def _load_xgboost(name: str, path: Path, threads: int) -> Model:
    import numpy as np
    import xgboost

    booster = xgboost.Booster({"nthread": threads})
    booster.load_model(path)

    def predict(rows: Any) -> Any:
        if isinstance(rows, np.ndarray) and rows.dtype != object:
            return booster.inplace_predict(rows, validate_features=False)
        return booster.predict(xgboost.DMatrix(rows, nthread=threads))

    return Model(name, "xgboost", predict, int(booster.num_features()))


def _is_lightgbm(path: Path) -> bool:
    """Tell the text of a LightGBM booster from XGBoost's files, which may have the same suffix."""
    with path.open("rb") as file:
        return file.read(5) in (b"tree\n", b"tree\r")


def _load_lightgbm(name: str, path: Path, threads: int) -> Model:
    import lightgbm

    booster = lightgbm.Booster(model_file=str(path))

    def predict(rows: Any) -> Any:
        return booster.predict(rows, num_threads=threads)

    return Model(name, "lightgbm", predict, int(booster.num_feature()))
