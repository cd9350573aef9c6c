"""Cron schedules of five fields, as CronJobs write them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import NamedTuple

__all__ = ["Schedule", "parse_schedule"]

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTH_NAMES = "jan feb mar apr may jun jul aug sep oct nov dec"
_DAY_NAMES = "sun mon tue wed thu fri sat"
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES.split(), 1)}
_DAYS = {name: number for number, name in enumerate(_DAY_NAMES.split())}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
)
# The rarest day there is, 29 February, comes back after at most eight years.
_HORIZON_DAYS = 9 * 366


class Schedule(NamedTuple):
    """The minutes that a schedule names; of both day fields one is enough when both are restricted."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    def after(self, time: datetime, zone: tzinfo = UTC) -> datetime | None:
        """Return the first minute after ``time``, in UTC, None when there is none; what clocks skip does not count."""
        local = time.astimezone(zone)
        for day in self._days_from(local.date()):
            for hour in self.hours:
                for minute in self.minutes:
                    found = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
                    utc = found.astimezone(UTC)
                    if utc > time and utc.astimezone(zone).replace(tzinfo=None) == found.replace(tzinfo=None):
                        return utc
        return None

    def _days_from(self, first: date) -> Iterator[date]:
        for number in range(_HORIZON_DAYS):
            day = first + timedelta(days=number)
            if day.month not in self.months:
                continue
            by_date, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
            if (by_date or by_weekday) if self.either_day else (by_date and by_weekday):
                yield day


def parse_schedule(text: str) -> Schedule:
    """
    Read ``minute hour day-of-month month day-of-week`` or a macro such as ``@hourly``.

    Raises:
        ValueError: naming the field that is wrong.
    """
    fields = _MACROS.get(text.strip().lower(), text).split()
    if len(fields) != 5:
        raise ValueError(f'expected 5 fields, found {len(fields)}: "{text}"')
    sets = [_parse_field(field, *limits) for field, limits in zip((f.lower() for f in fields), _FIELDS, strict=True)]
    weekdays = frozenset(day % 7 for day in sets[4])
    either = not fields[2].startswith(("*", "?")) and not fields[4].startswith(("*", "?"))
    return Schedule(
        tuple(sorted(sets[0])), tuple(sorted(sets[1])), frozenset(sets[2]), frozenset(sets[3]), weekdays, either
    )


def _parse_field(text: str, name: str, low: int, high: int, words: dict[str, int]) -> set[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, _, step_text = part.partition("/")
        first_text, dash, last_text = span.partition("-")
        try:
            step = int(step_text) if step_text else 1
            if span in ("*", "?"):
                first, last = low, high - (1 if high == 7 else 0)
            else:
                first = words[first_text] if first_text in words else int(first_text)
                if dash:
                    last = words[last_text] if last_text in words else int(last_text)
                else:
                    last = high if step_text else first
        except ValueError:
            raise ValueError(f'{name}: "{part}" is neither a number, a range nor *') from None
        if not low <= first <= last <= high or step < 1:
            raise ValueError(f'{name}: "{part}" is not within {low} to {high}')
        values.update(range(first, last + 1, step))
    return values
