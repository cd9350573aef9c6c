"""The unmodified ``kserve`` client creates, waits for, reads, patches, replaces and deletes InferenceServices."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from uv import find_uv_bin

from shallop.controller.manager import Manager
from shallop.embedded.apiserver import ApiServer, ensure_tls, write_kubeconfig
from shallop.errors import ApiError
from shallop.gateway import HTTPROUTE
from shallop.kube.client import Client
from shallop.kube.objects import Gvk
from shallop.kube.remote import RemoteClient, load_kubeconfig
from shallop.serving import PART
from shallop.settings import Settings
from shallop.store.database import Database

SESSION = Path(__file__).with_name("inferenceservice_session.py")
DEPLOYMENT = Gvk("apps/v1", "Deployment")


async def _roll_out(client: Client) -> None:
    """Play the controllers of Deployments and of endpoints: every Deployment is available at once."""
    while True:
        for deployment in (await client.list(DEPLOYMENT)).items:
            wanted = deployment["spec"]["replicas"]
            counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), wanted)
            status = {
                "observedGeneration": deployment["metadata"]["generation"],
                "conditions": [{"type": "Available", "status": "True"}],
                **counts,
            }
            metadata = deployment["metadata"]
            name, labels = metadata["name"], {"kubernetes.io/service-name": metadata["name"], **metadata["labels"]}
            endpoints = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": name, "namespace": metadata["namespace"], "labels": labels},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
            }
            try:
                await client.apply(endpoints, owner=deployment)
                await client.patch_status(deployment, status)
            except ApiError:
                continue  # deleted meanwhile
        await asyncio.sleep(0.1)


class _Server(threading.Thread):
    """The API server over TLS and the serving controllers, in a loop of their own."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home = home
        self.ready = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.error = error
        finally:
            self.ready.set()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self.join(30)
        assert not self.is_alive(), "the server did not stop"

    async def _serve(self) -> None:
        home = self._home
        api = ApiServer(None, admin_token="token")
        await api.start()
        await api.register_kinds([*PART.kinds, HTTPROUTE])
        client = api.client()
        for obj in PART.objects:
            await client.apply(obj)
        tls = ensure_tls(home / "tls")
        config = uvicorn.Config(
            api.asgi, host="127.0.0.1", port=0, log_level="warning", ssl_certfile=tls.certificate, ssl_keyfile=tls.key
        )
        http = uvicorn.Server(config)
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        serving = asyncio.create_task(http.serve())
        while not http.started and not serving.done():
            await asyncio.sleep(0.01)
        port = http.servers[0].sockets[0].getsockname()[1]
        write_kubeconfig(
            home / "kubeconfig", server=f"https://127.0.0.1:{port}", ca_pem=tls.ca.read_bytes(), token="token"
        )
        # The controllers, too, are clients of the API as any other here.
        remote = RemoteClient(load_kubeconfig(home / "kubeconfig"))
        database = Database(f"sqlite:///{home}/rows.db")
        manager = Manager(remote, replace(Settings(), home=home), database, PART.kinds)
        background = [asyncio.create_task(manager.run()), asyncio.create_task(_roll_out(client))]
        self.ready.set()
        await self._ending.wait()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await manager.events.flush()
        await remote.close()
        http.should_exit = True
        await serving
        await api.stop()
        database.close()


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    server = _Server(tmp_path)
    server.start()
    assert server.ready.wait(30)
    assert server.error is None, server.error
    try:
        yield tmp_path / "kubeconfig"
    finally:
        server.stop()
    assert server.error is None, server.error


def test_the_client_manages_an_inference_service(kubeconfig: Path) -> None:
    # kserve 0.21.0 hands model objects to the kubernetes client; later ones accept dicts only.
    command = [find_uv_bin(), "run", "--no-project", "--isolated", "--python", sys.executable]
    command += [
        "--with",
        "kserve==0.21.0",
        "--with",
        "kubernetes<36",
        "python",
        str(SESSION),
        str(kubeconfig),
        "file:///models/iris",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
