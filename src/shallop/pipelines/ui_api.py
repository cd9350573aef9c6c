"""
Paths of upstream's web server that clients and its pages use, at the root and below ``/pipeline``.

Source: the front-end server of Kubeflow Pipelines. Not served: ``source=http(s)`` of artifacts, which would have this
server fetch any address, and its project and cluster names, which are Google's.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import ApiError, BadRequestError, NotFoundError
from shallop.kube.objects import Gvk, labels_of
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.artifacts_api import ArtifactsApi
from shallop.pipelines.errors_wire import Handler, http_status
from shallop.pipelines.logs import LogsApi
from shallop.pipelines.podends import pod_namespace
from shallop.pipelines.render import RUN_LABEL

__all__ = ["UiApi", "redirect_to_pages"]

_SCHEMES = {"minio": "minio", "s3": "s3", "gcs": "gs", "azure": "az"}
_MAX_KEY = 1024
_POD = Gvk("v1", "Pod")
_EVENT = Gvk("v1", "Event")


class UiApi:
    """Handlers over the rows of ``services``; errors are plain text, as those of the original."""

    def __init__(self, services: Services, access: Access, artifacts: ArtifactsApi, logs: LogsApi) -> None:
        self._database = services.database
        self._client = services.client
        self._access = access
        self._artifacts = artifacts
        self._logs = logs

    def routes(self) -> list[BaseRoute]:
        handlers = {
            "/artifacts/get": self.get_artifact,
            "/artifacts/{source}/{bucket}/{key:path}": self.download_artifact,
            "/k8s/pod": self.pod,
            "/k8s/pod/events": self.pod_events,
            "/k8s/pod/logs": self.pod_logs,
            "/visualizations/allowed": self.visualizations,
        }
        return [Route(path, _plain(handler), methods=["GET"]) for path, handler in handlers.items()]

    async def get_artifact(self, request: Request) -> Response:
        """Send the content that ``source``, ``bucket`` and ``key`` name, of ``peek`` only the first bytes."""
        query = request.query_params
        return await self._send(request, query.get("source", ""), query.get("bucket", ""), query.get("key", ""))

    async def download_artifact(self, request: Request) -> Response:
        path = request.path_params
        return await self._send(request, path["source"], path["bucket"], path["key"])

    async def _send(self, request: Request, source: str, bucket: str, key: str) -> Response:
        uri = _uri(source, bucket, key)
        found = await self._database.read(lambda c: tables.find_artifact_holding(c, _holders(uri)))
        if found is None:
            raise NotFoundError(f"key: no run has an artifact at {uri!r}; list them with GET /apis/v2beta1/artifacts.")
        await self._access.allow(request, "readArtifact", "runs", found)
        below = uri.removeprefix(found["uri"].rstrip("/")).strip("/")
        return await self._artifacts.content(found, request.query_params.get("peek") or "0", below)

    async def pod(self, request: Request) -> Response:
        return JSONResponse(await self._pod(request))

    async def pod_events(self, request: Request) -> Response:
        pod = await self._pod(request)
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        selector = f"involvedObject.kind=Pod,involvedObject.name={name}"
        events = (await self._client.list(_EVENT, namespace, field_selector=selector)).items
        return JSONResponse({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": events})

    async def pod_logs(self, request: Request) -> Response:
        """Send what a Pod has printed, also after it is gone, given ``runid`` and ``podname``."""
        query = request.query_params
        if not query.get("runid"):
            raise BadRequestError("runid: required; the run of which podname is a Pod.")
        request.scope["path_params"] = {"run_id": query["runid"], "task_id": _required(request, "podname")}
        return await self._logs.log(request)

    async def visualizations(self, request: Request) -> Response:
        return JSONResponse(False)

    async def _pod(self, request: Request) -> dict[str, Any]:
        """Return a Pod of a run: of no other, this server shows pipelines and not the cluster."""
        name, wanted = _required(request, "podname"), request.query_params.get("podnamespace", "")
        namespace = wanted or pod_namespace({"namespace": ""})
        pod: dict[str, Any] = await self._client.get(_POD, name, namespace)
        run_id = labels_of(pod).get(RUN_LABEL, "")
        run = await self._database.read(lambda c: tables.get_run(c, run_id))
        if run is None or pod_namespace(run) != namespace:
            raise NotFoundError(f"podname: Pod {namespace}/{name} belongs to no run; use 'kubectl get pod'.")
        await self._access.allow(request, "get", "runs", run)
        return pod


async def redirect_to_pages(request: Request) -> Response:
    """Lead to the dashboard; browsers keep what follows ``#`` in links that the SDK prints."""
    return RedirectResponse("/")


def _required(request: Request, name: str) -> str:
    value = request.query_params.get(name, "")
    if not value:
        raise BadRequestError(f"{name}: required.")
    return value


def _uri(source: str, bucket: str, key: str) -> str:
    """Return the URI that an artifact has which upstream's pages ask for in parts."""
    if len(key) > _MAX_KEY or not key:
        raise BadRequestError(f"key: required, at most {_MAX_KEY} characters.")
    if source in ("volume", "file"):
        return f"/{key.lstrip('/')}"
    if source not in _SCHEMES:
        raise BadRequestError(f"source: {source!r} is not served; use one of {', '.join(_SCHEMES)} or volume.")
    if not bucket:
        raise BadRequestError("bucket: required.")
    return f"{_SCHEMES[source]}://{bucket}/{key}"


def _holders(uri: str) -> list[str]:
    """Return the place itself and all folders around it."""
    scheme, mark, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    parts = rest.rstrip("/").split("/")
    return [f"{scheme}{mark}{'/'.join(parts[:length])}" for length in range(len(parts), 1, -1)]


def _plain(handler: Handler) -> Handler:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return PlainTextResponse(error.message, http_status(error))

    return guarded
