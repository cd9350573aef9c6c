"""What a user does with ``tritonclient`` over HTTP; run by its own interpreter: SCRIPT HOST:PORT/PATH MODEL."""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 5.6, 2.4]])


def main(url: str, model: str) -> None:
    with triton.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(model)
        assert not client.is_model_ready("nobody")
        assert client.get_server_metadata()["name"]
        assert client.get_model_metadata(model)["name"] == model
        assert client.get_model_config(model)["name"] == model
        assert client.get_inference_statistics(model)["model_stats"][0]["name"] == model
        assert client.get_model_repository_index() == [
            {"name": model, "version": "1", "state": "READY", "reason": ""},
        ]
        answers = [ask(client, model, sent, wanted) for sent in (True, False) for wanted in (True, False)]
        assert all((answer == answers[0]).all() for answer in answers), answers
        waiting = [client.async_infer(model, [tensor(True)]) for _ in range(4)]
        assert all((item.get_result().as_numpy("output-0") == answers[0]).all() for item in waiting)
        wrong = triton.InferInput("input-0", [2, 3], "FP64")
        wrong.set_data_from_numpy(ROWS[:, :3].copy())
        for name, data in (("nobody", tensor(True)), (model, wrong)):
            try:
                client.infer(name, [data])
            except InferenceServerException as error:
                assert error.message(), error
            else:
                raise AssertionError("a bad request was answered")
        client.unload_model(model)
        assert not client.is_model_ready(model)
        client.load_model(model)
        assert client.is_model_ready(model)


def tensor(binary: bool) -> triton.InferInput:
    made = triton.InferInput("input-0", list(ROWS.shape), "FP64")
    made.set_data_from_numpy(ROWS, binary_data=binary)
    return made


def ask(client: triton.InferenceServerClient, model: str, sent: bool, wanted: bool) -> np.ndarray:
    outputs = [triton.InferRequestedOutput("output-0", binary_data=wanted)]
    answer = client.infer(model, [tensor(sent)], outputs=outputs, request_id="7")
    assert answer.get_response()["id"] == "7"
    found = answer.as_numpy("output-0")
    assert found.shape == (2,), found
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    print("ok")
