"""Selectors: the grammar, and agreement between its two forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.errors import BadRequestError
from shallop.kube.selectors import (
    format_labels,
    match_selector,
    matches,
    parse_field_selector,
    parse_label_selector,
)

LABELS = {"app": "web", "tier": "front", "shallop.dev/x": "1"}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", True),
        ("app=web", True),
        ("app==web,tier=front", True),
        ("app=db", False),
        ("app!=db", True),
        ("missing!=x", True),
        ("app in (web, db)", True),
        ("app notin (web)", False),
        ("missing notin (a)", True),
        ("shallop.dev/x", True),
        ("!missing", True),
        ("!app", False),
        ("shallop.dev/x>0", True),
        ("shallop.dev/x<1", False),
    ],
)
def test_label_selectors(selector: str, expected: bool) -> None:
    assert matches(parse_label_selector(selector), LABELS.get) is expected


@pytest.mark.parametrize("selector", ["a=b,", "=b", "a in b", "a in (b", "a=b c", "a in (!)", ",a=b", "a===b"])
def test_a_bad_label_selector_is_refused(selector: str) -> None:
    with pytest.raises(BadRequestError, match="unable to parse requirement"):
        parse_label_selector(selector)


def test_field_selectors_may_repeat_and_escape() -> None:
    parsed = parse_field_selector(r"metadata.name=p1,metadata.name=p1,note!=a\,b")
    assert [r.values for r in parsed] == [("p1",), ("p1",), ("a,b",)]
    assert matches(parsed, {"metadata.name": "p1", "note": "c"}.get)


NAMES = st.text("abcdefgh", min_size=1, max_size=4)


@given(st.dictionaries(NAMES, NAMES, max_size=4), st.dictionaries(NAMES, NAMES, max_size=4))
def test_text_and_object_selectors_agree(wanted: dict[str, str], labels: dict[str, str]) -> None:
    expected = wanted.items() <= labels.items()
    assert matches(parse_label_selector(format_labels(wanted)), labels.get) is expected
    assert match_selector({"matchLabels": wanted}, labels) is expected


def test_no_selector_selects_nothing_and_an_empty_one_everything() -> None:
    assert not match_selector(None, LABELS)
    assert match_selector({}, LABELS)
    assert match_selector({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["front"]}]}, LABELS)
