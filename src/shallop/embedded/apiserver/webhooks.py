"""Admission webhooks: servers of users that change or refuse writes, called over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import binascii
import copy
import json
import logging
import uuid
from collections.abc import Iterable
from dataclasses import replace

from shallop.embedded.apiserver.admission_matching import (
    REQUEST_VARIABLES,
    Review,
    equivalent_resource,
    matches_labels,
    unmet_condition,
)
from shallop.embedded.apiserver.cel import CelError
from shallop.embedded.apiserver.converting import Converter
from shallop.embedded.apiserver.objects_store import Change, ObjectsStore
from shallop.embedded.apiserver.resources import Registry, Resource
from shallop.embedded.apiserver.webhook_calls import CallFailedError, WebhookCaller
from shallop.errors import ApiError, BadRequestError, ForbiddenError, InternalError, InvalidError, api_error
from shallop.kube.objects import Object, labels_of
from shallop.kube.patch import json_patch

__all__ = ["MUTATING", "VALIDATING", "Webhooks"]

log = logging.getLogger(__name__)
_GROUP = "admissionregistration.k8s.io"
MUTATING, VALIDATING = f"mutatingwebhookconfigurations.{_GROUP}", f"validatingwebhookconfigurations.{_GROUP}"
_MAX_ANSWER = 4 * 1024 * 1024
_VERSIONS = ("v1", "v1beta1")


class Webhooks:
    """Calls the webhooks that match a write."""

    def __init__(self, store: ObjectsStore, registry: Registry, caller: WebhookCaller, converter: Converter) -> None:
        self._store = store
        self._registry = registry
        self._caller = caller
        self._converter = converter
        self._hooks: dict[str, list[Object]] = {}
        for resource in (MUTATING, VALIDATING):
            self._read(resource)
        store.listen((MUTATING, VALIDATING), self._changed)

    def _changed(self, change: Change) -> None:
        self._read(change.new.resource)

    def _read(self, resource: str) -> None:
        self._hooks[resource] = [
            hook for stored in self._store.list(resource) for hook in stored.object.get("webhooks") or ()
        ]

    def concern(self) -> bool:
        """Whether any webhook may want to see a write: quick, and usually no."""
        return bool(self._hooks[MUTATING] or self._hooks[VALIDATING])

    async def mutate(self, review: Review) -> Object | None:
        """
        Ask the mutating webhooks one after another; returns the object as they leave it.

        Raises:
            ApiError: one refused, or failed and its ``failurePolicy`` is Fail.
        """
        hooks = self._hooks[MUTATING]
        obj, again = review.obj, False
        changed_by = -1
        for index, hook in enumerate(hooks):
            new = await self._change(hook, review, obj)
            if new != obj:
                obj, changed_by = new, index
                again = True
        if again:
            # Those that ask for it see what came after them, once.
            for index, hook in enumerate(hooks):
                if hook.get("reinvocationPolicy") == "IfNeeded" and index < changed_by:
                    obj = await self._change(hook, review, obj)
        return obj

    async def _change(self, hook: Object, review: Review, obj: Object | None) -> Object | None:
        seen = await self._seen(hook, replace(review, obj=obj))
        answer = await self._ask(hook, seen) if seen is not None else None
        if not answer or not answer.get("patch") or seen is None or seen.obj is None:
            return obj
        try:
            patch = json.loads(base64.b64decode(answer["patch"]))
            if answer.get("patchType") != "JSONPatch":
                raise BadRequestError(f'unexpected patch type "{answer.get("patchType", "")}"')
            changed: Object = json_patch(copy.deepcopy(seen.obj), patch)
        except (ValueError, binascii.Error, BadRequestError, InvalidError) as error:
            raise InternalError(f"Internal error occurred: webhook {hook['name']}: {error}", details={}) from error
        if seen.seen_as is None or review.kind is not None:
            return changed
        return await self._converter.between(seen.seen_as, review.resource, changed)

    async def validate(self, review: Review) -> None:
        """
        Ask all validating webhooks at once.

        Raises:
            ApiError: the first that refused, in the order in which they are declared.
        """
        hooks = self._hooks[VALIDATING]

        async def ask(hook: Object) -> None:
            if (seen := await self._seen(hook, review)) is not None:
                await self._ask(hook, seen)

        results = await asyncio.gather(*map(ask, hooks), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _seen(self, hook: Object, review: Review) -> Review | None:
        """Return what a webhook wants to see of a write; None when it does not match."""
        seen_as = equivalent_resource(
            review, hook.get("rules") or (), hook.get("matchPolicy", "Equivalent"), self._versions
        )
        if seen_as is None or not matches_labels(review, hook, self._namespace_labels):
            return None
        return await self._converter.seen(review, seen_as)

    async def _ask(self, hook: Object, review: Review) -> Object | None:
        """Return the answer of a webhook that allows; None when its conditions are not met, or it may fail."""
        fails = hook.get("failurePolicy", "Fail") == "Fail"
        try:
            conditions = hook.get("matchConditions")
            if conditions and unmet_condition(conditions, review.values, REQUEST_VARIABLES) is not None:
                return None
        except CelError as error:
            if not fails:
                return None
            why = f'{review.resource.qualified} "{review.name}" is forbidden: webhook "{hook["name"]}": {error}'
            raise ForbiddenError(why, details={}) from error
        if review.options.dry_run and hook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            raise BadRequestError(f'admission webhook "{hook["name"]}" does not support dry run')
        try:
            answer = await self._call(hook, review)
        except CallFailedError as error:
            log.warning("admission webhook %s: %s", hook["name"], error)
            if not fails:
                return None
            why = f'failed calling webhook "{hook["name"]}": {error}'
            raise InternalError(f"Internal error occurred: {why}", details={"causes": [{"message": why}]}) from error
        review.options.warnings += [str(text)[:256] for text in answer.get("warnings") or ()]
        if answer.get("allowed") is not True:
            raise _refusal(hook["name"], answer.get("status") or {})
        return answer

    def _versions(self, resource: Resource) -> Iterable[Resource]:
        return [other for other in self._registry.all() if other.storage == resource.storage]

    def _namespace_labels(self, namespace: str) -> dict[str, str]:
        stored = self._store.get("namespaces", "", namespace)
        return labels_of(stored.object) if stored else {}

    # ---- the call

    async def _call(self, hook: Object, review: Review) -> Object:
        version = next((v for v in hook.get("admissionReviewVersions") or () if v in _VERSIONS), None)
        if version is None:
            raise CallFailedError(f"none of its admissionReviewVersions is offered; offered are {', '.join(_VERSIONS)}")
        uid = str(uuid.uuid4())
        request = review.request(uid) | {"object": review.obj, "oldObject": review.old}
        body = {"kind": "AdmissionReview", "apiVersion": f"admission.k8s.io/{version}", "request": request}
        timeout_s = hook.get("timeoutSeconds") or 10
        answer = await self._caller.post(
            hook.get("clientConfig") or {},
            body,
            prefix="failed to call webhook: ",
            agent="kube-apiserver-admission",
            timeout_s=timeout_s,
            limit=_MAX_ANSWER,
        )
        response = answer.get("response") if isinstance(answer, dict) else None
        if not isinstance(response, dict):
            raise CallFailedError("the answer has no response")
        if response.get("uid") != uid:
            raise CallFailedError(f'expected response.uid="{uid}", got "{response.get("uid", "")}"')
        return response


def _refusal(name: str, status: Object) -> ApiError:
    """What a client gets when a webhook says no."""
    text = f'admission webhook "{name}" denied the request'
    why = status.get("message") or status.get("reason")
    message = f"{text}: {why}" if why else f"{text} without explanation"
    code = status.get("code") or 0
    details = status.get("details") or {}
    return api_error(
        code if isinstance(code, int) and 400 <= code < 600 else 400,
        {
            "reason": status.get("reason") or "",
            "message": message,
            "details": details if isinstance(details, dict) else {},
        },
    )
