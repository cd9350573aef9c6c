"""
A smoke test of PyTorch's distributed package: every process sends a number to the first one.

Stands for the image ``kubeflow/training-v1/pytorch-dist-sendrecv-test``.
"""

from __future__ import annotations

import sys
from typing import Sequence  # noqa: UP035  environments may be Python 3.9

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Meet the others as ``MASTER_ADDR``, ``RANK`` and ``WORLD_SIZE`` say; print what came."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    number = torch.tensor([float(rank)])
    if rank:
        dist.send(number, dst=0)
        print(f"rank {rank} of {world} has sent {number.item():.0f}", flush=True)
    for peer in range(1, world) if rank == 0 else ():
        dist.recv(number, src=peer)
        print(f"rank 0 of {world} has received {number.item():.0f} from {peer}", flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
