"""
The peers of ``predictions.py`` and ``table_models.py``, each run by an environment of its own.

``model_servers.py train FILE [KIND]`` writes the model (KIND: iris, forest, xgboost, lightgbm, torch);
``kserve FILE PORT`` serves it with KServe's Python server, ``floor FILE PORT`` with nothing but uvicorn, orjson and the
model; ``mlserver``, ``bentoml`` and ``ray`` with these. All are one replica with one worker, on loopback, and send no
telemetry.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import joblib


def train(file: str, kind: str = "iris") -> None:
    import numpy as np
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import SVC

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 20))
    labels = (rows[:, 0] + rows[:, 1] ** 2 > 1).astype(int)
    if kind == "iris":
        joblib.dump(SVC(gamma="scale").fit(*load_iris(return_X_y=True)), file)
    elif kind == "forest":
        joblib.dump(RandomForestClassifier(100, n_jobs=1, random_state=0).fit(rows, labels), file)
    elif kind == "xgboost":
        import xgboost

        xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, labels), 100).save_model(file)
    elif kind == "torch":
        import torch

        torch.manual_seed(0)
        layers = [torch.nn.Linear(20, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128), torch.nn.ReLU()]
        torch.jit.script(torch.nn.Sequential(*layers, torch.nn.Linear(128, 2)).eval()).save(file)
    else:
        import lightgbm

        lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(rows, labels), 100).save_model(file)


def load(file: str) -> Any:
    """Return what predicts, told by the file's suffix, as a user of the library would write it."""
    if file.endswith(".joblib"):
        return joblib.load(file).predict
    if file.endswith(".json"):
        import numpy as np
        import xgboost

        booster = xgboost.Booster({"nthread": 1}, model_file=file)
        return lambda rows: booster.inplace_predict(np.asarray(rows), validate_features=False)
    if file.endswith(".pt"):
        import torch

        torch.set_num_threads(1)
        module = torch.jit.load(file)
        return torch.inference_mode()(lambda rows: module(torch.tensor(rows, dtype=torch.float32)).numpy())
    import lightgbm

    model = lightgbm.Booster(model_file=file)
    return lambda rows: model.predict(rows, num_threads=1)


def serve_with_kserve(file: str, port: int) -> None:
    import kserve

    class Iris(kserve.Model):
        def __init__(self) -> None:
            super().__init__("iris")
            self.model = load(file)
            self.ready = True

        def predict(self, payload: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
            return {"predictions": self.model(payload["instances"]).tolist()}

    server = kserve.ModelServer(http_port=port, enable_grpc=False, workers=1, access_log_format=None)
    server.start([Iris()])


def serve_floor(file: str, port: int) -> None:
    import orjson
    import uvicorn

    predict = load(file)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        answer = {"predictions": predict(orjson.loads(body)["instances"]).tolist()} if body else {}
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
    runtimes = {
        ".joblib": "mlserver_sklearn.SKLearnModel",
        ".json": "mlserver_xgboost.XGBoostModel",
        ".bst": "mlserver_lightgbm.LightGBMModel",
    }
    model = {"name": "iris", "implementation": runtimes[Path(file).suffix], "parameters": {"uri": file}}
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = Path(sys.executable).parent / "mlserver"
    os.execv(command, [str(command), "start", str(folder)])


def serve_with_bentoml(file: str, port: int) -> None:
    source = """
import os, sys, bentoml
sys.path.insert(0, os.environ["HERE"])
from model_servers import load
@bentoml.service(workers=1)
class Iris:
    def __init__(self) -> None:
        self.model = load(os.environ["MODEL"])
    @bentoml.api(route="/v1/models/iris:predict")
    def predict(self, instances: list[list[float]]) -> dict[str, list[float]]:
        return {"predictions": self.model(instances).tolist()}
"""
    folder = Path(file).parent
    (folder / "iris_service.py").write_text(source)
    os.environ |= {
        "MODEL": file,
        "HERE": str(Path(__file__).parent),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(folder / "bentoml"),
    }
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
            self.model = load(file)

        async def __call__(self, request: Any) -> dict[str, Any]:
            body = await request.json()
            return {"predictions": self.model(body["instances"]).tolist()}

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
        train(*sys.argv[2:])
    else:
        SERVERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
