"""
The peers of ``predictions.py``, each run by an environment of its own.

``iris_servers.py train FILE`` writes the model; ``kserve FILE PORT`` serves it with KServe's Python server,
``floor FILE PORT`` with nothing but uvicorn, orjson and the model; ``mlserver``, ``bentoml`` and ``ray`` with these.
All are one replica with one worker, on loopback, and send no telemetry.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import joblib


def train(file: str) -> None:
    from sklearn.datasets import load_iris
    from sklearn.svm import SVC

    x, y = load_iris(return_X_y=True)
    joblib.dump(SVC(gamma="scale").fit(x, y), file)


def serve_with_kserve(file: str, port: int) -> None:
    import kserve

    class Iris(kserve.Model):
        def __init__(self) -> None:
            super().__init__("iris")
            self.model = joblib.load(file)
            self.ready = True

        def predict(self, payload: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
            return {"predictions": self.model.predict(payload["instances"]).tolist()}

    server = kserve.ModelServer(http_port=port, enable_grpc=False, workers=1, access_log_format=None)
    server.start([Iris()])


def serve_floor(file: str, port: int) -> None:
    import orjson
    import uvicorn

    model = joblib.load(file)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        answer = {"predictions": model.predict(orjson.loads(body)["instances"]).tolist()} if body else {}
        content = orjson.dumps(answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning", lifespan="off")


def serve_with_mlserver(file: str, port: int) -> None:
    folder = Path(file).parent
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": "iris", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": file}}
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = Path(sys.executable).parent / "mlserver"
    os.execv(command, [str(command), "start", str(folder)])


def serve_with_bentoml(file: str, port: int) -> None:
    source = """
import os, joblib, bentoml
@bentoml.service(workers=1)
class Iris:
    def __init__(self) -> None:
        self.model = joblib.load(os.environ["MODEL"])
    @bentoml.api(route="/v1/models/iris:predict")
    def predict(self, instances: list[list[float]]) -> dict[str, list[int]]:
        return {"predictions": self.model.predict(instances).tolist()}
"""
    folder = Path(file).parent
    (folder / "iris_service.py").write_text(source)
    os.environ |= {"MODEL": file, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml")}
    command = Path(sys.executable).parent / "bentoml"
    arguments = ["serve", "iris_service:Iris", "--host", "127.0.0.1", "--port", str(port), "--working-dir", str(folder)]
    os.execv(command, [str(command), *arguments])


def serve_with_ray(file: str, port: int) -> None:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_ENABLE_TASK_EVENTS": "0"}
    import signal

    import ray
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=100 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False})

    @serve.deployment(ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=100)
    class Iris:
        def __init__(self) -> None:
            self.model = joblib.load(file)

        async def __call__(self, request: Any) -> dict[str, Any]:
            body = await request.json()
            return {"predictions": self.model.predict(body["instances"]).tolist()}

    serve.run(Iris.bind(), route_prefix="/", name="iris")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


SERVERS = {
    "kserve": serve_with_kserve,
    "floor": serve_floor,
    "mlserver": serve_with_mlserver,
    "bentoml": serve_with_bentoml,
    "ray": serve_with_ray,
}

if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2])
    else:
        SERVERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
