"""Prepared statements: the values that ``Connection.execute`` writes, and its errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from shallop.store.database import Database
from shallop.store.prepared import Prepared

_metadata = sa.MetaData()
things = sa.Table(
    "things",
    _metadata,
    sa.Column("name", sa.String(8), primary_key=True),
    sa.Column("parts", sa.JSON),
    sa.Column("error", sa.JSON(none_as_null=True)),
)
INSERT = Prepared(things.insert(), ("name", "parts", "error"))
RENAME = Prepared(
    things.update().where(things.c.name == sa.bindparam("old")).values(name=sa.bindparam("new"), parts=["renamed"])
)


def thing(name: str, parts: Any = None, error: Any = None) -> dict[str, Any]:
    return {"error": error, "parts": parts, "name": name}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/rows.db")
    database.migrate("things", (_create,))
    yield database
    database.close()


def _create(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


def write(database: Database, fn: Callable[[sa.Connection], Any]) -> None:
    asyncio.run(database.write(fn))


def read(database: Database) -> list[tuple[Any, ...]]:
    query = "SELECT name, parts, error FROM things ORDER BY name"
    return asyncio.run(database.read(lambda c: [tuple(row) for row in c.exec_driver_sql(query)]))


def test_it_writes_what_an_ordinary_execution_writes(database: Database) -> None:
    given = [thing("a", {"x": [1, None, "\u00e9"]}), thing("b", None, {"code": 1}), thing("c", "\ud800")]
    write(database, lambda c: INSERT.execute(c, given))
    prepared = read(database)
    write(database, lambda c: c.execute(things.delete()))
    write(database, lambda c: c.execute(things.insert(), given))
    assert prepared == read(database)


def test_an_update_takes_its_parameters_by_name(database: Database) -> None:
    write(database, lambda c: INSERT.execute(c, [thing("a", 1), thing("b", 2)]))
    write(database, lambda c: RENAME.execute(c, [{"new": "z", "old": "a"}, {"new": "y", "old": "b"}]))
    assert read(database) == [("y", '["renamed"]', None), ("z", '["renamed"]', None)]


def test_a_select_gives_what_an_ordinary_execution_gives(database: Database) -> None:
    write(database, lambda c: INSERT.execute(c, [thing("a", {"x": 1}), thing("b", None, {"code": 1}), thing("c", [2])]))
    query = sa.select(things).order_by(things.c.name.desc()).limit(1)
    newest = Prepared(query.where(things.c.name < sa.bindparam("below")))
    found = asyncio.run(database.read(lambda c: newest.fetch(c, below="c")))
    expected = asyncio.run(database.read(lambda c: c.execute(query.where(things.c.name < "c")).mappings().all()))
    assert found == [dict(row) for row in expected] == [thing("b", None, {"code": 1})]
    assert asyncio.run(database.read(lambda c: newest.first(c, below="a"))) is None


def test_errors_are_those_of_sqlalchemy_and_leave_nothing(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError, match="UNIQUE"):
        write(database, lambda c: INSERT.execute(c, [thing("a"), thing("a")]))
    assert read(database) == []
    write(database, lambda c: c.exec_driver_sql("DROP TABLE things"))
    with pytest.raises(sa.exc.OperationalError, match="no such table"):
        write(database, lambda c: INSERT.execute(c, [thing("a")]))


@pytest.mark.parametrize("begun_by_sqlalchemy", [False, True])
def test_a_lost_connection_is_given_up_for_another(database: Database, begun_by_sqlalchemy: bool) -> None:
    def lose(connection: sa.Connection) -> None:
        if begun_by_sqlalchemy:
            connection.execute(things.delete())
        connection.connection.dbapi_connection.close()  # type: ignore[union-attr]
        INSERT.execute(connection, [thing("a")])

    with pytest.raises(sa.exc.DBAPIError) as caught:
        write(database, lose)
    assert caught.value.connection_invalidated
    write(database, lambda c: INSERT.execute(c, [thing("b")]))
    assert [name for name, _, _ in read(database)] == ["b"]


def test_both_kinds_of_statements_share_a_transaction(database: Database) -> None:
    def half(connection: sa.Connection) -> None:
        INSERT.execute(connection, [thing("a")])
        connection.execute(things.insert(), [thing("b")])
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write(database, half)
    assert read(database) == []
    write(database, lambda c: (INSERT.execute(c, [thing("a")]), c.execute(things.insert(), [thing("b")])))
    assert [name for name, _, _ in read(database)] == ["a", "b"]
