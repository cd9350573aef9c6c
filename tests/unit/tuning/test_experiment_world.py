"""The controllers of Experiments, Suggestions and Trials on the API in memory; the tests play the Job controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from experiments import experiment

from shallop.controller.manager import Manager
from shallop.embedded.apiserver import ApiServer
from shallop.errors import InvalidError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object
from shallop.settings import Settings
from shallop.store.database import Database
from shallop.tuning import PART, tables
from shallop.tuning.names import EXPERIMENT, SUGGESTION, TRIAL
from shallop.tuning.tables import Report

pytestmark = pytest.mark.anyio
JOB = Gvk("batch/v1", "Job")
PUSH = {"collector": {"kind": "Push"}}
DEADLINE_S = 60.0


class World:
    def __init__(self, client: Client, database: Database) -> None:
        self.client = client
        self.database = database
        self.seen: list[str] = []

    async def eventually(self, look: Callable[[], Awaitable[Any]], what: str = "") -> Any:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    try:
                        if found := await look():
                            return found
                    except NotFoundError:
                        pass
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"did not happen: {what}") from None

    async def create(self, **spec: Any) -> None:
        await self.client.create(experiment(metricsCollectorSpec=PUSH, **spec))

    async def get(self) -> Object:
        return await self.client.get(EXPERIMENT, "search", "default")

    async def trials(self) -> list[Object]:
        return (await self.client.list(TRIAL, "default")).items

    async def runs(self, at_least: int) -> list[Object]:
        """Return the Jobs that have not ended, when there are so many."""

        async def look() -> list[Object]:
            jobs = (await self.client.list(JOB, "default")).items
            open_ = [job for job in jobs if not (job.get("status") or {}).get("conditions")]
            return open_ if len(open_) >= at_least else []

        found: list[Object] = await self.eventually(look, f"{at_least} runs")
        return found

    async def finish(self, job: Object, loss: float | None, type_: str = "Complete") -> None:
        name = job["metadata"]["name"]
        if loss is not None:
            report = [Report("loss", str(loss), 1)]
            await self.database.write(lambda connection: tables.append_reports(connection, name, "push", report))
        condition = {"type": type_, "status": "True", "reason": "Played", "message": "as the test says"}
        await self.client.patch_status(job, {"conditions": [condition]})
        self.seen.append(name)

    async def until(self, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            status: dict[str, Any] = (await self.get()).get("status") or {}
            return status if holds(status) else None

        found: dict[str, Any] = await self.eventually(look, "status")
        return found

    async def ended(self, reason: str) -> dict[str, Any]:
        return await self.until(lambda status: status.get("conditions", [{}])[-1].get("reason") == reason)


def _open_database(folder: Path) -> Database:
    database = Database(f"sqlite:///{folder / 'rows.db'}")
    database.migrate("tuning", PART.migrations)
    return database


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    settings = Settings(home=folder)
    database = await asyncio.to_thread(_open_database, folder)
    server = ApiServer(None, admin_token="x")
    await server.start()
    await server.register_kinds(PART.kinds)
    manager = Manager(server.client(), settings, database, PART.kinds)
    started = asyncio.Event()
    running = asyncio.ensure_future(manager.run(started))
    await asyncio.wait({running, asyncio.ensure_future(started.wait())}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield World(server.client(), database)
        if running.done():
            running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await manager.events.flush()
        await server.stop()
        await asyncio.to_thread(database.close)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as found:
        yield found


async def test_trials_run_in_parallel_until_the_budget_is_used(world: World) -> None:
    await world.create()
    for loss in (3.0, 2.0, 1.0, 4.0):
        jobs = await world.runs(1)
        assert len(jobs) <= 2
        await world.finish(jobs[0], loss)
    status = await world.ended("ExperimentMaxTrialsReached")
    assert (status["trials"], status["trialsSucceeded"]) == (4, 4)
    assert "trialsRunning" not in status and "runningTrialList" not in status
    best = status["currentOptimalTrial"]
    assert best["observation"]["metrics"][0] == {"name": "loss", "min": "1.0", "max": "1.0", "latest": "1.0"}
    assert best["bestTrialName"] in status["succeededTrialList"]
    assert [c["type"] for c in status["conditions"]] == ["Created", "Running", "Succeeded"]
    suggestion = await world.client.get(SUGGESTION, "search", "default")
    assert suggestion["status"]["suggestionCount"] == 4

    async def cleaned() -> bool:
        return not (await world.client.list(JOB, "default")).items

    await world.eventually(cleaned, "runs that are not retained are deleted")


async def test_the_goal_ends_an_experiment(world: World) -> None:
    objective = {"type": "minimize", "objectiveMetricName": "loss", "goal": 0.5}
    await world.create(objective=objective, parallelTrialCount=1)
    (job,) = await world.runs(1)
    await world.finish(job, 0.4)
    status = await world.ended("ExperimentGoalReached")
    assert status["trials"] == 1


async def test_failed_trials_end_an_experiment_and_say_why(world: World) -> None:
    await world.create(maxFailedTrialCount=2)
    for _ in range(2):
        await world.finish((await world.runs(1))[0], None, "Failed")
    status = await world.ended("ExperimentFailed")
    assert status["trialsFailed"] == 2
    messages = [c["message"] for trial in await world.trials() for c in trial.get("status", {}).get("conditions", [])]
    assert any("as the test says" in message for message in messages)


async def test_a_smaller_parallel_count_takes_away_only_trials_that_run(world: World) -> None:
    await world.create(parallelTrialCount=3)
    jobs = await world.runs(3)
    await world.finish(jobs[0], 1.0)
    await world.until(lambda status: status.get("trialsSucceeded") == 1)
    await world.client.patch(EXPERIMENT, "search", "default", {"spec": {"parallelTrialCount": 1}})
    status = await world.until(lambda status: status.get("trialsRunning") == 1)
    assert status["trialsSucceeded"] == 1


async def test_a_greater_budget_resumes_an_experiment_that_may_be(world: World) -> None:
    await world.create(resumePolicy="FromVolume", maxTrialCount=1, maxFailedTrialCount=1, parallelTrialCount=1)
    await world.finish((await world.runs(1))[0], 1.0)
    await world.ended("ExperimentMaxTrialsReached")
    await world.client.patch(EXPERIMENT, "search", "default", {"spec": {"maxTrialCount": 2}})
    await world.finish((await world.runs(1))[0], 0.5)
    status = await world.until(lambda status: status.get("trialsSucceeded") == 2 and status.get("completionTime"))
    assert len({*world.seen}) == 2
    assert status["currentOptimalTrial"]["observation"]["metrics"][0]["min"] == "0.5"
    with pytest.raises(InvalidError, match="editable"):
        await world.client.patch(EXPERIMENT, "search", "default", {"spec": {"resumePolicy": "Never"}})


async def test_an_algorithm_that_waits_for_results_is_asked_again_and_ends(world: World) -> None:
    settings = {"r_l": "4", "resource_name": "depth", "eta": "2"}
    algorithm = {
        "algorithmName": "hyperband",
        "algorithmSettings": [{"name": name, "value": value} for name, value in settings.items()],
    }
    await world.create(algorithm=algorithm, parallelTrialCount=4, maxTrialCount=None, maxFailedTrialCount=None)
    total = 4 + 2 + 1 + 3 + 2 + 3
    for number in range(total):
        await world.finish((await world.runs(1))[0], float(number))
    status = await world.ended("ExperimentSuggestionEndReached")
    assert status["trialsSucceeded"] == total


async def test_an_unknown_kind_of_run_and_a_missing_template_are_said(world: World) -> None:
    obj = experiment(metricsCollectorSpec=PUSH, maxTrialCount=1, maxFailedTrialCount=1, parallelTrialCount=1)
    template = obj["spec"]["trialTemplate"]
    template["trialSpec"] |= {"apiVersion": "example.com/v1", "kind": "Nothing"}
    template |= {"successCondition": "status.a", "failureCondition": "status.b"}
    await world.client.create(obj)
    await world.ended("ExperimentFailed")
    (trial,) = await world.trials()
    assert "no kind Nothing" in trial["status"]["conditions"][-1]["message"]


async def test_rows_and_trials_go_with_their_experiment(world: World) -> None:
    await world.create()
    await world.runs(2)
    uid = (await world.get())["metadata"]["uid"]
    await world.client.delete(EXPERIMENT, "search", "default")

    async def gone() -> bool:
        rows = await world.database.read(lambda c: tables.suggestions_of(c, f"Experiment/{uid}"))
        return not rows

    await world.eventually(gone, "rows are deleted")
