"""
HorizontalPodAutoscaler: scales a Deployment, ReplicaSet, StatefulSet or any kind with a scale subresource.

Honours minReplicas, maxReplicas, behavior (windows, policies, selectPolicy) and metrics of the types Resource and
ContainerResource, read from ``metrics.k8s.io``. Metrics of the types Pods, Object and External have no source here:
the condition ScalingActive says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from shallop.controller import Context, Kind, Resource, Result
from shallop.embedded.workloads.hpa_plan import History, Proposal, limit_replicas, propose, usage_of
from shallop.embedded.workloads.pods import POD
from shallop.embedded.workloads.statuses import write_status
from shallop.errors import ApiError, NotFoundError
from shallop.kube.objects import Gvk, Key, Object, format_time, is_deleting, set_condition

__all__ = ["HORIZONTALPODAUTOSCALER", "Autoscalers"]

_METRICS = Gvk("metrics.k8s.io/v1beta1", "PodMetrics")
# As kube-controller-manager's --horizontal-pod-autoscaler-sync-period.
_PERIOD_S = 15
_REMEMBERED_S = 1800


class _Failure(NamedTuple):
    reason: str
    message: str


@dataclass
class _Memory:
    """What is known of one autoscaler beside its object."""

    uid: str
    history: History = field(default_factory=History)
    spec: Mapping[str, Any] | None = None
    looked_at: datetime | None = None


class Autoscalers:
    """The controller of autoscalers."""

    def __init__(self) -> None:
        self._memories: dict[Key, _Memory] = {}

    async def reconcile(self, ctx: Context, autoscaler: Resource[dict[str, Any]]) -> Result:
        """Compare what the Pods use with the targets and scale; looks again every 15 s."""
        if is_deleting(autoscaler.raw):
            return Result()
        uid = str(autoscaler.raw["metadata"]["uid"])
        memory = self._memories.get(autoscaler.key)
        if memory is None or memory.uid != uid:
            memory = self._memories[autoscaler.key] = _Memory(uid)
        if memory.looked_at is not None and memory.spec == autoscaler.spec:
            left_s = _PERIOD_S - (ctx.now() - memory.looked_at).total_seconds()
            if left_s > 0:
                # Woken by our own report.
                return Result(left_s)
        await self._look(ctx, autoscaler, memory.history)
        memory.spec, memory.looked_at = autoscaler.spec, ctx.now()
        return Result(_PERIOD_S)

    async def _look(self, ctx: Context, autoscaler: Resource[dict[str, Any]], history: History) -> None:
        raw, spec = autoscaler.raw, autoscaler.spec
        try:
            scale = await self._scale(ctx, autoscaler, None)
        except ApiError as error:
            text = f"the HPA controller was unable to get the target's current scale: {error}"
            await self._report(ctx, raw, {}, ("AbleToScale", "False", "FailedGetScale", text))
            ctx.events.record(raw, "FailedGetScale", str(error), "Warning")
            return
        current = int((scale.get("spec") or {}).get("replicas") or 0)
        selector = str((scale.get("status") or {}).get("selector") or "")
        status: dict[str, Any] = {"currentReplicas": int((scale.get("status") or {}).get("replicas") or 0)}
        able = (
            "AbleToScale",
            "True",
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale",
        )
        if current == 0 and spec.get("minReplicas") != 0:
            text = "scaling is disabled since the replica count of the target is zero"
            status["desiredReplicas"] = 0
            await self._report(ctx, raw, status, able, ("ScalingActive", "False", "ScalingDisabled", text))
            return
        proposals, failures = await _measure(ctx, autoscaler.namespace, spec.get("metrics") or (), selector, current)
        for failure in failures:
            ctx.events.record(raw, failure.reason, failure.message, "Warning")
        wanted = max((proposal.replicas for _, proposal in proposals), default=current)
        if not proposals or (failures and wanted < current):
            # What cannot be measured must not take Pods away.
            first = failures[0] if failures else _Failure("NoMetrics", "spec.metrics is empty")
            text = f"the HPA was unable to compute the replica count: {first.message}"
            await self._report(
                ctx,
                raw,
                status | {"desiredReplicas": (raw.get("status") or {}).get("desiredReplicas", 0)},
                able,
                ("ScalingActive", "False", first.reason, text),
            )
            return
        await self._decide(ctx, autoscaler, current, wanted, proposals, status, history)

    async def _decide(
        self,
        ctx: Context,
        autoscaler: Resource[dict[str, Any]],
        current: int,
        wanted: int,
        proposals: Sequence[tuple[Mapping[str, Any], Proposal]],
        status: dict[str, Any],
        history: History,
    ) -> None:
        raw, now = autoscaler.raw, ctx.now()
        limited = limit_replicas(autoscaler.spec, current, wanted, history, now)
        decisive = max((proposal for _, proposal in proposals), key=lambda proposal: proposal.replicas)
        text = f"the HPA was able to successfully calculate a replica count from {decisive.text}"
        able = ("AbleToScale", "True", "ReadyForNewScale", "recommended size matches current size")
        if limited.stabilized:
            kind = "higher" if limited.stabilized == "ScaleDownStabilized" else "lower"
            kept = "highest" if kind == "higher" else "lowest"
            stable = f"recent recommendations were {kind} than current one, applying the {kept} recent recommendation"
            able = ("AbleToScale", "True", limited.stabilized, stable)
        if limited.replicas != current:
            await self._scale(ctx, autoscaler, limited.replicas)
            history.changes = [
                change for change in history.changes if change[0] > now - timedelta(seconds=_REMEMBERED_S)
            ] + [(now, limited.replicas - current)]
            done = f"the HPA controller was able to update the target scale to {limited.replicas}"
            able = ("AbleToScale", "True", "SucceededRescale", done)
            direction = "above" if limited.replicas > current else "below"
            why = f"{decisive.text} {direction} target"
            if direction == "below":
                why = "All metrics below target"
            ctx.events.record(raw, "SuccessfulRescale", f"New size: {limited.replicas}; reason: {why}")
            status["lastScaleTime"] = format_time(now)
        status |= {
            "desiredReplicas": limited.replicas,
            "currentMetrics": [_current_metric(metric, proposal) for metric, proposal in proposals],
        }
        active = ("ScalingActive", "True", "ValidMetricFound", text)
        await self._report(ctx, raw, status, able, active, ("ScalingLimited", *limited.limited))

    async def on_gone(self, ctx: Context, key: Key) -> None:
        self._memories.pop(key, None)

    async def _scale(self, ctx: Context, autoscaler: Resource[dict[str, Any]], replicas: int | None) -> Object:
        """Return the target's Scale, after setting its replicas; a patch that changes nothing reads it."""
        target = autoscaler.spec["scaleTargetRef"]
        gvk = Gvk(target.get("apiVersion") or "v1", target["kind"])
        patch = {} if replicas is None else {"spec": {"replicas": replicas}}
        return await ctx.client.patch(gvk, target["name"], autoscaler.namespace, patch, subresource="scale")

    async def _report(
        self, ctx: Context, raw: Object, status: dict[str, Any], *conditions: tuple[str, str, str, str]
    ) -> None:
        before = raw.get("status") or {}
        listed = list(before.get("conditions") or ())
        for type_, value, reason, message in conditions:
            listed = set_condition(listed, type_, value, reason, message, ctx.now())
        kept = {key: before[key] for key in ("lastScaleTime",) if key in before}
        observed = raw["metadata"].get("generation")
        status = {"desiredReplicas": 0, **kept, **status, "conditions": listed}
        await write_status(ctx, raw, status | ({"observedGeneration": observed} if observed else {}))


async def _measure(
    ctx: Context, namespace: str, metrics: Sequence[Mapping[str, Any]], selector: str, replicas: int
) -> tuple[list[tuple[Mapping[str, Any], Proposal]], list[_Failure]]:
    proposals: list[tuple[Mapping[str, Any], Proposal]] = []
    failures: list[_Failure] = []
    pods: list[Object] | None = None
    measured: dict[str, Object] = {}
    for metric in metrics:
        source = metric.get("resource") or metric.get("containerResource")
        if source is None:
            reason = f"FailedGet{metric['type']}Metric"
            failures.append(_Failure(reason, f"metrics of type {metric['type']} have no source here; use Resource"))
            continue
        reason = "FailedGetResourceMetric" if metric.get("resource") else "FailedGetContainerResourceMetric"
        name = source["name"]
        try:
            if pods is None:
                pods = (await ctx.client.list(POD, namespace, label_selector=selector)).items
                listing = await ctx.client.list(_METRICS, namespace, label_selector=selector)
                measured = {item["metadata"]["name"]: item for item in listing.items}
            usage = usage_of(pods, measured, name, source.get("container", ""))
            proposals.append((metric, propose(source["target"], usage, replicas, name)))
        except NotFoundError:
            text = f"unable to get metrics for resource {name}: this server has no metrics.k8s.io"
            failures.append(_Failure(reason, f"failed to get {name} utilization: {text}"))
        except (ApiError, ValueError) as error:
            failures.append(_Failure(reason, f"failed to get {name} utilization: {error}"))
    return proposals, failures


def _current_metric(metric: Mapping[str, Any], proposal: Proposal) -> dict[str, Any]:
    key = "resource" if metric.get("resource") else "containerResource"
    source = metric[key]
    named = {name: source[name] for name in ("name", "container") if name in source}
    return {"type": metric["type"], key: {**named, "current": proposal.current}}


_CONTROLLER = Autoscalers()

HORIZONTALPODAUTOSCALER = Kind(
    api_version="autoscaling/v2",
    kind="HorizontalPodAutoscaler",
    plural="horizontalpodautoscalers",
    reconcile=_CONTROLLER.reconcile,
    on_gone=_CONTROLLER.on_gone,
    component="horizontal-pod-autoscaler",
)
