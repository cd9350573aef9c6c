"""
Macros in the parameter values of a run.

``[[RunUUID]]``, ``[[CurrentTime.2006-01-02]]``, ``{{$.scheduledTime.strftime('%Y')}}`` and their like.

Time forms of the first kind take Go layouts, as upstream does; without one the layout is 20060102150405.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["MacroContext", "expand_macros"]

_BRACKETS = re.compile(r"\[\[(RunUUID|ScheduledTime|CurrentTime|Index)(?:\.([^\]]*))?\]\]")
_STRFTIME = re.compile(r"\{\{\$\.(scheduledTime|currentTime)\.strftime\(\\?['\"]([^'\"]*?)\\?['\"]\)\}\}")
_DEFAULT_LAYOUT = "20060102150405"
# Longest first: "2006" before "2", "January" before "Jan".
_GO = {
    "January": "%B",
    "Monday": "%A",
    "2006": "%Y",
    "-0700": "%z",
    "-07:00": "%:z",
    "Z07:00": "Z",
    "Jan": "%b",
    "Mon": "%a",
    "MST": "%Z",
    "002": "%j",
    "01": "%m",
    "02": "%d",
    "03": "%I",
    "04": "%M",
    "05": "%S",
    "06": "%y",
    "15": "%H",
    "PM": "%p",
    "1": "%-m",
    "2": "%-d",
    "3": "%-I",
}
_GO_TOKEN = re.compile("|".join(map(re.escape, _GO)))


@dataclass(frozen=True)
class MacroContext:
    """
    What macros stand for.

    Args:
        index: of the run within its recurring run; None outside of one, where ``[[Index]]`` stays as it is.
        scheduled, current: aware UTC times.
    """

    run_id: str
    scheduled: datetime
    current: datetime
    index: int | None = None


def expand_macros(value: Any, context: MacroContext) -> Any:
    """Replace macros in a text; other values are returned as they are."""
    if not isinstance(value, str):
        return value
    value = _BRACKETS.sub(lambda match: _bracket(match, context), value)
    return _STRFTIME.sub(lambda match: _time(match[1], context).strftime(match[2]), value)


def _bracket(match: re.Match[str], context: MacroContext) -> str:
    name, layout = match[1], match[2]
    if name == "RunUUID":
        return context.run_id
    if name == "Index":
        return match[0] if context.index is None else str(context.index)
    return _format_go(_time(name, context), layout or _DEFAULT_LAYOUT)


def _time(name: str, context: MacroContext) -> datetime:
    return context.scheduled if name.lower().startswith("scheduled") else context.current


def _format_go(time: datetime, layout: str) -> str:
    def piece(match: re.Match[str]) -> str:
        token = _GO[match[0]]
        if token == "%:z":
            return "+00:00"
        if token.startswith("%-"):
            return time.strftime(token.replace("-", "")).lstrip("0")
        return time.strftime(token) if token.startswith("%") else token

    return _GO_TOKEN.sub(piece, layout)
