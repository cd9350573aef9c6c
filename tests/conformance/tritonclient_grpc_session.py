"""A user of ``tritonclient`` over gRPC; run by its own interpreter: SCRIPT HOST:PORT AUTHORITY PATH MODEL."""

from __future__ import annotations

import asyncio
import queue
import sys
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as rest
from tritonclient.utils import InferenceServerException

ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 5.6, 2.4]])


def main(address: str, authority: str, path: str, model: str) -> None:
    with rest.InferenceServerClient(address + path) as client:
        made = rest.InferInput("input-0", list(ROWS.shape), "FP64")
        made.set_data_from_numpy(ROWS)
        expected = client.infer(model, [made]).as_numpy("output-0")
    options = [("grpc.default_authority", authority)]
    with triton.InferenceServerClient(address, channel_args=options) as client:
        check(client, model, expected)
    asyncio.run(check_async(address, options, model, expected))
    with grpc.insecure_channel(address, options=options) as channel:
        check_channel(channel, model)
    with grpc.insecure_channel(address, options=[("grpc.default_authority", "nobody.example.com")]) as channel:
        try:
            channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error
            assert "no route for host" in error.details()
        else:
            raise AssertionError("a host that is nobody's was answered")


def check(client: Any, model: str, expected: np.ndarray) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name
    assert client.get_model_metadata(model).name == model
    assert client.get_model_config(model).config.name == model
    assert client.get_inference_statistics(model).model_stats[0].name == model
    assert [(item.name, item.state) for item in client.get_model_repository_index().models] == [(model, "READY")]
    answer = client.infer(model, [tensor(ROWS)], request_id="7", compression_algorithm="gzip")
    assert answer.get_response().id == "7"
    assert (answer.as_numpy("output-0") == expected).all()
    many = np.repeat(ROWS, 50_000, axis=0)
    found = client.infer(model, [tensor(many)]).as_numpy("output-0")
    assert (found == np.repeat(expected, 50_000)).all()
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(4):
        client.async_infer(model, [tensor(ROWS)], lambda result, error: answers.put((result, error)))
    results = [answers.get(timeout=20) for _ in range(4)]
    assert all(error is None and (result.as_numpy("output-0") == expected).all() for result, error in results), results
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(5):
        client.async_stream_infer(model, [tensor(ROWS)], request_id=str(number))
    results = [answers.get(timeout=20) for _ in range(5)]
    client.stop_stream()
    assert [result.get_response().id for result, _ in results] == ["0", "1", "2", "3", "4"]
    for name, rows, code in (("nobody", ROWS, "NOT_FOUND"), (model, ROWS[:, :3].copy(), "INVALID_ARGUMENT")):
        try:
            client.infer(name, [tensor(rows)])
        except InferenceServerException as error:
            assert code in str(error.status()), error
            assert error.message()
        else:
            raise AssertionError("a bad request was answered")
    client.unload_model(model)
    assert not client.is_model_ready(model)
    client.load_model(model)
    assert client.is_model_ready(model)


async def check_async(address: str, options: list[tuple[str, str]], model: str, expected: np.ndarray) -> None:
    async with triton_aio.InferenceServerClient(address, channel_args=options) as client:
        assert await client.is_model_ready(model)
        answers = await asyncio.gather(*(client.infer(model, [tensor(ROWS)]) for _ in range(50)))
        assert all((answer.as_numpy("output-0") == expected).all() for answer in answers)


def check_channel(channel: Any, model: str) -> None:
    """Typed contents, which ``tritonclient`` never sends: FP64 [2, 4]."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model, id="typed")
    made = request.inputs.add(name="input-0", datatype="FP64", shape=ROWS.shape)
    made.contents.fp64_contents.extend(ROWS.reshape(-1).tolist())
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        service_pb2.ModelInferRequest.SerializeToString,
        service_pb2.ModelInferResponse.FromString,
    )
    response = infer(request, timeout=20)
    assert response.id == "typed"
    assert not response.raw_output_contents
    contents = response.outputs[0].contents
    assert [*contents.int64_contents, *contents.int_contents, *contents.fp64_contents], response
    health = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert health(b"", timeout=20) == b"\x08\x01"


def tensor(rows: np.ndarray) -> Any:
    made = triton.InferInput("input-0", list(rows.shape), "FP64")
    made.set_data_from_numpy(rows)
    return made


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("ok")
