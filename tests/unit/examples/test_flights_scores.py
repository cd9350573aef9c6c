"""The figures that the example of late flights prints."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

from hypothesis import given
from hypothesis import strategies as st

_PATH = Path(__file__).resolve().parents[3] / "examples" / "flights" / "scores.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flights_scores", _PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scores = _load()


def test_accuracy_is_the_share_of_right_guesses() -> None:
    assert scores.accuracy([1, 0, 1, 0], [0.9, 0.1, 0.2, 0.5]) == 0.5


def test_a_perfect_order_has_auc_one_and_a_reversed_one_zero() -> None:
    assert scores.roc_auc([0, 0, 1], [0.1, 0.2, 0.3]) == 1.0
    assert scores.roc_auc([1, 0, 0], [0.1, 0.2, 0.3]) == 0.0


def test_auc_of_one_class_is_not_a_number() -> None:
    assert math.isnan(scores.roc_auc([1, 1], [0.1, 0.2]))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=2))
def test_auc_counts_pairs_that_are_in_order_and_ties_as_one_half(rows: list[tuple[int, int]]) -> None:
    truth, values = [row[0] for row in rows], [row[1] / 4 for row in rows]
    ones = [v for t, v in zip(truth, values, strict=True) if t]
    zeros = [v for t, v in zip(truth, values, strict=True) if not t]
    if not ones or not zeros:
        return
    in_order = sum((one > zero) + (one == zero) / 2 for one in ones for zero in zeros)
    assert math.isclose(scores.roc_auc(truth, values), in_order / (len(ones) * len(zeros)))
