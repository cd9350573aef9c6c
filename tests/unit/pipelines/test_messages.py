"""Proto JSON, and macros."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from shallop.errors import BadRequestError
from shallop.pipelines.macros import MacroContext, expand_macros
from shallop.pipelines.messages import (
    EXPERIMENT,
    PIPELINE,
    RECURRING_RUN_LIST,
    RUN,
    TASK,
    format_micros,
    parse_body,
    render,
)


def test_camel_case_is_accepted() -> None:
    assert parse_body(EXPERIMENT, b'{"displayName": "a"}') == {"display_name": "a"}


def test_null_counts_as_unset() -> None:
    assert parse_body(EXPERIMENT, b'{"display_name": "a", "description": null}') == {"display_name": "a"}


def test_null_parameters_are_kept() -> None:
    run = parse_body(RUN, b'{"runtime_config": {"parameters": {"a": null, "b": 1}}}')
    assert run["runtime_config"]["parameters"] == {"a": None, "b": 1}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"runtime_config": {"colour": 1}}', "runtime_config.colour: unknown field of RuntimeConfig"),
        (b'{"display_name": 3}', "display_name: must be a string"),
        (b'{"state": "BUSY"}', "state: 'BUSY' is not one of"),
        (b'{"created_at": "soon"}', "created_at: 'soon' is no RFC 3339 time"),
        (b'{"pipeline_spec": [], "run_id": ""}', "pipeline_spec: must be a JSON object"),
        (b'{"pipeline_spec": {}, "pipeline_version_id": "a"}', "set only one of"),
        (b"[]", "a Run must be a JSON object"),
        (b"{", "not JSON"),
    ],
)
def test_a_wrong_body_is_named(body: bytes, says: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_body(RUN, body)
    assert says in caught.value.message


def test_enums_may_be_numbers() -> None:
    assert parse_body(RUN, b'{"state": 3}') == {"state": "SUCCEEDED"}


def test_defaults_are_left_out_but_times_that_clients_need_are_sent() -> None:
    assert render(EXPERIMENT, {"display_name": "a", "description": ""}) == {
        "display_name": "a",
        "created_at": "1970-01-01T00:00:00Z",
        "last_run_created_at": "1970-01-01T00:00:00Z",
    }


def test_long_integers_are_texts() -> None:
    task = render(TASK, {"execution_id": 7, "outputs": {"a": {"artifact_ids": [1, 2]}}})
    assert task == {"execution_id": "7", "outputs": {"a": {"artifact_ids": ["1", "2"]}}}


def test_recurring_runs_are_the_one_camel_case_list() -> None:
    assert list(render(RECURRING_RUN_LIST, {"recurring_runs": [{}]})) == ["recurringRuns"]


def test_tags_must_be_texts() -> None:
    with pytest.raises(BadRequestError, match=r"tags\.a"):
        parse_body(PIPELINE, b'{"tags": {"a": 1}}')


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "1970-01-01T00:00:00Z"), (1_500_000, "1970-01-01T00:00:01.500Z"), (1, "1970-01-01T00:00:00.000001Z")],
)
def test_times_have_as_few_decimals_as_they_need(micros: int, text: str) -> None:
    assert format_micros(micros) == text


MACROS = MacroContext(
    "run-1", datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC), datetime(2026, 11, 25, 13, 4, 5, tzinfo=UTC), None
)


@pytest.mark.parametrize(
    ("value", "expanded"),
    [
        ("[[RunUUID]]", "run-1"),
        ("a-[[ScheduledTime]]", "a-20260304050607"),
        ("[[CurrentTime.2006-01-02T15:04:05Z]]", "2026-11-25T13:04:05Z"),
        ("[[CurrentTime.Jan 2, 3PM]]", "Nov 25, 1PM"),
        ("{{$.scheduledTime.strftime('%Y/%m')}}", "2026/03"),
        ("[[Index]]", "[[Index]]"),
        ("[[Other]]", "[[Other]]"),
        (5, 5),
    ],
)
def test_macros(value: object, expanded: object) -> None:
    assert expand_macros(value, MACROS) == expanded
