"""
Progress that Pods report: ``POST .../trainjobs/NAME/status`` of Kubeflow Trainer, on the web origin.

A Pod shows a token that Kubernetes made for this purpose: its audience names the TrainJob.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from shallop.controller.kind import Services
from shallop.errors import ApiError, BadRequestError, ForbiddenError, UnauthorizedError
from shallop.kube.objects import Gvk, Object
from shallop.settings import Settings
from shallop.webserver import read_body

__all__ = ["routes", "status_url"]

_TRAIN_JOB = Gvk("trainer.kubeflow.org/v1alpha1", "TrainJob")
_PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs/{name}/status"
_MAX_BYTES = 64 * 1024
# How Pods reach the web origin, see platform.py.
_HOST = "http://ml-pipeline.kubeflow:8888"


def status_url(_settings: Settings, job: Object) -> str:
    """Return where the Pods of a TrainJob report to."""
    metadata = job["metadata"]
    return _HOST + _PATH.format(namespace=metadata["namespace"], name=metadata["name"])


def routes(services: Services) -> Sequence[BaseRoute]:
    async def push(request: Request) -> Response:
        try:
            return JSONResponse(await _push(services, request))
        except ApiError as error:
            return JSONResponse(error.status(), error.code)

    return [Route(_PATH, push, methods=["POST"])]


async def _push(services: Services, request: Request) -> dict[str, Any]:
    namespace, name = request.path_params["namespace"], request.path_params["name"]
    await _authorize(services, request, namespace, name)
    body = await read_body(request, _MAX_BYTES, f"a report may have at most {_MAX_BYTES} bytes")
    try:
        report = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadRequestError(f"the report is no JSON object: {error}") from error
    status = report.get("trainerStatus")
    if not isinstance(status, dict):
        raise BadRequestError("trainerStatus: required, an object")
    job = await services.client.get(_TRAIN_JOB, name, namespace)
    # A report replaces the one before: what it does not name is not known any more.
    before = (job.get("status") or {}).get("trainerStatus") or {}
    await services.client.patch_status(job, {"trainerStatus": {**dict.fromkeys(before), **status}})
    return {"trainerStatus": status}


async def _authorize(services: Services, request: Request, namespace: str, name: str) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError("show the token of KUBEFLOW_TRAINER_SERVER_TOKEN as 'Authorization: Bearer TOKEN'")
    audience = f"trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs/{name}/status"
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "metadata": {},
        "spec": {"token": token.strip(), "audiences": [audience]},
    }
    status = (await services.client.create(review)).get("status") or {}
    user = str((status.get("user") or {}).get("username") or "")
    if not status.get("authenticated") or not user.startswith(f"system:serviceaccount:{namespace}:"):
        raise ForbiddenError(f"the token is not one for the status of TrainJob {namespace}/{name}")
