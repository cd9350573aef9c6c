"""Schedules, and what a CronJob makes of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.workloads.cron import parse_schedule
from shallop.embedded.workloads.cronjob import CronPlan, plan_cronjob, render_job

Object = dict[str, Any]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("* * * * *", "2026-01-01T00:00:30", "2026-01-01T00:01:00"),
        ("*/15 * * * *", "2026-01-01T00:15:00", "2026-01-01T00:30:00"),
        ("0 0 1 1 *", "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
        ("30 2 * * mon-fri", "2026-11-27T02:30:00", "2026-11-30T02:30:00"),
        ("0 12 13 * 5", "2026-11-01T00:00:00", "2026-11-06T12:00:00"),
        ("0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("@hourly", "2026-01-01T00:00:00", "2026-01-01T01:00:00"),
        ("0 0 * * 7", "2026-11-25T00:00:00", "2026-11-29T00:00:00"),
        ("5-59/20 3 * jan,jul *", "2026-02-01T00:00:00", "2026-07-01T03:05:00"),
    ],
)
def test_next_time(schedule: str, after: str, expected: str) -> None:
    assert parse_schedule(schedule).after(at(after)) == at(expected)


def test_a_time_that_the_clock_skips_is_skipped() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    # On 29 March 2026 the clock goes from 02:00 to 03:00.
    assert parse_schedule("30 2 * * *").after(at("2026-03-28T12:00:00"), berlin) == at("2026-03-30T00:30:00")


@pytest.mark.parametrize("text", ["* * * *", "60 * * * *", "a * * * *", "5-1 * * * *", "*/0 * * * *", "* * 0 * *"])
def test_bad_schedules_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"fields|number|within"):
        parse_schedule(text)


@given(
    st.integers(0, 59),
    st.integers(0, 23),
    st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
)
def test_a_daily_schedule_comes_once_a_day(minute: int, hour: int, time: datetime) -> None:
    following = parse_schedule(f"{minute} {hour} * * *").after(time)
    assert following is not None
    assert timedelta(0) < following - time <= timedelta(days=1)
    assert (following.minute, following.hour) == (minute, hour)


def cronjob(status: Object | None = None, **spec: Any) -> Object:
    template = {"spec": {"template": {"spec": {"containers": []}}}}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {
            "name": "c",
            "namespace": "default",
            "uid": "c-uid",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"schedule": "*/10 * * * *", "jobTemplate": template, **spec},
        "status": status or {},
    }


def job(name: str, ended: str = "") -> Object:
    metadata = {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"}
    status: Object = {"conditions": [{"type": ended, "status": "True"}]} if ended else {}
    if ended == "Complete":
        status["completionTime"] = "2026-01-01T00:05:00Z"
    metadata["creationTimestamp"] = f"2026-01-01T00:00:{len(name):02}Z"
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "status": status}


def plan(obj: Object, jobs: list[Object], now: str) -> CronPlan:
    return plan_cronjob(obj, jobs, parse_schedule(obj["spec"]["schedule"]), UTC, at(now))


def test_before_its_time_it_waits() -> None:
    waiting = plan(cronjob(), [], "2026-01-01T00:04:00")
    assert (waiting.start, waiting.requeue_after_s) == (None, 360)


def test_of_missed_runs_only_the_last_is_made_up_for() -> None:
    due = plan(cronjob(), [], "2026-01-01T01:01:00")
    assert due.start == at("2026-01-01T01:00:00")
    assert due.status["lastScheduleTime"] == "2026-01-01T01:00:00Z"
    assert plan(cronjob(due.status), [], "2026-01-01T01:02:00").start is None


def test_what_is_too_late_is_not_started() -> None:
    assert plan(cronjob(startingDeadlineSeconds=30), [], "2026-01-01T01:01:00").start is None


def test_concurrency_policies() -> None:
    running = [job("j")]
    assert plan(cronjob(), running, "2026-01-01T00:10:00").start
    forbidden = plan(cronjob(concurrencyPolicy="Forbid"), running, "2026-01-01T00:10:00")
    assert (forbidden.start, bool(forbidden.skipped)) == (None, True)
    replaced = plan(cronjob(concurrencyPolicy="Replace"), running, "2026-01-01T00:10:00")
    assert replaced.start
    assert [j["metadata"]["name"] for j in replaced.replace] == ["j"]


def test_history_is_limited_by_outcome() -> None:
    jobs = [job("a" * n, "Complete") for n in range(1, 6)] + [job("f", "Failed"), job("ff", "Failed")]
    forgotten = plan(cronjob(), jobs, "2026-01-01T00:04:00").forget
    assert [j["metadata"]["name"] for j in forgotten] == ["a", "aa", "f"]


def test_a_job_is_named_after_its_time() -> None:
    rendered = render_job(cronjob(), at("2026-01-01T00:10:00"))
    assert rendered["metadata"]["name"] == f"c-{int(at('2026-01-01T00:10:00').timestamp()) // 60}"
    assert rendered["metadata"]["annotations"] == {
        "batch.kubernetes.io/cronjob-scheduled-timestamp": "2026-01-01T00:10:00Z"
    }
