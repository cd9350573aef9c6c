"""
Artifacts over REST: ``/apis/v2beta1/artifacts``, ``/artifact_tasks``.

No release of KFP has such endpoints; these follow its open proposal to replace ML Metadata.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import BadRequestError, ForbiddenError, NotFoundError, ObjectStoreError, UnavailableError
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.errors_wire import endpoint, precondition
from shallop.pipelines.http import read_message, reply
from shallop.pipelines.listing import ARTIFACT_KEYS, parse_page
from shallop.pipelines.messages import ARTIFACT, ARTIFACT_LIST, ARTIFACT_TASK_LIST, NEW_ARTIFACT, to_micros
from shallop.pipelines.podends import pod_namespace
from shallop.pipelines.providers import access_to
from shallop.pipelines.signals import signals_of
from shallop.store.objects import download, is_object_uri

__all__ = ["ArtifactsApi", "artifact_path"]

_MAX_LINKS = 200
_MAX_READ_BYTES = 32 << 20
_LINK_FILTERS = {"run_id": "run_id", "task_id": "task_id", "artifact_id": "artifact_id", "type": "type"}


def artifact_path(uri: str, roots: tuple[Path, ...]) -> Path:
    """
    Return the local file or directory of an artifact.

    The URI comes from user code: links are followed first, and the real place must lie below one of ``roots``.

    Raises:
        BadRequestError: the URI is no local path.
        ForbiddenError: it leads out of the roots.
        NotFoundError: nothing is there.
    """
    text = uri.removeprefix("file://")
    if not text.startswith("/") or "\0" in text:
        raise BadRequestError(f"uri: {uri!r} is not a path on this machine; download it from its own store.")
    path = Path(os.path.realpath(text))
    if not any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        raise ForbiddenError(
            f"uri: {uri!r} is outside of the artifact directory; only artifacts that runs have written can be read."
        )
    if not path.exists():
        raise NotFoundError(f"uri: nothing is at {uri!r}: the task wrote nothing, or the file was removed.")
    return path


class ArtifactsApi:
    """Handlers over the rows and the artifact directory of ``services``."""

    def __init__(self, services: Services, access: Access) -> None:
        self._access = access
        self._services = services
        self._database = services.database
        self._signals = signals_of(services.database)
        self._client = services.client
        self._root = services.settings.artifacts

    def routes(self) -> list[BaseRoute]:
        base = "/apis/v2beta1/artifacts"
        return [
            Route(base, endpoint(self.list), methods=["GET"]),
            Route(base, endpoint(self.create), methods=["POST"]),
            Route(f"{base}/{{artifact_id}}:download", endpoint(self.download), methods=["GET"]),
            Route(f"{base}/{{artifact_id}}", endpoint(self.get), methods=["GET"]),
            Route(
                "/apis/v2beta1/runs/{run_id}/nodes/{node}/artifacts/{name}:read", endpoint(self.read), methods=["GET"]
            ),
            Route("/apis/v2beta1/artifact_tasks", endpoint(self.list_links), methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        page = parse_page(request.query_params, ARTIFACT_KEYS)
        run_id = request.query_params.get("run_id", "")
        namespace = await self._selected(request)
        listed = await self._database.read(lambda c: tables.list_artifacts(c, page, run_id, namespace))
        return reply(
            ARTIFACT_LIST,
            {
                "artifacts": [_message(row) for row in listed.rows],
                "next_page_token": listed.next_page_token,
                "total_size": listed.total,
            },
        )

    async def create(self, request: Request) -> Response:
        """Register what exists somewhere; with ``task_id`` it counts as an output of that task."""
        given = await read_message(request, NEW_ARTIFACT)
        artifact = _checked(given.get("artifact") or {})
        task_id = given.get("task_id", "")
        run = await self._database.read(lambda c: tables.get_run_of_task(c, task_id)) if task_id else None
        if task_id and (run is None or given.get("run_id", run["id"]) != run["id"]):
            raise NotFoundError(f"task_id: no task {task_id!r} in run {given.get('run_id', '')!r}; GET the run.")
        if run is not None:
            await self._access.allow(request, "update", "runs", run)
            namespace = run["namespace"]
        else:
            namespace = await self._access.place(request, "create", "runs", artifact.get("namespace", ""))
        if not is_object_uri(artifact["uri"]) and namespace and "://" not in artifact["uri"]:
            await asyncio.to_thread(artifact_path, artifact["uri"], (self._root / namespace,))
        row: dict[str, Any] = {
            "name": artifact["name"],
            "type": artifact.get("type") or "system.Artifact",
            "uri": artifact["uri"],
            "metadata": artifact.get("metadata", {}),
            "digest": "",
            "size_bytes": 0,
            "created_at": to_micros(self._services.now()),
            "run_id": run["id"] if run is not None else "",
            "task_id": task_id,
            "namespace": namespace,
        }
        key = given.get("producer_key") or row["name"]
        last = await self._database.read(tables.last_artifact)
        self._signals.artifacts = row["id"] = max(self._signals.artifacts, last) + 1
        await self._database.write(lambda c: tables.insert_artifact(c, row, key))
        return reply(ARTIFACT, _message(row))

    async def read(self, request: Request) -> Response:
        """Send an output of a task as base64 in JSON; ``node`` is the id of a task or the name of its Pod."""
        run_id, node, name = (request.path_params[part] for part in ("run_id", "node", "name"))
        row = await self._database.read(lambda c: tables.find_output(c, run_id, node, name))
        if row is None:
            raise NotFoundError(f"name: task {node!r} of run {run_id!r} has no output artifact {name!r}.")
        await self._access.allow(request, "readArtifact", "runs", row)
        path, cleanup = await self._path(row)
        try:
            if not path.is_file():
                raise precondition(
                    f"name: {name!r} is a directory; download it with GET /artifacts/{row['id']}:download."
                )
            if path.stat().st_size > _MAX_READ_BYTES:
                raise precondition(f"name: {name!r} is larger than {_MAX_READ_BYTES >> 20} MiB; download it.")
            content = await asyncio.to_thread(path.read_bytes)
        finally:
            if cleanup is not None:
                await cleanup()
        return JSONResponse({"data": base64.b64encode(content).decode()})

    async def get(self, request: Request) -> Response:
        return reply(ARTIFACT, _message(await self._find(request)))

    async def list_links(self, request: Request) -> Response:
        query = request.query_params
        equals: dict[str, str | int] = {c: query[name] for name, c in _LINK_FILTERS.items() if query.get(name)}
        if "artifact_id" in equals:
            equals["artifact_id"] = _parse_id(str(equals["artifact_id"]))
        after = _parse_link_token(query.get("page_token", ""))
        size = min(_parse_id(query.get("page_size") or "0", "page_size") or _MAX_LINKS, _MAX_LINKS)
        namespace = await self._selected(request)
        rows, total = await self._database.read(
            lambda c: tables.list_links(c, after=after, limit=size + 1, equals=equals, namespace=namespace)
        )
        token = ""
        if len(rows) > size:
            rows.pop()
            token = base64.urlsafe_b64encode(str(rows[-1]["id"]).encode()).decode()
        return reply(ARTIFACT_TASK_LIST, {"artifact_tasks": rows, "next_page_token": token, "total_size": total})

    async def download(self, request: Request) -> Response:
        """Send the content as an attachment: a file as it is, a directory as tar.gz; ``peek=N``: the first bytes."""
        return await self.content(await self._find(request), request.query_params.get("peek") or "0")

    async def _path(self, row: Mapping[str, Any], below: str = "") -> tuple[Path, BackgroundTask | None]:
        """Return the content on this machine, and what removes it after use."""
        uri = f"{row['uri'].rstrip('/')}/{below}" if below else row["uri"]
        if is_object_uri(uri):
            folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="download-")
            cleanup = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
            return await self._bring(row, uri, Path(folder)), cleanup
        return await asyncio.to_thread(artifact_path, uri, (self._root / row["namespace"],)), None

    async def content(self, row: Mapping[str, Any], peek_text: str, below: str = "") -> Response:
        """Send the content of an artifact, or of what is ``below`` it; see ``download``."""
        path, cleanup = await self._path(row, below)
        # Content is written by users' code: never rendered by a browser on this origin.
        headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
        name = path.name or "artifact"
        if path.is_dir():
            headers["Content-Disposition"] = _attachment(f"{name}.tar.gz")
            chunks = _tar_chunks(path)
            return StreamingResponse(chunks, media_type="application/gzip", headers=headers, background=cleanup)
        if not stat.S_ISREG(path.stat().st_mode):
            raise precondition(f"uri: {row['uri']!r} is neither a file nor a directory.")
        headers["Content-Disposition"] = _attachment(name)
        if peek := _parse_id(peek_text, "peek"):
            content = await asyncio.to_thread(_read_first, path, min(peek, 1 << 20))
            return Response(content, media_type="application/octet-stream", headers=headers, background=cleanup)
        return FileResponse(path, media_type="application/octet-stream", headers=headers, background=cleanup)

    async def _bring(self, row: Mapping[str, Any], uri: str, folder: Path) -> Path:
        """Bring an artifact, or what is below it, out of its object store for the time of an answer."""
        path = folder / (uri.partition("?")[0].rstrip("/").rpartition("/")[2] or "artifact")
        try:
            access = await access_to(self._client, pod_namespace(row), uri)
            if not await asyncio.to_thread(download, uri, path, access):
                raise NotFoundError(f"uri: nothing is at {uri!r}: the task wrote nothing, or it was removed.")
        except (ObjectStoreError, NotFoundError) as error:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise error if isinstance(error, NotFoundError) else UnavailableError(str(error)) from error
        return path

    async def _find(self, request: Request) -> dict[str, Any]:
        id_ = _parse_id(request.path_params["artifact_id"])
        row = await self._database.read(lambda c: tables.get_artifact(c, id_))
        if row is None:
            raise NotFoundError(f"artifact_id: no artifact {id_}; list them with GET /apis/v2beta1/artifacts.")
        await self._access.allow(request, "readArtifact", "runs", row)
        return row

    async def _selected(self, request: Request) -> str | None:
        """Return the namespace whose artifacts are listed, by what the query names; None = all."""
        query = request.query_params
        if not self._access.is_multi_user:
            return None
        row: Mapping[str, Any] | None = None
        if query.get("artifact_id"):
            id_ = _parse_id(query["artifact_id"])
            row = await self._database.read(lambda c: tables.get_artifact(c, id_))
        elif run_id := query.get("run_id"):
            row = await self._database.read(lambda c: tables.get_run(c, run_id))
        elif task_id := query.get("task_id"):
            row = await self._database.read(lambda c: tables.get_run_of_task(c, task_id))
        namespace = query.get("namespace", "") if row is None else row["namespace"]
        return await self._access.selection(request, "runs", namespace)


def _message(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "artifact_id": row["id"]}


def _checked(artifact: Mapping[str, Any]) -> Mapping[str, Any]:
    if not artifact.get("name"):
        raise BadRequestError("artifact.name: required.")
    uri = artifact.get("uri", "")
    if not uri.startswith("/") and "://" not in uri:
        raise BadRequestError(f"artifact.uri: {uri!r} is neither an absolute path nor a URI such as s3://BUCKET/KEY.")
    return artifact


def _parse_id(text: str, field: str = "artifact_id") -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequestError(f"{field}: {text!r} must be a whole number.")
    return int(text)


def _parse_link_token(token: str) -> int:
    try:
        return int(base64.urlsafe_b64decode(token or "MA=="))
    except ValueError:
        raise BadRequestError("page_token: not a token of this server; leave it out to start over.") from None


def _attachment(name: str) -> str:
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


def _read_first(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


async def _tar_chunks(path: Path) -> AsyncIterator[bytes]:
    """Yield a directory as tar.gz while it is being packed in a thread; links are stored as links, not followed."""
    reader, writer = os.pipe()
    packing = asyncio.create_task(asyncio.to_thread(_pack, path, os.fdopen(writer, "wb")))
    with os.fdopen(reader, "rb") as output:
        while chunk := await asyncio.to_thread(output.read, 1 << 16):
            yield chunk
    await packing


def _pack(path: Path, output: IO[bytes]) -> None:
    # A reader that went away closes the pipe: packing then stops with BrokenPipeError, which nobody waits for.
    try:
        with output, tarfile.open(fileobj=output, mode="w|gz") as archive:
            archive.add(path, arcname=path.name)
    except BrokenPipeError:
        pass
