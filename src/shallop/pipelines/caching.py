"""
What the cache says about a task before it starts: the outputs of an earlier execution, or why there are none.

An entry is good while nothing differs that could change the outputs (``cachekey``), its files are there, and it is not
too old. Every answer comes with a reason that is kept on the task.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from shallop.controller import Services
from shallop.pipelines import tables
from shallop.pipelines.cachekey import cache_material, explain_miss, fingerprint
from shallop.pipelines.inputs import parameters_with_defaults
from shallop.pipelines.ir import Pipeline
from shallop.pipelines.messages import to_micros
from shallop.pipelines.placeholders import Placeholders
from shallop.pipelines.plan import StartTask
from shallop.pipelines.values import Values

__all__ = ["OFF", "Answer", "look_up", "missing_file"]

OFF = "Not from the cache: caching is off for this task."
_MOST_REASONS = 4


class Answer(NamedTuple):
    """``outputs`` is None for a miss; ``note`` says why, in a sentence or two."""

    outputs: Values | None
    note: str


def look_up(
    connection: sa.Connection, services: Services, pipeline: Pipeline, action: StartTask, namespace: str
) -> Answer:
    """Ask the cache for a task that caching is on for; reads rows and files: call it in a reader's thread."""
    material = cache_material(pipeline, action, _environment(services, pipeline, action))
    entry = tables.get_cache_entry(connection, namespace, pipeline.name, fingerprint(material))
    if entry is None:
        newest = tables.newest_cache_entry(connection, namespace, pipeline.name, action.component)
        return Answer(None, f"Not from the cache: {_why_missing(newest, pipeline.name, action, material)}.")
    source = f"run {entry['run_id']}, task {entry['task_id']}"
    age_s = (to_micros(services.now()) - entry["created_at"]) / 1e6
    if 0 < services.settings.cache_max_age_s < age_s:
        limit = f"{services.settings.cache_max_age_s:g}"
        return Answer(
            None, f"Not from the cache: the outputs of {source} are {round(age_s, 1):g} s old, more than {limit} s."
        )
    outputs = msgspec.convert(entry["outputs"], type=Values)
    if missing := missing_file(outputs):
        return Answer(None, f"Not from the cache: {missing} of {source} was removed.")
    return Answer(outputs, f"Outputs of {source}: nothing differs that could change them.")


def _environment(services: Services, pipeline: Pipeline, action: StartTask) -> str:
    """Return the digest of the environment that would run the task now."""
    component = pipeline.components[action.component]
    container = pipeline.executor_of(component).container
    if container is None or action.cache_key:
        return ""
    image = Placeholders(parameters_with_defaults(component, action.inputs)).text(container.image)
    return services.environment_of(image, [*container.command, *container.args])


def _why_missing(earlier: tables.Row | None, pipeline_name: str, action: StartTask, material: tables.Row) -> str:
    if earlier is None:
        return f"component {action.component!r} has no kept outputs in pipeline {pipeline_name!r}"
    reasons = explain_miss(material, earlier["material"] or {})
    if len(reasons) > _MOST_REASONS:
        reasons = [*reasons[:_MOST_REASONS], f"and {len(reasons) - _MOST_REASONS} more"]
    return f"since run {earlier['run_id']}: {'; '.join(reasons) or 'the entry was removed'}"


def missing_file(values: Values) -> str:
    """Name a local file of cached outputs that is gone; what never was written needs not be there."""
    for items in values.artifacts.values():
        for artifact in items:
            if artifact.digest and artifact.uri.startswith("/") and not os.path.exists(artifact.uri):
                return f"artifact {artifact.name!r}"
    return ""
