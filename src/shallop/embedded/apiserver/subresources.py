"""What lies below an object: status, scale, finalize, binding, eviction, token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from shallop.embedded.apiserver import conversion, failures, scale
from shallop.embedded.apiserver.binding import place_on, with_probe_times
from shallop.embedded.apiserver.requests import WriteOptions
from shallop.embedded.apiserver.resources import Registry, Resource
from shallop.embedded.apiserver.verbs import DeleteOptions, Verbs, patched_object
from shallop.errors import BadRequestError, FieldError, InternalError, InvalidError, TooManyRequestsError
from shallop.kube.objects import Gvk, Object, format_time, is_condition_true, set_condition
from shallop.kube.selectors import match_selector

__all__ = ["Subresources"]

_DISRUPTION_BUDGET = Gvk("policy/v1", "PodDisruptionBudget")
Issue = Callable[[Object, Object], Object]


class Subresources:
    """
    Reads and writes of subresources.

    Args:
        issue_token: fills a TokenRequest for a ServiceAccount.
    """

    def __init__(self, verbs: Verbs, registry: Registry, issue_token: Issue) -> None:
        self._verbs = verbs
        self._registry = registry
        self._issue_token = issue_token

    async def get(self, resource: Resource, namespace: str, name: str, subresource: str) -> Object:
        obj = await self._verbs.read(resource, namespace, name)
        return scale.render_scale(resource, obj) if subresource == "scale" else obj

    async def update(
        self, resource: Resource, namespace: str, name: str, subresource: str, body: Object, options: WriteOptions
    ) -> Object:
        if subresource == "scale":
            return await self._set_scale(resource, namespace, name, lambda _old: body, options)
        if subresource == "finalize":
            return await self._finalize(resource, name, (body.get("spec") or {}).get("finalizers"))
        return (await self._verbs.update(resource, namespace, name, body, options, subresource)).object

    async def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        subresource: str,
        patch_type: str,
        patch: Any,
        options: WriteOptions,
    ) -> Object:
        if subresource == "scale":

            def patched(old: Object) -> Object:
                if patch_type == "apply":
                    return old | {"spec": (old.get("spec") or {}) | (patch.get("spec") or {})}
                return patched_object(_scale_resource(resource), patch_type, old, patch)

            return await self._set_scale(resource, namespace, name, patched, options)
        if subresource == "finalize":
            return await self._finalize(resource, name, (patch.get("spec") or {}).get("finalizers"))
        return (await self._verbs.patch(resource, namespace, name, patch_type, patch, options, subresource)).object

    async def create(
        self, resource: Resource, namespace: str, name: str, subresource: str, body: Object, options: WriteOptions
    ) -> Object:
        given = (body.get("metadata") or {}).get("name")
        if given and given != name:
            raise BadRequestError(f"name in URL does not match name in {body.get('kind', 'object')} object")
        if (resource.storage, subresource) == ("pods", "binding"):
            return await self._bind(resource, namespace, name, body)
        if (resource.storage, subresource) == ("pods", "eviction"):
            return await self._evict(resource, namespace, name, body, options)
        if (resource.storage, subresource) == ("serviceaccounts", "token"):
            account = self._verbs.get(resource, namespace, name)
            return self._issue_token(account, body)
        raise failures.method_not_allowed()

    async def _set_scale(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], Object],
        options: WriteOptions,
    ) -> Object:
        old = await self._verbs.read(resource, namespace, name)
        wanted = change(scale.render_scale(resource, old))
        metadata = wanted.get("metadata") or {}
        version = metadata.get("resourceVersion")
        if version and version != old["metadata"]["resourceVersion"]:
            raise failures.conflict(resource, name)
        replicas = (wanted.get("spec") or {}).get("replicas", 0)
        if type(replicas) is not int:
            raise BadRequestError(
                'Scale in version "v1" cannot be handled as a Scale: spec.replicas must be a whole number'
            )
        if replicas < 0:
            if resource.custom:
                problem = FieldError.invalid(".spec.replicas", replicas, "should be a non-negative integer")
                raise failures.invalid(resource, name, [problem])
            problem = FieldError.invalid("spec.replicas", replicas, "must be greater than or equal to 0")
            raise InvalidError.of("Scale", "autoscaling", name, [problem])
        patch = scale.render_patch(resource, replicas)
        written = await self._verbs.patch(resource, namespace, name, "merge", patch, options, "scale")
        return scale.render_scale(resource, written.object)

    async def _finalize(self, resource: Resource, name: str, finalizers: list[str] | None) -> Object:
        def change(old: Object) -> Object:
            spec = {key: value for key, value in (old.get("spec") or {}).items() if key != "finalizers"}
            return old | {"spec": spec | ({"finalizers": finalizers} if finalizers else {})}

        return await self._verbs.change(resource, "", name, change)

    async def _bind(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        """Put a Pod on a node."""
        node = (body.get("target") or {}).get("name", "")
        if not node:
            problem = FieldError.required("target.name")
            raise InvalidError.of("Binding", "", name, [problem])

        def change(pod: Object) -> Object:
            spec = pod.get("spec") or {}
            if pod["metadata"].get("deletionTimestamp"):
                raise failures.conflict(
                    _binding(resource), name, f"pod {name} is being deleted, cannot be assigned to a host"
                )
            if spec.get("nodeName"):
                why = f'pod {name} is already assigned to node "{spec["nodeName"]}"'
                raise failures.conflict(_binding(resource), name, why)
            if spec.get("schedulingGates"):
                raise failures.conflict(_binding(resource), name, f"pod {name} has non-empty .spec.schedulingGates")
            annotations = (body.get("metadata") or {}).get("annotations")
            return place_on(pod, node, self._verbs.now(), annotations)

        await self._verbs.change(resource, namespace, name, change)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    async def _evict(
        self, resource: Resource, namespace: str, name: str, body: Object, options: WriteOptions
    ) -> Object:
        """Delete a Pod unless a disruption budget forbids it now."""
        pod = self._verbs.get(resource, namespace, name)
        given = body.get("deleteOptions") or {}
        preconditions = given.get("preconditions") or {}
        delete = DeleteOptions(
            given.get("propagationPolicy", ""),
            given.get("gracePeriodSeconds"),
            preconditions.get("uid", ""),
            preconditions.get("resourceVersion", ""),
        )
        options.dry_run = options.dry_run or bool(given.get("dryRun"))
        if await self._spend_budget(pod, namespace, dry_run=options.dry_run) and not options.dry_run:
            await self._verbs.change(resource, namespace, name, self._mark_evicted)
        await self._verbs.delete(resource, namespace, name, delete, options)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    async def _spend_budget(self, pod: Object, namespace: str, *, dry_run: bool) -> bool:
        """
        Take one disruption from the budget of a Pod, so that two evictions at once cannot both have the last one.

        Returns:
            False when the Pod does not serve any more and costs nobody anything.
        """
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed", "Pending"):
            return False
        if pod["metadata"].get("deletionTimestamp"):
            return False
        name = pod["metadata"]["name"]
        healthy = is_condition_true(pod, "Ready")
        budgets = list(self._budgets_of(pod, namespace))
        if len(budgets) > 1:
            text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise InternalError(text)
        resource = self._registry.by_gvk(_DISRUPTION_BUDGET)
        for budget in budgets:
            if not healthy and _may_evict_unhealthy(budget):
                continue
            if (budget.get("status") or {}).get("disruptionsAllowed", 0) < 1:
                raise _blocked(budget)
            if dry_run or resource is None:
                continue

            def spend(old: Object) -> Object:
                status = old.get("status") or {}
                if status.get("disruptionsAllowed", 0) < 1:
                    raise _blocked(old)
                disrupted = {**(status.get("disruptedPods") or {}), name: format_time(self._verbs.now())}
                left = status["disruptionsAllowed"] - 1
                return old | {"status": {**status, "disruptionsAllowed": left, "disruptedPods": disrupted}}

            await self._verbs.change(resource, namespace, budget["metadata"]["name"], spend)
        return True

    def _mark_evicted(self, pod: Object) -> Object:
        status = pod.get("status") or {}
        conditions = set_condition(
            status.get("conditions") or [],
            "DisruptionTarget",
            "True",
            "EvictionByEvictionAPI",
            "Eviction API: evicting",
            self._verbs.now(),
        )
        return pod | {"status": {**status, "conditions": with_probe_times(conditions)}}

    def _budgets_of(self, pod: Object, namespace: str) -> Iterable[Object]:
        resource = self._registry.by_gvk(_DISRUPTION_BUDGET)
        labels = pod["metadata"].get("labels") or {}
        for stored in self._verbs.store.list(resource.storage, namespace) if resource else ():
            budget = conversion.to_version(resource, stored.object) if resource else stored.object
            if match_selector((budget.get("spec") or {}).get("selector"), labels):
                yield budget


def _may_evict_unhealthy(budget: Object) -> bool:
    """Say whether a Pod that is not ready may go although no disruption is left."""
    if (budget.get("spec") or {}).get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    status = budget.get("status") or {}
    return bool(status.get("currentHealthy", 0) >= status.get("desiredHealthy", 0) > 0)


def _blocked(budget: Object) -> TooManyRequestsError:
    name = budget["metadata"]["name"]
    status = budget.get("status") or {}
    text = (
        f"The disruption budget {name} needs {status.get('desiredHealthy', 0)} healthy pods and has "
        f"{status.get('currentHealthy', 0)} currently"
    )
    return TooManyRequestsError(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        details={"causes": [{"reason": "DisruptionBudget", "message": text}]},
    )


def _binding(resource: Resource) -> Resource:
    return replace(resource, plural="pods/binding")


def _scale_resource(resource: Resource) -> Resource:
    return replace(resource, group="autoscaling", version="v1", kind="Scale", crd=None)
