"""From what a client submits to the row of a run: the pipeline it means, its experiment, its parameters, checked."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from starlette.requests import Request

from shallop.controller import Services
from shallop.errors import BadRequestError, NotFoundError
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.errors_wire import precondition
from shallop.pipelines.experiments_api import ensure_default_experiment
from shallop.pipelines.macros import MacroContext, expand_macros
from shallop.pipelines.messages import from_micros, to_micros
from shallop.pipelines.pipelines_api import checked_pipeline, spec_digest
from shallop.pipelines.validation import check_parameters, refuse, warnings_of
from shallop.store.objects import is_object_uri

__all__ = [
    "NewRun",
    "Submission",
    "allow_pipeline",
    "check_name",
    "insert_run",
    "namespace_listed",
    "namespace_of_experiment",
    "new_run",
    "open_experiment",
    "pipeline_of",
]

_MAX_NAME = 255
Row = dict[str, Any]


@dataclass(frozen=True)
class Submission:
    """
    When and for whom a run is made.

    Args:
        scheduled_at: microseconds; 0 for a run that nobody scheduled.
        index: of the run within its recurring run, from 1.
        reuse: ``run_id`` of the run that is repeated, ``repeated``: paths of what is done again.
    """

    run_id: str
    now: int
    scheduled_at: int = 0
    recurring_run_id: str = ""
    index: int | None = None
    reuse: Row | None = None

    @classmethod
    def at(cls, services: Services) -> Submission:
        """Describe a run that a client submits now."""
        return cls(str(uuid.uuid4()), to_micros(services.now()))


def check_name(given: Mapping[str, Any], what: str) -> str:
    name: str = given.get("display_name", "")
    if not name.strip():
        raise BadRequestError(f"{what}.display_name: required; give it a name.")
    if len(name) > _MAX_NAME:
        raise BadRequestError(f"{what}.display_name: {len(name)} characters; at most {_MAX_NAME} are allowed.")
    return name


def pipeline_of(connection: sa.Connection, given: Mapping[str, Any], what: str) -> tuple[dict[str, str], Row]:
    """
    Return the version that a run or recurring run refers to (empty without one), and its document.

    Raises:
        BadRequestError: neither a document nor a reference.
        NotFoundError: no such version.
    """
    if given.get("pipeline_spec"):
        return {}, given["pipeline_spec"]
    reference = given.get("pipeline_version_reference", {})
    pipeline_id = reference.get("pipeline_id", "")
    version_id = reference.get("pipeline_version_id", "") or given.get("pipeline_version_id", "")
    if not (pipeline_id or version_id):
        raise BadRequestError(
            f"{what}: a pipeline is required: send pipeline_spec, or pipeline_version_reference with a pipeline_id."
        )
    if version_id:
        version = tables.get_version(connection, version_id)
    else:
        version = tables.newest_version(connection, pipeline_id)
    if version is None:
        raise NotFoundError(
            f"{what}.pipeline_version_reference: no version {version_id!r} of pipeline {pipeline_id!r}; "
            "list them with GET /apis/v2beta1/pipelines/{pipeline_id}/versions."
        )
    if pipeline_id and version["pipeline_id"] != pipeline_id:
        raise BadRequestError(
            f"{what}.pipeline_version_reference: version {version_id!r} is one of pipeline {version['pipeline_id']!r}."
        )
    source = {"pipeline_id": version["pipeline_id"], "pipeline_version_id": version["id"]}
    return source, tables.get_specs(connection, [version["spec_digest"]])[version["spec_digest"]]


async def namespace_of_experiment(
    request: Request, services: Services, access: Access, resource: str, id_: str, verb: str = "create"
) -> str:
    """
    Return the namespace for a new run, which is that of its experiment; empty on a single-user server.

    Raises:
        BadRequestError: a multi-user server needs an experiment.
        ForbiddenError: the caller may not create one there.
        NotFoundError: no such experiment.
    """
    if not access.is_multi_user:
        return ""
    if not id_:
        raise BadRequestError("experiment_id: required, this server has several users; create an experiment first.")
    row = await services.database.read(lambda c: tables.get_experiment(c, id_))
    if row is None:
        raise NotFoundError(f"experiment_id: no experiment {id_!r}; create it first.")
    await access.allow(request, verb, resource, row)
    return str(row["namespace"])


async def namespace_listed(request: Request, services: Services, access: Access, resource: str) -> str | None:
    """Return the namespace whose runs are listed, by ``experiment_id`` or ``namespace`` of the query; None = all."""
    query = request.query_params
    if access.is_multi_user and query.get("experiment_id"):
        return await namespace_of_experiment(request, services, access, resource, query["experiment_id"], "list")
    return await access.selection(request, resource, query.get("namespace", ""))


async def allow_pipeline(
    request: Request, services: Services, access: Access, reference: Mapping[str, str], namespace: str
) -> None:
    """Let a caller run a pipeline: one of the run's namespace, one that is shared, or one that the caller may get."""
    if not access.is_multi_user or not reference:
        return
    row = await services.database.read(lambda c: tables.get_pipeline(c, reference["pipeline_id"]))
    if row is not None and row["namespace"] not in ("", namespace):
        await access.allow_pipeline(request, "get", row)


def open_experiment(connection: sa.Connection, id_: str, now: int, what: str) -> Row:
    """Return the experiment for a new run: it must exist and not be archived."""
    if not id_:
        experiment: Row | None = ensure_default_experiment(connection, now)
    else:
        experiment = tables.get_experiment(connection, id_)
    if experiment is None:
        raise NotFoundError(f"{what}.experiment_id: no experiment {id_!r}; create it first or leave it out.")
    if experiment["storage_state"] == "ARCHIVED":
        raise precondition(
            f"{what}.experiment_id: experiment {experiment['name']!r} is archived; unarchive it or use another."
        )
    return experiment


class NewRun(NamedTuple):
    """A run that may be stored, its document as JSON, and what in its pipeline will have no effect."""

    row: Row
    text: str
    warnings: list[str]


def new_run(
    given: Mapping[str, Any], reference: Mapping[str, str], document: Row, services: Services, how: Submission
) -> NewRun:
    """Check what was submitted (slow for big pipelines: call it in a thread) and make the row."""
    pipeline = checked_pipeline(document, services.cannot_run)
    config = given.get("runtime_config", {})
    root = config.get("pipeline_root") or pipeline.default_root
    if root and not root.startswith("/") and not is_object_uri(root):
        raise BadRequestError(
            f"runtime_config.pipeline_root: {root!r} is neither an absolute directory nor in an object store (s3://, "
            "minio://, gs://, az://); leave it out (in the pipeline too) to use the server's own."
        )
    text = json.dumps(document)
    macros = MacroContext(how.run_id, from_micros(how.scheduled_at or how.now), from_micros(how.now), how.index)
    parameters = {name: expand_macros(value, macros) for name, value in config.get("parameters", {}).items()}
    refuse(check_parameters(pipeline, parameters), f"Run {given['display_name']!r}")
    row: Row = {
        "id": how.run_id,
        "experiment_id": "",
        "name": given["display_name"],
        "description": given.get("description", ""),
        "storage_state": "AVAILABLE",
        "pipeline_id": reference.get("pipeline_id", ""),
        "pipeline_version_id": reference.get("pipeline_version_id", ""),
        "spec_digest": spec_digest(text),
        "pipeline_name": pipeline.name,
        "parameters": parameters,
        "pipeline_root": root,
        "service_account": given.get("service_account", ""),
        "created_at": how.now,
        "scheduled_at": how.scheduled_at,
        "finished_at": 0,
        "state": "PENDING",
        "error": None,
        "state_history": [{"update_time": how.now, "state": "PENDING"}],
        "recurring_run_id": how.recurring_run_id or given.get("recurring_run_id", ""),
        "plugins_input": given.get("plugins_input", {}),
        "outputs": {},
        "reuse": how.reuse,
        "namespace": "",
    }
    return NewRun(row, text, warnings_of(pipeline))


def insert_run(connection: sa.Connection, row: Row, experiment_id: str, text: str) -> None:
    """Store a new run with its document as JSON ``text``."""
    experiment = open_experiment(connection, experiment_id, row["created_at"], "run")
    row |= {"experiment_id": experiment["id"], "namespace": experiment["namespace"]}
    tables.put_spec(connection, row["spec_digest"], text)
    tables.insert_run(connection, row)
