"""What is too old is removed; what something uses is not."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from shallop.controller import Services
from shallop.kube.client import Client
from shallop.pipelines import tables
from shallop.pipelines.messages import to_micros
from shallop.pipelines.retention import Retention, Swept, is_used
from shallop.settings import Settings
from shallop.store.database import Database

NOW = datetime(2026, 6, 1, tzinfo=UTC)
IDS = [f"0000000{number}-0000-0000-0000-000000000000" for number in range(10)]


class Home:
    """A database, a directory of artifacts, and what others use of it."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.settings = Settings(home=folder, **limits)
        self.database = Database(f"sqlite:///{folder}/rows.db")
        self.database.migrate("pipelines", tables.MIGRATIONS)
        self.used: set[str] = set()

    def add_run(self, number: int, days: float, **values: Any) -> str:
        """Add a run that began and ended so many days ago, with a task's artifact; return the artifact's path."""
        at = to_micros(NOW - timedelta(days=days))
        row: dict[str, Any] = {"id": IDS[number], "experiment_id": "e", "name": "r", "state": "SUCCEEDED"}
        row |= {"storage_state": "AVAILABLE", "parameters": {}, "plugins_input": {}, "outputs": {}, "error": None}
        row |= {"state_history": [], "spec_digest": "", "created_at": at, "finished_at": at} | values
        path = self.settings.artifacts / "p" / IDS[number] / "train" / "x" / "model"
        path.parent.mkdir(parents=True)
        path.write_text("model")
        for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
            os.utime(folder, (1, 1))
        artifact = {"id": number, "name": "model", "type": "system.Model", "uri": str(path), "metadata": {}}
        artifact |= {"digest": "sha256:1", "size_bytes": 5, "created_at": at, "run_id": row["id"], "task_id": "t"}
        link = {"artifact_id": number, "run_id": row["id"], "task_id": "t", "type": "OUTPUT", "key": "model"}

        def write(connection: Any) -> None:
            tables.insert_run(connection, row)
            connection.execute(tables.artifacts.insert(), artifact)
            connection.execute(tables.artifact_tasks.insert(), link)

        asyncio.run(self.database.write(write))
        return str(path)

    def sweep(self) -> Swept:
        async def users() -> set[str]:
            return self.used

        services = Services(self.settings, cast(Client, None), self.database, lambda: NOW)
        return asyncio.run(Retention(services, users).sweep())

    def runs(self) -> list[int]:
        known = asyncio.run(self.database.read(lambda c: {i for i, id_ in enumerate(IDS) if tables.get_run(c, id_)}))
        return sorted(known)


def test_runs_go_by_age_and_by_number_but_not_while_they_are_needed(tmp_path: Path) -> None:
    home = Home(tmp_path, run_max_age_days=10)
    home.add_run(0, 30)
    home.add_run(1, 30, state="RUNNING", finished_at=0, reuse={"run_id": IDS[2], "repeated": []})
    home.add_run(2, 30)
    home.add_run(3, 5)
    home.add_run(4, 1)
    assert home.sweep() == Swept(1, 0, 0, 0)
    assert home.runs() == [1, 2, 3, 4]
    home.settings = replace(home.settings, run_max_age_days=0, run_max_count=1)
    home.sweep()
    assert home.runs() == [1, 2, 4]


def test_files_stay_while_a_run_the_cache_a_model_or_a_server_uses_them(tmp_path: Path) -> None:
    home = Home(tmp_path, run_max_age_days=10, artifact_max_age_days=1)
    kept = home.add_run(0, 5)
    paths = [home.add_run(number, 30) for number in (1, 2, 3)]
    entry: dict[str, Any] = {"pipeline_name": "p", "key": "k", "run_id": IDS[1], "task_id": "t", "created_at": 1}
    entry["outputs"] = {"artifacts": {"model": [{"id": "1", "uri": paths[0]}]}}
    asyncio.run(home.database.write(lambda c: c.execute(tables.cache_entries.insert(), entry)))
    home.used = {f"{Path(paths[1]).parent}/"}
    assert home.sweep() == Swept(3, 0, 1, 1)
    assert [Path(path).exists() for path in (kept, *paths)] == [True, True, True, False]
    assert not (home.settings.artifacts / "p" / IDS[3]).exists()
    # The model is deleted from the registry, the cache is cleared: now they may go, too.
    home.used = set()
    asyncio.run(home.database.write(lambda c: tables.delete_cache_entries(c, {})))
    assert home.sweep() == Swept(0, 0, 2, 2)
    assert [Path(path).exists() for path in (kept, *paths)] == [True, False, False, False]


def test_old_entries_of_the_cache_go(tmp_path: Path) -> None:
    home = Home(tmp_path, cache_max_age_s=100)
    for age_s in (50, 200):
        entry = {"pipeline_name": "p", "key": str(age_s), "run_id": "r", "task_id": "t", "outputs": {}}
        entry["created_at"] = to_micros(NOW) - age_s * 1_000_000
        asyncio.run(home.database.write(lambda c, entry=entry: c.execute(tables.cache_entries.insert(), entry)))  # type: ignore[misc]
    assert home.sweep().cache_entries == 1


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("s3://b/m", True), ("s3://b/m/1", True), ("s3://b/model", False), ("s3://b", True), ("s3://c/m", False)],
)
def test_a_place_is_used_when_others_use_it_its_inside_or_its_outside(uri: str, expected: bool) -> None:
    assert is_used(uri, {"s3://b/m/"}) is expected
