"""Predictions over gRPC without a pause until standard input ends: SCRIPT HOST:PORT AUTHORITY MODEL; prints counts."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

ROWS = np.array([[5.1, 3.5, 1.4, 0.2]])


async def main(address: str, authority: str, model: str) -> None:
    seen: Counter[str] = Counter()
    over = asyncio.Event()

    async def send(client: triton.InferenceServerClient) -> None:
        made = triton.InferInput("input-0", list(ROWS.shape), "FP64")
        made.set_data_from_numpy(ROWS)
        while not over.is_set():
            try:
                answer = await client.infer(model, [made], client_timeout=60)
                seen[str(answer.as_numpy("output-0").tolist())] += 1
            except (InferenceServerException, grpc.RpcError) as error:
                seen[f"failed: {error}"] += 1
            print(json.dumps(seen), flush=True)

    options = [("grpc.default_authority", authority)]
    async with triton.InferenceServerClient(address, channel_args=options) as client:
        tasks = [asyncio.create_task(send(client)) for _ in range(4)]
        await asyncio.to_thread(sys.stdin.read)
        over.set()
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
