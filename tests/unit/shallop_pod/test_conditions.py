"""Conditions of InferenceGraphs: what exists at a path."""

from __future__ import annotations

from typing import Any

import pytest

from shallop_pod.conditions import ConditionError, exists, find

PEOPLE = {
    "friends": [
        {"first": "Dale", "age": 44, "nets": ["ig", "fb"], "active": True},
        {"first": "Roger", "age": 68, "nets": ["fb"], "active": False},
    ],
    "fav.movie": "Deer Hunter",
    "name": {"first": "Tom"},
    "nothing": None,
}


@pytest.mark.parametrize(
    ("document", "path", "found"),
    [
        ({"decision_picker": "ERROR"}, "[@this].#(decision_picker==ERROR)", {"decision_picker": "ERROR"}),
        ({"a": 1}, "[@this].#(a==1)", {"a": 1}),
        (PEOPLE, "name.first", "Tom"),
        (PEOPLE, "friends.#", 2),
        (PEOPLE, "friends.1.first", "Roger"),
        (PEOPLE, "friends.#.first", ["Dale", "Roger"]),
        (PEOPLE, 'friends.#(first=="Roger").age', 68),
        (PEOPLE, "friends.#(age>45)#.first", ["Roger"]),
        (PEOPLE, "friends.#(age>=44)#|#", 2),
        (PEOPLE, "friends.#(active==true).first", "Dale"),
        (PEOPLE, "friends.#(first%R*).age", 68),
        (PEOPLE, "friends.#(first!%R*).age", 44),
        (PEOPLE, 'friends.#(nets.#(=="ig")).first', "Dale"),
        (PEOPLE, "friends.#(first!=Dale).first", "Roger"),
        (PEOPLE, r"fav\.movie", "Deer Hunter"),
        (PEOPLE, "n?me.f*", "Tom"),
        (PEOPLE, "nothing", None),
        (PEOPLE, "name.@keys", ["first"]),
        (PEOPLE, "friends.@reverse.0.first", "Roger"),
        ([1, 2, 3], "1", 2),
    ],
)
def test_a_path_leads_somewhere(document: Any, path: str, found: Any) -> None:
    assert exists(document, path)
    assert find(document, path) == found


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"decision_picker": "OK"}, "[@this].#(decision_picker==ERROR)"),
        (PEOPLE, "name.last"),
        (PEOPLE, "friends.7"),
        (PEOPLE, "friends.#(age>100)"),
        ("text", "a"),
        ([], "0"),
    ],
)
def test_a_path_leads_nowhere(document: Any, path: str) -> None:
    assert not exists(document, path)


@pytest.mark.parametrize("path", ["a..b", "", "friends.#(age>1", "@odd", 'a."b'])
def test_a_path_that_cannot_be_read_is_said(path: str) -> None:
    with pytest.raises(ConditionError):
        exists(PEOPLE, path)
