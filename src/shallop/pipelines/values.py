"""What flows between tasks: parameters, artifacts, errors, and facts of the run."""

from __future__ import annotations

import json
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from msgspec import Struct

from shallop.pipelines.ir import ArtifactType

__all__ = ["Artifact", "RunInfo", "TaskError", "Values", "artifact_json", "plain", "task_id", "text_of"]

_EXACT = 2**53  # integral doubles up to here are the integer that was meant


class Artifact(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """
    An artifact as a task sees it.

    Args:
        name: as the launcher reported it, else the output's name.
        metadata: JSON object; numbers, texts, lists and objects survive unchanged.
        id: of its row; empty before it has one.
        digest: of its content, such as ``sha256:...``; empty where unknown. Part of cache keys.
    """

    name: str
    uri: str
    type: ArtifactType = ArtifactType()
    metadata: dict[str, Any] = {}
    id: str = ""
    digest: str = ""


class Values(Struct, frozen=True, omit_defaults=True):
    """
    Inputs or outputs by name.

    Args:
        parameters: JSON values; integral numbers are ints.
        artifacts: always lists; a single artifact is a list of one.
    """

    parameters: dict[str, Any] = {}
    artifacts: dict[str, list[Artifact]] = {}


class TaskError(Struct, frozen=True, omit_defaults=True):
    """Why a task ended badly; ``code`` is a gRPC status code (13 = internal)."""

    message: str
    code: int = 13


class RunInfo(Struct, frozen=True):
    """
    What placeholders may ask of the run.

    Args:
        resource_name: ``<pipeline name>-xxxxx`` (no ``-`` in the last part), as a Workflow object would be called.
        pipeline_root: URI or absolute path below which outputs go, already chosen by run > IR > server default.
        local_root: directory for outputs when ``pipeline_root`` is in an object store; they are stored from there.
        created_at: RFC 3339, UTC.
        scheduled_at: RFC 3339, UTC; equals ``created_at`` for a run that nobody scheduled.
    """

    run_id: str
    display_name: str
    resource_name: str
    pipeline_root: str
    created_at: str
    scheduled_at: str
    local_root: str = ""

    @property
    def pipeline_name(self) -> str:
        return self.resource_name.rpartition("-")[0]


def task_id(run_id: str, path: str) -> str:
    """Return the id of a task instance; empty for the root's parent."""
    return str(uuid5(NAMESPACE_OID, f"{run_id}/{path}")) if path else ""


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    """Render the RuntimeArtifact of an executor input."""
    kind = artifact.type
    type_json = {"schemaTitle": kind.schema_title, "schemaVersion": kind.schema_version}
    if kind.instance_schema:
        type_json["instanceSchema"] = kind.instance_schema
    return {
        "name": artifact.name,
        "type": {key: value for key, value in type_json.items() if value},
        "uri": artifact.uri,
        "metadata": artifact.metadata,
    }


def plain(value: Any) -> Any:
    """Copy a JSON value with integral doubles as ints: components fail on ``3.0`` where they declare an int."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def text_of(value: Any) -> str:
    """Write a value where text is expected: text as it is, nothing for null, else JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
