"""Tuning: searches for parameters by many trials (Katib's kinds, OptimizationJob), on one neutral engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from shallop.controller import Part, Services
from shallop.tuning.dbmanager import db_manager
from shallop.tuning.engine import Searches
from shallop.tuning.experiment import experiment_kind
from shallop.tuning.optimizationjob import optimizationjob_kind
from shallop.tuning.pods import pod_admission
from shallop.tuning.suggestion import suggestion_kind
from shallop.tuning.tables import MIGRATIONS
from shallop.tuning.trial import trial_kind

__all__ = ["PART"]


def _tasks(services: Services) -> Sequence[Callable[[], Awaitable[None]]]:
    return [db_manager(services)]


def _part() -> Part:
    searches = Searches()
    return Part(
        name="tuning",
        kinds=(experiment_kind(searches), suggestion_kind(searches), trial_kind(), optimizationjob_kind(searches)),
        migrations=MIGRATIONS,
        admission=pod_admission,
        tasks=_tasks,
    )


PART = _part()
