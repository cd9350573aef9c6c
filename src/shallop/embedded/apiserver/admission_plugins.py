"""The admission that users configure: webhooks and policies, in the order of a real server."""

from __future__ import annotations

from dataclasses import replace

from shallop.embedded.apiserver.admission_matching import Review
from shallop.embedded.apiserver.authorization import Authorize
from shallop.embedded.apiserver.converting import Converter
from shallop.embedded.apiserver.mutating_policies import MutatingPolicies
from shallop.embedded.apiserver.objects_store import ObjectsStore
from shallop.embedded.apiserver.policies import Policies
from shallop.embedded.apiserver.resources import Registry
from shallop.embedded.apiserver.webhook_calls import WebhookCaller
from shallop.embedded.apiserver.webhooks import Webhooks
from shallop.kube.objects import Object

__all__ = ["AdmissionPlugins"]


class AdmissionPlugins:
    """``verbs.Plugins`` on the configurations in the store."""

    def __init__(
        self,
        store: ObjectsStore,
        registry: Registry,
        caller: WebhookCaller,
        converter: Converter,
        authorize: Authorize,
    ) -> None:
        self._authorize = authorize
        self._webhooks = Webhooks(store, registry, caller, converter)
        self._policies = Policies(store, registry, converter)
        self._mutating = MutatingPolicies(store, registry, converter)

    def concern(self) -> bool:
        return self._webhooks.concern() or self._policies.concern() or self._mutating.concern()

    async def mutate(self, review: Review) -> Object | None:
        """Ask policies, then webhooks; policies that want to see what came after them are asked once more."""
        review = replace(review, authorize=self._authorize)
        obj, left = await self._mutating.mutate(review)
        obj = await self._webhooks.mutate(replace(review, obj=obj))
        if left:
            obj, _ = await self._mutating.mutate(replace(review, obj=obj), left)
        return obj

    async def validate(self, review: Review) -> None:
        review = replace(review, authorize=self._authorize)
        await self._policies.validate(review)
        await self._webhooks.validate(review)
