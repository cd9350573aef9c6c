"""Rows: lists, states of runs, documents that are stored once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from shallop.pipelines import tables
from shallop.pipelines.filters import FilterKey
from shallop.pipelines.listing import (
    ARTIFACT_KEYS,
    EXPERIMENT_KEYS,
    PIPELINE_KEYS,
    RECURRING_RUN_KEYS,
    RUN_KEYS,
    VERSION_KEYS,
    Page,
    parse_page,
)
from shallop.store.database import Database


def run(id_: str, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"id": id_, "experiment_id": "e", "name": id_, "created_at": 1, "state": "PENDING"}
    row |= {"storage_state": "AVAILABLE", "parameters": {}, "plugins_input": {}, "outputs": {}, "error": None}
    return row | {"state_history": [{"update_time": 1, "state": "PENDING"}], "spec_digest": ""} | values


def memory() -> sa.Connection:
    connection = sa.create_engine("sqlite://").connect()
    for migration in tables.MIGRATIONS:
        migration(connection)
    return connection


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    with memory() as connection:
        yield connection


@given(
    times=st.lists(st.integers(1, 3), max_size=12),
    size=st.integers(1, 5),
    order=st.sampled_from(["created_at", "created_at desc", "state desc", "id"]),
)
def test_pages_hold_every_row_once_and_in_order(times: list[int], size: int, order: str) -> None:
    with memory() as connection:
        for number, time in enumerate(times):
            tables.insert_run(connection, run(f"r{number:02}", created_at=time))
        seen: list[dict[str, Any]] = []
        token = ""
        while True:
            query = {"sort_by": order, "page_size": str(size), "page_token": token}
            listed = tables.list_runs(connection, parse_page(query, RUN_KEYS), "")
            assert listed.total == len(times)
            assert len(listed.rows) <= size
            seen += listed.rows
            token = listed.next_page_token
            if not token:
                break
        column = order.split()[0]
        keys = [(row[column], row["id"]) for row in seen]
        assert keys == sorted(keys, reverse=order.endswith("desc"))
        assert len({row["id"] for row in seen}) == len(times)


def test_states_are_kept_in_order_and_ends_have_a_time(connection: sa.Connection) -> None:
    tables.insert_run(connection, run("r"))
    tables.start_run(connection, "r", 5)
    tables.start_run(connection, "r", 6)
    tables.set_run_state(connection, "r", "FAILED", {"code": 13, "message": "no"}, 7)
    row = tables.get_run(connection, "r")
    assert row is not None
    assert [(entry["update_time"], entry["state"]) for entry in row["state_history"]] == [
        (1, "PENDING"),
        (5, "RUNNING"),
        (7, "FAILED"),
    ]
    assert (row["finished_at"], row["error"]["message"]) == (7, "no")
    tables.cancel_run(connection, "r", 8)
    tables.set_run_state(connection, "r", "RUNNING", None, 9)
    row = tables.get_run(connection, "r")
    assert row is not None
    assert (row["state"], row["finished_at"], row["error"]) == ("RUNNING", 0, None)


def test_a_document_is_stored_once_and_goes_with_its_last_run(connection: sa.Connection) -> None:
    for id_ in ("a", "b"):
        tables.put_spec(connection, "digest", '{"x": 1}')
        tables.insert_run(connection, run(id_, spec_digest="digest"))
    tables.delete_run(connection, "a")
    assert tables.get_specs(connection, ["digest"]) == {"digest": {"x": 1}}
    tables.delete_run(connection, "b")
    assert tables.get_specs(connection, ["digest"]) == {}


def test_an_experiment_knows_its_newest_run(connection: sa.Connection) -> None:
    experiment = {"id": "e", "namespace": "", "name": "n", "description": "", "created_at": 1, "last_run_created_at": 0}
    tables.insert_experiment(connection, experiment | {"storage_state": "AVAILABLE"})
    for time in (5, 3):
        tables.insert_run(connection, run(f"r{time}", created_at=time))
    found = tables.get_experiment(connection, "e")
    assert found is not None
    assert found["last_run_created_at"] == 5


def test_every_filter_has_a_meaning_in_sql(connection: sa.Connection) -> None:
    second = 1_000_000
    for number in range(4):
        tables.insert_run(connection, run(f"r{number}", created_at=number * second + 5))
    expected = {
        ("EQUALS", "2"): ["r2"],
        ("NOT_EQUALS", "2"): ["r0", "r1", "r3"],
        ("GREATER_THAN", "2"): ["r3"],
        ("GREATER_THAN_EQUALS", "2"): ["r2", "r3"],
        ("LESS_THAN", "2"): ["r0", "r1"],
        ("LESS_THAN_EQUALS", "2"): ["r0", "r1", "r2"],
    }
    for (operation, value), ids in expected.items():
        text = f'{{"predicates": [{{"operation": "{operation}", "key": "created_at", "string_value": "{value}"}}]}}'
        assert _ids(connection, text) == ids, operation
    for operation, key, field, value, ids in (
        ("IN", "id", "string_values", '{"values": ["r1", "r3"]}', ["r1", "r3"]),
        ("IN", "created_at", "long_values", '{"values": ["0", "3"]}', ["r0", "r3"]),
        ("IS_SUBSTRING", "name", "string_value", '"R2"', ["r2"]),
        ("IS_SUBSTRING", "name", "string_value", '"%"', []),
        ("EQUALS", "namespace", "string_value", '""', ["r0", "r1", "r2", "r3"]),
        ("GREATER_THAN", "name", "string_value", '"r1"', ["r2", "r3"]),
    ):
        text = f'{{"predicates": [{{"operation": "{operation}", "key": "{key}", "{field}": {value}}}]}}'
        assert _ids(connection, text) == ids, (operation, key)


def _ids(connection: sa.Connection, text: str) -> list[str]:
    return [row["id"] for row in tables.list_runs(connection, parse_page({"filter": text}, RUN_KEYS), "").rows]


def test_rows_of_an_older_database_are_kept_in_no_namespace(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/rows.db")
    old = (
        "CREATE TABLE pipelines_experiments (id VARCHAR(64) PRIMARY KEY, name VARCHAR(256) NOT NULL UNIQUE,"
        " description TEXT DEFAULT '', created_at BIGINT DEFAULT 0, last_run_created_at BIGINT DEFAULT 0,"
        " storage_state VARCHAR(16) DEFAULT '')",
        "CREATE TABLE pipelines_pipelines (id VARCHAR(64) PRIMARY KEY, name VARCHAR(256) NOT NULL UNIQUE,"
        " display_name VARCHAR(256) DEFAULT '', description TEXT DEFAULT '', created_at BIGINT DEFAULT 0, tags JSON)",
        "CREATE TABLE pipelines_versions (id VARCHAR(64) PRIMARY KEY, pipeline_id VARCHAR(64) NOT NULL REFERENCES"
        " pipelines_pipelines (id), name VARCHAR(256), display_name VARCHAR(256) DEFAULT '', description TEXT DEFAULT"
        " '', created_at BIGINT DEFAULT 0, tags JSON, code_source_url VARCHAR(2048) DEFAULT '', package_url"
        " VARCHAR(2048) DEFAULT '', spec_digest VARCHAR(64) DEFAULT '')",
        "INSERT INTO pipelines_experiments (id, name) VALUES ('e', 'work')",
        "INSERT INTO pipelines_pipelines (id, name, tags) VALUES ('p', 'train', '{\"a\": \"b\"}')",
        "INSERT INTO pipelines_versions (id, pipeline_id, name, tags) VALUES ('v', 'p', 'v1', '{}')",
    )
    database.migrate("test", (lambda connection: [connection.exec_driver_sql(text) for text in old],))  # type: ignore[arg-type, return-value]
    database.migrate("pipelines", tables.MIGRATIONS)

    def look(connection: sa.Connection) -> None:
        experiment = tables.get_experiment_named(connection, "", "work")
        pipeline, version = tables.get_pipeline(connection, "p"), tables.get_version(connection, "v")
        assert experiment and pipeline and version
        assert (experiment["id"], pipeline["tags"], version["pipeline_id"]) == ("e", {"a": "b"}, "p")
        tables.insert_pipeline(connection, pipeline | {"id": "q", "namespace": "team"})
        assert tables.list_pipelines(connection, parse_page({}, RUN_KEYS), "team").total == 1
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []

    asyncio.run(database.write(look))
    database.close()


def _where(**values: str) -> dict[str, str]:
    predicates = [{"operation": "EQUALS", "key": key, "string_value": value} for key, value in values.items()]
    return {"filter": json.dumps({"predicates": predicates})}


def _check_plans(connection: sa.Connection, ask: Callable[[], Any]) -> None:
    """Each query of ``ask`` must find its rows, in order, by an index."""
    asked: list[str] = []
    driver: Any = connection.connection.driver_connection
    driver.set_trace_callback(asked.append)
    ask()
    driver.set_trace_callback(None)
    assert asked
    for text in asked:
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
        for line in plan:
            assert "TEMP B-TREE" not in line, (text, plan)
            assert "INDEX" in line or "PRIMARY KEY" in line, (text, plan)


@pytest.mark.parametrize("namespace", [None, "team"])
@pytest.mark.parametrize("experiment", ["", "e"])
@pytest.mark.parametrize(
    ("order", "filter_"),
    [
        ("", {}),
        ("created_at desc", {}),
        ("created_at", {}),
        ("created_at desc", {"state": "FAILED"}),
        ("created_at desc", {"storage_state": "AVAILABLE"}),
        ("display_name", {"storage_state": "AVAILABLE"}),
        ("finished_at desc", {"storage_state": "AVAILABLE"}),
        ("created_at desc", {"id": "r"}),
        ("", {"display_name": "r"}),
        ("", {"recurring_run_id": "j"}),
    ],
)
def test_what_pages_ask_of_runs_needs_no_sorting_and_no_scan_of_the_table(
    connection: sa.Connection, order: str, filter_: dict[str, str], experiment: str, namespace: str | None
) -> None:
    first = parse_page({"sort_by": order, **_where(**filter_)}, RUN_KEYS)
    after = ("r" if order == "display_name" else 5, "r")
    for page in (first, first._replace(after=after)):
        _check_plans(connection, partial(tables.list_runs, connection, page, experiment, namespace))


@pytest.mark.parametrize("order", ["", "created_at desc"])
def test_what_pages_ask_of_other_lists_needs_no_sorting_and_no_scan_of_the_table(
    connection: sa.Connection, order: str
) -> None:
    def page(keys: Mapping[str, FilterKey], **filter_: str) -> Page:
        return parse_page({"sort_by": order, **_where(**filter_)}, keys)

    asked: list[Callable[[], Any]] = [
        lambda: tables.list_experiments(connection, page(EXPERIMENT_KEYS)),
        lambda: tables.list_pipelines(connection, page(PIPELINE_KEYS)),
        lambda: tables.list_versions(connection, page(VERSION_KEYS), "p"),
        lambda: tables.list_recurring_runs(connection, page(RECURRING_RUN_KEYS), ""),
        lambda: tables.list_recurring_runs(connection, page(RECURRING_RUN_KEYS), "e"),
        lambda: tables.list_artifacts(connection, page(ARTIFACT_KEYS), ""),
        lambda: tables.list_artifacts(connection, page(ARTIFACT_KEYS), "r"),
        lambda: tables.list_artifacts(connection, page(ARTIFACT_KEYS), "", "team"),
        lambda: tables.list_artifacts(connection, page(ARTIFACT_KEYS), "r", "team"),
        lambda: tables.list_tasks(connection, "r", "", after=0, limit=20),
        lambda: tables.list_tasks(connection, "r", "t", after=5, limit=20),
        lambda: tables.get_task_states(connection, "r"),
        lambda: tables.list_cache_entries(connection, before=None, limit=20, equals={}),
        lambda: tables.list_cache_entries(connection, before=(5, "k"), limit=20, equals={}),
        lambda: tables.list_cache_entries(connection, before=(5, "k"), limit=20, equals={"pipeline_name": "p"}),
        lambda: tables.list_links(connection, after=0, limit=20, equals={"run_id": "r"}),
        lambda: tables.list_links(connection, after=5, limit=20, equals={"task_id": "t"}),
        lambda: tables.list_links(connection, after=5, limit=20, equals={"artifact_id": 1}),
    ]
    for ask in asked:
        _check_plans(connection, ask)
