"""What one step of a run writes: noted while the planner decides, worked out later and stored in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec

import msgspec
import sqlalchemy as sa

from shallop.pipelines import tables
from shallop.pipelines.cachekey import cache_material, fingerprint
from shallop.pipelines.messages import parse_micros
from shallop.pipelines.plan import Event, Plan, StartTask, TaskInstance, TaskState
from shallop.pipelines.values import Artifact, TaskError, Values

__all__ = ["Journal"]

Row = dict[str, Any]
P = ParamSpec("P")
_ENDED = frozenset(TaskState) - {TaskState.PENDING, TaskState.RUNNING}


def to_json(value: Any) -> Any:
    """Turn Structs into what JSON columns take."""
    return msgspec.to_builtins(value, str_keys=True)


# So many notes are worked out although no step is taken: how many rows they change is not known before.
_MANY_NOTES = 200


def _noted(method: Callable[Concatenate[Journal, P], None]) -> Callable[Concatenate[Journal, P], None]:
    """Keep a call, and when it was made, until what was noted is needed: a Pod that is to be started goes first."""

    def note(journal: Journal, /, *args: P.args, **kwargs: P.kwargs) -> None:
        journal.note(method, args, kwargs)

    return note


class Journal:
    """
    Collects changes of one run and writes them as steps.

    What is noted may refer to tasks that the plan has dropped since.

    Args:
        now: clock in microseconds.
        next_execution: gives the numbers that order tasks.
        known: rows of tasks that are stored already.
        seq: how many events are stored already.
        namespace: of the run's rows.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        now: Callable[[], int],
        next_execution: Callable[[], int],
        known: Iterable[Row] = (),
        seq: int = 0,
        namespace: str = "",
    ) -> None:
        self._plan = plan
        self._run_id = plan.run.run_id
        self._now = now
        self._next_execution = next_execution
        self._rows = {row["path"]: row for row in known}
        self._stored = set(self._rows)
        self._inputs: dict[str, Values] = {}  # by path, as they were written last
        self._seq = seq
        self._namespace = namespace
        self.is_first = True  # nothing was taken yet
        self._notes: list[tuple[int, Callable[..., None], tuple[Any, ...], Row]] = []
        self._at = 0  # when what is worked out was noted
        self._clear()

    def _clear(self) -> None:
        self._events: list[tuple[int, Any]] = []
        self._changed: dict[str, None] = {}
        self._dropped: list[str] = []
        self._artifacts: list[Row] = []
        self._links: list[Row] = []
        self._cache: list[Row] = []
        self._finish: tuple[str, Any, Any] | None = None

    @property
    def size(self) -> int:
        """How many changes wait to be written, or a little more."""
        if len(self._notes) >= _MANY_NOTES:
            self.settle()
        return len(self._events) + len(self._changed) + len(self._notes)

    def note(self, method: Callable[..., None], args: tuple[Any, ...], kwargs: Row) -> None:
        self._notes.append((self._now(), method, args, kwargs))

    def settle(self) -> None:
        """Work out what was noted; before a task fails or the run is retried, since its rows tell of each attempt."""
        notes, self._notes = self._notes, []
        for self._at, method, args, kwargs in notes:
            method(self, *args, **kwargs)

    def changed(self) -> list[str]:
        """Return the ids of the tasks with changes that wait to be written."""
        self.settle()
        return [self._rows[path]["id"] for path in self._changed]

    @_noted
    def record(self, event: Event) -> None:
        self._seq += 1
        self._events.append((self._seq, to_json(event)))

    def change(self, path: str, state: TaskState) -> None:
        """Note a new state of a task; the rest of its row is taken from the plan when the step is written."""
        instance = self._plan.tasks[path]
        self._change(instance, state, instance.error)

    @_noted
    def _change(self, instance: TaskInstance, state: TaskState, error: TaskError | None) -> None:
        row = self._rows.get(instance.path)
        if row is None:
            row = self._rows[instance.path] = self._new_row(instance)
        now, history = self._at, row["state_history"]
        if state is TaskState.RUNNING and error and history and history[-1]["state"] == state:
            # Another attempt: what ended the last one would be forgotten otherwise.
            failed: Row = {"update_time": now, "state": "FAILED", "error": to_json(error)}
            row["state_history"] = history = [*history, failed]
        if not history or history[-1]["state"] != state:
            row["state_history"] = [*history, {"update_time": now, "state": str(state)}]
        row["state"] = str(state)
        if state is TaskState.RUNNING:
            row["started_at"], row["ended_at"] = row["started_at"] or now, 0
        row["ended_at"] = (row["ended_at"] or now) if state in _ENDED else 0
        self._changed[instance.path] = None

    @_noted
    def drop(self, path: str) -> None:
        """Forget a task that is planned anew."""
        row = self._rows.pop(path, None)
        if row is not None:
            self._changed.pop(path, None)
            self._inputs.pop(path, None)
            self._dropped.append(row["id"])
            self._stored.discard(path)

    @_noted
    def add_pod(self, path: str, name: str) -> None:
        """Note a Pod of a task; the last one is the current attempt."""
        row = self._rows[path]
        if name not in (pod["name"] for pod in row["pods"]):
            row["pods"] = [*row["pods"], {"name": name}]
            self._changed[path] = None

    @_noted
    def set_times(self, path: str, started_at: str, ended_at: str) -> None:
        """Note when the component itself began and ended, in RFC 3339."""
        self._rows[path] |= {"started_at": parse_micros(started_at), "ended_at": parse_micros(ended_at)}
        self._changed[path] = None

    @_noted
    def set_usage(self, path: str, usage: Row) -> None:
        """Note what the component took of the machine."""
        self._rows[path]["usage"] = usage
        self._changed[path] = None

    @_noted
    def set_note(self, path: str, note: str) -> None:
        self._rows[path]["note"] = note
        self._changed[path] = None

    @_noted
    def add_artifact(self, path: str, artifact: Artifact, size_bytes: int) -> None:
        """Store an artifact that a task has made; its id is set."""
        self._artifacts.append(
            {
                "id": int(artifact.id),
                "name": artifact.name,
                "type": artifact.type.schema_title or "system.Artifact",
                "uri": artifact.uri,
                "metadata": artifact.metadata,
                "digest": artifact.digest,
                "size_bytes": size_bytes,
                "created_at": self._at,
                "run_id": self._run_id,
                "task_id": self._rows[path]["id"],
                "namespace": self._namespace,
            }
        )

    @_noted
    def link(self, path: str, type_: str, values: Values) -> None:
        """Tie artifacts to a task as its INPUT or OUTPUT."""
        id_ = self._rows[path]["id"]
        for key, items in values.artifacts.items():
            for artifact in items:
                if artifact.id:
                    row: Row = {"artifact_id": int(artifact.id), "run_id": self._run_id, "task_id": id_}
                    self._links.append(row | {"type": type_, "key": key})

    @_noted
    def remember(self, action: StartTask, environment: str, outputs: Values) -> None:
        """Keep the outputs of a task, whose Pod ran in ``environment``, for the cache."""
        material = cache_material(self._plan.pipeline, action, environment)
        entry: Row = {"pipeline_name": self._plan.pipeline.name, "key": fingerprint(material), "run_id": self._run_id}
        entry["namespace"] = self._namespace
        entry |= {"task_id": self._rows[action.path]["id"], "outputs": to_json(outputs), "created_at": self._at}
        self._cache.append(entry | {"component": action.component, "material": material})

    def finish(self, state: str, outputs: Values, error: TaskError | None) -> None:
        """End the run; SUCCEEDED, FAILED or CANCELED as clients see it."""
        self._finish = (state, to_json(outputs), to_json(error) if error else None)

    def take(self) -> Callable[[sa.Connection], None]:
        """Return a function that writes all that was collected, and start afresh."""
        self.settle()
        same_inputs = {path for path in self._changed if self._fill(self._rows[path], self._plan.tasks[path])}
        new = [dict(self._rows[path]) for path in self._changed if path not in self._stored]
        changed = {
            self._rows[path]["id"]: {
                name: value
                for name, value in self._rows[path].items()
                if name not in _FIXED and not (name == "inputs" and path in same_inputs)
            }
            for path in self._changed
            if path in self._stored
        }
        self._stored.update(self._changed)
        step = tables.Step(
            self._run_id, self._events, self._dropped, new, changed, self._artifacts, self._links, self._cache
        )
        finish, now, run_id = self._finish, self._now(), self._run_id
        is_first, self.is_first = self.is_first, False
        self._clear()

        def write(connection: sa.Connection) -> None:
            tables.write_step(connection, step)
            if finish:
                state, outputs, error = finish
                tables.update_run(connection, run_id, {"outputs": outputs})
                tables.set_run_state(connection, run_id, state, error, now)
                if state == "SUCCEEDED":
                    # Such a run is never resumed or retried: its log has done its work.
                    tables.delete_events(connection, run_id)
            elif is_first:
                tables.start_run(connection, run_id, now)

        return write

    def _new_row(self, instance: TaskInstance) -> Row:
        return {
            "id": self._plan.id_of(instance),
            "execution": self._next_execution(),
            "run_id": self._run_id,
            "path": instance.path,
            "parent_id": self._rows[instance.parent]["id"] if instance.parent else "",
            "name": instance.name,
            "display_name": instance.display_name,
            "kind": str(instance.kind),
            "state": "",
            "created_at": self._at,
            "started_at": 0,
            "ended_at": 0,
            "attempt": 0,
            "pods": [],
            "inputs": {},
            "outputs": {},
            "error": None,
            "note": "",
            "state_history": [],
            "usage": None,
        }

    def _fill(self, row: Row, instance: TaskInstance) -> bool:
        """Bring a row up to date; say whether its inputs, which may be large, are those of the last time."""
        row["attempt"], row["outputs"] = instance.attempt, to_json(instance.outputs)
        row["error"] = to_json(instance.error) if instance.error else None
        row["note"] = instance.reason or row["note"]
        if self._inputs.get(instance.path) is instance.inputs:
            return True
        row["inputs"] = to_json(instance.inputs)
        self._inputs[instance.path] = instance.inputs
        return False


_FIXED = ("id", "execution", "run_id", "path", "parent_id", "name", "display_name", "kind", "created_at")
