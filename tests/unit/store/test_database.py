"""Rows: migrations once, writes atomic, files private."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from shallop.errors import SettingsError
from shallop.settings import Settings
from shallop.store.database import Database

CALLS: list[str] = []


def m0001_create(connection: sa.Connection) -> None:
    CALLS.append("create")
    connection.exec_driver_sql("CREATE TABLE things (name TEXT PRIMARY KEY)")


def m0002_fill(connection: sa.Connection) -> None:
    CALLS.append("fill")
    connection.exec_driver_sql("INSERT INTO things VALUES ('first')")


def names(connection: sa.Connection) -> list[str]:
    return [row[0] for row in connection.exec_driver_sql("SELECT name FROM things ORDER BY name")]


def test_migrations_run_once_and_in_order(tmp_path: Path) -> None:
    CALLS.clear()
    for _ in range(2):
        database = Database(f"sqlite:///{tmp_path}/rows.db")
        database.migrate("demo", (m0001_create, m0002_fill))
        assert asyncio.run(database.read(names)) == ["first"]
        database.close()
    assert CALLS == ["create", "fill"]
    assert (tmp_path / "rows.db").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/rows.db")
    database.migrate("demo", (m0001_create,))

    def half(connection: sa.Connection) -> None:
        connection.exec_driver_sql("INSERT INTO things VALUES ('a')")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        asyncio.run(database.write(half))
    assert asyncio.run(database.read(names)) == []
    database.close()


def test_a_short_read_does_not_wait_for_long_ones(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/rows.db")
    database.migrate("demo", (m0001_create, m0002_fill))
    finish = threading.Event()

    async def go() -> list[str]:
        long = [asyncio.ensure_future(database.read(lambda _: finish.wait(60))) for _ in range(2)]
        found = await asyncio.wait_for(database.read(names), 30)
        assert not any(read.done() for read in long)
        finish.set()
        await asyncio.gather(*long)
        return found

    assert asyncio.run(go()) == ["first"]
    database.close()


def test_concurrent_writes_are_all_kept(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/rows.db")
    database.migrate("demo", (m0001_create,))

    async def scenario() -> list[str]:

        async def add(number: int) -> None:
            await database.write(lambda c: c.execute(sa.text("INSERT INTO things VALUES (:n)"), {"n": f"{number:03}"}))

        await asyncio.gather(*(add(n) for n in range(50)))
        return await database.read(names)

    assert len(asyncio.run(scenario())) == 50
    database.close()


@pytest.mark.parametrize(("synchronous", "level"), [("normal", 1), ("full", 2)])
def test_a_commit_waits_for_the_disk_where_that_was_asked_for(tmp_path: Path, synchronous: str, level: int) -> None:
    database = Database(f"sqlite:///{tmp_path}/rows.db", synchronous=synchronous)
    assert asyncio.run(database.write(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar())) == level
    database.close()


def test_another_word_for_synchronous_is_refused() -> None:
    with pytest.raises(SettingsError, match="use normal or full"):
        Settings(synchronous="off")
