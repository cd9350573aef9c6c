"""Runs beside each other as a table of text: pure, from the server's comparison to lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["render_comparison"]

_WIDEST = 32


def render_comparison(compared: Mapping[str, Any]) -> list[str]:
    """Draw one column for each run; ``*`` marks parameters and numbers that are not the same in all."""
    runs = compared["runs"]
    rows = [
        ("", "run", [run["run_id"][:8] for run in runs]),
        ("", "name", [run["display_name"] for run in runs]),
        ("", "state", [run["state"] for run in runs]),
        ("", "seconds", ["" if run["duration_s"] is None else f"{run['duration_s']:.1f}" for run in runs]),
    ]
    for group in ("parameters", "metrics", "outputs"):
        for name in dict.fromkeys(name for run in runs for name in run[group]):
            values = [_text(run[group][name]) if name in run[group] else "" for run in runs]
            rows.append(("*" if len(set(values)) > 1 else "", f"{group[:-1]} {name}", values))
    first = max(len(name) for _, name, _ in rows)
    widths = [max(len(_short(values[place])) for _, _, values in rows) for place in range(len(runs))]
    return [
        f"{mark:<2}{name:<{first}}  "
        + "  ".join(f"{_short(value):<{width}}" for value, width in zip(values, widths, strict=True)).rstrip()
        for mark, name, values in rows
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"
