"""Servers that users wrote run as they are: with the package kserve, FastAPI, Flask; one that speaks HTTP/2 only."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.kubelet.environments import Environments
from shallop.settings import Settings

CODE = Path(__file__).parent / "custom"
# One environment for all of them.
REQUIREMENTS = ["kserve==0.21.0", "flask==3.1.3", "h2==4.4.1"]
ANNOTATIONS = {"environment.shallop.dev/requirements": "\n".join(REQUIREMENTS)}

pytestmark = pytest.mark.timeout(300)


def component(program: str, **container: Any) -> dict[str, Any]:
    """Return a component that runs one of the programs from a ConfigMap, in an image of Python."""
    return {
        "containers": [
            {
                "name": "kserve-container",
                "image": "python:3.11",
                "command": ["python", f"/code/{program}.py"],
                "volumeMounts": [{"name": "code", "mountPath": "/code"}],
                **container,
            }
        ],
        "volumes": [{"name": "code", "configMap": {"name": "custom-code"}}],
    }


def service(name: str, **components: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": ANNOTATIONS},
        "spec": components,
    }


def post(url: str, payload: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_servers_of_users_run_unmodified(platform: Any, tmp_path: Path) -> None:
    # Built before anyone waits for the Pods that run in it.
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    asyncio.run(environments.ensure(environments.resolve("python:3.11", [], REQUIREMENTS)))
    code = {path.name: path.read_text() for path in CODE.glob("*.py")}
    objects = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "custom-code"}, "data": code},
        service(
            "doubler",
            predictor=component("predictor", args=["--model_name=doubler"]),
            transformer=component("transformer"),
        ),
        service("fast", predictor=component("fast")),
        service(
            "flasky",
            predictor=component("flasky", ports=[{"containerPort": 9099}], env=[{"name": "PORT", "value": "9099"}]),
        ),
        service("h2only", predictor=component("h2only", ports=[{"name": "h2c", "containerPort": 8080}])),
    ]
    platform.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    names = ("doubler", "fast", "flasky", "h2only")
    platform.kubectl("wait", *(f"isvc/{name}" for name in names), "--for=condition=Ready", "--timeout=95s")
    urls = {name: platform.kubectl("get", "isvc", name, "-o", "jsonpath={.status.url}") for name in names}
    rows = {"instances": [[1, 2, 3], [4, 5, 6]]}
    assert post(f"{urls['fast']}/v1/models/fast:predict", rows) == {"predictions": [3, 3]}
    assert post(f"{urls['flasky']}/score", {"rows": [[1, 5, 2]]}) == {"scores": [5]}
    # Asked by HTTP/1.1, which its server does not speak.
    assert post(f"{urls['h2only']}/v1/models/h2only:predict", rows) == {"predictions": [6, 15]}
    stream = urllib.request.Request(f"{urls['h2only']}/stream", json.dumps(rows).encode())
    with urllib.request.urlopen(stream, timeout=30) as answer:
        assert (answer.headers["Content-Type"], list(answer)) == (
            "text/event-stream",
            [b"data: 6\n", b"\n", b"data: 15\n", b"\n"],
        )
    # The transformer adds one to each number, the predictor doubles it, the transformer adds them up.
    assert post(f"{urls['doubler']}/v1/models/doubler:predict", rows) == {"predictions": [18, 36]}
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{urls['doubler']}/v1/models/nobody:predict", rows)
    refused.value.close()
    assert refused.value.code == 404
