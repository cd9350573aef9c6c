"""Trigger conditions and selectors: what compiled pipelines hold works, the rest is refused when compiled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.pipelines.expressions import ExpressionError, compile_condition, compile_selector

VALUES = {"n": 5, "d": 5.0, "s": "heads", "t": "6", "b": True, "z": None, "l": [1]}
P = "inputs.parameter_values"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{P}['s'] == 'heads'", True),
        (f"{P}['s'] != 'heads'", False),
        (f"{P}['n'] == {P}['d']", True),
        (f"{P}['n'] == 5.0", True),
        (f"int({P}['t']) > 5", True),
        (f"int({P}['t']) <= 5", False),
        (f"double({P}['t']) >= 5.5", True),
        (f"int({P}['d']) == 5 && {P}['b'] == true", True),
        (f"!({P}['s'] == 'heads')", False),
        (f"!({P}['s'] == 'x') && !({P}['n'] > 9) && {P}['n'] < 6", True),
        (f"{P}['n'] == 1 || {P}['n'] == 5", True),
        (f"{P}['z'] == null", True),
        (f"{P}['n'] == '5'", False),
        (f"{P}['b'] == 1", False),
        (f"{P}['b']", True),
        (f"!{P}['b']", False),
        (f"{P}['n'] > -1", True),
        ("'a' < 'b'", True),
        ("1e3 == 1000", True),
        (r"'it\'s' == " + '"it\'s"', True),
        (r"'\u0041\x42\103\n' == 'ABC" + "\n'", True),
        ("  ( true )  ", True),
        ("false && 1 < 'x'", False),
        (" && ".join([f"{P}['n'] == 5"] * 3000), True),
    ],
)
def test_conditions(text: str, expected: bool) -> None:
    assert compile_condition(text).evaluate(VALUES) is expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "inputs.parameter_values['n'] ==",
        "inputs.parameter_values['n'] + 1 == 2",
        "inputs.artifacts['m'].uri == 'x'",
        "size(inputs.parameter_values['l']) > 0",
        "inputs.parameter_values['n'] in [1, 2]",
        "inputs.parameter_values[n] == 1",
        "1 == 1 == 1",
        "(1 == 1",
        "'open",
        "x ? 1 : 2",
        "__import__('os')",
        "'\\U99999999' == 'x'",
        "(" * 5000 + "true" + ")" * 5000,
        "!" * 5000 + "true",
    ],
)
def test_anything_else_is_refused_when_compiled(text: str) -> None:
    with pytest.raises(ExpressionError):
        compile_condition(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{P}['nope'] == 1", "input 'nope' has no value."),
        (f"{P}['s'] > 1", 'cannot order "heads" > 1.'),
        (f"int({P}['s']) > 1", 'int("heads") is not a number.'),
        (f"int({P}['b']) == 1", "int(true) is not a number."),
        (f"{P}['n']", "gives 5, not true or false."),
        (f"{P}['n'] && true", "5 is not true or false."),
    ],
)
def test_values_that_do_not_fit_are_an_error_with_the_condition(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_condition(text).evaluate(VALUES)
    assert str(caught.value) == f"Condition {text}: {message}"


def test_a_condition_knows_what_it_reads() -> None:
    condition = compile_condition(f"{P}['a'] == {P}['b--c'] && {P}['a'] > 1")
    assert condition.parameters == {"a", "b--c"}


@given(st.text(max_size=60))
def test_compiling_any_text_gives_a_condition_or_an_expression_error(text: str) -> None:
    for compile_text in (compile_condition, compile_selector):
        try:
            compile_text(text)
        except ExpressionError:
            continue


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_comparisons_agree_with_numbers(one: float, other: float) -> None:
    for symbol, expected in (("<", one < other), ("<=", one <= other), ("==", one == other), (">", one > other)):
        condition = compile_condition(f"{P}['one'] {symbol} {P}['other']")
        assert condition.evaluate({"one": one, "other": other}) is expected


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ('parseJson(string_value)["A_a"]', {"A_a": "1"}, "1"),
        ('parseJson(string_value)["A_a"]', '{"A_a": 2}', 2),
        ("parseJson(string_value)['a'][1][\"b c\"]", {"a": [0, {"b c": [3]}]}, [3]),
        ("parseJson(string_value)", "[1]", [1]),
    ],
)
def test_selectors(text: str, value: Any, expected: Any) -> None:
    assert compile_selector(text).select(value) == expected


@pytest.mark.parametrize(
    "text", ["string_value", "parseJson(x)", 'parseJson(string_value)["a"].b', "parseJson(string_value)[a]"]
)
def test_other_selectors_are_refused(text: str) -> None:
    with pytest.raises(ExpressionError, match="only parseJson"):
        compile_selector(text)


@pytest.mark.parametrize("value", ["no json", "[]", {"b": 1}, 5, None, '{"a"'])
def test_a_selector_that_finds_nothing_says_so(value: Any) -> None:
    with pytest.raises(ExpressionError):
        compile_selector('parseJson(string_value)["a"]').select(value)
