"""Runs controllers: informers feed work queues, workers reconcile, level-triggered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import msgspec

from shallop.controller.events import EventRecorder
from shallop.controller.informer import Change, Informer, Store
from shallop.controller.kind import Kind
from shallop.controller.queue import WorkQueue
from shallop.errors import ApiError, ConflictError, NotFoundError, TerminalError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Key, Object, controller_of, key_of
from shallop.settings import Settings
from shallop.store.database import Database

__all__ = ["Context", "Manager"]

log = logging.getLogger(__name__)


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Context:
    """
    What a reconcile may use; ``now`` gives aware UTC time.

    Args:
        cache: the local copy of a kind.
        serves: whether the cluster has a kind; one that nobody asked for before counts as had.
        watch_children: ``(owner, child)``, for children whose kind only the object names: from then on a change of one
            reconciles its controlling owner, as ``Kind.owns`` does for kinds that are known before.
    """

    client: Client
    settings: Settings
    database: Database
    events: EventRecorder
    now: Callable[[], datetime]
    cache: Callable[[Gvk], Store]
    serves: Callable[[Gvk], bool] = lambda gvk: True
    watch_children: Callable[[Gvk, Gvk], None] = lambda owner, child: None


class _Controller:
    def __init__(self, kind: Kind, context: Context) -> None:
        self.kind = kind
        named = replace(context, events=context.events.named(kind.component)) if kind.component else context
        self.context = named
        self.queue: WorkQueue[Key] = WorkQueue()
        # Versions that ended in a TerminalError: not tried again until the object changes.
        self.refused: dict[Key, str] = {}


class Manager:
    """
    Runs the controllers of ``kinds`` against one API server.

    Args:
        component: the name that Events carry.
        now: clock of everything that controllers decide.
        admitted: whether the API server has defaulted and validated our kinds already; on a cluster that runs no
            admission of ours the manager does both before each reconcile.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        database: Database,
        kinds: Iterable[Kind],
        *,
        component: str = "shallop",
        now: Callable[[], datetime] = _utc_now,
        admitted: bool = True,
    ) -> None:
        self._client = client
        self._admitted = admitted
        self._informers: dict[Gvk, Informer] = {}
        self.events = EventRecorder(client, component, now)
        self.context = Context(
            client, settings, database, self.events, now, self.cache, self.serves, self.watch_children
        )
        self._controllers = [_Controller(kind, self.context) for kind in kinds if kind.reconcile]
        self._tasks: asyncio.TaskGroup | None = None
        # Kind of a child -> group and kind of its owner -> who wants to hear of it.
        self._owners: dict[Gvk, _Owners] = {}
        # Kind -> who else wants to hear of its objects, and for which keys of its own.
        self._mapped: dict[Gvk, _Mappings] = {}

    def informer(self, gvk: Gvk) -> Informer:
        """Return the shared informer of a kind; it starts at once when the manager runs."""
        informer = self._informers.get(gvk)
        if informer is None:
            informer = self._informers[gvk] = Informer(self._client, gvk)
            if self._tasks is not None:
                self._tasks.create_task(informer.run(), name=f"informer {gvk.kind}")
        return informer

    def cache(self, gvk: Gvk) -> Store:
        return self.informer(gvk).store

    def serves(self, gvk: Gvk) -> bool:
        return self.informer(gvk).served

    @property
    def off(self) -> list[Gvk]:
        """The kinds whose controller does nothing, because the cluster does not have them."""
        return [controller.kind.gvk for controller in self._controllers if not self.serves(controller.kind.gvk)]

    def watch_children(self, owner: Gvk, child: Gvk) -> None:
        """Reconcile owners when a child of theirs changes; asking again does nothing."""
        for controller in self._controllers:
            if controller.kind.gvk == owner:
                self._own(controller.queue, owner, child)

    def _own(self, queue: WorkQueue[Key], owner: Gvk, child: Gvk) -> None:
        informer = self.informer(child)
        owners = self._owners.get(child)
        if owners is None:
            owners = self._owners[child] = {}
            informer.add_handler(partial(_owner_changed, owners))
        queues = owners.setdefault((owner.group, owner.kind), [])
        if queue not in queues:
            queues.append(queue)
            for obj in informer.store.list():
                _owner_changed({(owner.group, owner.kind): [queue]}, Change(None, obj))

    async def run(self, started: asyncio.Event | None = None) -> None:
        """Run until cancelled; ``started`` is set when every informer has listed and workers go."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for controller in self._controllers:
                    self._connect(controller)
                for informer in list(self._informers.values()):
                    tasks.create_task(informer.run(), name=f"informer {informer.gvk.kind}")
                for informer in list(self._informers.values()):
                    await informer.synced.wait()
                for controller in self._controllers:
                    for number in range(controller.kind.workers):
                        tasks.create_task(self._work(controller), name=f"{controller.kind.kind} worker {number}")
                if started is not None:
                    started.set()
        finally:
            self._tasks = None

    def _connect(self, controller: _Controller) -> None:
        kind, queue = controller.kind, controller.queue
        # Informers are created first and started by run(), so that no handler misses the first list.
        tasks, self._tasks = self._tasks, None
        self.informer(kind.gvk).add_handler(lambda change: self._changed(queue, change))
        for gvk in kind.owns:
            self._own(queue, kind.gvk, gvk)
            self.informer(gvk).on_appeared(lambda: self._queue_all(controller))
        for watch in kind.watches:
            self._map(watch.gvk, queue, watch.to_keys)
        self._tasks = tasks

    def _map(self, gvk: Gvk, queue: WorkQueue[Key], to_keys: _ToKeys) -> None:
        informer = self.informer(gvk)
        mappings = self._mapped.get(gvk)
        if mappings is None:
            mappings = self._mapped[gvk] = []
            informer.add_handler(partial(_mapped, mappings))
        mappings.append((queue, to_keys))
        for obj in informer.store.list():
            _mapped([(queue, to_keys)], Change(None, obj))

    def _queue_all(self, controller: _Controller) -> None:
        for obj in self.cache(controller.kind.gvk).list():
            controller.queue.add(key_of(obj))

    def _changed(self, queue: WorkQueue[Key], change: Change) -> None:
        queue.add(key_of(change.new or change.old or {}))

    async def _work(self, controller: _Controller) -> None:
        while True:
            key = await controller.queue.get()
            try:
                await self._reconcile(controller, key)
            finally:
                controller.queue.done(key)

    async def _reconcile(self, controller: _Controller, key: Key) -> None:
        kind, queue = controller.kind, controller.queue
        obj = self.cache(kind.gvk).get(key)
        version = obj["metadata"]["resourceVersion"] if obj else ""
        if obj is not None and controller.refused.get(key) == version:
            return
        try:
            result_after = await self._once(controller, key, obj)
        except TerminalError as error:
            log.warning("%s %s: gave up until it changes: %s", kind.kind, key, error)
            controller.refused[key] = version
            return
        except (ConflictError, NotFoundError):
            # Our picture is behind by a moment: a common, harmless race.
            queue.retry(key)
            return
        except ApiError as error:
            log.warning("%s %s: %s; retry in %.2f s", kind.kind, key, error, queue.retry(key))
            if obj is not None and error.code < 500:
                # The server does not like what is wanted: whoever declared it should see why nothing happens.
                self.events.record(obj, "ReconcileError", str(error), "Warning")
            return
        except Exception:
            # One object's failure must not end the controller of all the others.
            log.exception("%s %s: reconcile failed; retry in %.2f s", kind.kind, key, queue.retry(key))
            return
        queue.forget(key)
        controller.refused.pop(key, None)
        if result_after is not None:
            queue.add_after(key, result_after)

    async def _once(self, controller: _Controller, key: Key, obj: Object | None) -> float | None:
        kind, context = controller.kind, controller.context
        if obj is None:
            if kind.on_gone:
                await kind.on_gone(context, key)
            return None
        if not self._admitted:
            obj = self._admit(kind, obj)
        try:
            resource = kind.decode(obj)
        except msgspec.ValidationError as error:
            self.events.record(obj, "InvalidSpec", f"spec cannot be read: {error}", "Warning")
            raise TerminalError(f"spec: {error}") from error
        assert kind.reconcile is not None
        return (await kind.reconcile(context, resource)).requeue_after_s

    def _admit(self, kind: Kind, obj: Object) -> Object:
        if kind.default is not None:
            obj = kind.default(obj)
        if kind.validate is not None and (problems := kind.validate(obj, None)):
            message = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
            self.events.record(obj, "InvalidSpec", message, "Warning")
            raise TerminalError(message)
        return obj

    @property
    def idle(self) -> bool:
        """True when no key waits or is being worked on."""
        return all(controller.queue.idle for controller in self._controllers)


_Owners = dict[tuple[str, str], list[WorkQueue[Key]]]


def _owner_changed(owners: _Owners, change: Change) -> None:
    """Look once at whose an object is, for all kinds that own such: most objects are nobody's here."""
    known = None
    for obj in (change.new, change.old):
        reference = controller_of(obj) if obj is not None and obj["metadata"].get("ownerReferences") else None
        if reference is None or obj is None or reference == known:
            continue
        known = reference
        for queue in owners.get((Gvk(reference["apiVersion"], "").group, reference["kind"]), ()):
            queue.add(Key(obj["metadata"].get("namespace", ""), reference["name"]))


_ToKeys = Callable[[Object], Iterable[Key]]
_Mappings = list[tuple[WorkQueue[Key], _ToKeys]]


def _mapped(mappings: _Mappings, change: Change) -> None:
    for obj in change:
        if obj is not None:
            for queue, to_keys in mappings:
                for key in to_keys(obj):
                    queue.add(key)
