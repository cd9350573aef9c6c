"""What our own status writes made of an object, until the cache shows it."""

from __future__ import annotations

from typing import Any

from shallop.controller import Context
from shallop.embedded.workloads.statuses import replaced
from shallop.kube.objects import Object, gvk_of, key_of

__all__ = ["Latest"]


class Latest:
    """
    For controllers that count: a status read a moment too late would lose or repeat a count.

    Writes carry the resourceVersion they were decided on, so whoever else wrote meanwhile makes them a ConflictError,
    and every version older than ours is known by name.
    """

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}
        self._superseded: dict[str, set[str]] = {}

    def of(self, raw: Object) -> Object:
        """Return ``raw``, or what we made of it when the cache is behind."""
        metadata = raw["metadata"]
        uid = metadata["uid"]
        if metadata["resourceVersion"] in self._superseded.get(uid, ()):
            return self._objects[uid]
        self.forget(uid)
        return raw

    def forget(self, uid: str) -> None:
        self._objects.pop(uid, None)
        self._superseded.pop(uid, None)

    async def write_status(self, ctx: Context, raw: Object, status: dict[str, Any]) -> Object:
        """Make the status of ``raw``, as ``of`` gave it, exactly ``status``; ConflictError when it changed."""
        patch = replaced(raw.get("status") or {}, status)
        if not patch:
            return raw
        key, metadata = key_of(raw), raw["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": patch}
        written = await ctx.client.patch(gvk_of(raw), key.name, key.namespace, body, subresource="status")
        self._objects[metadata["uid"]] = written
        self._superseded.setdefault(metadata["uid"], set()).add(metadata["resourceVersion"])
        return written
