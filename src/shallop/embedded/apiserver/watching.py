"""Watches: what a selection of objects sees of the changes in the store."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from shallop.embedded.apiserver import conversion
from shallop.embedded.apiserver.converting import Converter
from shallop.embedded.apiserver.objects_store import Change, ObjectsStore, Stored, Subscription, encode_object
from shallop.embedded.apiserver.requests import WatchQuery
from shallop.embedded.apiserver.resources import Resource
from shallop.embedded.apiserver.selection import Predicate, select
from shallop.errors import BadRequestError, ExpiredError, FieldError, InvalidError
from shallop.kube.objects import Object

__all__ = ["Event", "follow", "open_watch"]

_BOOKMARK_S = 60.0
# An idle watch ends after half an hour to an hour, as on a real server, so that clients keep balancing.
_MIN_TIMEOUT_S = 1800


class Event(NamedTuple):
    """One event; a BOOKMARK has no ``stored`` but ``bookmark``, the object to show."""

    type: str
    stored: Stored | None
    bookmark: Object | None = None


def open_watch(
    store: ObjectsStore, converter: Converter, resource: Resource, namespace: str, query: WatchQuery
) -> AsyncIterator[list[Event]]:
    """
    Check a watch and start it; events come in batches, until the timeout or the end of the store.

    Raises:
        BadRequestError, InvalidError: wrong parameters.
        ExpiredError: raised by the iterator when the version is too old or the reader too slow.
        ApiError: raised by the iterator when a webhook does not convert.
    """
    predicate = select(resource, query.label_selector, query.field_selector)
    _check(query)
    return _run(store, converter, resource, namespace, query, predicate)


async def follow(store: ObjectsStore, resource: Resource, after: int, tell: Callable[[Event], None]) -> None:
    """
    Call ``tell`` with each change of a resource that no webhook converts, in order, before its writer goes on.

    Returns when the resource is served no longer or the store stops; raises what ``tell`` raises.

    Raises:
        ExpiredError: what came after that revision is no longer known.
    """

    def told(change: Change) -> None:
        event = _event(resource, change, None)
        if event is not None:
            tell(event)

    subscription = store.subscribe(resource.storage, after=after, tell=told)
    try:
        await subscription.ended()
    finally:
        subscription.close()
        store.unsubscribe(subscription)


def _check(query: WatchQuery) -> None:
    match, problem = "resourceVersionMatch", None
    if query.initial_events and query.match != "NotOlderThan":
        problem = FieldError.forbidden(match, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
    elif query.match and not query.initial_events:
        problem = FieldError.forbidden(match, f"{match} is forbidden for watch unless sendInitialEvents is provided")
    if problem:
        raise InvalidError.of("ListOptions", "meta.k8s.io", "", [problem])
    if query.resource_version and not query.resource_version.isdigit():
        raise BadRequestError(
            f'resourceVersion: Invalid value: "{query.resource_version}": '
            f'strconv.ParseUint: parsing "{query.resource_version}": invalid syntax'
        )


async def _run(
    store: ObjectsStore,
    converter: Converter,
    resource: Resource,
    namespace: str,
    query: WatchQuery,
    predicate: Predicate | None,
) -> AsyncIterator[list[Event]]:
    after = int(query.resource_version or 0)
    subscription = store.subscribe(resource.storage, namespace, after=after or None)
    try:
        revision = max(after, store.revision)
        initial: list[Event] = []
        if not after or query.initial_events:
            subscription.pending.clear()
            known = store.list(resource.storage, namespace)
            await converter.prepare(resource, known)
            initial = [
                Event("ADDED", stored)
                for stored in known
                if predicate is None or predicate(conversion.view(resource, stored))
            ]
        if query.initial_events and query.bookmarks:
            initial.append(Event("BOOKMARK", None, _bookmark(resource, store.revision, initial_end=True)))
        # The first batch may be empty: it says that the watch is set up.
        yield initial
        async for events in _follow(store, converter, subscription, resource, query, predicate, revision):
            yield events
    finally:
        store.unsubscribe(subscription)


async def _follow(
    store: ObjectsStore,
    converter: Converter,
    subscription: Subscription,
    resource: Resource,
    query: WatchQuery,
    predicate: Predicate | None,
    revision: int,
) -> AsyncIterator[list[Event]]:
    timeout_s = query.timeout_s or _MIN_TIMEOUT_S * random.uniform(1, 2)
    deadline = time.monotonic() + timeout_s
    next_bookmark = time.monotonic() + _BOOKMARK_S
    store_revision = revision
    while not subscription.closed or subscription.pending:
        now = time.monotonic()
        if now >= deadline:
            break
        wait_until = min(deadline, next_bookmark) if query.bookmarks else deadline
        changes = await subscription.next(max(wait_until - now, 0))
        if subscription.overflowed:
            raise ExpiredError("too old resource version: the watch fell behind; list again")
        if changes:
            store_revision = changes[-1].revision
            if resource.webhook is not None:
                both = (stored for change in changes for stored in (change.old, change.new) if stored is not None)
                await converter.prepare(resource, both)
        if not subscription.pending:
            # Nothing up to now concerns this watch: a quiet kind must not fall behind the history of the busy ones.
            store_revision = max(store_revision, store.revision)
        events = [event for change in changes if (event := _event(resource, change, predicate)) is not None]
        if query.bookmarks and time.monotonic() >= next_bookmark:
            next_bookmark = time.monotonic() + _BOOKMARK_S
            events.append(Event("BOOKMARK", None, _bookmark(resource, store_revision)))
        if events:
            yield events
    if query.bookmarks and not subscription.closed:
        yield [Event("BOOKMARK", None, _bookmark(resource, store_revision))]


def _event(resource: Resource, change: Change, predicate: Predicate | None) -> Event | None:
    """What a selection sees of a change: leaving it is a deletion, entering it a creation."""
    old, new = change.old, change.new
    if predicate is None:
        was, is_ = old is not None, not change.deleted
    else:
        was = old is not None and predicate(conversion.view(resource, old))
        is_ = not change.deleted and predicate(conversion.view(resource, new))
    if is_:
        return Event("MODIFIED" if was else "ADDED", new)
    if not was:
        return None
    if change.deleted or old is None:
        return Event("DELETED", new)
    return Event("DELETED", _at_revision(resource, old, change.revision))


def _at_revision(resource: Resource, old: Stored, revision: int) -> Stored:
    # In the version that is watched: for the watch it might as well be stored so.
    view = conversion.view(resource, old)
    obj = view | {"metadata": view["metadata"] | {"resourceVersion": str(revision)}}
    return Stored(old.resource, old.namespace, old.name, revision, encode_object(obj), obj)


def _bookmark(resource: Resource, revision: int, *, initial_end: bool = False) -> Object:
    metadata: Object = {"resourceVersion": str(revision)}
    if initial_end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
