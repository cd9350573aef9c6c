"""The built web pages as files: who may cache them, what they may load, and what to say when they are not built."""

from __future__ import annotations

import mimetypes
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

__all__ = ["Assets"]

# Built files lie flat in one folder, so that no name can lead out of it.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_NOT_BUILT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>shallop</title>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 40em; margin: 4em auto; padding: 0 1em">
<h1>The dashboard is not built</h1>
<p>All APIs work. To build the pages, run this in the source folder and reload:</p>
<pre>make setup</pre>
<p>or, only for the pages: <code>.venv/bin/python scripts/build_web.py</code></p>
"""


class Assets:
    """
    Serves a folder with ``index.html``, ``favicon.svg`` and hashed files in ``assets/``.

    Args:
        content_url: the origin whose pages may be shown in a frame.
    """

    def __init__(self, folder: Path, content_url: str) -> None:
        self._folder = folder
        # Styles: the component library writes theme variables into style elements. Scripts: only our files.
        policy = (
            "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: https:; "
            f"connect-src 'self'; frame-src {content_url}; object-src 'none'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.index, methods=["GET"]),
            Route("/favicon.svg", self.icon, methods=["GET"]),
            Route("/favicon.ico", self.icon, methods=["GET"]),
            Route("/assets/{name:path}", self.asset, methods=["GET"]),
        ]

    async def index(self, request: Request) -> Response:
        headers = self._headers | {"Cache-Control": "no-store"}
        path = self._folder / "index.html"
        if not path.is_file():
            return HTMLResponse(_NOT_BUILT, 503, headers)
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)

    async def icon(self, request: Request) -> Response:
        return self._file(request, self._folder / "favicon.svg", "max-age=86400")

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not _NAME.fullmatch(name) or name.endswith(".gz"):
            return self._missing()
        return self._file(request, self._folder / "assets" / name, "public, max-age=31536000, immutable")

    def _file(self, request: Request, path: Path, caching: str) -> Response:
        if not path.is_file():
            return self._missing()
        headers = self._headers | {"Cache-Control": caching, "Vary": "Accept-Encoding"}
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        packed = path.with_name(f"{path.name}.gz")
        if "gzip" in request.headers.get("accept-encoding", "") and packed.is_file():
            path, headers = packed, headers | {"Content-Encoding": "gzip"}
        return FileResponse(path, media_type=media_type, headers=headers)

    def _missing(self) -> Response:
        # After an update an open page may ask for a file of before: the answer must not be kept.
        text = "No such file; reload the page."
        return PlainTextResponse(text, 404, self._headers | {"Cache-Control": "no-store"})
