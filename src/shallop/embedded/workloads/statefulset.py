"""
StatefulSet: Pods with names and claims of their own that stay.

Honours replicas, ordinals.start, podManagementPolicy, updateStrategy (RollingUpdate with partition and maxUnavailable,
OnDelete), volumeClaimTemplates, persistentVolumeClaimRetentionPolicy, minReadySeconds and revisionHistoryLimit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shallop.controller import Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.children import Children, is_namespace_ending
from shallop.embedded.workloads.claiming import claim_pods
from shallop.embedded.workloads.pods import POD
from shallop.embedded.workloads.revisions import (
    CONTROLLER_REVISION,
    HASH,
    Revisions,
    keep_revisions,
    plan_truncation,
    template_of,
)
from shallop.embedded.workloads.selecting import Selectors
from shallop.embedded.workloads.statefulset_plan import (
    Step,
    is_condemned,
    ordinal_of,
    plan_statefulset,
    render_status,
)
from shallop.embedded.workloads.statuses import write_status
from shallop.errors import AlreadyExistsError, ApiError, ConflictError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    controller_of,
    is_deleting,
    key_of,
    labels_of,
    owner_reference,
)

__all__ = ["STATEFULSET", "StatefulSets", "plan_claim_owners", "render_claims", "render_pod"]

_CLAIM = Gvk("v1", "PersistentVolumeClaim")
# The label of StatefulSets' revisions; Pods carry the whole name of the revision instead.
_REVISION_HASH = "controller.kubernetes.io/hash"


def _claim_name(template: Mapping[str, Any], statefulset: str, ordinal: int) -> str:
    return f"{template['metadata']['name']}-{statefulset}-{ordinal}"


def render_claims(statefulset: Object, ordinal: int) -> list[Object]:
    """Return the claims that the Pod of an ordinal mounts."""
    metadata, spec = statefulset["metadata"], statefulset["spec"]
    claims = []
    for template in spec.get("volumeClaimTemplates") or ():
        rendered = {
            "name": _claim_name(template, metadata["name"], ordinal),
            "namespace": metadata["namespace"],
            "labels": {
                **(template["metadata"].get("labels") or {}),
                **((spec.get("selector") or {}).get("matchLabels") or {}),
            },
        }
        if template["metadata"].get("annotations"):
            rendered["annotations"] = template["metadata"]["annotations"]
        claims.append(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": rendered, "spec": template["spec"]}
        )
    return claims


def render_pod(statefulset: Object, template: Mapping[str, Any], ordinal: int, revision: str) -> Object:
    """Return the Pod of an ordinal, made of the template of ``revision``."""
    owner, spec = statefulset["metadata"], statefulset["spec"]
    name = f"{owner['name']}-{ordinal}"
    metadata = template.get("metadata") or {}
    rendered: dict[str, Any] = {
        "name": name,
        "generateName": f"{owner['name']}-",
        "namespace": owner["namespace"],
        "labels": {
            **(metadata.get("labels") or {}),
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": str(ordinal),
            HASH: revision,
        },
    }
    for key in ("annotations", "finalizers"):
        if metadata.get(key):
            rendered[key] = metadata[key]
    claims = [
        {
            "name": claim["metadata"]["name"],
            "persistentVolumeClaim": {"claimName": _claim_name(claim, owner["name"], ordinal)},
        }
        for claim in spec.get("volumeClaimTemplates") or ()
    ]
    taken = {claim["name"] for claim in claims}
    pod_spec = {**template["spec"], "hostname": name}
    if spec.get("serviceName"):
        pod_spec["subdomain"] = spec["serviceName"]
    if claims:
        others = [volume for volume in pod_spec.get("volumes") or () if volume["name"] not in taken]
        pod_spec["volumes"] = [*claims, *others]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": rendered, "spec": pod_spec}


def plan_claim_owners(
    statefulset: Object, claim: Object, pod: Object | None, *, condemned: bool
) -> list[dict[str, Any]] | None:
    """
    Decide who owns a claim, so that it goes with the StatefulSet or with a Pod that is scaled away.

    Returns:
        The owner references to set, None when they are right.
    """
    policy = statefulset["spec"].get("persistentVolumeClaimRetentionPolicy") or {}
    with_pod = policy.get("whenScaled") == "Delete" and condemned
    with_set = policy.get("whenDeleted") == "Delete" and not with_pod
    known = claim["metadata"].get("ownerReferences") or []
    uid, name = statefulset["metadata"]["uid"], statefulset["metadata"]["name"]

    def is_ours(reference: Mapping[str, Any]) -> bool:
        return bool(
            reference["uid"] == uid or (reference["kind"] == "Pod" and reference["name"].startswith(f"{name}-"))
        )

    wanted = [reference for reference in known if not is_ours(reference)]
    if with_set:
        wanted.append(owner_reference(statefulset))
    elif with_pod and pod is not None:
        wanted.append(owner_reference({"apiVersion": "v1", "kind": "Pod", **pod}))
    elif with_pod:
        return None
    return None if wanted == known else wanted


class StatefulSets:
    """The controller of StatefulSets."""

    def __init__(self) -> None:
        self._pods = Children(POD)
        self._selectors = Selectors()

    async def reconcile(self, ctx: Context, statefulset: Resource[dict[str, Any]]) -> Result:
        """Take the next steps and report where the StatefulSet stands; its Pods' changes bring it back here."""
        raw = statefulset.raw
        self._selectors.put(statefulset.key, statefulset.spec["selector"])
        if is_deleting(raw):
            return Result()
        collisions = int(statefulset.status.get("collisionCount") or 0)
        try:
            revisions = await keep_revisions(ctx, raw, _REVISION_HASH, collisions)
        except AlreadyExistsError:
            await ctx.client.patch_status(raw, {"collisionCount": collisions + 1})
            return Result()
        except ApiError as error:
            if is_namespace_ending(error):
                return Result()
            raise
        update = str(revisions.update["metadata"]["name"])
        pods = await claim_pods(ctx, self._pods, raw, lambda pod: ordinal_of(statefulset.name, pod) >= 0)
        plan = plan_statefulset(raw, pods, update, ctx.now())
        await _keep_claims(ctx, raw, pods)
        failure: ApiError | None = None
        try:
            for step in plan.create:
                await self._create(ctx, raw, step, revisions)
        except ApiError as error:
            failure = error
        for pod in plan.replace:
            text = f"StatefulSet {statefulset.key} is recreating failed Pod {pod['metadata']['name']}"
            ctx.events.record(raw, "RecreatingFailedPod", text, "Warning")
            await self._pods.delete(ctx, raw, pod)
        for pod in plan.delete:
            await self._pods.delete(ctx, raw, pod)
            text = f"delete Pod {pod['metadata']['name']} in StatefulSet {statefulset.name} successful"
            ctx.events.record(raw, "SuccessfulDelete", text)
        if plan.create or plan.delete or plan.replace:
            pods = await self._pods.of(ctx, raw)
        status = render_status(raw, pods, update, collisions, ctx.now())
        await write_status(ctx, raw, status)
        if failure and not is_namespace_ending(failure):
            raise failure
        await self._truncate(ctx, raw, revisions, pods, status)
        return Result(plan.requeue_after_s)

    async def on_gone(self, ctx: Context, key: Key) -> None:
        self._selectors.drop(key)

    def keys_of_orphan(self, pod: Object) -> list[Key]:
        """Return the StatefulSets that may adopt a Pod."""
        keys = self._selectors.matching(pod)
        return [key for key in keys if ordinal_of(key.name, pod) >= 0] if keys and not controller_of(pod) else []

    async def _create(self, ctx: Context, raw: Object, step: Step, revisions: Revisions) -> None:
        revision = revisions.named(step.revision) or revisions.update
        name = str(revision["metadata"]["name"])
        pod = render_pod(raw, template_of(revision), step.ordinal, name)
        pod_name, set_name = pod["metadata"]["name"], raw["metadata"]["name"]
        try:
            for claim in render_claims(raw, step.ordinal):
                await _ensure_claim(ctx, raw, claim, pod_name)
            created = await self._pods.ensure(ctx, raw, pod)
        except ApiError as error:
            if not is_namespace_ending(error) and not isinstance(error, _ClaimEndingError):
                text = f"create Pod {pod_name} in StatefulSet {set_name} failed error: {error}"
                ctx.events.record(raw, "FailedCreate", text, "Warning")
            raise
        if created:
            text = f"create Pod {pod_name} in StatefulSet {set_name} successful"
            ctx.events.record(raw, "SuccessfulCreate", text)

    async def _truncate(
        self, ctx: Context, raw: Object, revisions: Revisions, pods: list[Object], status: dict[str, Any]
    ) -> None:
        live = {labels_of(pod).get(HASH, "") for pod in pods} | {status["currentRevision"], status["updateRevision"]}
        for revision in plan_truncation(revisions, live, raw["spec"].get("revisionHistoryLimit", 10)):
            key = key_of(revision)
            uid = revision["metadata"]["uid"]
            await ctx.client.delete(CONTROLLER_REVISION, key.name, key.namespace, uid=uid)


class _ClaimEndingError(ConflictError):
    """The claim of a Pod is being deleted: the Pod has to wait for a new one."""


async def _ensure_claim(ctx: Context, raw: Object, claim: Object, pod_name: str) -> None:
    key = key_of(claim)
    known = ctx.cache(_CLAIM).get(key)
    if known and is_deleting(known):
        raise _ClaimEndingError(f"PersistentVolumeClaim {key} is being deleted")
    if known:
        return
    try:
        await ctx.client.create(claim)
    except AlreadyExistsError:
        return
    text = f"create Claim {key.name} Pod {pod_name} in StatefulSet {raw['metadata']['name']} success"
    ctx.events.record(raw, "SuccessfulCreate", text)


async def _keep_claims(ctx: Context, raw: Object, pods: list[Object]) -> None:
    """Give the claims of every Pod the owners that the retention policy wants, before a Pod is deleted."""
    if not raw["spec"].get("volumeClaimTemplates"):
        return
    name = raw["metadata"]["name"]
    for pod in pods:
        ordinal = ordinal_of(name, pod)
        for rendered in render_claims(raw, ordinal):
            claim = ctx.cache(_CLAIM).get(key_of(rendered))
            if claim is None or is_deleting(claim):
                continue
            condemned = is_condemned(raw["spec"], ordinal)
            references = plan_claim_owners(raw, claim, pod, condemned=condemned)
            if references is not None:
                key, metadata = key_of(claim), claim["metadata"]
                guard = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
                patch = {"metadata": {**guard, "ownerReferences": references or None}}
                await ctx.client.patch(_CLAIM, key.name, key.namespace, patch)


_CONTROLLER = StatefulSets()

STATEFULSET = Kind(
    api_version="apps/v1",
    kind="StatefulSet",
    plural="statefulsets",
    reconcile=_CONTROLLER.reconcile,
    on_gone=_CONTROLLER.on_gone,
    owns=(POD, CONTROLLER_REVISION),
    watches=(Watch(POD, _CONTROLLER.keys_of_orphan),),
    component="statefulset-controller",
)
