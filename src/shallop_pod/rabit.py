"""
A smoke test of XGBoost's collective: every process adds its rank, and hears the first one's word.

Stands for the image ``kubeflow/training-v1/xgboost-dist-rabit-test``.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import Any, Iterator, Sequence, Tuple  # noqa: UP035  environments may be Python 3.9

__all__ = ["main", "meet"]

_PATIENCE_S = 120.0


def main(argv: Sequence[str]) -> int:
    """Meet the others, print what came from them."""
    import numpy
    from xgboost import collective

    with meet() as (rank, world):
        total = collective.allreduce(numpy.array([float(rank)]), collective.Op.SUM)
        word = collective.broadcast("hello from 0" if rank == 0 else None, 0)
        print(f"rank {rank} of {world}: sum of ranks {total[0]:.0f}, heard {word!r}", flush=True)
    return 0


@contextmanager
def meet() -> Iterator[Tuple[int, int]]:  # noqa: UP006
    """
    Join the processes of an XGBoostJob as ``MASTER_ADDR``, ``MASTER_PORT``, ``RANK`` and ``WORLD_SIZE`` say.

    Returns:
        Rank and number of processes; the first one is the tracker of all as well, and leaves last.
    """
    from xgboost.tracker import RabitTracker

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    tracker = None
    if rank == 0:
        tracker = RabitTracker(n_workers=world, host_ip="0.0.0.0", port=port, sortby="task")
        tracker.start()
    connection = _connect(host, port, rank)
    try:
        yield rank, world
    finally:
        connection.__exit__(None, None, None)
    if tracker is not None:
        tracker.wait_for()


def _connect(host: str, port: int, rank: int) -> Any:
    from xgboost import collective
    from xgboost.core import XGBoostError

    deadline = time.monotonic() + _PATIENCE_S
    while True:
        context = collective.CommunicatorContext(dmlc_tracker_uri=host, dmlc_tracker_port=port, dmlc_task_id=str(rank))
        try:
            context.__enter__()
        except XGBoostError:
            # The first process's tracker may only just start.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return context


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
