"""
When a recurring run starts its next run: a pure function of its trigger, of what it has started, and of the time.

Source: the scheduled-workflow controller of Kubeflow Pipelines: first tick, catch-up, end time. All times are
microseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from shallop.pipelines.cron import parse_cron

__all__ = ["Trigger", "due_tick", "next_tick"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000


class Trigger(NamedTuple):
    """
    Args:
        cron: an expression; empty for an interval.
        interval_s: seconds; 0 for an expression.
        start, end: 0 = none; no tick is before ``start`` or after ``end``.
        zone: time zone of an expression that names none.
    """

    cron: str
    interval_s: int
    start: int
    end: int
    zone: str = "UTC"

    @classmethod
    def of(cls, message: Mapping[str, Any], zone: str = "UTC") -> Trigger:
        """Read a checked Trigger message."""
        cron, periodic = message.get("cron_schedule") or {}, message.get("periodic_schedule") or {}
        times = cron or periodic
        return cls(
            cron.get("cron", ""),
            periodic.get("interval_second", 0),
            times.get("start_time", 0),
            times.get("end_time", 0),
            zone,
        )

    def after(self, time: int) -> int | None:
        """Return the first tick after ``time``, whatever start and end say."""
        if not self.cron:
            return time + self.interval_s * _SECOND
        found = parse_cron(self.cron, self.zone).after(_EPOCH + timedelta(microseconds=time // _SECOND * _SECOND))
        return None if found is None else (found - _EPOCH) // timedelta(microseconds=1)


def next_tick(trigger: Trigger, *, created: int, last: int) -> int | None:
    """
    Return the tick that follows the last one, in the past or the future; None when there is none any more.

    Args:
        last: 0 when nothing was started yet.
    """
    if last:
        tick = trigger.after(last)
    elif trigger.cron:
        # A start time that is itself a tick counts.
        tick = trigger.after(max(created, trigger.start - 1) if trigger.start else created)
    else:
        tick = trigger.start or trigger.after(created)
    return None if tick is None or (trigger.end and tick > trigger.end) else tick


def due_tick(trigger: Trigger, *, created: int, last: int, now: int, catch_up: bool) -> int | None:
    """
    Return the tick for which a run is started now; None when none is due.

    Args:
        catch_up: True starts one run for every tick that was missed, in order. False starts one for all of them: of an
            expression the latest tick, of an interval now.
    """
    tick = next_tick(trigger, created=created, last=last)
    if tick is None or tick > now:
        return None
    if catch_up:
        return tick
    following = next_tick(trigger, created=created, last=tick)
    if following is None or following > now:
        return tick
    if not trigger.cron:
        return min(now, trigger.end) if trigger.end else now
    # Look back in growing windows: a schedule of every second may have missed millions of ticks.
    window = _SECOND
    while (found := next_tick(trigger, created=created, last=max(tick, now - window))) is None or found > now:
        window *= 2
    while found is not None and found <= now:
        tick = found
        found = next_tick(trigger, created=created, last=tick)
    return tick
