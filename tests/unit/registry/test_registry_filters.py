"""filterQuery: the language, and what it selects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.errors import BadRequestError
from shallop.registry.filters import AllOf, AnyOf, Comparison, parse_filter

Call = Callable[..., Any]


def number(value: float) -> dict[str, Any]:
    return {"metadataType": "MetadataDoubleValue", "double_value": value}


def integer(value: int) -> dict[str, Any]:
    return {"metadataType": "MetadataIntValue", "int_value": str(value)}


def text(value: str) -> dict[str, Any]:
    return {"metadataType": "MetadataStringValue", "string_value": value}


def boolean(value: bool) -> dict[str, Any]:
    return {"metadataType": "MetadataBoolValue", "bool_value": value}


@pytest.fixture
def names(call: Call) -> Callable[[str], list[str]]:
    models = [
        {
            "name": "Alpha",
            "owner": "ann",
            "tasks": ["tabular"],
            "customProperties": {"auc": number(0.7), "n": integer(5)},
        },
        {"name": "beta", "owner": "bob", "customProperties": {"auc": number(0.9), "my-team": text("O'Neil")}},
        {"name": "gamma_1", "state": "ARCHIVED", "customProperties": {"auc": integer(1), "ok": boolean(True)}},
    ]
    for model in models:
        assert call("POST", "registered_models", model).status == 201

    def select(query: str) -> list[str]:
        answer = call("GET", "registered_models", filterQuery=query)
        assert answer.status == 200, answer.body
        return [item["name"] for item in answer.json["items"]]

    return select


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("name = 'beta'", ["beta"]),
        ("name != 'beta'", ["Alpha", "gamma_1"]),
        ("name <> 'beta'", ["Alpha", "gamma_1"]),
        ("name IN ('beta', \"Alpha\")", ["Alpha", "beta"]),
        ("name in ()", []),
        ("name LIKE 'a%'", []),
        ("name ILIKE 'a%'", ["Alpha"]),
        ("name LIKE '%_1'", ["gamma_1"]),
        ("name LIKE '%*%'", []),
        ("id = '2'", ["beta"]),
        ("id > 1", ["beta", "gamma_1"]),
        ("createTimeSinceEpoch >= 1767312000001", ["beta", "gamma_1"]),
        ("state = 'LIVE' and owner = 'ann'", ["Alpha"]),
        ("tasks = 'tabular'", ["Alpha"]),
        ("auc > 0.8", ["beta", "gamma_1"]),
        ("auc = 1", ["gamma_1"]),
        ("auc.double_value > 0.1", ["Alpha", "beta"]),
        ("auc.int_value >= 1", ["gamma_1"]),
        ("n = 5 OR ok = true", ["Alpha", "gamma_1"]),
        ("(owner = 'ann' OR owner = 'bob') AND auc >= 0.9", ["beta"]),
        ("owner = 'ann' OR owner = 'bob' AND auc >= 0.9", ["Alpha", "beta"]),
        ("`my-team` = 'O\\'Neil'", ["beta"]),
        ("`my-team`.string_value LIKE 'O%' -- the family", ["beta"]),
        ("auc < 1e-5", []),
        ("auc = 'text'", []),
        ("missing = 1", []),
    ],
)
def test_a_filter_selects(names: Callable[[str], list[str]], query: str, expected: list[str]) -> None:
    assert names(query) == expected


@pytest.mark.parametrize("query", ["state = 5", "id = 'x'", "auc.int_value = 'x'", "id LIKE '1'"])
def test_a_comparison_of_the_wrong_type_is_a_bad_request(call: Call, query: str) -> None:
    assert call("GET", "registered_models", filterQuery=query).status == 400


def test_metrics_and_parameters_share_the_name_value(call: Call) -> None:
    call("POST", "artifacts", {"artifactType": "metric", "name": "m", "value": 0.5})
    call("POST", "artifacts", {"artifactType": "parameter", "name": "p", "value": "0.5"})
    for query, expected in (("value > 0.1", ["m"]), ("value = '0.5'", ["p"])):
        items = call("GET", "artifacts", filterQuery=query).json["items"]
        assert [item["name"] for item in items] == expected


def test_and_binds_tighter_than_or() -> None:
    tree = parse_filter("a = 1 OR b.c.string_value = 'x' AND NOTE = true")
    assert tree == AnyOf(
        (
            Comparison("a", "", "=", (1,)),
            AllOf((Comparison("b.c", "string", "=", ("x",)), Comparison("NOTE", "", "=", (True,)))),
        )
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "expected the name of a property at character 1"),
        ("a", "expected an operator"),
        ("a = ", "expected a value"),
        ("a = 1 b = 2", "expected AND, OR or the end at character 7, found b"),
        ("(a = 1", 'expected ")"'),
        ("a ~ 1", "unexpected '~' at character 3"),
        ("a IN 1", 'expected "("'),
        ("(" * 60 + "a = 1" + ")" * 60, "nested more than 50 deep"),
        (" AND ".join(["a = 1"] * 201), "more than 200 comparisons"),
    ],
)
def test_a_query_outside_the_language_says_where(query: str, message: str) -> None:
    with pytest.raises(BadRequestError) as error:
        parse_filter(query)
    assert message in error.value.message


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(query: str) -> None:
    try:
        parse_filter(query)
    except BadRequestError:
        pass


@given(st.text(max_size=30))
def test_any_text_survives_quoting(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    assert parse_filter(f"a = '{quoted}'") == Comparison("a", "", "=", (value,))
