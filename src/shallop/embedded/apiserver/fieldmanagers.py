"""Where writes meet ``metadata.managedFields``: which manager, which schema, what an apply may carry."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from shallop.embedded.apiserver.apply import server_side_apply, track_update, written_part
from shallop.embedded.apiserver.requests import WriteOptions
from shallop.embedded.apiserver.resources import Resource
from shallop.embedded.apiserver.schema import Schema
from shallop.errors import BadRequestError, FieldError, InvalidError
from shallop.kube.objects import Object, format_time

__all__ = ["apply", "check_apply", "record_update"]

_UNTYPED = Schema()


def check_apply(resource: Resource, patch: Any, name: str, options: WriteOptions) -> None:
    """
    Refuse what no apply may carry.

    Raises:
        InvalidError: no field manager is given.
        BadRequestError: the configuration is no object of this resource.
    """
    if not options.manager_given:
        problem = FieldError.required("fieldManager", "is required for apply patch")
        raise InvalidError.of("PatchOptions", "meta.k8s.io", "", [problem])
    if not isinstance(patch, dict) or not isinstance(patch.get("metadata") or {}, dict):
        raise BadRequestError("error decoding YAML: an apply configuration must be an object with metadata")
    version, kind = patch.get("apiVersion", ""), patch.get("kind", "")
    if (version, kind) != resource.gvk:
        group, _, plain = version.rpartition("/")
        raise BadRequestError(f"invalid object type: {group}/{plain}, Kind={kind}")
    given = (patch.get("metadata") or {}).get("name") or name
    if given != name:
        raise BadRequestError(f"the name of the object ({given}) does not match the name on the URL ({name})")


def record_update(
    resource: Resource, old: Object | None, new: Object, options: WriteOptions, now: datetime, subresource: str = ""
) -> Object:
    """Return ``new`` with the note of which fields this write set."""
    tracked = track_update(
        old,
        new,
        manager=options.field_manager,
        schema=_schema(resource),
        subresource=subresource,
        now=format_time(now),
    )
    # The store writes the version into the metadata that it gets: they must not be those of ``old``.
    return tracked | {"metadata": dict(tracked["metadata"])}


def apply(
    resource: Resource, old: Object | None, config: Object, options: WriteOptions, now: datetime, subresource: str = ""
) -> Object:
    """Return ``old`` with what the manager now wants, and with managedFields."""
    return server_side_apply(
        old,
        written_part(config, subresource, has_status=resource.has_status),
        manager=options.field_manager,
        force=options.force,
        schema=_schema(resource),
        subresource=subresource,
        now=format_time(now),
    )


def _schema(resource: Resource) -> Schema:
    return resource.schema.schema if resource.schema is not None else _UNTYPED
