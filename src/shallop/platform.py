"""Composition: settings become a database, an API server, controllers, web origins; started and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from shallop import dashboard, gateway, instance, pipelines, registry, serving, training, tuning
from shallop.controller import Manager, Part, Services
from shallop.embedded import workloads
from shallop.embedded.apiserver.kubeconfig import write_kubeconfig
from shallop.embedded.apiserver.server import ApiServer
from shallop.embedded.apiserver.tls import ensure_tls
from shallop.embedded.apiserver.tokens import ensure_admin_token
from shallop.embedded.kubelet import Node
from shallop.errors import SettingsError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, labels_of
from shallop.memory import give_back
from shallop.priority import take_precedence
from shallop.settings import Settings
from shallop.store.database import Database
from shallop.webserver import OriginGuard, Server, TokenCookie, bind
from shallop_pod.heap import keep_freed

__all__ = ["PARTS", "Platform", "run"]

log = logging.getLogger(__name__)

PARTS: tuple[Part, ...] = (
    workloads.PART,
    gateway.PART,
    registry.PART,
    pipelines.PART,
    serving.PART,
    training.PART,
    tuning.PART,
    dashboard.PART,
)
_FILES = 65536
_SERVICE = Gvk("v1", "Service")
_SLICE = Gvk("discovery.k8s.io/v1", "EndpointSlice")
# How Pods reach the platform: the names and ports that Kubeflow's clients have built in.
_PLATFORM_SERVICES = (
    ("ml-pipeline", 8888, "web_port"),
    ("model-registry-service", 8080, "web_port"),
    ("katib-db-manager", 6789, "katib_port"),
)
# How long a thread that computes (the answer about a run of 10,000 tasks) keeps the interpreter from the event loop and
# from those that read rows. With Python's 5 ms a list of runs beside it took 28-34 ms (p95), with this 9-14 ms.
_SWITCH_S = 0.0005
_COLLECT_AFTER = (5000, 20, 20)


def run(settings: Settings) -> int:
    """Run until SIGINT or SIGTERM (Pods stop too) or SIGHUP (Pods go on); returns the exit code."""
    lock = instance.Lock(settings)
    take_precedence()
    sys.setswitchinterval(_SWITCH_S)
    keep_freed()
    # A watch is a connection: a thousand of them are more than most systems allow a program at first.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings))
    del lock
    return 0


async def _run(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[bool] = loop.create_future()

    def request_stop(keep_pods: bool) -> None:
        if not stop.done():
            stop.set_result(keep_pods)

    for signum, keep_pods in ((signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, True)):
        loop.add_signal_handler(signum, request_stop, keep_pods)
    platform = Platform(settings)
    async with platform.running() as bound:
        instance.write_status(bound, ready=True)
        _announce(bound)
        # What start has made stays: a collector that walks it again and again holds every request up for 0.1 s.
        gc.freeze()
        # What answers are made of is no garbage either: looked at less often, one about 5,000 tasks takes a fifth less.
        gc.set_threshold(*_COLLECT_AFTER)
        failed: asyncio.Future[bool] = asyncio.ensure_future(platform.failed.wait())
        memory = asyncio.create_task(give_back(), name="memory")
        await asyncio.wait({stop, failed}, return_when=asyncio.FIRST_COMPLETED)
        failed.cancel()
        memory.cancel()
        instance.write_status(bound, ready=False)
        platform.keep_pods = not stop.done() or stop.result()
    if platform.error is not None:
        raise platform.error


def _announce(settings: Settings) -> None:
    print(
        f"shallop is ready: dashboard {settings.web_url}, predictions {settings.gateway_url}, "
        f"KUBECONFIG={settings.home / 'kubeconfig'}",
        file=sys.stderr,
        flush=True,
    )


class Platform:
    """
    Everything of one instance, in one event loop.

    ``failed`` is set when a long-running task of a part has ended with ``error``: nothing can be trusted then, and a
    supervisor should start the process again.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parts = (workloads.PART,) if settings.bare else PARTS
        self.keep_pods = True
        self.failed = asyncio.Event()
        self.error: BaseException | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Settings]:
        """Start; yields the settings with the ports that were really bound; stop in reverse order on leaving."""
        async with AsyncExitStack() as stack:
            sockets = {name: _bind(self._settings, name) for name in ("api", "web", "gateway", "content", "katib")}
            for sock in sockets.values():
                stack.callback(sock.close)
            settings = self._settings.with_ports(**{name: s.getsockname()[1] for name, s in sockets.items()})
            _prepare_home(settings)
            database = Database(f"sqlite:///{settings.home / 'rows.db'}", synchronous=settings.synchronous)
            stack.callback(database.close)
            for part in self._parts:
                if part.migrations:
                    database.migrate(part.name, part.migrations)
            await self._start(stack, settings, database, sockets)
            yield settings

    async def _start(
        self, stack: AsyncExitStack, settings: Settings, database: Database, sockets: dict[str, socket.socket]
    ) -> None:
        token = ensure_admin_token(settings.home / "token")
        server = ApiServer(
            settings.home / "objects.db",
            admin_token=token,
            key_file=settings.home / "tls" / "service-accounts.key",
            hosts=[settings.host],
            synchronous=settings.synchronous,
            resolve_service=lambda namespace, name, port: resolve_service(manager, namespace, name, port),
        )
        await server.start()
        stack.push_async_callback(server.stop)
        kinds = [kind for part in self._parts for kind in part.kinds]
        await server.register_kinds([kind for kind in kinds if kind.schema is not None])
        client = server.client()
        manager = Manager(client, settings, database, kinds)
        services = Services(settings, client, database, _utc_now, sockets)
        node = Node(services)
        services = replace(services, cannot_run=node.cannot_run, environment_of=node.environment_of)
        server.node = node
        server.verbs.placing = workloads.PLACING
        for part in self._parts:
            for gvk, mutate in (part.admission(services) if part.admission else {}).items():
                server.registry.mutating.setdefault(gvk, []).append(mutate)
        await self._serve(stack, settings, server, sockets, token)
        await _apply_objects(client, settings, self._parts)
        tasks: list[Callable[[], Awaitable[None]]] = [node.run]
        for part in self._parts:
            tasks += part.tasks(services) if part.tasks else ()
        started = asyncio.Event()
        # Undone in reverse: first nobody starts processes any more, then those of Pods are ended.
        stack.push_async_callback(self._stop_node, node)
        await self._start_tasks(stack, [lambda: manager.run(started), *tasks])
        await self._serve_web(stack, settings, services, sockets)
        await _first_of(started.wait(), self.failed.wait())

    async def _serve(
        self,
        stack: AsyncExitStack,
        settings: Settings,
        server: ApiServer,
        sockets: dict[str, socket.socket],
        token: str,
    ) -> None:
        tls = ensure_tls(settings.home / "tls", hosts=[settings.host])
        write_kubeconfig(settings.home / "kubeconfig", server=settings.api_url, ca_pem=tls.ca.read_bytes(), token=token)
        api = Server(server.asgi, sockets["api"], tls=(str(tls.certificate), str(tls.key)))
        await api.start()
        stack.push_async_callback(api.stop)

    async def _serve_web(
        self, stack: AsyncExitStack, settings: Settings, services: Services, sockets: dict[str, socket.socket]
    ) -> None:
        for name, routes in (
            ("web", [route for part in self._parts if part.routes for route in part.routes(services)]),
            ("content", [route for part in self._parts if part.content for route in part.content(services)]),
        ):
            app: ASGIApp = _web_app(routes)
            if settings.multi_user:
                app = TokenCookie(app, settings.web_port)
            server = Server(OriginGuard(app, [settings.host]), sockets[name])
            await server.start()
            stack.push_async_callback(server.stop)

    async def _start_tasks(self, stack: AsyncExitStack, coroutines: Sequence[Callable[[], Awaitable[None]]]) -> None:
        async def run_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for coroutine in coroutines:
                        group.create_task(_as_coroutine(coroutine))
            except BaseExceptionGroup as error:
                self.error = error
                self.failed.set()

        group = asyncio.create_task(run_all(), name="parts")

        async def stop() -> None:
            group.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await group

        stack.push_async_callback(stop)

    async def _stop_node(self, node: Node) -> None:
        await node.stop(keep_pods=self.keep_pods)


async def _as_coroutine(call: Callable[[], Awaitable[None]]) -> None:
    await call()


async def _first_of(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _bind(settings: Settings, name: str) -> socket.socket:
    setting = f"{name}_port"
    return bind(settings.host, getattr(settings, setting), setting)


def _prepare_home(settings: Settings) -> None:
    if settings.host not in ("127.0.0.1", "::1", "localhost"):
        raise SettingsError(
            f"host: {settings.host} can be reached from other machines, and the web origins have no login yet. "
            "Leave --host at 127.0.0.1 and use an SSH tunnel."
        )
    for folder in (settings.artifacts, settings.volumes, settings.pods, settings.logs, settings.run):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


async def _apply_objects(client: Client, settings: Settings, parts: Sequence[Part]) -> None:
    for part in parts:
        for obj in part.objects:
            await client.apply(obj)
    ports = [(name, port, getattr(settings, to), "kubeflow", "http") for name, port, to in _PLATFORM_SERVICES]
    ports.append(("kubernetes", 443, settings.api_port, "default", "https"))
    for name, port, target, namespace, protocol in ports:
        if name != "kubernetes":
            await client.apply(_platform_service(name, namespace, port))
        await client.apply(_platform_slice(name, namespace, protocol, settings.host, target))


def _platform_service(name: str, namespace: str, port: int) -> Object:
    # Without a selector: its endpoint is this process, see _platform_slice.
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {"component": name.removesuffix("-service")}},
        "spec": {"ports": [{"name": "http", "port": port, "protocol": "TCP", "targetPort": port}]},
    }


def _platform_slice(name: str, namespace: str, port_name: str, address: str, port: int) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-platform",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "shallop"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
    }


def resolve_service(manager: Manager, namespace: str, name: str, port: str) -> tuple[str, int] | None:
    """Return a ready endpoint of a Service port given by name, number or empty for the only one."""
    for item in manager.cache(_SLICE).list(namespace):
        if labels_of(item).get("kubernetes.io/service-name") != name:
            continue
        ports = item.get("ports") or []
        chosen = [p for p in ports if port in ("", p.get("name"))] or (ports if len(ports) == 1 else [])
        for endpoint in item.get("endpoints") or ():
            if chosen and (endpoint.get("conditions") or {}).get("ready", True):
                return str(endpoint["addresses"][0]), int(chosen[0]["port"])
    return None


def _web_app(routes: Sequence[BaseRoute]) -> Starlette:
    async def failed(request: Request, error: Exception) -> Response:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": "internal error; see the log of shallop", "code": 13, "message": str(error)}, 500)

    async def alive(_: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/healthz", alive), *routes], exception_handlers={Exception: failed})
