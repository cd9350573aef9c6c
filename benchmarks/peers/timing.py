"""Measures the shapes of one runner and prints them as lines of JSON; beside the runners, not part of any."""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

SHAPES = (("chain", 20), ("chain", 100), ("fan-out", 100))
# What a shape is cut down to where the whole of it would not fit into the time.
_SHORTER = (20, 5)
# A shape is repeated while all its runs take less, up to three times: a moment of noise is small beside a long one.
_AGAIN_S = 20.0
_MOST_RUNS = 3


def report(name: str, isolation: str, run: dict[str, Callable[[int], float]]) -> None:
    """
    Run each shape, after short ones that warm up, and report the fastest run of each, and how many there were.

    ``BENCHMARK_SECONDS`` is the time for all of it: what would take longer is cut down or left out, and the row says
    so. After each shape a line is printed that has all before it, too.

    Args:
        isolation: what a step runs in: ``process`` of its own, or ``none``.
        run: shape -> function of its number of steps, which returns seconds.
    """
    end = time.monotonic() + float(os.environ.get("BENCHMARK_SECONDS", "150"))
    row: dict[str, object] = {"runner": name, "isolation": isolation}
    runs: dict[str, int] = {}
    left_out: list[str] = []
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        try:
            run["chain"](2)
            step_s = run["chain"](2) / 2
            for shape, whole in SHAPES:
                left_s = end - time.monotonic()
                lengths = [steps for steps in (whole, *_SHORTER) if steps <= whole]
                steps = next((steps for steps in lengths if steps * step_s <= left_s), 0)
                steps = 0 if f"{shape} {steps}" in runs else steps
                if steps != whole:
                    left_out.append(f"{shape} {whole}, about {whole * step_s:.0f} s")
                if steps:
                    times = [run[shape](steps)]
                    while len(times) < _MOST_RUNS and sum(times) + times[0] < min(_AGAIN_S, end - time.monotonic()):
                        times.append(run[shape](steps))
                    step_s = min(times) / steps
                    runs[f"{shape} {steps}"] = len(times)
                    row[f"{shape} {steps}, ms/step"] = round(step_s * 1000, 2)
                _print(row | {"runs": runs} | ({"left out": left_out} if left_out else {}))
        except Exception as error:
            traceback.print_exc()
            _print(row | {"runs": runs, "error": repr(error)[:200]})


def _print(row: dict[str, object]) -> None:
    sys.__stdout__.write(json.dumps(row) + "\n")
    sys.__stdout__.flush()
