"""
The v2beta1 messages and their proto JSON.

Output has snake_case names, no default values, int64 as strings and times as RFC 3339; input may also be camelCase.
Inside, a message is a dict with snake_case keys and a time is an integer: microseconds since 1970 (UTC).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shallop.errors import BadRequestError

__all__ = [
    "ARTIFACT",
    "ARTIFACT_LIST",
    "ARTIFACT_TASK",
    "ARTIFACT_TASK_LIST",
    "CREATE_PIPELINE_AND_VERSION",
    "EXPERIMENT",
    "EXPERIMENT_LIST",
    "FILTER",
    "NEW_ARTIFACT",
    "OPERATION",
    "PIPELINE",
    "PIPELINE_LIST",
    "PIPELINE_VERSION",
    "PIPELINE_VERSION_LIST",
    "RECURRING_RUN",
    "RECURRING_RUN_LIST",
    "RERUN",
    "RUN",
    "RUNTIME_STATE",
    "RUN_LIST",
    "STORAGE_STATE",
    "TASK",
    "VISUALIZATION",
    "Message",
    "format_micros",
    "from_micros",
    "parse_body",
    "parse_message",
    "parse_micros",
    "render",
    "to_micros",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def parse_micros(text: str) -> int:
    """Read an RFC 3339 time; raises ValueError."""
    time = datetime.fromisoformat(text)
    return to_micros(time if time.tzinfo else time.replace(tzinfo=UTC))


def format_micros(micros: int) -> str:
    """Write a time with as few decimals as it needs: 0, 3 or 6, as proto JSON does."""
    seconds, rest = divmod(micros, 1_000_000)
    if not rest:
        return f"{_format_seconds(seconds)}Z"
    return (
        f"{_format_seconds(seconds)}.{rest // 1000:03}Z"
        if rest % 1000 == 0
        else f"{_format_seconds(seconds)}.{rest:06}Z"
    )


@functools.lru_cache(4096)
def _format_seconds(seconds: int) -> str:
    # Tasks of one run share seconds: a run of 10,000 has 50,000 times.
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass(frozen=True)
class Enum:
    """Names by number; a name or a number is accepted, the name is sent."""

    names: Mapping[int, str]

    def parse(self, value: Any, path: str) -> str:
        if isinstance(value, str) and value in self.names.values():
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value in self.names:
            return self.names[value]
        raise BadRequestError(f"{path}: {value!r} is not one of {', '.join(self.names.values())}")


@dataclass(frozen=True)
class Repeated:
    item: Any


@dataclass(frozen=True)
class MapOf:
    """A map with string keys."""

    item: Any


@dataclass(frozen=True, eq=False)
class Message:
    """
    Args:
        fields: snake_case name -> type: a scalar's name, Enum, Repeated, MapOf or Message.
        oneofs: groups of fields of which at most one may be set.
        shown: times that are sent even when they are missing, as 1970.
        camel: fields that are sent in camelCase, an exception that clients rely on.
    """

    name: str
    fields: Mapping[str, Any]
    oneofs: tuple[tuple[str, ...], ...] = ()
    shown: tuple[str, ...] = ()
    camel: tuple[str, ...] = ()

    def aliases(self) -> dict[str, str]:
        return {_camel(name): name for name in self.fields}


def _camel(name: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), name)


STORAGE_STATE = Enum({0: "STORAGE_STATE_UNSPECIFIED", 1: "AVAILABLE", 2: "ARCHIVED"})
RUNTIME_STATE = Enum(
    {
        0: "RUNTIME_STATE_UNSPECIFIED",
        1: "PENDING",
        2: "RUNNING",
        3: "SUCCEEDED",
        4: "SKIPPED",
        5: "FAILED",
        6: "CANCELING",
        7: "CANCELED",
        8: "PAUSED",
    }
)
OPERATION = Enum(
    {
        0: "OPERATION_UNSPECIFIED",
        1: "EQUALS",
        2: "NOT_EQUALS",
        3: "GREATER_THAN",
        5: "GREATER_THAN_EQUALS",
        6: "LESS_THAN",
        7: "LESS_THAN_EQUALS",
        8: "IN",
        9: "IS_SUBSTRING",
    }
)
STATUS = Message("Status", {"code": "int32", "message": "string", "details": Repeated("value")})

EXPERIMENT = Message(
    "Experiment",
    {
        "experiment_id": "string",
        "display_name": "string",
        "description": "string",
        "created_at": "time",
        "namespace": "string",
        "storage_state": STORAGE_STATE,
        "last_run_created_at": "time",
    },
    shown=("created_at", "last_run_created_at"),
)
PIPELINE = Message(
    "Pipeline",
    {
        "pipeline_id": "string",
        "name": "string",
        "display_name": "string",
        "description": "string",
        "created_at": "time",
        "namespace": "string",
        "tags": MapOf("string"),
        "error": STATUS,
    },
    shown=("created_at",),
)
PIPELINE_VERSION = Message(
    "PipelineVersion",
    {
        "pipeline_id": "string",
        "pipeline_version_id": "string",
        "name": "string",
        "display_name": "string",
        "description": "string",
        "created_at": "time",
        "package_url": Message("Url", {"pipeline_url": "string"}),
        "code_source_url": "string",
        "pipeline_spec": "struct",
        "tags": MapOf("string"),
        "error": STATUS,
    },
    shown=("created_at",),
)
CREATE_PIPELINE_AND_VERSION = Message(
    "CreatePipelineAndVersionRequest", {"pipeline": PIPELINE, "pipeline_version": PIPELINE_VERSION}
)
VERSION_REFERENCE = Message("PipelineVersionReference", {"pipeline_id": "string", "pipeline_version_id": "string"})
RUNTIME_CONFIG = Message("RuntimeConfig", {"parameters": MapOf("value"), "pipeline_root": "string"})
RUNTIME_STATUS = Message("RuntimeStatus", {"update_time": "time", "state": RUNTIME_STATE, "error": STATUS})
TASK = Message(
    "PipelineTaskDetail",
    {
        "run_id": "string",
        "task_id": "string",
        "display_name": "string",
        "create_time": "time",
        "start_time": "time",
        "end_time": "time",
        "executor_detail": Message(
            "PipelineTaskExecutorDetail",
            {
                "main_job": "string",
                "pre_caching_check_job": "string",
                "failed_main_jobs": Repeated("string"),
                "failed_pre_caching_check_jobs": Repeated("string"),
            },
        ),
        "state": RUNTIME_STATE,
        "execution_id": "int64",
        "error": STATUS,
        "inputs": MapOf(Message("ArtifactList", {"artifact_ids": Repeated("int64")})),
        "outputs": MapOf(Message("ArtifactList", {"artifact_ids": Repeated("int64")})),
        "parent_task_id": "string",
        "state_history": Repeated(RUNTIME_STATUS),
        "pod_name": "string",
        "child_tasks": Repeated(Message("ChildTask", {"task_id": "string", "pod_name": "string"})),
    },
)
RUN = Message(
    "Run",
    {
        "experiment_id": "string",
        "run_id": "string",
        "display_name": "string",
        "storage_state": STORAGE_STATE,
        "description": "string",
        "pipeline_version_id": "string",
        "pipeline_spec": "struct",
        "pipeline_version_reference": VERSION_REFERENCE,
        "runtime_config": RUNTIME_CONFIG,
        "service_account": "string",
        "created_at": "time",
        "scheduled_at": "time",
        "finished_at": "time",
        "state": RUNTIME_STATE,
        "error": STATUS,
        "run_details": Message(
            "RunDetails",
            {"pipeline_context_id": "int64", "pipeline_run_context_id": "int64", "task_details": Repeated(TASK)},
        ),
        "recurring_run_id": "string",
        "state_history": Repeated(RUNTIME_STATUS),
        "plugins_input": MapOf("struct"),
        "plugins_output": MapOf("struct"),
    },
    oneofs=(("pipeline_version_id", "pipeline_spec", "pipeline_version_reference"),),
    shown=("created_at", "scheduled_at", "finished_at"),
)
RECURRING_RUN = Message(
    "RecurringRun",
    {
        "recurring_run_id": "string",
        "display_name": "string",
        "description": "string",
        "pipeline_version_id": "string",
        "pipeline_spec": "struct",
        "pipeline_version_reference": VERSION_REFERENCE,
        "runtime_config": RUNTIME_CONFIG,
        "service_account": "string",
        "max_concurrency": "int64",
        "trigger": Message(
            "Trigger",
            {
                "cron_schedule": Message("CronSchedule", {"start_time": "time", "end_time": "time", "cron": "string"}),
                "periodic_schedule": Message(
                    "PeriodicSchedule", {"start_time": "time", "end_time": "time", "interval_second": "int64"}
                ),
            },
            oneofs=(("cron_schedule", "periodic_schedule"),),
        ),
        "mode": Enum({0: "MODE_UNSPECIFIED", 1: "ENABLE", 2: "DISABLE"}),
        "created_at": "time",
        "updated_at": "time",
        "status": Enum({0: "STATUS_UNSPECIFIED", 1: "ENABLED", 2: "DISABLED"}),
        "error": STATUS,
        "no_catchup": "bool",
        "namespace": "string",
        "experiment_id": "string",
        "plugins_input": MapOf("struct"),
    },
    oneofs=(("pipeline_version_id", "pipeline_spec", "pipeline_version_reference"),),
    shown=("created_at", "updated_at"),
)
VISUALIZATION = Message(
    "Visualization",
    {
        "type": Enum({0: "ROC_CURVE", 1: "TFDV", 2: "TFMA", 3: "TABLE", 4: "CUSTOM"}),
        "source": "string",
        "arguments": "string",
        "html": "string",
        "error": "string",
    },
)
_INTEGERS = Message("IntValues", {"values": Repeated("int64")})
_PREDICATE = Message(
    "Predicate",
    {
        "operation": OPERATION,
        "key": "string",
        "int_value": "int32",
        "long_value": "int64",
        "string_value": "string",
        "timestamp_value": "time",
        "int_values": _INTEGERS,
        "long_values": _INTEGERS,
        "string_values": Message("StringValues", {"values": Repeated("string")}),
    },
    oneofs=(
        (
            "int_value",
            "long_value",
            "string_value",
            "timestamp_value",
            "int_values",
            "long_values",
            "string_values",
        ),
    ),
)
FILTER = Message("Filter", {"predicates": Repeated(_PREDICATE)})

# Repeating a run and comparing runs are ours; no release of KFP has them.
RERUN = Message(
    "RerunRequest",
    {
        "display_name": "string",
        "from_task": "string",
        "pipeline_spec": "struct",
        "parameters": MapOf("value"),
    },
)
# Artifacts have no message in any release of KFP; the names follow its open proposal.
ARTIFACT = Message(
    "Artifact",
    {
        "artifact_id": "int64",
        "name": "string",
        "type": "string",
        "uri": "string",
        "metadata": "struct",
        "digest": "string",
        "size_bytes": "int64",
        "created_at": "time",
        "run_id": "string",
        "task_id": "string",
        "namespace": "string",
    },
    shown=("created_at",),
)
NEW_ARTIFACT = Message(
    "CreateArtifactRequest",
    {
        "artifact": ARTIFACT,
        "run_id": "string",
        "task_id": "string",
        "producer_key": "string",
    },
)
ARTIFACT_TASK = Message(
    "ArtifactTask",
    {
        "id": "int64",
        "artifact_id": "int64",
        "run_id": "string",
        "task_id": "string",
        "type": "string",
        "key": "string",
    },
)


def _list_of(message: Message, name: str, camel: tuple[str, ...] = ()) -> Message:
    fields = {name: Repeated(message), "next_page_token": "string", "total_size": "int32"}
    return Message(f"List{message.name}sResponse", fields, camel=camel)


EXPERIMENT_LIST = _list_of(EXPERIMENT, "experiments")
PIPELINE_LIST = _list_of(PIPELINE, "pipelines")
PIPELINE_VERSION_LIST = _list_of(PIPELINE_VERSION, "pipeline_versions")
RUN_LIST = _list_of(RUN, "runs")
ARTIFACT_LIST = _list_of(ARTIFACT, "artifacts")
ARTIFACT_TASK_LIST = _list_of(ARTIFACT_TASK, "artifact_tasks")
RECURRING_RUN_LIST = _list_of(RECURRING_RUN, "recurring_runs", camel=("recurring_runs",))


def parse_body(message: Message, body: bytes) -> dict[str, Any]:
    """
    Read a request body.

    Raises:
        BadRequestError: no JSON object, an unknown field or a wrong type; names the field.
    """
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"request body: not JSON: {error}") from error
    return parse_message(message, value, "")


def parse_message(message: Message, value: Any, path: str) -> dict[str, Any]:
    """Read a message; null fields count as unset."""
    if not isinstance(value, dict):
        raise BadRequestError(f"{path or 'request body'}: {_article(message.name)} must be a JSON object")
    aliases = message.aliases()
    result: dict[str, Any] = {}
    for given, item in value.items():
        name = given if given in message.fields else aliases.get(given)
        field = f"{path}.{given}" if path else given
        if name is None:
            raise BadRequestError(f"{field}: unknown field of {message.name}; it has {', '.join(message.fields)}")
        if item is not None:
            result[name] = _parse(message.fields[name], item, field)
    for group in message.oneofs:
        given_names = [name for name in group if name in result]
        if len(given_names) > 1:
            raise BadRequestError(f"{path or message.name}: set only one of {', '.join(given_names)}")
    return result


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


def _parse(kind: Any, value: Any, path: str) -> Any:
    if isinstance(kind, Message):
        return parse_message(kind, value, path)
    if isinstance(kind, Enum):
        return kind.parse(value, path)
    if isinstance(kind, Repeated):
        if not isinstance(value, list):
            raise BadRequestError(f"{path}: must be a list")
        return [_parse(kind.item, item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(kind, MapOf):
        if not isinstance(value, dict):
            raise BadRequestError(f"{path}: must be a JSON object")
        # A null value of a map means null only where the value type has one.
        return {key: _parse(kind.item, item, f"{path}.{key}") for key, item in value.items()}
    return _parse_scalar(kind, value, path)


def _parse_scalar(kind: str, value: Any, path: str) -> Any:
    if kind == "value":
        return value
    if kind == "struct" and isinstance(value, dict):
        return value
    if kind == "string" and isinstance(value, str):
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind in ("int32", "int64"):
        return _parse_integer(kind, value, path)
    if kind == "time" and isinstance(value, str):
        try:
            return parse_micros(value)
        except ValueError:
            raise BadRequestError(f"{path}: {value!r} is no RFC 3339 time such as 2026-01-31T08:00:00Z") from None
    expected = {"struct": "a JSON object", "time": "an RFC 3339 time", "bool": "true or false"}.get(kind, "a string")
    raise BadRequestError(f"{path}: must be {expected}, not {json.dumps(value)[:80]}")


def _parse_integer(kind: str, value: Any, path: str) -> int:
    number = value
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value):
        number = int(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    bound = 2**31 if kind == "int32" else 2**63
    if isinstance(number, bool) or not isinstance(number, int) or not -bound <= number < bound:
        raise BadRequestError(f"{path}: must be a whole number of {kind[3:]} bits, not {json.dumps(value)[:80]}")
    return number


def render(message: Message, value: Mapping[str, Any]) -> dict[str, Any]:
    """Write a message; keys that are not fields of it are left out."""
    result: dict[str, Any] = {}
    for name, shown, wire, write in _writers(message):
        item = value.get(name)
        if not item:  # None, "", 0, [], {}: what proto JSON leaves out
            if not shown:
                continue
            item = 0
        result[wire] = item if write is None else write(item)
    return result


_Write = Callable[[Any], Any]


@functools.cache
def _writers(message: Message) -> tuple[tuple[str, bool, str, _Write | None], ...]:
    """Prepare the fields of a message: name, whether always sent, name on the wire, what turns a value into JSON."""
    return tuple(
        (name, name in message.shown, _camel(name) if name in message.camel else name, _writer(kind))
        for name, kind in message.fields.items()
    )


def _writer(kind: Any) -> _Write | None:
    """Return what writes a value of a type; None where the value is JSON already."""
    if isinstance(kind, Message):
        return functools.partial(render, kind)
    if isinstance(kind, Repeated | MapOf):
        item = _writer(kind.item)
        if item is None:
            return None
        if isinstance(kind, Repeated):
            return lambda values: [item(value) for value in values]
        return lambda values: {key: item(value) for key, value in values.items()}
    scalars: dict[str, _Write] = {"int64": str, "time": format_micros}
    return scalars.get(kind) if isinstance(kind, str) else None
