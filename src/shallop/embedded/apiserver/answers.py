"""Answers of the HTTP front: encoding objects, lists and tables in the form that was asked for."""

from __future__ import annotations

import gzip
from datetime import datetime
from typing import Any

import yaml

from shallop.embedded.apiserver import conversion, printing
from shallop.embedded.apiserver.negotiation import Form
from shallop.embedded.apiserver.objects_store import Stored, encode_object
from shallop.embedded.apiserver.resources import Resource
from shallop.embedded.apiserver.verbs import Page
from shallop.errors import BadRequestError
from shallop.kube.objects import Object

__all__ = ["Answer", "encode_event", "encode_list", "encode_one", "encode_stored", "negotiated"]

GZIP_OVER = 128 * 1024
Headers = list[tuple[bytes, bytes]]


class Answer:
    """A complete HTTP answer."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self, body: bytes, status: int = 200, content_type: str = "application/json", headers: Headers | None = None
    ) -> None:
        self.body = body
        self.status = status
        self.content_type = content_type
        self.headers = headers or []

    @classmethod
    def of(cls, value: Any, status: int = 200) -> Answer:
        return cls(encode_object(value), status)

    @classmethod
    def text(cls, text: str, status: int = 200) -> Answer:
        return cls(text.encode(), status, "text/plain; charset=utf-8")

    def compressed(self, accept_encoding: str) -> tuple[bytes, Headers]:
        """Return body and headers as they go on the wire."""
        if self.status == 304:
            # Caches copy the headers of a 304 over those they keep: it must not carry another content type.
            return b"", list(self.headers)
        headers = [(b"content-type", self.content_type.encode()), *self.headers]
        body = self.body
        if len(body) > GZIP_OVER and "gzip" in accept_encoding:
            body = gzip.compress(body, 1)
            headers += [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
        headers.append((b"content-length", str(len(body)).encode()))
        return body, headers


def negotiated(value: Object, form: Form, status: int = 200) -> Answer:
    """Encode an object that has no table or partial form of its own."""
    if form.yaml:
        return Answer(yaml.safe_dump(value, sort_keys=True).encode(), status, "application/yaml")
    return Answer.of(value, status)


def encode_one(resource: Resource, obj: Object, form: Form, include: str, now: datetime, status: int = 200) -> Answer:
    """Encode one object."""
    if form.as_ == "Table":
        table = printing.render_table(resource, [obj], form.version, _include(include), now)
        table["metadata"] = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
        return Answer.of(table, status)
    if form.as_:
        return Answer.of(printing.render_partial(obj, form.version), status)
    return negotiated(obj, form, status)


def encode_stored(resource: Resource, stored: Stored, form: Form, include: str, now: datetime) -> Answer:
    """Encode one object as it is stored, or what that is in another version or form."""
    if form.is_json and stored.raw.startswith(_prefix(resource)):
        return Answer(stored.raw)
    return encode_one(resource, conversion.view(resource, stored), form, include, now)


def _prefix(resource: Resource) -> bytes:
    """How the JSON of an object begins that is stored in the version of ``resource``."""
    return f'{{"kind":"{resource.kind}","apiVersion":"{resource.api_version}",'.encode()


def encode_list(resource: Resource, page: Page, form: Form, include: str, now: datetime) -> Answer:
    """Encode one page of objects."""
    metadata: Object = {"resourceVersion": page.revision}
    if page.continue_:
        metadata["continue"] = page.continue_
        if page.remaining is not None:
            metadata["remainingItemCount"] = page.remaining
    elif resource.custom and not form.as_:
        metadata["continue"] = ""
    if form.as_ == "Table":
        objects = [conversion.view(resource, stored) for stored in page.items]
        table = printing.render_table(resource, objects, form.version, _include(include), now)
        return Answer.of(table | {"metadata": metadata})
    if form.as_:
        items = [printing.render_partial(stored.object, form.version) for stored in page.items] or None
        return Answer.of(
            {
                "kind": "PartialObjectMetadataList",
                "apiVersion": f"meta.k8s.io/{form.version}",
                "metadata": {key: value for key, value in metadata.items() if value != ""},
                "items": items,
            }
        )
    head = {"kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": metadata}
    if form.yaml:
        items = [_item(resource, conversion.view(resource, stored)) for stored in page.items]
        return negotiated(head | {"items": items}, form)
    # Built in place from the stored JSON: nothing is decoded or encoded again.
    body = encode_object(head)[:-1] + b',"items":[' + b",".join(_items(resource, page.items)) + b"]}"
    return Answer(body)


def _items(resource: Resource, items: list[Stored]) -> list[bytes]:
    prefix = _prefix(resource)
    size = len(prefix)
    result = []
    for stored in items:
        if not stored.raw.startswith(prefix):
            result.append(encode_object(_item(resource, conversion.view(resource, stored))))
        elif resource.custom:
            result.append(stored.raw)
        else:
            # Items of a list of a built-in kind carry no kind of their own.
            result.append(b"{" + stored.raw[size:])
    return result


def _item(resource: Resource, obj: Object) -> Object:
    return obj if resource.custom else {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}


def _include(include: str) -> str:
    if include not in ("", "Metadata", "Object", "None"):
        raise BadRequestError(
            f'Unable to convert to Table as requested: includeObject: Invalid value: "{include}": '
            "must be 'Metadata', 'Object', 'None', or empty"
        )
    return include or "Metadata"


def encode_event(
    resource: Resource, type_: str, stored: Stored | None, bookmark: Object | None, form: Form, include: str,
    now: datetime, *, first: bool,
) -> bytes:  # fmt: skip
    """Encode one event of a watch as a line of JSON; the first row of a table tells the columns."""
    head = b'{"type":"' + type_.encode() + b'","object":'
    if stored is None:
        obj = bookmark or {}
        if form.as_ == "Table":
            obj = printing.render_table(resource, [obj], form.version, _include(include), now, columns=first)
        elif form.as_:
            obj = printing.render_partial(obj, form.version)
        return head + encode_object(obj) + b"}\n"
    if not form.as_ and stored.raw.startswith(_prefix(resource)):
        return head + stored.raw + b"}\n"
    obj = conversion.view(resource, stored)
    if form.as_ == "Table":
        table = printing.render_table(resource, [obj], form.version, _include(include), now, columns=first)
        table["metadata"] = {"resourceVersion": obj["metadata"]["resourceVersion"]}
        obj = table
    elif form.as_:
        obj = printing.render_partial(obj, form.version)
    return head + encode_object(obj) + b"}\n"
