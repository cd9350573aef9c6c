"""
The peers of ``predictions.py``, run by an environment that has kserve.

``iris_servers.py train FILE`` writes the model; ``kserve FILE PORT`` serves it with KServe's Python server,
``floor FILE PORT`` with nothing but uvicorn, orjson and the model.
"""

from __future__ import annotations

import sys
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


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2])
    elif sys.argv[1] == "kserve":
        serve_with_kserve(sys.argv[2], int(sys.argv[3]))
    else:
        serve_floor(sys.argv[2], int(sys.argv[3]))
