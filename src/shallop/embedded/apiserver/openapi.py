"""
OpenAPI v3 documents, one per group-version: what ``kubectl explain``, ``apply``, ``create`` and ``diff`` read.

- ``Served(gvk, plural, namespaced, verbs, schema, subresources=())``: a served type; ``schema`` is that of its
  ``CompiledSchema``.
- ``render_document(api_version, served) -> Document``: ``Document.body`` (JSON), ``Document.hash`` (hex).
- ``render_index(documents) -> bytes``: the body of ``/openapi/v3`` from ``{"v1": Document, "apps/v1": Document}``.

Keep a Document as long as its types do not change. Built-in types become components that refer to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from shallop.embedded.apiserver import builtin_types
from shallop.embedded.apiserver.descriptions import DESCRIPTIONS
from shallop.embedded.apiserver.schema import Schema
from shallop.kube.objects import Gvk


class Served(NamedTuple):
    """A type that the server offers in a group-version."""

    gvk: Gvk
    plural: str
    namespaced: bool
    verbs: tuple[str, ...]
    schema: Schema
    subresources: tuple[str, ...] = ()


class Document(NamedTuple):
    body: bytes
    hash: str


def render_index(documents: Mapping[str, Document]) -> bytes:
    paths = {}
    for api_version, document in sorted(documents.items()):
        path = _base_path(api_version)[1:]
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={document.hash}"}
    return msgspec.json.encode({"paths": paths})


def render_document(api_version: str, served: Iterable[Served]) -> Document:
    components = _Components()
    paths: dict[str, Any] = {}
    for resource in served:
        components.add_kind(resource)
        paths |= _paths(api_version, resource)
    document = {
        "openapi": "3.0.0",
        "info": {"title": "shallop", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": dict(sorted(components.schemas.items()))},
    }
    body = msgspec.json.encode(document)
    return Document(body, hashlib.sha256(body).hexdigest().upper())


def _base_path(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


# ---- Paths

_WRITE_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")
_COLLECTION_VERBS = {
    "get": ("list", "list", ("labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch")),
    "post": ("create", "post", _WRITE_PARAMETERS),
    "delete": ("deletecollection", "deletecollection", ("dryRun", "labelSelector", "fieldSelector")),
}
_ITEM_VERBS = {
    "get": ("get", "get", ()),
    "put": ("update", "put", _WRITE_PARAMETERS),
    "patch": ("patch", "patch", (*_WRITE_PARAMETERS, "force")),
    "delete": ("delete", "delete", ("dryRun", "gracePeriodSeconds", "propagationPolicy")),
}
_PARAMETER_TYPES = {"force": "boolean", "watch": "boolean", "limit": "integer", "gracePeriodSeconds": "integer"}


def _paths(api_version: str, resource: Served) -> dict[str, Any]:
    scope = "/namespaces/{namespace}" if resource.namespaced else ""
    collection = f"{_base_path(api_version)}{scope}/{resource.plural}"
    item = f"{collection}/{{name}}"
    paths = {collection: _operations(_COLLECTION_VERBS, resource), item: _operations(_ITEM_VERBS, resource)}
    for name in resource.subresources:
        verbs = {method: _ITEM_VERBS[method] for method in ("get", "put", "patch")}
        paths[f"{item}/{name}"] = _operations(verbs, resource._replace(verbs=("get", "update", "patch")))
    return {path: operations for path, operations in paths.items() if operations}


def _operations(table: Mapping[str, tuple[str, str, tuple[str, ...]]], resource: Served) -> dict[str, Any]:
    return {
        method: {
            "parameters": [_parameter(name) for name in parameters],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": _gvk(resource.gvk),
        }
        for method, (verb, action, parameters) in table.items()
        if verb in resource.verbs
    }


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": _PARAMETER_TYPES.get(name, "string")}}


def _gvk(gvk: Gvk) -> dict[str, str]:
    return {"group": gvk.group, "version": gvk.version, "kind": gvk.kind}


# ---- Components

_SPECIAL_NAMES = {
    "quantity": "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "intorstring": "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
    "raw": "io.k8s.apimachinery.pkg.runtime.RawExtension",
    "time": "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
    "microtime": "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
    "fieldsv1": "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
}
_SPECIAL_SCHEMAS: Mapping[str, dict[str, Any]] = {
    "quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
    "intorstring": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
    "raw": {"type": "object"},
    "time": {"type": "string", "format": "date-time"},
    "microtime": {"type": "string", "format": "date-time"},
    "fieldsv1": {"type": "object"},
}


def component_name(type_name: str) -> str:
    """``core.v1.Pod`` -> ``io.k8s.api.core.v1.Pod``."""
    if type_name in _SPECIAL_NAMES:
        return _SPECIAL_NAMES[type_name]
    if type_name.startswith("meta."):
        return f"io.k8s.apimachinery.pkg.apis.{type_name}"
    return f"io.k8s.api.{type_name}"


class _Components:
    """Collects component schemas, each type once."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {}

    def add_kind(self, resource: Served) -> None:
        gvk, schema = resource.gvk, resource.schema
        if schema.type_name:
            name = component_name(schema.type_name)
        else:
            domain = ".".join(reversed(gvk.group.split(".")))
            name = f"{domain}.{gvk.version}.{gvk.kind}"
        rendered = self._object(schema)
        rendered["x-kubernetes-group-version-kind"] = [_gvk(gvk)]
        properties = rendered.setdefault("properties", {})
        properties["apiVersion"] = {"type": "string", "description": "Group and version of the object's kind."}
        properties["kind"] = {"type": "string", "description": "The kind of the object."}
        metadata = properties.get("metadata")
        if metadata and "$ref" in metadata:
            text = "Name, namespace, labels and what else the API keeps of every object."
            properties["metadata"] = {"allOf": [metadata], "description": text}
        rendered["type"] = "object"
        self.schemas[name] = rendered

    def _reference(self, schema: Schema) -> dict[str, Any]:
        name = component_name(schema.type_name)
        if name not in self.schemas:
            self.schemas[name] = {}  # entered first: a type may contain itself
            special = _SPECIAL_SCHEMAS.get(schema.type_name)
            self.schemas[name] = dict(special) if special else self._object(schema)
        return {"$ref": f"#/components/schemas/{name}"}

    def _render(self, schema: Schema) -> dict[str, Any]:
        if schema.type_name:
            return self._reference(schema)
        if schema.source and not schema.properties and schema.items is None and schema.additional is None:
            return ({"type": schema.type} if schema.type else {}) | dict(schema.source)
        return self._object(schema)

    def _object(self, schema: Schema) -> dict[str, Any]:
        """A schema in full. CRD schemas keep all their keywords; only ``metadata`` becomes a reference."""
        result = {k: v for k, v in schema.source.items() if k not in ("properties", "items", "additionalProperties")}
        if schema.type:
            result["type"] = schema.type
        if schema.required:
            result["required"] = list(schema.required)
        if schema.properties:
            result["properties"] = {name: self._field(schema, name, child) for name, child in schema.properties.items()}
        if schema.items is not None:
            result["items"] = self._render(schema.items)
        if schema.additional is not None:
            result["additionalProperties"] = self._render(schema.additional)
        if schema.list_type and not schema.source:
            is_list = schema.type == "array"
            result["x-kubernetes-list-type" if is_list else "x-kubernetes-map-type"] = schema.list_type
        if schema.keys:
            result["x-kubernetes-list-map-keys"] = list(schema.keys)
        if description := DESCRIPTIONS.get(schema.type_name, {}).get(""):
            result["description"] = description
        return result

    def _field(self, parent: Schema, name: str, schema: Schema) -> dict[str, Any]:
        rendered = self._render(schema)
        extra: dict[str, Any] = {}
        if description := DESCRIPTIONS.get(parent.type_name, {}).get(name):
            extra["description"] = description
        if parent.type_name:
            rule = builtin_types.merge_rule(parent.type_name, name)
            if rule.merge:
                extra["x-kubernetes-patch-strategy"] = "merge"
            if rule.key:
                extra["x-kubernetes-patch-merge-key"] = rule.key
        if not extra:
            return rendered
        # Siblings of a $ref are ignored by readers: wrap it.
        return {"allOf": [rendered], **extra} if "$ref" in rendered else {**rendered, **extra}
