"""A run in the terminal while it goes on, and what it came to."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from shallop.runner.client import PipelinesClient
from shallop.runner.tree import render_tree, step_line

__all__ = ["show_end", "watch_run"]

_LOG_LINES = 20
_LEAVES = ("container", "importer")


def watch_run(client: PipelinesClient, run_id: str, out: TextIO = sys.stdout) -> dict[str, Any]:
    """Show a run until it is over: a tree that is redrawn in a terminal, a line per change elsewhere."""
    tasks: dict[str, Any] = {}
    run: dict[str, Any] = {}
    drawn = 0
    for event, data in client.watch(run_id):
        if event == "run":
            run = data
        elif event == "tasks":
            changed = [task for task in data if _differs(tasks.get(task["task_id"]), task)]
            tasks |= {task["task_id"]: task for task in data}
            if not out.isatty():
                for task in changed:
                    print(f"{task['path'].removeprefix('root/'):<40} {step_line(task, _now())}", file=out, flush=True)
        if out.isatty():
            size = shutil.get_terminal_size()
            lines = render_tree(tasks.values(), _now(), width=size.columns, height=max(3, size.lines - 2))
            out.write(f"\x1b[{drawn}F\x1b[J" if drawn else "")
            out.write("".join(f"{line}\n" for line in lines))
            out.flush()
            drawn = len(lines)
    return run


def _differs(before: dict[str, Any] | None, after: dict[str, Any]) -> bool:
    return after["kind"] in _LEAVES and (before is None or before["own_state"] != after["own_state"])


def _now() -> datetime:
    return datetime.now(UTC)


def show_end(client: PipelinesClient, run_id: str, out: TextIO = sys.stdout, *, is_local: bool = False) -> int:
    """
    Print the end of a run: its outputs, or what failed and how to look into it; returns the exit code.

    Args:
        is_local: no platform stays behind that could be asked about the run.
    """
    seen = client.call("GET", f"/runs/{run_id}/tasks")
    run = seen["run"]
    started, ended = (datetime.fromisoformat(run[name]) for name in ("created_at", "finished_at"))
    print(f"run {run_id} {run['state']} in {(ended - started).total_seconds():.1f} s", file=out)
    for name, value in (seen["outputs"].get("parameters") or {}).items():
        print(f"  {name} = {json.dumps(value, ensure_ascii=False)}", file=out)
    for items in (seen["outputs"].get("artifacts") or {}).values():
        for item in items:
            print(f"  {item['name']}: {item['uri']}", file=out)
    if run["state"] == "SUCCEEDED":
        return 0
    failed = [task for task in seen["tasks"] if task["own_state"] == "FAILED" and task["kind"] in _LEAVES]
    for task in failed[:3]:
        path = task["path"].removeprefix("root/")
        reason = (task.get("error") or {}).get("message", "").splitlines()[-1:]
        print(f"\nstep {path} failed: {''.join(reason)}", file=out)
        log = client.text(f"/runs/{run_id}/tasks/{task['task_id']}/log").splitlines()
        for line in log[-_LOG_LINES:]:
            print(f"  | {line}", file=out)
        if not is_local:
            print(f"look into it:       shallop shell {run_id[:8]} {path}", file=out)
        option = " --local-only" if is_local else ""
        print(f"after a correction: shallop run FILE{option} --repeat {run_id[:8]}", file=out)
    if not failed:
        print((run.get("error") or {}).get("message", ""), file=out)
    return 1
