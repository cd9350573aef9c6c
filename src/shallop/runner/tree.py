"""A run as a tree of text: pure, from the task views of the server to lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

__all__ = ["reason_of", "render_tree", "step_line", "waiting_for"]

Task = Mapping[str, Any]
_MARKS = {
    "PENDING": "·",
    "RUNNING": "●",
    "SUCCEEDED": "✓",
    "CACHED": "✓",
    "SKIPPED": "○",
    "OMITTED": "○",
    "FAILED": "✗",
    "CANCELED": "✗",
}
_WORTH_SHOWING = ("RUNNING", "FAILED", "CANCELED")
# Loops can have thousands of iterations: what goes well is counted, not listed.
_MOST_CHILDREN = 12


def render_tree(tasks: Iterable[Task], now: datetime, *, width: int = 100, height: int = 1000) -> list[str]:
    """
    Draw all tasks below the root.

    Args:
        tasks: views as ``GET /runs/{id}/tasks`` gives them, in order.
        now: for the time that running steps have taken.
        height: at most so many lines.
    """
    children: dict[str, list[Task]] = {}
    for task in tasks:
        children.setdefault(task.get("parent_task_id", ""), []).append(task)
    lines = [line for root in children.get("", []) for line in _below(root, children, "", now)]
    shown = [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]
    return shown if len(shown) <= height else [*shown[: height - 1], f"… and {len(shown) - height + 1} more lines"]


def _below(task: Task, children: Mapping[str, Sequence[Task]], indent: str, now: datetime) -> Iterable[str]:
    own = children.get(task["task_id"], [])
    listed = own
    if len(own) > _MOST_CHILDREN:
        listed = [child for child in own if child["own_state"] in _WORTH_SHOWING][:_MOST_CHILDREN]
    hidden = len(own) - len(listed)
    for number, child in enumerate(listed):
        is_last = number == len(listed) - 1 and not hidden
        yield f"{indent}{'└─' if is_last else '├─'} {step_line(child, now)}"
        yield from _below(child, children, indent + ("   " if is_last else "│  "), now)
    if hidden:
        counts: dict[str, int] = {}
        for child in own:
            counts[child["own_state"]] = counts.get(child["own_state"], 0) + 1
        said = ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
        yield f"{indent}└─ {len(own)} in all: {said}"


def step_line(task: Task, now: datetime) -> str:
    """Describe one step in a line: mark, name, time, what is worth knowing."""
    state = task["own_state"]
    parts = [_MARKS.get(state, "?"), task["display_name"]]
    if seconds := _seconds(task, now):
        parts.append(f"{seconds:.1f}s" if state != "CACHED" else "")
    if state in ("CACHED", "SKIPPED", "OMITTED", "CANCELED"):
        parts.append({"CACHED": "cached"}.get(state, state.lower()))
    if state == "RUNNING" and task.get("attempt"):
        parts.append(f"attempt {task['attempt'] + 1}")
    if state == "FAILED":
        parts.append((task.get("error") or {}).get("message", "").strip().splitlines()[-1:][0] if _says(task) else "")
    return "  ".join(filter(None, parts))


def _says(task: Task) -> bool:
    return bool((task.get("error") or {}).get("message", "").strip()) and task["kind"] in ("container", "importer")


def _seconds(task: Task, now: datetime) -> float:
    if not task.get("start_time"):
        return 0.0
    start = datetime.fromisoformat(task["start_time"])
    end = datetime.fromisoformat(task["end_time"]) if task.get("end_time") else now.astimezone(UTC)
    return max(0.0, (end - start).total_seconds())


def reason_of(task: Task) -> str:
    """Say why a step ran, or why it did not."""
    if note := task.get("note"):
        return str(note)
    if task["own_state"] == "PENDING":
        return "It waits for the steps that it needs."
    return "It had to run: nothing stood in its way." if task["kind"] in ("container", "importer") else ""


def waiting_for(pod: Mapping[str, Any]) -> str:
    """Say what a Pod waits for that does not run yet; empty when it runs."""
    status = pod.get("status") or {}
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"It waits: {condition.get('message') or condition.get('reason', '')}"
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if message := (container.get("state", {}).get("waiting") or {}).get("message"):
            return f"It waits: {message}"
    return ""
