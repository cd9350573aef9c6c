"""Predictions of one model: those asked for in one turn of the event loop are made in one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple

from shallop_pod.modelserver.metrics import Counters
from shallop_pod.modelserver.models import Model

__all__ = ["MAX_BATCH_ROWS", "ModelQueue", "is_fast"]

MAX_BATCH_ROWS = 4096
# A model that needs longer than this for one row is asked in a thread, so that probes are answered meanwhile.
_INLINE_S = 0.002

Deliver = Callable[[Any], None]


class _Job(NamedTuple):
    """Rows to predict; ``predict`` when not in the model's usual way."""

    rows: Any
    deliver: Deliver
    predict: Callable[[Any], Any] | None = None


class ModelQueue:
    """
    Asks a model for predictions, in the event loop when it is fast, else in a thread.

    Rows of several requests are predicted in one call when they fit together; a lone request never waits for others.

    Args:
        inline: predict in the event loop.
        ready: False while the model is unloaded.
    """

    def __init__(self, model: Model, counters: Counters, *, inline: bool, executor: Executor | None = None) -> None:
        self.model = model
        self.counters = counters
        self.ready = True
        self._inline = inline
        self._executor = executor
        self._waiting: list[_Job] = []
        self._running = False

    @property
    def busy(self) -> bool:
        return self._running or bool(self._waiting)

    def submit(self, rows: Any, deliver: Deliver, predict: Callable[[Any], Any] | None = None) -> None:
        """
        Predict ``rows``.

        Args:
            rows: what ``Model.predict`` takes.
            deliver: called in the event loop, with the result or with the exception that these rows caused.
            predict: one of ``Model.methods`` instead of ``Model.predict``.
        """
        if not self._waiting and not self._running:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(_Job(rows, deliver, predict))

    def _flush(self) -> None:
        if self._running or not self._waiting:
            return
        jobs, self._waiting = self._waiting, []
        if self._inline:
            self._deliver(self._predict(jobs))
            return
        self._running = True
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._predict, jobs)
        future.add_done_callback(self._after_thread)

    def _after_thread(self, future: asyncio.Future[list[tuple[_Job, Any]]]) -> None:
        self._running = False
        self._deliver(future.result())
        self._flush()

    def _deliver(self, outcomes: list[tuple[_Job, Any]]) -> None:
        for job, result in outcomes:
            job.deliver(result)

    def _predict(self, jobs: list[_Job]) -> list[tuple[_Job, Any]]:
        """Return each job with its result or the exception that its own rows cause."""
        start = time.perf_counter()
        outcomes: list[tuple[_Job, Any]] = []
        for group in _groups(jobs) if self.model.batches else [[job] for job in jobs]:
            outcomes += self._predict_group(group)
        seconds = time.perf_counter() - start
        for _ in jobs:
            self.counters.observe(seconds)
        return outcomes

    def _predict_group(self, jobs: list[_Job]) -> list[tuple[_Job, Any]]:
        try:
            if len(jobs) == 1:
                return [(jobs[0], (jobs[0].predict or self.model.predict)(jobs[0].rows))]
            import numpy as np

            rows = [job.rows for job in jobs]
            result = self.model.predict(np.concatenate(rows))
            if not isinstance(result, np.ndarray) or len(result) != sum(map(len, rows)):
                # Probabilities of several outputs are a list, one array per output: not ours to take apart.
                return [outcome for job in jobs for outcome in self._predict_group([job])]
            ends = np.cumsum([len(part) for part in rows])[:-1]
            return list(zip(jobs, np.split(result, ends), strict=True))
        except Exception as error:
            # The model's own code may raise anything; only the request that caused it shall see it.
            if len(jobs) == 1:
                return [(jobs[0], error)]
            return [outcome for job in jobs for outcome in self._predict_group([job])]


def _groups(jobs: list[_Job]) -> list[list[_Job]]:
    """Put jobs together whose rows are arrays of one row shape and type, up to a bound of rows."""
    if len(jobs) == 1:
        return [jobs]
    groups: dict[Any, list[list[_Job]]] = {}
    for job in jobs:
        rows = job.rows
        fits = (
            job.predict is None
            and hasattr(rows, "dtype")
            and rows.ndim > 1
            and rows.dtype != object
            and len(rows) < MAX_BATCH_ROWS
        )
        key: Any = (rows.shape[1:], rows.dtype.str) if fits else id(job)
        parts = groups.setdefault(key, [[]])
        if sum(len(other.rows) for other in parts[-1]) >= MAX_BATCH_ROWS:
            parts.append([])
        parts[-1].append(job)
    return [part for parts in groups.values() for part in parts]


def is_fast(model: Model) -> bool:
    """Say whether one row is predicted quickly enough to do it in the event loop; also warms the model up."""
    if not model.features:
        return False
    import numpy as np

    row: Any = np.zeros((1, model.features))
    if model.named:
        row = {model.inputs[0].name if model.inputs else "input-0": row}
    try:
        model.predict(row)
        start = time.perf_counter()
        model.predict(row)
    except Exception:
        # Models that want other types than numbers are asked in a thread, and tell users what they want.
        return False
    return time.perf_counter() - start < _INLINE_S
