"""Task rows as clients see them: PipelineTaskDetail for KFP clients, and a fuller form for our own pages."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shallop.pipelines.messages import RUNTIME_STATE, STATUS, format_micros, render

__all__ = ["render_tasks", "task_views"]

Row = Mapping[str, Any]
# KFP has no words for these: a cached task and one that an upstream failure left out are SKIPPED there.
_SHOWN_AS = {"CACHED": "SKIPPED", "OMITTED": "SKIPPED"}


@functools.cache
def _state(state: str) -> str:
    shown = _SHOWN_AS.get(state, state)
    return shown if shown in RUNTIME_STATE.names.values() else "RUNTIME_STATE_UNSPECIFIED"


def render_tasks(
    tasks: Sequence[Row], links: Iterable[Row], children_of: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """
    Write the task details of one run, each a ``messages.TASK``.

    Args:
        tasks: rows of the run, all or some.
        links: rows that tie artifacts to these tasks.
        children_of: (id, id of a task below it) in order; those of other tasks do no harm.
    """
    children: dict[str, list[dict[str, str]]] = {}
    for id_, child in children_of:
        children.setdefault(id_, []).append({"task_id": child})
    artifacts = _artifact_ids(links)
    details = []
    for task in tasks:
        detail = _render(task, artifacts)
        if below := children.get(task["id"]):
            detail["child_tasks"] = below
        details.append(detail)
    return details


def _artifact_ids(links: Iterable[Row]) -> dict[tuple[str, str], dict[str, dict[str, list[str]]]]:
    ids: dict[tuple[str, str], dict[str, dict[str, list[str]]]] = {}
    for link in links:
        by_key = ids.setdefault((link["task_id"], link["type"]), {})
        by_key.setdefault(link["key"], {"artifact_ids": []})["artifact_ids"].append(str(link["artifact_id"]))
    return ids


def _render(task: Row, artifacts: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Write one as ``messages.render`` would, in a third of the time: a client that waits asks for all, often."""
    pods = [pod["name"] for pod in task["pods"]]
    detail = {
        "run_id": task["run_id"],
        "task_id": task["id"],
        "display_name": task["display_name"],
        "create_time": format_micros(task["created_at"]),
        "state": _state(task["state"]),
        "execution_id": str(task["execution"]),
        "state_history": [_render_status(entry) for entry in task["state_history"]],
    }
    if task["started_at"]:
        detail["start_time"] = format_micros(task["started_at"])
    if task["ended_at"]:
        detail["end_time"] = format_micros(task["ended_at"])
    if task["parent_id"]:
        detail["parent_task_id"] = task["parent_id"]
    if pods:
        detail["pod_name"] = pods[-1]
        detail["executor_detail"] = {"main_job": pods[-1]}
        if len(pods) > 1:
            detail["executor_detail"]["failed_main_jobs"] = pods[:-1]
    if task["error"]:
        detail["error"] = render(STATUS, task["error"])
    for name, type_ in (("inputs", "INPUT"), ("outputs", "OUTPUT")):
        if found := artifacts.get((task["id"], type_)):
            detail[name] = found
    return detail


def _render_status(entry: Row) -> dict[str, Any]:
    status = {"update_time": format_micros(entry["update_time"]), "state": _state(entry["state"])}
    return {**status, "error": render(STATUS, entry["error"])} if entry.get("error") else status


def task_views(tasks: Sequence[Row], links: Iterable[Row]) -> list[dict[str, Any]]:
    """
    Return what our own pages show: the details, and the true state, parameters, attempts and cache notes beside.

    Without the tasks below each: of ten thousand each new one would change the text of all. Each names its parent.

    Args:
        tasks: rows of one run, all or some.
        links: those of these tasks.
    """
    artifacts = _artifact_ids(links)
    return [
        _render(task, artifacts)
        | {
            "path": task["path"],
            "name": task["name"],
            "kind": task["kind"],
            "own_state": task["state"],
            "attempt": task["attempt"],
            "note": task["note"],
            "usage": task["usage"],
            "pods": task["pods"],
            "input_parameters": task["inputs"].get("parameters", {}),
            "output_parameters": task["outputs"].get("parameters", {}),
            "created_at": format_micros(task["created_at"]),
        }
        for task in tasks
    ]
