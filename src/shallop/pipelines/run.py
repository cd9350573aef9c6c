"""
Drives one run: feeds the planner, writes what it decided in one transaction, and acts.

Pods' names are functions of (run, task, attempt) and a task leaves its result in its folder before it ends, so after a
``kill -9`` at any point the same decisions are taken again, finished tasks are not repeated and running ones adopted.
For that reason Pods may be created before the decision is written; all else waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from shallop.errors import AlreadyExistsError, ApiError, InvalidError, ShallopError
from shallop.kube.objects import Gvk, Key, Object
from shallop.pipelines import tables
from shallop.pipelines.caching import OFF, Answer, look_up
from shallop.pipelines.claims import create_workspace, delete_workspace, run_claim_task
from shallop.pipelines.inputs import Artifact, RunInfo, TaskError, Values
from shallop.pipelines.ir import Pipeline, parse_pipeline
from shallop.pipelines.messages import format_micros
from shallop.pipelines.placeholders import WORKSPACE_PATH, local_path
from shallop.pipelines.places import RunPlaces
from shallop.pipelines.plan import (
    Action,
    CancelRequested,
    Event,
    FinishRun,
    ImportArtifact,
    Plan,
    RetryRequested,
    RunState,
    StartTask,
    StopTask,
    TaskChanged,
    TaskDropped,
    TaskFailed,
    TaskState,
    TaskSucceeded,
    replay,
)
from shallop.pipelines.podends import (
    NAMESPACE,
    TaskResult,
    is_over,
    is_stuck,
    is_transient,
    pod_failure,
    pod_namespace,
    read_result,
)
from shallop.pipelines.providers import default_root
from shallop.pipelines.render import built_in_image, pod_name, render_pod, task_folder, workspace_claim_name
from shallop.pipelines.reuse import Earlier, load_earlier, take_over
from shallop.pipelines.staging import Staging
from shallop.pipelines.step import Journal

if TYPE_CHECKING:
    from shallop.pipelines.driver import Driver

__all__ = ["POD", "RunDriver"]

log = logging.getLogger(__name__)

POD = Gvk("v1", "Pod")
# Pods of one run that exist at once: more only lengthen lists, the node could not run them anyway.
_PODS_PER_RUN = 200
# A step of cached tasks is written in portions of this many changes, so that watchers see it grow.
_STEP_CHANGES = 200
_AT_A_TIME = 50
# How long a Pod may wait for a Secret, ConfigMap or claim before its task fails.
_STUCK_S = 10.0
# What was decided is written so much later: not beside the start of the Pods that it asks for, which both would slow
# down, but while they run. Decisions of this time share a transaction: of a fast task only its end is written.
_WRITE_AFTER_S = 0.05
_FULL_BYTES = 1 << 20


@dataclass(frozen=True)
class PodChange:
    """A Pod that runs a task has ended, waits for something, or (``pod`` is None) is gone."""

    name: str
    pod: Object | None
    was_stuck: bool = False  # it waited long enough


@dataclass(frozen=True)
class Due:
    """The pause before a start is over."""

    action: StartTask


@dataclass(frozen=True)
class DeadlineReached:
    """The run has taken as long as its pipeline allows."""


@dataclass(frozen=True)
class Fetched:
    """The inputs of a task are on this machine, but for what ``note`` says; or, with an error, they are not."""

    action: StartTask
    inputs: Values
    note: str = ""
    error: str = ""


@dataclass(frozen=True)
class Stored:
    """The outputs of a task are in their object store; or, with an error, they are not."""

    action: StartTask
    result: TaskResult
    error: str = ""


@dataclass(frozen=True)
class PlaceGranted:
    """Another Pod of the run may start."""


@dataclass(frozen=True)
class WriteDue:
    """What was decided lately has waited long enough."""


Item = PodChange | Due | DeadlineReached | Fetched | Stored | PlaceGranted | WriteDue | None


class RunDriver:
    """Drives one run from where its rows say it is to its end."""

    def __init__(self, driver: Driver, run_id: str) -> None:
        self.run_id = run_id
        self.namespace = NAMESPACE  # of its Pods
        self.inbox: asyncio.Queue[Item] = asyncio.Queue()
        self._driver = driver
        self._database = driver.database
        self._plan: Plan
        self._journal: Journal
        self._pipeline: Pipeline
        self._info: RunInfo
        self._service_account = ""
        self._owner = ""  # the namespace of its rows
        self._earlier: Earlier | None = None
        self._running: dict[str, StartTask] = {}  # by the name of the Pod
        self._waiting: deque[tuple[StartTask, StartTask]] = deque()  # for room: see _start_pod
        self._places = RunPlaces(driver.places, lambda: self.inbox.put_nowait(PlaceGranted()))
        self._delayed: dict[str, asyncio.TimerHandle] = {}  # by path, or by name of a stuck Pod
        self._stuck: set[str] = set()  # names of Pods that wait for something
        self._transfers: dict[str, asyncio.Task[None]] = {}  # by path: inputs or outputs on their way
        self._staging: Staging
        self._unwritten: list[tuple[Callable[[sa.Connection], None], list[str]]] = []  # and the ids of what changed
        self._writing: asyncio.Task[None] | None = None
        self._is_due = False  # the next whole step is to be written, with all before it
        self._write_timer: asyncio.TimerHandle | None = None

    async def drive(self, row: dict[str, Any]) -> None:
        """Drive the run until it is over or deleted."""
        self._running, self._waiting, self._delayed, self._stuck = {}, deque(), {}, set()
        self._transfers, self._unwritten, self._writing = {}, [], None
        self._is_due, self._write_timer = False, None
        self.namespace, self._owner = pod_namespace(row), row["namespace"]
        current: tables.Row | None = row
        try:
            actions, events, adopted = await self._load(row)
            self._set_deadline(row)
            await create_workspace(self._driver.client, self.namespace, self._pipeline, self._info)
            await self._advance(actions, events, adopted=adopted)
            while not self._plan.is_finished:
                items = [await self.inbox.get()]
                while not self.inbox.empty():
                    items.append(self.inbox.get_nowait())
                if self._writing is not None and self._writing.done():
                    await self._writing
                if None in items and (current := await self._reload()) is None:
                    await self.stop_pods()
                    return
                await self._advance([], await self._events_of(items, current))
            await delete_workspace(self._driver.client, self.namespace, self._pipeline, self._info)
            await self._staging.clear()
        finally:
            self._places.close()
            if self._write_timer is not None:
                self._write_timer.cancel()
            if self._writing is not None:
                self._writing.cancel()
            for transfer in self._transfers.values():
                transfer.cancel()
            for handle in self._delayed.values():
                handle.cancel()

    async def _load(self, row: dict[str, Any]) -> tuple[list[Action], list[Event], bool]:
        def read(connection: sa.Connection) -> tuple[Any, list[Any], list[dict[str, Any]]]:
            document = tables.get_specs(connection, [row["spec_digest"]])[row["spec_digest"]]
            return document, tables.get_events(connection, self.run_id), tables.get_tasks(connection, self.run_id)

        document, stored, known = await self._database.read(read)
        self._earlier = await self._database.read(lambda c: load_earlier(c, row["reuse"]))
        self._pipeline = await asyncio.to_thread(parse_pipeline, document)
        root = row["pipeline_root"] or await self._default_root(row)
        settings = self._driver.services.settings
        folder = settings.staging / self.run_id
        may_fetch = not settings.multi_user
        self._staging = Staging(self._driver.client, self.namespace, folder, root, settings.refused_path, web=may_fetch)
        self._info = self._run_info(row, root)
        self._service_account = row["service_account"]
        events: list[Event] = []
        if known:
            log.info("run %s: resumed after %d events", self.run_id, len(stored))
            past = [msgspec.convert(event, type=Event) for event in stored]
            self._plan = await asyncio.to_thread(replay, self._pipeline, self._info, row["parameters"], past)
            actions = [] if self._plan.is_finished else self._plan.outstanding()
            if self._plan.is_finished:
                events.append(RetryRequested())
        else:
            self._plan = Plan(self._pipeline, self._info, row["parameters"])
            actions = await asyncio.to_thread(self._plan.begin)
        self._journal = Journal(
            self._plan,
            now=self._driver.now,
            next_execution=self._driver.next_execution,
            known=known,
            seq=len(stored),
            namespace=self._owner,
        )
        if self._must_cancel(row):
            events.append(CancelRequested())
        return actions, events, bool(known)

    async def _default_root(self, row: dict[str, Any]) -> str:
        """Return the root of runs that name none; one from the cluster's settings is kept for this run."""
        configured = await default_root(self._driver.client, self.namespace) if row["state"] == "PENDING" else ""
        if configured:
            await self._driver.store(lambda c: tables.update_run(c, self.run_id, {"pipeline_root": configured}))
        return configured or str(self._driver.services.settings.artifacts / self._owner)

    def _run_info(self, row: dict[str, Any], root: str) -> RunInfo:
        created = format_micros(row["created_at"])
        return RunInfo(
            run_id=self.run_id,
            display_name=row["name"],
            resource_name=f"{self._pipeline.name}-{self.run_id[:5]}",
            pipeline_root=root,
            created_at=created,
            scheduled_at=format_micros(row["scheduled_at"]) if row["scheduled_at"] else created,
            local_root=self._staging.local_root,
        )

    async def _reload(self) -> tables.Row | None:
        return await self._database.read(lambda c: tables.get_run(c, self.run_id))

    async def stop_pods(self) -> None:
        """Stop what runs, for a run that was deleted or cannot go on."""
        for name in list(self._running):
            await self._driver.delete_pod(Key(self.namespace, name))

    def pod_changed(self, name: str, pod: Object | None) -> None:
        """Hear that a Pod of the run is new, different or (``pod`` is None) gone; the plan needs to know of few."""
        if pod is None or (pod.get("status") or {}).get("phase", "Pending") != "Pending":
            self._places.give_back(name)
        if name in self._running and (pod is None or is_over(pod) or is_stuck(pod)):
            self.inbox.put_nowait(PodChange(name, pod))

    def _set_deadline(self, row: dict[str, Any]) -> None:
        if limit_s := self._pipeline.config.active_deadline_seconds:
            # Counted from the start of the run, or of its latest retry.
            left_s = limit_s - (self._driver.now() - row["state_history"][-1]["update_time"]) / 1e6
            loop = asyncio.get_running_loop()
            self._delayed[""] = loop.call_later(max(0.0, left_s), self.inbox.put_nowait, DeadlineReached())

    def _must_cancel(self, row: dict[str, Any] | None) -> bool:
        return row is not None and row["state"] == "CANCELING" and self._plan.state is RunState.RUNNING

    async def _events_of(self, items: Iterable[Item], row: dict[str, Any] | None) -> list[Event]:
        events: list[Event] = []
        for item in items:
            if isinstance(item, PodChange):
                events += await self._pod_events(item)
            elif isinstance(item, Due):
                if self._delayed.pop(item.action.path, None):
                    events += await self._start(item.action)
            elif isinstance(item, PlaceGranted):
                events += await self._start_waiting()
            elif isinstance(item, WriteDue):
                self._is_due, self._write_timer = True, None
            elif isinstance(item, Fetched):
                events += await self._fetched(item)
            elif isinstance(item, Stored):
                self._transfers.pop(item.action.path, None)
                events.append(self._failure(item) if item.error else self._result_event(item.action, item.result))
            elif isinstance(item, DeadlineReached):
                limit_s = self._pipeline.config.active_deadline_seconds
                if self._plan.state is RunState.RUNNING:
                    events.append(CancelRequested(f"The run took longer than its {limit_s} s (active deadline)."))
            elif self._must_cancel(row):
                events.append(CancelRequested())
                row = None
        return events

    # ---- one step: decide, write, act

    async def _advance(self, actions: list[Action], events: Iterable[Event], *, adopted: bool = False) -> None:
        """
        Feed events to the planner until it waits; each portion is written, and acted on, before the next.

        Args:
            adopted: the actions were asked for before a restart and may have been done.
        """
        todo = deque(events)
        pending = actions
        acts: list[StartTask | StopTask] = []
        known: list[StartTask | StopTask] = []  # acts that were adopted
        while True:
            for count, action in enumerate(pending, 1):
                answer = await self._take(action, known if adopted else acts, adopted=adopted)
                if answer is not None:
                    todo.append(answer)
                await _let_others(count)
            adopted = False
            if self._journal.size >= _STEP_CHANGES or not todo:
                self._is_due = self._is_due or any(self._must_wait(act) for act in (*known, *acts))
                await self._take_step()
                todo.extend(await self._act_on(known, adopted=True))
                todo.extend(await self._act_on(acts, adopted=False))
                known.clear()
                acts.clear()
            if not todo:
                await self._take_step()
                if self._plan.is_finished:
                    await self._written()
                return
            event = todo.popleft()
            if not isinstance(event, TaskSucceeded):
                self._journal.settle()
            pending = self._plan.apply(event)
            if pending or isinstance(event, CancelRequested | RetryRequested):
                self._journal.record(event)

    async def _take_step(self) -> None:
        """Let what the journal has, which is whole steps, be written soon, and wait behind a slow disk."""
        size = self._journal.size
        if not size:
            return
        # That a run goes on, or is over, is to be seen at once.
        if not (self._is_due or self._journal.is_first or self._plan.is_finished or size >= _STEP_CHANGES):
            if self._write_timer is None:
                loop = asyncio.get_running_loop()
                self._write_timer = loop.call_later(_WRITE_AFTER_S, self.inbox.put_nowait, WriteDue())
            return
        self._is_due = False
        if self._unwritten:
            await self._written()
        changed = self._journal.changed()
        # Nobody but this coroutine changes the plan and the journal.
        step = self._journal.take() if size <= _STEP_CHANGES else await asyncio.to_thread(self._journal.take)
        self._unwritten.append((step, changed))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name=f"run {self.run_id}: writing")

    async def _write(self) -> None:
        try:
            while self._unwritten:
                steps, self._unwritten = self._unwritten, []
                await self._driver.store(lambda c, steps=steps: _write_all(c, steps))  # type: ignore[misc]
                self._driver.signals.notify(self.run_id, [id_ for _, changed in steps for id_ in changed])
        except Exception:
            # It must be heard of although nothing else happens.
            self.inbox.put_nowait(None)
            raise

    async def _written(self) -> None:
        """Wait until all that was taken is written."""
        if self._writing is not None:
            await self._writing

    def _must_wait(self, act: StartTask | StopTask) -> bool:
        """Say whether an action waits until its decision is written; the start of a Pod does not."""
        return not isinstance(act, StartTask) or bool(built_in_image(self._pipeline, act))

    async def _act_on(self, acts: Iterable[StartTask | StopTask], *, adopted: bool) -> list[Event]:
        events: list[Event] = []
        for count, act in enumerate(acts, 1):
            if self._must_wait(act):
                await self._written()
            events += await self._act(act, adopted=adopted)
            await _let_others(count)
        return events

    async def _take(self, action: Action, acts: list[StartTask | StopTask], *, adopted: bool) -> Event | None:
        """Note what an action writes; return the event where the answer is known at once."""
        match action:
            case TaskChanged():
                self._changed(action)
            case TaskDropped():
                self._journal.drop(action.path)
            case FinishRun():
                self._finish(action)
            case ImportArtifact():
                return await self._import(action)
            case StopTask():
                acts.append(action)
            case StartTask():
                # What was asked for before a restart may be running: the cache is not asked again.
                if not adopted:
                    self._journal.link(action.path, "INPUT", action.inputs)
                    cached = await self._find_cached(action)
                    if cached is not None:
                        return cached
                    if action.delay_s == 0 and not built_in_image(self._pipeline, action):
                        self._journal.add_pod(action.path, pod_name(self._info, action))
                acts.append(action)
        return None

    def _changed(self, action: TaskChanged) -> None:
        self._journal.change(action.path, action.state)
        if action.state in (TaskState.SUCCEEDED, TaskState.CACHED):
            instance = self._plan.tasks[action.path]
            self._journal.link(action.path, "OUTPUT", instance.outputs)

    def _finish(self, action: FinishRun) -> None:
        # Clients up to kfp 2.17 do not know CANCELED as an end and would wait for ever; upstream says FAILED too.
        state = "FAILED" if action.state is RunState.CANCELED else str(action.state)
        self._journal.finish(state, action.outputs, action.error)
        log.info("run %s: %s", self.run_id, action.state)

    async def _act(self, action: StartTask | StopTask, *, adopted: bool) -> list[Event]:
        if isinstance(action, StopTask):
            return await self._stop(action)
        if adopted:
            return await self._adopt(action)
        if action.delay_s > 0:
            loop = asyncio.get_running_loop()
            handle = loop.call_later(action.delay_s, self.inbox.put_nowait, Due(action))
            self._delayed[action.path] = handle
            return []
        return await self._start(action)

    # ---- Pods

    async def _start(self, action: StartTask) -> list[Event]:
        if image := built_in_image(self._pipeline, action):
            return [await run_claim_task(self._driver.client, self.namespace, self._info, action, image)]
        if self._staging.is_remote(action.inputs):
            self._transfers[action.path] = asyncio.create_task(self._fetch(action))
            return []
        return await self._queue(action, action)

    async def _queue(self, action: StartTask, staged: StartTask) -> list[Event]:
        """Start the Pod of a task when it is its turn; ``staged`` as in ``_start_pod``."""
        self._waiting.append((action, staged))
        return await self._start_waiting()

    async def _start_waiting(self) -> list[Event]:
        events: list[Event] = []
        while self._waiting and len(self._running) < _PODS_PER_RUN:
            action, staged = self._waiting[0]
            if not self._places.take(pod_name(self._info, action)):
                return events
            self._waiting.popleft()
            events += await self._start_pod(action, staged)
        self._places.release()
        return events

    async def _start_pod(self, action: StartTask, staged: StartTask) -> list[Event]:
        """Create the Pod; ``staged`` is the action with the paths of inputs that came from an object store."""
        name = pod_name(self._info, action)
        self._journal.add_pod(action.path, name)
        self._running[name] = action
        try:
            pod = render_pod(
                self._pipeline, self._info, staged, namespace=self.namespace, service_account=self._service_account
            )
            pod = await self._driver.client.create(pod)
        except AlreadyExistsError:
            pod = await self._driver.client.get(POD, name, self.namespace)
        except ApiError as error:
            del self._running[name]
            self._places.give_back(name)
            message = f"Pod {name} cannot be created: {error}"
            return [TaskFailed(action.path, action.attempt, TaskError(message), retryable=error.code >= 500)]
        return await self._pod_events(PodChange(name, pod)) if is_over(pod) else []

    # ---- what is in object stores

    async def _fetch(self, action: StartTask) -> None:
        try:
            done = Fetched(action, *await self._staging.fetch(action.inputs))
        except (ShallopError, OSError) as error:
            done = Fetched(action, action.inputs, error=str(error))
        self.inbox.put_nowait(done)

    async def _fetched(self, item: Fetched) -> list[Event]:
        self._transfers.pop(item.action.path, None)
        if item.error:
            return [self._failure(item)]
        if item.note:
            self._journal.set_note(item.action.path, item.note)
        return await self._queue(item.action, msgspec.structs.replace(item.action, inputs=item.inputs))

    async def _store(self, action: StartTask, result: TaskResult) -> None:
        try:
            done = Stored(action, await self._staging.store(result))
        except (ShallopError, OSError) as error:
            done = Stored(action, result, error=str(error))
        self.inbox.put_nowait(done)

    @staticmethod
    def _failure(item: Fetched | Stored) -> TaskFailed:
        return TaskFailed(item.action.path, item.action.attempt, TaskError(item.error, code=14))

    def _result_events(self, action: StartTask, result: TaskResult) -> list[Event]:
        """Answer with a task's result; outputs in an object store count only when they are there."""
        if self._staging.local_root and result.state == "SUCCEEDED" and result.artifacts:
            self._transfers[action.path] = asyncio.create_task(self._store(action, result))
            return []
        return [self._result_event(action, result)]

    async def _adopt(self, action: StartTask) -> list[Event]:
        """Go on with a task that was asked for before a restart."""
        name = pod_name(self._info, action)
        pod = self._driver.pods.store.get(Key(self.namespace, name))
        if pod is not None:
            self._running[name] = action
            return await self._pod_events(PodChange(name, pod))
        result = read_result(local_path(task_folder(self._info, action)))
        if result is not None:
            return self._result_events(action, result)
        return await self._act(action, adopted=False)

    async def _stop(self, action: StopTask) -> list[Event]:
        stopped = TaskFailed(action.path, action.attempt, TaskError("The run was terminated.", code=1))
        if handle := self._delayed.pop(action.path, None):
            handle.cancel()
            return [stopped]
        if transfer := self._transfers.pop(action.path, None):
            transfer.cancel()
            return [stopped]
        for waiting in self._waiting:
            if waiting[0].path == action.path:
                self._waiting.remove(waiting)
                return [stopped]
        for name, running in list(self._running.items()):
            if running.path == action.path and running.attempt == action.attempt:
                if await self._driver.delete_pod(Key(self.namespace, name)):
                    return []
                del self._running[name]
        return [stopped]

    async def _pod_events(self, change: PodChange) -> list[Event]:
        """Turn a change of a Pod into what it means for the task, and start what waited for room."""
        action = self._running.get(change.name)
        if change.was_stuck:
            change = PodChange(
                change.name, self._driver.pods.store.get(Key(self.namespace, change.name)), was_stuck=True
            )
        if action is None or (change.pod is not None and not self._is_over(change.name, change.pod, change.was_stuck)):
            return []
        del self._running[change.name]
        self._places.give_back(change.name)
        events = await self._end_of(action, change)
        return events + await self._start_waiting() if self._waiting else events

    def _is_over(self, name: str, pod: Object, was_stuck: bool) -> bool:
        if is_stuck(pod) and not was_stuck and name not in self._stuck:
            self._stuck.add(name)
            again = PodChange(name, pod, was_stuck=True)
            self._delayed[name] = asyncio.get_running_loop().call_later(_STUCK_S, self.inbox.put_nowait, again)
        return is_over(pod) or (was_stuck and is_stuck(pod))

    async def _end_of(self, action: StartTask, change: PodChange) -> list[Event]:
        result = read_result(local_path(task_folder(self._info, action)))
        if change.pod is None:
            if result is not None:
                return self._result_events(action, result)
            message = f"Pod {change.name} was deleted before the task ended."
            return [TaskFailed(action.path, action.attempt, TaskError(message))]
        if (change.pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            await self._driver.delete_pod(Key(self.namespace, change.name))  # it waits for what will not come
        else:
            self._driver.retire(Key(self.namespace, change.name))
        if result is not None:
            return self._result_events(action, result)
        error, retryable = pod_failure(change.pod)
        if await asyncio.to_thread(_is_full, local_path(self._info.pipeline_root)):
            message = f"{error.message} The disk of {self._info.pipeline_root} is full: make room, then retry the run."
            error = TaskError(message)
        return [TaskFailed(action.path, action.attempt, error, retryable, is_transient(change.pod))]

    def _result_event(self, action: StartTask, result: TaskResult) -> Event:
        if result.started_at and result.ended_at:
            self._journal.set_times(action.path, result.started_at, result.ended_at)
        if result.usage:
            self._journal.set_usage(action.path, result.usage)
        if result.state != "SUCCEEDED":
            message = result.error.message if result.error else f"exit code {result.exit_code}"
            return TaskFailed(action.path, action.attempt, TaskError(message))
        artifacts: dict[str, list[Artifact]] = {}
        for key, items in result.artifacts.items():
            artifacts[key] = []
            for item in items:
                artifact = Artifact(
                    name=item.name,
                    uri=item.uri,
                    type=item.type,
                    metadata=item.metadata,
                    id=self._driver.next_artifact(),
                    digest=item.digest or "",
                )
                self._journal.add_artifact(action.path, artifact, item.size_bytes)
                artifacts[key].append(artifact)
        outputs = Values(parameters=result.parameters, artifacts=artifacts)
        if self._may_cache(action):
            self._journal.remember(action, result.environment or "", outputs)
        return TaskSucceeded(action.path, action.attempt, outputs)

    # ---- cache and importers

    def _may_cache(self, action: StartTask) -> bool:
        # A claim may be gone by now: built-in tasks are cheap and always done.
        return action.enable_cache and not built_in_image(self._pipeline, action)

    async def _find_cached(self, action: StartTask) -> TaskSucceeded | None:
        if action.attempt > 0:
            return None
        services, pipeline, earlier = self._driver.services, self._pipeline, self._earlier
        may_cache, built_in = self._may_cache(action), built_in_image(pipeline, action)

        def ask(connection: sa.Connection) -> Answer:
            taken = take_over(connection, earlier, pipeline, action) if earlier and not built_in else None
            return taken or (
                look_up(connection, services, pipeline, action, self._owner) if may_cache else Answer(None, OFF)
            )

        answer = await self._database.read(ask) if may_cache or earlier else Answer(None, OFF)
        if answer.outputs and not await self._are_there(answer.outputs):
            answer = Answer(None, f"Not from the cache: artifacts were removed from their store. {answer.note}")
        self._journal.set_note(action.path, answer.note)
        if answer.outputs is None:
            return None
        return TaskSucceeded(action.path, action.attempt, answer.outputs, cached=True)

    async def _are_there(self, outputs: Values) -> bool:
        try:
            return not self._staging.is_remote(outputs) or await self._staging.are_there(outputs)
        except ShallopError as error:
            log.warning("run %s: cached outputs cannot be looked up: %s", self.run_id, error)
            return False

    async def _to_workspace(self, action: ImportArtifact) -> ImportArtifact:
        """Bring an artifact to where ``kfp.dsl`` looks for it below the workspace."""
        if self._pipeline.config.workspace is None:
            raise InvalidError("the pipeline has no workspace; set one with dsl.PipelineConfig(workspace=...).")
        volume = self._driver.services.settings.volumes / self.namespace / workspace_claim_name(self._info)
        marked = {**action.metadata, "_kfp_workspace": True}
        below = local_path(action.uri, marked).removeprefix(WORKSPACE_PATH).lstrip("/")
        await self._staging.bring_to(action.uri, volume, below)
        return msgspec.structs.replace(action, metadata=marked)

    async def _import(self, action: ImportArtifact) -> Event:
        if action.download_to_workspace:
            try:
                action = await self._to_workspace(action)
            except (ShallopError, OSError) as error:
                message = f"importer: {action.uri} cannot be brought to the workspace: {error}"
                return TaskFailed(action.path, action.attempt, TaskError(message, code=14))
        schema = action.type.schema_title or "system.Artifact"
        if not action.reimport:
            for row in await self._database.read(lambda c: tables.find_imported(c, self._owner, action.uri, schema)):
                if row["metadata"] == action.metadata:
                    known = Artifact(
                        row["name"], row["uri"], action.type, action.metadata, str(row["id"]), row["digest"]
                    )
                    return TaskSucceeded(action.path, action.attempt, Values(artifacts={"artifact": [known]}))
        made = Artifact("artifact", action.uri, action.type, action.metadata, self._driver.next_artifact())
        self._journal.add_artifact(action.path, made, 0)
        return TaskSucceeded(action.path, action.attempt, Values(artifacts={"artifact": [made]}))


def _write_all(connection: sa.Connection, steps: Iterable[tuple[Callable[[sa.Connection], None], list[str]]]) -> None:
    for step, _ in steps:
        step(connection)


async def _let_others(count: int) -> None:
    """Let the event loop do other things now and then: one event may start thousands of tasks."""
    if count % _AT_A_TIME == 0:
        await asyncio.sleep(0)


def _is_full(root: str) -> bool:
    try:
        return shutil.disk_usage(root).free < _FULL_BYTES
    except OSError:
        return False
