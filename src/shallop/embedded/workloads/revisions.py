"""ControllerRevisions: the history of a Pod template, which ``kubectl rollout`` shows and goes back to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from shallop.controller import Context
from shallop.embedded.workloads.children import is_controlled_by
from shallop.errors import AlreadyExistsError
from shallop.kube.objects import Gvk, Object, controller_of, is_deleting, key_of, labels_of, owner_reference
from shallop.kube.selectors import match_selector

__all__ = ["CONTROLLER_REVISION", "HASH", "Revisions", "keep_revisions", "plan_truncation", "template_of"]

CONTROLLER_REVISION = Gvk("apps/v1", "ControllerRevision")
HASH = "controller-revision-hash"
_SAFE = "bcdfghjklmnpqrstvwxz2456789"
_ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"


class Revisions(NamedTuple):
    """All revisions of one owner, oldest first, and the one of its template as it is now."""

    all: list[Object]
    update: Object

    def named(self, name: str) -> Object | None:
        return next((revision for revision in self.all if revision["metadata"]["name"] == name), None)


def render_data(template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch that brings a template back: kubectl applies it as it is."""
    return {"spec": {"template": {**template, "$patch": "replace"}}}


def template_of(revision: Object) -> Object:
    """Return the Pod template that a revision has recorded."""
    return {key: value for key, value in revision["data"]["spec"]["template"].items() if key != "$patch"}


def hash_of(template: Mapping[str, Any], collisions: int) -> str:
    text = json.dumps(template, sort_keys=True) + (str(collisions) if collisions else "")
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return "".join(_SAFE[ord(digit) % len(_SAFE)] for digit in str(digest))


def render_revision(owner: Object, number: int, collisions: int, label: str) -> Object:
    """Return the revision of the owner's template."""
    metadata, template = owner["metadata"], owner["spec"]["template"]
    digest = hash_of(template, collisions)
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key != _ANNOTATION}
    rendered: dict[str, Any] = {
        "name": f"{metadata['name']}-{digest}",
        "namespace": metadata["namespace"],
        "labels": {**((template.get("metadata") or {}).get("labels") or {}), label: digest},
        "ownerReferences": [owner_reference(owner)],
    }
    if annotations:
        rendered["annotations"] = annotations
    return {
        "apiVersion": CONTROLLER_REVISION.api_version,
        "kind": CONTROLLER_REVISION.kind,
        "metadata": rendered,
        "data": render_data(template),
        "revision": number,
    }


async def keep_revisions(ctx: Context, owner: Object, label: str, collisions: int) -> Revisions:
    """
    Make the newest revision that of the owner's template, creating or renumbering it as needed.

    Args:
        label: the label that carries the hash of the template.

    Raises:
        AlreadyExistsError: the hash is taken by another template; try again with one collision more.
    """
    known = await _owned(ctx, owner)
    template = owner["spec"]["template"]
    equal = [revision for revision in known if template_of(revision) == template]
    latest = max((int(revision["revision"]) for revision in known), default=0)
    if not equal:
        update = await _create(ctx, owner, render_revision(owner, latest + 1, collisions, label))
        return Revisions(
            _sorted([*(r for r in known if r["metadata"]["uid"] != update["metadata"]["uid"]), update]), update
        )
    update = equal[-1]
    if update["revision"] < latest:
        # Somebody went back: the old revision becomes the newest.
        key = key_of(update)
        guard = {"resourceVersion": update["metadata"]["resourceVersion"]}
        patch = {"metadata": guard, "revision": latest + 1}
        update = await ctx.client.patch(CONTROLLER_REVISION, key.name, key.namespace, patch)
        known = [r for r in known if r["metadata"]["uid"] != update["metadata"]["uid"]] + [update]
    return Revisions(_sorted(known), update)


async def _owned(ctx: Context, owner: Object) -> list[Object]:
    """Return the owner's revisions and adopt those that match and are nobody's: their Pods may be adopted too."""
    uid = owner["metadata"]["uid"]
    owned = [revision for revision in ctx.cache(CONTROLLER_REVISION).by_owner(uid) if is_controlled_by(revision, uid)]
    for revision in ctx.cache(CONTROLLER_REVISION).list(owner["metadata"]["namespace"]):
        matches = match_selector(owner["spec"]["selector"], labels_of(revision))
        if matches and not controller_of(revision) and not is_deleting(revision):
            owned.append(await _adopt(ctx, owner, revision))
    return _sorted(owned)


async def _adopt(ctx: Context, owner: Object, revision: Object) -> Object:
    key, metadata = key_of(revision), revision["metadata"]
    references = [*(metadata.get("ownerReferences") or ()), owner_reference(owner)]
    guard = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    patch = {"metadata": {**guard, "ownerReferences": references}}
    return await ctx.client.patch(CONTROLLER_REVISION, key.name, key.namespace, patch)


def _sorted(revisions: Sequence[Object]) -> list[Object]:
    return sorted(revisions, key=lambda revision: (revision["revision"], revision["metadata"]["name"]))


async def _create(ctx: Context, owner: Object, revision: Object) -> Object:
    try:
        return await ctx.client.create(revision)
    except AlreadyExistsError:
        key = key_of(revision)
        found = await ctx.client.get(CONTROLLER_REVISION, key.name, key.namespace)
        if not controller_of(found) and found["data"] == revision["data"]:
            return await _adopt(ctx, owner, found)
        if is_controlled_by(found, owner["metadata"]["uid"]) and found["data"] == revision["data"]:
            # Ours, made a moment ago: the cache does not show it yet.
            return found
        raise


def plan_truncation(revisions: Revisions, live: Collection[str], limit: int) -> list[Object]:
    """
    Return the revisions beyond the history limit, oldest first.

    Args:
        live: names that Pods or the status still refer to.
    """
    history = [
        revision
        for revision in revisions.all
        if revision is not revisions.update and revision["metadata"]["name"] not in live
    ]
    return history[: max(0, len(history) - limit)]
