"""Reports that users' code wrote, on the content origin: their scripts run, but reach nothing of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from shallop.controller.callers import PROXY_SECRET_HEADER, USER_HEADER
from shallop.settings import Settings

__all__ = ["Reports"]

_MAX_BYTES = 32 << 20
_TIMEOUT_S = 60.0


class Reports:
    """Serves ``/artifacts/ID/html`` for artifacts of type HTML, read through the pipelines API as any client does."""

    def __init__(self, settings: Settings) -> None:
        self._api = f"{settings.web_url}/apis/v2beta1/artifacts"
        pages = {settings.web_url, f"http://localhost:{settings.web_port}", f"http://127.0.0.1:{settings.web_port}"}
        # Without allow-same-origin the page has an origin of its own: no cookies, no storage, no reads of this server.
        self._headers = {
            "Content-Security-Policy": f"sandbox allow-scripts; frame-ancestors {' '.join(sorted(pages))}",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }

    def routes(self) -> list[BaseRoute]:
        return [Route("/artifacts/{artifact_id}/html", self.html, methods=["GET"])]

    async def html(self, request: Request) -> Response:
        artifact_id = request.path_params["artifact_id"]
        if not (artifact_id.isascii() and artifact_id.isdigit()):
            return self._refuse(404, f"{artifact_id!r} is not the id of an artifact.")
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with aiohttp.ClientSession(timeout=timeout, headers=_credentials(request)) as session:
                async with session.get(f"{self._api}/{artifact_id}") as found:
                    artifact: dict[str, Any] = await found.json()
                    if found.status != 200:
                        return self._refuse(found.status, str(artifact.get("message", "not found")))
                if artifact.get("type") not in ("system.HTML", "HTML"):
                    return self._refuse(
                        415, f"Artifact {artifact_id} is a {artifact.get('type')}, not HTML; download it."
                    )
                async with session.get(f"{self._api}/{artifact_id}:download") as download:
                    if download.status != 200:
                        return self._refuse(download.status, (await download.text())[:1000])
                    content = await _read(download.content.iter_chunked(1 << 16))
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._refuse(502, f"The pipelines API did not answer: {error}")
        if content is None:
            return self._refuse(413, f"The report is longer than {_MAX_BYTES >> 20} MiB; download it.")
        return Response(content, media_type="text/html; charset=utf-8", headers=self._headers)

    def _refuse(self, status: int, message: str) -> Response:
        return PlainTextResponse(message, status, self._headers)


def _credentials(request: Request) -> dict[str, str]:
    """Return what makes the caller known, to pass on: the cookie of a login has become a header already."""
    names = ("authorization", USER_HEADER, PROXY_SECRET_HEADER)
    return {name: request.headers[name] for name in names if name in request.headers}


async def _read(chunks: AsyncIterator[bytes]) -> bytes | None:
    """Return everything, or None when it is too long to be shown."""
    content = bytearray()
    async for chunk in chunks:
        content += chunk
        if len(content) > _MAX_BYTES:
            return None
    return bytes(content)
