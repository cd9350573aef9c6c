"""Tables and metadata-only forms of objects, for ``kubectl get``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from shallop.embedded.apiserver.columns import TableColumn, columns_of
from shallop.embedded.apiserver.resources import Resource
from shallop.kube.objects import Object

__all__ = ["render_partial", "render_table"]


def render_partial(obj: Object, version: str) -> Object:
    """Return only type and metadata."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj["metadata"],
    }


def render_table(
    resource: Resource, objects: Sequence[Object], version: str, include: str, now: datetime, *, columns: bool = True
) -> Object:
    """
    Return a ``Table`` of objects.

    Args:
        include: what each row carries besides its cells: ``Metadata``, ``Object`` or ``None``.
        columns: False leaves out the column definitions, as in later events of a watch.
    """
    table = columns_of(resource)
    definitions = [
        {
            "name": column.name,
            "type": column.type,
            "format": column.format,
            "description": column.description or f"{column.name} of the {resource.kind}.",
            "priority": column.priority,
        }
        for column in table
    ]
    rows = [
        {"cells": [_cell(column, obj, now) for column in table]}
        | _row_conditions(resource, obj)
        | {"object": _row_object(obj, version, include)}
        for obj in objects
    ]
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": {},
        "columnDefinitions": definitions if columns else None,
        "rows": rows,
    }


_ENDED = {"Succeeded": "The pod has completed successfully.", "Failed": "The pod failed."}


def _row_conditions(resource: Resource, obj: Object) -> Object:
    """Say of a Pod that has ended that it has: clients may hide such rows."""
    phase = (obj.get("status") or {}).get("phase")
    if resource.storage != "pods" or phase not in _ENDED:
        return {}
    ended = {"type": "Completed", "status": "True", "reason": phase, "message": _ENDED[phase]}
    return {"conditions": [ended]}


def _cell(column: TableColumn, obj: Object, now: datetime) -> Any:
    try:
        return column.read(obj, now)
    except (AttributeError, LookupError, TypeError, ValueError):
        # One odd object must not hide all others from whoever lists them.
        return "<unknown>"


def _row_object(obj: Object, version: str, include: str) -> Object | None:
    if include == "None":
        return None
    return obj if include == "Object" else render_partial(obj, version)
