"""From what trials write to values of metrics: text, JSON lines, and the exposition format of Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

from shallop.tuning.tables import Report

__all__ = ["DEFAULT_FORMAT", "UNAVAILABLE", "parse_exposition", "parse_json", "parse_text", "to_microseconds"]

# Source: the default filter of Katib's file metrics collector, in words: name, blanks and "=", number.
DEFAULT_FORMAT = r"([\w|-]+)\s*=\s*([+-]?\d*(?:\.\d+)?(?:[Ee][+-]?\d+)?)"
UNAVAILABLE = "unavailable"
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)(?:\s+-?\d+)?\s*$")


def to_microseconds(time: datetime) -> int:
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1_000_000)


def _time_of(text: str) -> int | None:
    if len(text) < 19 or text[4:5] != "-":
        return None
    try:
        return to_microseconds(datetime.fromisoformat(text))
    except ValueError:
        return None


def parse_text(lines: Iterable[tuple[int, str]], metrics: Collection[str], formats: Sequence[str] = ()) -> list[Report]:
    """
    Read lines of text.

    Args:
        lines: the time when a line was written (0 = not known) and the line; a line that begins with a time of its own
            has that one.
        metrics: names that are looked for.
        formats: regular expressions whose first group is a name and whose second one a value.
    """
    patterns = [re.compile(text) for text in formats or (DEFAULT_FORMAT,)]
    reports = []
    for written, line in lines:
        if not any(metric in line for metric in metrics):
            continue
        own = _time_of(line.split(maxsplit=1)[0]) if line[:1].isdigit() else None
        time = written if own is None else own
        for pattern in patterns:
            for match in pattern.finditer(line):
                name, value = (match[1] or "").strip(), (match[2] or "").strip()
                if name in metrics and value:
                    reports.append(Report(name, value, time))
    return reports


def parse_json(lines: Iterable[tuple[int, str]], metrics: Collection[str]) -> list[Report]:
    """Read lines that are JSON objects with metrics as keys; ``timestamp`` is RFC 3339 or seconds since 1970."""
    reports = []
    for written, line in lines:
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if not isinstance(document, dict):
            continue
        stamp = document.get("timestamp")
        time = written
        if isinstance(stamp, int | float):
            time = round(stamp * 1_000_000)
        elif isinstance(stamp, str):
            time = _time_of(stamp) or written
        for name in metrics:
            value = document.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                reports.append(Report(name, str(value), time))
    return reports


def parse_exposition(text: str, metrics: Collection[str], time_us: int) -> list[Report]:
    """Read what a Prometheus endpoint shows now."""
    found = (_SAMPLE.match(line) for line in text.splitlines() if not line.startswith("#"))
    return [Report(match[1], match[2], time_us) for match in found if match and match[1] in metrics]
