"""
What a run that repeats another takes from it: outputs of steps that would do exactly the same again.

A step is done again when it is, or depends on, the one from which the user repeats; when its component, its inputs or
the content of its input artifacts differ; and when it did not end well. Everything else is taken over, caching or not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from shallop.errors import BadRequestError
from shallop.pipelines import tables
from shallop.pipelines.cachekey import material_of
from shallop.pipelines.caching import Answer, missing_file
from shallop.pipelines.inputs import task_needs
from shallop.pipelines.ir import Component, Pipeline, parse_pipeline
from shallop.pipelines.plan import StartTask
from shallop.pipelines.values import Values, task_id

__all__ = ["Earlier", "component_at", "find_step", "load_earlier", "repeated_paths", "take_over"]

_INDEX = re.compile(r"\[\d+\]")


def find_step(paths: list[str], wanted: str) -> str:
    """
    Return the path of the step that a user means by a path, with or without ``root/``, or by its name alone.

    Raises:
        BadRequestError: no such step, or several of that name.
    """
    exact = [path for path in paths if path in (wanted, f"root/{wanted}")]
    found = exact or [path for path in paths if path.rpartition("/")[2] == wanted]
    if len(found) != 1:
        names = ", ".join(path.removeprefix("root/") for path in (found or paths) if path != "root")
        what = "no such step" if not found else "several steps have this name"
        raise BadRequestError(f"from_task: {wanted!r}: {what}; use one of {names}.")
    return found[0]


def repeated_paths(pipeline: Pipeline, start: str) -> set[str]:
    """Return the step and all that depends on it, at its own level and around it; paths without indices of loops."""
    names = _INDEX.sub("", start).split("/")[1:]
    component, prefix, forced = pipeline.root, "root", {"/".join(["root", *names])}
    for name in names:
        if component.dag is None or name not in component.dag.tasks:
            break
        forced |= {f"{prefix}/{dependent}" for dependent in _dependents(pipeline, component, name)}
        prefix = f"{prefix}/{name}"
        component = pipeline.component_of(component.dag.tasks[name])
    return forced


def _dependents(pipeline: Pipeline, component: Component, name: str) -> set[str]:
    tasks = component.dag.tasks if component.dag else {}
    needs = {other: task_needs(pipeline, task) for other, task in tasks.items()}
    found: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        fresh = {other for other, producers in needs.items() if current in producers} - found
        found |= fresh
        todo.extend(fresh)
    return found


def _is_below(path: str, forced: frozenset[str]) -> bool:
    names = _INDEX.sub("", path).split("/")
    return any("/".join(names[:length]) in forced for length in range(1, len(names) + 1))


class Earlier(NamedTuple):
    """
    The run that a run repeats.

    Args:
        repeated: paths, without indices of loops, that are done again with all below them.
    """

    run_id: str
    repeated: frozenset[str]
    pipeline: Pipeline


def load_earlier(connection: sa.Connection, reuse: Mapping[str, Any] | None) -> Earlier | None:
    """Return what ``reuse`` of a run's row names; None without one, or when that run was deleted."""
    run = tables.get_run(connection, reuse["run_id"]) if reuse else None
    if reuse is None or run is None:
        return None
    document = tables.get_specs(connection, [run["spec_digest"]])[run["spec_digest"]]
    return Earlier(reuse["run_id"], frozenset(reuse["repeated"]), parse_pipeline(document))


def take_over(connection: sa.Connection, earlier: Earlier, pipeline: Pipeline, action: StartTask) -> Answer | None:
    """Answer for a task from the run that is repeated; None where the cache is to be asked."""
    if _is_below(action.path, earlier.repeated):
        return Answer(None, f"Done again: repeats run {earlier.run_id} from here, or from a step that this one needs.")
    task = tables.get_task(connection, task_id(earlier.run_id, action.path))
    if task is None or task["state"] not in ("SUCCEEDED", "CACHED"):
        return None
    component = component_at(earlier.pipeline, action.path)
    inputs = msgspec.convert(task["inputs"], type=Values)
    if material_of(earlier.pipeline, component, inputs) != material_of(pipeline, action.component, action.inputs):
        return None
    outputs = msgspec.convert(task["outputs"], type=Values)
    if missing_file(outputs):
        return None
    return Answer(outputs, f"Outputs of run {earlier.run_id}, which this run repeats: nothing differs.")


def component_at(pipeline: Pipeline, path: str) -> str:
    """Return the key of the component of a task; empty where the pipeline has no such task."""
    component, found = pipeline.root, ""
    for name in _INDEX.sub("", path).split("/")[1:]:
        if component.dag is None or name not in component.dag.tasks:
            return ""
        found = component.dag.tasks[name].component_ref.name
        component = pipeline.components[found]
    return found
