"""
The scheduler: gives every Pod a node.

Honours requests (cpu, memory, ephemeral-storage, Pods per node, extended resources such as nvidia.com/gpu),
nodeSelector, the required terms of node affinity and of affinity between Pods, taints and tolerations, claims that
must exist, schedulingGates, spec.unschedulable of nodes, and priorities: who waits is served by priority, and Pods of a
lower one are ended where that makes room. Pods of a PodGroup get their nodes together or none; a waiting group holds
nothing, so that two of which each half fits never block each other, and others are ended for it only where that makes
room for all that must start. A hostPort is given once; topologySpreadConstraints that must hold do. Preferred terms
have no effect: there is one node. Nothing is promised twice: a node that overcommits its CPU says so in
``status.allocatable``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from shallop.controller import Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.hostports import host_ports_of, is_host_port, offered_host_ports
from shallop.embedded.workloads.podaffinity import affinity_problem, has_pod_terms, keeps_others_away
from shallop.embedded.workloads.podgroup import GANG_SCHEDULERS, POD_GROUPS, Gang, gang_of, lacking_in_all, members_of
from shallop.embedded.workloads.pods import POD, is_terminal, requests_of
from shallop.embedded.workloads.preemption import Candidate, choose_victims
from shallop.embedded.workloads.topologyspread import has_spread, spread_problem
from shallop.errors import ConflictError, NotFoundError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    find_condition,
    is_deleting,
    key_of,
    labels_of,
    parse_quantity,
    parse_time,
    set_condition,
)

__all__ = ["PLACING", "SCHEDULER", "Placement", "Scheduler", "place"]

_NODE = Gvk("v1", "Node")
_CLAIM = Gvk("v1", "PersistentVolumeClaim")
_NAME = "default-scheduler"
_DEFAULT_PODS = Decimal(110)
# Members of a group are created one after the other; only who misses some after this says so.
_GATHERING_S = 2.0
_ZERO = Decimal(0)

Amounts = Mapping[str, Decimal]


class Placement(NamedTuple):
    """The chosen node, or an empty name and why no node will do."""

    node: str
    message: str = ""


def place(
    pod: Object, nodes: Sequence[Object], usage: Mapping[str, Amounts], placed: Sequence[Object] = ()
) -> Placement:
    """
    Choose a node for a Pod: of those that fit the one with the most free memory, by name where equal.

    Args:
        usage: node name -> what its Pods take, including ``pods``, their number.
        placed: the Pods that affinity between Pods looks at.
    """
    if not nodes:
        return Placement("", "no nodes available to schedule pods")
    requests = needs_of(pod)
    fitting: list[tuple[Decimal, str]] = []
    reasons: Counter[str] = Counter()
    for node in nodes:
        name = node["metadata"]["name"]
        used = usage.get(name, {})
        free = {
            resource: amount - used.get(resource, _ZERO)
            for resource, amount in _offered(node, {*requests, "memory"}).items()
        }
        refused = _refusals(pod, node, requests, free)
        if not refused and has_spread(pod) and (problem := _spread_problem(pod, node, nodes, placed)):
            refused = [problem]
        company = placed or has_pod_terms(pod)
        if not refused and company and (problem := affinity_problem(pod, node, nodes, placed)):
            refused = [problem]
        if refused:
            reasons.update(refused)
        else:
            fitting.append((-free.get("memory", _ZERO), name))
    if fitting:
        return Placement(min(fitting)[1])
    why = ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))
    return Placement("", f"0/{len(nodes)} nodes are available: {why}.")


def needs_of(pod: Object) -> dict[str, Decimal]:
    """Return all that a Pod takes of its node: what it requests, its place, and ports of the machine."""
    return {**requests_of(pod), "pods": Decimal(1), **host_ports_of(pod)}


def _spread_problem(pod: Object, node: Object, nodes: Sequence[Object], placed: Sequence[Object]) -> str:
    def tolerated(other: Object) -> bool:
        taints = (other.get("spec") or {}).get("taints") or ()
        return all(_tolerates(pod["spec"], taint) for taint in taints if taint["effect"] != "PreferNoSchedule")

    return spread_problem(
        pod, node, nodes, placed, affine=lambda other: _affine(pod["spec"], other), tolerated=tolerated
    )


def _allocatable(node: Object) -> dict[str, Decimal]:
    return {"pods": _DEFAULT_PODS, **{name: parse_quantity(text) for name, text in _listed(node).items()}}


def _listed(node: Object) -> Object:
    status = node.get("status") or {}
    return status.get("allocatable") or status.get("capacity") or {}


def _offered(node: Object, names: Iterable[str]) -> dict[str, Decimal]:
    """Return what a node has of these."""
    listed = _listed(node)
    amounts = {name: parse_quantity(listed[name]) for name in names if name in listed}
    return {"pods": _DEFAULT_PODS, **amounts, **offered_host_ports(names)}


def _refusals(pod: Object, node: Object, requests: Amounts, free: Amounts) -> list[str]:
    """Say why a node cannot take a Pod, in the words of kube-scheduler; the first failing check ends it as there."""
    spec = pod["spec"]
    if (node.get("spec") or {}).get("unschedulable") and not _tolerates(
        spec, {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    ):
        return ["node(s) were unschedulable"]
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint["effect"] in ("NoSchedule", "NoExecute") and not _tolerates(spec, taint):
            return ["node(s) had untolerated taint(s)"]
    if not _affine(spec, node):
        return ["node(s) didn't match Pod's node affinity/selector"]
    lacking = [name for name, amount in requests.items() if amount > 0 and amount > free.get(name, _ZERO)]
    if any(is_host_port(name) for name in lacking):
        return ["node(s) didn't have free ports for the requested pod ports"]
    return ["Too many pods" if name == "pods" else f"Insufficient {name}" for name in lacking]


def _tolerates(spec: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    for toleration in spec.get("tolerations") or ():
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        exists = toleration.get("operator", "Equal") == "Exists"
        if not toleration.get("key"):
            if exists:
                return True
        elif toleration["key"] == taint["key"] and (exists or toleration.get("value", "") == taint.get("value", "")):
            return True
    return False


def _affine(spec: Mapping[str, Any], node: Object) -> bool:
    labels = labels_of(node)
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if not affinity:
        return True
    return any(_matches_term(term, node) for term in affinity.get("nodeSelectorTerms") or ())


def _matches_term(term: Mapping[str, Any], node: Object) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    labels, by_field = labels_of(node), {"metadata.name": node["metadata"]["name"]}
    return all(_holds(e, labels.get(e["key"])) for e in expressions) and all(
        _holds(e, by_field.get(e["key"])) for e in fields
    )


def _holds(expression: Mapping[str, Any], value: str | None) -> bool:
    operator: str = expression["operator"]
    values: list[str] = expression.get("values") or []
    if operator in ("Exists", "DoesNotExist"):
        return (value is not None) == (operator == "Exists")
    if operator in ("In", "NotIn"):
        return (value in values) == (operator == "In")
    try:
        number, bound = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return number > bound if operator == "Gt" else number < bound


def lacking_resources(pod: Object, node: Object, used: Amounts) -> dict[str, Decimal] | None:
    """Return how much of what a node lacks for a Pod; None when nobody's end would make it fit."""
    requests = needs_of(pod)
    allocatable = _allocatable(node) | offered_host_ports(requests)
    if _refusals(pod, node, requests, requests):
        return None
    if any(amount > allocatable.get(name, _ZERO) for name, amount in requests.items()):
        return None
    left = {name: amount + used.get(name, _ZERO) - allocatable[name] for name, amount in requests.items() if amount > 0}
    return {name: amount for name, amount in left.items() if amount > 0}


def priority_of(pod: Object) -> int:
    return int(pod["spec"].get("priority") or 0)


def _claims_of(pod: Object) -> list[str]:
    volumes = pod["spec"].get("volumes") or ()
    return [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if volume.get("persistentVolumeClaim")]


def signature_of(pod: Object, *, labelled: bool = False) -> str:
    """
    Return a text that is equal for Pods that fit on exactly the same nodes and are equally important.

    Args:
        labelled: whether other Pods keep away some by their labels.
    """
    spec = pod["spec"]
    own: list[Any] = []
    if labelled or has_pod_terms(pod) or has_spread(pod) or _claims_of(pod):
        own = [pod["metadata"].get("namespace"), labels_of(pod), _claims_of(pod)]
    requests = sorted((name, str(amount.normalize())) for name, amount in needs_of(pod).items())
    decisive = [
        requests,
        spec.get("nodeSelector"),
        spec.get("affinity"),
        spec.get("topologySpreadConstraints"),
        spec.get("tolerations"),
        priority_of(pod),
        own,
    ]
    return json.dumps(decisive, sort_keys=True)


class _Taken(NamedTuple):
    uid: str
    node: str
    amounts: dict[str, Decimal]
    priority: int


class Scheduler:
    """
    The controller of unplaced Pods: one worker, so that two Pods never get the same GPU.

    It keeps its own books of what is taken, because the cache shows a placement only a moment after it was made. Pods
    that do not fit wait in groups that fit alike, so that 10,000 waiting Pods cost no more than one when something
    is freed: the first of a group that still does not fit speaks for the rest.
    """

    def __init__(self) -> None:
        self._taken: dict[Key, _Taken] = {}
        self._usage: dict[str, dict[str, Decimal]] = {}
        self._waiting: dict[str, dict[Key, None]] = {}
        self._groups: dict[Key, str] = {}
        self._aloof: set[Key] = set()
        self._priorities: dict[str, int] = {}
        self._books: object | None = None
        self._context: Context | None = None
        # Pods that got their node as they were created, and their uids.
        self._offered: dict[Key, str] = {}
        self._has_freed = False

    async def reconcile(self, ctx: Context, resource: Resource[dict[str, Any]]) -> Result:
        """Account for a placed Pod, or place it; then place who waited for what became free."""
        self._open_books(ctx)
        look_again_s = await self._settle(ctx, resource.raw)
        await self._serve_waiting(ctx)
        return Result(look_again_s)

    def offer(self, pod: Object) -> str:
        """
        Return the node for a Pod that one of us is about to create, and note it as taken.

        Empty before the first Pod of all, and for who needs more than room: a claim, company or distance, a gate, a
        PodGroup, another scheduler. Who waits is served first.
        """
        ctx, spec = self._context, pod["spec"]
        if ctx is None or self._waiting or self._aloof or spec.get("nodeName") or spec.get("schedulingGates"):
            return ""
        if spec.get("schedulerName", _NAME) != _NAME or gang_of(pod) is not None:
            return ""
        if _claims_of(pod) or has_pod_terms(pod) or has_spread(pod):
            return ""
        node = place(pod, ctx.cache(_NODE).list(), self._usage).node
        if node:
            self._take(pod, node)
            self._offered[key_of(pod)] = pod["metadata"]["uid"]
        return node

    def withdraw(self, pod: Object) -> None:
        """Forget an offer: the Pod was not stored."""
        self._offered.pop(key_of(pod), None)
        self._release(key_of(pod))

    async def on_gone(self, ctx: Context, key: Key) -> None:
        self._offered.pop(key, None)
        self._release(key)
        self._stop_waiting(key)
        await self._serve_waiting(ctx)

    def keys_to_wake(self, _: Object) -> Iterable[Key]:
        """Return the first waiting Pod of each group when a node, a claim or a PodGroup changes."""
        return [next(iter(group)) for group in self._waiting.values()]

    async def _settle(self, ctx: Context, pod: Object) -> float | None:
        """Place a Pod if that is due; returns after how many seconds it has to be looked at again by itself."""
        key, spec = key_of(pod), pod["spec"]
        if spec.get("nodeName") or is_terminal(pod):
            self._account(pod)
            self._stop_waiting(key)
            if self._offered.get(key) == pod["metadata"]["uid"]:
                del self._offered[key]
                _tell_placed(ctx, pod, spec["nodeName"])
            return None
        taken = self._taken.get(key)
        if taken and taken.uid == pod["metadata"]["uid"]:
            # Placed by us a moment ago.
            return None
        gang = gang_of(pod)
        scheduler = spec.get("schedulerName", _NAME)
        if is_deleting(pod):
            self._stop_waiting(key)
        elif scheduler != _NAME and (gang is None or scheduler not in GANG_SCHEDULERS):
            if not find_condition(pod, "PodScheduled"):
                text = f'spec.schedulerName: "{scheduler}" does not run here; use "{_NAME}" or leave it out'
                ctx.events.record(pod, "FailedScheduling", text, "Warning")
        elif spec.get("schedulingGates"):
            await _report(ctx, pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates")
        elif gang is not None:
            return await self._place_gang(ctx, pod, gang)
        else:
            await self._place(ctx, pod)
        return None

    async def _serve_waiting(self, ctx: Context) -> None:
        if self._has_freed:
            for signature in sorted(self._waiting, key=lambda name: -self._priorities[name]):
                for key in list(self._waiting.get(signature, ())):
                    pod = ctx.cache(POD).get(key)
                    if pod is None:
                        self._stop_waiting(key)
                        continue
                    await self._settle(ctx, pod)
                    if key in self._groups:
                        break
            self._has_freed = False

    async def _place(self, ctx: Context, pod: Object) -> None:
        nodes = ctx.cache(_NODE).list()
        placement = self._choose(ctx, pod, nodes)
        if not placement.node:
            self._wait(pod, signature_of(pod, labelled=bool(self._aloof)))
            await _report(ctx, pod, "Unschedulable", placement.message)
            await self._make_room(ctx, pod, nodes)
            return
        self._take(pod, placement.node)
        await self._bind_taken(ctx, pod, placement.node)

    async def _bind_taken(self, ctx: Context, pod: Object, node: str) -> None:
        """Make known that a Pod has what the books say it has."""
        key = key_of(pod)
        try:
            await self._bind(ctx, pod, node)
        except (ConflictError, NotFoundError):
            # Placed by somebody else or deleted meanwhile: its next event tells.
            self._release(key)
        except BaseException:
            self._release(key)
            raise
        if key in self._groups:
            self._stop_waiting(key)
            self._has_freed = True
        # A Pod that waits for company may have waited for this one.
        self._has_freed = self._has_freed or any('"topologyKey"' in signature for signature in self._waiting)

    async def _place_gang(self, ctx: Context, pod: Object, gang: Gang) -> float | None:
        """Place all members that wait, or none of them; those beyond ``minMember`` as they fit."""
        signature = f"PodGroup {gang.gvk.api_version} {gang.key}"
        self._wait(pod, signature)
        group = ctx.cache(gang.gvk).get(gang.key)
        members = members_of(gang, ctx.cache(POD).list(gang.key.namespace))
        waiting = [member for member in members if self._is_waiting(member)]
        least = int(group["spec"].get("minMember") or 0) if group else 0
        if group is None or len(members) < least:
            left_s = _GATHERING_S - (ctx.now() - parse_time(pod["metadata"]["creationTimestamp"])).total_seconds()
            if left_s > 0:
                return left_s
            text = f"starts {least} Pods together; {len(members)} are there" if group else "is not there"
            await _report(ctx, pod, "Unschedulable", f"PodGroup {gang.key} {text}")
            return None
        freed, nodes = self._has_freed, ctx.cache(_NODE).list()
        placed = len(members) - len(waiting)
        message = "" if placed else self._lacking(group, nodes)
        chosen: list[tuple[Object, str]] = []
        for member in [] if message else waiting:
            placement = self._choose(ctx, member, nodes)
            if placement.node:
                self._take(member, placement.node)
                chosen.append((member, placement.node))
            else:
                message = placement.message
        if placed + len(chosen) < least:
            for member, _ in chosen:
                self._release(key_of(member))
            chosen, self._has_freed = [], freed
            message += f" PodGroup {gang.key} starts {least} Pods together or none."
        for member, node in chosen:
            await self._bind_taken(ctx, member, node)
        done = {key_of(member) for member, _ in chosen}
        for member in waiting:
            if key_of(member) not in done:
                self._wait(member, signature)
                await _report(ctx, member, "Unschedulable", message)
        if waiting and placed + len(chosen) < least:
            needed = waiting[: least - placed]
            await self._make_room_for_all(ctx, needed if placed else [*needed, *_reserve(group, needed)], nodes)
        return None

    def _is_waiting(self, pod: Object) -> bool:
        taken = self._taken.get(key_of(pod))
        is_ours = taken is not None and taken.uid == pod["metadata"]["uid"]
        spec = pod["spec"]
        return not (is_ours or spec.get("nodeName") or spec.get("schedulingGates") or is_terminal(pod))

    def _lacking(self, group: Object, nodes: Sequence[Object]) -> str:
        wanted = group["spec"].get("minResources") or {}
        names = lacking_in_all(wanted, map(_allocatable, nodes), self._usage.values())
        return f"Insufficient {', '.join(names)} for minResources." if names else ""

    def _wait(self, pod: Object, signature: str) -> None:
        key = key_of(pod)
        if self._groups.get(key) != signature:
            self._stop_waiting(key)
        self._groups[key] = signature
        self._priorities[signature] = priority_of(pod)
        self._waiting.setdefault(signature, {})[key] = None

    def _choose(self, ctx: Context, pod: Object, nodes: Sequence[Object]) -> Placement:
        for name in _claims_of(pod):
            if ctx.cache(_CLAIM).get(Key(key_of(pod).namespace, name)) is None:
                text = f'persistentvolumeclaim "{name}" not found'
                return Placement("", f"0/{len(nodes)} nodes are available: {text}.")
        placed: Sequence[Object] = ()
        if self._aloof or has_pod_terms(pod) or has_spread(pod):
            keys = self._taken if has_pod_terms(pod) or has_spread(pod) else self._aloof
            # The cache shows a placement a moment late.
            found = [(key, ctx.cache(POD).get(key)) for key in keys]
            placed = [_on(other, self._taken[key].node) for key, other in found if other is not None]
        return place(pod, nodes, self._usage, placed)

    async def _make_room(self, ctx: Context, pod: Object, nodes: Sequence[Object]) -> None:
        """End Pods of lower priority where that lets a Pod run."""
        priority = priority_of(pod)
        if pod["spec"].get("preemptionPolicy") == "Never" or _claims_missing(ctx, pod):
            return
        for node in nodes:
            name = node["metadata"]["name"]
            lacking = lacking_resources(pod, node, self._usage.get(name, {}))
            if not lacking:
                continue
            taken = [(key, taken) for key, taken in self._taken.items() if taken.node == name]
            lower = [Candidate(key, t.priority, t.amounts) for key, t in taken if t.priority < priority]
            victims = choose_victims(lacking, priority, lower)
            if victims and not self._is_making_room(ctx, lower):
                await self._preempt(ctx, pod, name, [key for key, _ in taken if key in set(victims)])
                return

    async def _make_room_for_all(self, ctx: Context, pods: Sequence[Object], nodes: Sequence[Object]) -> None:
        """End Pods of lower priority where that lets all of a group run, on one node or several; else nobody."""
        priority = min(map(priority_of, pods))
        if any(pod["spec"].get("preemptionPolicy") == "Never" or _claims_missing(ctx, pod) for pod in pods):
            return
        if any(has_pod_terms(pod) or has_spread(pod) for pod in pods):
            return  # whether they fit depends on who is where; nobody is ended on a guess
        lower = {key: taken for key, taken in self._taken.items() if taken.priority < priority}
        if not lower:
            return
        usage, left = {name: dict(amounts) for name, amounts in self._usage.items()}, dict(lower)
        for pod in pods:
            name = place(pod, nodes, usage).node or _make_room_for_one(pod, nodes, usage, left)
            if not name:
                return
            _add(usage.setdefault(name, {}), needs_of(pod))
        candidates = [Candidate(key, taken.priority, taken.amounts) for key, taken in lower.items()]
        victims = [key for key in lower if key not in left]
        if victims and not self._is_making_room(ctx, candidates):
            for node in {lower[key].node for key in victims}:
                await self._preempt(ctx, pods[0], node, [key for key in victims if lower[key].node == node])

    def _is_making_room(self, ctx: Context, lower: Sequence[Candidate]) -> bool:
        pods = (ctx.cache(POD).get(candidate.key) for candidate in lower if isinstance(candidate.key, Key))
        return any(pod is not None and is_deleting(pod) for pod in pods)

    async def _preempt(self, ctx: Context, pod: Object, node: str, victims: Sequence[Key]) -> None:
        for key in victims:
            victim = ctx.cache(POD).get(key)
            if victim is None:
                continue
            text = f"Preempted by pod {pod['metadata']['uid']} on node {node}"
            ctx.events.record(victim, "Preempted", text)
            conditions = list((victim.get("status") or {}).get("conditions") or ())
            why = f"default-scheduler: preempting to accommodate a higher priority pod {key_of(pod)}"
            conditions = set_condition(conditions, "DisruptionTarget", "True", "PreemptionByScheduler", why, ctx.now())
            try:
                await ctx.client.patch_status(victim, {"conditions": conditions})
                await ctx.client.delete(POD, key.name, key.namespace, uid=victim["metadata"]["uid"])
            except (ConflictError, NotFoundError):
                continue  # gone or changed meanwhile: the next try sees it

    async def _bind(self, ctx: Context, pod: Object, node: str) -> None:
        key = key_of(pod)
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod["metadata"]["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await ctx.client.create_subresource(POD, key.name, key.namespace, "binding", binding)
        _tell_placed(ctx, pod, node)

    def _open_books(self, ctx: Context) -> None:
        store = ctx.cache(POD)
        if self._books is store:
            return
        self._books, self._context = store, ctx
        self._taken, self._usage, self._waiting, self._groups = {}, {}, {}, {}
        self._aloof, self._priorities, self._offered = set(), {}, {}
        for pod in store.list():
            self._account(pod)

    def _account(self, pod: Object) -> None:
        node = pod["spec"].get("nodeName")
        key = key_of(pod)
        if not node or is_terminal(pod):
            self._release(key)
        else:
            self._take(pod, node)

    def _take(self, pod: Object, node: str) -> None:
        key, uid = key_of(pod), pod["metadata"]["uid"]
        known = self._taken.get(key)
        if known and (known.uid, known.node) == (uid, node):
            return
        self._release(key)
        amounts = needs_of(pod)
        self._taken[key] = _Taken(uid, node, amounts, priority_of(pod))
        if keeps_others_away(pod):
            self._aloof.add(key)
        usage = self._usage.setdefault(node, {})
        for name, amount in amounts.items():
            usage[name] = usage.get(name, _ZERO) + amount

    def _release(self, key: Key) -> None:
        taken = self._taken.pop(key, None)
        self._aloof.discard(key)
        if taken:
            usage = self._usage[taken.node]
            for name, amount in taken.amounts.items():
                usage[name] -= amount
            self._has_freed = True

    def _stop_waiting(self, key: Key) -> None:
        signature = self._groups.pop(key, None)
        if signature is not None:
            group = self._waiting[signature]
            group.pop(key, None)
            if not group:
                del self._waiting[signature], self._priorities[signature]


def _make_room_for_one(
    pod: Object, nodes: Sequence[Object], usage: dict[str, dict[str, Decimal]], lower: dict[Key, _Taken]
) -> str:
    """
    Take Pods away until another one fits on some node; returns that node, empty when nothing helps.

    Args:
        usage: what is taken on each node; what victims took is subtracted.
        lower: Pods that may go; victims are removed.
    """
    for node in nodes:
        name = str(node["metadata"]["name"])
        lacking = lacking_resources(pod, node, usage.get(name, {}))
        here = [Candidate(key, taken.priority, taken.amounts) for key, taken in lower.items() if taken.node == name]
        # Whoever is in ``lower`` gives way to the whole group, whose Pods may differ in priority.
        victims = choose_victims(lacking, priority_of(pod), here) if lacking else None
        for key in victims or ():
            assert isinstance(key, Key)
            _add(usage[name], lower.pop(key).amounts, sign=-1)
        if victims:
            return name
    return ""


def _reserve(group: Object, members: Sequence[Object]) -> list[Object]:
    """Return a Pod that stands for what ``minResources`` keeps for later, none when the members take it all."""
    left = {name: parse_quantity(amount) for name, amount in (group["spec"].get("minResources") or {}).items()}
    for member in members:
        _add(left, {name: amount for name, amount in needs_of(member).items() if name in left}, sign=-1)
    requests = {name: f"{amount.normalize():f}" for name, amount in left.items() if amount > 0}
    if not requests:
        return []
    spec = {**members[0]["spec"], "containers": [{"name": "reserve", "resources": {"requests": requests}}]}
    return [{**members[0], "spec": {**spec, "initContainers": [], "volumes": []}}]


def _add(total: dict[str, Decimal], amounts: Amounts, *, sign: int = 1) -> None:
    for name, amount in amounts.items():
        total[name] = total.get(name, _ZERO) + sign * amount


def _on(pod: Object, node: str) -> Object:
    return pod if pod["spec"].get("nodeName") else {**pod, "spec": {**pod["spec"], "nodeName": node}}


def _claims_missing(ctx: Context, pod: Object) -> bool:
    namespace = key_of(pod).namespace
    return any(ctx.cache(_CLAIM).get(Key(namespace, name)) is None for name in _claims_of(pod))


def _tell_placed(ctx: Context, pod: Object, node: str) -> None:
    ctx.events.record(pod, "Scheduled", f"Successfully assigned {key_of(pod)} to {node}")


async def _report(ctx: Context, pod: Object, reason: str, message: str) -> None:
    known = find_condition(pod, "PodScheduled") or {}
    if (known.get("reason"), known.get("message")) == (reason, message):
        return
    conditions = list((pod.get("status") or {}).get("conditions") or ())
    conditions = set_condition(conditions, "PodScheduled", "False", reason, message, ctx.now())
    try:
        await ctx.client.patch_status(pod, {"conditions": conditions})
    except (ConflictError, NotFoundError):
        return
    if reason == "Unschedulable":
        ctx.events.record(pod, "FailedScheduling", message, "Warning")


# The API server of this process asks it, too.
PLACING = Scheduler()

SCHEDULER = Kind(
    api_version="v1",
    kind="Pod",
    plural="pods",
    reconcile=PLACING.reconcile,
    on_gone=PLACING.on_gone,
    watches=tuple(Watch(gvk, PLACING.keys_to_wake) for gvk in (_NODE, _CLAIM, *(kind.gvk for kind in POD_GROUPS))),
    workers=1,
    component="default-scheduler",
)
