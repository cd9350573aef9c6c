"""Pods of DaemonSets that fail again and again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from shallop.embedded.workloads.daemonset import FailedPods
from shallop.kube.objects import Key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = Key("team", "agent")


def test_each_failure_on_a_node_is_followed_by_a_longer_pause() -> None:
    failed, now = FailedPods(), NOW
    pauses = []
    for _ in range(12):
        assert failed.wait_s(AGENT, "n", now) == 0.0
        pauses.append(failed.wait_s(AGENT, "n", now))
        now += timedelta(seconds=pauses[-1])
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    # Other nodes and other DaemonSets have their own.
    assert failed.wait_s(AGENT, "m", now) == failed.wait_s(Key("team", "other"), "n", now) == 0.0


def test_after_a_long_time_without_a_failure_the_first_pause_is_short_again() -> None:
    failed = FailedPods()
    for seconds in (0, 1, 3):
        assert failed.wait_s(AGENT, "n", NOW + timedelta(seconds=seconds)) == 0.0
    later = NOW + timedelta(hours=1)
    assert failed.wait_s(AGENT, "n", later) == 0.0
    assert failed.wait_s(AGENT, "n", later) == 1.0
    failed.forget(AGENT)
    assert failed.wait_s(AGENT, "n", later) == 0.0
