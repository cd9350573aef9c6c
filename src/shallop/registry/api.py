"""Model Registry REST: both live versions of the API, built from the table of resources."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from shallop.controller.kind import Services
from shallop.errors import ApiError, BadRequestError
from shallop.registry import entries, tables
from shallop.registry.access import Access
from shallop.registry.entry import Entry, decode_json, encode_entry, parse_id
from shallop.registry.filters import parse_filter
from shallop.registry.resources import COLLECTIONS, NESTED, TYPES, Collection, Nested, ResourceType
from shallop.webserver import read_body

__all__ = ["routes"]

PREFIX = "/api/model_registry"
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_ORDERS = {"CREATE_TIME": "created_ms", "LAST_UPDATE_TIME": "updated_ms", "ID": "id"}
_TOKEN_LENGTH = 1024
_INT32 = 2**31 - 1
_MAX_BODY_BYTES = 8 << 20


class _Version(NamedTuple):
    """``text_integers``: 64-bit integers travel as text; ``headers`` go on every answer."""

    name: str
    text_integers: bool
    headers: Mapping[str, str]


_VERSIONS = (
    _Version("v1", True, {}),
    _Version(
        "v1alpha3",
        False,
        {
            "Deprecation": "true",
            "Sunset": "Thu, 29 Apr 2027 00:00:00 GMT",
            "Link": f'<{PREFIX}/v1/>; rel="successor-version"',
        },
    ),
)

_Answer = tuple[int, Any]
_Handler = Callable[[Request], Awaitable[_Answer]]


def routes(services: Services) -> list[BaseRoute]:
    """Return every route of the registry for the web origin."""
    found: list[BaseRoute] = []
    access = Access(services)
    for version in _VERSIONS:
        api = _Api(services, version)
        for path, handlers in api.endpoints():
            found.append(_route(f"{PREFIX}/{version.name}/{path}", handlers, version, access))
    health = _health(services)
    for prefix in ("", f"{PREFIX}/{{version}}"):
        found.append(Route(f"{prefix}/readyz/{{check}}", health, methods=["GET"]))
    found.append(Route(f"{PREFIX}/{{path:path}}", _not_found, methods=list(_METHODS)))
    return found


def _route(path: str, handlers: Mapping[str, _Handler], version: _Version, access: Access) -> Route:
    async def endpoint(request: Request) -> Response:
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            return Response(status_code=405, headers={**version.headers, "Allow": ", ".join(handlers)})
        try:
            await access.check(request)
            _refuse_nul(request)
            status, value = await handler(request)
        except ApiError as error:
            status, value = error.code, {"code": _phrase(error.code), "message": error.message}
        return Response(
            msgspec.json.encode(value),
            status_code=status,
            headers=dict(version.headers),
            media_type="application/json; charset=UTF-8",
        )

    return Route(path, endpoint, methods=list(_METHODS))


def _phrase(code: int) -> str:
    # Upstream says "Bad Request" in the body of a 422; its tests compare the text.
    return "Bad Request" if code == 422 else HTTPStatus(code).phrase


def _refuse_nul(request: Request) -> None:
    for name, value in request.query_params.multi_items():
        if "\0" in value or "\\u0000" in value:
            raise BadRequestError(f"{name}: contains a NUL character; remove it")


async def _not_found(_request: Request) -> Response:
    return PlainTextResponse("404 page not found", status_code=404)


def _health(services: Services) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        checks = {"isDirty": ("database", "meta"), "health": ("database", "model-registry", "meta")}
        names = checks.get(request.path_params["check"])
        if names is None:
            return await _not_found(request)
        failure = ""
        try:
            await services.database.read(
                lambda connection: tables.select_page(connection, tables.Query((TYPES["RegisteredModel"],), limit=1))
            )
        except Exception as error:  # whatever the database driver raises is the answer to this question
            failure = f"{type(error).__name__}: {error}"
        if request.query_params.get("format") != "json":
            return PlainTextResponse(failure or "OK", status_code=503 if failure else 200)
        status = "fail" if failure else "pass"
        report = {name: {"Name": name, "Status": status, "Message": failure or "OK", "Details": {}} for name in names}
        body = msgspec.json.encode({"status": status, "checks": report})
        return Response(body, status_code=503 if failure else 200, media_type="application/json; charset=UTF-8")

    return endpoint


class _Api:
    """The handlers of one version; each is a thin shell around one transaction."""

    def __init__(self, services: Services, version: _Version) -> None:
        self._database = services.database
        self._now = services.now
        self._version = version

    def endpoints(self) -> list[tuple[str, dict[str, _Handler]]]:
        found: list[tuple[str, dict[str, _Handler]]] = []
        for collection in COLLECTIONS:
            found += self._collection(collection)
        for nested in NESTED:
            found.append(self._nested(nested))
        found.append(("inference_services/{id}/model", {"GET": self._served(_served_model)}))
        found.append(("inference_services/{id}/version", {"GET": self._served(entries.served_version)}))
        return found

    def _collection(self, collection: Collection) -> list[tuple[str, dict[str, _Handler]]]:
        async def find(request: Request) -> _Answer:
            query = _find_query(request, collection)
            return 200, self._encode(
                await self._database.read(lambda conn: entries.find_one(conn, query, collection.label))
            )

        async def list_(request: Request) -> _Answer:
            return await self._list(request, collection.types)

        async def create(request: Request) -> _Answer:
            body, now_ms = decode_json(await _read_body(request)), self._now_ms()
            entry = await self._database.write(lambda conn: entries.create(conn, collection, body, now_ms))
            return 201, self._encode(entry)

        async def get(request: Request) -> _Answer:
            id_ = _path_id(request, collection)
            entry = await self._database.read(lambda conn: entries.get(conn, collection.types, id_, collection.label))
            return 200, self._encode(entry)

        async def patch(request: Request) -> _Answer:
            id_ = _path_id(request, collection)
            body, now_ms = decode_json(await _read_body(request)), self._now_ms()
            entry = await self._database.write(lambda conn: entries.patch(conn, collection, id_, body, now_ms))
            return 200, self._encode(entry)

        return [
            (collection.find, {"GET": find}),
            (collection.path, {"GET": list_, "POST": create}),
            (f"{collection.path}/{{id}}", {"GET": get, "PATCH": patch}),
        ]

    def _nested(self, nested: Nested) -> tuple[str, dict[str, _Handler]]:
        async def list_(request: Request) -> _Answer:
            id_ = _path_id(request, nested.parent)
            await self._database.read(lambda conn: entries.get(conn, nested.parent.types, id_, nested.parent.label))
            return await self._list(request, nested.types, parent_id=id_)

        async def create(request: Request) -> _Answer:
            id_ = _path_id(request, nested.parent)
            body, now_ms = decode_json(await _read_body(request)), self._now_ms()
            entry, is_new = await self._database.write(
                lambda conn: entries.create_nested(conn, nested, id_, body, now_ms)
            )
            return 201 if is_new else 200, self._encode(entry)

        return f"{nested.parent.path}/{{id}}/{nested.path}", {"GET": list_, "POST": create}

    def _served(self, follow: Callable[[Any, Entry], Entry]) -> _Handler:
        async def handler(request: Request) -> _Answer:
            id_ = parse_id(request.path_params["id"], "inference service")
            types = (TYPES["InferenceService"],)
            entry = await self._database.read(
                lambda conn: follow(conn, entries.get(conn, types, id_, "inference service"))
            )
            return 200, self._encode(entry)

        return handler

    async def _list(self, request: Request, types: tuple[ResourceType, ...], parent_id: int | None = None) -> _Answer:
        query = _list_query(request, types)._replace(parent_id=parent_id)
        page = await self._database.read(lambda conn: tables.select_page(conn, query))
        items = [self._encode(entry) for entry in page.entries]
        token = _encode_token(page.last) if page.last else ""
        return 200, {"items": items, "nextPageToken": token, "pageSize": query.limit or 0, "size": len(items)}

    def _encode(self, entry: Entry) -> dict[str, Any]:
        return encode_entry(entry, TYPES[entry.type], text_integers=self._version.text_integers)

    def _now_ms(self) -> int:
        return int(self._now().timestamp() * 1000)


def _served_model(connection: Any, service: Entry) -> Entry:
    model_id = int(service.fields["registeredModelId"])
    return entries.get(connection, (TYPES["RegisteredModel"],), model_id, "registered model")


def _path_id(request: Request, collection: Collection) -> int:
    return parse_id(request.path_params["id"], collection.label)


def _find_query(request: Request, collection: Collection) -> tables.Query:
    params = request.query_params
    name, external_id, parent = params.get("name"), params.get("externalId"), params.get("parentResourceId")
    if external_id:
        return tables.Query(collection.types, external_id=external_id)
    has_parent = bool(collection.types[0].parent)
    if not name or (has_parent and not parent):
        wanted = "name and parentResourceId" if has_parent else "name"
        raise BadRequestError(f"find {collection.label}: give {wanted}, or externalId")
    parent_id = parse_id(parent, "parentResourceId") if parent and has_parent else None
    return tables.Query(collection.types, name=name, parent_id=parent_id)


def _list_query(request: Request, types: tuple[ResourceType, ...]) -> tables.Query:
    params = request.query_params
    if artifact_type := params.get("artifactType"):
        types = _of_artifact_type(types, artifact_type)
    order = _ORDERS.get(params.get("orderBy", "").upper(), "id")
    text = params.get("filterQuery", "").strip()
    return tables.Query(
        types,
        name=params.get("name") or None,
        external_id=params.get("externalId") or None,
        where=parse_filter(text) if text else None,
        order=order,
        descending=params.get("sortOrder", "").upper() == "DESC",
        after=_decode_token(params.get("nextPageToken", "")),
        limit=_page_size(params.get("pageSize", "")),
    )


def _of_artifact_type(types: Sequence[ResourceType], artifact_type: str) -> tuple[ResourceType, ...]:
    matching = tuple(type_ for type_ in types if type_.artifact_type == artifact_type)
    if not matching:
        known = ", ".join(type_.artifact_type for type_ in types if type_.artifact_type)
        raise BadRequestError(f"artifactType: {artifact_type!r} is not one of {known or 'none: this is no artifact'}")
    return matching


def _page_size(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > _INT32:
        raise BadRequestError(f"pageSize: {text!r} is not a whole number from 0 to {_INT32}")
    return int(text) or None


def _encode_token(last: tuple[int, int]) -> str:
    return base64.b64encode(f"{last[0]}:{last[1]}".encode()).decode()


def _decode_token(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    try:
        if len(text) > _TOKEN_LENGTH:
            raise ValueError("too long")
        id_, _, value = base64.b64decode(text, validate=True).decode().partition(":")
        return int(id_), int(value)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError("nextPageToken: not a token of this API; take it from the page before") from error


async def _read_body(request: Request) -> bytes:
    refusal = f"the body is longer than {_MAX_BODY_BYTES} bytes; keep large content in artifacts"
    return await read_body(request, _MAX_BODY_BYTES, refusal)
