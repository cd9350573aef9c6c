"""The unmodified ``model-registry`` client, one release per API version, registers and reads back."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from shallop.serving.registrymodels import ModelNotFoundError, http_fetch, resolve_model

SESSION = Path(__file__).with_name("model_registry_session.py")


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
