"""Rows of the pipelines part, and all SQL over them. Times are microseconds since 1970; 0 = not set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from shallop.errors import AlreadyExistsError
from shallop.pipelines.filters import Predicate
from shallop.pipelines.listing import METRIC, Page, next_token
from shallop.store.prepared import Prepared

__all__ = ["MIGRATIONS", "Listed"]

Row = dict[str, Any]
_metadata = sa.MetaData()


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String(64), primary_key=True)


def _namespace() -> sa.Column[str]:
    """Make the column of whose a row is: empty on a single-user server, and of what all users share."""
    return sa.Column("namespace", sa.String(64), nullable=False, server_default="")


def _text(name: str, length: int = 256) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=False, server_default="")


def _long_text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _time(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _json(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON, nullable=False)


experiments = sa.Table(
    "pipelines_experiments",
    _metadata,
    _id(),
    _namespace(),
    sa.Column("name", sa.String(256), nullable=False),
    _long_text("description"),
    _time("created_at"),
    _time("last_run_created_at"),
    _text("storage_state", 16),
    sa.UniqueConstraint("namespace", "name"),
    sa.Index("pipelines_experiments_created", "created_at", "id"),
)
pipelines = sa.Table(
    "pipelines_pipelines",
    _metadata,
    _id(),
    _namespace(),
    sa.Column("name", sa.String(256), nullable=False),
    _text("display_name"),
    _long_text("description"),
    _time("created_at"),
    _json("tags"),
    sa.UniqueConstraint("namespace", "name"),
    sa.Index("pipelines_pipelines_created", "created_at", "id"),
)
versions = sa.Table(
    "pipelines_versions",
    _metadata,
    _id(),
    sa.Column("pipeline_id", sa.ForeignKey("pipelines_pipelines.id"), nullable=False),
    _text("name"),
    _text("display_name"),
    _long_text("description"),
    _time("created_at"),
    _json("tags"),
    _text("code_source_url", 2048),
    _text("package_url", 2048),
    _text("spec_digest", 64),
    sa.UniqueConstraint("pipeline_id", "name"),
    sa.Index("pipelines_versions_created", "pipeline_id", "created_at", "id"),
)
# The same pipeline is submitted many times: its document is stored once.
specs = sa.Table(
    "pipelines_specs", _metadata, sa.Column("digest", sa.String(64), primary_key=True), _long_text("document")
)
runs = sa.Table(
    "pipelines_runs",
    _metadata,
    _id(),
    _text("experiment_id", 64),
    _text("name"),
    _long_text("description"),
    _text("storage_state", 16),
    _text("pipeline_id", 64),
    _text("pipeline_version_id", 64),
    _text("spec_digest", 64),
    _text("pipeline_name"),
    _json("parameters"),
    _text("pipeline_root", 2048),
    _text("service_account"),
    _time("created_at"),
    _time("scheduled_at"),
    _time("finished_at"),
    _text("state", 16),
    sa.Column("error", sa.JSON(none_as_null=True)),
    _json("state_history"),
    _text("recurring_run_id", 64),
    _json("plugins_input"),
    _json("outputs"),
    sa.Column("reuse", sa.JSON(none_as_null=True)),  # of a run that repeats another
    _namespace(),
    sa.Index("pipelines_runs_created", "created_at", "id"),
    sa.Index("pipelines_runs_storage", "storage_state", "created_at", "id"),
    sa.Index("pipelines_runs_experiment", "experiment_id", "storage_state", "created_at", "id"),
    sa.Index("pipelines_runs_experiment_created", "experiment_id", "created_at", "id"),
    sa.Index("pipelines_runs_state", "state", "created_at", "id"),
    sa.Index("pipelines_runs_name", "name", "id"),
    sa.Index("pipelines_runs_finished", "finished_at", "id"),
    sa.Index("pipelines_runs_storage_finished", "storage_state", "finished_at", "id"),
    sa.Index("pipelines_runs_storage_name", "storage_state", "name", "id"),
    sa.Index("pipelines_runs_pipeline", "pipeline_version_id", "created_at"),
    sa.Index("pipelines_runs_spec", "spec_digest"),
    sa.Index("pipelines_runs_recurring", "recurring_run_id", "state"),
    sa.Index("pipelines_runs_namespace", "namespace", "created_at", "id"),
    sa.Index("pipelines_runs_namespace_state", "namespace", "state", "created_at", "id"),
    sa.Index("pipelines_runs_namespace_storage", "namespace", "storage_state", "created_at", "id"),
    sa.Index("pipelines_runs_name_created", "name", "created_at", "id"),
    sa.Index("pipelines_runs_recurring_created", "recurring_run_id", "created_at", "id"),
    sa.Index("pipelines_runs_experiment_state", "experiment_id", "state", "created_at", "id"),
)
recurring_runs = sa.Table(
    "pipelines_recurring_runs",
    _metadata,
    _id(),
    _text("experiment_id", 64),
    _text("name"),
    _long_text("description"),
    _text("pipeline_id", 64),
    _text("pipeline_version_id", 64),
    _text("spec_digest", 64),
    _json("parameters"),
    _text("pipeline_root", 2048),
    _text("service_account"),
    sa.Column("max_concurrency", sa.Integer, nullable=False),
    _json("trigger"),
    _text("status", 16),
    sa.Column("no_catchup", sa.Boolean, nullable=False),
    _time("created_at"),
    _time("updated_at"),
    sa.Column("error", sa.JSON(none_as_null=True)),
    _json("plugins_input"),
    _time("last_tick"),
    sa.Column("last_index", sa.Integer, nullable=False, server_default="0"),
    _namespace(),
    sa.Index("pipelines_recurring_runs_created", "created_at", "id"),
    sa.Index("pipelines_recurring_runs_experiment", "experiment_id", "created_at", "id"),
)
# What the planner has decided and been told, in order: replaying it gives the state of a run.
events = sa.Table(
    "pipelines_events",
    _metadata,
    sa.Column("run_id", sa.ForeignKey("pipelines_runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    _json("event"),
)
tasks = sa.Table(
    "pipelines_tasks",
    _metadata,
    _id(),
    sa.Column("execution", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
    sa.Column("run_id", sa.ForeignKey("pipelines_runs.id", ondelete="CASCADE"), nullable=False),
    _long_text("path"),
    _text("parent_id", 64),
    _text("name"),
    _text("display_name"),
    _text("kind", 32),
    _text("state", 16),
    _time("created_at"),
    _time("started_at"),
    _time("ended_at"),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    _json("pods"),
    _json("inputs"),
    _json("outputs"),
    sa.Column("error", sa.JSON(none_as_null=True)),
    _long_text("note"),
    _json("state_history"),
    sa.Column("usage", sa.JSON(none_as_null=True)),
    sa.Index("pipelines_tasks_run", "run_id", "execution"),
    sa.Index("pipelines_tasks_parent", "parent_id", "execution"),
)
artifacts = sa.Table(
    "pipelines_artifacts",
    _metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    _text("name"),
    _text("type"),
    sa.Column("uri", sa.String(4096), nullable=False),
    _json("metadata"),
    _text("digest", 128),
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    _time("created_at"),
    _text("run_id", 64),
    _text("task_id", 64),
    _namespace(),
    sa.Index("pipelines_artifacts_created", "created_at", "id"),
    sa.Index("pipelines_artifacts_run_created", "run_id", "created_at", "id"),
    sa.Index("pipelines_artifacts_namespace", "namespace", "created_at", "id"),
    sa.Index("pipelines_artifacts_uri", "uri"),
)
artifact_tasks = sa.Table(
    "pipelines_artifact_tasks",
    _metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("artifact_id", sa.ForeignKey("pipelines_artifacts.id"), nullable=False),
    _text("run_id", 64),
    _text("task_id", 64),
    _text("type", 8),
    _text("key"),
    sa.Index("pipelines_artifact_tasks_artifact", "artifact_id"),
    sa.Index("pipelines_artifact_tasks_run", "run_id"),
    sa.Index("pipelines_artifact_tasks_task", "task_id"),
)
cache_entries = sa.Table(
    "pipelines_cache_entries",
    _metadata,
    sa.Column("namespace", sa.String(64), primary_key=True, server_default=""),
    sa.Column("pipeline_name", sa.String(256), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    _text("run_id", 64),
    _text("task_id", 64),
    _json("outputs"),
    _time("created_at"),
    # Of what the key was made: so that a later miss can be explained.
    _text("component"),
    sa.Column("material", sa.JSON(none_as_null=True)),
    sa.Index("pipelines_cache_component", "pipeline_name", "component", "created_at"),
    sa.Index("pipelines_cache_created", "created_at", "key"),
    sa.Index("pipelines_cache_pipeline", "pipeline_name", "created_at", "key"),
)


def m0001_tables(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


def m0002_recurring_runs(connection: sa.Connection) -> None:
    recurring_runs.create(connection, checkfirst=True)
    _create_index(connection, runs, "pipelines_runs_recurring")


def m0003_cache_reasons(connection: sa.Connection) -> None:
    for column in ("component", "material"):
        _add_column(connection, cache_entries.c[column])
    _create_index(connection, cache_entries, "pipelines_cache_component")


def m0004_reuse_and_usage(connection: sa.Connection) -> None:
    _add_column(connection, runs.c.reuse)
    _add_column(connection, tasks.c.usage)


def m0005_namespaces(connection: sa.Connection) -> None:
    for table in (runs, recurring_runs, artifacts):
        _add_column(connection, table.c.namespace)
    _create_index(connection, runs, "pipelines_runs_namespace")
    for group in ((experiments,), (pipelines, versions), (cache_entries,)):
        if not _has_column(connection, group[0].c.namespace):
            _rebuild(connection, group)


def m0006_runs_of_experiments(connection: sa.Connection) -> None:
    _create_index(connection, runs, "pipelines_runs_experiment_created")


def m0007_orders_of_lists(connection: sa.Connection) -> None:
    connection.exec_driver_sql("DROP INDEX IF EXISTS pipelines_artifacts_run")
    for table in (runs, tasks, artifacts, cache_entries):
        for index in table.indexes:
            index.create(connection, checkfirst=True)


def _rebuild(connection: sa.Connection, group: Sequence[sa.Table]) -> None:
    """Make tables anew with their rows, for what ALTER TABLE cannot change; those that refer to others come last."""
    columns = {}
    for table in group:
        names = ", ".join(column["name"] for column in sa.inspect(connection).get_columns(table.name))
        columns[table] = names
        connection.exec_driver_sql(f"CREATE TEMPORARY TABLE kept_{table.name} AS SELECT {names} FROM {table.name}")
    for table in reversed(group):
        connection.exec_driver_sql(f"DROP TABLE {table.name}")
    for table in group:
        table.create(connection)
        names = columns[table]
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) SELECT {names} FROM kept_{table.name}")
        connection.exec_driver_sql(f"DROP TABLE kept_{table.name}")


def _has_column(connection: sa.Connection, column: sa.Column[Any]) -> bool:
    return column.name in (known["name"] for known in sa.inspect(connection).get_columns(column.table.name))


def _add_column(connection: sa.Connection, column: sa.Column[Any]) -> None:
    """Add a column that ``m0001_tables`` did not have; on a new database it is there already."""
    if not _has_column(connection, column):
        definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {definition}")


def _create_index(connection: sa.Connection, table: sa.Table, name: str) -> None:
    """Create an index that ``m0001_tables`` did not have; on a new database it is there already."""
    (index,) = (index for index in table.indexes if index.name == name)
    index.create(connection, checkfirst=True)


MIGRATIONS = (
    m0001_tables,
    m0002_recurring_runs,
    m0003_cache_reasons,
    m0004_reuse_and_usage,
    m0005_namespaces,
    m0006_runs_of_experiments,
    m0007_orders_of_lists,
)


# --- lists ---


class Listed(NamedTuple):
    """One page: rows, the number of all matches, and the token of the next page or the empty text."""

    rows: list[Row]
    total: int
    next_page_token: str


def _list(
    connection: sa.Connection, table: sa.Table, page: Page, namespace: str | None, *where: sa.ColumnElement[bool]
) -> Listed:
    own = [] if namespace is None else [table.c.namespace == namespace]
    conditions = [*own, *where, *(_clause(table, predicate) for predicate in page.predicates)]
    count = sa.select(sa.func.count()).select_from(table).where(*conditions)
    id_: sa.ColumnElement[Any] = table.c.id
    sort = _metric(page.sort.removeprefix(METRIC)) if page.sort.startswith(METRIC) else _column(table, page.sort)
    query = sa.select(table, sort.label("sorted_by")).where(*conditions)
    if page.after:
        here, after = sa.tuple_(sort, id_), sa.tuple_(*map(sa.literal, page.after))
        query = query.where(here < after if page.descending else here > after)
    order = [sort.desc(), id_.desc()] if page.descending else [sort.asc(), id_.asc()]
    rows = [_row(row) for row in connection.execute(query.order_by(*order).limit(page.size + 1))]
    token = ""
    if len(rows) > page.size:
        rows.pop()
        token = next_token(page, rows[-1]["sorted_by"], rows[-1]["id"])
    for row in rows:
        del row["sorted_by"]
    return Listed(rows, connection.execute(count).scalar_one(), token)


def _metric(name: str) -> sa.ColumnElement[Any]:
    """Return the greatest number of this name in the metrics of a run; runs without one come before all others."""
    value = artifacts.c.metadata[name].as_float()
    found = (
        sa.select(sa.func.max(value))
        .join(artifact_tasks, artifact_tasks.c.artifact_id == artifacts.c.id)
        .where(
            artifact_tasks.c.run_id == runs.c.id,
            artifact_tasks.c.type == "OUTPUT",
            artifacts.c.type == "system.Metrics",
        )
        .correlate(runs)
        .scalar_subquery()
    )
    return sa.func.coalesce(found, _NO_METRIC)


_NO_METRIC = -1e300
_COMPARISONS: dict[str, Callable[[Any, Any], sa.ColumnElement[bool]]] = {
    "EQUALS": lambda column, value: column == value,
    "NOT_EQUALS": lambda column, value: column != value,
    "GREATER_THAN": lambda column, value: column > value,
    "GREATER_THAN_EQUALS": lambda column, value: column >= value,
    "LESS_THAN": lambda column, value: column < value,
    "LESS_THAN_EQUALS": lambda column, value: column <= value,
    "IN": lambda column, values: column.in_(values),
    "IS_SUBSTRING": lambda column, value: column.icontains(value, autoescape=True),
}


def _column(table: sa.Table, name: str) -> Any:
    """Return what a key of clients compares and sorts by."""
    if not name:
        return sa.literal("")
    if name == "pipeline_spec":
        return sa.select(specs.c.document).where(specs.c.digest == table.c.spec_digest).scalar_subquery()
    return sa.cast(table.c[name], sa.Text) if isinstance(table.c[name].type, sa.JSON) else table.c[name]


def _clause(table: sa.Table, predicate: Predicate) -> sa.ColumnElement[bool]:
    key, operation, value = predicate.key, predicate.operation, predicate.value
    if key.kind == "tags":
        tag: sa.ColumnElement[bool] = table.c[key.column][predicate.tag].as_string() == value
        return tag
    column = _column(table, key.column)
    if key.kind == "time":
        return _time_clause(column, operation, value)
    return _COMPARISONS[operation](column, value)


def _time_clause(column: Any, operation: str, value: Any) -> sa.ColumnElement[bool]:
    # Clients know whole seconds, rows have microseconds: a second is the half-open range that begins at value.
    second = 1_000_000
    if operation == "IN":
        return sa.or_(sa.false(), *(_time_clause(column, "EQUALS", one) for one in value))
    result: dict[str, sa.ColumnElement[bool]] = {
        "EQUALS": sa.and_(column >= value, column < value + second),
        "NOT_EQUALS": sa.or_(column < value, column >= value + second),
        "GREATER_THAN": column >= value + second,
        "GREATER_THAN_EQUALS": column >= value,
        "LESS_THAN": column < value,
        "LESS_THAN_EQUALS": column < value + second,
    }
    return result[operation]


def _row(row: sa.Row[Any]) -> Row:
    return dict(row._mapping)


def _one(connection: sa.Connection, query: sa.Select[Any]) -> Row | None:
    row = connection.execute(query).first()
    return _row(row) if row else None


# --- experiments ---


def insert_experiment(connection: sa.Connection, row: Row) -> Row:
    """Add an experiment; AlreadyExistsError when the name is taken."""
    if get_experiment_named(connection, row["namespace"], row["name"]):
        raise AlreadyExistsError(f"display_name: an experiment {row['name']!r} already exists; choose another name.")
    connection.execute(experiments.insert(), row)
    return row


def get_experiment(connection: sa.Connection, id_: str) -> Row | None:
    return _one(connection, sa.select(experiments).where(experiments.c.id == id_))


def get_experiment_named(connection: sa.Connection, namespace: str, name: str) -> Row | None:
    return _one(connection, sa.select(experiments).filter_by(namespace=namespace, name=name))


def list_experiments(connection: sa.Connection, page: Page, namespace: str | None = None) -> Listed:
    """List those of one namespace, or of all when ``namespace`` is None; so do the other lists."""
    return _list(connection, experiments, page, namespace)


def delete_experiment(connection: sa.Connection, id_: str) -> None:
    """Delete an experiment; its runs stay."""
    connection.execute(experiments.delete().where(experiments.c.id == id_))


def set_experiment_storage(connection: sa.Connection, id_: str, state: str) -> None:
    """Archive or restore an experiment; archiving takes its runs along and disables its schedules."""
    connection.execute(experiments.update().where(experiments.c.id == id_).values(storage_state=state))
    if state == "ARCHIVED":
        connection.execute(runs.update().where(runs.c.experiment_id == id_).values(storage_state=state))
        own = recurring_runs.c.experiment_id == id_
        connection.execute(recurring_runs.update().where(own).values(status="DISABLED"))


# --- pipelines and versions ---


def insert_pipeline(connection: sa.Connection, row: Row) -> Row:
    """Add a pipeline; AlreadyExistsError when the name is taken."""
    if get_pipeline_named(connection, row["namespace"], row["name"]):
        raise AlreadyExistsError(
            f"name: a pipeline {row['name']!r} already exists; choose another name or upload a new version of it."
        )
    connection.execute(pipelines.insert(), row)
    return row


def get_pipeline(connection: sa.Connection, id_: str) -> Row | None:
    return _one(connection, sa.select(pipelines).where(pipelines.c.id == id_))


def get_pipeline_named(connection: sa.Connection, namespace: str, name: str) -> Row | None:
    return _one(connection, sa.select(pipelines).filter_by(namespace=namespace, name=name))


def list_pipelines(connection: sa.Connection, page: Page, namespace: str | None = None) -> Listed:
    return _list(connection, pipelines, page, namespace)


def update_pipeline(connection: sa.Connection, id_: str, values: Mapping[str, Any]) -> None:
    connection.execute(pipelines.update().where(pipelines.c.id == id_).values(**values))


def delete_pipeline(connection: sa.Connection, id_: str) -> None:
    """Delete a pipeline with its versions; runs keep their document."""
    digests = _digests(connection, versions, versions.c.pipeline_id == id_)
    connection.execute(versions.delete().where(versions.c.pipeline_id == id_))
    connection.execute(pipelines.delete().where(pipelines.c.id == id_))
    _forget_unused_specs(connection, digests)


def count_versions(connection: sa.Connection, pipeline_id: str) -> int:
    query = sa.select(sa.func.count()).select_from(versions).where(versions.c.pipeline_id == pipeline_id)
    return connection.execute(query).scalar_one()


def insert_version(connection: sa.Connection, row: Row) -> Row:
    """Add a version; AlreadyExistsError when the pipeline has one of that name."""
    taken = sa.select(versions.c.id).filter_by(pipeline_id=row["pipeline_id"], name=row["name"])
    if _one(connection, taken):
        raise AlreadyExistsError(f"name: this pipeline already has a version {row['name']!r}; choose another name.")
    connection.execute(versions.insert(), row)
    return row


def get_version(connection: sa.Connection, id_: str) -> Row | None:
    return _one(connection, sa.select(versions).where(versions.c.id == id_))


def newest_version(connection: sa.Connection, pipeline_id: str) -> Row | None:
    query = sa.select(versions).where(versions.c.pipeline_id == pipeline_id)
    return _one(connection, query.order_by(versions.c.created_at.desc(), versions.c.id.desc()).limit(1))


def list_versions(connection: sa.Connection, page: Page, pipeline_id: str) -> Listed:
    return _list(connection, versions, page, None, versions.c.pipeline_id == pipeline_id)


def update_version(connection: sa.Connection, id_: str, values: Mapping[str, Any]) -> None:
    connection.execute(versions.update().where(versions.c.id == id_).values(**values))


def delete_version(connection: sa.Connection, id_: str) -> None:
    digests = _digests(connection, versions, versions.c.id == id_)
    connection.execute(versions.delete().where(versions.c.id == id_))
    _forget_unused_specs(connection, digests)


def put_spec(connection: sa.Connection, digest: str, document: str) -> None:
    """Store a pipeline's document under its SHA-256."""
    if not connection.execute(sa.select(specs.c.digest).where(specs.c.digest == digest)).first():
        connection.execute(specs.insert(), {"digest": digest, "document": document})


_SPEC = Prepared(sa.select(specs).where(specs.c.digest == sa.bindparam("of")))


def get_specs(connection: sa.Connection, digests: Iterable[str]) -> dict[str, Any]:
    """Return documents by digest, decoded."""
    found = [row for digest in set(digests) for row in _SPEC.fetch(connection, of=digest)]
    return {row["digest"]: json.loads(row["document"]) for row in found}


def get_documents(connection: sa.Connection, digests: Iterable[str]) -> dict[str, Any]:
    """Return documents by digest as parts of an answer: their text, which nobody here reads, is not decoded."""
    found = [row for digest in set(digests) for row in _SPEC.fetch(connection, of=digest)]
    return {row["digest"]: part_of_answer(row["document"]) for row in found}


def part_of_answer(text: str) -> Any:
    """Return a document's JSON as a value that ``http.json_text`` writes as it is."""
    # What Python's module writes for numbers that JSON does not have; an answer has null for them.
    if "NaN" in text or "Infinity" in text:
        return json.loads(text)
    return msgspec.Raw(text.encode())


def _digests(connection: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> set[str]:
    """Return what documents rows have that are about to be deleted."""
    return set(connection.execute(sa.select(table.c.spec_digest).where(which)).scalars())


def _forget_unused_specs(connection: sa.Connection, digests: set[str]) -> None:
    users = (runs, versions, recurring_runs)
    used = sa.or_(*(sa.exists().where(table.c.spec_digest == specs.c.digest) for table in users))
    connection.execute(specs.delete().where(specs.c.digest.in_(digests), ~used))


# --- runs ---

_ACTIVE = ("PENDING", "RUNNING", "CANCELING")


def insert_run(connection: sa.Connection, row: Row) -> None:
    connection.execute(runs.insert(), row)
    newer = experiments.c.last_run_created_at < row["created_at"]
    connection.execute(
        experiments.update()
        .where(experiments.c.id == row["experiment_id"], newer)
        .values(last_run_created_at=row["created_at"])
    )


_RUN = Prepared(sa.select(runs).where(runs.c.id == sa.bindparam("of")))


def get_run(connection: sa.Connection, id_: str) -> Row | None:
    return _RUN.first(connection, of=id_)


def list_runs(connection: sa.Connection, page: Page, experiment_id: str, namespace: str | None = None) -> Listed:
    """List runs of one experiment, or all when ``experiment_id`` is empty."""
    where = [runs.c.experiment_id == experiment_id] if experiment_id else []
    return _list(connection, runs, page, namespace, *where)


def update_run(connection: sa.Connection, id_: str, values: Mapping[str, Any]) -> None:
    connection.execute(runs.update().where(runs.c.id == id_).values(**values))


def set_run_state(connection: sa.Connection, id_: str, state: str, error: Any, now: int) -> None:
    """
    Change the state of a run and append it to the history; the same state again changes nothing.

    Args:
        error: None, or ``{"code", "message"}``.
        now: microseconds; becomes ``finished_at`` of a state that is an end, else that is reset.
    """
    query = sa.select(runs.c.state, runs.c.state_history).where(runs.c.id == id_)
    row = connection.execute(query).first()
    if row is None or row.state == state:
        return
    entry = {"update_time": now, "state": state} | ({"error": error} if error else {})
    ended = state in ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
    values = {"state": state, "error": error, "finished_at": now if ended else 0}
    update_run(connection, id_, values | {"state_history": [*row.state_history, entry]})


def cancel_run(connection: sa.Connection, id_: str, now: int) -> None:
    """Ask for the end of a run; nothing happens when it is over or is ending already."""
    state = connection.execute(sa.select(runs.c.state).where(runs.c.id == id_)).scalar_one_or_none()
    if state in ("PENDING", "RUNNING", "PAUSED"):
        set_run_state(connection, id_, "CANCELING", None, now)


def delete_run(connection: sa.Connection, id_: str) -> None:
    """Delete a run with its tasks, events and links; artifacts that other runs use stay, as does the cache."""
    digests = _digests(connection, runs, runs.c.id == id_)
    connection.execute(artifact_tasks.delete().where(artifact_tasks.c.run_id == id_))
    connection.execute(runs.delete().where(runs.c.id == id_))
    _forget_unused_specs(connection, digests)


def delete_expired_runs(connection: sa.Connection, *, before: int, keep: int, limit: int) -> int:
    """
    Delete runs that are over, and that no active run repeats; returns how many.

    Args:
        before: microseconds; those that ended earlier go, 0 = none.
        keep: of each namespace, those that are not among so many newest go, 0 = none.
    """
    place = sa.func.row_number().over(partition_by=runs.c.namespace, order_by=(runs.c.created_at.desc(), runs.c.id))
    numbered = sa.select(runs.c.id, runs.c.finished_at, runs.c.state, place.label("place")).subquery()
    old = sa.or_(
        sa.and_(sa.literal(before) > 0, numbered.c.finished_at < before),
        sa.and_(sa.literal(keep) > 0, numbered.c.place > keep),
    )
    repeated = {row["reuse"]["run_id"] for row in active_runs(connection) if row["reuse"]}
    query = sa.select(numbered.c.id).where(old, numbered.c.state.not_in(_ACTIVE), numbered.c.id.not_in(repeated))
    ids = list(connection.execute(query.order_by(numbered.c.finished_at).limit(limit)).scalars())
    digests = _digests(connection, runs, runs.c.id.in_(ids))
    connection.execute(artifact_tasks.delete().where(artifact_tasks.c.run_id.in_(ids)))
    connection.execute(runs.delete().where(runs.c.id.in_(ids)))
    _forget_unused_specs(connection, digests)
    return len(ids)


def runs_with_rows(connection: sa.Connection, ids: Sequence[str]) -> set[str]:
    """Return those of the runs that are there, or whose artifacts are."""
    found: set[str] = set()
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        found.update(connection.execute(sa.select(runs.c.id).where(runs.c.id.in_(some))).scalars())
        written = artifacts.c.run_id.in_(some), artifacts.c.digest != ""
        found.update(connection.execute(sa.select(artifacts.c.run_id).where(*written)).scalars())
    return found


def active_runs(connection: sa.Connection) -> list[Row]:
    """Return the runs that are not over, oldest first."""
    query = sa.select(runs).where(runs.c.state.in_(_ACTIVE))
    return [_row(row) for row in connection.execute(query.order_by(runs.c.created_at, runs.c.id))]


class Totals(NamedTuple):
    """Numbers over all rows; ``seconds`` is what tasks of a state have taken together."""

    runs: dict[str, float]
    tasks: dict[str, float]
    seconds: dict[str, float]
    recurring_runs: dict[str, float]
    cache_entries: int
    artifacts: int
    artifact_bytes: int


def read_totals(connection: sa.Connection) -> Totals:
    count = sa.func.count()
    spent = sa.func.sum(sa.case((tasks.c.ended_at > 0, tasks.c.ended_at - tasks.c.started_at), else_=0))
    by_state = sa.select(tasks.c.state, count, spent).where(tasks.c.kind == "container").group_by(tasks.c.state)
    found = list(connection.execute(by_state))
    of_runs = sa.select(runs.c.state, count).group_by(runs.c.state)
    of_recurring = sa.select(recurring_runs.c.status, count).group_by(recurring_runs.c.status)
    sizes = connection.execute(sa.select(count, sa.func.coalesce(sa.func.sum(artifacts.c.size_bytes), 0))).one()
    return Totals(
        runs={state: number for state, number in connection.execute(of_runs)},
        tasks={state: number for state, number, _ in found},
        seconds={state: float(micros) / 1e6 for state, _, micros in found},
        recurring_runs={status: number for status, number in connection.execute(of_recurring)},
        cache_entries=connection.execute(sa.select(count).select_from(cache_entries)).scalar_one(),
        artifacts=sizes[0],
        artifact_bytes=sizes[1],
    )


# --- recurring runs ---


def insert_recurring_run(connection: sa.Connection, row: Row) -> None:
    connection.execute(recurring_runs.insert(), row)


def get_recurring_run(connection: sa.Connection, id_: str) -> Row | None:
    return _one(connection, sa.select(recurring_runs).where(recurring_runs.c.id == id_))


def list_recurring_runs(
    connection: sa.Connection, page: Page, experiment_id: str, namespace: str | None = None
) -> Listed:
    """List those of one experiment, or all when ``experiment_id`` is empty."""
    where = [recurring_runs.c.experiment_id == experiment_id] if experiment_id else []
    return _list(connection, recurring_runs, page, namespace, *where)


def update_recurring_run(connection: sa.Connection, id_: str, values: Mapping[str, Any]) -> None:
    connection.execute(recurring_runs.update().where(recurring_runs.c.id == id_).values(**values))


def delete_recurring_run(connection: sa.Connection, id_: str) -> None:
    """Delete a recurring run; the runs that it started stay."""
    digests = _digests(connection, recurring_runs, recurring_runs.c.id == id_)
    connection.execute(recurring_runs.delete().where(recurring_runs.c.id == id_))
    _forget_unused_specs(connection, digests)


def enabled_recurring_runs(connection: sa.Connection) -> list[tuple[Row, int]]:
    """Return each recurring run that is enabled, with the number of its runs that are not over."""
    active = (
        sa.select(sa.func.count())
        .where(runs.c.recurring_run_id == recurring_runs.c.id, runs.c.state.in_(_ACTIVE))
        .scalar_subquery()
    )
    query = sa.select(recurring_runs, active.label("active")).where(recurring_runs.c.status == "ENABLED")
    rows = [_row(row) for row in connection.execute(query.order_by(recurring_runs.c.created_at))]
    return [(row, row.pop("active")) for row in rows]


# --- the life of a run ---


class Step(NamedTuple):
    """
    All that one step of a run changes; written in one transaction.

    Args:
        events: (seq, event) in order.
        dropped: ids of tasks that are no more.
        new_tasks: whole rows.
        tasks: id -> changed columns.
        links: artifact_id, run_id, task_id, type, key.
        cache: cache entries; a newer one replaces the older.
    """

    run_id: str
    events: Sequence[tuple[int, Any]]
    dropped: Sequence[str]
    new_tasks: Sequence[Row]
    tasks: Mapping[str, Row]
    artifacts: Sequence[Row]
    links: Sequence[Row]
    cache: Sequence[Row]


# Statements that every step of every run uses.
_INSERT_EVENTS, _INSERT_TASKS, _INSERT_ARTIFACTS, _INSERT_ENTRIES = (
    Prepared(table.insert(), table.c.keys()) for table in (events, tasks, artifacts, cache_entries)
)
_INSERT_LINKS = Prepared(artifact_tasks.insert(), ("artifact_id", "run_id", "task_id", "type", "key"))
_DELETE_LINKS = Prepared(
    artifact_tasks.delete().where(
        artifact_tasks.c.task_id == sa.bindparam("of"),
        artifact_tasks.c.type == sa.bindparam("as"),
        artifact_tasks.c.key == sa.bindparam("named"),
    )
)
_DELETE_ENTRIES = Prepared(
    cache_entries.delete().where(
        cache_entries.c.namespace == sa.bindparam("in"),
        cache_entries.c.pipeline_name == sa.bindparam("of"),
        cache_entries.c.key == sa.bindparam("as"),
    )
)


@lru_cache(maxsize=64)
def _update_tasks(columns: tuple[str, ...]) -> Prepared:
    update = tasks.update().where(tasks.c.id == sa.bindparam("changed_id"))
    return Prepared(update.values({name: sa.bindparam(name) for name in columns}))


def write_step(connection: sa.Connection, step: Step) -> None:
    if step.events:
        _INSERT_EVENTS.execute(
            connection, ({"run_id": step.run_id, "seq": seq, "event": event} for seq, event in step.events)
        )
    if step.dropped:
        connection.execute(artifact_tasks.delete().where(artifact_tasks.c.task_id.in_(step.dropped)))
        connection.execute(tasks.delete().where(tasks.c.id.in_(step.dropped)))
    if step.new_tasks:
        _INSERT_TASKS.execute(connection, step.new_tasks)
    # One statement for all that change the same columns.
    alike: dict[tuple[str, ...], list[Row]] = {}
    for id_, values in step.tasks.items():
        alike.setdefault(tuple(values), []).append({"changed_id": id_, **values})
    for columns, rows in alike.items():
        _update_tasks(columns).execute(connection, rows)
    if step.artifacts:
        _INSERT_ARTIFACTS.execute(connection, step.artifacts)
    if step.links:
        # A task that is started again has its links already; those to what a client has registered stay.
        ends = {(link["task_id"], link["type"], link["key"]) for link in step.links}
        _DELETE_LINKS.execute(connection, ({"of": task, "as": type_, "named": key} for task, type_, key in ends))
        _INSERT_LINKS.execute(connection, step.links)
    if step.cache:
        entries = {tuple(entry[name] for name in ("namespace", "pipeline_name", "key")): entry for entry in step.cache}
        _DELETE_ENTRIES.execute(connection, ({"in": in_, "of": of, "as": as_} for in_, of, as_ in entries))
        _INSERT_ENTRIES.execute(connection, entries.values())


def start_run(connection: sa.Connection, id_: str, now: int) -> None:
    """Move a run from PENDING to RUNNING; any other state stays."""
    state = connection.execute(sa.select(runs.c.state).where(runs.c.id == id_)).scalar_one_or_none()
    if state == "PENDING":
        set_run_state(connection, id_, "RUNNING", None, now)


def get_events(connection: sa.Connection, run_id: str) -> list[Any]:
    """Return the events of a run in order."""
    query = sa.select(events.c.event).where(events.c.run_id == run_id).order_by(events.c.seq)
    return list(connection.execute(query).scalars())


def delete_events(connection: sa.Connection, run_id: str) -> None:
    connection.execute(events.delete().where(events.c.run_id == run_id))


_OF_RUN = tasks.c.run_id == sa.bindparam("of")
_TASKS = Prepared(sa.select(tasks).where(_OF_RUN).order_by(tasks.c.execution))
_LONG = ("inputs", "outputs", "usage")
_TASK_STATES = Prepared(
    sa.select(*(column for column in tasks.c if column.name not in _LONG)).where(_OF_RUN).order_by(tasks.c.execution)
)


def get_tasks(connection: sa.Connection, run_id: str, ids: Sequence[str] | None = None) -> list[Row]:
    """Return the tasks of a run, or some of them, in the order in which they came to be."""
    if ids is None:
        return _TASKS.fetch(connection, of=run_id)
    rows: list[Row] = []
    for start in range(0, len(ids), 500):
        query = sa.select(tasks).where(tasks.c.id.in_(ids[start : start + 500]), tasks.c.run_id == run_id)
        rows += [_row(row) for row in connection.execute(query)]
    return sorted(rows, key=lambda row: row["execution"])


def get_task_states(connection: sa.Connection, run_id: str) -> list[Row]:
    """Return the same without inputs and outputs, which can be large."""
    return _TASK_STATES.fetch(connection, of=run_id)


def list_tasks(
    connection: sa.Connection, run_id: str, parent_id: str, *, after: int, limit: int
) -> tuple[list[Row], int]:
    """Return tasks of a run, or those directly below one, with execution numbers above ``after``, and how many are."""
    where = [tasks.c.run_id == run_id, *([tasks.c.parent_id == parent_id] if parent_id else [])]
    query = sa.select(tasks).where(*where, tasks.c.execution > after).order_by(tasks.c.execution).limit(limit)
    count = sa.select(sa.func.count()).select_from(tasks).where(*where)
    return [_row(row) for row in connection.execute(query)], connection.execute(count).scalar_one()


def get_children(connection: sa.Connection, run_id: str, ids: Sequence[str]) -> list[tuple[str, str]]:
    """Return (id, id of a task directly below it) for some tasks of a run, in the order in which those came to be."""
    query = sa.select(tasks.c.parent_id, tasks.c.id).where(tasks.c.run_id == run_id, tasks.c.parent_id.in_(ids))
    return [(parent, id_) for parent, id_ in connection.execute(query.order_by(tasks.c.execution))]


def get_task(connection: sa.Connection, id_: str) -> Row | None:
    return _one(connection, sa.select(tasks).where(tasks.c.id == id_))


def get_run_of_task(connection: sa.Connection, id_: str) -> Row | None:
    return _one(connection, sa.select(runs).join(tasks, tasks.c.run_id == runs.c.id).where(tasks.c.id == id_))


def get_metrics(connection: sa.Connection, run_ids: Sequence[str]) -> list[Row]:
    """Return the metrics artifacts that runs wrote or took from the cache, with the run each belongs to."""
    query = (
        sa.select(artifact_tasks.c.run_id, artifacts.c.name, artifacts.c.type, artifacts.c.metadata)
        .join(artifacts, artifacts.c.id == artifact_tasks.c.artifact_id)
        .where(
            artifact_tasks.c.run_id.in_(run_ids),
            artifact_tasks.c.type == "OUTPUT",
            artifacts.c.type.in_(("system.Metrics", "system.ClassificationMetrics")),
        )
    )
    return [dict(row) for row in connection.execute(query.order_by(artifact_tasks.c.id)).mappings()]


def last_execution(connection: sa.Connection) -> int:
    """Return the highest execution number in use; looks at all tasks."""
    return connection.execute(sa.select(sa.func.max(tasks.c.execution))).scalar_one() or 0


def last_artifact(connection: sa.Connection) -> int:
    """Return the highest id of an artifact in use."""
    return connection.execute(sa.select(sa.func.max(artifacts.c.id))).scalar_one() or 0


_ENTRIES = sa.select(cache_entries).where(
    cache_entries.c.namespace == sa.bindparam("in"), cache_entries.c.pipeline_name == sa.bindparam("of")
)
_ENTRY = Prepared(_ENTRIES.where(cache_entries.c.key == sa.bindparam("key")))
_ENTRIES_OF_COMPONENT = _ENTRIES.where(cache_entries.c.component == sa.bindparam("component"))
_NEWEST_ENTRY = Prepared(_ENTRIES_OF_COMPONENT.order_by(cache_entries.c.created_at.desc()).limit(1))


def get_cache_entry(connection: sa.Connection, namespace: str, pipeline_name: str, key: str) -> Row | None:
    return _ENTRY.first(connection, **{"in": namespace, "of": pipeline_name, "key": key})


def newest_cache_entry(connection: sa.Connection, namespace: str, pipeline_name: str, component: str) -> Row | None:
    """Return what was kept last of any execution of a component."""
    return _NEWEST_ENTRY.first(connection, **{"in": namespace, "of": pipeline_name, "component": component})


def list_cache_entries(
    connection: sa.Connection, *, before: tuple[int, str] | None, limit: int, equals: Mapping[str, str]
) -> tuple[list[Row], int]:
    """Return entries older than ``before`` (time and key), the newest first, and the number of all matches."""
    place = sa.tuple_(cache_entries.c.created_at, cache_entries.c.key)
    query = sa.select(cache_entries).filter_by(**equals)
    if before:
        query = query.where(place < sa.tuple_(*map(sa.literal, before)))
    count = sa.select(sa.func.count()).select_from(cache_entries).filter_by(**equals)
    rows = connection.execute(
        query.order_by(cache_entries.c.created_at.desc(), cache_entries.c.key.desc()).limit(limit)
    )
    return [_row(row) for row in rows], connection.execute(count).scalar_one()


def delete_old_cache_entries(connection: sa.Connection, before: int) -> int:
    return connection.execute(cache_entries.delete().where(cache_entries.c.created_at < before)).rowcount


def delete_cache_entries(connection: sa.Connection, equals: Mapping[str, str]) -> int:
    return connection.execute(cache_entries.delete().filter_by(**equals)).rowcount


# --- artifacts ---


def list_artifacts(connection: sa.Connection, page: Page, run_id: str, namespace: str | None = None) -> Listed:
    """List what one run wrote, or everything when ``run_id`` is empty."""
    return _list(connection, artifacts, page, namespace, *([artifacts.c.run_id == run_id] if run_id else []))


def get_artifact(connection: sa.Connection, id_: int) -> Row | None:
    return _one(connection, sa.select(artifacts).where(artifacts.c.id == id_))


def insert_artifact(connection: sa.Connection, row: Row, key: str) -> None:
    """Add an artifact, and tie it to its task, if it has one, as an output."""
    connection.execute(artifacts.insert(), row)
    if row["task_id"]:
        link = {"artifact_id": row["id"], "run_id": row["run_id"], "task_id": row["task_id"]}
        connection.execute(artifact_tasks.insert(), link | {"type": "OUTPUT", "key": key})


def find_output(connection: sa.Connection, run_id: str, node: str, key: str) -> Row | None:
    """Return an output of a task, given by its id or the name of one of its Pods; of several the first."""
    task = get_task(connection, node)
    if task is None:
        named = (one for one in get_tasks(connection, run_id) if any(pod["name"] == node for pod in one["pods"]))
        task = next(named, None)
    if task is None or task["run_id"] != run_id:
        return None
    query = sa.select(artifacts).join(artifact_tasks, artifact_tasks.c.artifact_id == artifacts.c.id)
    query = query.where(artifact_tasks.c.task_id == task["id"], artifact_tasks.c.type == "OUTPUT")
    return _one(connection, query.where(artifact_tasks.c.key == key).order_by(artifact_tasks.c.id).limit(1))


def find_artifact_holding(connection: sa.Connection, uris: Sequence[str]) -> Row | None:
    """Return the newest artifact at one of the places; the innermost place first."""
    query = sa.select(artifacts).where(artifacts.c.uri.in_(uris))
    return _one(connection, query.order_by(sa.func.length(artifacts.c.uri).desc(), artifacts.c.id.desc()).limit(1))


def unused_artifacts(connection: sa.Connection, before: int) -> list[Row]:
    """Return what tasks wrote earlier than ``before`` and no run and no entry of the cache has any more."""
    entries = connection.execute(sa.select(cache_entries.c.outputs)).scalars()
    kept = {
        int(one["id"])
        for outputs in entries
        for items in (outputs.get("artifacts") or {}).values()
        for one in items
        if one.get("id")
    }
    query = sa.select(artifacts).where(
        artifacts.c.created_at < before,
        artifacts.c.digest != "",
        artifacts.c.run_id != "",
        ~sa.exists().where(artifact_tasks.c.artifact_id == artifacts.c.id),
        ~sa.exists().where(runs.c.id == artifacts.c.run_id),
    )
    return [_row(row) for row in connection.execute(query) if row.id not in kept]


def delete_artifacts(connection: sa.Connection, ids: Sequence[int]) -> None:
    for start in range(0, len(ids), 500):
        connection.execute(artifacts.delete().where(artifacts.c.id.in_(ids[start : start + 500])))


def find_imported(connection: sa.Connection, namespace: str, uri: str, type_: str) -> list[Row]:
    """Return artifacts with this URI and type, newest first."""
    query = sa.select(artifacts).filter_by(namespace=namespace, uri=uri, type=type_)
    return [_row(row) for row in connection.execute(query.order_by(artifacts.c.id.desc()).limit(20))]


def list_links(
    connection: sa.Connection, *, after: int, limit: int, equals: Mapping[str, str | int], namespace: str | None = None
) -> tuple[list[Row], int]:
    """Return links between artifacts and tasks with ids above ``after``, and the number of all matches."""
    where = [artifact_tasks.c[name] == value for name, value in equals.items()]
    if namespace is not None:
        where.append(artifact_tasks.c.run_id.in_(sa.select(runs.c.id).where(runs.c.namespace == namespace)))
    query = sa.select(artifact_tasks).where(*where, artifact_tasks.c.id > after).order_by(artifact_tasks.c.id)
    count = sa.select(sa.func.count()).select_from(artifact_tasks).where(*where)
    return [_row(row) for row in connection.execute(query.limit(limit))], connection.execute(count).scalar_one()


_LINKS = Prepared(sa.select(artifact_tasks).where(artifact_tasks.c.run_id == sa.bindparam("of")))


def get_run_links(connection: sa.Connection, run_id: str, task_ids: Sequence[str] | None = None) -> list[Row]:
    """Return the links of a run, or of some of its tasks."""
    if task_ids is None:
        return _LINKS.fetch(connection, of=run_id)
    rows: list[Row] = []
    for start in range(0, len(task_ids), 500):
        query = sa.select(artifact_tasks).where(artifact_tasks.c.task_id.in_(task_ids[start : start + 500]))
        rows += [_row(row) for row in connection.execute(query)]
    return rows
