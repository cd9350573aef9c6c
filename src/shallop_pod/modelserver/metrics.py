"""
Counters in memory that all workers of a server share, and Prometheus text of them.

The histogram has the name of KServe's servers. Every worker writes its own cells only, so that there are no locks; what
is read adds up over the workers, whichever of them is asked.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left

__all__ = ["Board", "Counters"]

# Seconds; the default buckets of the Prometheus clients, so that existing dashboards fit.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_STATUSES = (200, 400, 404, 405, 413, 415, 422, 431, 500, 501, 503)
_KINDS = ("predict", "other")
_SUM = len(_BUCKETS) + 1
_FIRST_STATUS = _SUM + 1
_ROW = _FIRST_STATUS + len(_KINDS) * len(_STATUSES)
_ROWS = 256


class Board:
    """
    The counters of up to 256 models in each of some workers; made before the workers are forked.

    Args:
        worker: which of them this process is; set after the fork.
    """

    def __init__(self, workers: int = 1) -> None:
        self.worker = 0
        self.workers = workers
        memory = memoryview(mmap.mmap(-1, 8 * _ROW * _ROWS * workers))
        self._cells: memoryview[float] = memory.cast("d")
        self._models: list[str] = []

    def counters_of(self, model: str) -> Counters:
        """Return the counters of a model in this worker; what it counted under the same name before goes on."""
        if model not in self._models:
            self._models.append(model)
        # More models than rows share the last one: rare, and better than an end of the server.
        row = min(self._models.index(model), _ROWS - 1)
        return Counters(self, model, row)

    def cells(self, row: int, worker: int) -> memoryview[float]:
        start = (worker * _ROWS + row) * _ROW
        return self._cells[start : start + _ROW]

    def total(self, row: int) -> list[float]:
        """Return a row added up over all workers."""
        rows = [self.cells(row, worker) for worker in range(self.workers)]
        return [sum(values) for values in zip(*rows)]  # noqa: B905  all rows are equally long

    def render(self) -> bytes:
        """Write all metrics in the text format 0.0.4."""
        totals = [(model, self.total(min(row, _ROWS - 1))) for row, model in enumerate(self._models)]
        named = [(model, cells) for model, cells in totals if model]
        lines = ["# TYPE request_predict_seconds histogram"]
        for model, cells in named:
            running = 0
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), cells):  # noqa: B905  cells go on
                running += int(count)
                lines.append(f'request_predict_seconds_bucket{{model_name="{model}",le="{bound}"}} {running}')
            lines.append(f'request_predict_seconds_count{{model_name="{model}"}} {running}')
            lines.append(f'request_predict_seconds_sum{{model_name="{model}"}} {cells[_SUM]:.9g}')
        lines.append("# TYPE requests_total counter")
        for model, cells in totals:
            for kind_number, kind in enumerate(_KINDS):
                for number, status in enumerate(_STATUSES):
                    if count := int(cells[_FIRST_STATUS + kind_number * len(_STATUSES) + number]):
                        lines.append(f'requests_total{{model_name="{model}",kind="{kind}",code="{status}"}} {count}')
        return ("\n".join(lines) + "\n").encode()


class Counters:
    """What one worker counts of one model."""

    def __init__(self, board: Board, model: str, row: int) -> None:
        self.model = model
        self._board, self._row = board, row
        self._cells = board.cells(row, board.worker)

    def observe(self, seconds: float) -> None:
        """Count one prediction of this length."""
        self._cells[bisect_left(_BUCKETS, seconds)] += 1
        self._cells[_SUM] += seconds

    def count(self, kind: str, status: int) -> None:
        """Count one answer; ``kind`` is ``predict`` or ``other``."""
        number = _STATUSES.index(status) if status in _STATUSES else _STATUSES.index(500)
        self._cells[_FIRST_STATUS + _KINDS.index(kind) * len(_STATUSES) + number] += 1

    def predictions(self) -> tuple[int, int, float]:
        """Return how many predictions of all workers succeeded and failed, and the seconds spent on them."""
        cells = self._board.total(self._row)
        counts = cells[_FIRST_STATUS : _FIRST_STATUS + len(_STATUSES)]
        return int(counts[0]), int(sum(counts[1:])), cells[_SUM]
