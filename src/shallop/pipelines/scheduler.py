"""Starts the runs of recurring runs when they are due; sleeps until the next one, nothing is polled."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import sqlalchemy as sa

from shallop.controller import Services
from shallop.errors import ApiError
from shallop.pipelines import tables
from shallop.pipelines.messages import to_micros
from shallop.pipelines.schedule import Trigger, due_tick, next_tick
from shallop.pipelines.signals import signals_of
from shallop.pipelines.submission import Submission, insert_run, new_run, pipeline_of

__all__ = ["Scheduler"]

log = logging.getLogger(__name__)

# The clock may be set: look again at least this often.
_LONGEST_SLEEP_S = 60.0
Row = dict[str, Any]


class Scheduler:
    """Owns the ticks of all recurring runs; ``run`` lives as long as the platform."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._database = services.database
        self._signals = signals_of(services.database)

    async def run(self) -> None:
        while True:
            pause_s = await self.start_due()
            try:
                async with asyncio.timeout(pause_s):
                    await self._signals.rescheduled()
            except TimeoutError:
                pass

    async def start_due(self) -> float:
        """Start all runs that are due; return for how many seconds there is nothing to do."""
        pause_s = _LONGEST_SLEEP_S
        for row, active in await self._database.read(tables.enabled_recurring_runs):
            pause_s = min(pause_s, await self._start_ticks(row, active))
        return pause_s

    async def _start_ticks(self, row: Row, active: int) -> float:
        trigger = Trigger.of(row["trigger"], self._services.settings.cron_timezone)
        while True:
            now = to_micros(self._services.now())
            times = {"created": row["created_at"], "last": row["last_tick"]}
            tick = due_tick(trigger, now=now, catch_up=not row["no_catchup"], **times)
            if tick is None:
                following = next_tick(trigger, **times)
                return _LONGEST_SLEEP_S if following is None else min(_LONGEST_SLEEP_S, (following - now) / 1e6)
            if active >= row["max_concurrency"]:
                return _LONGEST_SLEEP_S  # the end of a run wakes us
            row = row | {"last_tick": tick, "last_index": row["last_index"] + 1}
            await self._start(row, tick, now)
            active += 1

    async def _start(self, row: Row, tick: int, now: int) -> None:
        """Store the run of a tick, and that the tick is done, in one transaction: it never starts twice."""
        index = row["last_index"]
        run_id = str(uuid5(NAMESPACE_OID, f"{row['id']}/{tick}"))
        short = hashlib.sha256(run_id.encode()).hexdigest()[:6]
        given: Row = {
            "display_name": f"{row['name'][:235]}-{index}-{short}",
            "description": row["description"],
            "runtime_config": {"parameters": row["parameters"], "pipeline_root": row["pipeline_root"]},
            "service_account": row["service_account"],
            "plugins_input": row["plugins_input"],
        }
        done: Row = {"last_tick": tick, "last_index": index, "error": None}
        try:
            reference, document = await self._database.read(lambda c: _pipeline(c, row))
            how = Submission(run_id, now, scheduled_at=tick, recurring_run_id=row["id"], index=index)
            run, text, _ = await asyncio.to_thread(new_run, given, reference, document, self._services, how)

            def store(connection: sa.Connection) -> None:
                current = tables.get_recurring_run(connection, row["id"])
                if current is None or current["status"] != "ENABLED":
                    return  # a client was faster
                if tables.get_run(connection, run_id) is None:
                    insert_run(connection, run, row["experiment_id"], text)
                tables.update_recurring_run(connection, row["id"], done)

            await self._database.write(store)
        except ApiError as error:
            # The schedule goes on; what was wrong is shown on it until a run starts again.
            log.warning("recurring run %s: tick %d starts no run: %s", row["id"], index, error)
            done["error"] = {"code": 9, "message": f"Run {index} was not started: {error.message}"}
            await self._database.write(lambda c: tables.update_recurring_run(c, row["id"], done))
        else:
            log.info("recurring run %s: started run %s", row["id"], run_id)
            self._signals.request(run_id)


def _pipeline(connection: sa.Connection, row: Row) -> tuple[dict[str, str], Row]:
    if row["spec_digest"]:
        return {}, tables.get_specs(connection, [row["spec_digest"]])[row["spec_digest"]]
    reference = {"pipeline_id": row["pipeline_id"], "pipeline_version_id": row["pipeline_version_id"]}
    return pipeline_of(connection, {"pipeline_version_reference": reference}, "recurring_run")
