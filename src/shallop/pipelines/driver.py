"""
The driver: the one task of the platform that owns all active runs.

It hears of Pods through a watch and of clients' wishes through signals; nothing is polled. Each run is driven by a
coroutine of its own, see ``run.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from shallop.controller import Informer, Services
from shallop.controller.informer import Change
from shallop.errors import ApiError, BadRequestError, InvalidError, NotFoundError
from shallop.kube.objects import Key, is_deleting, key_of, labels_of
from shallop.pipelines import tables
from shallop.pipelines.claims import tidy_workspaces
from shallop.pipelines.experiments_api import ensure_default_experiment
from shallop.pipelines.ir import PipelineConfig, parse_pipeline
from shallop.pipelines.messages import to_micros
from shallop.pipelines.places import Places
from shallop.pipelines.podends import is_over
from shallop.pipelines.render import RUN_LABEL, is_of_run
from shallop.pipelines.run import POD, RunDriver
from shallop.pipelines.signals import signals_of
from shallop.pipelines.staging import tidy_staging

__all__ = ["Driver"]

log = logging.getLogger(__name__)

_ACTIVE = ("PENDING", "RUNNING", "CANCELING")
# Finished Pods stay visible, but not for ever; their logs and records do.
_KEPT_PODS = 100
_STOP_GRACE_S = 10
# Pods that are being started at once, all runs together: more only make each other, and all answers, slow (with four
# per core 200 steps took 80 ms each and the lists of the home page 202 ms (p95), with two 69 and 81 ms).
_STARTS_PER_CORE, _FEWEST_STARTS = 2, 4
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0


class Driver:
    """Owns all active runs; ``run`` lives as long as the platform."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.client = services.client
        self.database = services.database
        self.signals = signals_of(services.database)
        self.pods = Informer(services.client, POD)
        self.places = Places(max(_FEWEST_STARTS, _STARTS_PER_CORE * (os.cpu_count() or 1)))
        self._runs: dict[str, RunDriver] = {}
        self._finished: deque[Key] = deque()
        self._too_many = asyncio.Event()
        self._execution = 0
        self._group: asyncio.TaskGroup | None = None

    def now(self) -> int:
        return to_micros(self.services.now())

    def next_execution(self) -> int:
        self._execution += 1
        return self._execution

    def next_artifact(self) -> str:
        self.signals.artifacts += 1
        return str(self.signals.artifacts)

    async def store(self, fn: Callable[[sa.Connection], None]) -> None:
        """Write; while the disk is full or the database away, wait: what was decided must not be lost."""
        delay = _FIRST_WAIT_S
        while True:
            try:
                return await self.database.write(fn)
            except OperationalError as error:
                log.error("rows cannot be written, next try in %.0f s: %s", delay, error.orig)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_WAIT_S)

    async def run(self) -> None:
        """Resume what was active, then serve requests until cancelled."""
        if not self.services.settings.multi_user:
            await self.database.write(lambda c: ensure_default_experiment(c, self.now()))
        self._execution = await self.database.read(tables.last_execution)
        self.signals.artifacts = max(self.signals.artifacts, await self.database.read(tables.last_artifact))
        async with asyncio.TaskGroup() as group:
            self._group = group
            self.pods.add_handler(self._pod_changed)
            group.create_task(self.pods.run(), name="pipelines: informer of Pods")
            await self.pods.synced.wait()
            active = await self.database.read(tables.active_runs)
            await self._tidy_pods({row["id"] for row in active})
            await tidy_workspaces(self.client, {row["id"] for row in active})
            await asyncio.to_thread(tidy_staging, self.services.settings.staging, {row["id"] for row in active})
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
        run = self._runs[run_id] = RunDriver(self, run_id)
        if self._group is not None:
            self._group.create_task(self._drive(run), name=f"run {run_id}")

    async def _drive(self, run: RunDriver) -> None:
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

    async def _drive_once(self, run: RunDriver, row: dict[str, Any]) -> None:
        try:
            await run.drive(row)
        except Exception as error:
            await run.stop_pods()
            if isinstance(error, BadRequestError | InvalidError):
                # An object that the pipeline asks for, such as the claim of its workspace, is refused.
                status = {"code": 3, "message": f"The run cannot be carried out: {error.message}"}
            else:
                # A defect met by one run, or the deletion of the run while it was written, must not end all others.
                log.exception("run %s: the driver failed", run.run_id)
                message = f"internal error while driving the run: {error!r}; the server's log has more."
                status = {"code": 13, "message": message}
            await self.store(lambda c: tables.set_run_state(c, run.run_id, "FAILED", status, self.now()))
        await self._end_strays(run.run_id)
        await self._expire(run.run_id)
        self.signals.notify(run.run_id)
        self.signals.reschedule()

    async def _end_strays(self, run_id: str) -> None:
        """Stop a Pod that was created just before a crash lost the decision, when the run went another way since."""
        for pod in self.pods.store.list():
            if is_of_run(pod) and labels_of(pod)[RUN_LABEL] == run_id and not (is_over(pod) or is_deleting(pod)):
                await self.delete_pod(key_of(pod))

    async def _expire(self, run_id: str) -> None:
        """Remove the Pods of a run that is over when their time, if its pipeline sets one, has come."""
        ttl_s = await self.database.read(lambda c: _ttl_left_s(c, run_id, self.now()))
        if ttl_s is not None and self._group is not None:
            self._group.create_task(self._remove_pods(run_id, ttl_s), name=f"run {run_id}: time to live of Pods")

    async def _remove_pods(self, run_id: str, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        if run_id in self._runs:  # retried; its next end comes
            return
        for pod in self.pods.store.list():
            if is_of_run(pod) and labels_of(pod)[RUN_LABEL] == run_id and is_over(pod):
                await self.delete_pod(key_of(pod))

    def _pod_changed(self, change: Change) -> None:
        pod = change.new or change.old or {}
        run = self._runs.get(labels_of(pod).get(RUN_LABEL, ""))
        if run is not None and key_of(pod).namespace == run.namespace:
            run.pod_changed(key_of(pod).name, change.new)

    def retire(self, key: Key) -> None:
        """Note that the Pod has ended and its result is stored: from now on it may be removed."""
        self._finished.append(key)
        if len(self._finished) > _KEPT_PODS:
            self._too_many.set()

    async def _tidy_pods(self, active: set[str]) -> None:
        """Stop Pods of runs that are over or deleted; let the others of them age."""
        pods = [pod for pod in self.pods.store.list() if is_of_run(pod)]
        for pod in sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", "")):
            if labels_of(pod)[RUN_LABEL] in active:
                continue
            if is_over(pod):
                self.retire(key_of(pod))
            else:
                await self.delete_pod(key_of(pod))
        for run_id in {labels_of(pod)[RUN_LABEL] for pod in pods} - active:
            await self._expire(run_id)

    async def _prune(self) -> None:
        while True:
            await self._too_many.wait()
            self._too_many.clear()
            while len(self._finished) > _KEPT_PODS:
                await self.delete_pod(self._finished.popleft())

    async def delete_pod(self, key: Key) -> bool:
        """Delete a Pod; False when there is none."""
        try:
            await self.client.delete(POD, key.name, key.namespace, grace_period_s=_STOP_GRACE_S)
        except NotFoundError:
            return False
        except ApiError as error:
            log.warning("Pod %s/%s: cannot be deleted: %s", key.namespace, key.name, error)
        return True


def _ttl_left_s(connection: sa.Connection, run_id: str, now: int) -> float | None:
    """Return how long the Pods of a run that is over stay; None = its pipeline says nothing."""
    run = tables.get_run(connection, run_id)
    if run is None or run["state"] in _ACTIVE:
        return None
    document = tables.get_specs(connection, [run["spec_digest"]])[run["spec_digest"]]
    # Most pipelines have no second document, and need not be parsed once more.
    config = parse_pipeline(document).config if "platform_spec" in document else PipelineConfig()
    ttl_s = config.ttl_s(succeeded=run["state"] == "SUCCEEDED")
    return max(0.0, ttl_s - (now - run["finished_at"]) / 1e6) if ttl_s else None
