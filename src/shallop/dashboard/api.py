"""The dashboard's own reads over HTTP, ``/ui/v1``: what the pipelines and registry APIs do not have."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from shallop import __version__
from shallop.controller import Callers, Services
from shallop.dashboard.endpoints import count_pods, endpoint_rows, example_request, predict_path
from shallop.dashboard.jobs import (
    EXPERIMENT,
    OPTIMIZATIONJOB,
    TRAINING_KINDS,
    TRAINJOB,
    TRIAL,
    job_rows,
    search_row,
    trial_rows,
)
from shallop.dashboard.live import INFERENCE_SERVICE, POD, live_of
from shallop.errors import ApiError, BadRequestError, NotFoundError, UnauthorizedError, UnavailableError
from shallop.kube.objects import Gvk, Object, controller_of
from shallop.webserver import read_body, token_cookie

__all__ = ["DashboardApi"]

_Handler = Callable[[Request], Awaitable[Response]]
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
# A comment line keeps proxies from closing a quiet stream.
_HEARTBEAT_S = 15.0
# Changes within this time are told together; a page cannot show more than this anyway.
_QUIET_S = 0.25
_PREDICT_TIMEOUT_S = 120.0
_MAX_BODY_BYTES = 8 << 20
_MAX_LOGIN_BYTES = 64 << 10
# Whose namespaces a person may choose from, and whose endpoints they see.
_RUNS = ("pipelines.kubeflow.org", "runs")
_SERVICES = ("serving.kserve.io", "inferenceservices")
_SEARCHES = {EXPERIMENT: "experiments", OPTIMIZATIONJOB: "optimizationjobs"}
# What a bearer token is made of, RFC 6750; anything else could end the cookie that keeps it.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


def _endpoint(handler: _Handler) -> _Handler:
    async def answer(request: Request) -> Response:
        try:
            response = await handler(request)
        except ApiError as error:
            response = JSONResponse({"message": error.message, "reason": error.reason}, error.code)
        response.headers.update(_HEADERS)
        return response

    return answer


class DashboardApi:
    """Handlers over the objects of ``services``."""

    def __init__(self, services: Services) -> None:
        self._client = services.client
        self._settings = services.settings
        self._live = live_of(services.client)
        self._callers = Callers(services.client, services.settings.proxy_secret_file)

    def routes(self) -> list[BaseRoute]:
        one = "/ui/v1/endpoints/{namespace}/{name}"
        return [
            Route("/ui/v1/me", _endpoint(self.me), methods=["GET"]),
            Route("/ui/v1/login", _endpoint(self.login), methods=["POST"]),
            Route("/ui/v1/logout", _endpoint(self.logout), methods=["POST"]),
            Route("/ui/v1/overview", _endpoint(self.overview), methods=["GET"]),
            Route("/ui/v1/endpoints", _endpoint(self.endpoints), methods=["GET"]),
            Route("/ui/v1/training", _endpoint(self.training), methods=["GET"]),
            Route("/ui/v1/searches", _endpoint(self.searches), methods=["GET"]),
            Route("/ui/v1/searches/{kind}/{namespace}/{name}", _endpoint(self.search), methods=["GET"]),
            Route("/ui/v1/stream", _endpoint(self.stream), methods=["GET"]),
            Route(f"{one}/example", _endpoint(self.example), methods=["GET"]),
            Route(f"{one}:predict", _endpoint(self.predict), methods=["POST"]),
            Route("/ui/{rest:path}", _endpoint(self.unknown), methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ]

    async def me(self, request: Request) -> Response:
        """Say who is logged in, and in which namespaces they see runs; nobody has no user."""
        if not self._settings.multi_user:
            return JSONResponse({"multi_user": False, "user": "", "namespaces": []})
        try:
            caller = await self._callers.identify(request.headers)
        except UnauthorizedError:
            return JSONResponse({"multi_user": True, "user": "", "namespaces": []})
        namespaces = await self._callers.namespaces(caller, *_RUNS)
        return JSONResponse({"multi_user": True, "user": caller.get("username", ""), "namespaces": namespaces})

    async def login(self, request: Request) -> Response:
        """Keep a token in the browser, if it is one."""
        refusal = "body: a token is shorter than this."
        try:
            body = json.loads(await read_body(request, _MAX_LOGIN_BYTES, refusal))
            token = str(body["token"]).strip()
        except (ValueError, TypeError, KeyError) as error:
            raise BadRequestError('body: send {"token": "..."}.') from error
        if not _TOKEN.fullmatch(token):
            raise UnauthorizedError("token: not a bearer token; paste what 'kubectl create token ACCOUNT' prints.")
        await self._callers.identify({"authorization": f"Bearer {token}"})
        return JSONResponse({}, headers={"Set-Cookie": token_cookie(self._settings.web_port, token)})

    async def logout(self, request: Request) -> Response:
        return JSONResponse({}, headers={"Set-Cookie": token_cookie(self._settings.web_port, "")})

    async def _seen(self, request: Request, group: str, resource: str) -> Callable[[Object], bool]:
        """Return whether a caller may see an object of a kind, in its namespace."""
        if not self._settings.multi_user:
            return lambda obj: True
        caller = await self._callers.identify(request.headers)
        namespaces = set(await self._callers.namespaces(caller, group, resource))
        return lambda obj: obj["metadata"].get("namespace", "") in namespaces

    async def overview(self, request: Request) -> Response:
        settings = self._settings
        of_services, of_pods = await self._seen(request, *_SERVICES), await self._seen(request, "", "pods")
        rows = endpoint_rows(filter(of_services, self._live.list(INFERENCE_SERVICE)), ())
        return JSONResponse(
            {
                "version": __version__,
                "web_url": settings.web_url,
                "gateway_url": settings.gateway_url,
                "content_url": settings.content_url,
                "kubeconfig": str(settings.home / "kubeconfig"),
                "endpoints": {"total": len(rows), "ready": sum(row["ready"] == "True" for row in rows)},
                "pods": count_pods(filter(of_pods, self._live.list(POD))),
            }
        )

    async def endpoints(self, request: Request) -> Response:
        seen = await self._seen(request, *_SERVICES)
        rows = endpoint_rows(filter(seen, self._live.list(INFERENCE_SERVICE)), self._live.list(POD))
        return JSONResponse({"endpoints": rows})

    async def training(self, request: Request) -> Response:
        """Send training jobs of every kind that the caller may see."""
        jobs: list[Object] = []
        for gvk, plural in TRAINING_KINDS.items():
            seen = await self._seen(request, gvk.group, plural)
            jobs += filter(seen, await self._list(gvk))
        return JSONResponse({"jobs": job_rows(jobs, self._live.list(POD))})

    async def searches(self, request: Request) -> Response:
        """Send Experiments and OptimizationJobs, the newest first."""
        rows: list[dict[str, Any]] = []
        for gvk, plural in _SEARCHES.items():
            seen = await self._seen(request, gvk.group, plural)
            searches = list(filter(seen, await self._list(gvk)))
            trials = _by_search(await self._list(TRIAL if gvk == EXPERIMENT else TRAINJOB)) if searches else {}
            rows += [search_row(search, trials.get(search["metadata"]["uid"], [])) for search in searches]
        return JSONResponse({"searches": sorted(rows, key=lambda row: str(row["created_at"]), reverse=True)})

    async def search(self, request: Request) -> Response:
        """Send one of them with its trials."""
        kind, namespace, name = (request.path_params[key] for key in ("kind", "namespace", "name"))
        gvk = next((gvk for gvk in _SEARCHES if gvk.kind == kind), None)
        if gvk is None:
            raise NotFoundError(f"{kind}: a search is an Experiment or an OptimizationJob.")
        search = await self._client.get(gvk, name, namespace)
        if not (await self._seen(request, gvk.group, _SEARCHES[gvk]))(search):
            raise NotFoundError(f"{kind} {namespace}/{name} not found")
        listed = await self._list(TRIAL if gvk == EXPERIMENT else TRAINJOB, namespace)
        trials = _by_search(listed).get(search["metadata"]["uid"], [])
        return JSONResponse({"search": search_row(search, trials), "trials": trial_rows(search, trials)})

    async def _list(self, gvk: Gvk, namespace: str = "") -> list[Object]:
        """Return the objects of a kind; none where the cluster does not have it."""
        try:
            return (await self._client.list(gvk, namespace)).items
        except NotFoundError:
            return []

    async def stream(self, request: Request) -> Response:
        """Stream ``changed`` events with the kinds whose objects have changed; readers then read again."""
        if self._settings.multi_user:
            await self._callers.identify(request.headers)
        return StreamingResponse(self._changes(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _changes(self) -> AsyncIterator[str]:
        with self._live.reading() as news:
            # Answers at once, so that the browser knows that the connection stands.
            yield ": hello\n\n"
            while True:
                try:
                    async with asyncio.timeout(_HEARTBEAT_S):
                        await news.wait()
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                await asyncio.sleep(_QUIET_S)
                yield f"event: changed\ndata: {json.dumps(news.take())}\n\n"

    async def example(self, request: Request) -> Response:
        """Send a request to begin with, shaped as the model says."""
        protocol = _protocol(request)
        service = await self._service(request)
        metadata = None
        try:
            async with _session(5.0) as session, session.get(f"{_url(service)}/v2/models/{_name(service)}") as response:
                if response.status == 200:
                    metadata = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            pass  # a model that does not describe itself gets an example of the usual shape
        known = isinstance(metadata, dict) and bool(metadata.get("inputs"))
        source = "Shaped as the model describes its inputs; the values are zeros." if known else "An example to change."
        return JSONResponse({"body": example_request(protocol, metadata if known else None), "source": source})

    async def predict(self, request: Request) -> Response:
        """Pass a prediction request on to the endpoint; sends status, body and how long it took."""
        protocol = _protocol(request)
        service = await self._service(request)
        body = await _read(request)
        url = _url(service) + predict_path(protocol, _name(service))
        headers = {"Content-Type": "application/json"}
        try:
            async with _session(_PREDICT_TIMEOUT_S) as session:
                began = time.perf_counter()
                async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                    answer = await response.read()
                latency_ms = (time.perf_counter() - began) * 1000
        except TimeoutError as error:
            raise UnavailableError(f"{url}: no answer within {_PREDICT_TIMEOUT_S:g} s.") from error
        except aiohttp.ClientError as error:
            raise UnavailableError(f"{url}: {error}; is the gateway running?") from error
        return JSONResponse(
            {"status": response.status, "latency_ms": round(latency_ms, 2), "body": _decoded(answer), "url": url}
        )

    async def unknown(self, request: Request) -> Response:
        raise NotFoundError(f"{request.method} {request.url.path}: no such endpoint of the dashboard.")

    async def _service(self, request: Request) -> Object:
        namespace, name = request.path_params["namespace"], request.path_params["name"]
        if self._settings.multi_user:
            caller = await self._callers.identify(request.headers)
            await self._callers.require(caller, "get", *_SERVICES, namespace)
        return await self._client.get(INFERENCE_SERVICE, name, namespace)


def _by_search(trials: Iterable[Object]) -> dict[str, list[Object]]:
    """Sort trials by the uid of whose they are."""
    found: dict[str, list[Object]] = {}
    for trial in trials:
        if owner := controller_of(trial):
            found.setdefault(owner["uid"], []).append(trial)
    return found


def _session(timeout_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s))


def _name(service: Object) -> str:
    return str(service["metadata"]["name"])


def _url(service: Object) -> str:
    url = str((service.get("status") or {}).get("url") or "")
    if not url:
        metadata = service["metadata"]
        raise UnavailableError(f"InferenceService {metadata['namespace']}/{metadata['name']} has no URL yet.")
    return url.rstrip("/")


def _protocol(request: Request) -> str:
    protocol = request.query_params.get("protocol", "v1")
    if protocol not in ("v1", "v2"):
        raise BadRequestError(f"protocol: {protocol!r} is not known; use v1 or v2.")
    return protocol


async def _read(request: Request) -> bytes:
    refusal = f"body: longer than {_MAX_BODY_BYTES} bytes; send large requests to the endpoint itself."
    body = await read_body(request, _MAX_BODY_BYTES, refusal)
    try:
        json.loads(body)
    except ValueError as error:
        raise BadRequestError(f"body: not JSON: {error}") from error
    return body


def _decoded(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return answer.decode("utf-8", "replace")
