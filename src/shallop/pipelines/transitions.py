"""What a planner takes in and gives out: states, events, actions. ``plan`` says how they follow from each other."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct

from shallop.pipelines.ir import ArtifactType
from shallop.pipelines.values import TaskError, Values

__all__ = [
    "Action",
    "CancelRequested",
    "Event",
    "FinishRun",
    "ImportArtifact",
    "RetryRequested",
    "RunState",
    "StartTask",
    "StopTask",
    "TaskChanged",
    "TaskDropped",
    "TaskFailed",
    "TaskKind",
    "TaskState",
    "TaskSucceeded",
]


class TaskState(StrEnum):
    """
    State of a task instance; all but PENDING and RUNNING are ends.

    SKIPPED: a condition was false here or upstream. OMITTED: an upstream failed (the API shows it as SKIPPED).
    CACHED: outputs were taken from an earlier execution (the API shows it as SKIPPED).
    """

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    CACHED = "CACHED"
    SKIPPED = "SKIPPED"
    OMITTED = "OMITTED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


class RunState(StrEnum):
    """State of the run; a terminated run ends CANCELED here, whatever the server shows."""

    RUNNING = "RUNNING"
    CANCELING = "CANCELING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


class TaskKind(StrEnum):
    ROOT = "root"
    DAG = "dag"
    LOOP = "loop"
    CONTAINER = "container"
    IMPORTER = "importer"


# ---- events: what happened. JSON with msgspec: ``msgspec.json.decode(line, type=Event)``.


class TaskSucceeded(Struct, frozen=True, tag=True):
    """
    A container task or importer ended well.

    Args:
        attempt: of the action that is answered; an event for another attempt changes nothing.
        outputs: by output name; parameters already parsed to their declared type.
        cached: the outputs are those of an earlier execution.
    """

    path: str
    attempt: int
    outputs: Values
    cached: bool = False


class TaskFailed(Struct, frozen=True, tag=True):
    """
    A container task or importer ended badly, or was stopped.

    Args:
        retryable: False where the task's retry policy must not apply, such as for an image nobody can resolve.
        transient: True where the node kept the task from its end: it is tried again twice, whatever its retry policy.
    """

    path: str
    attempt: int
    error: TaskError
    retryable: bool = True
    transient: bool = False


class CancelRequested(Struct, frozen=True, tag=True):
    """
    The run is to end before it is through. Exit tasks still run; a second request stops those too.

    Args:
        reason: error of the run; empty where a user has asked for it.
    """

    reason: str = ""


class RetryRequested(Struct, frozen=True, tag=True):
    """Someone retries a run that ended FAILED or CANCELED: what succeeded, was cached or skipped is kept."""


Event = TaskSucceeded | TaskFailed | CancelRequested | RetryRequested


# ---- actions: what the driver does now, in this order.


class StartTask(Struct, frozen=True):
    """
    Start a container task, or take its outputs from the cache; answer with TaskSucceeded or TaskFailed.

    Args:
        attempt: never used before for this path; goes into the Pod's name and the task's folder.
        retry_index: ``KFP_RETRY_INDEX``: 0 for the first try.
        delay_s: pause before the start (back-off of a retry).
        uuid: execution id of the task, the same in all attempts: UUID5 of run and path.
        inputs: resolved inputs, without the defaults of omitted optional parameters.
        kubernetes: KubernetesExecutorConfig of the executor with every reference to a parameter replaced by its value.
        enable_cache: whether the cache may answer; ``cache_key`` is the user's own key or empty.
    """

    path: str
    attempt: int
    retry_index: int
    delay_s: float
    uuid: str
    task_name: str
    component: str
    executor_label: str
    inputs: Values
    kubernetes: dict[str, Any]
    enable_cache: bool
    cache_key: str


class ImportArtifact(Struct, frozen=True):
    """
    Make an artifact known; answer with TaskSucceeded whose output ``artifact`` is that artifact, or TaskFailed.

    Args:
        reimport: False: an artifact of the same URI, type and metadata is used again.
    """

    path: str
    attempt: int
    uuid: str
    task_name: str
    component: str
    uri: str
    type: ArtifactType
    metadata: dict[str, Any]
    reimport: bool
    download_to_workspace: bool


class StopTask(Struct, frozen=True):
    """Stop a running task; its end is still answered, with TaskFailed or, where it was faster, TaskSucceeded."""

    path: str
    attempt: int


class TaskChanged(Struct, frozen=True):
    """Write the row of ``plan.tasks[path]``: its state, inputs or outputs are new. Comes before the task's action."""

    path: str
    state: TaskState


class TaskDropped(Struct, frozen=True):
    """Delete the row of a path: a retry of the run starts the DAG around it anew."""

    path: str


class FinishRun(Struct, frozen=True):
    """The run is over: SUCCEEDED with the root's outputs, FAILED with the first error, or CANCELED."""

    state: RunState
    outputs: Values
    error: TaskError | None


Action = StartTask | ImportArtifact | StopTask | TaskChanged | TaskDropped | FinishRun
