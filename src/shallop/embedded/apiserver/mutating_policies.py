"""MutatingAdmissionPolicy: expressions in CEL that change objects on their way in, merged or as JSON patches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from shallop.embedded.apiserver.admission_matching import Review, unmet_condition
from shallop.embedded.apiserver.apply import merge_configuration
from shallop.embedded.apiserver.cel import DYN, CelError, Program, compile_expression
from shallop.embedded.apiserver.cel_types import to_json
from shallop.embedded.apiserver.converting import Converter
from shallop.embedded.apiserver.objects_store import ObjectsStore
from shallop.embedded.apiserver.policies import POLICY_VARIABLES, BoundPolicies, denied
from shallop.embedded.apiserver.resources import Registry
from shallop.embedded.apiserver.schema import Schema
from shallop.errors import BadRequestError, InvalidError
from shallop.kube.objects import Object
from shallop.kube.patch import json_patch

__all__ = ["MUTATIONS", "MutatingPolicies", "mutation_problem"]

_UNTYPED = Schema()
# ``patchType`` of a mutation -> the field with its expression.
MUTATIONS = {"ApplyConfiguration": "applyConfiguration", "JSONPatch": "jsonPatch"}


class MutatingPolicies:
    """Evaluates the policies that have a binding, in the order of (binding, parameter, mutation)."""

    def __init__(self, store: ObjectsStore, registry: Registry, converter: Converter) -> None:
        self._converter = converter
        self._policies = BoundPolicies(store, registry, "mutatingadmissionpolicies", "mutatingadmissionpolicybindings")

    def concern(self) -> bool:
        return self._policies.concern()

    async def mutate(
        self, review: Review, since: dict[str, Object] | None = None
    ) -> tuple[Object | None, dict[str, Object]]:
        """
        Let all policies change the object of a review.

        Args:
            since: makes this another round, for policies that ask for one when the object is not as they left it: what
                the round before returned.

        Returns:
            The object to go on with, and the object as each policy left it.

        Raises:
            ApiError: a policy cannot be evaluated and its ``failurePolicy`` is Fail.
        """
        obj = review.obj
        left: dict[str, Object] = {}
        if obj is None:
            return None, left
        for policy, binding, seen_as in self._policies.matching(review):
            name = f"{policy['metadata']['name']}/{binding['metadata']['name']}"
            if since is not None:
                again = (policy.get("spec") or {}).get("reinvocationPolicy") == "IfNeeded"
                if not again or since.get(name) == obj:
                    continue
            seen = await self._converter.seen(replace(review, obj=obj), seen_as)
            changed = self._apply(policy, binding, seen)
            if changed is not seen.obj:
                same = review.kind is not None
                obj = changed if same else await self._converter.between(seen_as, review.resource, changed)
            left[name] = obj
        return obj, left

    def _apply(self, policy: Object, binding: Object, review: Review) -> Object:
        """Return the object as one policy leaves it; as it was where the policy fails and may."""
        spec = policy.get("spec") or {}
        assert review.obj is not None
        obj = review.obj
        try:
            for params in self._policies.parameters(policy, binding, review):
                values = self._policies.values(policy, replace(review, obj=obj), params)
                if unmet_condition(spec.get("matchConditions") or (), values, POLICY_VARIABLES) is not None:
                    continue
                for mutation in spec.get("mutations") or ():
                    seen = replace(review, obj=obj)
                    obj = _mutated(mutation, seen, self._policies.values(policy, seen, params))
        except (CelError, LookupError, BadRequestError, InvalidError) as error:
            if spec.get("failurePolicy", "Fail") != "Fail":
                return review.obj
            names = policy["metadata"]["name"], binding["metadata"]["name"]
            why = str(error.args[0]) if isinstance(error, LookupError) else str(error)
            raise denied(review, policy["kind"], names, why, "Invalid") from error
        return obj


def _mutated(mutation: Object, review: Review, values: dict[str, Any]) -> Object:
    patch_type = mutation.get("patchType", "")
    expression = (mutation.get(MUTATIONS[patch_type]) or {}).get("expression", "")
    try:
        change = to_json(_compiled(expression, patch_type).evaluate(**values))
    except CelError as error:
        raise CelError(f"expression '{expression}' resulted in error: {error}") from error
    return _APPLY[patch_type](review, change)


def _merged(review: Review, config: Any) -> Object:
    if not isinstance(config, dict):
        raise BadRequestError("an ApplyConfiguration must evaluate to an Object")
    assert review.obj is not None
    schema = (review.seen_as or review.resource).schema
    tree = schema.schema if schema is not None and review.kind is None else _UNTYPED
    return merge_configuration(review.obj, config, tree)


def _patched(review: Review, operations: Any) -> Object:
    if not isinstance(operations, list):
        raise BadRequestError("a JSONPatch must evaluate to a list of JSONPatch")
    assert review.obj is not None
    return json_patch(copy.deepcopy(review.obj), operations)


_APPLY: dict[str, Callable[[Review, Any], Object]] = {"ApplyConfiguration": _merged, "JSONPatch": _patched}


@lru_cache(maxsize=512)
def _compiled(text: str, patch_type: str) -> Program:
    structs = ("Object", "JSONPatch") if patch_type == "JSONPatch" else ("Object",)
    return compile_expression(text, dict.fromkeys(POLICY_VARIABLES, DYN), structs)


def mutation_problem(expression: str, patch_type: str) -> str:
    """Say why an expression cannot be a mutation; empty when it can."""
    try:
        kind = _compiled(expression, patch_type).type
    except CelError as error:
        return f"compilation failed: {error}"
    if kind is DYN:
        return ""
    if patch_type == "ApplyConfiguration":
        return "" if kind.name == "Object" else "must evaluate to Object"
    item = kind.args[0] if kind.name == "list" and kind.args else kind
    return "" if kind.name == "list" and item.name in ("JSONPatch", "dyn") else "must evaluate to list(JSONPatch)"
