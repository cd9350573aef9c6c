"""The Client in process: the verbs without HTTP."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Callable
from typing import Any

from shallop.embedded.apiserver import conversion
from shallop.embedded.apiserver.requests import ADMIN, ListQuery, User, WatchQuery, WriteOptions
from shallop.embedded.apiserver.resources import Registry, Resource
from shallop.embedded.apiserver.reviews import is_review
from shallop.embedded.apiserver.subresources import Subresources
from shallop.embedded.apiserver.verbs import DeleteOptions, Verbs
from shallop.embedded.apiserver.watching import Event, follow, open_watch
from shallop.errors import NotFoundError, UnavailableError
from shallop.kube.client import ObjectList, WatchEvent
from shallop.kube.objects import Gvk, Object, ResourceType, gvk_of, owner_reference

__all__ = ["LocalClient"]


class LocalClient:
    """
    ``shallop.kube.client.Client`` on the verbs of an API server in this process.

    Objects that it returns are those of the store: do not change them.
    """

    def __init__(
        self,
        verbs: Verbs,
        subresources: Subresources,
        registry: Registry,
        *,
        user: User = ADMIN,
        field_manager: str = "shallop",
        review: Callable[[Resource, str, Object, User], Object] | None = None,
    ) -> None:
        self._verbs = verbs
        self._subresources = subresources
        self._registry = registry
        self._user = user
        self._field_manager = field_manager
        self._review = review

    def _resource(self, gvk: Gvk) -> Resource:
        resource = self._registry.by_gvk(gvk)
        if resource is None:
            raise NotFoundError(f"{gvk.api_version} {gvk.kind}: the server does not serve this kind", details={})
        return resource

    def _options(
        self, *, manager: str = "", force: bool = False, place: bool = False, typed: bool = False
    ) -> WriteOptions:
        return WriteOptions(
            user=self._user,
            field_manager=manager or self._field_manager,
            manager_given=True,
            # Our own writers send what they mean; collecting warnings that nobody reads costs time.
            field_validation="Ignore",
            force=force,
            place=place,
            typed=typed,
        )

    async def get(self, gvk: Gvk, name: str, namespace: str = "") -> Object:
        return await self._verbs.read(self._resource(gvk), namespace, name)

    async def list(
        self, gvk: Gvk, namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        resource = self._resource(gvk)
        page = await self._verbs.list(resource, namespace, ListQuery(label_selector, field_selector))
        return ObjectList([conversion.view(resource, stored) for stored in page.items], page.revision)

    async def watch(
        self,
        gvk: Gvk,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[WatchEvent]:
        resource = self._resource(gvk)
        query = WatchQuery(label_selector, field_selector, resource_version=resource_version)
        async for events in open_watch(self._verbs.store, self._verbs.converter, resource, namespace, query):
            for event in events:
                if event.stored is not None:
                    yield WatchEvent(event.type, conversion.view(resource, event.stored))

    async def follow(self, gvk: Gvk, *, resource_version: str, tell: Callable[[WatchEvent], None]) -> None:
        resource = self._resource(gvk)
        if resource.webhook is not None:
            async for event in self.watch(gvk, resource_version=resource_version):
                tell(event)
            return

        def told(event: Event) -> None:
            served = self._resource(gvk)
            if served.webhook is not None:
                raise UnavailableError(f"{gvk.kind}: a webhook converts it now; follow it again")
            if event.stored is not None:
                tell(WatchEvent(event.type, conversion.view(served, event.stored)))

        await follow(self._verbs.store, resource, int(resource_version), told)

    async def create(self, obj: Object) -> Object:
        resource = self._resource(gvk_of(obj))
        if self._review is not None and is_review(resource):
            return self._review(resource, _namespace(resource, obj), obj, self._user)
        # Events are made in one place; what others create has parts that users wrote.
        options = self._options(place=True, typed=resource.storage == "events")
        return (await self._verbs.create(resource, _namespace(resource, obj), obj, options)).object

    async def update(self, obj: Object, *, subresource: str = "") -> Object:
        resource = self._resource(gvk_of(obj))
        name, namespace = obj["metadata"]["name"], _namespace(resource, obj)
        if subresource:
            return await self._subresources.update(resource, namespace, name, subresource, obj, self._options())
        return (await self._verbs.update(resource, namespace, name, obj, self._options())).object

    async def patch(
        self, gvk: Gvk, name: str, namespace: str, patch: Any, *, patch_type: str = "merge", subresource: str = ""
    ) -> Object:
        resource = self._resource(gvk)
        options = self._options()
        if subresource:
            return await self._subresources.patch(resource, namespace, name, subresource, patch_type, patch, options)
        return (await self._verbs.patch(resource, namespace, name, patch_type, patch, options)).object

    async def patch_status(self, obj: Object, status: dict[str, Any]) -> Object:
        metadata, resource = obj["metadata"], self._resource(gvk_of(obj))
        namespace, options = metadata.get("namespace", ""), self._options(typed=True)
        return await self._subresources.patch(
            resource, namespace, metadata["name"], "status", "merge", {"status": status}, options
        )

    async def apply(
        self, obj: Object, *, owner: Object | None = None, field_manager: str = "shallop", force: bool = True
    ) -> Object:
        resource = self._resource(gvk_of(obj))
        if owner is not None:
            obj = obj | {"metadata": obj["metadata"] | {"ownerReferences": [owner_reference(owner)]}}
        options = self._options(manager=field_manager, force=force)
        name = obj["metadata"]["name"]
        return (await self._verbs.patch(resource, _namespace(resource, obj), name, "apply", obj, options)).object

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
        delete = DeleteOptions(propagation, grace_period_s, uid)
        await self._verbs.delete(self._resource(gvk), namespace, name, delete, self._options())

    async def create_subresource(self, gvk: Gvk, name: str, namespace: str, subresource: str, body: Object) -> Object:
        return await self._subresources.create(self._resource(gvk), namespace, name, subresource, body, self._options())

    async def resource_types(self) -> builtins.list[ResourceType]:
        # Controllers that follow every kind take the first version: it should be one that no webhook has to convert.
        resources = sorted(self._registry.all(), key=lambda r: r.webhook is not None and r.version != r.storage_version)
        return [
            ResourceType(resource.gvk, resource.plural, resource.namespaced, resource.verbs) for resource in resources
        ]


def _namespace(resource: Resource, obj: Object) -> str:
    return (obj["metadata"].get("namespace") or "default") if resource.namespaced else ""
