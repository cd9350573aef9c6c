"""Admission webhooks: servers of users that change or refuse writes, called over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import binascii
import copy
import json
import logging
import ssl
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from shallop.embedded.apiserver.admission_matching import (
    REQUEST_VARIABLES,
    Review,
    equivalent_resource,
    matches_labels,
    unmet_condition,
)
from shallop.embedded.apiserver.cel import CelError
from shallop.embedded.apiserver.objects_store import Change, ObjectsStore
from shallop.embedded.apiserver.resources import Registry, Resource
from shallop.errors import ApiError, BadRequestError, ForbiddenError, InternalError, InvalidError, api_error
from shallop.kube.objects import Object, labels_of
from shallop.kube.patch import json_patch

__all__ = ["MUTATING", "VALIDATING", "Webhooks"]

log = logging.getLogger(__name__)
_GROUP = "admissionregistration.k8s.io"
MUTATING, VALIDATING = f"mutatingwebhookconfigurations.{_GROUP}", f"validatingwebhookconfigurations.{_GROUP}"
ResolveService = Callable[[str, str, str], tuple[str, int] | None]
_MAX_ANSWER = 4 * 1024 * 1024
_VERSIONS = ("v1", "v1beta1")


class _CallFailedError(Exception):
    """A webhook could not be asked, or what it said is no answer."""


class _Target(NamedTuple):
    url: str
    host: str
    context: ssl.SSLContext


class Webhooks:
    """
    Calls the webhooks that match a write.

    Args:
        resolve_service: finds an endpoint of a Service; None where there are no Services.
    """

    def __init__(self, store: ObjectsStore, registry: Registry, resolve_service: ResolveService | None) -> None:
        self._store = store
        self._registry = registry
        self._resolve_service = resolve_service
        self._hooks: dict[str, list[Object]] = {}
        self._session: aiohttp.ClientSession | None = None
        for resource in (MUTATING, VALIDATING):
            self._read(resource)
        store.listeners.append(self._changed)

    def _changed(self, change: Change) -> None:
        if change.new.resource in (MUTATING, VALIDATING):
            self._read(change.new.resource)

    def _read(self, resource: str) -> None:
        self._hooks[resource] = [
            hook for stored in self._store.list(resource) for hook in stored.object.get("webhooks") or ()
        ]

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

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
        answer = await self._ask(hook, replace(review, obj=obj))
        if not answer or not answer.get("patch") or obj is None:
            return obj
        try:
            patch = json.loads(base64.b64decode(answer["patch"]))
            if answer.get("patchType") != "JSONPatch":
                raise BadRequestError(f'unexpected patch type "{answer.get("patchType", "")}"')
            return json_patch(copy.deepcopy(obj), patch)
        except (ValueError, binascii.Error, BadRequestError, InvalidError) as error:
            raise InternalError(f"Internal error occurred: webhook {hook['name']}: {error}", details={}) from error

    async def validate(self, review: Review) -> None:
        """
        Ask all validating webhooks at once.

        Raises:
            ApiError: the first that refused, in the order in which they are declared.
        """
        hooks = self._hooks[VALIDATING]
        results = await asyncio.gather(*(self._ask(hook, review) for hook in hooks), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _ask(self, hook: Object, review: Review) -> Object | None:
        """Return the answer of a webhook that matches and allows; None when it need not be asked or may fail."""
        seen_as = equivalent_resource(
            review, hook.get("rules") or (), hook.get("matchPolicy", "Equivalent"), self._versions
        )
        if seen_as is None or not matches_labels(review, hook, self._namespace_labels):
            return None
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
            answer = await self._call(hook, review, seen_as)
        except _CallFailedError as error:
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

    async def _call(self, hook: Object, review: Review, seen_as: Resource) -> Object:
        version = next((v for v in hook.get("admissionReviewVersions") or () if v in _VERSIONS), None)
        if version is None:
            raise _CallFailedError(
                f"none of its admissionReviewVersions is offered; offered are {', '.join(_VERSIONS)}"
            )
        uid = str(uuid.uuid4())
        request = review.request(uid, seen_as=seen_as) | review.objects(seen_as)
        body = {"kind": "AdmissionReview", "apiVersion": f"admission.k8s.io/{version}", "request": request}
        target = self._target(hook.get("clientConfig") or {})
        timeout_s = hook.get("timeoutSeconds") or 10
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._post(target, body, timeout_s)
        except TimeoutError as error:
            raise _CallFailedError(
                f"failed to call webhook: no answer within {timeout_s} s from {target.url}"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _CallFailedError(f'failed to call webhook: Post "{target.url}": {error}') from error
        response = answer.get("response") if isinstance(answer, dict) else None
        if not isinstance(response, dict):
            raise _CallFailedError("the answer has no response")
        if response.get("uid") != uid:
            raise _CallFailedError(f'expected response.uid="{uid}", got "{response.get("uid", "")}"')
        return response

    async def _post(self, target: _Target, body: Object, timeout_s: int) -> Any:
        if self._session is None:
            # Proxies of the environment are for the outside; a webhook is part of the cluster.
            self._session = aiohttp.ClientSession(trust_env=False)
        async with self._session.post(
            f"{target.url}?timeout={timeout_s}s",
            json=body,
            headers={"Host": target.host, "Accept": "application/json", "User-Agent": "kube-apiserver-admission"},
            ssl=target.context,
            server_hostname=target.host.partition(":")[0],
            allow_redirects=False,
        ) as answer:
            raw = await answer.content.read(_MAX_ANSWER)
            if answer.status != 200:
                raise _CallFailedError(f"failed to call webhook: the server answered {answer.status}")
            try:
                return json.loads(raw)
            except ValueError as error:
                raise _CallFailedError(f"the answer is no JSON: {error}") from error

    def _target(self, config: Object) -> _Target:
        context = _context(config.get("caBundle") or "")
        if url := config.get("url"):
            return _Target(url, urlsplit(url).netloc, context)
        service = config.get("service") or {}
        namespace, name = service.get("namespace", ""), service.get("name", "")
        port = str(service.get("port") or 443)
        found = None
        if self._resolve_service is not None:
            found = self._resolve_service(namespace, name, port)
        if found is None:
            raise _CallFailedError(f'failed to call webhook: no endpoints available for service "{name}"')
        path = "/" + (service.get("path") or "").lstrip("/")
        host, number = found
        return _Target(f"https://{host}:{number}{path}", f"{name}.{namespace}.svc", context)


@lru_cache(maxsize=64)
def _context(bundle: str) -> ssl.SSLContext:
    try:
        authorities = base64.b64decode(bundle).decode() if bundle else None
        return ssl.create_default_context(cadata=authorities)
    except (ValueError, ssl.SSLError) as error:
        raise _CallFailedError(f"unable to load root certificates: {error}") from error


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
