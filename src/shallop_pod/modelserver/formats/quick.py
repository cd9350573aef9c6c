"""
Predictions of common scikit-learn estimators without what ``predict`` does around them.

For one row that is most of the time: checks of arrays that we have made ourselves, and for a forest a task of joblib's
per tree. What is left out is only that: the same compiled code gets the same numbers in the same order. An estimator
whose answers differ in one bit when it is tried, at load, is asked in its own way, and so is whatever is no clean array
of numbers, so that errors are scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["quickened"]

# Returns None for rows that the estimator itself shall judge.
_Quick = Callable[[Any], Any]
# A forest of several threads is asked in its own way for more rows than this.
_FEW_ROWS = 64
_TRIED_ROWS = 16


def quickened(estimator: Any) -> Callable[[Any], Any]:
    """Return ``estimator.predict``, or what gives the same answers sooner."""
    own: Callable[[Any], Any] = estimator.predict
    try:
        quick = _quick_of(estimator)
        if quick is None or not _agrees(estimator, quick):
            return own
    except Exception:
        # Private attributes of another version may be missing or mean something else.
        return own
    import numpy as np

    features = int(estimator.n_features_in_)

    def predict(rows: Any) -> Any:
        if type(rows) is np.ndarray and rows.ndim == 2 and rows.shape[1] == features and rows.dtype.kind in "fiu":
            result = quick(rows)
            if result is not None:
                return result
        return own(rows)

    return predict


def _agrees(estimator: Any, quick: _Quick) -> bool:
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(_TRIED_ROWS, int(estimator.n_features_in_))) * 3
    for part in (rows, rows[:1]):
        expected, found = estimator.predict(part), quick(part)
        if expected.dtype != found.dtype or expected.shape != found.shape or expected.tobytes() != found.tobytes():
            return False
    return True


def _quick_of(estimator: Any) -> _Quick | None:
    # Classes of users may predict in another way.
    if not type(estimator).__module__.startswith("sklearn."):
        return None
    make = _MAKERS.get(type(estimator).__name__)
    return make(estimator) if make else None


def _clean(rows: Any, dtype: Any) -> Any:
    """Return the rows as an array of this type; None where some are not finite, or there are none."""
    import numpy as np

    with np.errstate(over="ignore"):
        array = np.asarray(rows, dtype=dtype, order="C")
    return array if len(array) and np.isfinite(array).all() else None


def _forest(estimator: Any) -> _Quick | None:
    import numpy as np

    if estimator.n_outputs_ != 1:
        return None
    trees: Sequence[Any] = [tree.tree_ for tree in estimator.estimators_]
    classes = getattr(estimator, "classes_", None)
    if classes is not None and not np.isclose(trees[0].value[0, 0].sum(), 1):
        return None  # counts, as in scikit-learn 1.3: each tree's answer would have to be normalized
    width = 1 if classes is None else len(classes)
    most = None if estimator.n_jobs in (None, 1) else _FEW_ROWS

    def predict(rows: Any) -> Any:
        array = _clean(rows, np.float32)
        if array is None or (most is not None and len(array) > most):
            return None
        total = np.zeros((len(array), width))
        for tree in trees:
            total += tree.predict(array)[:, :width]
        total /= len(trees)
        return total[:, 0] if classes is None else classes.take(total.argmax(axis=1), axis=0)

    return predict


def _tree(estimator: Any) -> _Quick | None:
    import numpy as np

    if estimator.n_outputs_ != 1:
        return None
    tree, classes = estimator.tree_, getattr(estimator, "classes_", None)

    def predict(rows: Any) -> Any:
        array = _clean(rows, np.float32)
        if array is None:
            return None
        found = tree.predict(array)
        return found[:, 0] if classes is None else classes.take(found[:, : len(classes)].argmax(axis=1), axis=0)

    return predict


def _svm(estimator: Any) -> _Quick | None:
    import numpy as np

    kernel = estimator.kernel
    if estimator._sparse or not isinstance(kernel, str) or kernel == "precomputed":
        return None
    if getattr(estimator, "break_ties", False):
        return None
    classes, ask = getattr(estimator, "classes_", None), estimator._dense_predict

    def predict(rows: Any) -> Any:
        array = _clean(rows, np.float64)
        if array is None:
            return None
        found = ask(array)
        return found if classes is None else classes.take(np.asarray(found, dtype=np.intp))

    return predict


def _linear(estimator: Any) -> _Quick | None:
    import numpy as np

    classes = getattr(estimator, "classes_", None)
    weights, offset = estimator.coef_, estimator.intercept_
    if weights.ndim > 1:
        weights = weights.T

    def predict(rows: Any) -> Any:
        # As they are: another type or order in memory would be another sum.
        if rows.dtype != np.float64 or not len(rows) or not np.isfinite(rows).all():
            return None
        scores = rows @ weights + offset
        if classes is None:
            return scores
        if scores.shape[1] == 1:
            return classes.take((scores[:, 0] > 0).astype(np.intp))
        return classes.take(scores.argmax(axis=1), axis=0)

    return predict


def _pipeline(estimator: Any) -> _Quick | None:
    import numpy as np

    *steps, last = [step for _, step in estimator.steps if step not in (None, "passthrough")]
    final = _quick_of(last)
    if final is None:
        return None
    transforms = [_scaler(step) or step.transform for step in steps]

    def predict(rows: Any) -> Any:
        for transform in transforms:
            rows = transform(rows)
            if type(rows) is not np.ndarray:
                return None
        return final(rows)

    return predict


def _scaler(estimator: Any) -> _Quick | None:
    import numpy as np

    if type(estimator).__name__ != "StandardScaler" or not type(estimator).__module__.startswith("sklearn."):
        return None
    mean = estimator.mean_ if estimator.with_mean else None
    scale = estimator.scale_ if estimator.with_std else None

    def transform(rows: Any) -> Any:
        if rows.dtype != np.float64 or not len(rows) or not np.isfinite(rows).all():
            return None
        rows = rows.copy() if mean is None else rows - mean
        if scale is not None:
            rows /= scale
        return rows

    return transform


_MAKERS: dict[str, Callable[[Any], _Quick | None]] = {
    **dict.fromkeys(
        ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"), _forest
    ),
    **dict.fromkeys(("DecisionTreeClassifier", "DecisionTreeRegressor"), _tree),
    **dict.fromkeys(("SVC", "NuSVC", "SVR", "NuSVR"), _svm),
    **dict.fromkeys(("LogisticRegression", "RidgeClassifier", "LinearSVC", "SGDClassifier"), _linear),
    "Pipeline": _pipeline,
    **dict.fromkeys(("LinearRegression", "Ridge", "Lasso", "ElasticNet", "LinearSVR"), _linear),
}
