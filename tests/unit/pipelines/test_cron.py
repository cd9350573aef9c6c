"""Cron expressions of six fields, and when a recurring run is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.pipelines.cron import parse_cron
from shallop.pipelines.messages import parse_micros, to_micros
from shallop.pipelines.schedule import Trigger, due_tick, next_tick

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("0 30 8 * * 1-5", "2026-01-02T08:30:00Z", "2026-01-05T08:30:00Z"),  # Friday -> Monday
        ("*/15 * * * * *", "2026-01-02T08:30:44Z", "2026-01-02T08:30:45Z"),
        ("0 0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("0 0 0 13 * fri", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),  # either day
        ("0 0 0 1 JAN ?", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("5/20 59 23 31 12 *", "2026-12-31T23:59:45Z", "2027-12-31T23:59:05Z"),
        ("@daily", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
        ("@every 1h30m", "2026-01-01T00:00:00Z", "2026-01-01T01:30:00Z"),
        ("TZ=Europe/Berlin 0 30 8 * * *", "2026-07-01T00:00:00Z", "2026-07-01T06:30:00Z"),
        ("CRON_TZ=Asia/Kolkata @daily", "2026-01-01T00:00:00Z", "2026-01-01T18:30:00Z"),
        # Clocks go forward on 29 March 2026, back on 25 October.
        ("TZ=Europe/Berlin 0 30 2 * * *", "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z"),
        ("TZ=Europe/Berlin 0 30 2 * * *", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
        ("TZ=Europe/Berlin 0 30 2 * * *", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
    ],
)
def test_the_next_tick_of_an_expression(text: str, after: str, expected: str) -> None:
    assert parse_cron(text).after(datetime.fromisoformat(after)) == datetime.fromisoformat(expected)


def test_a_day_that_never_comes_has_no_tick() -> None:
    assert parse_cron("0 0 0 30 2 *").after(datetime(2026, 1, 1, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("* * * * *", "has 5 fields"),
        ("60 * * * * *", "second: '60' is not within 0 to 59"),
        ("0 x * * * *", "minute: 'x' is neither"),
        ("0 0 5-3 * * *", "hour: '5-3'"),
        ("0 0 0 * * 7", "day of week"),
        ("@every 0s", "at least 1s"),
        ("@every soon", "duration"),
        ("@never", "1 fields"),
        ("TZ=Europe/Atlantis 0 0 0 * * *", "'Europe/Atlantis' is no time zone"),
    ],
)
def test_a_wrong_expression_names_its_field(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_cron(text)


@given(st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)), st.integers(0, 59), st.integers(0, 23))
def test_a_tick_is_the_first_time_that_fits(at: datetime, minute: int, hour: int) -> None:
    time = at.replace(tzinfo=UTC)
    found = parse_cron(f"0 {minute} {hour} * * *").after(time)
    assert found is not None
    assert (found.hour, found.minute, found.second) == (hour, minute, 0)
    assert timedelta() < found - time <= timedelta(days=1)


def micros(text: str) -> int:
    return parse_micros(f"2026-01-01T{text}Z")


EVERY_MINUTE = Trigger("0 * * * * *", 0, 0, 0)


def test_the_first_tick_of_an_interval_is_one_interval_after_creation_or_the_start() -> None:
    created = micros("00:00:10")
    assert next_tick(Trigger("", 30, 0, 0), created=created, last=0) == micros("00:00:40")
    start = micros("09:00:00")
    assert next_tick(Trigger("", 30, start, 0), created=created, last=0) == start
    assert next_tick(Trigger("0 0 9 * * *", 0, start, 0), created=created, last=0) == start


def test_missed_ticks_are_caught_up_one_after_another() -> None:
    times = {"created": micros("00:00:10"), "now": micros("00:03:30"), "catch_up": True}
    assert due_tick(EVERY_MINUTE, last=0, **times) == micros("00:01:00")
    assert due_tick(EVERY_MINUTE, last=micros("00:01:00"), **times) == micros("00:02:00")
    assert due_tick(EVERY_MINUTE, last=micros("00:03:00"), **times) is None


def test_without_catch_up_one_run_stands_for_all_that_was_missed() -> None:
    times = {"created": micros("00:00:10"), "now": micros("00:03:30"), "catch_up": False}
    assert due_tick(EVERY_MINUTE, last=0, **times) == micros("00:03:00")
    assert due_tick(Trigger("", 60, 0, 0), last=0, **times) == micros("00:03:30")
    years = {**times, "now": to_micros(datetime(2029, 1, 1, tzinfo=UTC))}
    assert due_tick(Trigger("* * * * * *", 0, 0, 0), last=0, **years) == years["now"]


def test_nothing_starts_after_the_end() -> None:
    trigger = EVERY_MINUTE._replace(end=micros("00:02:00"))
    times = {"created": micros("00:00:10"), "now": micros("12:00:00")}
    assert due_tick(trigger, last=0, catch_up=False, **times) == micros("00:02:00")
    assert due_tick(trigger, last=micros("00:02:00"), catch_up=False, **times) is None
    assert next_tick(trigger, created=micros("00:00:10"), last=micros("00:02:00")) is None
