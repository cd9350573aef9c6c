"""List filters, sort orders and page tokens."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from shallop.errors import BadRequestError
from shallop.pipelines.filters import parse_filter
from shallop.pipelines.listing import PIPELINE_KEYS, RUN_KEYS, next_token, parse_page


def text(**predicate: Any) -> str:
    return json.dumps({"predicates": [predicate]})


def test_operations_may_be_numbers_and_values_camel_case() -> None:
    (predicate,) = parse_filter(text(operation=1, key="display_name", stringValue="a"), RUN_KEYS)
    assert predicate.operation == "EQUALS"
    assert (predicate.key.column, predicate.value) == ("name", "a")


def test_a_filter_may_be_encoded_once_more() -> None:
    plain = text(operation="IS_SUBSTRING", key="name", string_value="50% off")
    assert parse_filter(quote(plain), RUN_KEYS) == parse_filter(plain, RUN_KEYS)


@pytest.mark.parametrize("value", [{"timestamp_value": "2026-01-01T00:00:00Z"}, {"string_value": "1767225600"}])
def test_times_compare_whole_seconds(value: dict[str, str]) -> None:
    (predicate,) = parse_filter(text(operation="LESS_THAN", key="created_at", **value), RUN_KEYS)
    assert predicate.value == 1767225600 * 1_000_000


def test_in_takes_a_list() -> None:
    (predicate,) = parse_filter(text(operation=8, key="id", stringValues={"values": ["a", "b"]}), RUN_KEYS)
    assert predicate.value == ("a", "b")


def test_tags_have_their_own_keys() -> None:
    (predicate,) = parse_filter(text(operation=1, key="tags.team", string_value="x"), PIPELINE_KEYS)
    assert (predicate.tag, predicate.value) == ("team", "x")


@pytest.mark.parametrize(
    ("predicate", "says"),
    [
        ({"operation": "IN", "key": "id", "string_value": "a"}, "IN with string_value"),
        ({"operation": "IS_SUBSTRING", "key": "name", "int_value": 3}, "IS_SUBSTRING takes string_value"),
        ({"operation": "EQUALS", "key": "colour", "string_value": "a"}, "'colour' cannot be filtered by"),
        ({"operation": "LIKE", "key": "id", "string_value": "a"}, "'LIKE' is not one of"),
        ({"operation": 4, "key": "id", "string_value": "a"}, "4 is not one of"),
        ({"key": "id", "string_value": "a"}, "operation: required"),
        ({"operation": 1, "key": "id"}, "a value is required"),
        ({"operation": 1, "key": "id", "string_value": "a", "int_value": 1}, "only one of"),
        ({"operation": 1, "key": "created_at", "string_value": "soon"}, "neither unix seconds"),
        ({"operation": 3, "key": "tags.a", "string_value": "b"}, "tags can only"),
    ],
)
def test_a_wrong_predicate_is_named(predicate: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequestError, match=r"filter\.predicates\[0\]") as caught:
        parse_filter(text(**predicate), {**RUN_KEYS, **PIPELINE_KEYS})
    assert says in caught.value.message


def test_a_filter_that_is_not_json_is_refused() -> None:
    with pytest.raises(BadRequestError, match="filter: not JSON"):
        parse_filter("{", RUN_KEYS)


def test_page_sizes_have_a_default_and_a_limit() -> None:
    assert parse_page({}, RUN_KEYS).size == 20
    assert parse_page({"page_size": "0"}, RUN_KEYS).size == 20
    assert parse_page({"page_size": "1000"}, RUN_KEYS).size == 200
    with pytest.raises(BadRequestError, match="page_size"):
        parse_page({"page_size": "-1"}, RUN_KEYS)


def test_sort_orders_are_read_without_case() -> None:
    page = parse_page({"sort_by": "Created_At DESC"}, RUN_KEYS)
    assert (page.sort, page.descending) == ("created_at", True)
    assert not parse_page({"sort_by": "display_name"}, RUN_KEYS).descending


@pytest.mark.parametrize("sort", ["colour", "name sideways", "name desc asc", "tags"])
def test_a_wrong_sort_order_is_refused(sort: str) -> None:
    with pytest.raises(BadRequestError, match="sort_by"):
        parse_page({"sort_by": sort}, PIPELINE_KEYS)


def test_a_token_continues_only_the_same_list() -> None:
    page = parse_page({"sort_by": "name"}, RUN_KEYS)
    token = next_token(page, "b", "id-1")
    assert parse_page({"sort_by": "name", "page_token": token}, RUN_KEYS).after == ("b", "id-1")
    for query in (
        {"sort_by": "name desc"},
        {"sort_by": "name", "filter": text(operation=1, key="id", string_value="a")},
    ):
        with pytest.raises(BadRequestError, match="page_token"):
            parse_page({**query, "page_token": token}, RUN_KEYS)


@pytest.mark.parametrize("token", ["?", "bm9wZQ==", "WyJhIiwge30sIDFd", "é"])
def test_a_foreign_token_is_refused(token: str) -> None:
    with pytest.raises(BadRequestError, match="page_token"):
        parse_page({"page_token": token}, RUN_KEYS)
