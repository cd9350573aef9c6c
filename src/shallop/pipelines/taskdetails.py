"""Task rows as clients see them: PipelineTaskDetail for KFP clients, and a fuller form for our own pages."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shallop.pipelines.messages import RUNTIME_STATE, TASK, format_micros, render

__all__ = ["task_messages", "task_views"]

Row = Mapping[str, Any]
# KFP has no words for these: a cached task and one that an upstream failure left out are SKIPPED there.
_SHOWN_AS = {"CACHED": "SKIPPED", "OMITTED": "SKIPPED"}


@functools.cache
def _state(state: str) -> str:
    shown = _SHOWN_AS.get(state, state)
    return shown if shown in RUNTIME_STATE.names.values() else "RUNTIME_STATE_UNSPECIFIED"


def task_messages(
    tasks: Sequence[Row], links: Iterable[Row], children_of: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """
    Build the task details of one run.

    Args:
        tasks: rows of the run, all or some.
        links: rows that tie artifacts to these tasks.
        children_of: (id, id of a task below it) in order; those of other tasks do no harm.
    """
    children: dict[str, list[dict[str, str]]] = {}
    for id_, child in children_of:
        children.setdefault(id_, []).append({"task_id": child})
    artifacts = _artifact_ids(links)
    return [_message(task, artifacts) | {"child_tasks": children.get(task["id"], [])} for task in tasks]


def _artifact_ids(links: Iterable[Row]) -> dict[tuple[str, str], dict[str, dict[str, list[int]]]]:
    ids: dict[tuple[str, str], dict[str, dict[str, list[int]]]] = {}
    for link in links:
        by_key = ids.setdefault((link["task_id"], link["type"]), {})
        by_key.setdefault(link["key"], {"artifact_ids": []})["artifact_ids"].append(link["artifact_id"])
    return ids


def _message(task: Row, artifacts: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    pods = [pod["name"] for pod in task["pods"]]
    return {
        "run_id": task["run_id"],
        "task_id": task["id"],
        "display_name": task["display_name"],
        "create_time": task["created_at"],
        "start_time": task["started_at"] or None,
        "end_time": task["ended_at"] or None,
        "executor_detail": {"main_job": pods[-1], "failed_main_jobs": pods[:-1]} if pods else None,
        "state": _state(task["state"]),
        "execution_id": task["execution"],
        "error": task["error"],
        "inputs": artifacts.get((task["id"], "INPUT"), {}),
        "outputs": artifacts.get((task["id"], "OUTPUT"), {}),
        "parent_task_id": task["parent_id"],
        "state_history": [entry | {"state": _state(entry["state"])} for entry in task["state_history"]],
        "pod_name": pods[-1] if pods else "",
    }


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
        render(TASK, _message(task, artifacts))
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
