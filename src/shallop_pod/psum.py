"""
A smoke test of JAX's distributed package: all devices of all processes add up one each.

Stands for the program of the image ``kubeflow/training-v1/jaxjob-simple``.
"""

from __future__ import annotations

import os
import sys
from typing import Sequence  # noqa: UP035  environments may be Python 3.9

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Meet the others as ``COORDINATOR_*``, ``NUM_PROCESSES`` and ``PROCESS_ID`` say; print the sum."""
    import jax
    from jax.experimental import multihost_utils

    head = f"{os.environ['COORDINATOR_ADDRESS']}:{os.environ['COORDINATOR_PORT']}"
    jax.distributed.initialize(head, int(os.environ["NUM_PROCESSES"]), int(os.environ["PROCESS_ID"]))
    print(f"process {jax.process_index()} of {jax.process_count()}, devices: {jax.device_count()}", flush=True)
    ones = jax.numpy.ones(jax.local_device_count())
    total = multihost_utils.process_allgather(ones).sum()
    print(f"sum over all devices: {float(total):.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
