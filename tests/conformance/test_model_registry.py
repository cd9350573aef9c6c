"""The unmodified ``model-registry`` client, one release per API version, registers and reads back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
import uvicorn
from starlette.applications import Starlette
from uv import find_uv_bin

from shallop.controller.kind import Services
from shallop.kube.client import Client
from shallop.registry import PART
from shallop.serving.registrymodels import ModelNotFoundError, http_fetch, resolve_model
from shallop.settings import Settings
from shallop.store.database import Database

SESSION = Path(__file__).with_name("model_registry_session.py")


@pytest.fixture
def registry_port(tmp_path: Path) -> Iterator[int]:
    database = Database(f"sqlite:///{tmp_path}/rows.db")
    database.migrate(PART.name, PART.migrations)
    services = Services(Settings(home=tmp_path), cast(Client, None), database, lambda: datetime.now(UTC))
    assert PART.routes is not None
    app = Starlette(routes=list(PART.routes(services)))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        database.close()


@pytest.mark.parametrize("release", ["0.3.11", "0.3.18"], ids=["v1alpha3", "v1"])
def test_the_client_registers_and_reads_back_and_serving_resolves(registry_port: int, release: str) -> None:
    command = [find_uv_bin(), "run", "--no-project", "--isolated", "--python", sys.executable]
    command += ["--with", f"model-registry=={release}", "python", str(SESSION), str(registry_port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
    fetch = http_fetch(f"http://127.0.0.1:{registry_port}")
    assert asyncio.run(resolve_model("model-registry://flights/1", fetch)) == "/models/flights/moved"
    assert asyncio.run(resolve_model("model-registry://flights", fetch)) == "/models/7"
    with pytest.raises(ModelNotFoundError):
        asyncio.run(resolve_model("model-registry://flights/8", fetch))
