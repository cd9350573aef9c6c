"""The verbs of the API on stored objects: the one path that HTTP requests and the in-process client share."""

from __future__ import annotations

import asyncio
import base64
import binascii
import builtins
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from shallop.embedded.apiserver import admission, allocation, conversion, failures, fieldmanagers, scale
from shallop.embedded.apiserver.admission_matching import Review
from shallop.embedded.apiserver.binding import place_on
from shallop.embedded.apiserver.builtin_types import merge_rule, type_name
from shallop.embedded.apiserver.converting import Converter
from shallop.embedded.apiserver.go_text import render_patch, render_patched
from shallop.embedded.apiserver.limit_ranges import check_limits, with_limits
from shallop.embedded.apiserver.objects_store import ObjectsStore, Stored
from shallop.embedded.apiserver.quota import Quotas
from shallop.embedded.apiserver.requests import ListQuery, User, WriteOptions
from shallop.embedded.apiserver.resources import Registry, Resource
from shallop.embedded.apiserver.selection import select
from shallop.errors import (
    AlreadyExistsError,
    ApiError,
    BadRequestError,
    ExpiredError,
    FieldError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    TimeoutStatusError,
    UnsupportedMediaTypeError,
)
from shallop.kube.objects import Object, format_time, gvk_of, set_condition
from shallop.kube.patch import json_patch, merge_patch, strategic_merge_patch

__all__ = ["CRD_CLEANUP", "DeleteOptions", "Page", "Verbs", "Written"]

_NAMESPACES = "namespaces"
_CRDS = "customresourcedefinitions.apiextensions.k8s.io"
# Holds a deleted CRD until its objects are gone.
CRD_CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
_GENERATE_ATTEMPTS = 8
_NOTHING = nullcontext()


class Page(NamedTuple):
    """One page of a list; ``remaining`` is None when it is not known."""

    items: list[Stored]
    revision: str
    continue_: str = ""
    remaining: int | None = None


class Written(NamedTuple):
    """The object after a write, whether the write created it, and its JSON where that is known."""

    object: Object
    created: bool = False
    raw: bytes = b""


class DeleteOptions(NamedTuple):
    propagation: str = ""
    grace_period_s: int | None = None
    uid: str = ""
    resource_version: str = ""


Check = Callable[[Resource, Object, Object | None, User], None]


class Plugins(Protocol):
    """Admission that users configure; both methods raise ApiError to refuse."""

    def concern(self) -> bool:
        """Whether anything is configured: without, a write skips it all."""

    async def mutate(self, review: Review) -> Object | None:
        """Return the object to go on with: a new one, or the one of the review."""

    async def validate(self, review: Review) -> None: ...


class Placing(Protocol):
    """A scheduler that can be asked on the way: one write of a new Pod instead of two."""

    def offer(self, pod: Object) -> str:
        """Return the node that a Pod about to be stored gets; empty = it is to wait for its turn as stored."""

    def withdraw(self, pod: Object) -> None:
        """Take back an offer: the Pod was not stored."""


class Verbs:
    """
    Reads and writes of every resource.

    Args:
        now: aware UTC clock, for timestamps.
    """

    def __init__(
        self, store: ObjectsStore, registry: Registry, now: Callable[[], datetime], converter: Converter
    ) -> None:
        self.store = store
        self.converter = converter
        self.registry = registry
        self.now = now
        self.quotas = Quotas(store)
        self.plugins: Plugins | None = None
        self.placing: Placing | None = None
        self._services = allocation.ServiceAddresses(store)
        self._addresses = asyncio.Lock()
        # Called with (resource, new, old or None, user) before a write; raise to refuse it.
        self.checks: list[Check] = []

    # ---- reading

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """Read an object of a built-in kind."""
        return conversion.to_version(resource, self.get_stored(resource, namespace, name).object)

    async def read(self, resource: Resource, namespace: str, name: str) -> Object:
        return await self.converter.view(resource, self.get_stored(resource, namespace, name))

    async def read_stored(self, resource: Resource, namespace: str, name: str, resource_version: str) -> Stored:
        """As ``read``, for ``conversion.view``: what is stored may be what is shown."""
        if resource_version:
            self._check_version(resource_version)
        stored = self.get_stored(resource, namespace, name)
        await self.converter.prepare(resource, [stored])
        return stored

    def get_stored(self, resource: Resource, namespace: str, name: str) -> Stored:
        stored = self.store.get(resource.storage, namespace, name)
        if stored is None:
            raise failures.not_found(resource, name)
        return stored

    async def list(self, resource: Resource, namespace: str, query: ListQuery) -> Page:
        """
        Return objects in the order of (namespace, name); pages after the first keep its revision.

        Raises:
            BadRequestError, InvalidError: wrong parameters.
            ExpiredError: that revision is no longer known.
        """
        predicate = select(resource, query.label_selector, query.field_selector)
        _check_match(query)
        after = None
        if query.continue_:
            if query.resource_version not in ("", "0"):
                raise BadRequestError("specifying resource version is not allowed when using continue")
            revision, after = _parse_continue(query.continue_)
            items = self._list_continued(resource, namespace, revision, after)
        else:
            revision = self.store.revision
            exact = query.match == "Exact"
            wanted = self._check_version(query.resource_version, retry=not exact) if query.resource_version else 0
            if exact:
                revision = wanted
                items = self.store.list_at(resource.storage, namespace, wanted)
            else:
                items = self.store.list(resource.storage, namespace)
        if predicate is not None:
            await self.converter.prepare(resource, items)
            items = [stored for stored in items if predicate(conversion.view(resource, stored))]
        page = items[: query.limit] if query.limit else items
        await self.converter.prepare(resource, page)
        if len(page) == len(items):
            return Page(items, str(revision))
        token = _render_continue(revision, page[-1])
        return Page(page, str(revision), token, None if predicate else len(items) - query.limit)

    def _list_continued(
        self, resource: Resource, namespace: str, revision: int, after: tuple[str, str]
    ) -> builtins.list[Stored]:
        if revision < 0:
            items = self.store.list(resource.storage, namespace)
        else:
            try:
                items = self.store.list_at(resource.storage, namespace, revision)
            except ExpiredError:
                fresh = _encode_continue({"v": "meta.k8s.io/v1", "rv": -1, "start": "/".join(after)})
                message = (
                    "The provided continue parameter is too old to display a consistent list result. You can "
                    "start a new "
                    "list without the continue parameter, or use the continue token in this response to retrieve the "
                    "remainder of the results. Continuing with the provided token results in an inconsistent "
                    "list - objects "
                    "that were created, modified, or deleted between the time the first chunk was returned and "
                    "now may show "
                    "up in the list."
                )
                raise ExpiredError(message, metadata={"continue": fresh}) from None
        return [stored for stored in items if (stored.namespace, stored.name) > after]

    def _check_version(self, text: str, *, retry: bool = True) -> int:
        if not text.isdigit():
            raise BadRequestError(
                f'invalid resource version: resourceVersion: Invalid value: "{text}": '
                f'strconv.ParseUint: parsing "{text}": invalid syntax'
            )
        if int(text) > self.store.revision:
            raise too_large(int(text), self.store.revision, retry=retry)
        return int(text)

    # ---- creating

    async def create(self, resource: Resource, namespace: str, body: Object, options: WriteOptions) -> Written:
        obj = await self._mutate(resource, admission.check_body(resource, namespace, "", body))
        draft = admission.draft_create(resource, obj, options, self.now())
        prepared = await self._admit_new(resource, namespace, draft, options)
        for attempt in range(_GENERATE_ATTEMPTS):
            try:
                return await self._create(resource, namespace, prepared, options)
            except AlreadyExistsError:
                metadata = prepared["metadata"]
                if body.get("metadata", {}).get("name") or not metadata.get("generateName"):
                    raise
                if attempt == _GENERATE_ATTEMPTS - 1:
                    raise
                metadata["name"] = admission.generate_name(metadata["generateName"])
        raise AssertionError("unreachable")

    async def _mutate(self, resource: Resource, obj: Object) -> Object:
        for mutate in self.registry.mutating.get(resource.gvk, ()):
            obj = await mutate(obj)
        return obj

    async def _create(self, resource: Resource, namespace: str, obj: Object, options: WriteOptions) -> Written:
        name = obj["metadata"]["name"]
        async with self.store.lock(resource.storage, namespace, name):
            known = self.store.get(resource.storage, namespace, name)
            if known is not None:
                deleting = bool(known.object["metadata"].get("deletionTimestamp"))
                raise failures.already_exists(resource, name, deleting=deleting)
            return await self._store_new(resource, namespace, obj, options)

    async def _store_new(self, resource: Resource, namespace: str, obj: Object, options: WriteOptions) -> Written:
        """Write an object that is not there; hold its lock."""
        for check in self.checks:
            check(resource, obj, None, options.user)
        async with self.quotas.reserved(resource, namespace, obj, None), self._allocating(resource):
            obj = self._services.allocate(resource, obj, None)
            if options.dry_run:
                return Written(obj, created=True)
            name = obj["metadata"]["name"]
            written = await self.converter.to_storage(resource, obj)
            placing = self.placing if options.place and resource.storage == "pods" else None
            node = placing.offer(written) if placing is not None else ""
            if node:
                written = place_on(written, node, self.now())
            try:
                stored = await self.store.put(resource.storage, namespace, name, written)
            except BaseException:
                if placing is not None and node:
                    placing.withdraw(written)
                raise
        shown = await self.converter.to_version(resource, written)
        return Written(shown, created=True, raw=stored.raw if shown is written else b"")

    def _allocating(self, resource: Resource) -> AbstractAsyncContextManager[None]:
        """Held from the choice of an address until it is stored: no two Services may get the same."""
        return self._addresses if resource.storage == "services" else _NOTHING

    async def _admit_new(self, resource: Resource, namespace: str, draft: Object, options: WriteOptions) -> Object:
        """Let everybody who has a say change or refuse a new object, in the order of a real server."""
        self._check_namespace(resource, namespace, draft)
        self._check_type_stays(resource, draft["metadata"].get("name", ""))
        obj = allocation.with_priority(self.store, resource, with_limits(self.store, resource, draft))
        obj = admission.complete_create(resource, obj)
        if self.plugins is None or not self.plugins.concern():
            admission.validate_create(resource, obj)
            check_limits(self.store, resource, obj, None)
            return obj
        review = Review(resource, "CREATE", namespace, obj["metadata"].get("name", ""), obj, None, options)
        changed = await self.plugins.mutate(review)
        if changed is not None and changed is not obj:
            changed["metadata"] = _kept_identity(changed.get("metadata") or {}, obj["metadata"])
            obj = admission.readmit(resource, changed)
        admission.validate_create(resource, obj)
        check_limits(self.store, resource, obj, None)
        await self.plugins.validate(replace(review, obj=obj))
        return obj

    async def _admit_change(
        self, resource: Resource, namespace: str, old: Object, new: Object, options: WriteOptions, subresource: str = ""
    ) -> Object:
        """Let webhooks and policies change or refuse a changed object."""
        if self.plugins is None or not self.plugins.concern():
            return new
        name = old["metadata"]["name"]
        if subresource == "scale":
            return await self._admit_scale(resource, namespace, old, new, options)
        review = Review(resource, "UPDATE", namespace, name, new, old, options, subresource)
        changed = await self.plugins.mutate(review)
        if changed is not None and changed is not new:
            changed["metadata"] = _kept_identity(changed.get("metadata") or {}, new["metadata"])
            quiet = WriteOptions(options.user, field_validation="Ignore")
            new = admission.prepare_update(resource, changed, old, quiet, self.now(), subresource)
        await self.plugins.validate(replace(review, obj=new))
        return new

    async def _admit_scale(
        self, resource: Resource, namespace: str, old: Object, new: Object, options: WriteOptions
    ) -> Object:
        """As ``_admit_change``, of the Scale that stands for an object."""
        assert self.plugins is not None
        before, after = scale.render_scale(resource, old), scale.render_scale(resource, new)
        name = old["metadata"]["name"]
        review = Review(resource, "UPDATE", namespace, name, after, before, options, "scale", scale.GVK)
        changed = await self.plugins.mutate(review) or after
        replicas = (changed.get("spec") or {}).get("replicas") or 0
        if replicas != (after["spec"].get("replicas") or 0):
            quiet = WriteOptions(options.user, field_validation="Ignore")
            wanted = admission.check_body(
                resource, namespace, name, merge_patch(new, scale.render_patch(resource, replicas))
            )
            new = admission.prepare_update(resource, wanted, old, quiet, self.now(), "scale")
            after = scale.render_scale(resource, new)
        await self.plugins.validate(replace(review, obj=after))
        return new

    async def admit_connect(
        self, resource: Resource, namespace: str, name: str, subresource: str, asked: Object, options: WriteOptions
    ) -> Object:
        """
        Let webhooks and policies change or refuse a connection to a Pod or Service.

        Args:
            asked: the options of the connection, such as PodExecOptions.

        Returns:
            The options to go on with.
        """
        if self.plugins is None or not self.plugins.concern():
            return asked
        review = Review(resource, "CONNECT", namespace, name, asked, None, options, subresource, gvk_of(asked))
        changed = await self.plugins.mutate(review) or asked
        await self.plugins.validate(replace(review, obj=changed))
        return changed

    def _check_type_stays(self, resource: Resource, name: str) -> None:
        if resource.custom:
            crd = self.store.get(_CRDS, "", resource.storage)
            if crd is not None and crd.object["metadata"].get("deletionTimestamp"):
                message = "create not allowed while custom resource definition is terminating"
                raise failures.forbidden(resource, name, message)

    def _check_namespace(self, resource: Resource, namespace: str, obj: Object) -> None:
        if not namespace:
            return
        stored = self.store.get(_NAMESPACES, "", namespace)
        if stored is None:
            details = {"name": namespace, "kind": _NAMESPACES}
            raise NotFoundError(f'namespaces "{namespace}" not found', details=details)
        if stored.object["metadata"].get("deletionTimestamp"):
            name = obj["metadata"].get("name", "")
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            error: ForbiddenError = failures.forbidden(resource, name, why)
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            error.details = {**(error.details or {}), "causes": [cause]}
            raise error

    # ---- changing

    async def update(
        self, resource: Resource, namespace: str, name: str, body: Object, options: WriteOptions, subresource: str = ""
    ) -> Written:
        """Replace an object (or what its subresource covers), guarded by the resourceVersion in the body."""
        obj = admission.check_body(resource, namespace, name, body)
        async with self.store.lock(resource.storage, namespace, name):
            stored = self.get_stored(resource, namespace, name)
            old = await self.converter.view(resource, stored)
            if resource.custom and not obj["metadata"].get("resourceVersion"):
                text = "must be specified for an update"
                problem = FieldError("FieldValueInvalid", f"Invalid value: 0: {text}", "metadata.resourceVersion")
                raise failures.invalid(resource, name, [problem])
            self._check_preconditions(resource, namespace, name, obj["metadata"], old["metadata"])
            new = admission.prepare_update(resource, obj, old, options, self.now(), subresource)
            new = await self._admit_change(resource, namespace, old, new, options, subresource)
            return await self._store_changed(resource, namespace, old, new, options, subresource)

    def _check_preconditions(
        self, resource: Resource, namespace: str, name: str, metadata: Object, old: Object
    ) -> None:
        if metadata.get("uid") and metadata["uid"] != old["uid"]:
            raise failures.precondition_failed(resource, namespace, name, "UID", metadata["uid"], old["uid"])
        version = metadata.get("resourceVersion")
        if version not in (None, "", "0", old["resourceVersion"]):
            raise failures.conflict(resource, name)

    async def _store_changed(
        self, resource: Resource, namespace: str, old: Object, new: Object, options: WriteOptions, subresource: str = ""
    ) -> Written:
        """Write a changed object unless nothing changed; hold its lock."""
        new = fieldmanagers.record_update(resource, old, new, options, self.now(), subresource)
        return await self._store_update(resource, namespace, old, new, options)

    async def _store_update(
        self, resource: Resource, namespace: str, old: Object, new: Object, options: WriteOptions
    ) -> Written:
        for check in self.checks:
            check(resource, new, old, options.user)
        if not new["metadata"].get("finalizers"):
            new["metadata"].pop("finalizers", None)
        if admission.is_same(new, old):
            return Written(old)
        check_limits(self.store, resource, new, old)
        async with self.quotas.reserved(resource, namespace, new, old), self._allocating(resource):
            return await self._replace(resource, namespace, old, new, options)

    async def _replace(
        self, resource: Resource, namespace: str, old: Object, new: Object, options: WriteOptions
    ) -> Written:
        name = new["metadata"]["name"]
        new = self._services.allocate(resource, new, old)
        if options.dry_run:
            return Written(new)
        obj = await self.converter.to_storage(resource, new)
        if new["metadata"].get("deletionTimestamp") and not _is_held(resource, new):
            # As on a real server: the last event still shows the finalizers, the answer does not.
            last = obj | {"metadata": dict(obj["metadata"])}
            if old["metadata"].get("finalizers"):
                last["metadata"]["finalizers"] = old["metadata"]["finalizers"]
            stored = await self.store.remove(resource.storage, namespace, name, last)
            gone = new | {"metadata": new["metadata"] | {"resourceVersion": str(stored.revision)}}
            return Written(gone)
        stored = await self.store.put(resource.storage, namespace, name, obj)
        shown = await self.converter.to_version(resource, obj)
        return Written(shown, raw=stored.raw if shown is obj else b"")

    async def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch_type: str,
        patch: Any,
        options: WriteOptions,
        subresource: str = "",
    ) -> Written:
        """
        Apply a patch; ``patch_type`` is ``json``, ``merge``, ``strategic`` or ``apply``.

        Raises:
            UnsupportedMediaTypeError: a strategic patch of a custom resource.
        """
        if patch_type == "apply":
            return await self._apply(resource, namespace, name, patch, options, subresource)
        async with self.store.lock(resource.storage, namespace, name):
            old = await self.converter.view(resource, self.get_stored(resource, namespace, name))
            patched = patched_object(resource, patch_type, old, patch)
            obj = admission.check_body(resource, namespace, name, patched)
            _check_uid_stays(resource, name, obj["metadata"], old["metadata"])
            self._check_preconditions(resource, namespace, name, obj["metadata"], old["metadata"])
            try:
                new = admission.prepare_update(resource, obj, old, options, self.now(), subresource)
            except BadRequestError as error:
                shown = render_patch(patch) if patch_type == "strategic" else render_patched(old, patched)
                raise _unreadable(resource, shown, error) from error
            new = await self._admit_change(resource, namespace, old, new, options, subresource)
            return await self._store_changed(resource, namespace, old, new, options, subresource)

    async def _apply(
        self, resource: Resource, namespace: str, name: str, patch: Any, options: WriteOptions, subresource: str
    ) -> Written:
        fieldmanagers.check_apply(resource, patch, name, options)
        metadata = patch.setdefault("metadata", {})
        body = patch | {"metadata": metadata | {"name": name}}
        config = admission.check_body(resource, namespace, name, body)
        async with self.store.lock(resource.storage, namespace, name):
            stored = self.store.get(resource.storage, namespace, name)
            if stored is None:
                if subresource:
                    raise failures.not_found(resource, name)
                if uid := config["metadata"].get("uid"):
                    problem = FieldError.invalid("metadata.uid", uid, "field is immutable")
                    raise failures.invalid(resource, name, [problem])
                merged = fieldmanagers.apply(resource, None, config, options, self.now())
                merged["metadata"].pop("resourceVersion", None)
                merged = await self._mutate(resource, merged)
                draft = admission.draft_create(resource, merged, options, self.now(), applied=True)
                new = await self._admit_new(resource, namespace, draft, options)
                return await self._store_new(resource, namespace, new, options)
            old = await self.converter.view(resource, stored)
            _check_uid_stays(resource, name, config["metadata"], old["metadata"])
            self._check_preconditions(resource, namespace, name, config["metadata"], old["metadata"])
            merged = fieldmanagers.apply(resource, old, config, options, self.now(), subresource)
            managed = merged["metadata"].get("managedFields")
            merged = admission.check_body(resource, namespace, name, merged)
            new = admission.prepare_update(resource, merged, old, options, self.now(), subresource)
            new = await self._admit_change(resource, namespace, old, new, options, subresource)
            if managed:
                new["metadata"]["managedFields"] = managed
            return await self._store_update(resource, namespace, old, new, options)

    async def change(
        self, resource: Resource, namespace: str, name: str, change: Callable[[Object], Object | None]
    ) -> Object:
        """Change an object from inside the server: ``change`` gets it and returns the new one, None to leave it."""
        async with self.store.lock(resource.storage, namespace, name):
            old = self.get_stored(resource, namespace, name).object
            new = change(old)
            if new is None:
                return old
            new = new | {"metadata": dict(new["metadata"])}
            written = await self._store_update(resource, namespace, old, new, WriteOptions())
            return written.object

    # ---- deleting

    async def delete(
        self, resource: Resource, namespace: str, name: str, delete: DeleteOptions, options: WriteOptions
    ) -> Object | None:
        """
        Delete an object, or mark it when finalizers or a grace period hold it.

        Returns:
            The object when it stays or when its kind answers with it; None = gone, answer with success.
        """
        async with self.store.lock(resource.storage, namespace, name):
            known = self.get_stored(resource, namespace, name)
            old = known.object
            self._check_delete(resource, namespace, name, delete, old)
            if self.plugins is not None and self.plugins.concern():
                shown = await self.converter.view(resource, known)
                review = Review(resource, "DELETE", namespace, name, None, shown, options)
                await self.plugins.mutate(review)
                await self.plugins.validate(review)
            new = self._mark_deleted(resource, old, delete, options)
            if new is None:
                return await self.converter.view(resource, known)
            if options.dry_run:
                return new if _is_held(resource, new) or _returns_object(resource) else None
            if not _is_held(resource, new):
                stored = await self.store.remove(resource.storage, namespace, name, new)
                return await self.converter.view(resource, stored) if _returns_object(resource) else None
            stored = await self.store.put(resource.storage, namespace, name, new)
            return await self.converter.view(resource, stored)

    def _check_delete(self, resource: Resource, namespace: str, name: str, delete: DeleteOptions, old: Object) -> None:
        metadata = old["metadata"]
        if delete.uid and delete.uid != metadata["uid"]:
            why = f"Precondition failed: UID in precondition: {delete.uid}, UID in object meta: {metadata['uid']}"
            raise failures.conflict(resource, name, why)
        if delete.resource_version and delete.resource_version != metadata["resourceVersion"]:
            why = (
                f"Precondition failed: ResourceVersion in precondition: {delete.resource_version}, "
                f"ResourceVersion in object meta: {metadata['resourceVersion']}"
            )
            raise failures.conflict(resource, name, why)
        if resource.storage == _NAMESPACES and name in ("default", "kube-system", "kube-public"):
            raise failures.forbidden(resource, name, "this namespace may not be deleted")
        held = self.registry.held.get(resource.gvk)
        if held and (why := held(old)):
            raise failures.forbidden(resource, name, why)

    def _mark_deleted(
        self, resource: Resource, old: Object, delete: DeleteOptions, options: WriteOptions
    ) -> Object | None:
        """Return the object as its deletion leaves it; None when it was being deleted already and nothing changes."""
        metadata = dict(old["metadata"])
        finalizers = [name for name in metadata.get("finalizers") or () if name not in ("orphan", "foregroundDeletion")]
        if resource.storage == _CRDS and not metadata.get("deletionTimestamp"):
            finalizers.append(CRD_CLEANUP)
        propagation = delete.propagation or _default_propagation(resource, options)
        if not delete.propagation and metadata.get("deletionTimestamp"):
            finalizers = list(metadata.get("finalizers") or ())
        elif propagation == "Foreground":
            finalizers.append("foregroundDeletion")
        elif propagation == "Orphan":
            finalizers.append("orphan")
        grace_s = _grace_period(resource, old, delete)
        if metadata.get("deletionTimestamp"):
            shorter = grace_s < metadata.get("deletionGracePeriodSeconds", 0)
            if not shorter and finalizers == (metadata.get("finalizers") or []):
                return None if _is_held(resource, old) else {**old, "metadata": metadata}
            if shorter:
                metadata["deletionTimestamp"] = format_time(self.now() + timedelta(seconds=grace_s))
                metadata["deletionGracePeriodSeconds"] = grace_s
        else:
            held = bool(finalizers or grace_s or (old.get("spec") or {}).get("finalizers"))
            if held or resource.storage == "pods":
                metadata["deletionTimestamp"] = format_time(self.now() + timedelta(seconds=grace_s))
                if resource.storage not in (_NAMESPACES, _CRDS):
                    metadata["deletionGracePeriodSeconds"] = grace_s
                if resource.generation and resource.storage != _CRDS:
                    metadata["generation"] = metadata.get("generation", 0) + 1
        metadata.pop("finalizers", None)
        if finalizers:
            metadata["finalizers"] = finalizers
        new = {**old, "metadata": metadata}
        if resource.storage == _NAMESPACES:
            new["status"] = {**(old.get("status") or {}), "phase": "Terminating"}
        if resource.storage == _CRDS and not old["metadata"].get("deletionTimestamp"):
            text = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
            status = old.get("status") or {}
            conditions = set_condition(
                status.get("conditions") or [], "Terminating", "True", "InstanceDeletionPending", text, self.now()
            )
            new["status"] = {**status, "conditions": conditions}
        # Without a timestamp nothing holds it: it goes at once.
        return new

    async def delete_collection(
        self, resource: Resource, namespace: str, query: ListQuery, delete: DeleteOptions, options: WriteOptions
    ) -> Page:
        page = await self.list(resource, namespace, query)
        for stored in page.items:
            try:
                await self.delete(resource, stored.namespace, stored.name, delete, options)
            except NotFoundError:
                continue
        return page


def _check_uid_stays(resource: Resource, name: str, metadata: Object, old: Object) -> None:
    """A patch may say which object it means; unlike an update, another one is a mistake in the patch."""
    if metadata.get("uid") and metadata["uid"] != old["uid"]:
        problem = FieldError.invalid("metadata.uid", metadata["uid"], "field is immutable")
        raise failures.invalid(resource, name, [problem])


def _kept_identity(metadata: Object, before: Object) -> Object:
    """Metadata as a webhook left it, with what identifies the object as it was."""
    identity = ("name", "namespace", "uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp")
    return metadata | {key: before[key] for key in identity if key in before}


def _check_match(query: ListQuery) -> None:
    field = "resourceVersionMatch"
    problem = None
    if query.match and not query.resource_version:
        problem = FieldError.forbidden(field, f"{field} is forbidden unless resourceVersion is provided")
    elif query.match not in ("", "Exact", "NotOlderThan"):
        problem = FieldError.not_supported(field, query.match, ["Exact", "NotOlderThan", ""])
    elif query.match and query.continue_:
        problem = FieldError.forbidden(field, f"{field} is forbidden when continue is provided")
    elif query.match == "Exact" and query.resource_version == "0":
        problem = FieldError.forbidden(field, f'{field} "exact" is forbidden for resourceVersion "0"')
    if problem:
        raise InvalidError.of("ListOptions", "meta.k8s.io", "", [problem])


def too_large(wanted: int, current: int, *, retry: bool = True) -> TimeoutStatusError:
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return TimeoutStatusError(
        f"Timeout: Too large resource version: {wanted}, current: {current}",
        details={"causes": [cause]} | ({"retryAfterSeconds": 1} if retry else {}),
    )


def _render_continue(revision: int, last: Stored) -> str:
    return _encode_continue({"v": "meta.k8s.io/v1", "rv": revision, "start": f"{last.namespace}/{last.name}"})


def _encode_continue(token: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(token).encode()).decode().rstrip("=")


def _parse_continue(text: str) -> tuple[int, tuple[str, str]]:
    try:
        token = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        namespace, _, name = token["start"].partition("/")
        return int(token["rv"]), (namespace, name)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise BadRequestError(f"invalid continue token: continue key is not valid: {error}") from error


def _unreadable(resource: Resource, shown: str, error: BadRequestError) -> ApiError:
    """What a patch answers whose result, or which itself, cannot be read."""
    why = error.message.partition(f"cannot be handled as a {resource.kind}: ")[2] or error.message
    if resource.custom and not why.startswith("strict decoding error"):
        return error
    problem = FieldError("FieldValueInvalid", f"Invalid value: {json.dumps(shown)}: {why}", "patch")
    return InvalidError.of("", "", "", [problem])


def patched_object(resource: Resource, patch_type: str, old: Object, patch: Any) -> Object:
    """Return ``old`` with a patch applied; parts are shared with ``old``."""
    if patch_type == "json":
        try:
            return json_patch(old, patch)
        except InvalidError as error:
            error.details = {}
            raise
    if patch_type == "merge":
        return merge_patch(old, patch)
    if patch_type != "strategic" or resource.custom:
        raise UnsupportedMediaTypeError(
            "the body of the request was in an unknown format - accepted media types include: "
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
        )
    return strategic_merge_patch(old, patch, type_name(resource.gvk), merge_rule)


def _is_held(resource: Resource, obj: Object) -> bool:
    """Whether an object that is to be deleted must stay for now."""
    metadata = obj["metadata"]
    if metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds"):
        return True
    return resource.storage == _NAMESPACES and bool((obj.get("spec") or {}).get("finalizers"))


def _returns_object(resource: Resource) -> bool:
    """Kinds whose deletion answers with the object even when it is gone."""
    return not resource.group and resource.kind in {
        "Pod",
        "Service",
        "ServiceAccount",
        "PersistentVolumeClaim",
        "PersistentVolume",
        "PodTemplate",
        "ResourceQuota",
    }


def _default_propagation(resource: Resource, options: WriteOptions) -> str:
    if resource.storage != "jobs.batch":
        return "Background"
    options.warnings.append(
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them "
        "or set propagationPolicy=Orphan to suppress this warning"
    )
    return "Orphan"


def _grace_period(resource: Resource, obj: Object, delete: DeleteOptions) -> int:
    """How long a Pod may take to end, in seconds; everything else goes at once."""
    if resource.storage != "pods":
        return 0
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    if delete.grace_period_s is not None:
        return max(delete.grace_period_s, 0)
    return int(spec.get("terminationGracePeriodSeconds", 30))
