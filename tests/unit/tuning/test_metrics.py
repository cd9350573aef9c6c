"""Parsing of metrics, early stopping, and the messages of the database manager."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.tuning.dbmanager import parse_report, render_log
from shallop.tuning.earlystopping import asha_stops, check_settings, median_rules, rules_fire
from shallop.tuning.metrics import parse_exposition, parse_json, parse_text
from shallop.tuning.tables import Report
from shallop_pod.protobuf import ProtobufError, bytes_field, fields_of, number_field, text_field


def test_text_is_searched_for_wanted_metrics() -> None:
    lines = [
        (5, "epoch 1: loss=0.5 accuracy = 0.9 other=3"),
        (6, "2024-01-01T00:00:00Z loss=-1e-3"),
        (7, "loss= nothing"),
    ]
    found = parse_text(lines, ["loss", "accuracy"])
    assert found == [
        Report("loss", "0.5", 5),
        Report("accuracy", "0.9", 5),
        Report("loss", "-1e-3", 1704067200000000),
    ]


def test_a_format_of_the_user_is_used() -> None:
    found = parse_text([(0, "'train_loss':0.846")], ["train_loss"], [r"'([\w|-]+)'\s*:\s*([+-]?\d*(\.\d+)?)"])
    assert found == [Report("train_loss", "0.846")]


def test_json_lines_carry_their_time() -> None:
    lines = [(1, '{"loss": "0.5", "timestamp": 10.5}'), (2, "no json"), (3, '{"loss": 1, "x": true}')]
    assert parse_json(lines, ["loss", "x"]) == [Report("loss", "0.5", 10500000), Report("loss", "1", 3)]


def test_an_exposition_is_read() -> None:
    text = '# HELP loss x\nloss{a="1"} 0.25 1700000000\nlosses 3\n'
    assert parse_exposition(text, ["loss"], 9) == [Report("loss", "0.25", 9)]


def test_the_median_rule_needs_enough_trials() -> None:
    settings = {"min_trials_required": "2", "start_step": "2"}
    assert median_rules(settings, "loss", False, [[1.0, 3.0, 9.0]]) == []
    (rule,) = median_rules(settings, "loss", False, [[1.0, 3.0, 9.0], [4.0]])
    assert rule == {"name": "loss", "value": "3.0", "comparison": "greater", "startStep": 2}
    assert not rules_fire([rule], {"loss": [9.0]}, "loss", False), "too early"
    assert rules_fire([rule], {"loss": [9.0, 8.0]}, "loss", False)
    assert not rules_fire([rule], {"loss": [2.0, 8.0]}, "loss", False), "the best so far counts"


def test_asha_keeps_the_best_third_of_each_step() -> None:
    others = [[0.1], [0.2], [0.3], [0.4], [0.5]]
    assert asha_stops({}, [0.35], others, False)
    assert not asha_stops({}, [0.15], others, False)
    assert not asha_stops({}, [0.9], [], False), "alone it is the best"


@pytest.mark.parametrize(("name", "value"), [("start_step", "0"), ("speed", "1"), ("use_median", "maybe")])
def test_settings_of_early_stopping_are_checked(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        check_settings({"algorithmName": "medianstop", "algorithmSettings": [{"name": name, "value": value}]})


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(1, 2**63) | st.binary(max_size=300)), max_size=10))
def test_messages_survive_writing_and_reading(fields: list[tuple[int, int | bytes]]) -> None:
    parts = [
        number_field(number, value) if isinstance(value, int) else bytes_field(number, value)
        for number, value in fields
    ]
    assert list(fields_of(b"".join(parts))) == fields


@given(st.binary(max_size=100))
def test_bytes_that_are_no_message_are_an_error_and_nothing_worse(data: bytes) -> None:
    try:
        list(fields_of(data))
    except ProtobufError:
        pass


def test_a_log_is_read_as_it_was_written() -> None:
    reports = [Report("loss", "0.5", 1704067200000001), Report("accuracy", "0.9", 0)]
    message = text_field(1, "trial") + bytes_field(2, render_log(reports))
    assert parse_report(message) == ("trial", reports)
