"""Following a pipeline run: one line per step, in a terminal and in a log."""

import sys
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

import requests

_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_POLL_S = 0.15
# Without a terminal, a sign of life this often.
_HEARTBEAT_S = 15.0
_LOG_LINES = 20


class Step(NamedTuple):
    """One step of a run."""

    name: str
    state: str
    seconds: float
    pod: str
    error: str

    @property
    def cached(self) -> bool:
        # What KFP calls a step whose outputs came from the cache.
        return self.state == "SKIPPED"


def follow(client: Any, web: str, run_id: str) -> list[Step]:
    """
    Print the steps of a run as they end, return them when the run is over.

    Raises:
        SystemExit: the run failed; the last lines of the failed steps' logs are printed before.
    """
    shown: set[str] = set()
    heartbeat = time.monotonic() + _HEARTBEAT_S
    while True:
        run = client.get_run(run_id)
        steps = parse_steps(run.run_details.task_details if run.run_details else None, datetime.now(UTC))
        for task_id, step in steps.items():
            if step.state in _ENDED and task_id not in shown:
                shown.add(task_id)
                _clear()
                state = describe(step, any(other.state == "FAILED" for other in steps.values()))
                print(f"  {step.name:<24}{state:<12}{step.seconds:>7.2f} s", flush=True)
        if run.state in _ENDED:
            break
        waiting = ", ".join(f"{s.name} {s.seconds:.0f} s" for s in steps.values() if s.state not in _ENDED)
        if sys.stdout.isatty():
            _clear()
            print(f"  ... {waiting}"[:100], end="", flush=True)
        elif time.monotonic() > heartbeat:
            heartbeat = time.monotonic() + _HEARTBEAT_S
            print(f"  ... {waiting}", flush=True)
        time.sleep(_POLL_S)
    _clear()
    if run.state != "SUCCEEDED":
        _explain(run, web, [step for step in steps.values() if step.state == "FAILED"])
    return list(steps.values())


def parse_steps(tasks: list[Any] | None, now: datetime) -> dict[str, Step]:
    """Return the steps of a run by task id; tasks that only hold others, such as loops, are left out."""
    names = {task.task_id: task.display_name for task in tasks or []}
    steps = {}
    for task in tasks or []:
        if task.child_tasks or not task.parent_task_id:
            continue
        parent = names.get(task.parent_task_id, "root")
        # An iteration of a loop is named for-loop-1[0], for-loop-1[1], ...
        name = task.display_name + (f"[{parent.rpartition('[')[2]}" if parent.endswith("]") else "")
        seconds = ((_time(task.end_time) or now) - (_time(task.create_time) or now)).total_seconds()
        error = getattr(task.error, "message", "") or ""
        steps[task.task_id] = Step(name, str(task.state), max(seconds, 0.0), task.pod_name or "", error)
    return steps


def describe(step: Step, failed: bool) -> str:
    """Say how a step ended; what a failure left out is SKIPPED too."""
    if step.cached:
        return "left out" if failed else "cached"
    return step.state.lower()


def _time(value: datetime | None) -> datetime | None:
    # The client turns "no time" into the year 1970 or earlier.
    return value if value is not None and value.year > 1970 else None


def _explain(run: Any, web: str, failed: list[Step]) -> None:
    for step in failed:
        print(f"\n{step.name} failed: {_last_line(step.error)}\nThe end of its log:")
        answer = requests.get(f"{web}/apis/v1alpha1/runs/{run.run_id}/nodes/{step.pod}/log", timeout=30)
        print("\n".join(f"  | {line}" for line in answer.text.splitlines()[-_LOG_LINES:]))
    message = _last_line(getattr(run.error, "message", "")) or "see the steps above"
    raise SystemExit(f"run {run.run_id} ended as {run.state}: {message}")


def _last_line(text: str | None) -> str:
    """Return the line of a traceback that says what went wrong."""
    return (text or "").strip().rpartition("\n")[2]


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")
