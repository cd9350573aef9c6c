"""Measures the shapes of one runner and prints them as one line of JSON; beside the runners, not part of any."""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable

SHAPES = (("chain", 20), ("chain", 100), ("fan-out", 100))
# A runner that needs more than this per step in the short chain is spared the long shapes.
_TOO_SLOW_S = 0.6
# One that needs more than this for a step when it is warm gets a chain of 5 and no more.
_MUCH_TOO_SLOW_S = 2.5
# A shape that took longer is not run a second time: a moment of noise is small beside it.
_AGAIN_S = 20.0


def report(name: str, isolation: str, run: dict[str, Callable[[int], float]]) -> None:
    """
    Run each shape twice, after short ones that warm up, and report the faster.

    Args:
        isolation: what a step runs in: ``process`` of its own, or ``none``.
        run: shape -> function of its number of steps, which returns seconds.
    """
    row: dict[str, object] = {"runner": name, "isolation": isolation}
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        try:
            run["chain"](2)
            slow = run["chain"](2) / 2 > _MUCH_TOO_SLOW_S
            for shape, steps in (("chain", 5),) if slow else SHAPES:
                if slow and steps > 20:
                    continue
                seconds = run[shape](steps)
                if seconds < _AGAIN_S:
                    seconds = min(seconds, run[shape](steps))
                row[f"{shape} {steps}, ms/step"] = round(seconds / steps * 1000, 2)
                slow = slow or seconds / steps > _TOO_SLOW_S
        except Exception as error:
            traceback.print_exc()
            row["error"] = repr(error)[:200]
    sys.stdout.write(json.dumps(row) + "\n")
