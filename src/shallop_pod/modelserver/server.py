"""The server of models: requests of the V1 and V2 protocols to the queues of models, and their answers back."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shallop_pod.heap import keep_freed
from shallop_pod.modelserver.dialects import Options, OptionsError, parse_options
from shallop_pod.modelserver.http import Connection
from shallop_pod.modelserver.language import Language
from shallop_pod.modelserver.metrics import Board
from shallop_pod.modelserver.models import (
    LoadError,
    LoadOptions,
    Model,
    Signature,
    find_models,
    load_model,
    survives_fork,
)
from shallop_pod.modelserver.openai import OpenAi
from shallop_pod.modelserver.protocol import (
    ProtocolError,
    Request,
    Tensor,
    dumps,
    loads,
    parse_v1,
    parse_v2,
    render_v1,
    render_v2,
)
from shallop_pod.modelserver.queue import MAX_BATCH_ROWS, ModelQueue, is_fast
from shallop_pod.modelserver.workers import supervise

__all__ = ["Loaded", "ModelServer", "fail", "how_to_load", "load_all", "main", "run"]

_LAME_DUCK_S = 0.3

_SERVER = {
    "name": "shallop",
    "version": "0.1.0",
    "extensions": ["binary_tensor_data", "model_repository", "statistics"],
}
# Triton's client looks these names up in its own table.
_TRITON_TYPES = {"BYTES": "STRING"}

Load = Callable[[str], Model]
# The models, and what loads more of them.
Loaded = tuple[list[Model], Load | None]


class ModelServer:
    """
    Answers requests for some models, in one event loop.

    Args:
        inline: predict in the event loop; None for what is quick enough.
        board: counters that several workers share.
        load: loads the model of a name, for the repository API; None where models cannot be loaded later.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        inline: bool | None = None,
        board: Board | None = None,
        load: Load | None = None,
    ) -> None:
        self._inline = inline
        self._board = board or Board()
        self._load = load
        self._other = self._board.counters_of("")
        self._queues: dict[str, ModelQueue] = {}
        # path -> how it is answered: looked up once per request.
        self._posts: dict[str, tuple[ModelQueue, Callable[..., None]]] = {}
        self._loading: set[asyncio.Task[None]] = set()
        self._openai = OpenAi(
            os.environ.get("KSERVE_OPENAI_ROUTE_PREFIX", "/openai"), self._language_of, self._language_names
        )
        self.connections: set[Any] = set()
        for model in models:
            self.add(model)

    def connect(self) -> Connection:
        return Connection(self)

    @property
    def busy(self) -> bool:
        return self._openai.busy or any(queue.busy for queue in self._queues.values())

    def add(self, model: Model) -> None:
        """Serve a model, in place of one of the same name."""
        inline = is_fast(model) if self._inline is None else self._inline
        queue = ModelQueue(model, self._board.counters_of(model.name), inline=inline)
        name = model.name
        self._queues[name] = queue
        for version in ("", "/versions/1"):
            self._posts[f"/v1/models/{name}{version}:predict"] = (queue, self._predict_v1)
            self._posts[f"/v2/models/{name}{version}/infer"] = (queue, self._predict_v2)
        if model.explain is not None:
            self._posts[f"/v1/models/{name}:explain"] = (queue, self._explain)

    def queue_of(self, name: str) -> ModelQueue:
        """
        Return the queue of a model that is ready; all protocols ask models through it.

        Raises:
            ProtocolError: 404, there is none; 503, it was unloaded.
        """
        queue = self._queues.get(name)
        if queue is None:
            known = ", ".join(self._queues) or "none"
            raise ProtocolError(f"Model with name {name} does not exist; this server has: {known}.", 404)
        if not queue.ready:
            raise ProtocolError(f"Model with name {name} is not ready: it was unloaded.", 503)
        return queue

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._queues)

    def _language_of(self, name: str) -> Language | None:
        if name not in self._queues:
            raise KeyError(name)
        return self._queues[name].model.language

    def _language_names(self) -> Sequence[str]:
        return [name for name, queue in self._queues.items() if queue.model.language is not None]

    def dispatch(
        self,
        connection: Connection,
        method: str,
        path: str,
        headers: dict[bytes, bytes],
        body: bytes,
        tensors: Sequence[bytes | memoryview] | None = None,
    ) -> None:
        path = path.partition("?")[0]
        try:
            if tensors is not None and (found := self._posts.get(path)):
                self._predict_v2(connection, found[0], headers, body, tensors)
            elif method == "POST":
                self._post(connection, path, headers, body)
            elif method in ("GET", "HEAD"):
                if path.startswith(self._openai.prefix):
                    self._openai.dispatch(connection, "GET", path, body)
                    return
                content = self._read(path)
                text = "text/plain; version=0.0.4" if path == "/metrics" else "application/json"
                connection.answer(200, content, content_type=text)
            else:
                raise ProtocolError(f"{method} is not possible here", 405)
        except ProtocolError as error:
            self._count(path, error.status)
            connection.answer(error.status, dumps({"error": str(error)}))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            # A body of a shape that no parser expected: its sender shall hear of it, the connection lives on.
            self._count(path, 400)
            connection.answer(400, dumps({"error": f"the request cannot be read: {type(error).__name__}: {error}"}))

    def _post(self, connection: Connection, path: str, headers: dict[bytes, bytes], body: bytes) -> None:
        found = self._posts.get(path)
        if found is not None:
            queue, predict = found
            if not queue.ready:
                self.queue_of(queue.model.name)
            predict(connection, queue, headers, body)
        elif path.startswith(self._openai.prefix):
            self._openai.dispatch(connection, "POST", path, body)
        elif path == "/v2/repository/index":
            connection.answer(200, dumps(self.index()))
        elif path.startswith("/v2/repository/models/"):
            self._control(connection, path)
        else:
            raise self._unknown(path)

    def _predict_v1(
        self, connection: Connection, queue: ModelQueue, headers: Mapping[bytes, bytes], body: bytes
    ) -> None:
        model = queue.model
        request = parse_v1(body, model.tensors, model.inputs_of if model.signatures else None)

        def deliver(result: Any) -> None:
            self._deliver(connection, queue, result, lambda value: (render_v1(value, columns=request.columns), None))

        queue.submit(request.rows, deliver, model.signatures[request.signature].predict if request.signature else None)

    def _explain(self, connection: Connection, queue: ModelQueue, headers: Mapping[bytes, bytes], body: bytes) -> None:
        payload = loads(body)

        def deliver(result: Any) -> None:
            self._deliver(connection, queue, result, lambda value: (dumps(value), None))

        queue.submit(payload, deliver, queue.model.explain)

    def _predict_v2(
        self,
        connection: Connection,
        queue: ModelQueue,
        headers: Mapping[bytes, bytes],
        body: bytes,
        tensors: Sequence[bytes | memoryview] | None = None,
    ) -> None:
        if not queue.ready:
            self.queue_of(queue.model.name)
        length = headers.get(b"inference-header-content-length")
        if length is not None and not length.isdigit():
            raise ProtocolError("Inference-Header-Content-Length is no number")
        model = queue.model
        request = parse_v2(body, int(length) if length else None, model.tensors, tensors)

        def deliver(result: Any) -> None:
            self._deliver(connection, queue, result, lambda value: render_v2(model.name, request, value))

        queue.submit(request.rows, deliver, method_of(model, request))

    def _deliver(
        self,
        connection: Connection,
        queue: ModelQueue,
        result: Any,
        render: Callable[[Any], tuple[bytes, Sequence[Any] | None]],
    ) -> None:
        status, tensors = 200, None
        if isinstance(result, Exception):
            status = 400 if isinstance(result, ValueError | TypeError | KeyError) else 500
            body = dumps({"error": f"{type(result).__name__}: {result}"})
        else:
            try:
                body, tensors = render(result)
            except (TypeError, ValueError, AttributeError) as error:
                status, body = 500, dumps({"error": str(error)})
        queue.counters.count("predict", status)
        content_type = "application/json" if tensors is None else "application/octet-stream"
        connection.answer(status, body, content_type=content_type, tensors=tensors)

    # --- what is asked of models and the server ----------------------------------------------------------------------

    def _read(self, path: str) -> bytes:
        if path == "/metrics":
            return self._board.render()
        ready = all(queue.ready for queue in self._queues.values())
        if path == "/v2/health/ready" and not ready:
            raise ProtocolError("a model is not ready: it was unloaded.", 503)
        answers: dict[str, Any] = {
            "/": {"status": "alive"},
            "/healthz": {"status": "alive"},
            "/v1/models": {"models": list(self._queues)},
            "/v2": _SERVER,
            "/v2/": _SERVER,
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": ready},
            "/v2/models": {"models": list(self._queues)},
            "/v2/models/stats": {"model_stats": [_statistics(queue) for queue in self._queues.values()]},
            # Nobody can share memory or change tracing here: asked for the state, the answer is "none".
            "/v2/systemsharedmemory/status": [],
            "/v2/cudasharedmemory/status": [],
            "/v2/trace/setting": {},
        }
        if path in answers:
            return dumps(answers[path])
        version, _, rest = path.removeprefix("/").partition("/models/")
        name, _, view = rest.removesuffix("/").partition("/")
        view = view.removeprefix("versions/1").removeprefix("/")
        if version not in ("v1", "v2") or not name:
            raise self._unknown(path)
        views = {"v1": ("", "metadata"), "v2": ("", "ready", "config", "stats")}[version]
        if name in self._queues and view not in views:
            raise self._unknown(path)
        queue = self._queues[name] if name in self._queues and (version, view) == ("v2", "") else self.queue_of(name)
        return dumps(_describe(queue, version, view))

    def index(self) -> list[dict[str, str]]:
        """Return the repository's index."""
        return [
            {
                "name": name,
                "version": "1",
                "state": "READY" if queue.ready else "UNAVAILABLE",
                "reason": "" if queue.ready else "unloaded",
            }
            for name, queue in self._queues.items()
        ]

    def _control(self, connection: Connection, path: str) -> None:
        name, _, action = path.removeprefix("/v2/repository/models/").partition("/")
        if self._board.workers > 1:
            raise ProtocolError("only one of several workers would hear of it: serve with --workers=1", 501)
        if action == "unload":
            self.unload(name)
            connection.answer(200, dumps({"name": name, "unload": True}))
        elif action == "load":
            task = asyncio.get_running_loop().create_task(self._answer_load(connection, name))
            self._loading.add(task)
            task.add_done_callback(self._loading.discard)
        else:
            raise self._unknown(path)

    async def _answer_load(self, connection: Connection, name: str) -> None:
        try:
            await self.load(name)
        except ProtocolError as error:
            connection.answer(error.status, dumps({"error": str(error)}))
            return
        connection.answer(200, dumps({"name": name, "load": True}))

    def unload(self, name: str) -> None:
        """Stop serving a model; one that can be loaded again is forgotten, the only one is just not ready."""
        if name not in self._queues:
            raise ProtocolError(f"Model with name {name} does not exist.", 404)
        queue = self._queues[name]
        queue.ready = False
        if self._load is not None:
            del self._queues[name]
            self._posts = {path: found for path, found in self._posts.items() if found[0] is not queue}

    async def load(self, name: str) -> None:
        """
        Load a model, or load it anew.

        Raises:
            ProtocolError: there is no such model, or it cannot be loaded.
        """
        if self._load is None:
            if name not in self._queues:
                raise ProtocolError(f"Model with name {name} does not exist.", 404)
            self._queues[name].ready = True
            return
        try:
            model = await asyncio.to_thread(self._load, name)
        except LoadError as error:
            raise ProtocolError(f"Model with name {name} cannot be loaded: {error}", 400) from error
        self.add(model)

    def _unknown(self, path: str) -> ProtocolError:
        parts = path.split("/")
        if len(parts) > 3 and parts[1] in ("v1", "v2") and parts[2] == "models":
            asked = parts[3].partition(":")[0]
            if asked not in self._queues:
                known = ", ".join(self._queues) or "none"
                return ProtocolError(f"Model with name {asked} does not exist; this server has: {known}.", 404)
            if parts[3].endswith(":explain"):
                return ProtocolError("This model has no explainer.", 501)
        return ProtocolError(f"{path}: not found", 404)

    def _count(self, path: str, status: int) -> None:
        found = self._posts.get(path)
        if found is not None:
            found[0].counters.count("predict", status)
        else:
            self._other.count("other", status)


def method_of(model: Model, request: Request) -> Callable[[Any], Any] | None:
    """Return what predicts the outputs that a request names, None for the usual way."""
    if not model.methods or not request.outputs or not all(name in model.methods for name in request.outputs):
        return None
    return lambda rows: {name: model.methods[name](rows) for name in request.outputs}


def _describe(queue: ModelQueue, version: str, view: str) -> Any:
    model, name = queue.model, queue.model.name
    shape = [-1, model.features or -1]
    inputs = [tensor._asdict() for tensor in model.inputs]
    inputs = inputs or [{"name": "input-0", "datatype": "FP64", "shape": shape}]
    outputs = [tensor._asdict() for tensor in model.outputs]
    if version == "v1" and view == "metadata":
        spec = {"name": name, "signature_name": "", "version": "1"}
        return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": _signatures(model)}}}
    if version == "v1":
        # TensorFlow Serving's clients look at the second, KServe's at the first.
        status = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return {"name": name, "ready": queue.ready, "model_version_status": [status]}
    if view == "ready":
        return {"name": name, "ready": queue.ready}
    if view == "stats":
        return {"model_stats": [_statistics(queue)]}
    if view == "config":
        return {
            "name": name,
            "platform": model.platform,
            "max_batch_size": MAX_BATCH_ROWS if model.batches else 0,
            "input": [_triton_tensor(item) for item in inputs],
            "output": [_triton_tensor(item) for item in outputs],
        }
    return {"name": name, "versions": ["1"], "platform": model.platform, "inputs": inputs, "outputs": outputs}


def _signatures(model: Model) -> dict[str, Any]:
    """Describe the functions of a model as TensorFlow Serving does."""
    own = Signature(model.predict, model.inputs, model.outputs)
    known = ({"serving_default": own} if model.inputs else {}) | dict(model.signatures)
    return {
        name: {
            "inputs": {tensor.name: _tensor_info(tensor) for tensor in signature.inputs},
            "outputs": {tensor.name: _tensor_info(tensor) for tensor in signature.outputs},
            "method_name": "tensorflow/serving/predict",
        }
        for name, signature in known.items()
    }


def _tensor_info(tensor: Tensor) -> dict[str, Any]:
    kinds = {"FP16": "HALF", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}
    shape = {"dim": [{"size": str(size), "name": ""} for size in tensor.shape], "unknown_rank": False}
    kind = f"DT_{kinds.get(tensor.datatype, tensor.datatype)}"
    return {"dtype": kind, "tensor_shape": shape, "name": tensor.name}


def _triton_tensor(tensor: Mapping[str, Any]) -> dict[str, Any]:
    kind = _TRITON_TYPES.get(tensor["datatype"], tensor["datatype"])
    return {"name": tensor["name"], "data_type": f"TYPE_{kind}", "dims": list(tensor["shape"][1:])}


def _statistics(queue: ModelQueue) -> dict[str, Any]:
    done, failed, seconds = queue.counters.predictions()
    spent_ns = int(seconds * 1e9)
    inferences = {
        "success": {"count": done, "ns": spent_ns},
        "fail": {"count": failed, "ns": 0},
        "compute_infer": {"count": done, "ns": spent_ns},
    }
    name = queue.model.name
    return {
        "name": name,
        "version": "1",
        "inference_count": done,
        "execution_count": done,
        "inference_stats": inferences,
    }


async def _listen_for_grpc(server: ModelServer, options: Options) -> asyncio.Server | None:
    """Both protocols are spoken on both ports; this one is where clients of KServe's servers expect gRPC."""
    if options.grpc_port in (0, options.http_port):
        return None
    loop, share = asyncio.get_running_loop(), options.workers > 1
    try:
        return await loop.create_server(server.connect, options.host, options.grpc_port, backlog=2048, reuse_port=share)
    except OSError as error:
        print(f"no gRPC on port {options.grpc_port}, only on the other one: {error}", file=sys.stderr, flush=True)
        return None


async def _serve(server: ModelServer, options: Options) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    listener = await loop.create_server(
        server.connect, options.host, options.http_port, backlog=2048, reuse_port=options.workers > 1
    )
    also = await _listen_for_grpc(server, options)
    names = ", ".join(server.names) or "no models yet"
    print(f"{names}: ready on port {options.http_port}", flush=True)
    await stopping.wait()
    # Who balances the load hears of our end at the same moment as we do: stay open until it must have acted.
    for connection in list(server.connections):
        connection.finish_and_close()
    await asyncio.sleep(_LAME_DUCK_S)
    listener.close()
    if also:
        also.close()
    for connection in list(server.connections):
        connection.finish_and_close()
    deadline = loop.time() + 25
    while (server.connections or server.busy) and loop.time() < deadline:  # noqa: ASYNC110 once, while stopping
        await asyncio.sleep(0.02)


def main(argv: list[str], loaded: Loaded | None = None) -> int:
    """
    Serve until SIGTERM; exit code 1 and a termination message when the model cannot be loaded.

    Args:
        loaded: what loading the models would give.
    """
    try:
        options = parse_options(argv, os.environ)
        if options.ignored:
            print(f"arguments without effect here: {' '.join(options.ignored)}", file=sys.stderr, flush=True)
        if options.workers > 1:
            return _run_workers(options, loaded)
        models, load = loaded or load_all(options)
    except (LoadError, OptionsError) as error:
        return fail(error)
    return run(models, options, load=load)


def how_to_load(options: Options) -> LoadOptions:
    """Return what the options and variables of the server say about loading."""
    return LoadOptions(
        threads=options.threads,
        framework=options.framework or os.environ.get("SHALLOP_MODEL_FORMAT", ""),
        mlserver=options.mlserver,
        arguments=options.arguments,
    )


def _run_workers(options: Options, loaded: Loaded | None) -> int:
    board = Board(options.workers)
    if loaded is None and survives_fork(Path(options.folder), how_to_load(options)):
        loaded = load_all(options)
    # What is there now stays where it is: a collection in a worker would write to, and so copy, what they share.
    gc.collect()
    gc.freeze()

    def work(number: int) -> int:
        board.worker = number
        try:
            models, _ = loaded or load_all(options)
        except LoadError as error:
            return fail(error)
        return run(models, options, board=board)

    return supervise(options.workers, work)


def fail(error: Exception) -> int:
    """Say why nothing can be served, in the log and to the kubelet; returns the exit code."""
    print(f"cannot serve: {error}", file=sys.stderr, flush=True)
    _write_termination_message(str(error))
    return 1


def load_all(options: Options) -> Loaded:
    """
    Load the model of the folder, or all models of a repository, which can be loaded and unloaded later.

    Raises:
        LoadError: one cannot be loaded.
    """
    how, folder = how_to_load(options), Path(options.folder)
    if folder.name == "model-store" and not folder.exists():
        folder = folder.parent  # TorchServe's layout is asked for, the plain one is there
    # Told to wait for models: a puller puts them into the folder one by one.
    waiting = os.environ.get("SHALLOP_MULTI_MODEL") == "true"
    several = _folders(folder) if waiting else list(find_models(folder, how))
    if not several and not waiting:
        return [load_model(options.name, folder, how)], None

    def load(name: str) -> Model:
        if "/" in name or name in ("", ".", ".."):
            raise LoadError("this is no name of a model")
        return load_model(name, folder / name, how)

    return _load_what_can_be(several, load) if waiting else [load(name) for name in several], load


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _load_what_can_be(names: Sequence[str], load: Load) -> list[Model]:
    models = []
    for name in names:
        try:
            models.append(load(name))
        except LoadError as error:
            print(f"cannot serve {name!r}: {error}", file=sys.stderr, flush=True)
    return models


def run(models: Sequence[Model], options: Options, *, board: Board | None = None, load: Load | None = None) -> int:
    """Serve models until SIGTERM."""
    keep_freed()
    # uvloop binds in C, past the hook for Pods that share the machine's network.
    options = options._replace(host=options.host or os.environ.get("SHALLOP_POD_IP") or "0.0.0.0")
    server = ModelServer(models, board=board, load=load)
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(server, options))
    except ModuleNotFoundError:
        asyncio.run(_serve(server, options))
    return 0


def _write_termination_message(text: str) -> None:
    path = os.environ.get("TERMINATION_LOG", "/dev/termination-log")
    try:
        # Only where the kubelet has prepared the file: it is not ours to create in /dev.
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    except OSError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(text[:4096])
