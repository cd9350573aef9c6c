"""Boosters of XGBoost and LightGBM."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shallop_pod.modelserver.models import LoadOptions, Model

__all__ = ["load"]


def load(name: str, path: Path, options: LoadOptions) -> Model:
    """Load a booster; what its own ``predict`` answers is the answer."""
    loaded = _load_lightgbm(name, path, options) if _is_lightgbm(path) else _load_xgboost(name, path, options)
    if not options.mlserver:
        return loaded
    return loaded._replace(predict=_named(loaded.predict), batches=False)


def _named(predict: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def predict_column(rows: Any) -> Any:
        result = predict(rows)
        return {"predict": result.reshape(-1, 1) if result.ndim == 1 else result}

    return predict_column


def _load_xgboost(name: str, path: Path, options: LoadOptions) -> Model:
    import numpy as np
    import xgboost

    with _one_thread():
        booster = xgboost.Booster({"nthread": options.threads or 1})
        booster.load_model(path)

    def predict(rows: Any) -> Any:
        if isinstance(rows, np.ndarray) and rows.dtype != object:
            return booster.inplace_predict(rows, validate_features=False)
        return booster.predict(xgboost.DMatrix(rows, nthread=options.threads or 1))

    return Model(name, "xgboost", predict, int(booster.num_features()))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let OpenMP start no threads: they would stay, and a process with threads is not forked."""
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "libgomp" in line or "libomp" in line}
    pools = [ctypes.CDLL(path) for path in sorted(paths)]
    sizes = [pool.omp_get_max_threads() for pool in pools]
    for pool in pools:
        pool.omp_set_num_threads(1)
    try:
        yield
    finally:
        for pool, size in zip(pools, sizes, strict=True):
            pool.omp_set_num_threads(size)


def _is_lightgbm(path: Path) -> bool:
    """Tell the text of a LightGBM booster from XGBoost's files, which may have the same suffix."""
    with path.open("rb") as file:
        return file.read(5) in (b"tree\n", b"tree\r")


def _load_lightgbm(name: str, path: Path, options: LoadOptions) -> Model:
    import lightgbm

    with _one_thread():
        booster = lightgbm.Booster(model_file=str(path))

    names = booster.feature_name()

    def predict(rows: Any) -> Any:
        if hasattr(rows, "columns") and set(rows.columns) & set(names):
            # By name; what a request lacks is missing.
            rows = rows.reindex(columns=names)
        return booster.predict(rows, num_threads=options.threads or 1)

    return Model(name, "lightgbm", predict, int(booster.num_feature()))
