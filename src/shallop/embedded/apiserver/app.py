"""The HTTP front of the API server: a raw ASGI application from paths and headers to verbs."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import platform
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from shallop.embedded.apiserver import (
    answers,
    bodies,
    discovery,
    failures,
    metrics,
    oidc,
    openapi,
    openapi_v2,
    proxying,
    reviews,
    streaming,
)
from shallop.embedded.apiserver.admission import decode_typed
from shallop.embedded.apiserver.answers import Answer
from shallop.embedded.apiserver.authorization import Attributes, Rbac
from shallop.embedded.apiserver.impersonation import impersonated
from shallop.embedded.apiserver.inflight import InFlight
from shallop.embedded.apiserver.negotiation import Form, negotiate
from shallop.embedded.apiserver.objects_store import encode_object
from shallop.embedded.apiserver.podlogs import open_logs
from shallop.embedded.apiserver.requests import (
    User,
    WriteOptions,
    parse_bool,
    parse_int,
    parse_list_query,
    parse_watch_query,
    parse_write_options,
)
from shallop.embedded.apiserver.resources import Registry, Resource, deprecation_of
from shallop.embedded.apiserver.schema import Schema
from shallop.embedded.apiserver.subresources import Subresources
from shallop.embedded.apiserver.tokens import Tokens
from shallop.embedded.apiserver.verbs import DeleteOptions, Verbs
from shallop.embedded.apiserver.watching import open_watch
from shallop.errors import (
    ApiError,
    BadRequestError,
    FieldError,
    ForbiddenError,
    InternalError,
    InvalidError,
    TooLargeError,
    UnavailableError,
)
from shallop.kube.node import NodeApi
from shallop.kube.objects import Gvk, Object

__all__ = ["App"]

log = logging.getLogger(__name__)
_MAX_BODY = 3 * 1024 * 1024
_VERSION = ("1", "36", "v1.36.2+shallop")
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "kubernetes", "10.96.0.1")
_CLUSTER_NAMES = ("kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
# No group of the API: kfp asks so where a kubeconfig has a token, because the kubernetes client, when it refreshes the
# token, sets kfp's address of the Service's proxy back to that of the API server.
_PIPELINES = ["apis", "v2beta1"]
_PIPELINES_PROXY = ["api", "v1", "namespaces", "kubeflow", "services", "ml-pipeline:http", "proxy"]
_STREAMING = ("attach", "exec", "log", "portforward", "proxy")
_HEALTH = ("/healthz", "/livez", "/readyz")
_COMMON = [(b"cache-control", b"no-cache, private")]
# Kinds without a table of fields (CRDs) still need a place in OpenAPI: kubectl apply looks for it.
_ANYTHING = Schema(type="object", preserve=True)
Query = dict[str, list[str]]


class Request(NamedTuple):
    """One HTTP request; ``body`` reads it whole."""

    method: str
    path: str
    query: Query
    headers: dict[bytes, str]
    scope: Scope
    receive: Receive
    send: Send
    user: User
    warnings: list[str]

    def first(self, name: str) -> str:
        return (self.query.get(name) or [""])[0]

    @property
    def accept(self) -> str:
        return self.headers.get(b"accept", "")

    async def body(self) -> bytes:
        length = self.headers.get(b"content-length", "")
        if length.isdigit() and int(length) > _MAX_BODY:
            # Refused before it is read: what is announced need not be received.
            raise TooLargeError(f"Request entity too large: limit is {_MAX_BODY}")
        chunks = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise BadRequestError("the client went away before its request was complete")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > _MAX_BODY:
                raise TooLargeError(f"Request entity too large: limit is {_MAX_BODY}")
            chunks.append(chunk)
            if not message.get("more_body"):
                return b"".join(chunks)


class Address(NamedTuple):
    """What the path of a resource request names."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""
    all_namespaces: bool = False
    watch: bool = False


class App:
    """
    The ASGI application.

    Args:
        hosts: names allowed in the Host header besides loopback and the API's names inside Pods.
    """

    def __init__(
        self,
        verbs: Verbs,
        subresources: Subresources,
        registry: Registry,
        tokens: Tokens,
        authorize: Rbac,
        hosts: Iterable[str] = (),
    ) -> None:
        self._verbs = verbs
        self._subresources = subresources
        self._registry = registry
        self._tokens = tokens
        self._hosts = {*_LOOPBACK, *_CLUSTER_NAMES, *hosts}
        self._authorize = authorize
        self._documents = _Documents(registry)
        self._in_flight = InFlight()
        self.node: NodeApi | None = None
        self.resolve_service: Callable[[str, str, str], tuple[str, int] | None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": "not served"})
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        sent = _Sender(send)
        warnings: list[str] = []
        try:
            answer = await self._answer(scope, receive, sent, headers, warnings)
        except ApiError as error:
            answer = _failure(error)
        except Exception:
            # A defect in one request must not end the server for all others.
            log.exception("%s %s failed", scope["method"], scope["path"])
            answer = _failure(InternalError("Internal error occurred; see the log of shallop", details={}))
        if answer is None:
            return
        if sent.started:
            log.warning("%s %s: the stream broke off: %s", scope["method"], scope["path"], answer.body[:200])
            return
        encoding = headers.get(b"accept-encoding", "")
        # Compressing megabytes takes longer than anybody else should have to wait.
        large = len(answer.body) > answers.GZIP_OVER and "gzip" in encoding
        body, out = await asyncio.to_thread(answer.compressed, encoding) if large else answer.compressed(encoding)
        if not any(name == b"cache-control" for name, _ in out):
            out += _COMMON
        out += [_warning(text) for text in dict.fromkeys(warnings)]
        out.append((b"audit-id", b"%032x" % random.getrandbits(128)))
        body = b"" if scope["method"] == "HEAD" else body
        whole = scope.get("extensions", {}).get("shallop.answer")
        if whole is None or not whole(answer.status, out, body):
            await send({"type": "http.response.start", "status": answer.status, "headers": out})
            await send({"type": "http.response.body", "body": body})

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, str], warnings: list[str]
    ) -> Answer | None:
        self._check_host(headers.get(b"host", ""))
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        user = self._tokens.authenticate(headers.get(b"authorization"))
        user = impersonated(user, scope["headers"], self._authorize)
        request = Request(scope["method"], scope["path"], query, headers, scope, receive, send, user, warnings)
        parts = [part for part in request.path.split("/") if part]
        if parts[:2] == _PIPELINES:
            parts = [*_PIPELINES_PROXY, *parts]
        if len(parts) > 2 and parts[0] == "api":
            return await self._resource(request, "", parts[1], parts[2:])
        if len(parts) > 3 and parts[0] == "apis":
            return await self._resource(request, parts[1], parts[2], parts[3:])
        return await self._other(request, parts)

    def _check_host(self, host: str) -> None:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower().rstrip(".")
        if name not in self._hosts and not (name.startswith("127.") and name.replace(".", "").isdigit()):
            # A foreign name that resolves to loopback is how web pages reach local servers.
            raise ForbiddenError(f"Host {host!r} is not a name of this server; use localhost or 127.0.0.1", details={})

    # ---- paths that are no resources

    async def _other(self, request: Request, parts: list[str]) -> Answer | None:
        path = "/" + "/".join(parts)
        self._authorize_path(request)
        if request.method not in ("GET", "HEAD"):
            raise failures.method_not_allowed()
        if path.startswith(_HEALTH):
            return self._health(request, path)
        if path == "/version":
            return Answer.of(_version())
        if path == "/":
            return Answer.of({"paths": self._documents.paths()})
        if parts[0] == "openapi":
            if parts == ["openapi", "v2"] and openapi_v2.WANTED not in request.accept:
                documents = self._documents.bodies()
                return Answer(await asyncio.to_thread(openapi_v2.render, documents))
            return self._openapi(request, parts)
        if parts[0] in ("api", "apis"):
            return self._discovery(request, parts)
        if path == "/.well-known/openid-configuration":
            return Answer.of(oidc.configuration(request.headers.get(b"host", "")))
        if path == "/openid/v1/jwks":
            return oidc.key_set(self._tokens, request.accept)
        return Answer.text("404 page not found\n", 404)

    def _health(self, request: Request, path: str) -> Answer:
        check = path.split("/")[2] if path.count("/") > 1 else ""
        if check not in ("", "ping", "etcd", "log"):
            return Answer.text("404 page not found\n", 404)
        if "verbose" in request.query:
            return Answer.text(f"[+]ping ok\n[+]log ok\n[+]etcd ok\n{path[1:]} check passed\n")
        return Answer.text("ok")

    def _discovery(self, request: Request, parts: list[str]) -> Answer:
        form = negotiate(request.accept)
        registry = self._registry
        if len(parts) == 1:
            if form.discovery:
                return self._documents.aggregated(
                    core=parts[0] == "api", version=form.discovery, known=request.headers.get(b"if-none-match", "")
                )
            if parts[0] == "apis":
                return answers.negotiated(discovery.api_groups(registry), form)
            host = request.headers.get(b"host", "")
            return answers.negotiated(discovery.api_versions(host), form)
        if parts[0] == "api":
            if parts[1] != "v1":
                raise failures.unknown_resource()
            return answers.negotiated(discovery.api_resources(registry, "", "v1"), form)
        group = parts[1]
        if not registry.has_group(group):
            return Answer.text("404 page not found\n", 404)
        if len(parts) == 2:
            return answers.negotiated(discovery.api_group(registry, group), form)
        if not registry.has_version(group, parts[2]):
            raise failures.unknown_resource()
        return answers.negotiated(discovery.api_resources(registry, group, parts[2]), form)

    def _openapi(self, request: Request, parts: list[str]) -> Answer:
        if parts == ["openapi", "v2"] and openapi_v2.WANTED in request.headers.get(b"accept", ""):
            return Answer(openapi_v2.DOCUMENT, content_type=openapi_v2.MEDIA_TYPE)
        if len(parts) < 2 or parts[1] != "v3":
            return Answer.text("404 page not found\n", 404)
        if len(parts) == 2:
            return Answer(self._documents.index(), content_type="application/json")
        version = "/".join(parts[3:]) if parts[2] == "apis" else "/".join(parts[3:4])
        document = self._documents.openapi(version)
        if document is None:
            return Answer(b"", 404)
        etag = f'"{document.hash}"'.encode()
        caching = b"public, immutable" if request.first("hash") == document.hash else b"no-cache, private"
        headers = [(b"etag", etag), (b"cache-control", caching), (b"vary", b"Accept")]
        if request.headers.get(b"if-none-match", "").encode() == etag:
            return Answer(b"", 304, headers=headers)
        return Answer(document.body, headers=headers)

    # ---- resources

    async def _resource(self, request: Request, group: str, version: str, parts: list[str]) -> Answer | None:
        if group and not self._registry.has_path(group, version):
            self._authorize_path(request)
            return Answer.text("404 page not found\n", 404)
        address = self._parse(group, version, parts)
        if address is None:
            self._authorize_path(request)
            raise failures.unknown_resource()
        verb = _verb(request, address)
        self._check_allowed(request, address, verb)
        if not verb:
            raise failures.method_not_allowed()
        if text := deprecation_of(address.resource):
            request.warnings.append(text)
        if address.subresource and address.resource.subresource(address.subresource) is None:
            raise failures.not_found(address.resource, address.name)
        if address.subresource in _STREAMING:
            async with self._in_flight.stream(request.user):
                return await self._subresource(request, address, verb)
        if address.subresource:
            async with self._in_flight.request(request.user):
                return await self._subresource(request, address, verb)
        if verb not in address.resource.verbs:
            raise failures.method_not_allowed()
        if verb == "watch":
            async with self._in_flight.stream(request.user):
                await self._watch(request, address)
            return None
        async with self._in_flight.request(request.user):
            return await self._verb_answer(request, address, verb)

    def _authorize_path(self, request: Request) -> None:
        if not self._authorize(request.user, Attributes(request.method.lower(), path=request.path))[0]:
            why = Attributes(verb=request.method.lower(), path=request.path).describe(request.user)
            raise ForbiddenError(f"forbidden: {why}", details={})

    def _parse(self, group: str, version: str, parts: list[str]) -> Address | None:
        """Read ``[watch/][namespaces/NS/]PLURAL[/NAME[/SUB[/REST]]]``."""
        watch = parts[0] == "watch" and len(parts) > 1
        if watch:
            parts = parts[1:]
        namespace = ""
        all_namespaces = False
        if parts[0] == "namespaces" and len(parts) > 2 and not (group == "" and parts[2] in ("status", "finalize")):
            namespace, parts = parts[1], parts[2:]
            resource = self._registry.find(group, version, parts[0])
            if resource is None or not resource.namespaced:
                return None
        else:
            resource = self._registry.find(group, version, parts[0])
            if resource is None:
                return None
            if resource.namespaced:
                if len(parts) > 1:
                    return None
                all_namespaces = True
        name = parts[1] if len(parts) > 1 else ""
        sub = parts[2] if len(parts) > 2 else ""
        if sub and resource.subresource(sub) is None and not resource.custom:
            return None
        if len(parts) > 3 and sub != "proxy":
            return None
        return Address(resource, namespace, name, sub, "/".join(parts[3:]), all_namespaces, watch)

    def _check_allowed(self, request: Request, address: Address, verb: str) -> None:
        resource = address.resource
        plural = f"{resource.plural}/{address.subresource}" if address.subresource else resource.plural
        namespace = address.name if resource.storage == "namespaces" else address.namespace
        name = address.name or _selected_name(request)
        attributes = Attributes(verb or request.method.lower(), resource.group, plural, namespace, name)
        if not self._authorize(request.user, attributes)[0]:
            raise failures.forbidden(resource, name, attributes.describe(request.user))

    async def _verb_answer(self, request: Request, address: Address, verb: str) -> Answer:
        resource, namespace, name = address.resource, address.namespace, address.name
        form = negotiate(request.accept)
        include = request.first("includeObject")
        now = self._verbs.now()
        if metrics.is_metrics(resource):
            query = parse_list_query(request.query)
            found = await metrics.read_metrics(self.node, self._verbs, self._registry, resource, namespace, name, query)
            return answers.negotiated(found, form)
        if verb == "get":
            stored = await self._verbs.read_stored(resource, namespace, name, request.first("resourceVersion"))
            return answers.encode_stored(resource, stored, form, include, now)
        if verb == "list":
            if parse_bool(request.first("sendInitialEvents")):
                problem = FieldError.forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list")
                raise InvalidError.of("ListOptions", "meta.k8s.io", "", [problem])
            page = await self._verbs.list(resource, namespace, parse_list_query(request.query))
            return answers.encode_list(resource, page, form, include, now)
        if verb in ("delete", "deletecollection"):
            return await self._delete(request, address, verb, form)
        options = _options(request, verb)
        if reviews.is_review(resource):
            body = await self._body(request, resource)
            asked = decode_typed(resource.gvk, body.value)
            reviewed = reviews.review(resource, namespace, asked, request.user, self._tokens, self._authorize, now)
            return answers.negotiated(reviewed, form, 201)
        if verb == "patch":
            type_ = bodies.patch_type(resource, request.headers.get(b"content-type", ""))
            _check_force(options, type_, request)
            patch = bodies.parse_patch(await request.body(), type_)
            options.duplicates = patch.duplicates
            written = await self._verbs.patch(resource, namespace, name, type_, patch.value, options)
        else:
            body = await self._body(request, resource)
            options.duplicates = body.duplicates
            if verb == "create":
                written = await self._verbs.create(resource, namespace, body.value, options)
            else:
                written = await self._verbs.update(resource, namespace, name, body.value, options)
        status = 201 if written.created else 200
        if written.raw and form.is_json:
            return Answer(written.raw, status)
        return answers.encode_one(resource, written.object, form, include, now, status)

    async def _body(self, request: Request, resource: Resource) -> bodies.Body:
        content_type = request.headers.get(b"content-type", "")
        return bodies.parse_body(await request.body(), content_type, kind=resource.kind, custom=resource.custom)

    async def _delete(self, request: Request, address: Address, verb: str, form: Form) -> Answer:
        resource = address.resource
        options = _options(request, verb)
        delete = await _delete_options(request, options)
        if verb == "deletecollection":
            query = parse_list_query(request.query)
            page = await self._verbs.delete_collection(resource, address.namespace, query, delete, options)
            return answers.encode_list(resource, page, form, "", self._verbs.now())
        uid = self._verbs.get_stored(resource, address.namespace, address.name).object["metadata"]["uid"]
        obj = await self._verbs.delete(resource, address.namespace, address.name, delete, options)
        if obj is not None:
            return answers.encode_one(resource, obj, form, "", self._verbs.now())
        details = failures.details_of(resource, address.name) | {"uid": uid}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return answers.negotiated(status, form)

    async def _subresource(self, request: Request, address: Address, verb: str) -> Answer | None:
        resource, namespace, name, sub = address.resource, address.namespace, address.name, address.subresource
        declared = resource.subresource(sub)
        if sub == "proxy":
            return await self._proxy(request, address)
        if declared is None or verb not in declared.verbs:
            raise failures.method_not_allowed()
        if sub == "log":
            return await self._logs(request, address)
        if sub in streaming.STREAMING:
            await self._stream(request, address)
            return None
        form = negotiate(request.accept)
        include = request.first("includeObject")
        now = self._verbs.now()
        if verb == "get":
            found = await self._subresources.get(resource, namespace, name, sub)
            return answers.encode_one(resource, found, form, include, now)
        if sub == "ephemeralcontainers" and self.node is not None:
            raise streaming.no_ephemeral_containers(name)
        options = _options(request, verb)
        if verb == "patch":
            type_ = bodies.patch_type(resource, request.headers.get(b"content-type", ""))
            _check_force(options, type_, request)
            patch = bodies.parse_patch(await request.body(), type_)
            options.duplicates = patch.duplicates
            obj = await self._subresources.patch(resource, namespace, name, sub, type_, patch.value, options)
            return answers.encode_one(resource, obj, form, include, now)
        kind = declared.gvk.kind if declared.gvk else resource.kind
        content_type = request.headers.get(b"content-type", "")
        body = bodies.parse_body(await request.body(), content_type, kind=kind, custom=resource.custom)
        options.duplicates = body.duplicates
        value = decode_typed(declared.gvk, body.value) if declared.gvk else body.value
        if verb == "create":
            obj = await self._subresources.create(resource, namespace, name, sub, value, options)
            return answers.negotiated(obj, form, 201)
        obj = await self._subresources.update(resource, namespace, name, sub, value, options)
        return answers.encode_one(resource, obj, form, include, now)

    # ---- streams

    async def _watch(self, request: Request, address: Address) -> None:
        """Send events as they come until the watch ends or the client goes away."""
        resource = address.resource
        form = negotiate(request.accept)
        include = request.first("includeObject")
        query = parse_watch_query(request.query)
        if address.name:
            query = replace(query, field_selector=f"metadata.name={address.name}")
        events = open_watch(self._verbs.store, self._verbs.converter, resource, address.namespace, query)
        headers = [(b"content-type", b"application/json"), *_COMMON]
        await request.send({"type": "http.response.start", "status": 200, "headers": headers})
        # Clients wait for the headers before they go on, even when nothing has happened yet.
        await request.send({"type": "http.response.body", "body": b"", "more_body": True})
        sender = asyncio.create_task(self._send_events(request, resource, events, form, include))
        gone = asyncio.create_task(_disconnected(request.receive))
        try:
            await asyncio.wait({sender, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sender, gone):
                task.cancel()
            results = await asyncio.gather(sender, gone, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]
        await request.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, request: Request, resource: Resource, events: Any, form: Form, include: str) -> None:
        first = True
        try:
            async for batch in events:
                lines = []
                for event in batch:
                    lines.append(
                        answers.encode_event(
                            resource, event.type, event.stored, event.bookmark, form, include,
                            self._verbs.now(), first=first,
                        )
                    )  # fmt: skip
                    first = False
                if lines:
                    await request.send({"type": "http.response.body", "body": b"".join(lines), "more_body": True})
        except ApiError as error:
            line = encode_object({"type": "ERROR", "object": error.status()}) + b"\n"
            await request.send({"type": "http.response.body", "body": line, "more_body": True})

    async def _logs(self, request: Request, address: Address) -> Answer | None:
        pod = self._verbs.get(address.resource, address.namespace, address.name)
        chunks = await open_logs(self.node, pod, request.query)
        if chunks is None:
            return Answer(b"", 204)
        headers = [(b"content-type", b"text/plain"), *_COMMON]
        await request.send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.create_task(_disconnected(request.receive))

        async def copy() -> None:
            async for chunk in chunks:
                await request.send({"type": "http.response.body", "body": chunk, "more_body": True})

        copier = asyncio.create_task(copy())
        try:
            await asyncio.wait({copier, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (copier, gone):
                task.cancel()
            await asyncio.gather(copier, gone, return_exceptions=True)
        await request.send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    async def _stream(self, request: Request, address: Address) -> None:
        # A browser's WebSocket is a GET: reading a Pod must not be enough to run commands in it.
        self._check_allowed(request, address, "create")
        pod = self._verbs.get(address.resource, address.namespace, address.name)
        asked = streaming.render_options(address.subresource, request.query)
        query = streaming.parse_options(await self._admit_connect(request, address, asked))
        upgrade = streaming.Upgrade(query, request.headers, request.scope)
        await streaming.connect(self.node, pod, address.subresource, upgrade)

    async def _admit_connect(self, request: Request, address: Address, asked: Object) -> Object:
        options = WriteOptions(request.user, warnings=request.warnings)
        where = (address.resource, address.namespace, address.name, address.subresource)
        return await self._verbs.admit_connect(*where, asked, options)

    async def _proxy(self, request: Request, address: Address) -> Answer | None:
        scheme, name, port = proxying.parse_target(address.name)
        obj = self._verbs.get(address.resource, address.namespace, name)
        kind = f"{address.resource.kind}ProxyOptions"
        await self._admit_connect(request, address, {"kind": kind, "apiVersion": "v1", "path": f"/{address.rest}"})
        if address.resource.plural == "pods":
            target: tuple[str, int] | None = proxying.pod_target(obj, port)
        else:
            target = self.resolve_service(address.namespace, name, port) if self.resolve_service else None
        if target is None:
            raise UnavailableError(f'no endpoints available for service "{address.name}"')
        if request.headers.get(b"upgrade") and "shallop.upgrade" in (request.scope.get("extensions") or {}):
            await proxying.tunnel(request.scope, scheme, target, address.rest)
        else:
            await proxying.forward(request.scope, request.receive, request.send, scheme, target, address.rest)
        return None


class _Sender:
    """Remembers whether an answer has begun: after that, a failure can only cut it off."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Any) -> None:
        self.started = True
        await self._send(message)


class _Documents:
    """Discovery and OpenAPI documents, kept until the registry changes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._serial = -1
        self._aggregated: dict[tuple[bool, str], tuple[bytes, bytes]] = {}
        self._openapi: dict[str, tuple[tuple[Resource, ...], openapi.Document]] = {}

    def _refresh(self) -> None:
        if self._serial != self._registry.serial:
            self._serial = self._registry.serial
            self._aggregated.clear()

    def aggregated(self, *, core: bool, version: str, known: str) -> Answer:
        self._refresh()
        cached = self._aggregated.get((core, version))
        if cached is None:
            body = encode_object(discovery.aggregated(self._registry, core=core, version=version))
            cached = (body, b'"%s"' % hashlib.sha256(body).hexdigest().upper().encode())
            self._aggregated[(core, version)] = cached
        body, etag = cached
        headers = [(b"etag", etag), (b"vary", b"Accept"), (b"cache-control", b"public")]
        if known.encode() == etag:
            return Answer(b"", 304, headers=headers)
        content_type = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
        return Answer(body, content_type=content_type, headers=headers)

    def openapi(self, version: str) -> openapi.Document | None:
        """Return the document of a group-version, made again only when its resources changed."""
        group, _, name = version.rpartition("/")
        resources = tuple(r for r in self._registry.all() if (r.group, r.version) == (group, name))
        if not resources:
            return None
        cached = self._openapi.get(version)
        if cached is None or cached[0] != resources:
            served = [
                openapi.Served(
                    resource.gvk,
                    resource.plural,
                    resource.namespaced,
                    resource.verbs,
                    resource.schema.schema if resource.schema is not None else _ANYTHING,
                    tuple(sub.name for sub in resource.subresources),
                )
                for resource in resources
            ]
            cached = self._openapi[version] = (resources, openapi.render_document(version, served))
        return cached[1]

    def bodies(self) -> list[bytes]:
        versions = dict.fromkeys(resource.api_version for resource in self._registry.all())
        return [document.body for version in versions if (document := self.openapi(version)) is not None]

    def index(self) -> bytes:
        versions = dict.fromkeys(resource.api_version for resource in self._registry.all())
        documents = {version: self.openapi(version) for version in versions}
        return openapi.render_index({version: found for version, found in documents.items() if found is not None})

    def paths(self) -> list[str]:
        paths = {"/api", "/api/v1", "/apis", "/apis/", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"}
        for resource in self._registry.all():
            if resource.group:
                paths |= {f"/apis/{resource.group}", f"/apis/{resource.api_version}"}
        return sorted(paths)


def _selected_name(request: Request) -> str:
    """The name that a list asks for by field selector: rules with ``resourceNames`` allow that."""
    for term in request.first("fieldSelector").split(","):
        if term.startswith("metadata.name="):
            return term.removeprefix("metadata.name=").removeprefix("=")
    return ""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


_ITEM_VERBS = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_COLLECTION_VERBS = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


def _verb(request: Request, address: Address) -> str:
    """The verb of a request, as RBAC and discovery name it; empty when the method has none here."""
    if address.subresource:
        if address.subresource == "proxy":
            return {"POST": "create"}.get(request.method, _ITEM_VERBS.get(request.method, ""))
        return "create" if request.method == "POST" else _ITEM_VERBS.get(request.method, "")
    watching = request.method == "GET" and (address.watch or parse_bool(request.first("watch")))
    if watching:
        return "watch"
    if address.name:
        return _ITEM_VERBS.get(request.method, "")
    verb = _COLLECTION_VERBS.get(request.method, "")
    # Writes to "all namespaces" have no address.
    return "" if address.all_namespaces and verb not in ("list", "") else verb


_OPTION_KINDS = {"create": "CreateOptions", "update": "UpdateOptions", "patch": "PatchOptions"}


def _options(request: Request, verb: str) -> WriteOptions:
    kind = _OPTION_KINDS.get(verb, "DeleteOptions")
    options = parse_write_options(kind, request.query, request.user, request.headers.get(b"user-agent", ""))
    options.warnings = request.warnings
    return options


def _check_force(options: WriteOptions, patch_type: str, request: Request) -> None:
    if patch_type != "apply" and request.query.get("force"):
        problem = FieldError.forbidden("force", "may not be specified for non-apply patch")
        raise InvalidError.of("PatchOptions", "meta.k8s.io", "", [problem])


async def _delete_options(request: Request, options: WriteOptions) -> DeleteOptions:
    raw = await request.body()
    body: Object = {}
    if raw:
        content_type = request.headers.get(b"content-type", "")
        body = bodies.parse_body(raw, content_type, kind="DeleteOptions").value
        body = decode_typed(Gvk("v1", "DeleteOptions"), body)
    propagation = body.get("propagationPolicy") or request.first("propagationPolicy")
    if propagation not in ("", "Background", "Foreground", "Orphan"):
        supported = ["Background", "Foreground", "Orphan", "nil"]
        problem = FieldError.not_supported("propagationPolicy", propagation, supported)
        raise InvalidError.of("DeleteOptions", "meta.k8s.io", "", [problem])
    grace = body.get("gracePeriodSeconds")
    if grace is None and request.first("gracePeriodSeconds"):
        grace = parse_int(request.first("gracePeriodSeconds"))
    dry_run = body.get("dryRun") or []
    if dry_run and dry_run != ["All"]:
        problem = FieldError.not_supported("dryRun", dry_run, ["All"])
        raise InvalidError.of("DeleteOptions", "meta.k8s.io", "", [problem])
    options.dry_run = options.dry_run or bool(dry_run)
    preconditions = body.get("preconditions") or {}
    return DeleteOptions(propagation, grace, preconditions.get("uid") or "", preconditions.get("resourceVersion") or "")


def _warning(text: str) -> tuple[bytes, bytes]:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return b"warning", f'299 - "{quoted}"'.encode()


def _failure(error: ApiError) -> Answer:
    headers = []
    seconds = (error.details or {}).get("retryAfterSeconds")
    if seconds:
        headers.append((b"retry-after", str(seconds).encode()))
    return Answer(encode_object(error.status()), error.code, headers=headers)


def _version() -> Object:
    major, minor, git = _VERSION
    return {
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": str(int(minor) - 1),
        "gitVersion": git,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": f"python{platform.python_version()}",
        "compiler": "python",
        "platform": f"{platform.system().lower()}/{platform.machine()}",
    }
