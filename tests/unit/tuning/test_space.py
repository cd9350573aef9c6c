"""Parameters as positions in the unit interval."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.tuning.space import Parameter, parse_parameter


def parameter(kind: str = "double", **space: Any) -> Parameter:
    return parse_parameter({"name": "p", "parameterType": kind, "feasibleSpace": space})


PARAMETERS = [
    parameter(min="0.01", max="0.05"),
    parameter(min="0.0001", max="0.1", distribution="logUniform"),
    parameter(min="1", max="9", distribution="normal"),
    parameter(min="1", max="100", distribution="logNormal"),
    parameter(min="0.1", max="0.35", step="0.1"),
    parameter(min="0.01", max="0.05", step="0.01", distribution="normal"),
    parameter("int", min="-3", max="4"),
    parameter("int", min="1", max="64", distribution="logUniform"),
    parameter("int", min="1", max="10", step="4"),
    parameter("discrete", list=["0.5", "2", "8"]),
    parameter("categorical", list=["sgd", "adam", "ftrl"]),
]


@given(st.sampled_from(PARAMETERS), st.floats(0, 1, exclude_max=True))
def test_a_value_is_in_range_and_its_position_leads_back_to_it(one: Parameter, u: float) -> None:
    text = one.value_at(u)
    if one.is_listed:
        assert text in one.choices
    else:
        assert one.low <= float(text) <= one.high
    again = one.value_at(one.position_of(text))
    assert again == text or float(again) == pytest.approx(float(text), rel=1e-6)


def test_steps_are_exact_and_end_within_the_range() -> None:
    stepped = parameter(min="0.1", max="0.35", step="0.1")
    assert [stepped.grid_value(index) for index in range(stepped.grid_size)] == ["0.1", "0.2", "0.3"]
    whole = parameter("int", min="1", max="10", step="4")
    assert [whole.grid_value(index) for index in range(whole.grid_size)] == ["1", "5", "9"]


def test_every_whole_number_is_as_likely() -> None:
    one = parameter("int", min="1", max="5")
    counts = [one.value_at((i + 0.5) / 100) for i in range(100)]
    assert [counts.count(str(n)) for n in range(1, 6)] == [20] * 5


@pytest.mark.parametrize(
    ("space", "field"),
    [
        ({"min": "x", "max": "1"}, "feasibleSpace.min"),
        ({"min": "2", "max": "1"}, "feasibleSpace.max"),
        ({"min": "0", "max": "1", "distribution": "logUniform"}, "feasibleSpace.min"),
        ({"min": "0", "max": "1", "step": "0"}, "feasibleSpace.step"),
        ({"min": "0", "max": "inf"}, "feasibleSpace.max"),
    ],
)
def test_what_cannot_be_read_is_named(space: dict[str, str], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        parameter(**space)
