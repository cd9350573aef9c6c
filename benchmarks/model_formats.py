"""
Predictions of models of several libraries, asked of the model server itself, without a gateway.

``python benchmarks/model_formats.py``, in an environment with numpy, uvloop, orjson and the libraries to measure: what
is missing is left out. Each is asked over one connection, one request after the other, with 1 and 1,000 rows, in JSON
(V1) and as a binary tensor (V2); ``predict`` is the library's own, in this process.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
import uvloop

from shallop_pod.heap import keep_freed
from shallop_pod.modelserver.models import Model
from shallop_pod.modelserver.server import ModelServer

FEATURES = 20


def models() -> dict[str, Callable[[], Callable[[Any], Any]]]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, FEATURES))
    labels = (rows[:, 0] + rows[:, 1] ** 2 > 1).astype(int)

    def forest() -> Any:
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(100, n_jobs=1, random_state=0).fit(rows, labels).predict

    def xgboost() -> Any:
        import xgboost

        booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, labels), 100)
        return lambda given: booster.inplace_predict(given, validate_features=False)

    def lightgbm() -> Any:
        import lightgbm

        booster = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(rows, labels), 100)
        return lambda given: booster.predict(given, num_threads=1)

    def mlp() -> Any:
        import torch

        torch.set_num_threads(1)
        sizes = (FEATURES, 256, 256, 10)
        layers = [part for a, b in pairwise(sizes) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        net = torch.nn.Sequential(*layers).eval()

        def predict(given: Any) -> Any:
            with torch.inference_mode():
                return net(torch.from_numpy(np.asarray(given, dtype=np.float32))).numpy()

        return predict

    return {
        "xgboost, 100 trees": xgboost,
        "lightgbm, 100 trees": lightgbm,
        "forest, 100 trees": forest,
        "torch mlp": mlp,
    }


def serve(port: int, made: Callable[[], Callable[[Any], Any]]) -> None:
    keep_freed()  # as a model server does

    async def main() -> None:
        server = ModelServer([Model("m", "sklearn", made(), FEATURES)], inline=True)
        await asyncio.get_running_loop().create_server(server.connect, "127.0.0.1", port)
        await asyncio.sleep(3600)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


class Client:
    def __init__(self, port: int) -> None:
        for _ in range(600):
            try:
                self.socket = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray(2**22)

    def ask(self, request: bytes) -> int:
        self.socket.sendall(request)
        filled, wanted = 0, 0
        view = memoryview(self.buffer)
        while not wanted or filled < wanted:
            filled += self.socket.recv_into(view[filled:])
            if not wanted and (end := self.buffer.find(b"\r\n\r\n", 0, filled)) >= 0:
                head = bytes(view[:end]).lower()
                assert b" 200 " in head.split(b"\r\n")[0], bytes(view[:filled])
                wanted = end + 4 + int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return filled


def v1(rows: Any) -> bytes:
    body = json.dumps({"instances": rows.tolist()}).encode()
    return b"POST /v1/models/m:predict HTTP/1.1\r\nhost: m\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def v2(rows: Any) -> bytes:
    names = {"float64": "FP64", "float32": "FP32"}
    size = {"binary_data_size": rows.nbytes}
    tensor = {"name": "x", "shape": list(rows.shape), "datatype": names[rows.dtype.name], "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + rows.tobytes()
    lengths = b"content-length: %d\r\ninference-header-content-length: %d" % (len(body), len(head))
    return b"POST /v2/models/m/infer HTTP/1.1\r\nhost: m\r\n%b\r\n\r\n%b" % (lengths, body)


def measure(call: Callable[[], Any], seconds: float = 1.5) -> float:
    """Return the median of one call, in milliseconds."""
    for _ in range(5):
        call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def started(target: Callable[..., None], *arguments: Any) -> tuple[Any, int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=target, args=(port, *arguments), daemon=True)
    process.start()
    return process, port


def run_model(port: int, name: str) -> None:
    serve(port, models()[name])


def main() -> None:
    rng = np.random.default_rng(1)
    for name, make in models().items():
        try:
            predict = make()
        except ModuleNotFoundError as error:
            print(f"{name}: no {error.name} here")
            continue
        process, port = started(run_model, name)
        client = Client(port)
        for count in (1, 1000):
            rows = rng.normal(size=(count, FEATURES))
            floor = measure(partial(predict, rows))
            as_json, as_binary = (measure(partial(client.ask, request)) for request in (v1(rows), v2(rows)))
            print(f"{name}, {count} rows: V1 {as_json:.3f} ms, V2 binary {as_binary:.3f} ms, predict {floor:.3f} ms")
        process.terminate()


if __name__ == "__main__":
    main()
