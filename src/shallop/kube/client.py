"""The one way to read and write objects, in process or over HTTP."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, Protocol

from shallop.kube.objects import Gvk, Object, ResourceType

__all__ = ["Client", "ObjectList", "WatchEvent"]


class ObjectList(NamedTuple):
    """Objects of one kind and the revision of the store they were read at."""

    items: list[Object]
    resource_version: str


class WatchEvent(NamedTuple):
    """A change; ``type`` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Object


class Client(Protocol):
    """
    Reads and writes objects of one API server.

    Implementations raise subclasses of ``errors.ApiError``, may be used from any task of one event loop, and return
    objects that the caller must not change in place: another reader may hold the same dict.
    """

    async def get(self, gvk: Gvk, name: str, namespace: str = "") -> Object: ...

    async def list(
        self, gvk: Gvk, namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        """List one namespace, or all of them when ``namespace`` is empty."""
        ...

    def watch(
        self,
        gvk: Gvk,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """
        Yield every change after ``resource_version``, in order, until the server ends the stream.

        Raises:
            ExpiredError: the revision is no longer in the log; list again.
        """
        ...

    async def follow(self, gvk: Gvk, *, resource_version: str, tell: Callable[[WatchEvent], None]) -> None:
        """
        Call ``tell`` with what ``watch`` yields of all namespaces, as soon as it is known; returns where that ends.

        In process ``tell`` runs before the write that it hears of returns: it must be short.
        """
        ...

    async def create(self, obj: Object) -> Object: ...

    async def update(self, obj: Object, *, subresource: str = "") -> Object:
        """Replace an object, or what a subresource such as ``finalize`` sets; ConflictError when it is stale."""
        ...

    async def patch(
        self,
        gvk: Gvk,
        name: str,
        namespace: str,
        patch: Any,
        *,
        patch_type: str = "merge",
        subresource: str = "",
    ) -> Object:
        """Patch an object; ``patch_type`` is ``merge``, ``json`` or ``strategic``."""
        ...

    async def patch_status(self, obj: Object, status: dict[str, Any]) -> Object:
        """Merge ``status`` into the status of ``obj``, whatever its current resourceVersion."""
        ...

    async def apply(
        self, obj: Object, *, owner: Object | None = None, field_manager: str = "shallop", force: bool = True
    ) -> Object:
        """Server-side apply; ``owner`` becomes the controlling owner reference."""
        ...

    async def delete(
        self,
        gvk: Gvk,
        name: str,
        namespace: str = "",
        *,
        propagation: str = "Background",
        uid: str = "",
        grace_period_s: int | None = None,
    ) -> None:
        """Delete an object; a ``uid`` that differs is a ConflictError."""
        ...

    async def create_subresource(self, gvk: Gvk, name: str, namespace: str, subresource: str, body: Object) -> Object:
        """POST to a subresource such as ``binding`` or ``token``."""
        ...

    async def resource_types(self) -> builtins.list[ResourceType]:
        """Return every type that the server serves now, custom ones included."""
        ...
