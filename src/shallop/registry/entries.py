"""The rules of the registry, as functions of a connection: identity, parents, upsert and patch."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from shallop.errors import BadRequestError, ConflictError, NotFoundError
from shallop.registry import tables
from shallop.registry.entry import Draft, Entry, decode_draft, parse_id, pick_type
from shallop.registry.resources import TYPES, Collection, Nested, ResourceType

__all__ = ["create", "create_nested", "find_one", "get", "patch", "served_version"]

_MAX_NAME = 255


def get(connection: sa.Connection, types: tuple[ResourceType, ...], id_: int, label: str) -> Entry:
    """Return one resource; raises NotFoundError."""
    entry = tables.find(connection, types, id_)
    if entry is None:
        raise NotFoundError(f"no {label} found for id {id_}: not found")
    return entry


def find_one(connection: sa.Connection, query: tables.Query, label: str) -> Entry:
    """Return the only resource that matches; none and several are NotFoundError."""
    entries = tables.select_page(connection, query._replace(limit=1))
    if not entries.entries:
        raise NotFoundError(f"no {label} matches: not found")
    if entries.last is not None:
        raise NotFoundError(f"several {label}s match; give the parentResourceId or the externalId: not found")
    return entries.entries[0]


def create(connection: sa.Connection, collection: Collection, body: Mapping[str, Any], now_ms: int) -> Entry:
    """Create a resource in a top-level collection."""
    type_ = pick_type(collection.types, body)
    draft = decode_draft(type_, body, create=True, strict=len(collection.types) == 1, entity=False)
    parent_id = parse_id(draft.fields[type_.parent_field], type_.parent_field) if type_.parent_field else None
    return _insert(connection, type_, draft, parent_id, now_ms)


def create_nested(
    connection: sa.Connection, nested: Nested, parent_id: int, body: Mapping[str, Any], now_ms: int
) -> tuple[Entry, bool]:
    """
    Create or update below a parent: a body with an id, and a metric or parameter of a known name, updates.

    Returns:
        The resource and whether it is new.
    """
    get(connection, nested.parent.types, parent_id, nested.parent.label)
    type_ = pick_type(nested.types, body)
    if type_.parent_field:
        body = {**body, type_.parent_field: str(parent_id)}
    known = _known(connection, type_, parent_id, body)
    strict = not type_.artifact_type
    if known is not None:
        draft = decode_draft(type_, _without_immutable(type_, body), create=False, strict=strict, entity=True)
        entry = _update(connection, type_, known, draft, now_ms)
        tables.link(connection, type_.space, entry.id, parent_id)
        return entry, False
    draft = decode_draft(type_, body, create=True, strict=strict, entity=True)
    return _insert(connection, type_, draft, parent_id, now_ms), True


def patch(connection: sa.Connection, collection: Collection, id_: int, body: Mapping[str, Any], now_ms: int) -> Entry:
    """Change what the body gives and nothing else."""
    entry = get(connection, collection.types, id_, collection.label)
    type_ = TYPES[entry.type]
    wanted = body.get("artifactType")
    if type_.artifact_type and wanted and wanted != type_.artifact_type:
        raise BadRequestError(f"artifactType of {collection.label} {id_} is {type_.artifact_type}, not {wanted}")
    strict = len(collection.types) == 1
    return _update(
        connection, type_, entry, decode_draft(type_, body, create=False, strict=strict, entity=False), now_ms
    )


def served_version(connection: sa.Connection, service: Entry) -> Entry:
    """Return the ModelVersion that an InferenceService serves: the one it names, or its model's newest."""
    types = (TYPES["ModelVersion"],)
    if version_id := service.fields.get("modelVersionId"):
        return get(connection, types, int(version_id), "model version")
    query = tables.Query(
        types, parent_id=int(service.fields["registeredModelId"]), order="created_ms", descending=True, limit=1
    )
    entries = tables.select_page(connection, query).entries
    if not entries:
        raise NotFoundError(f"no model version found for inference service {service.id}: not found")
    return entries[0]


def _known(connection: sa.Connection, type_: ResourceType, parent_id: int, body: Mapping[str, Any]) -> Entry | None:
    if body.get("id"):
        return get(connection, (type_,), parse_id(body["id"], type_.label), type_.label)
    name = body.get("name")
    if not type_.replaces or not isinstance(name, str):
        return None
    id_ = tables.is_taken(connection, type_, scope=str(parent_id), name=name)
    return None if id_ is None else tables.find(connection, (type_,), id_)


def _without_immutable(type_: ResourceType, body: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {"name"} | {name for name, field in type_.fields.items() if field.immutable}
    return {name: value for name, value in body.items() if name not in fixed}


def _insert(connection: sa.Connection, type_: ResourceType, draft: Draft, parent_id: int | None, now_ms: int) -> Entry:
    _check_references(connection, type_, draft)
    name = draft.name or str(uuid.uuid4())
    scope = str(parent_id) if parent_id else (str(uuid.uuid4()) if type_.parent else "")
    _check_name(type_, name, prefix=f"{parent_id}:" if parent_id else "")
    if tables.is_taken(connection, type_, scope=scope, name=name) is not None:
        raise ConflictError(f"{type_.label} with name {name} already exists: conflict")
    _check_external_id(connection, type_, draft.external_id)
    id_, at_ms = tables.next_ids(connection, type_.space, now_ms)
    entry = Entry(
        type=type_.name,
        id=id_,
        name=name,
        external_id=draft.external_id,
        description=draft.description,
        custom=draft.custom or {},
        fields=draft.fields,
        created_ms=at_ms,
        updated_ms=at_ms,
    )
    tables.insert(connection, entry, type_, scope)
    if parent_id:
        tables.link(connection, type_.space, id_, parent_id)
    return entry


def _update(connection: sa.Connection, type_: ResourceType, old: Entry, draft: Draft, now_ms: int) -> Entry:
    _check_references(connection, type_, draft)
    if draft.external_id is not None and draft.external_id != old.external_id:
        _check_external_id(connection, type_, draft.external_id)
    _, at_ms = tables.next_ids(connection, type_.space, now_ms)
    entry = Entry(
        type=old.type,
        id=old.id,
        name=old.name,
        external_id=old.external_id if draft.external_id is None else draft.external_id,
        description=old.description if draft.description is None else draft.description,
        custom=old.custom if draft.custom is None else draft.custom,
        fields=old.fields | draft.fields,
        created_ms=old.created_ms,
        updated_ms=at_ms,
    )
    tables.update(connection, entry, type_)
    return entry


def _check_name(type_: ResourceType, name: str, prefix: str) -> None:
    if len(prefix + name) > _MAX_NAME:
        raise BadRequestError(f"name: {len(name)} characters are too many for a {type_.label}; use at most 240")


def _check_references(connection: sa.Connection, type_: ResourceType, draft: Draft) -> None:
    for name, value in draft.fields.items():
        if target := type_.fields[name].refers_to:
            get(connection, (TYPES[target],), int(value), TYPES[target].label)


def _check_external_id(connection: sa.Connection, type_: ResourceType, external_id: str | None) -> None:
    same_space = tuple(other for other in TYPES.values() if other.space == type_.space)
    if external_id is None:
        return
    if tables.select_page(connection, tables.Query(same_space, external_id=external_id, limit=1)).entries:
        raise ConflictError(f"{type_.label} with externalId {external_id} already exists: conflict")
