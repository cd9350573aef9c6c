"""The children of an owner as they are now, although the cache may be a moment behind our own writes."""

from __future__ import annotations

from collections.abc import Iterable

from shallop.controller import Context
from shallop.errors import AlreadyExistsError, ApiError, NotFoundError
from shallop.kube.objects import Gvk, Key, Object, controller_of, is_deleting, key_of, owner_reference

__all__ = ["Children", "is_controlled_by", "is_namespace_ending"]


def is_controlled_by(obj: Object, uid: str) -> bool:
    reference = controller_of(obj)
    return reference is not None and reference["uid"] == uid


def is_namespace_ending(error: ApiError) -> bool:
    """Say whether a create was refused because its namespace is being deleted: nothing to retry, nothing to report."""
    causes = (error.details or {}).get("causes") or ()
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


def _newest(cached: Object, created: dict[Key, Object]) -> Object:
    """Return what the cache has, or what the server has shown meanwhile: who was seen to end does not run again."""
    key = key_of(cached)
    seen = created.get(key)
    if seen is None:
        return cached
    if int(cached["metadata"]["resourceVersion"]) < int(seen["metadata"]["resourceVersion"]):
        return seen
    del created[key]
    return cached


class Children:
    """
    Remembers creates and deletes of one kind until the cache shows them.

    Without this a reconcile that runs before the watch event of its own create would create again. What is remembered
    is asked from the server when it is still missing at the next look, so nothing is remembered for ever; what that
    showed counts until the cache is as far.
    """

    def __init__(self, gvk: Gvk) -> None:
        self.gvk = gvk
        self._created: dict[str, dict[Key, Object]] = {}
        self._deleted: dict[str, set[str]] = {}

    async def of(self, ctx: Context, owner: Object) -> list[Object]:
        """Return the controlled children of ``owner``; those we deleted carry a deletionTimestamp or are left out."""
        uid = owner["metadata"]["uid"]
        cached = [obj for obj in ctx.cache(self.gvk).by_owner(uid) if is_controlled_by(obj, uid)]
        if created := self._created.get(uid):
            cached = [_newest(obj, created) for obj in cached]
        children = cached + await self._not_yet_cached(ctx, uid, cached)
        deleted = self._deleted.get(uid)
        if not deleted:
            return children
        deleted &= {obj["metadata"]["uid"] for obj in children if not is_deleting(obj)}
        if not deleted:
            self._deleted.pop(uid, None)
        return [obj for obj in children if obj["metadata"]["uid"] not in deleted]

    async def _not_yet_cached(self, ctx: Context, owner_uid: str, cached: Iterable[Object]) -> list[Object]:
        created = self._created.get(owner_uid)
        if not created:
            self._created.pop(owner_uid, None)
            return []
        known = {key_of(obj) for obj in cached}
        found = []
        for key in sorted(created.keys() - known):
            try:
                obj = await ctx.client.get(self.gvk, key.name, key.namespace)
            except NotFoundError:
                del created[key]
                continue
            if is_controlled_by(obj, owner_uid):
                found.append(obj)
                created[key] = obj
            else:
                del created[key]
        if not created:
            self._created.pop(owner_uid, None)
        return found

    async def create(self, ctx: Context, owner: Object, obj: Object) -> Object:
        """Create a child with the controller reference to ``owner``."""
        metadata = {**obj["metadata"], "ownerReferences": [owner_reference(owner)]}
        created = await ctx.client.create({**obj, "metadata": metadata})
        self._created.setdefault(owner["metadata"]["uid"], {})[key_of(created)] = created
        return created

    async def ensure(self, ctx: Context, owner: Object, obj: Object) -> Object | None:
        """
        Create a child whose name is fixed.

        Returns:
            None when a child of ``owner`` still has the name: it is about to go, and its end brings the owner back.

        Raises:
            AlreadyExistsError: somebody else's object has the name.
        """
        try:
            return await self.create(ctx, owner, obj)
        except AlreadyExistsError:
            key = key_of(obj)
            found = await ctx.client.get(self.gvk, key.name, key.namespace)
            if is_controlled_by(found, owner["metadata"]["uid"]):
                return None
            raise

    async def delete(self, ctx: Context, owner: Object, obj: Object, *, propagation: str = "Background") -> None:
        """Delete a child; one that is gone already is no error."""
        key = key_of(obj)
        uid = obj["metadata"]["uid"]
        self._deleted.setdefault(owner["metadata"]["uid"], set()).add(uid)
        try:
            await ctx.client.delete(self.gvk, key.name, key.namespace, propagation=propagation, uid=uid)
        except NotFoundError:
            pass
        except BaseException:
            self._deleted[owner["metadata"]["uid"]].discard(uid)
            raise
