"""Lists: page size, sort order and page tokens, the same for every resource."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from shallop.errors import BadRequestError
from shallop.pipelines.filters import FilterKey, Predicate, parse_filter

__all__ = [
    "ARTIFACT_KEYS",
    "EXPERIMENT_KEYS",
    "METRIC",
    "PIPELINE_KEYS",
    "RECURRING_RUN_KEYS",
    "RUN_KEYS",
    "VERSION_KEYS",
    "Page",
    "next_token",
    "parse_page",
]

# Runs can be sorted by a number in their metrics: ``metric:accuracy``.
METRIC = "metric:"
_DEFAULT_SIZE = 20
_MAX_SIZE = 200


def _named(column: str) -> dict[str, FilterKey]:
    return {"name": FilterKey(column), "display_name": FilterKey(column)}


def _identified(name: str) -> dict[str, FilterKey]:
    return {"id": FilterKey("id"), name: FilterKey("id")}


_COMMON = {
    "created_at": FilterKey("created_at", "time"),
    "description": FilterKey("description"),
    "namespace": FilterKey("namespace"),
}
_STORAGE = {"storage_state": FilterKey("storage_state")}
EXPERIMENT_KEYS: dict[str, FilterKey] = {
    **_identified("experiment_id"),
    **_named("name"),
    **_COMMON,
    **_STORAGE,
    "last_run_created_at": FilterKey("last_run_created_at", "time"),
}
PIPELINE_KEYS: dict[str, FilterKey] = {
    **_identified("pipeline_id"),
    "name": FilterKey("name"),
    "display_name": FilterKey("display_name"),
    **_COMMON,
    "tags": FilterKey("tags", "tags"),
}
VERSION_KEYS: dict[str, FilterKey] = {
    **_identified("pipeline_version_id"),
    "name": FilterKey("name"),
    "display_name": FilterKey("display_name"),
    **_COMMON,
    "namespace": FilterKey(""),
    "status": FilterKey(""),
    "pipeline_spec": FilterKey("pipeline_spec"),
    "tags": FilterKey("tags", "tags"),
}
RUN_KEYS: dict[str, FilterKey] = {
    **_identified("run_id"),
    **_named("name"),
    **_COMMON,
    **_STORAGE,
    "finished_at": FilterKey("finished_at", "time"),
    "scheduled_at": FilterKey("scheduled_at", "time"),
    "state": FilterKey("state"),
    "status": FilterKey("state"),
    "state_history": FilterKey("state_history"),
    "runtime_details": FilterKey(""),
    "experiment_id": FilterKey("experiment_id"),
    "recurring_run_id": FilterKey("recurring_run_id"),
}
RECURRING_RUN_KEYS: dict[str, FilterKey] = {
    **_identified("recurring_run_id"),
    **_named("name"),
    **_COMMON,
    "updated_at": FilterKey("updated_at", "time"),
    "experiment_id": FilterKey("experiment_id"),
    "pipeline_id": FilterKey("pipeline_id"),
    "status": FilterKey("status"),
}
ARTIFACT_KEYS: dict[str, FilterKey] = {
    "id": FilterKey("id", "number"),
    "artifact_id": FilterKey("id", "number"),
    "name": FilterKey("name"),
    "type": FilterKey("type"),
    "uri": FilterKey("uri"),
    "digest": FilterKey("digest"),
    "created_at": FilterKey("created_at", "time"),
    "namespace": FilterKey("namespace"),
    "run_id": FilterKey("run_id"),
    "task_id": FilterKey("task_id"),
}


class Page(NamedTuple):
    """
    What a list request asks for.

    Args:
        sort: column to sort by, or ``metric:NAME``; ties are broken by ``id`` in the same direction.
        after: sort value and id of the last row of the page before, None for the first page.
        fingerprint: of sort order and filter; a token is only good for the same ones.
    """

    size: int
    sort: str
    descending: bool
    predicates: tuple[Predicate, ...]
    after: tuple[Any, Any] | None
    fingerprint: str


def parse_page(query: Mapping[str, str], keys: Mapping[str, FilterKey]) -> Page:
    """
    Read ``page_size``, ``page_token``, ``sort_by`` and ``filter``.

    Raises:
        BadRequestError: one of them is wrong, or the token belongs to another sort order or filter.
    """
    sort, descending = _parse_sort(query.get("sort_by", ""), keys)
    filter_text = query.get("filter", "")
    fingerprint = hashlib.sha256(json.dumps([sort, descending, filter_text]).encode()).hexdigest()[:16]
    after = _parse_token(query.get("page_token", ""), fingerprint)
    return Page(
        _parse_size(query.get("page_size", "")), sort, descending, parse_filter(filter_text, keys), after, fingerprint
    )


def _parse_size(text: str) -> int:
    try:
        size = int(text or 0)
    except ValueError:
        raise BadRequestError(f"page_size: {text!r} is no number") from None
    if size < 0:
        raise BadRequestError(f"page_size: {size} is negative; use 1 to {_MAX_SIZE}")
    return min(size or _DEFAULT_SIZE, _MAX_SIZE)


def _parse_sort(text: str, keys: Mapping[str, FilterKey]) -> tuple[str, bool]:
    words = text.split()
    if not words:
        return "created_at", False
    metric = words[0].startswith(METRIC) and keys is RUN_KEYS and words[0] != METRIC
    words = [words[0] if metric else words[0].lower(), *map(str.lower, words[1:])]
    key = FilterKey(words[0]) if metric else keys.get(words[0])
    if key is None or key.kind == "tags":
        raise BadRequestError(f"sort_by: {words[0]!r} is no field to sort by; use one of {', '.join(keys)}")
    if len(words) > 2 or (len(words) == 2 and words[1] not in ("asc", "desc")):
        raise BadRequestError(f"sort_by: {text!r} must be a field, then optionally asc or desc")
    return key.column or "id", words[-1] == "desc"


def _parse_token(token: str, fingerprint: str) -> tuple[Any, Any] | None:
    if not token:
        return None
    try:
        given, value, id_ = json.loads(base64.urlsafe_b64decode(token))
        if not (isinstance(value, str | int | float) and isinstance(id_, str | int)):
            raise ValueError(token)
    except (TypeError, ValueError):
        raise BadRequestError("page_token: not a token of this server; leave it out to start over") from None
    if given != fingerprint:
        raise BadRequestError("page_token: made for another sort_by or filter; send the same ones or leave it out")
    return value, id_


def next_token(page: Page, value: Any, id_: Any) -> str:
    """Return the token that continues after the row with this sort value and id."""
    return base64.urlsafe_b64encode(json.dumps([page.fingerprint, value, id_]).encode()).decode()
