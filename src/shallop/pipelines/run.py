"""
The driver: makes runs happen.

One task of the platform owns all active runs. It hears of Pods through a watch and of clients' wishes through signals;
nothing is polled. A run is driven by one coroutine: it feeds the planner, writes what the planner decided in one
transaction, and only then acts. Pods' names are functions of (run, task, attempt) and a task leaves its result in its
folder before it ends, so after a ``kill -9`` at any point the same decisions are taken again, finished tasks are not
repeated and running ones are adopted.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from shallop.controller import Informer, Services
from shallop.controller.informer import Change
from shallop.errors import AlreadyExistsError, ApiError, NotFoundError
from shallop.kube.objects import Gvk, Key, Object, key_of, labels_of
from shallop.pipelines import tables
from shallop.pipelines.cachekey import cache_key
from shallop.pipelines.claims import create_workspace, delete_workspace, run_claim_task
from shallop.pipelines.experiments_api import ensure_default_experiment
from shallop.pipelines.inputs import Artifact, RunInfo, TaskError, Values
from shallop.pipelines.ir import Pipeline, parse_pipeline
from shallop.pipelines.messages import format_micros, parse_micros, to_micros
from shallop.pipelines.placeholders import local_path
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
from shallop.pipelines.podends import NAMESPACE, TaskResult, is_over, is_stuck, pod_failure, read_result
from shallop.pipelines.render import RUN_LABEL, built_in_image, pod_name, render_pod, task_folder
from shallop.pipelines.signals import signals_of
from shallop.pipelines.step import Journal

__all__ = ["Driver"]

log = logging.getLogger(__name__)

POD = Gvk("v1", "Pod")
_ACTIVE = ("PENDING", "RUNNING", "CANCELING")
# Finished Pods stay visible, but not for ever; their logs and records do.
_KEPT_PODS = 100
# Pods of one run that exist at once: more only lengthen lists, the node could not run them anyway.
_PODS_PER_RUN = 200
# A step of cached tasks is written in portions of this many changes, so that watchers see it grow.
_STEP_CHANGES = 200
_STOP_GRACE_S = 10
# How long a Pod may wait for a Secret, ConfigMap or claim before its task fails.
_STUCK_S = 10.0


@dataclass(frozen=True)
class PodChange:
    """A Pod of the run is new, different or (``pod`` is None) gone."""

    name: str
    pod: Object | None
    was_stuck: bool = False  # it waited long enough


@dataclass(frozen=True)
class Due:
    """The pause before a start is over."""

    action: StartTask


class Driver:
    """Owns all active runs; ``run`` lives as long as the platform."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.client = services.client
        self.database = services.database
        self.signals = signals_of(services.database)
        self.pods = Informer(services.client, POD)
        self._runs: dict[str, _Run] = {}
        self._finished: deque[Key] = deque()
        self._too_many = asyncio.Event()
        self._execution = self._artifact = 0
        self._group: asyncio.TaskGroup | None = None

    def now(self) -> int:
        return to_micros(self.services.now())

    def next_execution(self) -> int:
        self._execution += 1
        return self._execution

    def next_artifact(self) -> str:
        self._artifact += 1
        return str(self._artifact)

    async def run(self) -> None:
        """Resume what was active, then serve requests until cancelled."""
        await self.database.write(lambda c: ensure_default_experiment(c, self.now()))
        self._execution, self._artifact = await self.database.read(tables.last_numbers)
        async with asyncio.TaskGroup() as group:
            self._group = group
            self.pods.add_handler(self._pod_changed)
            group.create_task(self.pods.run(), name="pipelines: informer of Pods")
            await self.pods.synced.wait()
            active = await self.database.read(tables.active_runs)
            await self._tidy_pods({row["id"] for row in active})
            for row in active:
                self._start(row["id"])
            group.create_task(self._prune(), name="pipelines: finished Pods")
            while True:
                for run_id in await self.signals.requested():
                    self._start(run_id)

    def _start(self, run_id: str) -> None:
        """Drive a run, or wake the coroutine that does."""
        if run_id in self._runs:
            self._runs[run_id].inbox.put_nowait(None)
            return
        run = self._runs[run_id] = _Run(self, run_id)
        if self._group is not None:
            self._group.create_task(self._drive(run), name=f"run {run_id}")

    async def _drive(self, run: _Run) -> None:
        try:
            while True:
                row = await self.database.read(lambda c: tables.get_run(c, run.run_id))
                if row is not None and row["state"] in _ACTIVE:
                    await self._drive_once(run, row)
                elif run.inbox.empty():
                    return
                while not run.inbox.empty():
                    run.inbox.get_nowait()
        finally:
            del self._runs[run.run_id]

    async def _drive_once(self, run: _Run, row: dict[str, Any]) -> None:
        try:
            await run.drive(row)
        except Exception as error:
            # A defect met by one run, or the deletion of the run while it was written, must not end all the others.
            log.exception("run %s: the driver failed", run.run_id)
            await run.stop_pods()
            message = f"internal error while driving the run: {error!r}; the server's log has more."
            status = {"code": 13, "message": message}
            await self.database.write(lambda c: tables.set_run_state(c, run.run_id, "FAILED", status, self.now()))
        self.signals.notify(run.run_id)

    def _pod_changed(self, change: Change) -> None:
        pod = change.new or change.old or {}
        run = self._runs.get(labels_of(pod).get(RUN_LABEL, ""))
        if run is not None and key_of(pod).namespace == NAMESPACE:
            run.inbox.put_nowait(PodChange(key_of(pod).name, change.new))

    def retire(self, name: str) -> None:
        """Note that the Pod has ended and its result is stored: from now on it may be removed."""
        self._finished.append(Key(NAMESPACE, name))
        if len(self._finished) > _KEPT_PODS:
            self._too_many.set()

    async def _tidy_pods(self, active: set[str]) -> None:
        """Stop Pods of runs that are over or deleted; let the others of them age."""
        pods = [pod for pod in self.pods.store.list(NAMESPACE) if RUN_LABEL in labels_of(pod)]
        for pod in sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", "")):
            if labels_of(pod)[RUN_LABEL] in active:
                continue
            if is_over(pod):
                self.retire(pod["metadata"]["name"])
            else:
                await self.delete_pod(pod["metadata"]["name"])

    async def _prune(self) -> None:
        while True:
            await self._too_many.wait()
            self._too_many.clear()
            while len(self._finished) > _KEPT_PODS:
                await self.delete_pod(self._finished.popleft().name)

    async def delete_pod(self, name: str) -> bool:
        """Delete a Pod; False when there is none."""
        try:
            await self.client.delete(POD, name, NAMESPACE, grace_period_s=_STOP_GRACE_S)
        except NotFoundError:
            return False
        except ApiError as error:
            log.warning("Pod %s/%s: cannot be deleted: %s", NAMESPACE, name, error)
        return True


class _Run:
    """Drives one run from where its rows say it is to its end."""

    def __init__(self, driver: Driver, run_id: str) -> None:
        self.run_id = run_id
        self.inbox: asyncio.Queue[PodChange | Due | None] = asyncio.Queue()
        self._driver = driver
        self._database = driver.database
        self._plan: Plan
        self._journal: Journal
        self._pipeline: Pipeline
        self._info: RunInfo
        self._running: dict[str, StartTask] = {}  # by the name of the Pod
        self._waiting: deque[StartTask] = deque()  # for room
        self._delayed: dict[str, asyncio.TimerHandle] = {}  # by path, or by name of a stuck Pod
        self._stuck: set[str] = set()  # names of Pods that wait for something
        self._keys: dict[str, str] = {}  # path -> cache key of what is running

    async def drive(self, row: dict[str, Any]) -> None:
        """Drive the run until it is over or deleted."""
        self._running, self._waiting, self._delayed, self._stuck, self._keys = {}, deque(), {}, set(), {}
        current: tables.Row | None = row
        try:
            actions, events, adopted = await self._load(row)
            await create_workspace(self._driver.client, self._pipeline, self._info)
            await self._advance(actions, events, adopted=adopted)
            while not self._plan.is_finished:
                items = [await self.inbox.get()]
                while not self.inbox.empty():
                    items.append(self.inbox.get_nowait())
                if None in items and (current := await self._reload()) is None:
                    await self.stop_pods()
                    return
                await self._advance([], await self._events_of(items, current))
            await delete_workspace(self._driver.client, self._pipeline, self._info)
        finally:
            for handle in self._delayed.values():
                handle.cancel()

    async def _load(self, row: dict[str, Any]) -> tuple[list[Action], list[Event], bool]:
        def read(connection: sa.Connection) -> tuple[Any, list[Any], list[dict[str, Any]]]:
            document = tables.get_specs(connection, [row["spec_digest"]])[row["spec_digest"]]
            return document, tables.get_events(connection, self.run_id), tables.get_tasks(connection, self.run_id)

        document, stored, known = await self._database.read(read)
        self._pipeline = await asyncio.to_thread(parse_pipeline, document)
        self._info = self._run_info(row)
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
            actions = self._plan.begin()
        self._journal = Journal(
            self._plan,
            now=self._driver.now,
            next_execution=self._driver.next_execution,
            known=known,
            seq=len(stored),
        )
        if self._must_cancel(row):
            events.append(CancelRequested())
        return actions, events, bool(known)

    def _run_info(self, row: dict[str, Any]) -> RunInfo:
        created = format_micros(row["created_at"])
        root = row["pipeline_root"] or str(self._driver.services.settings.artifacts)
        return RunInfo(
            run_id=self.run_id,
            display_name=row["name"],
            resource_name=f"{self._pipeline.name}-{self.run_id[:5]}",
            pipeline_root=root,
            created_at=created,
            scheduled_at=format_micros(row["scheduled_at"]) if row["scheduled_at"] else created,
        )

    async def _reload(self) -> tables.Row | None:
        return await self._database.read(lambda c: tables.get_run(c, self.run_id))

    async def stop_pods(self) -> None:
        """Stop what runs, for a run that was deleted or cannot go on."""
        for name in list(self._running):
            await self._driver.delete_pod(name)

    def _must_cancel(self, row: dict[str, Any] | None) -> bool:
        return row is not None and row["state"] == "CANCELING" and self._plan.state is RunState.RUNNING

    async def _events_of(self, items: Iterable[PodChange | Due | None], row: dict[str, Any] | None) -> list[Event]:
        events: list[Event] = []
        for item in items:
            if isinstance(item, PodChange):
                events += await self._pod_events(item)
            elif isinstance(item, Due):
                if self._delayed.pop(item.action.path, None):
                    events += await self._start(item.action)
            elif self._must_cancel(row):
                events.append(CancelRequested())
                row = None
        return events

    # ---- one step: decide, write, act

    async def _advance(self, actions: list[Action], events: Iterable[Event], *, adopted: bool = False) -> None:
        """
        Feed events to the planner until it waits; each portion is written before it is acted on.

        Args:
            adopted: the actions were asked for before a restart and may have been done.
        """
        todo = deque(events)
        pending = actions
        acts: list[StartTask | StopTask] = []
        while True:
            for action in pending:
                answer = await self._take(action, acts, adopted=adopted)
                if answer is not None:
                    todo.append(answer)
            adopted_now, adopted = adopted, False
            if self._journal.size >= _STEP_CHANGES or not todo:
                await self._write()
                for act in acts:
                    todo.extend(await self._act(act, adopted=adopted_now))
                acts.clear()
            if not todo:
                await self._write()
                return
            event = todo.popleft()
            pending = self._plan.apply(event)
            if pending or isinstance(event, CancelRequested | RetryRequested):
                self._journal.record(event)

    async def _write(self) -> None:
        if self._journal.size:
            await self._database.write(self._journal.take())
            self._driver.signals.notify(self.run_id)

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
        if len(self._running) >= _PODS_PER_RUN:
            self._waiting.append(action)
            return []
        if image := built_in_image(self._pipeline, action):
            return [await run_claim_task(self._driver.client, self._info, action, image)]
        name = pod_name(self._info, action)
        self._journal.add_pod(action.path, name)
        self._running[name] = action
        try:
            pod = render_pod(self._pipeline, self._info, action, namespace=NAMESPACE)
            pod = await self._driver.client.create(pod)
        except AlreadyExistsError:
            pod = await self._driver.client.get(POD, name, NAMESPACE)
        except ApiError as error:
            del self._running[name]
            message = f"Pod {name} cannot be created: {error}"
            return [TaskFailed(action.path, action.attempt, TaskError(message), retryable=error.code >= 500)]
        return await self._pod_events(PodChange(name, pod)) if is_over(pod) else []

    async def _adopt(self, action: StartTask) -> list[Event]:
        """Go on with a task that was asked for before a restart."""
        name = pod_name(self._info, action)
        pod = self._driver.pods.store.get(Key(NAMESPACE, name))
        if pod is not None:
            self._running[name] = action
            return await self._pod_events(PodChange(name, pod))
        result = await asyncio.to_thread(read_result, local_path(task_folder(self._info, action)))
        if result is not None:
            return [self._result_event(action, result)]
        return await self._act(action, adopted=False)

    async def _stop(self, action: StopTask) -> list[Event]:
        stopped = TaskFailed(action.path, action.attempt, TaskError("The run was terminated.", code=1))
        if handle := self._delayed.pop(action.path, None):
            handle.cancel()
            return [stopped]
        for waiting in self._waiting:
            if waiting.path == action.path:
                self._waiting.remove(waiting)
                return [stopped]
        for name, running in list(self._running.items()):
            if running.path == action.path and running.attempt == action.attempt:
                if await self._driver.delete_pod(name):
                    return []
                del self._running[name]
        return [stopped]

    async def _pod_events(self, change: PodChange) -> list[Event]:
        """Turn a change of a Pod into what it means for the task, and start what waited for room."""
        action = self._running.get(change.name)
        if change.was_stuck:
            change = PodChange(change.name, self._driver.pods.store.get(Key(NAMESPACE, change.name)), was_stuck=True)
        if action is None or (change.pod is not None and not self._is_over(change.name, change.pod, change.was_stuck)):
            return []
        del self._running[change.name]
        events = [await self._end_of(action, change)]
        if self._waiting and len(self._running) < _PODS_PER_RUN:
            events += await self._start(self._waiting.popleft())
        return events

    def _is_over(self, name: str, pod: Object, was_stuck: bool) -> bool:
        if is_stuck(pod) and not was_stuck and name not in self._stuck:
            self._stuck.add(name)
            again = PodChange(name, pod, was_stuck=True)
            self._delayed[name] = asyncio.get_running_loop().call_later(_STUCK_S, self.inbox.put_nowait, again)
        return is_over(pod) or (was_stuck and is_stuck(pod))

    async def _end_of(self, action: StartTask, change: PodChange) -> Event:
        result = await asyncio.to_thread(read_result, local_path(task_folder(self._info, action)))
        if change.pod is None:
            if result is not None:
                return self._result_event(action, result)
            message = f"Pod {change.name} was deleted before the task ended."
            return TaskFailed(action.path, action.attempt, TaskError(message))
        if (change.pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            await self._driver.delete_pod(change.name)  # it waits for what will not come
        else:
            self._driver.retire(change.name)
        if result is not None:
            return self._result_event(action, result)
        error, retryable = pod_failure(change.pod)
        return TaskFailed(action.path, action.attempt, error, retryable)

    def _result_event(self, action: StartTask, result: TaskResult) -> Event:
        if result.started_at and result.ended_at:
            self._journal.set_times(action.path, parse_micros(result.started_at), parse_micros(result.ended_at))
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
        if key := self._keys.pop(action.path, "") or self._cache_key(action):
            self._journal.remember(self._pipeline.name, key, action.path, outputs)
        return TaskSucceeded(action.path, action.attempt, outputs)

    # ---- cache and importers

    def _cache_key(self, action: StartTask) -> str:
        # A claim may be gone by now: built-in tasks are cheap and always done.
        if not action.enable_cache or built_in_image(self._pipeline, action):
            return ""
        return cache_key(self._pipeline, action)

    async def _find_cached(self, action: StartTask) -> TaskSucceeded | None:
        key = self._cache_key(action)
        if not key or action.attempt > 0:
            return None
        self._keys[action.path] = key
        entry = await self._database.read(lambda c: tables.get_cache_entry(c, self._pipeline.name, key))
        if entry is None:
            return None
        outputs = msgspec.convert(entry["outputs"], type=Values)
        if not await asyncio.to_thread(_are_there, outputs):
            self._journal.set_note(action.path, f"Not from the cache: artifacts of run {entry['run_id']} were removed.")
            return None
        del self._keys[action.path]
        self._journal.set_note(action.path, f"Outputs of run {entry['run_id']}, task {entry['task_id']}.")
        return TaskSucceeded(action.path, action.attempt, outputs, cached=True)

    async def _import(self, action: ImportArtifact) -> Event:
        if action.download_to_workspace:
            message = "importer: downloading to the workspace is not available; read the artifact by its path instead."
            return TaskFailed(action.path, action.attempt, TaskError(message, code=12), retryable=False)
        schema = action.type.schema_title or "system.Artifact"
        if not action.reimport:
            for row in await self._database.read(lambda c: tables.find_imported(c, action.uri, schema)):
                if row["metadata"] == action.metadata:
                    known = Artifact(
                        row["name"], row["uri"], action.type, action.metadata, str(row["id"]), row["digest"]
                    )
                    return TaskSucceeded(action.path, action.attempt, Values(artifacts={"artifact": [known]}))
        made = Artifact("artifact", action.uri, action.type, action.metadata, self._driver.next_artifact())
        self._journal.add_artifact(action.path, made, 0)
        return TaskSucceeded(action.path, action.attempt, Values(artifacts={"artifact": [made]}))


def _are_there(values: Values) -> bool:
    """Say whether all local files of cached outputs still exist; what never was written needs not."""
    artifacts = [artifact for items in values.artifacts.values() for artifact in items]
    return all(os.path.exists(a.uri) for a in artifacts if a.digest and a.uri.startswith("/"))
