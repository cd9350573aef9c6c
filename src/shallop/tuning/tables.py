"""Rows of the tuning part, and all SQL over them. Times are microseconds since 1970; 0 = not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import sqlalchemy as sa

__all__ = [
    "MIGRATIONS",
    "Report",
    "add_all_reports",
    "add_reports",
    "add_suggestions",
    "append_reports",
    "delete_others",
    "delete_reports",
    "objective_reports",
    "reports_of",
    "suggestions_of",
]

_metadata = sa.MetaData()

# What an algorithm has proposed, in order; written before any trial is made of it.
suggestions = sa.Table(
    "tuning_suggestions",
    _metadata,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("document", sa.JSON, nullable=False),
)
# Values of metrics. ``source`` is what they were read from, ``number`` their place in it: reading again adds nothing.
observations = sa.Table(
    "tuning_observations",
    _metadata,
    sa.Column("trial", sa.String(128), primary_key=True),
    sa.Column("source", sa.String(128), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("metric", sa.String(256), nullable=False),
    sa.Column("value", sa.String(256), nullable=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Index("tuning_observations_metric", "trial", "metric"),
)


def create_tables(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


MIGRATIONS = (create_tables,)


class Report(NamedTuple):
    """One value of one metric; the value is text as the trial wrote it."""

    metric: str
    value: str
    time_us: int = 0


def suggestions_of(connection: sa.Connection, owner: str) -> list[tuple[str, dict[str, Any]]]:
    """Return name and document of every suggestion for an owner's uid, in order."""
    query = sa.select(suggestions.c.name, suggestions.c.document).filter_by(owner=owner).order_by(suggestions.c.number)
    return [(row.name, row.document) for row in connection.execute(query)]


def add_suggestions(
    connection: sa.Connection, owner: str, first: int, rows: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    """Add suggestions whose numbers begin with ``first``."""
    if rows:
        values = [
            {"owner": owner, "number": first + index, "name": name, "document": dict(document)}
            for index, (name, document) in enumerate(rows)
        ]
        connection.execute(suggestions.insert(), values)


def delete_others(connection: sa.Connection, kind: str, alive: Set[str]) -> list[str]:
    """Delete what was suggested to objects of a kind whose uid is not in ``alive``; returns their owners."""
    owners = connection.execute(sa.select(suggestions.c.owner).distinct()).scalars()
    gone = [owner for owner in owners if owner.startswith(f"{kind}/") and owner.partition("/")[2] not in alive]
    for owner in gone:
        connection.execute(suggestions.delete().where(suggestions.c.owner == owner))
    return gone


def add_reports(connection: sa.Connection, trial: str, source: str, reports: Sequence[Report]) -> None:
    """Store everything that a source holds until now; what is known already stays as it is."""
    known = _count(connection, trial, source)
    _insert(connection, trial, source, known, reports[known:])


def add_all_reports(
    connection: sa.Connection, trial: str, collected: Sequence[tuple[str, Sequence[Report]]]
) -> list[Report]:
    """Store everything that sources hold until now; return all that is known of the trial, as :func:`reports_of`."""
    known = reports_of(connection, trial)
    if known:
        for source, reports in collected:
            add_reports(connection, trial, source, reports)
        return reports_of(connection, trial)
    # The usual case, one statement less: a trial is looked at once, when it has ended.
    ordered = sorted(collected, key=lambda one: one[0])
    for source, reports in ordered:
        _insert(connection, trial, source, 0, reports)
    return sorted((report for _, reports in ordered for report in reports), key=lambda report: report.time_us)


def append_reports(connection: sa.Connection, trial: str, source: str, reports: Sequence[Report]) -> None:
    """Store what came after everything that this source has told."""
    _insert(connection, trial, source, _count(connection, trial, source), reports)


def _count(connection: sa.Connection, trial: str, source: str) -> int:
    query = sa.select(sa.func.max(observations.c.number)).filter_by(trial=trial, source=source)
    last = connection.execute(query).scalar()
    return 0 if last is None else int(last) + 1


def _insert(connection: sa.Connection, trial: str, source: str, first: int, reports: Iterable[Report]) -> None:
    values = [
        {
            "trial": trial,
            "source": source,
            "number": first + index,
            "metric": report.metric,
            "value": report.value,
            "time": report.time_us,
        }
        for index, report in enumerate(reports)
    ]
    if values:
        connection.execute(observations.insert(), values)


def reports_of(
    connection: sa.Connection, trial: str, metric: str = "", start_us: int | None = None, end_us: int | None = None
) -> list[Report]:
    """Return what is known of a trial in the order of time; equal times keep the order in which they came."""
    columns = observations.c
    query = sa.select(columns.metric, columns.value, columns.time).where(columns.trial == trial)
    if metric:
        query = query.where(columns.metric == metric)
    if start_us is not None:
        query = query.where(columns.time >= start_us)
    if end_us is not None:
        query = query.where(columns.time <= end_us)
    query = query.order_by(columns.time, columns.source, columns.number)
    return [Report(row.metric, row.value, row.time) for row in connection.execute(query)]


def objective_reports(connection: sa.Connection, trials: Sequence[str], metric: str) -> dict[str, list[float]]:
    """Return trial -> numeric values of a metric, in order of time, for those that have any."""
    columns = observations.c
    found: dict[str, list[float]] = {}
    for start in range(0, len(trials), 500):
        query = (
            sa.select(columns.trial, columns.value)
            .where(columns.metric == metric, columns.trial.in_(trials[start : start + 500]))
            .order_by(columns.trial, columns.time, columns.source, columns.number)
        )
        for row in connection.execute(query):
            try:
                found.setdefault(row.trial, []).append(float(row.value))
            except ValueError:
                continue
    return found


def delete_reports(connection: sa.Connection, trial: str) -> None:
    connection.execute(observations.delete().where(observations.c.trial == trial))
