"""Conversion of custom resources by a webhook, for CRDs with ``spec.conversion.strategy: Webhook``."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from shallop.embedded.apiserver import conversion
from shallop.embedded.apiserver.admission_matching import Review
from shallop.embedded.apiserver.objects_store import Stored
from shallop.embedded.apiserver.resources import Resource
from shallop.embedded.apiserver.webhook_calls import CallFailedError, WebhookCaller
from shallop.errors import ApiError, api_error
from shallop.kube.objects import Object

__all__ = ["Converter"]

# A real API server gives a conversion 30 s.
_TIMEOUT_S = 30
_MAX_ANSWER = 64 * 1024 * 1024
# What one question carries at most: lists are converted in several.
_BATCH, _BATCH_BYTES = 500, 8 * 1024 * 1024
_VERSIONS = ("v1", "v1beta1")
# All that a conversion may change of the metadata.
_CHANGEABLE = ("labels", "annotations")


class Converter:
    """
    Objects in other versions than they have: by a webhook where the CRD asks for it, by ``conversion`` elsewhere.

    Raises everywhere:
        ApiError: 500, as a real API server words it, where the webhook failed or answered nonsense.
    """

    def __init__(self, caller: WebhookCaller) -> None:
        self._caller = caller

    async def prepare(self, resource: Resource, items: Iterable[Stored]) -> None:
        """Make ``conversion.view`` know the objects in the version of ``resource``."""
        if resource.webhook is None:
            return
        batch: list[Stored] = []
        size = 0
        for stored in items:
            if conversion.is_viewable(resource, stored):
                continue
            batch.append(stored)
            size += len(stored.raw)
            if len(batch) >= _BATCH or size > _BATCH_BYTES:
                await self._prepare(resource, batch)
                batch, size = [], 0
        if batch:
            await self._prepare(resource, batch)

    async def _prepare(self, resource: Resource, batch: list[Stored]) -> None:
        converted = await self._convert(resource, [stored.object for stored in batch], resource.api_version)
        for stored, obj in zip(batch, converted, strict=True):
            conversion.add_view(resource, stored, resource.schema.clean(obj)[0] if resource.schema else obj)

    async def view(self, resource: Resource, stored: Stored) -> Object:
        """Return a stored object in the version of ``resource``."""
        if resource.webhook is not None:
            await self.prepare(resource, [stored])
        return conversion.view(resource, stored)

    async def to_version(self, resource: Resource, obj: Object) -> Object:
        """Return an object as it is stored in the version of ``resource``; the object itself when it has that."""
        if resource.webhook is None or obj["apiVersion"] == resource.api_version:
            return conversion.to_version(resource, obj)
        converted = (await self._convert(resource, [obj], resource.api_version))[0]
        return resource.schema.clean(converted)[0] if resource.schema else converted

    async def to_storage(self, resource: Resource, obj: Object) -> Object:
        """Return an object of the version of ``resource`` as it is stored."""
        if resource.webhook is None or resource.version == resource.storage_version:
            return conversion.to_storage(resource, obj)
        version = f"{resource.group}/{resource.storage_version}"
        converted = (await self._convert(resource, [obj], version))[0]
        return resource.stored_schema.clean(converted)[0] if resource.stored_schema else converted

    async def between(self, resource: Resource, seen_as: Resource, obj: Object) -> Object:
        """Return an object of the version of ``resource`` in that of ``seen_as``."""
        if seen_as.api_version == resource.api_version:
            return obj
        if resource.webhook is not None:
            return await self.to_version(seen_as, obj)
        return conversion.to_version(seen_as, conversion.to_storage(resource, obj | {"metadata": obj["metadata"]}))

    async def seen(self, review: Review, seen_as: Resource) -> Review:
        """Return a review with its objects in the version as which somebody wants to see it."""
        if seen_as is review.resource or review.kind is not None:
            # A Scale or the options of an exec are the same for every version.
            return replace(review, seen_as=seen_as)
        obj, old = [
            None if given is None else await self.between(review.resource, seen_as, given)
            for given in (review.obj, review.old)
        ]
        return replace(review, obj=obj, old=old, seen_as=seen_as)

    async def _convert(self, resource: Resource, objects: list[Object], version: str) -> list[Object]:
        """Convert objects, of whatever versions they are, with private metadata in the results."""
        converted: list[Object] = list(objects)
        asked = [index for index, obj in enumerate(objects) if obj["apiVersion"] != version]
        if not asked:
            return converted
        given = [objects[index] for index in asked]
        kind = f"{given[0]['apiVersion']}, Kind={resource.kind}"
        try:
            answers = await self._ask(resource, given, version)
        except CallFailedError as error:
            raise _failure(f"conversion webhook for {kind} failed: {error}") from error
        if len(answers) != len(given):
            raise _failure(f"conversion webhook for {kind} returned {len(answers)} objects, expected {len(given)}")
        for index, (before, after) in enumerate(zip(given, answers, strict=True)):
            if problem := _problem(resource, before, after, version):
                raise _failure(
                    f"conversion webhook for {kind} returned invalid converted object at index {index}: {problem}"
                )
            converted[asked[index]] = _restored(before, after)
        return converted

    async def _ask(self, resource: Resource, objects: list[Object], version: str) -> list[Any]:
        config = resource.webhook or {}
        known = next((v for v in config.get("conversionReviewVersions") or () if v in _VERSIONS), None)
        if known is None:
            raise CallFailedError(
                f"none of its conversionReviewVersions is offered; offered are {', '.join(_VERSIONS)}"
            )
        review, uid = f"apiextensions.k8s.io/{known}", str(uuid.uuid4())
        body = {
            "kind": "ConversionReview",
            "apiVersion": review,
            "request": {"uid": uid, "desiredAPIVersion": version, "objects": objects},
        }
        answer = await self._caller.post(
            config.get("clientConfig") or {},
            body,
            agent="kube-apiserver",
            timeout_s=_TIMEOUT_S,
            limit=_MAX_ANSWER,
        )
        answer = answer if isinstance(answer, dict) else {}
        found = f"{answer.get('apiVersion', '')}, Kind={answer.get('kind', '')}"
        if found != f"{review}, Kind=ConversionReview":
            raise CallFailedError(f"expected webhook response of {review}, Kind=ConversionReview, got {found}")
        response = answer.get("response")
        if not isinstance(response, dict):
            raise CallFailedError("no response provided")
        if response.get("uid") != uid:
            raise CallFailedError(f'expected response.uid="{uid}", got "{response.get("uid", "")}"')
        result = response.get("result")
        result = result if isinstance(result, dict) else {}
        if result.get("status") != "Success":
            why = result.get("message") or f"response.result.status was '{result.get('status', '')}', not 'Success'"
            raise CallFailedError(str(why))
        converted = response.get("convertedObjects")
        return converted if isinstance(converted, list) else []


def _problem(resource: Resource, before: Object, after: Any, version: str) -> str:
    """Say what is wrong with a converted object; empty when nothing is."""
    if not isinstance(after, dict):
        return "not an object"
    if after.get("apiVersion") != version:
        return f"invalid groupVersion (expected {version}, received {after.get('apiVersion', '')})"
    if after.get("kind") != resource.kind:
        return f"invalid kind (expected {resource.kind}, received {after.get('kind', '')})"
    metadata = after.get("metadata")
    if not isinstance(metadata, dict):
        return "invalid metadata: it is no object"
    for key in ("name", "namespace", "uid"):
        if (metadata.get(key) or "") != (before["metadata"].get(key) or ""):
            shown = metadata.get(key) or ""
            return f'metadata.{key}: Invalid value: "{shown}": must be unchanged'
    for key in _CHANGEABLE:
        texts = metadata.get(key) or {}
        if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
            return f"invalid metadata.{key}: it must be a map of texts"
    return ""


def _restored(before: Object, after: Object) -> Object:
    """The converted object with the metadata that it had, except what a conversion may change."""
    metadata = {key: value for key, value in before["metadata"].items() if key not in _CHANGEABLE}
    metadata |= {key: after["metadata"][key] for key in _CHANGEABLE if after["metadata"].get(key)}
    head = {"kind": after["kind"], "apiVersion": after["apiVersion"], "metadata": metadata}
    return head | {key: value for key, value in after.items() if key not in head}


def _failure(message: str) -> ApiError:
    # A real API server gives such errors no reason.
    return api_error(500, {"message": message})
