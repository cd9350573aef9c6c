"""Runs the controllers against a cluster, as one of several replicas or alone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shallop.cluster.manifests import CLUSTER_PARTS, LEASE_NAME
from shallop.controller import Manager
from shallop.controller.leader import Elector, LeaseTimes
from shallop.errors import ApiError
from shallop.kube.kubeconfig import Access
from shallop.kube.objects import Key, Object, gvk_of
from shallop.kube.remote import RemoteClient
from shallop.settings import Settings
from shallop.store.database import Database
from shallop.webserver import Server, bind

__all__ = ["Lease", "run"]

log = logging.getLogger(__name__)
_RETRY_S = 5.0


class Lease(NamedTuple):
    """Where replicas decide who acts, and how long that holds."""

    namespace: str
    times: LeaseTimes


def run(access: Access, settings: Settings, lease: Lease | None, *, health_port: int) -> int:
    """Run until SIGINT or SIGTERM (0), or until the lead is lost (1); no election without a ``lease``."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(f"sqlite:///{settings.home / 'controllers.db'}", synchronous=settings.synchronous)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(access, settings, database, lease, health_port))
    finally:
        database.close()


async def _run(access: Access, settings: Settings, database: Database, lease: Lease | None, health_port: int) -> int:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(RemoteClient(access))
        elector, client = None, plain
        if lease is not None:
            elector = Elector(plain, Key(lease.namespace, LEASE_NAME), _identity(), lease.times)
            client = await stack.enter_async_context(RemoteClient(access, may_write=elector.may_write))
        kinds = [kind for part in CLUSTER_PARTS for kind in part.kinds]
        manager = Manager(client, settings, database, kinds, component="shallop-controllers", admitted=False)
        state = _State(manager)
        if health_port:
            await stack.enter_async_context(_health(state, health_port))

        async def act() -> None:
            await _act(client, manager, state)

        work = asyncio.ensure_future(elector.lead(act) if elector is not None else act())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if work.done():
            work.result()
            log.error("another replica may lead now; ending, so that nothing old is written")
            return 1
        work.cancel()
        await asyncio.wait([work])
        if elector is not None:
            await elector.release()
        return 0


def _identity() -> str:
    return f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"


class _State:
    """What the health endpoint tells."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.started = asyncio.Event()

    def describe(self) -> str:
        if not self.started.is_set():
            return "standby"
        off = [f"{gvk.kind} ({gvk.api_version}) is off: the cluster does not have it" for gvk in self.manager.off]
        return "\n".join(["leading", *off])


async def _act(client: RemoteClient, manager: Manager, state: _State) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(manager.run(state.started))
        tasks.create_task(_apply_objects(client))
        await state.started.wait()
        log.info("controllers run: %s", state.describe())


async def _apply_objects(client: RemoteClient) -> None:
    """Apply what the parts bring along, such as the runtimes of models; waits for types that are not there yet."""
    waiting: list[Object] = [obj for part in CLUSTER_PARTS for obj in part.objects]
    while waiting:
        for obj in list(waiting):
            try:
                await client.apply(obj)
                waiting.remove(obj)
            except ApiError as error:
                log.warning("%s %s not applied: %s", gvk_of(obj).kind, obj["metadata"]["name"], error)
        if waiting:
            await asyncio.sleep(_RETRY_S)


@asynccontextmanager
async def _health(state: _State, port: int) -> AsyncIterator[None]:
    async def alive(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        return PlainTextResponse(state.describe() + "\n")

    routes: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [("/healthz", alive), ("/readyz", ready)]
    sock = bind("0.0.0.0", port, "health_port")
    server = Server(Starlette(routes=[Route(path, endpoint) for path, endpoint in routes]), sock)
    await server.start()
    try:
        yield
    finally:
        await server.stop()
        sock.close()
