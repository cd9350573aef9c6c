"""
DaemonSet: one Pod on every node that takes it.

Honours selector, template (nodeSelector, node affinity and tolerations decide which nodes count), updateStrategy
(RollingUpdate with maxUnavailable and maxSurge, OnDelete), minReadySeconds and revisionHistoryLimit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from shallop.controller import Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.children import Children, is_namespace_ending
from shallop.embedded.workloads.claiming import claim_pods
from shallop.embedded.workloads.pods import POD, available_in_s, is_ready, is_terminal, phase_of
from shallop.embedded.workloads.replicaset import render_pod
from shallop.embedded.workloads.revisions import CONTROLLER_REVISION, HASH, keep_revisions, plan_truncation
from shallop.embedded.workloads.scheduler import place
from shallop.embedded.workloads.selecting import Selectors
from shallop.embedded.workloads.statuses import write_status
from shallop.errors import AlreadyExistsError, ApiError
from shallop.kube.objects import Gvk, Key, Object, annotations_of, controller_of, is_deleting, key_of, labels_of

__all__ = ["DAEMONSET", "DaemonSetPlan", "DaemonSets", "plan_daemonset", "render_daemon_pod", "render_status"]

_NODE = Gvk("v1", "Node")
_TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 900.0
_AFFINITY = "requiredDuringSchedulingIgnoredDuringExecution"
_TOLERATIONS = (
    *(("node.kubernetes.io/" + name, "NoExecute") for name in ("not-ready", "unreachable")),
    *(
        ("node.kubernetes.io/" + name, "NoSchedule")
        for name in ("disk-pressure", "memory-pressure", "pid-pressure", "unschedulable")
    ),
)


@dataclass
class DaemonSetPlan:
    """
    What a DaemonSet needs now.

    Args:
        create: names of nodes that get a Pod.
        delete: Pods that are in the wrong place, too many, ended or of an old revision.
        requeue_after_s: when time alone changes the answer.
    """

    create: list[str] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    requeue_after_s: float | None = None


def node_of(pod: Object) -> str:
    """Return the node that a daemon Pod runs on or is meant for."""
    if name := pod["spec"].get("nodeName"):
        return str(name)
    affinity = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(_AFFINITY) or {}
    for term in affinity.get("nodeSelectorTerms") or ():
        for requirement in term.get("matchFields") or ():
            if requirement["key"] == "metadata.name" and requirement.get("values"):
                return str(requirement["values"][0])
    return ""


def takes(daemonset: Object, node: Object) -> bool:
    """Say whether a node should run the daemon, whatever is free on it."""
    spec = _daemon_spec(daemonset["spec"]["template"]["spec"], node["metadata"]["name"])
    return bool(place({"spec": {**spec, "containers": [], "initContainers": []}}, [node], {}).node)


def _daemon_spec(spec: Mapping[str, Any], node: str) -> dict[str, Any]:
    known = {(t.get("key"), t.get("effect")) for t in spec.get("tolerations") or ()}
    added = [
        {"key": key, "operator": "Exists", "effect": effect}
        for key, effect in _TOLERATIONS
        if (key, effect) not in known
    ]
    field_ = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    affinity = dict(spec.get("affinity") or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    terms = (node_affinity.get(_AFFINITY) or {}).get("nodeSelectorTerms") or [{}]
    node_affinity[_AFFINITY] = {"nodeSelectorTerms": [{**term, **field_} for term in terms]}
    return {
        **spec,
        "affinity": {**affinity, "nodeAffinity": node_affinity},
        "tolerations": [*(spec.get("tolerations") or ()), *added],
    }


def render_daemon_pod(daemonset: Object, node: str, digest: str) -> Object:
    """Return the Pod for one node; the scheduler binds it to no other."""
    template = daemonset["spec"]["template"]
    pod = render_pod(daemonset, {**template, "spec": _daemon_spec(template["spec"], node)})
    pod["metadata"]["labels"] = {
        **(pod["metadata"].get("labels") or {}),
        HASH: digest,
        "pod-template-generation": annotations_of(daemonset).get(_TEMPLATE_GENERATION, "1"),
    }
    return pod


def plan_daemonset(
    daemonset: Object, pods: Sequence[Object], nodes: Sequence[Object], digest: str, now: datetime
) -> DaemonSetPlan:
    """
    Decide what a DaemonSet does next.

    Args:
        pods: all Pods that the DaemonSet controls.
        nodes: all nodes.
        digest: hash of its template.
    """
    spec = daemonset["spec"]
    plan = DaemonSetPlan()
    by_node = _by_node(pods)
    wanted = [str(node["metadata"]["name"]) for node in nodes if takes(daemonset, node)]
    for name, others in by_node.items():
        if name not in wanted:
            plan.delete += [pod for pod in others if not is_deleting(pod)]
    rolling = (spec.get("updateStrategy") or {}).get("rollingUpdate") or {}
    on_delete = (spec.get("updateStrategy") or {}).get("type") == "OnDelete"
    surge = 0 if on_delete else _resolve(rolling.get("maxSurge", 0), len(wanted))
    min_ready_s = spec.get("minReadySeconds") or 0
    old: list[Object] = []
    unavailable = surging = 0
    for name in wanted:
        here = [pod for pod in by_node.get(name, ()) if not is_deleting(pod)]
        plan.delete += [pod for pod in here if is_terminal(pod)]
        here = sorted((pod for pod in here if not is_terminal(pod)), key=_age)
        outdated = [pod for pod in here if labels_of(pod).get(HASH) != digest]
        current = [pod for pod in here if labels_of(pod).get(HASH) == digest]
        plan.delete += current[1:] + outdated[1:]
        available = any(available_in_s(pod, min_ready_s, now) == 0.0 for pod in here)
        if not here:
            if not by_node.get(name):
                plan.create.append(name)
            unavailable += 1
        elif current and outdated:
            surging += 1
            if available_in_s(current[0], min_ready_s, now) == 0.0:
                plan.delete.append(outdated[0])
        elif outdated and not available:
            # Serves nobody: it may go at once and lowers nothing.
            unavailable += 1
            old.insert(0, outdated[0])
        elif outdated:
            old.append(outdated[0])
        elif not available:
            unavailable += 1
    if old and not on_delete:
        _roll(plan, old, rolling, surge - surging, unavailable, len(wanted), min_ready_s, now)
    waits = [available_in_s(pod, min_ready_s, now) for pod in pods if not is_deleting(pod)]
    plan.requeue_after_s = min((wait for wait in waits if wait), default=None)
    return plan


def _by_node(pods: Iterable[Object]) -> dict[str, list[Object]]:
    result: dict[str, list[Object]] = {}
    for pod in pods:
        result.setdefault(node_of(pod), []).append(pod)
    return result


def _age(pod: Object) -> tuple[str, str]:
    return str(pod["metadata"]["creationTimestamp"]), str(pod["metadata"]["name"])


def _resolve(value: int | str, total: int) -> int:
    if isinstance(value, str):
        return math.ceil(int(value.rstrip("%")) * total / 100)
    return value


def _roll(
    plan: DaemonSetPlan,
    old: Sequence[Object],
    rolling: Mapping[str, Any],
    surge: int,
    unavailable: int,
    wanted: int,
    min_ready_s: int,
    now: datetime,
) -> None:
    """Replace Pods of old revisions within the bounds: by a second Pod beside them, or by ending them first."""
    if _resolve(rolling.get("maxSurge", 0), wanted):
        for pod in old[: max(0, surge)]:
            plan.create.append(node_of(pod))
        return
    budget = max(1, _resolve(rolling.get("maxUnavailable", 1), wanted)) - unavailable
    for pod in old:
        if available_in_s(pod, min_ready_s, now) != 0.0:
            plan.delete.append(pod)
        elif budget > 0:
            plan.delete.append(pod)
            budget -= 1


def render_status(
    daemonset: Object, pods: Sequence[Object], nodes: Sequence[Object], digest: str, collisions: int, now: datetime
) -> dict[str, Any]:
    """Count nodes into a DaemonSetStatus."""
    by_node = _by_node(pod for pod in pods if not is_deleting(pod))
    wanted = {str(node["metadata"]["name"]) for node in nodes if takes(daemonset, node)}
    min_ready_s = daemonset["spec"].get("minReadySeconds") or 0
    counts = dict.fromkeys(("currentNumberScheduled", "numberReady", "updatedNumberScheduled", "numberAvailable"), 0)
    for name in wanted:
        if not (here := by_node.get(name)):
            continue
        newest = max(here, key=lambda pod: (labels_of(pod).get(HASH) == digest, _age(pod)))
        counts["currentNumberScheduled"] += 1
        counts["updatedNumberScheduled"] += labels_of(newest).get(HASH) == digest
        counts["numberReady"] += any(is_ready(pod) for pod in here)
        counts["numberAvailable"] += any(available_in_s(pod, min_ready_s, now) == 0.0 for pod in here)
    status: dict[str, Any] = {
        "currentNumberScheduled": counts["currentNumberScheduled"],
        "numberMisscheduled": sum(name not in wanted for name in by_node),
        "desiredNumberScheduled": len(wanted),
        "numberReady": counts["numberReady"],
        "observedGeneration": daemonset["metadata"].get("generation", 1),
    }
    for key, count in (
        ("updatedNumberScheduled", counts["updatedNumberScheduled"]),
        ("numberAvailable", counts["numberAvailable"]),
        ("numberUnavailable", len(wanted) - counts["numberAvailable"]),
        ("collisionCount", collisions),
    ):
        if count:
            status[key] = count
    return status


class FailedPods:
    """
    How long a Pod that failed stays, before another one takes its place: longer each time it happens on a node.

    Source: kube-controller-manager, daemon set controller: from one second to 15 minutes.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Key, str], tuple[float, datetime]] = {}

    def wait_s(self, daemonset: Key, node: str, now: datetime) -> float:
        """Return in how many seconds the Pod may go; 0 counts as its end."""
        pause_s, until = self._known.get((daemonset, node), (0.0, now))
        if now < until:
            return (until - now).total_seconds()
        if now - until > timedelta(seconds=2 * _LONGEST_PAUSE_S):
            pause_s = 0.0
        pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s or _FIRST_PAUSE_S)
        self._known[daemonset, node] = (pause_s, now + timedelta(seconds=pause_s))
        return 0.0

    def forget(self, daemonset: Key) -> None:
        self._known = {place: known for place, known in self._known.items() if place[0] != daemonset}


class DaemonSets:
    """The controller of DaemonSets."""

    def __init__(self) -> None:
        self._pods = Children(POD)
        self._failed = FailedPods()
        self._selectors = Selectors()

    async def reconcile(self, ctx: Context, daemonset: Resource[dict[str, Any]]) -> Result:
        """Create and delete Pods as planned and report where the DaemonSet stands."""
        raw = daemonset.raw
        self._selectors.put(daemonset.key, daemonset.spec["selector"])
        if is_deleting(raw):
            return Result()
        collisions = int(daemonset.status.get("collisionCount") or 0)
        try:
            revisions = await keep_revisions(ctx, raw, HASH, collisions)
        except AlreadyExistsError:
            await ctx.client.patch_status(raw, {"collisionCount": collisions + 1})
            return Result()
        except ApiError as error:
            if is_namespace_ending(error):
                return Result()
            raise
        digest = labels_of(revisions.update)[HASH]
        nodes = ctx.cache(_NODE).list()
        pods = await claim_pods(ctx, self._pods, raw)
        plan = plan_daemonset(raw, pods, nodes, digest, ctx.now())
        look_again_s = [plan.requeue_after_s]
        for pod in plan.delete:
            if phase_of(pod) == "Failed":
                node = node_of(pod)
                if wait_s := self._failed.wait_s(daemonset.key, node, ctx.now()):
                    look_again_s.append(wait_s)
                    continue
                text = f"Found failed daemon pod {key_of(pod)} on node {node}, will try to kill it"
                ctx.events.record(raw, "FailedDaemonPod", text, "Warning")
            await self._pods.delete(ctx, raw, pod)
            ctx.events.record(raw, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")
        for node in plan.create:
            try:
                created = await self._pods.create(ctx, raw, render_daemon_pod(raw, node, digest))
            except ApiError as error:
                if is_namespace_ending(error):
                    return Result()
                ctx.events.record(raw, "FailedCreate", f"Error creating: {error}", "Warning")
                raise
            ctx.events.record(raw, "SuccessfulCreate", f"Created pod: {created['metadata']['name']}")
        if plan.create or plan.delete:
            pods = await self._pods.of(ctx, raw)
        await write_status(ctx, raw, render_status(raw, pods, nodes, digest, collisions, ctx.now()))
        live = {f"{daemonset.name}-{labels_of(pod).get(HASH, '')}" for pod in pods}
        for revision in plan_truncation(revisions, live, daemonset.spec.get("revisionHistoryLimit", 10)):
            key, uid = key_of(revision), revision["metadata"]["uid"]
            await ctx.client.delete(CONTROLLER_REVISION, key.name, key.namespace, uid=uid)
        return Result(min((wait for wait in look_again_s if wait), default=None))

    async def on_gone(self, ctx: Context, key: Key) -> None:
        self._selectors.drop(key)
        self._failed.forget(key)

    def keys_of_orphan(self, pod: Object) -> list[Key]:
        """Return the DaemonSets that may adopt a Pod."""
        keys = self._selectors.matching(pod)
        return [] if keys and controller_of(pod) else keys

    def keys_of_node(self, _node: Object) -> list[Key]:
        return self._selectors.keys()


_CONTROLLER = DaemonSets()

DAEMONSET = Kind(
    api_version="apps/v1",
    kind="DaemonSet",
    plural="daemonsets",
    reconcile=_CONTROLLER.reconcile,
    on_gone=_CONTROLLER.on_gone,
    owns=(POD, CONTROLLER_REVISION),
    watches=(Watch(POD, _CONTROLLER.keys_of_orphan), Watch(_NODE, _CONTROLLER.keys_of_node)),
    component="daemonset-controller",
)
