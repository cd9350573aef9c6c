"""The unmodified ``model-registry`` client, one release per API version, registers and reads back."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from shallop.controller import own_headers
from shallop.errors import UnavailableError
from shallop.serving.registrymodels import ModelNotFoundError, http_fetch, resolve_model
from shallop.settings import Settings
from shallop_pod import storage

SESSION = Path(__file__).with_name("model_registry_session.py")
USERS_SESSION = Path(__file__).with_name("model_registry_users_session.py")


@pytest.mark.parametrize("environment", ["registry-v1alpha3", "demo"], ids=["v1alpha3", "v1"])
def test_the_client_registers_and_reads_back_and_serving_resolves(
    own_platform: Any, client_env: Callable[[str], Path], environment: str
) -> None:
    # The session counts what it finds, so that each release gets a registry of its own.
    own_platform.up()
    command = [str(client_env(environment)), str(SESSION), str(urlsplit(own_platform.web).port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
    fetch = http_fetch(own_platform.web)
    assert asyncio.run(resolve_model("model-registry://flights/1", fetch)) == "/models/flights/moved"
    assert asyncio.run(resolve_model("model-registry://flights", fetch)) == "/models/7"
    with pytest.raises(ModelNotFoundError):
        asyncio.run(resolve_model("model-registry://flights/8", fetch))


def test_a_registry_of_several_users_asks_who_comes(
    own_platform: Any, client_env: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_platform.up("--multi-user")
    model = tmp_path / "model.txt"
    model.write_text("weights")
    port = str(urlsplit(own_platform.web).port)
    command = [str(client_env("demo")), str(USERS_SESSION), port, own_platform.kubeconfig, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    # Parts of the platform ask as its administrator.
    headers = asyncio.run(own_headers(Settings(home=own_platform.home, multi_user=True)))
    assert asyncio.run(resolve_model("model-registry://flights", http_fetch(own_platform.web, headers))) == str(model)
    with pytest.raises(UnavailableError, match="401"):
        asyncio.run(resolve_model("model-registry://flights", http_fetch(own_platform.web)))
    # A Pod asks with the token of its ServiceAccount.
    environ = {"MODEL_REGISTRY_BASE_URL": own_platform.web}
    monkeypatch.setattr(storage, "_TOKEN", str(tmp_path / "token"))
    with pytest.raises(storage.StorageError, match="401"):
        storage.fetch("model-registry://flights", str(tmp_path / "fetched"), environ)
    (tmp_path / "token").write_text(done.stdout.strip())
    storage.fetch("model-registry://flights", str(tmp_path / "fetched"), environ)
    assert (tmp_path / "fetched" / "model.txt").read_text() == "weights"
