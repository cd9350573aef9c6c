"""Rows of the registry: one row per resource, an index of its properties for filters, and links to parents."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from shallop.errors import BadRequestError
from shallop.registry.entry import Entry
from shallop.registry.filters import AllOf, AnyOf, Comparison, Node, Scalar
from shallop.registry.resources import Field, ResourceType

__all__ = ["MIGRATIONS", "Page", "Query", "find", "insert", "is_taken", "link", "next_ids", "select_page", "update"]

_metadata = sa.MetaData()
_resources = sa.Table(
    "registry_resources",
    _metadata,
    sa.Column("space", sa.String(16), primary_key=True),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("type", sa.String(32), nullable=False),
    # Names are unique within a type and a scope: the parent's id, or a random text for artifacts without parent.
    sa.Column("scope", sa.String(64), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("external_id", sa.Text),
    sa.Column("description", sa.Text),
    sa.Column("fields", sa.LargeBinary, nullable=False),
    sa.Column("custom", sa.LargeBinary, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False, index=True),
    sa.UniqueConstraint("type", "scope", "name"),
    sa.UniqueConstraint("space", "external_id"),
)
_links = sa.Table(
    "registry_links",
    _metadata,
    sa.Column("parent_id", sa.BigInteger, primary_key=True),
    sa.Column("space", sa.String(16), primary_key=True),
    sa.Column("id", sa.BigInteger, primary_key=True),
)
_properties = sa.Table(
    "registry_properties",
    _metadata,
    sa.Column("space", sa.String(16), primary_key=True),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("custom", sa.Boolean, primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("string", sa.Text),
    sa.Column("int", sa.BigInteger),
    sa.Column("double", sa.Float),
    sa.Column("bool", sa.Boolean),
    sa.Index("registry_properties_string", "custom", "key", "string"),
    sa.Index("registry_properties_double", "custom", "key", "double"),
)


def m0001_create(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


MIGRATIONS = (m0001_create,)


class Query(NamedTuple):
    """
    Which resources, in which order.

    Args:
        order: ``id``, ``created_ms`` or ``updated_ms``.
        after: the last resource of the page before, as (id, value of ``order``).
        limit: at most so many; None for all.
    """

    types: tuple[ResourceType, ...]
    name: str | None = None
    external_id: str | None = None
    parent_id: int | None = None
    where: Node | None = None
    order: str = "id"
    descending: bool = False
    after: tuple[int, int] | None = None
    limit: int | None = None


class Page(NamedTuple):
    """``last`` is what continues after this page; None on the last one."""

    entries: list[Entry]
    last: tuple[int, int] | None


def next_ids(connection: sa.Connection, space: str, now_ms: int) -> tuple[int, int]:
    """Return the next id of a space and a time later than every time stored, so that order by time is total."""
    last_id = connection.scalar(sa.select(sa.func.max(_resources.c.id)).where(_resources.c.space == space)) or 0
    last_ms = connection.scalar(sa.select(sa.func.max(_resources.c.updated_ms))) or 0
    return last_id + 1, max(now_ms, last_ms + 1)


def insert(connection: sa.Connection, entry: Entry, type_: ResourceType, scope: str) -> None:
    connection.execute(
        _resources.insert(), _row(entry) | {"space": type_.space, "scope": scope, "created_ms": entry.created_ms}
    )
    _index(connection, entry, type_)


def update(connection: sa.Connection, entry: Entry, type_: ResourceType) -> None:
    where = (_resources.c.space == type_.space) & (_resources.c.id == entry.id)
    connection.execute(_resources.update().where(where).values(_row(entry)))
    connection.execute(
        _properties.delete().where((_properties.c.space == type_.space) & (_properties.c.id == entry.id))
    )
    _index(connection, entry, type_)


def link(connection: sa.Connection, space: str, id_: int, parent_id: int) -> None:
    row = {"space": space, "id": id_, "parent_id": parent_id}
    if connection.execute(sa.select(_links).filter_by(**row)).first() is None:
        connection.execute(_links.insert(), row)


def is_taken(connection: sa.Connection, type_: ResourceType, *, scope: str, name: str) -> int | None:
    """Return the id of the resource of this type that has ``name`` in ``scope``."""
    statement = sa.select(_resources.c.id).filter_by(type=type_.name, scope=scope, name=name)
    return connection.scalar(statement)


def find(connection: sa.Connection, types: Sequence[ResourceType], id_: int) -> Entry | None:
    """Return the resource of one of ``types`` (all of one space) that has the id."""
    statement = _resources.select().where(
        (_resources.c.space == types[0].space) & (_resources.c.id == id_) & _resources.c.type.in_(_names(types))
    )
    row = connection.execute(statement).first()
    return None if row is None else _entry(row)


def select_page(connection: sa.Connection, query: Query) -> Page:
    statement = _resources.select().where(
        (_resources.c.space == query.types[0].space) & _resources.c.type.in_(_names(query.types))
    )
    if query.name is not None:
        statement = statement.where(_resources.c.name == query.name)
    if query.external_id is not None:
        statement = statement.where(_resources.c.external_id == query.external_id)
    if query.parent_id is not None:
        statement = statement.where(_has_parent(query.parent_id))
    if query.where is not None:
        statement = statement.where(_condition(query.where, _Names(query.types, connection.dialect.name)))
    order = _resources.c[query.order]
    if query.after is not None:
        position = sa.tuple_(order, _resources.c.id)
        last = sa.tuple_(sa.literal(query.after[1]), sa.literal(query.after[0]))
        statement = statement.where(position < last if query.descending else position > last)
    columns = (order.desc(), _resources.c.id.desc()) if query.descending else (order, _resources.c.id)
    statement = statement.order_by(*columns)
    if query.limit is not None:
        statement = statement.limit(query.limit + 1)
    rows = connection.execute(statement).all()
    if query.limit is None or len(rows) <= query.limit:
        return Page([_entry(row) for row in rows], None)
    page = rows[: query.limit]
    return Page([_entry(row) for row in page], (page[-1].id, page[-1]._mapping[query.order]))


def _names(types: Sequence[ResourceType]) -> list[str]:
    return [type_.name for type_ in types]


def _has_parent(parent_id: int) -> sa.ColumnElement[bool]:
    return sa.exists().where(
        (_links.c.parent_id == parent_id) & (_links.c.space == _resources.c.space) & (_links.c.id == _resources.c.id)
    )


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "type": entry.type,
        "name": entry.name,
        "external_id": entry.external_id,
        "description": entry.description,
        "fields": msgspec.json.encode(entry.fields),
        "custom": msgspec.json.encode(entry.custom),
        "updated_ms": entry.updated_ms,
    }


def _entry(row: sa.Row[Any]) -> Entry:
    return Entry(
        type=row.type,
        id=row.id,
        name=row.name,
        external_id=row.external_id,
        description=row.description,
        custom=msgspec.json.decode(row.custom),
        fields=msgspec.json.decode(row.fields),
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
    )


def _index(connection: sa.Connection, entry: Entry, type_: ResourceType) -> None:
    rows = [
        row | {"space": type_.space, "id": entry.id}
        for row in (*_index_fields(entry.fields, type_.fields), *_index_custom(entry.custom))
    ]
    if rows:
        connection.execute(_properties.insert(), rows)


def _index_fields(values: Mapping[str, Any], fields: Mapping[str, Field]) -> list[dict[str, Any]]:
    rows = []
    for name, value in values.items():
        items = value if fields[name].kind == "texts" else [value]
        column = _FIELD_COLUMNS[fields[name].kind]
        for position, item in enumerate(items):
            rows.append(_property(name, column, item, custom=False, position=position))
    return rows


def _index_custom(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, value in values.items():
        column, item = next((key.removesuffix("_value"), item) for key, item in value.items() if key != "metadataType")
        if column in _CASTS:
            rows.append(_property(name, column, item, custom=True, position=0))
    return rows


def _property(key: str, column: str, value: Any, *, custom: bool, position: int) -> dict[str, Any]:
    row: dict[str, Any] = {"custom": custom, "key": key, "position": position}
    return row | dict.fromkeys(_CASTS) | {column: _CASTS[column](value)}


_CASTS: Mapping[str, Callable[[Any], Any]] = {"string": str, "int": int, "double": float, "bool": bool}
_FIELD_COLUMNS = {
    "text": "string",
    "texts": "string",
    "number": "double",
    "integer": "int",
    "millis": "int",
    "id": "int",
}
_PLAIN_COLUMNS: Mapping[str, tuple[str, sa.Column[Any]]] = {
    "id": ("int", _resources.c.id),
    "name": ("string", _resources.c.name),
    "externalId": ("string", _resources.c.external_id),
    "createTimeSinceEpoch": ("int", _resources.c.created_ms),
    "lastUpdateTimeSinceEpoch": ("int", _resources.c.updated_ms),
}


class _Names:
    """What the names in a filter mean for some types."""

    def __init__(self, types: Sequence[ResourceType], dialect: str) -> None:
        self.dialect = dialect
        self.fields = {name: field for type_ in types for name, field in type_.fields.items()}


def _condition(node: Node, names: _Names) -> sa.ColumnElement[bool]:
    if isinstance(node, AllOf):
        return sa.and_(*(_condition(term, names) for term in node.terms))
    if isinstance(node, AnyOf):
        return sa.or_(*(_condition(term, names) for term in node.terms))
    if node.name in _PLAIN_COLUMNS and not node.column:
        kind, column = _PLAIN_COLUMNS[node.name]
        return _compare(column, kind, node, names)
    if node.name in names.fields and not node.column:
        return _has_property(node, names, custom=False)
    return _has_property(node, names, custom=True)


def _has_property(node: Comparison, names: _Names, *, custom: bool) -> sa.ColumnElement[bool]:
    columns = [node.column] if node.column else _columns_of(node, names, custom=custom)
    matches = sa.or_(*(_compare(_properties.c[column], column, node, names) for column in columns))
    return sa.exists().where(
        (_properties.c.space == _resources.c.space)
        & (_properties.c.id == _resources.c.id)
        & (_properties.c.custom == custom)
        & (_properties.c.key == node.name)
        & matches
    )


def _columns_of(node: Comparison, names: _Names, *, custom: bool) -> list[str]:
    """Return the columns that may hold the property; a custom one may be of any type that fits the value."""
    if not custom and node.name != "value":
        return [_FIELD_COLUMNS[names.fields[node.name].kind]]
    if not node.values or isinstance(node.values[0], str):
        return ["string"]
    return ["bool"] if isinstance(node.values[0], bool) else ["int", "double"]


def _compare(
    column: sa.Column[Any] | sa.ColumnElement[Any], kind: str, node: Comparison, names: _Names
) -> sa.ColumnElement[bool]:
    values = [_cast(value, kind, node) for value in node.values]
    if node.operator == "IN":
        return column.in_(values)
    value = values[0]
    if node.operator in ("LIKE", "ILIKE"):
        if kind != "string":
            raise BadRequestError(f"filterQuery: {node.name}: {node.operator} compares text only")
        return column.ilike(value) if node.operator == "ILIKE" else _like(column, str(value), names.dialect)
    operators: Mapping[str, Callable[[], sa.ColumnElement[bool]]] = {
        "=": lambda: column == value,
        "!=": lambda: column != value,
        ">": lambda: column > value,
        "<": lambda: column < value,
        ">=": lambda: column >= value,
        "<=": lambda: column <= value,
    }
    return operators[node.operator]()


def _cast(value: Scalar, kind: str, node: Comparison) -> Scalar:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "int" and isinstance(value, str) and not node.column and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)  # ids and times are decimal text on the wire
    fits = {"string": isinstance(value, str), "bool": isinstance(value, bool)}.get(kind, is_number)
    if not fits:
        wanted = {"string": "text", "bool": "true or false"}.get(kind, "a number")
        raise BadRequestError(f"filterQuery: {node.name} compares with {wanted}, not with {value!r}")
    return value


def _like(column: sa.ColumnElement[Any], pattern: str, dialect: str) -> sa.ColumnElement[bool]:
    if dialect != "sqlite":
        return column.like(pattern)
    # LIKE of SQLite ignores case; GLOB does not.
    glob = re.sub(r"[*?\[]", lambda match: f"[{match.group()}]", pattern).replace("%", "*").replace("_", "?")
    return column.op("GLOB", is_comparison=True)(glob)
