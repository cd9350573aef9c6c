"""Pipelines and their versions over REST: ``/apis/v2beta1/pipelines``, uploads included."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import sqlalchemy as sa
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import BadRequestError, NotFoundError
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.errors_wire import endpoint, precondition, upload_endpoint
from shallop.pipelines.http import empty, json_reply, list_text, read_body, read_message, reply
from shallop.pipelines.ir import MAX_PACKAGE_BYTES, Pipeline, load_package, parse_pipeline
from shallop.pipelines.listing import PIPELINE_KEYS, VERSION_KEYS, parse_page
from shallop.pipelines.messages import (
    CREATE_PIPELINE_AND_VERSION,
    PIPELINE,
    PIPELINE_LIST,
    PIPELINE_VERSION,
    PIPELINE_VERSION_LIST,
    to_micros,
)
from shallop.pipelines.validation import CanResolve, check_pipeline, refuse

__all__ = ["PipelinesApi", "checked_pipeline", "document_of", "spec_digest"]

_MAX_NAME = 128
_MAX_VERSION_NAME = 127
_MAX_TAGS = 20
_MAX_TAG_LENGTH = 63
_DOWNLOAD_TIMEOUT_S = 30


def document_of(spec: dict[str, Any], platform: dict[str, Any]) -> dict[str, Any]:
    """Return what clients see as ``pipeline_spec``: the IR alone, or both documents when there is a second one."""
    return {"pipeline_spec": spec, "platform_spec": platform} if platform else spec


def spec_digest(document: str) -> str:
    return hashlib.sha256(document.encode()).hexdigest()


def _check_package(content: bytes, filename: str) -> str:
    """Parse and check an uploaded package (slow for big ones: call it in a thread); return its document as JSON."""
    spec, platform = load_package(content, filename)
    checked_pipeline(document_of(spec, platform))
    return json.dumps(document_of(spec, platform))


def _check_document(document: dict[str, Any], name: str) -> str:
    """Check what a client sends inside of its message as a package of that name."""
    return _check_package(json.dumps(document).encode(), name)


def _any_image(image: str, argv: Sequence[str]) -> str | None:
    return None


def checked_pipeline(document: dict[str, Any], cannot_run: CanResolve = _any_image) -> Pipeline:
    """
    Parse a document as clients send it; BadRequestError names every field that is wrong.

    Args:
        cannot_run: why an image cannot run here; asked for a run, not for an upload, which may be for later.
    """
    pipeline = parse_pipeline(document)
    refuse(check_pipeline(pipeline, cannot_run), f"Pipeline {pipeline.name!r}")
    return pipeline


def _check_tags(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise BadRequestError("tags: must be a JSON object whose values are text.")
    if len(value) > _MAX_TAGS:
        raise BadRequestError(f"tags: {len(value)} given; at most {_MAX_TAGS} are allowed.")
    for key, item in value.items():
        if not key or "." in key or len(key) > _MAX_TAG_LENGTH or len(item) > _MAX_TAG_LENGTH:
            raise BadRequestError(
                f"tags: {key!r}: keys and values have at most {_MAX_TAG_LENGTH} characters, keys are not empty and "
                "have no dots."
            )
    return value


def _check_name(name: str, limit: int) -> str:
    if not name.strip():
        raise BadRequestError("name: required; give it a name.")
    if len(name) > limit:
        raise BadRequestError(f"name: {len(name)} characters; at most {limit} are allowed.")
    return name


def _pipeline_row(namespace: str, given: Mapping[str, Any], now: int) -> dict[str, Any]:
    name = given.get("name") or given.get("display_name", "")
    return {
        "id": str(uuid.uuid4()),
        "namespace": namespace,
        "name": _check_name(name, _MAX_NAME),
        "display_name": given.get("display_name") or name,
        "description": given.get("description", ""),
        "created_at": now,
        "tags": _check_tags(given.get("tags", {})),
    }


def _version_row(pipeline_id: str, given: Mapping[str, Any], document: str, now: int) -> dict[str, Any]:
    name = given.get("name") or given.get("display_name", "")
    return {
        "id": str(uuid.uuid4()),
        "pipeline_id": pipeline_id,
        "name": _check_name(name, _MAX_VERSION_NAME),
        "display_name": given.get("display_name") or name,
        "description": given.get("description", ""),
        "created_at": now,
        "tags": _check_tags(given.get("tags", {})),
        "code_source_url": given.get("code_source_url", ""),
        "package_url": given.get("package_url", {}).get("pipeline_url", ""),
        "spec_digest": spec_digest(document),
    }


def _pipeline_message(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "pipeline_id": row["id"]}


def _version_message(row: Mapping[str, Any], specs: Mapping[str, Any]) -> dict[str, Any]:
    message = {**row, "pipeline_version_id": row["id"], "pipeline_spec": specs.get(row["spec_digest"])}
    return message | {"package_url": {"pipeline_url": row["package_url"]} if row["package_url"] else None}


class PipelinesApi:
    """Handlers over the rows of ``services``."""

    def __init__(self, services: Services, access: Access) -> None:
        self._services = services
        self._access = access
        self._database = services.database

    def routes(self) -> list[BaseRoute]:
        base = "/apis/v2beta1/pipelines"
        one = f"{base}/{{pipeline_id}}"
        versions = f"{one}/versions"
        version = f"{versions}/{{pipeline_version_id}}"
        return [
            Route(base, endpoint(self.list), methods=["GET"]),
            Route(base, endpoint(self.create), methods=["POST"]),
            Route(f"{base}/create", endpoint(self.create_with_version), methods=["POST"]),
            Route(f"{base}/upload", upload_endpoint(self.upload), methods=["POST"]),
            Route(f"{base}/upload_version", upload_endpoint(self.upload_version), methods=["POST"]),
            Route(f"{base}/names/{{name}}", endpoint(self.get_by_name), methods=["GET"]),
            Route(one, endpoint(self.get), methods=["GET"]),
            Route(one, endpoint(self.update), methods=["PATCH"]),
            Route(one, endpoint(self.delete), methods=["DELETE"]),
            Route(versions, endpoint(self.list_versions), methods=["GET"]),
            Route(versions, endpoint(self.create_version), methods=["POST"]),
            Route(version, endpoint(self.get_version), methods=["GET"]),
            Route(version, endpoint(self.update_version), methods=["PATCH"]),
            Route(version, endpoint(self.delete_version), methods=["DELETE"]),
        ]

    def _now(self) -> int:
        return to_micros(self._services.now())

    async def list(self, request: Request) -> Response:
        page = parse_page(request.query_params, PIPELINE_KEYS)
        asked = request.query_params.get("namespace", "")
        namespace = await self._access.share(request, "list", asked) if self._access.is_multi_user else None
        listed = await self._database.read(lambda c: tables.list_pipelines(c, page, namespace))
        return reply(
            PIPELINE_LIST,
            {
                "pipelines": [_pipeline_message(row) for row in listed.rows],
                "next_page_token": listed.next_page_token,
                "total_size": listed.total,
            },
        )

    async def create(self, request: Request) -> Response:
        given = await read_message(request, PIPELINE)
        namespace = await self._access.share(request, "create", given.get("namespace", ""))
        row = _pipeline_row(namespace, given, self._now())
        return reply(PIPELINE, _pipeline_message(await self._database.write(lambda c: tables.insert_pipeline(c, row))))

    async def create_with_version(self, request: Request) -> Response:
        given = await read_message(request, CREATE_PIPELINE_AND_VERSION)
        version = given.get("pipeline_version", {})
        pipeline = given.get("pipeline", {})
        namespace = await self._access.share(request, "create", pipeline.get("namespace", ""))
        text = await self._document_of_version(version, "pipeline_version")
        row, _ = await self._insert(namespace, pipeline, version, text)
        return reply(PIPELINE, _pipeline_message(row))

    async def upload(self, request: Request) -> Response:
        query = request.query_params
        namespace = await self._access.share(request, "create", query.get("namespace", ""))
        text, filename = await self._read_upload(request)
        given = dict(query) | {"tags": _parse_tags(query.get("tags", ""))}
        if not (given.get("name") or given.get("display_name")):
            given["name"] = filename
        row, _ = await self._insert(namespace, given, given, text)
        return reply(PIPELINE, _pipeline_message(row))

    async def upload_version(self, request: Request) -> Response:
        query = request.query_params
        id_ = query.get("pipelineid", "")
        if not id_:
            raise BadRequestError("pipelineid: required; the pipeline to which the version belongs.")
        pipeline = await self._pipeline(request, id_, "create")
        text, filename = await self._read_upload(request)
        given = dict(query) | {"tags": _parse_tags(query.get("tags", ""))}
        if not (given.get("name") or given.get("display_name")):
            given["name"] = filename
        return await self._insert_version(pipeline["id"], given, text)

    async def create_version(self, request: Request) -> Response:
        given = await read_message(request, PIPELINE_VERSION)
        id_ = request.path_params["pipeline_id"]
        if given.get("pipeline_id", id_) != id_:
            raise BadRequestError("pipeline_id: differs from the one in the path; leave it out.")
        pipeline = await self._pipeline(request, id_, "create")
        return await self._insert_version(pipeline["id"], given, await self._document_of_version(given, ""))

    async def _insert(
        self, namespace: str, pipeline: Mapping[str, Any], version: Mapping[str, Any], text: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        now = self._now()
        pipeline_row = _pipeline_row(namespace, pipeline, now)
        named = dict(version)
        if not (named.get("name") or named.get("display_name")):
            named["name"] = pipeline_row["name"]
        version_row = _version_row(pipeline_row["id"], named, text, now)

        def insert(connection: sa.Connection) -> None:
            tables.insert_pipeline(connection, pipeline_row)
            tables.put_spec(connection, version_row["spec_digest"], text)
            tables.insert_version(connection, version_row)

        await self._database.write(insert)
        return pipeline_row, version_row

    async def _insert_version(self, pipeline_id: str, given: Mapping[str, Any], text: str) -> Response:
        row = _version_row(pipeline_id, given, text, self._now())

        def insert(connection: sa.Connection) -> None:
            tables.put_spec(connection, row["spec_digest"], text)
            tables.insert_version(connection, row)

        await self._database.write(insert)
        return reply(PIPELINE_VERSION, _version_message(row, {row["spec_digest"]: tables.part_of_answer(text)}))

    async def _read_upload(self, request: Request) -> tuple[str, str]:
        """Return the document of a package as JSON, and the name of its file."""
        # Read with a limit first: the form parser would spool any amount to disk.
        body = await read_body(request, MAX_PACKAGE_BYTES + 65536)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise BadRequestError("uploadfile: send the package as multipart/form-data in the field 'uploadfile'.")
        async with Request(request.scope, receive).form(max_files=1) as form:
            file = form.get("uploadfile")
            if not isinstance(file, UploadFile):
                raise BadRequestError("uploadfile: required; send the package in the form field 'uploadfile'.")
            filename = (file.filename or "package").replace("\\", "/").rpartition("/")[2]
            content = await file.read()
        return await asyncio.to_thread(_check_package, content, filename), filename

    async def _document_of_version(self, given: Mapping[str, Any], path: str) -> str:
        """Return the document of a version as JSON: inline, or downloaded from ``package_url``."""
        prefix = f"{path}." if path else ""
        if "pipeline_spec" in given:
            return await asyncio.to_thread(_check_document, given["pipeline_spec"], f"{prefix}pipeline_spec")
        url = given.get("package_url", {}).get("pipeline_url", "")
        if not url:
            raise BadRequestError(f"{prefix}package_url.pipeline_url: required; the URL of a compiled pipeline.")
        content = await _download(url, f"{prefix}package_url.pipeline_url")
        return await asyncio.to_thread(_check_package, content, url)

    async def get_by_name(self, request: Request) -> Response:
        name = request.path_params["name"]
        namespace = await self._access.share(request, "get", request.query_params.get("namespace", ""))
        row = await self._database.read(lambda c: tables.get_pipeline_named(c, namespace, name))
        if row is None:
            raise NotFoundError(f"name: no pipeline {name!r}; list them with GET /apis/v2beta1/pipelines.")
        return reply(PIPELINE, _pipeline_message(row))

    async def get(self, request: Request) -> Response:
        return reply(
            PIPELINE, _pipeline_message(await self._pipeline(request, request.path_params["pipeline_id"], "get"))
        )

    async def update(self, request: Request) -> Response:
        row = await self._pipeline(request, request.path_params["pipeline_id"], "update")
        values = _changes(await read_message(request, PIPELINE))
        if values:
            await self._database.write(lambda c: tables.update_pipeline(c, row["id"], values))
        return reply(PIPELINE, _pipeline_message(row | values))

    async def delete(self, request: Request) -> Response:
        row = await self._pipeline(request, request.path_params["pipeline_id"], "delete")
        cascade = request.query_params.get("cascade", "false").lower() == "true"

        def delete(connection: sa.Connection) -> None:
            count = tables.count_versions(connection, row["id"])
            if count and not cascade:
                raise precondition(
                    f"pipeline_id: pipeline {row['name']!r} has {count} versions; delete them or send cascade=true."
                )
            tables.delete_pipeline(connection, row["id"])

        await self._database.write(delete)
        return empty()

    async def list_versions(self, request: Request) -> Response:
        page = parse_page(request.query_params, VERSION_KEYS)
        pipeline_id = request.path_params["pipeline_id"]
        if self._access.is_multi_user:
            await self._pipeline(request, pipeline_id, "list")

        def read(connection: sa.Connection) -> str:
            listed = tables.list_versions(connection, page, pipeline_id)
            specs = tables.get_documents(connection, [row["spec_digest"] for row in listed.rows])
            messages = [_version_message(row, specs) for row in listed.rows]
            return list_text(PIPELINE_VERSION_LIST, "pipeline_versions", messages, listed)

        return json_reply(await self._database.read(read))

    async def get_version(self, request: Request) -> Response:
        row = await self._version(request, "get")
        return reply(PIPELINE_VERSION, await self._full_version(row))

    async def update_version(self, request: Request) -> Response:
        row = await self._version(request, "update")
        values = _changes(await read_message(request, PIPELINE_VERSION))
        if values:
            await self._database.write(lambda c: tables.update_version(c, row["id"], values))
        return reply(PIPELINE_VERSION, await self._full_version(row | values))

    async def delete_version(self, request: Request) -> Response:
        row = await self._version(request, "delete")
        await self._database.write(lambda c: tables.delete_version(c, row["id"]))
        return empty()

    async def _full_version(self, row: Mapping[str, Any]) -> dict[str, Any]:
        specs = await self._database.read(lambda c: tables.get_documents(c, [row["spec_digest"]]))
        return _version_message(row, specs)

    async def _pipeline(self, request: Request, id_: str, verb: str) -> dict[str, Any]:
        row = await self._database.read(lambda c: tables.get_pipeline(c, id_))
        if row is None:
            raise NotFoundError(f"pipeline_id: no pipeline {id_!r}; list them with GET /apis/v2beta1/pipelines.")
        await self._access.allow_pipeline(request, verb, row)
        return row

    async def _version(self, request: Request, verb: str) -> dict[str, Any]:
        # The pipeline's id in the path is not compared: upstream's tests rely on that.
        id_ = request.path_params["pipeline_version_id"]
        row = await self._database.read(lambda c: tables.get_version(c, id_))
        if row is None:
            raise NotFoundError(f"pipeline_version_id: no pipeline version {id_!r}; list the versions of the pipeline.")
        if self._access.is_multi_user:
            await self._pipeline(request, row["pipeline_id"], verb)
        return row


def _changes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a PATCH changes: the display name and the tags, nothing else."""
    values: dict[str, Any] = {}
    if given.get("display_name"):
        values["display_name"] = given["display_name"]
    if "tags" in given:
        values["tags"] = _check_tags(given["tags"])
    return values


def _parse_tags(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError as error:
        raise BadRequestError(f"tags: not a JSON object: {error}") from error


async def _download(url: str, field: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise BadRequestError(f"{field}: {url!r}: only http and https can be downloaded; upload the file instead.")
    content = bytearray()
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_DOWNLOAD_TIMEOUT_S)) as session,
            session.get(url) as response,
        ):
            response.raise_for_status()
            async for chunk in response.content.iter_chunked(1 << 16):
                content += chunk
                if len(content) > MAX_PACKAGE_BYTES:
                    raise BadRequestError(f"{field}: {url}: longer than {MAX_PACKAGE_BYTES} bytes.")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BadRequestError(f"{field}: {url}: cannot be downloaded: {error or 'timeout'}; check the URL.") from error
    return bytes(content)
