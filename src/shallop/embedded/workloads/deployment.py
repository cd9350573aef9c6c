"""
Deployment: rolls a template out through ReplicaSets.

Honours replicas, selector, template, strategy (RollingUpdate, Recreate), minReadySeconds, revisionHistoryLimit,
progressDeadlineSeconds and paused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from shallop.controller import Context, Kind, Resource, Result
from shallop.embedded.workloads.children import is_controlled_by
from shallop.embedded.workloads.pods import POD, is_terminal
from shallop.embedded.workloads.rollout import (
    Bounds,
    Replicas,
    bounds_of,
    plan_recreate,
    plan_rolling,
    plan_scaling,
)
from shallop.embedded.workloads.statuses import set_updated_condition, write_status
from shallop.errors import AlreadyExistsError
from shallop.kube.objects import (
    Gvk,
    Object,
    annotations_of,
    controller_of,
    find_condition,
    is_deleting,
    key_of,
    labels_of,
    owner_reference,
    parse_time,
)
from shallop.kube.selectors import match_selector

__all__ = [
    "DEPLOYMENT",
    "Family",
    "find_family",
    "next_revision",
    "plan_cleanup",
    "plan_conditions",
    "render_counts",
    "render_replicaset",
    "template_hash",
]

_REPLICASET = Gvk("apps/v1", "ReplicaSet")
_HASH_LABEL = "pod-template-hash"
_REVISION = "deployment.kubernetes.io/revision"
_REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
_DESIRED = "deployment.kubernetes.io/desired-replicas"
_MAX = "deployment.kubernetes.io/max-replicas"
_NOT_COPIED = frozenset(
    ("kubectl.kubernetes.io/last-applied-configuration", _REVISION, _REVISION_HISTORY, _DESIRED, _MAX)
)
# The alphabet of generated names: no vowels, no look-alikes.
_SAFE = "bcdfghjklmnpqrstvwxz2456789"


class Family(NamedTuple):
    """The ReplicaSets of a Deployment; ``old`` has the oldest first."""

    new: Object | None
    old: list[Object]

    @property
    def all(self) -> list[Object]:
        return [*([self.new] if self.new else []), *self.old]


def find_family(deployment: Object, replicasets: Sequence[Object]) -> Family:
    """Find the ReplicaSet of the current template; the oldest one when several have it."""
    ordered = sorted(replicasets, key=lambda rs: (rs["metadata"]["creationTimestamp"], rs["metadata"]["name"]))
    template = _comparable(deployment["spec"]["template"])
    new = next((rs for rs in ordered if _comparable(rs["spec"]["template"]) == template), None)
    return Family(new, [rs for rs in ordered if rs is not new])


def _comparable(template: Object) -> Object:
    metadata = {key: value for key, value in (template.get("metadata") or {}).items() if value is not None}
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != _HASH_LABEL}
    return {**template, "metadata": {**metadata, "labels": labels}}


def template_hash(template: Object, collisions: int = 0) -> str:
    """Return the short name of a template; ``collisions`` changes it when the name is taken by another one."""
    text = json.dumps(_comparable(template), sort_keys=True) + (str(collisions) if collisions else "")
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return "".join(_SAFE[ord(digit) % len(_SAFE)] for digit in str(digest))


def revision_of(obj: Object) -> int:
    text = annotations_of(obj).get(_REVISION, "0")
    return int(text) if text.isdigit() else 0


def next_revision(family: Family) -> int:
    """Return the revision of the current template: one more than any older ReplicaSet has."""
    newest_old = max((revision_of(rs) for rs in family.old), default=0)
    current = revision_of(family.new) if family.new else 0
    return current if current > newest_old else newest_old + 1


def render_annotations(deployment: Object, replicaset: Object | None, revision: int) -> dict[str, str]:
    """Return what the ReplicaSet of the current template carries: the Deployment's notes and its revision."""
    copied = {key: value for key, value in annotations_of(deployment).items() if key not in _NOT_COPIED}
    rendered = copied | {_REVISION: str(revision)}
    before = revision_of(replicaset) if replicaset else 0
    history = annotations_of(replicaset).get(_REVISION_HISTORY, "") if replicaset else ""
    if before and before != revision:
        history = f"{history},{before}" if history else str(before)
    return rendered | ({_REVISION_HISTORY: history} if history else {})


def render_scale_annotations(replicas: int, bounds: Bounds) -> dict[str, str]:
    return {_DESIRED: str(replicas), _MAX: str(replicas + bounds.surge if replicas else 0)}


def render_replicaset(deployment: Object, replicas: int, revision: int, collisions: int) -> Object:
    """Return the ReplicaSet of the current template."""
    spec = deployment["spec"]
    digest = template_hash(spec["template"], collisions)
    template = spec["template"]
    metadata = template.get("metadata") or {}
    labels = (metadata.get("labels") or {}) | {_HASH_LABEL: digest}
    selector = spec["selector"]
    bounds = bounds_of(spec["replicas"], spec.get("strategy") or {})
    rendered_spec: dict[str, Any] = {
        "replicas": replicas,
        "selector": {**selector, "matchLabels": (selector.get("matchLabels") or {}) | {_HASH_LABEL: digest}},
        "template": {**template, "metadata": {**metadata, "labels": labels}},
    }
    if spec.get("minReadySeconds"):
        rendered_spec["minReadySeconds"] = spec["minReadySeconds"]
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{deployment['metadata']['name']}-{digest}",
            "namespace": deployment["metadata"]["namespace"],
            "labels": labels,
            "annotations": render_annotations(deployment, None, revision)
            | render_scale_annotations(spec["replicas"], bounds),
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": rendered_spec,
    }


def render_counts(deployment: Object, family: Family) -> dict[str, Any]:
    """Sum the ReplicaSets' counts into a DeploymentStatus without its conditions."""
    wanted = sum(rs["spec"].get("replicas", 1) for rs in family.all)
    available = _count(family.all, "availableReplicas")
    counts = {
        "replicas": _count(family.all, "replicas"),
        "updatedReplicas": _count([family.new] if family.new else [], "replicas"),
        "readyReplicas": _count(family.all, "readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, wanted - available),
    }
    status: dict[str, Any] = {"observedGeneration": deployment["metadata"].get("generation", 1)}
    status |= {name: count for name, count in counts.items() if count}
    status["terminatingReplicas"] = _count(family.all, "terminatingReplicas")
    return status


def _count(replicasets: Sequence[Object], name: str) -> int:
    return sum(int((rs.get("status") or {}).get(name) or 0) for rs in replicasets)


def plan_conditions(
    deployment: Object, family: Family, counts: Mapping[str, Any], now: datetime
) -> tuple[list[dict[str, Any]], float | None]:
    """
    Decide Available, Progressing and ReplicaFailure.

    Args:
        counts: what ``render_counts`` gave.

    Returns:
        The conditions, and seconds until the progress deadline when one runs.
    """
    spec = deployment["spec"]
    replicas = spec.get("replicas", 1)
    before = deployment.get("status") or {}
    conditions = list(before.get("conditions") or ())
    least = replicas - bounds_of(replicas, spec.get("strategy") or {}).unavailable
    enough = counts.get("availableReplicas", 0) >= least
    conditions = set_updated_condition(
        conditions,
        "Available",
        "True" if enough else "False",
        "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        now,
    )
    progress, wait = _plan_progress(deployment, family, counts, now)
    if progress:
        conditions = set_updated_condition(conditions, "Progressing", *progress, now)
        if progress[1] == "ReplicaSetUpdated" and _moved(before, counts):
            # Every step forward restarts the deadline, which counts from lastUpdateTime.
            conditions = _touched(conditions, now)
    failure = next((c for rs in family.all if (c := find_condition(rs, "ReplicaFailure"))), None)
    if failure:
        text = failure.get("message", "")
        conditions = set_updated_condition(conditions, "ReplicaFailure", "True", failure["reason"], text, now)
    else:
        conditions = [condition for condition in conditions if condition["type"] != "ReplicaFailure"]
    return conditions, wait


def _plan_progress(
    deployment: Object, family: Family, counts: Mapping[str, Any], now: datetime
) -> tuple[tuple[str, str, str] | None, float | None]:
    spec = deployment["spec"]
    before = find_condition(deployment, "Progressing")
    reason = (before or {}).get("reason", "")
    deadline_s = spec.get("progressDeadlineSeconds")
    if spec.get("paused"):
        if deadline_s is None or reason == "ProgressDeadlineExceeded":
            return None, None
        return ("Unknown", "DeploymentPaused", "Deployment is paused"), None
    who = f'ReplicaSet "{family.new["metadata"]["name"]}"' if family.new else "Deployment"
    if _is_complete(deployment, counts):
        return ("True", "NewReplicaSetAvailable", f"{who} has successfully progressed."), None
    if reason == "NewReplicaSetAvailable" and counts.get("replicas", 0) == counts.get("updatedReplicas", 0):
        if family.new is None or who not in str((before or {}).get("message", "")):
            return ("True", "ReplicaSetUpdated", f"{who} is progressing."), deadline_s
        # A Pod lost after the rollout was complete is not a rollout.
        return None, None
    if deadline_s is None:
        return None, None
    if before is None or reason == "DeploymentPaused" or _moved(deployment.get("status") or {}, counts):
        return ("True", "ReplicaSetUpdated", f"{who} is progressing."), deadline_s
    if reason == "ProgressDeadlineExceeded":
        return None, None
    updated = before.get("lastUpdateTime") or before.get("lastTransitionTime")
    left = (parse_time(updated) + timedelta(seconds=deadline_s) - now).total_seconds() if updated else deadline_s
    if left <= 0:
        return ("False", "ProgressDeadlineExceeded", f"{who} has timed out progressing."), None
    return ("True", "ReplicaSetUpdated", f"{who} is progressing."), left


def _is_complete(deployment: Object, counts: Mapping[str, Any]) -> bool:
    replicas = deployment["spec"].get("replicas", 1)
    return all(counts.get(name, 0) == replicas for name in ("updatedReplicas", "replicas", "availableReplicas"))


def _moved(before: Mapping[str, Any], counts: Mapping[str, Any]) -> bool:
    def old_replicas(status: Mapping[str, Any]) -> int:
        return int(status.get("replicas", 0)) - int(status.get("updatedReplicas", 0))

    grew = ("updatedReplicas", "readyReplicas", "availableReplicas")
    return any(counts.get(name, 0) > before.get(name, 0) for name in grew) or (
        old_replicas(counts) < old_replicas(before)
    )


def _touched(conditions: list[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [{**c, "lastUpdateTime": stamp} if c["type"] == "Progressing" else c for c in conditions]


def plan_cleanup(family: Family, limit: int) -> list[Object]:
    """Return the old ReplicaSets beyond the history limit that have no Pods, lowest revisions first."""
    empty = [
        rs
        for rs in family.old
        if not rs["spec"].get("replicas") and not (rs.get("status") or {}).get("replicas") and not is_deleting(rs)
    ]
    surplus = len(empty) - limit
    return sorted(empty, key=revision_of)[:surplus] if surplus > 0 else []


def view_of(replicaset: Object, alive: int = 0) -> Replicas:
    """Read what a rollout needs to know about a ReplicaSet."""
    limit = annotations_of(replicaset).get(_MAX, "")
    return Replicas(
        replicaset["metadata"]["name"],
        int(replicaset["spec"].get("replicas", 1)),
        int((replicaset.get("status") or {}).get("availableReplicas") or 0),
        int(limit) if limit.isdigit() else 0,
        alive,
    )


def is_scaling(deployment: Object, family: Family) -> bool:
    """Say whether ``spec.replicas`` changed since the ReplicaSets were last scaled."""
    wanted = str(deployment["spec"].get("replicas", 1))
    return any(annotations_of(rs).get(_DESIRED, wanted) != wanted for rs in family.all if rs["spec"].get("replicas"))


async def reconcile(ctx: Context, deployment: Resource[dict[str, Any]]) -> Result:
    """Take one step of the rollout and report where it stands; the ReplicaSets' changes bring it back here."""
    raw = deployment.raw
    family = find_family(raw, await _owned_replicasets(ctx, raw))
    collisions = (raw.get("status") or {}).get("collisionCount")
    if not is_deleting(raw):
        try:
            family = await _step(ctx, raw, family, collisions or 0)
        except _CollisionError:
            await ctx.client.patch_status(raw, {"collisionCount": (collisions or 0) + 1})
            return Result()
    counts = render_counts(raw, family)
    if collisions:
        counts["collisionCount"] = collisions
    conditions, wait_s = plan_conditions(raw, family, counts, ctx.now())
    await write_status(ctx, raw, {**counts, "conditions": conditions})
    return Result(wait_s)


class _CollisionError(Exception):
    """The name of the new ReplicaSet is taken by one with another template."""


async def _owned_replicasets(ctx: Context, raw: Object) -> list[Object]:
    """Return our ReplicaSets and adopt those that match and are nobody's."""
    uid = raw["metadata"]["uid"]
    owned = [rs for rs in ctx.cache(_REPLICASET).by_owner(uid) if is_controlled_by(rs, uid)]
    if is_deleting(raw):
        return owned
    for rs in ctx.cache(_REPLICASET).list(raw["metadata"]["namespace"]):
        if not controller_of(rs) and not is_deleting(rs) and match_selector(raw["spec"]["selector"], labels_of(rs)):
            references = [*(rs["metadata"].get("ownerReferences") or ()), owner_reference(raw)]
            owned.append(await _patch(ctx, rs, {"metadata": {"ownerReferences": references}}))
    return owned


async def _step(ctx: Context, raw: Object, family: Family, collisions: int) -> Family:
    spec = raw["spec"]
    replicas = spec.get("replicas", 1)
    strategy = spec.get("strategy") or {}
    bounds = bounds_of(replicas, strategy)
    recreate = strategy.get("type") == "Recreate"
    old = [view_of(rs, _alive(ctx, rs)) for rs in family.old]
    if not spec.get("paused"):
        if family.new is None and not (recreate and plan_recreate(replicas, None, old) != {}):
            total = sum(member.wanted for member in old)
            first = replicas if recreate else max(0, min(replicas, replicas + bounds.surge - total))
            created = await _create(ctx, raw, family, first, collisions)
            family = Family(created, family.old)
        family = await _annotate(ctx, raw, family)
    new = view_of(family.new) if family.new else None
    if spec.get("paused") or is_scaling(raw, family):
        changes: dict[str, int] | None = plan_scaling(replicas, bounds, new, old)
    elif recreate:
        changes = plan_recreate(replicas, new, old)
    else:
        changes = plan_rolling(replicas, bounds, new, old) if new else {}
    family = await _scale(ctx, raw, family, changes or {}, bounds)
    if not spec.get("paused") and _is_complete(raw, render_counts(raw, family)):
        limit = spec.get("revisionHistoryLimit", 10)
        for rs in plan_cleanup(family, limit):
            key = key_of(rs)
            await ctx.client.delete(_REPLICASET, key.name, key.namespace, uid=rs["metadata"]["uid"])
    return family


def _alive(ctx: Context, rs: Object) -> int:
    return sum(not is_terminal(pod) for pod in ctx.cache(POD).by_owner(rs["metadata"]["uid"]))


async def _create(ctx: Context, raw: Object, family: Family, replicas: int, collisions: int) -> Object:
    rendered = render_replicaset(raw, replicas, next_revision(family), collisions)
    try:
        created = await ctx.client.create(rendered)
    except AlreadyExistsError:
        found = await ctx.client.get(_REPLICASET, rendered["metadata"]["name"], rendered["metadata"]["namespace"])
        same = _comparable(found["spec"]["template"]) == _comparable(raw["spec"]["template"])
        if same and is_controlled_by(found, raw["metadata"]["uid"]):
            # Ours, made a moment ago: the cache does not show it yet.
            return found
        raise _CollisionError from None
    if replicas:
        _record_scaling(ctx, raw, created, 0, replicas)
    return created


def _record_scaling(ctx: Context, raw: Object, rs: Object, before: int, after: int) -> None:
    direction = "up" if after > before else "down"
    text = f"Scaled {direction} replica set {rs['metadata']['name']} from {before} to {after}"
    ctx.events.record(raw, "ScalingReplicaSet", text)


async def _annotate(ctx: Context, raw: Object, family: Family) -> Family:
    """Keep the revision on both, and the Deployment's annotations on its current ReplicaSet."""
    if family.new is None:
        return family
    revision = next_revision(family)
    wanted = render_annotations(raw, family.new, revision)
    known = annotations_of(family.new)
    if any(known.get(key) != value for key, value in wanted.items()):
        family = Family(await _patch(ctx, family.new, {"metadata": {"annotations": wanted}}), family.old)
    if annotations_of(raw).get(_REVISION) != str(revision):
        key = key_of(raw)
        patch = {"metadata": {"annotations": {_REVISION: str(revision)}}}
        await ctx.client.patch(Gvk("apps/v1", "Deployment"), key.name, key.namespace, patch)
    return family


async def _scale(ctx: Context, raw: Object, family: Family, changes: Mapping[str, int], bounds: Bounds) -> Family:
    notes = render_scale_annotations(raw["spec"].get("replicas", 1), bounds)
    result = []
    for rs in family.all:
        before = rs["spec"].get("replicas", 1)
        after = changes.get(rs["metadata"]["name"], before)
        stale = any(annotations_of(rs).get(key) != value for key, value in notes.items())
        if after != before or (stale and (before or rs is family.new)):
            patch: dict[str, Any] = {"metadata": {"annotations": notes}}
            if after != before:
                patch["spec"] = {"replicas": after}
            rs = await _patch(ctx, rs, patch)
            if after != before:
                _record_scaling(ctx, raw, rs, before, after)
        result.append(rs)
    return Family(result[0], result[1:]) if family.new else Family(None, result)


async def _patch(ctx: Context, rs: Object, patch: dict[str, Any]) -> Object:
    # The version makes a decision from a stale picture fail; the queue then tries again with a fresh one.
    key = key_of(rs)
    metadata = {**patch.get("metadata", {}), "resourceVersion": rs["metadata"]["resourceVersion"]}
    return await ctx.client.patch(_REPLICASET, key.name, key.namespace, {**patch, "metadata": metadata})


DEPLOYMENT = Kind(
    api_version="apps/v1",
    kind="Deployment",
    plural="deployments",
    reconcile=reconcile,
    owns=(_REPLICASET,),
    component="deployment-controller",
)
