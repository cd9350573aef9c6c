"""
The objects of the embedded API server: durable, versioned, in memory.

Every change is a row in one SQLite table, keyed by a global revision; what is newest per key is the current state,
older rows are the history that watches resume from. Changes that wait at the same moment share one commit, and a change
becomes visible (to readers, watchers and its own caller) only after it. A commit that does not wait for the disk takes
about 50 us and is done in the event loop: handing it to a thread and back costs several times that. One that waits
(``synchronous="full"``) is done by a thread.
"""

from __future__ import annotations

import asyncio
import builtins
import itertools
import logging
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shallop.errors import ExpiredError, UnavailableError
from shallop.kube.objects import Gvk, Object

__all__ = ["Change", "ObjectsStore", "Stored", "Subscription", "encode_object"]

log = logging.getLogger(__name__)

# History kept for watches: all of the last KEEP_S seconds, at least KEEP_REVISIONS, at most MAX_REVISIONS and MAX_BYTES
# of JSON. In memory are the JSON of the newest _FRESH_BYTES, and the newest _DECODED changes decoded, too, which takes
# about six times as much; what is older is read from the database, where it lies anyway.
KEEP_REVISIONS = 10_000
MAX_REVISIONS = 60_000
MAX_BYTES = 64 << 20
KEEP_S = 300.0
_DECODED = 500
_FRESH_BYTES = 8 << 20
# Clients ask for version 1 out of habit and mean "long ago"; it must never look like a version they have seen.
_FIRST_REVISION = 1000
_QUEUE_LIMIT = 20_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    revision INTEGER PRIMARY KEY,
    resource TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    deleted INTEGER NOT NULL,
    object BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS horizon (revision INTEGER NOT NULL);
"""
_INSERT = "INSERT INTO versions (revision, resource, namespace, name, deleted, object) VALUES "
_ROW = "(?, ?, ?, ?, ?, ?)"
# Rows of one INSERT: each statement gives up the interpreter's lock once, and may wait long to get it again.
_ROWS = 50
# Pages of the write-ahead log between two checkpoints, and how long it may grow under writes that never pause. Writes
# that meet the disk flush of a checkpoint wait for it: that should be fewer than one in a hundred.
_PAGE = 4096
_CHECKPOINT_PAGES = 4000
_MAX_LOG_PAGES = 16_000
# Old rows that one commit deletes: a backlog goes little by little.
_TRIM = 500

_NO_VIEWS: Mapping[Gvk, tuple[Any, Object]] = {}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Stored:
    """
    One version of one object: its JSON, and the dict decoded when first asked for. Read only.

    ``views`` is for ``conversion``: the object in other versions of its API, where a webhook converts.
    """

    __slots__ = ("_object", "_raw", "_read", "name", "namespace", "resource", "revision", "size", "views")

    def __init__(
        self, resource: str, namespace: str, name: str, revision: int, raw: bytes, obj: Object | None = None
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.name = name
        self.revision = revision
        self.size = len(raw)
        self._raw: bytes | None = raw
        self._read: Callable[[int], bytes] | None = None
        self._object = obj
        self.views: Mapping[Gvk, tuple[Any, Object]] = _NO_VIEWS

    @property
    def raw(self) -> bytes:
        """
        The object's JSON.

        Raises:
            ExpiredError: it is history that is gone.
        """
        if self._raw is None:
            assert self._read is not None
            return self._read(self.revision)
        return self._raw

    @property
    def object(self) -> Object:
        if self._object is None:
            obj: Object = _decode(self.raw)
            if self._raw is None:
                return obj
            self._object = obj
        return self._object

    @property
    def owners(self) -> builtins.list[Object]:
        """The owner references: most objects have none, which the text tells without decoding it."""
        if self._object is None and b'"ownerReferences"' not in self.raw:
            return []
        return self.object["metadata"].get("ownerReferences") or []

    def forget_object(self) -> None:
        """Keep only the JSON: superseded versions are rarely read again."""
        self._object = None
        self.views = _NO_VIEWS

    def forget_raw(self, read: Callable[[int], bytes]) -> None:
        """Keep nothing in memory: ``read`` gives the JSON of a revision."""
        self.forget_object()
        self._raw, self._read = None, read


class Change(NamedTuple):
    """One revision; ``old`` is None for a creation, ``new`` has the last state when ``deleted`` is set."""

    revision: int
    old: Stored | None
    new: Stored
    deleted: bool
    at: float


Listener = Callable[[Change], None]


class Subscription:
    """
    Changes of one resource as they are committed: iterate with ``next``, or be called.

    With ``tell`` nobody has to wake up first: it hears of a change before the writer goes on, and gets it as long as it
    does not raise.
    """

    def __init__(self, resource: str, namespace: str, tell: Listener | None = None) -> None:
        self.resource = resource
        self.namespace = namespace
        self.error: Exception | None = None
        self._told = tell
        self.pending: deque[Change] = deque()
        self.closed = False
        self.overflowed = False
        self._wakeup = asyncio.Event()

    def push(self, change: Change) -> None:
        if self._told is not None:
            self._tell(self._told, change)
            return
        if len(self.pending) >= _QUEUE_LIMIT:
            # A reader that far behind lists again; holding its backlog would cost everybody's memory.
            self.overflowed = self.closed = True
            self.pending.clear()
        else:
            self.pending.append(change)
        self._wakeup.set()

    def _tell(self, tell: Listener, change: Change) -> None:
        if self.closed:
            return
        try:
            tell(change)
        except Exception as error:
            # The follower's defect is its own: whoever waits for ``ended`` gets it, not the writer.
            self.error = error
            self.close()

    def close(self) -> None:
        self.closed = True
        self._wakeup.set()

    async def ended(self) -> None:
        """Wait until it is closed; raises what ``tell`` raised."""
        await self._wakeup.wait()
        if self.error is not None:
            raise self.error

    async def next(self, timeout_s: float | None = None) -> list[Change]:
        """Return what has come, waiting for at least one; empty on timeout or when closed."""
        if not self.pending and not self.closed:
            self._wakeup.clear()
            loop = asyncio.get_running_loop()
            timer = None if timeout_s is None else loop.call_later(timeout_s, self._wakeup.set)
            try:
                await self._wakeup.wait()
            finally:
                if timer is not None:
                    timer.cancel()
        changes = list(self.pending)
        self.pending.clear()
        return changes


class _KeyLock:
    """One key, held by one at a time; known to the store as long as somebody holds it or waits."""

    __slots__ = ("_key", "_lock", "_locks", "_users")

    def __init__(self, locks: dict[tuple[str, str, str], _KeyLock], key: tuple[str, str, str]) -> None:
        self._locks, self._key = locks, key
        self._lock = asyncio.Lock()
        self._users = 0

    async def __aenter__(self) -> None:
        self._users += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            del self._locks[self._key]


class _Write(NamedTuple):
    change: Change
    done: asyncio.Future[None]


class _Batch(NamedTuple):
    """What one commit writes; ``obsolete`` are revisions whose rows go, no history is left up to ``horizon``."""

    writes: list[_Write]
    obsolete: list[int]
    horizon: int


_Objects = dict[str, dict[str, Stored]]


class ObjectsStore:
    """
    All objects by (resource, namespace, name); ``resource`` is ``plural.group``.

    Use from one event loop. Objects given in belong to the store afterwards; those given out are shared, not to be
    changed.
    """

    def __init__(self, path: Path | None, *, synchronous: str = "normal") -> None:
        """Open or create the database; None keeps everything in memory only; for ``synchronous`` see Settings."""
        if path is not None:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._path = path
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        # A checkpoint waits for the disk: another thread does it, beside the writes.
        self._db.execute("PRAGMA wal_autocheckpoint=0")
        # A commit survives the end of this process at any moment; "full" adds an fsync for the end of the machine.
        self._db.execute(f"PRAGMA synchronous={synchronous}")
        self._db.executescript(_SCHEMA)
        self._objects: dict[str, _Objects] = {}
        self._owned: dict[str, set[tuple[str, str, str]]] = {}
        self._log: deque[Change] = deque()
        self._log_bytes = 0
        self._decoded: deque[Change] = deque()  # the newest of the log
        self._fresh: deque[Change] = deque()  # the newest of the log
        self._fresh_bytes = 0
        self._reader = self._read  # one for all: a bound method is an object
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._locks: dict[tuple[str, str, str], _KeyLock] = {}
        self._horizon = _FIRST_REVISION
        self.revision = _FIRST_REVISION
        self._load()
        self._next = self.revision + 1
        self._pending: builtins.list[_Write] = []
        self._obsolete: builtins.list[int] = []
        self._waits = synchronous == "full"
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._checkpointer: threading.Thread | None = None
        # A process that is killed again and again before its first checkpoint must not leave a log that only grows.
        self._unchecked = 0 if path is None else _log_pages(path)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        # Called with every change; most want to hear of one resource only: ``listen``.
        self.listeners: builtins.list[Listener] = []
        self._listeners: dict[str, builtins.list[Listener]] = {}

    def listen(self, resources: Iterable[str], listener: Listener) -> None:
        """Call ``listener`` with every later change of some resources, before the writer goes on."""
        for resource in resources:
            self._listeners.setdefault(resource, []).append(listener)

    # ---- life

    def start(self) -> None:
        """Accept writes; call inside the event loop that uses the store."""
        self._loop = asyncio.get_running_loop()
        if self._waits:
            self._thread = threading.Thread(target=self._write_all, name="objects-store", daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        """Write what is queued, end every watch, close the database."""
        for subscription in self._all_subscriptions():
            subscription.close()
        self._flush()
        self._stopped = True
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            # Publications that the writer has handed over run before whatever follows.
            await asyncio.sleep(0)
        if self._checkpointer is not None:
            await asyncio.to_thread(self._checkpointer.join)
        self._db.close()

    def _load(self) -> None:
        row = self._db.execute("SELECT max(revision) FROM horizon").fetchone()
        self._horizon = row[0] or _FIRST_REVISION
        self.revision = self._horizon
        now = time.monotonic()
        rows = self._db.execute(
            "SELECT revision, resource, namespace, name, deleted, object FROM versions ORDER BY revision"
        )
        for revision, resource, namespace, name, deleted, raw in rows:
            new = Stored(resource, namespace, name, revision, raw)
            old = self.get(resource, namespace, name)
            self._set(new, remove=bool(deleted))
            if revision > self._horizon:
                self._remember(Change(revision, old, new, bool(deleted), now))
            self.revision = revision
        for objects in self._objects.values():
            for stored in itertools.chain.from_iterable(names.values() for names in objects.values()):
                self._index(stored)
                stored.forget_object()

    # ---- reading

    def get(self, resource: str, namespace: str, name: str) -> Stored | None:
        return self._objects.get(resource, {}).get(namespace, {}).get(name)

    def list(self, resource: str, namespace: str = "") -> builtins.list[Stored]:
        """Return the objects of one namespace or of all, in the order of (namespace, name)."""
        objects = self._objects.get(resource)
        if not objects:
            return []
        if namespace:
            return [stored for _, stored in sorted(objects.get(namespace, {}).items())]
        return [stored for _, names in sorted(objects.items()) for _, stored in sorted(names.items())]

    def count(self, resource: str) -> int:
        return sum(map(len, self._objects.get(resource, {}).values()))

    def resources_in(self, namespace: str) -> builtins.list[str]:
        """Return the resources that have objects in a namespace."""
        return [resource for resource, objects in self._objects.items() if objects.get(namespace)]

    def resources(self) -> builtins.list[str]:
        return [resource for resource, objects in self._objects.items() if any(objects.values())]

    def by_owner(self, uid: str) -> builtins.list[Stored]:
        """Return the objects that have an owner reference to ``uid``."""
        found = (self.get(*key) for key in sorted(self._owned.get(uid, ())))
        return [stored for stored in found if stored is not None]

    def list_at(self, resource: str, namespace: str, revision: int) -> builtins.list[Stored]:
        """
        Return the objects as they were at ``revision``.

        Raises:
            ExpiredError: that history is gone.
        """
        current = {(stored.namespace, stored.name): stored for stored in self.list(resource, namespace)}
        for change in reversed(list(self._changes_after(revision))):
            new = change.new
            if new.resource != resource or (namespace and new.namespace != namespace):
                continue
            if change.old is None:
                current.pop((new.namespace, new.name), None)
            else:
                current[(new.namespace, new.name)] = change.old
        return [stored for _, stored in sorted(current.items())]

    def subscribe(
        self, resource: str, namespace: str = "", *, after: int | None = None, tell: Listener | None = None
    ) -> Subscription:
        """
        Follow a resource; ``after`` first replays the history behind that revision.

        Raises:
            ExpiredError: that history is gone.
        """
        subscription = Subscription(resource, namespace, tell)
        if after is not None and after < self.revision:
            for change in self._changes_after(after):
                if change.new.resource == resource and namespace in ("", change.new.namespace):
                    if tell is None:
                        subscription.pending.append(change)
                    else:
                        subscription.push(change)
        self._subscriptions.setdefault(resource, set()).add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.get(subscription.resource, set()).discard(subscription)

    def close_subscriptions(self, resource: str) -> None:
        """End the watches of a resource that is no longer served."""
        for subscription in list(self._subscriptions.get(resource, ())):
            subscription.close()

    def _all_subscriptions(self) -> Iterable[Subscription]:
        return list(itertools.chain.from_iterable(self._subscriptions.values()))

    def _changes_after(self, revision: int) -> Iterator[Change]:
        if revision < self._horizon:
            raise ExpiredError(f"too old resource version: {revision} ({self._horizon})")
        # Revisions ascend but have gaps where a commit failed, hence a bisection and not an index.
        low, high = 0, len(self._log)
        while low < high:
            middle = (low + high) // 2
            if self._log[middle].revision <= revision:
                low = middle + 1
            else:
                high = middle
        return itertools.islice(self._log, low, None)

    # ---- writing

    def lock(self, resource: str, namespace: str, name: str) -> AbstractAsyncContextManager[None]:
        """Hold one key (enter at once): what is read inside stays the newest until ``put`` or ``remove`` returns."""
        key = (resource, namespace, name)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = _KeyLock(self._locks, key)
        return lock

    async def put(self, resource: str, namespace: str, name: str, obj: Object) -> Stored:
        """
        Write an object under a new revision, which is set in its metadata; hold its lock.

        Args:
            obj: starts with ``kind`` and ``apiVersion``; top level and metadata are changed here: they must be private.
        """
        return await self._commit(resource, namespace, name, obj, deleted=False)

    async def remove(self, resource: str, namespace: str, name: str, obj: Object) -> Stored:
        """Delete an object; ``obj`` is the last state that watchers see. Hold its lock."""
        return await self._commit(resource, namespace, name, obj, deleted=True)

    async def _commit(self, resource: str, namespace: str, name: str, obj: Object, *, deleted: bool) -> Stored:
        if self._loop is None or self._stopped:
            raise UnavailableError("the object store is stopped")
        revision = self._next
        self._next += 1
        obj["metadata"]["resourceVersion"] = str(revision)
        new = Stored(resource, namespace, name, revision, _encode(obj), obj)
        change = Change(revision, self.get(resource, namespace, name), new, deleted, time.monotonic())
        done = self._loop.create_future()
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(_Write(change, done))
        # The write goes on when the caller, and with it this future, is cancelled.
        await done
        return new

    def _flush(self) -> None:
        """Commit what is pending: here, or in the thread where a commit waits for the disk."""
        if not self._pending:
            return
        batch = _Batch(self._pending, self._obsolete, self._horizon)
        self._pending, self._obsolete = [], []
        if self._waits:
            self._queue.put(batch)
        else:
            self._publish(batch.writes, self._commit_batch(batch))

    def _write_all(self) -> None:
        """The writer thread: one transaction for everything that is queued at the moment."""
        while (batch := self._queue.get()) is not None:
            last = False
            while not (last or self._queue.empty()):
                more = self._queue.get()
                last = more is None
                if more is not None:
                    batch = _Batch(batch.writes + more.writes, batch.obsolete + more.obsolete, more.horizon)
            error = self._commit_batch(batch)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._publish, batch.writes, error)
            if last:
                return

    def _commit_batch(self, batch: _Batch) -> Exception | None:
        try:
            self._transact(batch)
        except sqlite3.Error as error:
            return error
        self._unchecked += sum(1 + len(write.change.new.raw) // _PAGE for write in batch.writes)
        if self._unchecked > _CHECKPOINT_PAGES:
            self._check_point()
        return None

    def _check_point(self) -> None:
        """Start to move what the log has into the database, unless that is under way."""
        if self._path is None or (self._checkpointer is not None and self._checkpointer.is_alive()):
            return
        self._unchecked = 0
        self._checkpointer = threading.Thread(
            target=_checkpoint, args=(self._path,), name="objects-checkpoint", daemon=True
        )
        self._checkpointer.start()

    def _transact(self, batch: _Batch) -> None:
        if len(batch.writes) <= _ROWS and not batch.obsolete:
            self._insert(batch.writes)
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for begin in range(0, len(batch.writes), _ROWS):
                self._insert(batch.writes[begin : begin + _ROWS])
            if batch.obsolete:
                self._db.execute("DELETE FROM horizon")
                self._db.execute("INSERT INTO horizon VALUES (?)", (batch.horizon,))
                self._db.executemany("DELETE FROM versions WHERE revision = ?", [(r,) for r in batch.obsolete])
            self._db.execute("COMMIT")
        except sqlite3.Error:
            self._db.execute("ROLLBACK")
            raise

    def _insert(self, writes: builtins.list[_Write]) -> None:
        values: builtins.list[Any] = []
        for (revision, _, new, deleted, _), _ in writes:
            values += (revision, new.resource, new.namespace, new.name, deleted, new.raw)
        self._db.execute(_INSERT + ", ".join([_ROW] * len(writes)), values)

    def _publish(self, writes: builtins.list[_Write], error: Exception | None) -> None:
        for change, done in writes:
            if error is not None:
                if not done.done():
                    done.set_exception(UnavailableError(f"the object could not be stored: {error}"))
                continue
            self._apply(change)
            # Before the writer: what waits for a change (a Pod's node, a run) is of more hurry than who made it.
            self._tell(change)
            if not done.done():
                done.set_result(None)
        self._trim()

    def _apply(self, change: Change) -> None:
        new = change.new
        self.revision = change.revision
        if change.old is not None:
            self._unindex(change.old)
        self._set(new, remove=change.deleted)
        if not change.deleted:
            self._index(new)
        self._remember(change)
        self._forget_decoded(change)

    def _remember(self, change: Change) -> None:
        """Add to the history; what has left the newest part of it stays on disk only."""
        self._log.append(change)
        self._log_bytes += change.new.size
        self._fresh.append(change)
        self._fresh_bytes += change.new.size
        while self._fresh_bytes > _FRESH_BYTES:
            past = self._fresh.popleft()
            self._fresh_bytes -= past.new.size
            if past.old is not None:
                past.old.forget_raw(self._reader)
            if past.deleted:
                past.new.forget_raw(self._reader)

    def _read(self, revision: int) -> bytes:
        try:
            rows = self._db.execute("SELECT object FROM versions WHERE revision = ?", (revision,)).fetchall()
        except sqlite3.Error as error:
            raise UnavailableError(f"the history could not be read: {error}") from error
        if not rows:
            raise ExpiredError(f"too old resource version: {revision} ({self._horizon})")
        raw: bytes = rows[0][0]
        return raw

    def _forget_decoded(self, change: Change) -> None:
        """Note a change of which watchers read the objects now, and let go of those that nobody reads any more."""
        self._decoded.append(change)
        if len(self._decoded) > _DECODED:
            past = self._decoded.popleft()
            if past.old is not None:
                past.old.forget_object()
            if past.deleted or not self._subscriptions.get(past.new.resource):
                past.new.forget_object()

    def _tell(self, change: Change) -> None:
        for listener in itertools.chain(self.listeners, self._listeners.get(change.new.resource, ())):
            try:
                listener(change)
            except Exception:
                # A listener's defect must not keep other writers waiting for ever.
                log.exception("listener failed on %s %s", change.new.resource, change.new.name)
        if subscriptions := self._subscriptions.get(change.new.resource):
            for subscription in tuple(subscriptions):
                if subscription.namespace in ("", change.new.namespace):
                    subscription.push(change)

    def _set(self, new: Stored, *, remove: bool) -> None:
        names = self._objects.setdefault(new.resource, {}).setdefault(new.namespace, {})
        if remove:
            names.pop(new.name, None)
            if not names:
                del self._objects[new.resource][new.namespace]
        else:
            names[new.name] = new

    def _index(self, stored: Stored) -> None:
        for reference in stored.owners:
            self._owned.setdefault(reference["uid"], set()).add((stored.resource, stored.namespace, stored.name))

    def _unindex(self, stored: Stored) -> None:
        for reference in stored.owners:
            owned = self._owned.get(reference["uid"])
            if owned is not None:
                owned.discard((stored.resource, stored.namespace, stored.name))
                if not owned:
                    del self._owned[reference["uid"]]

    def _trim(self) -> None:
        """Drop history that is old or too much; rows that nothing can ask for any more go with the next commit."""
        oldest = time.monotonic() - KEEP_S
        while len(self._obsolete) < _TRIM and (
            len(self._log) > MAX_REVISIONS
            or self._log_bytes > MAX_BYTES
            or (len(self._log) > KEEP_REVISIONS and self._log[0].at < oldest)
        ):
            change = self._log.popleft()
            self._log_bytes -= change.new.size
            if self._fresh and self._fresh[0] is change:
                self._fresh.popleft()
                self._fresh_bytes -= change.new.size
            self._horizon = change.revision
            if change.old is not None:
                self._obsolete.append(change.old.revision)
            if change.deleted:
                self._obsolete.append(change.revision)


def _log_pages(path: Path) -> int:
    log_file = path.with_name(f"{path.name}-wal")
    return log_file.stat().st_size // _PAGE if log_file.exists() else 0


def _checkpoint(path: Path) -> None:
    """Move what the log has into the database."""
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > _MAX_LOG_PAGES:
                # The log starts over only where no write came meanwhile. Under writes that never pause, the few pages
                # that are left are moved with writers kept out.
                db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
    except sqlite3.Error:
        # The next one moves all the more.
        log.exception("checkpoint of the object store failed")


def encode_object(obj: Any) -> bytes:
    """JSON of anything that came from the store or goes to the wire."""
    return _encode(obj)
