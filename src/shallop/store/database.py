"""Rows: one writer thread, readers beside it, migrations by name."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from shallop.store.prepared import error_of_driver

__all__ = ["Database", "Migration"]

T = TypeVar("T")
Migration = Callable[[sa.Connection], None]

# Two pages that show 10,000 tasks each read for 0.4 s: lists must not wait for them.
_READERS = 4
_metadata = sa.MetaData()
_applied = sa.Table(
    "applied_migrations",
    _metadata,
    sa.Column("part", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(128), primary_key=True),
)


class Database:
    """
    A SQLAlchemy engine with one writer.

    Args:
        url: ``sqlite:////absolute/path`` or ``postgresql+psycopg://...``.
        synchronous: of SQLite. ``normal``: the operating system syncs the log, so a killed process loses nothing; a
            power cut may lose the last moment. ``full``: every commit waits for the disk.

    A write has been committed when its coroutine returns.
    """

    def __init__(self, url: str, *, synchronous: str = "normal") -> None:
        self._engine = sa.create_engine(url, json_serializer=_encode, json_deserializer=_decode)
        if self._engine.dialect.name == "sqlite":
            _create_private(self._engine.url.database)
            sa.event.listen(self._engine, "connect", lambda connection, _: _prepare_sqlite(connection, synchronous))
        self._opened: list[sa.Connection] = []
        self._own = threading.local()
        self._writer = ThreadPoolExecutor(1, "rows-writer")
        self._readers = ThreadPoolExecutor(_READERS, "rows-reader")

    async def write(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn`` in a transaction of the writer thread; rolled back when it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._transact, fn)

    async def read(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn``, which must not write, on a snapshot in a reader thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, fn)

    def _transact(self, fn: Callable[[sa.Connection], T]) -> T:
        return self._within(self._connection("writes"), "BEGIN IMMEDIATE", fn)

    def _read(self, fn: Callable[[sa.Connection], T]) -> T:
        return self._within(self._connection("reads"), "BEGIN", fn)

    def _within(self, connection: sa.Connection, begin: str, fn: Callable[[sa.Connection], T]) -> T:
        if connection.dialect.name != "sqlite":
            with connection.begin():
                return fn(connection)
        # SQLAlchemy's own transaction, which costs as much as a statement, is there only where ``fn`` executes by it.
        _send(connection, begin)
        try:
            result = fn(connection)
            if connection.in_transaction():
                connection.commit()
            else:
                _send(connection, "COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
        return result

    def _connection(self, use: str) -> sa.Connection:
        """Return a thread's own connection: to take one from the pool each time costs as much as some statements."""
        connection: sa.Connection | None = getattr(self._own, use, None)
        if connection is None:
            connection = self._engine.connect()
            setattr(self._own, use, connection)
            self._opened.append(connection)
        return connection

    def migrate(self, part: str, migrations: Sequence[Migration]) -> None:
        """Apply the migrations that this database has not seen, in order, each in a transaction of its own."""
        self._transact(_metadata.create_all)
        for migration in migrations:
            self._transact(lambda connection, migration=migration: _apply(connection, part, migration))  # type: ignore[misc]

    def close(self) -> None:
        """Wait for writes under way, then close every connection."""
        self._writer.shutdown()
        self._readers.shutdown()
        for connection in self._opened:
            connection.close()
        self._engine.dispose()


def _apply(connection: sa.Connection, part: str, migration: Migration) -> None:
    row = {"part": part, "name": migration.__name__}
    if connection.execute(sa.select(_applied).filter_by(**row)).first() is None:
        migration(connection)
        connection.execute(_applied.insert(), row)


def _encode(value: Any) -> str:
    """Write JSON; a lone surrogate, which users' texts may have, only the slower module can write."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(value)


def _decode(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.loads(text)


def _create_private(path: str | None) -> None:
    if path and path != ":memory:":
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _prepare_sqlite(connection: object, synchronous: str) -> None:
    # The driver's own transactions begin too late for reads: ``Database`` sends BEGIN itself.
    connection.isolation_level = None  # type: ignore[attr-defined]
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _send(connection: sa.Connection, statement: str) -> None:
    try:
        connection.connection.cursor().execute(statement)
    except connection.dialect.loaded_dbapi.Error as error:
        raise error_of_driver(connection, error, statement) from error


def _roll_back(connection: sa.Connection) -> None:
    if connection.in_transaction():
        connection.rollback()
    elif not connection.invalidated:
        # Nothing to undo where SQLite itself has, as it does when the disk is full.
        connection.connection.rollback()
