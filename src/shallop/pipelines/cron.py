"""
Cron expressions of recurring runs: six fields, seconds first, or ``@daily`` and ``@every 1h30m``.

Source: the dialect of robfig/cron v1, which Kubeflow's scheduled workflows use, without ``L``, ``W``, ``#``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["Cron", "Every", "parse_cron"]

_DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_MONTH_NAMES = "jan feb mar apr may jun jul aug sep oct nov dec"
_DAY_NAMES = "sun mon tue wed thu fri sat"
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES.split(), 1)}
_DAYS = {name: number for number, name in enumerate(_DAY_NAMES.split())}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("second", 0, 59, {}),
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _DAYS),
)
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s))+")
# The rarest day there is, 29 February, comes back after at most eight years.
_HORIZON_DAYS = 9 * 366


class Every(NamedTuple):
    """Ticks at a fixed distance, in whole seconds."""

    interval: timedelta

    def after(self, time: datetime) -> datetime:
        return time + self.interval


class Cron(NamedTuple):
    """
    The seconds that an expression names; of both day fields one is enough when both are restricted.

    Times are those of a clock on the wall in ``zone``: one that is left out when clocks go forward has no tick, one
    that comes twice when they go back has its tick at the first.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    zone: tzinfo

    def after(self, time: datetime) -> datetime | None:
        """Return the first tick after an aware ``time``; None when there is none in the next nine years."""
        wall = time.astimezone(self.zone)
        for day in self._days_from(wall.date()):
            floor = (wall.hour, wall.minute, wall.second + 1) if day == wall.date() else (0, 0, 0)
            while (clock := self._first_from(*floor)) is not None:
                tick = datetime(day.year, day.month, day.day, *clock, tzinfo=self.zone).astimezone(UTC)
                back = tick.astimezone(self.zone)
                if tick > time and (back.hour, back.minute, back.second) == clock:
                    return tick
                floor = (clock[0], clock[1], clock[2] + 1)
        return None

    def _days_from(self, first: date) -> Iterator[date]:
        for number in range(_HORIZON_DAYS):
            day = first + timedelta(days=number)
            by_date, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
            if day.month in self.months and (by_date or by_weekday if self.either_day else by_date and by_weekday):
                yield day

    def _first_from(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        """Return the first time of day that is not before the given one."""
        for h in self.hours:
            for m in self.minutes:
                if (h, m) < (hour, minute):
                    continue
                for s in self.seconds:
                    if (h, m, s) >= (hour, minute, second):
                        return h, m, s
        return None


def parse_cron(text: str, zone: str = "UTC") -> Cron | Every:
    """
    Read an expression.

    Args:
        zone: IANA name of the time zone for one that does not begin with its own, such as ``TZ=Europe/Berlin``.

    Raises:
        ValueError: says which field is wrong.
    """
    head, _, rest = text.strip().partition(" ")
    if head.startswith(("TZ=", "CRON_TZ=")):
        zone, text = head.partition("=")[2], rest
    lowered = text.strip().lower()
    if lowered.startswith("@every"):
        return _parse_every(lowered.removeprefix("@every").strip())
    fields = _DESCRIPTORS.get(lowered, lowered).split()
    if len(fields) != 6:
        raise ValueError(
            f"{text!r} has {len(fields)} fields; write six, seconds first, such as '0 30 8 * * 1-5', or '@daily'"
        )
    values = [_parse_field(field, *limits) for field, limits in zip(fields, _FIELDS, strict=True)]
    either = not any(fields[place].startswith(("*", "?")) for place in (3, 5))
    seconds, minutes, hours = (tuple(sorted(found)) for found in values[:3])
    days, months, weekdays = map(frozenset, values[3:])
    return Cron(seconds, minutes, hours, days, months, weekdays, either, _find_zone(zone))


def _find_zone(name: str) -> tzinfo:
    try:
        # Machines without a database of time zones know this one.
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone that this machine knows; write one such as Europe/Berlin") from None


def _parse_every(text: str) -> Every:
    if not _DURATION.fullmatch(text):
        raise ValueError(f"'@every {text}': write a duration such as 1h30m or 45s")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s)", text))
    if seconds < 1:
        raise ValueError(f"'@every {text}': at least 1s")
    return Every(timedelta(seconds=int(seconds)))


def _parse_field(text: str, name: str, low: int, high: int, words: dict[str, int]) -> Sequence[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, _, step_text = part.partition("/")
        first_text, dash, last_text = span.partition("-")
        try:
            step = int(step_text) if step_text else 1
            if span in ("*", "?"):
                first, last = low, high
            else:
                first = words[first_text] if first_text in words else int(first_text)
                last = (words[last_text] if last_text in words else int(last_text)) if dash else first
                if step_text and not dash:
                    last = high
        except ValueError:
            raise ValueError(f"{name}: {part!r} is neither a number, a range nor *") from None
        if not low <= first <= last <= high or step < 1:
            raise ValueError(f"{name}: {part!r} is not within {low} to {high}")
        values.update(range(first, last + 1, step))
    return sorted(values)
