"""
PodAutoscaler: scales one revision by the requests that the gateway sees, to zero and back.

Honoured: ``scaleTargetRef`` to a Deployment, ``containerConcurrency``, ``reachability`` and the annotations
``autoscaling.knative.dev/*`` of class ``kpa``, see ``autoscaling.parse_policy``. The Service of the same name is the
one whose requests count.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from shallop.controller import Column, Informer, Kind
from shallop.controller.informer import Change
from shallop.errors import ApiError
from shallop.gateway.autoscaling import Policy, Scaler, parse_policy
from shallop.gateway.load import Load
from shallop.gateway.proxy import Gateway
from shallop.gateway.routes import ServiceKey
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Key, Object

__all__ = ["DEPLOYMENT", "POD_AUTOSCALER", "Autoscaler"]

log = logging.getLogger(__name__)
DEPLOYMENT = Gvk("apps/v1", "Deployment")
_TICK_S = 2.0
_STRING = {"type": "string"}

POD_AUTOSCALER = Kind(
    api_version="autoscaling.internal.knative.dev/v1alpha1",
    kind="PodAutoscaler",
    plural="podautoscalers",
    short_names=("kpa", "pa"),
    categories=("knative-internal", "autoscaling"),
    schema={
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["scaleTargetRef"],
                "properties": {
                    "scaleTargetRef": {
                        "type": "object",
                        "properties": {"apiVersion": _STRING, "kind": _STRING, "name": _STRING},
                    },
                    "containerConcurrency": {"type": "integer", "format": "int64", "minimum": 0},
                    "protocolType": _STRING,
                    "reachability": {"type": "string", "enum": ["", "Reachable", "Unreachable"]},
                },
            },
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    },
    columns=(
        Column("DesiredScale", "integer", ".status.desiredScale"),
        Column("ActualScale", "integer", ".status.actualScale"),
        Column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status"),
        Column("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason"),
    ),
)


class _Scaled:
    """One PodAutoscaler with its history."""

    def __init__(self, autoscaler: Object, now: float) -> None:
        self.object = autoscaler
        self.policy: Policy = parse_policy(autoscaler)
        self.scaler = Scaler(now)
        self.sampled = now
        self.shown: tuple[int, int] | None = None

    def replace(self, autoscaler: Object) -> None:
        self.object, self.policy = autoscaler, parse_policy(autoscaler)


class Autoscaler:
    """Samples the gateway's loads and scales Deployments; at once when a request waits, else every two seconds."""

    def __init__(self, client: Client, gateway: Gateway) -> None:
        self.autoscalers = Informer(client, POD_AUTOSCALER.gvk)
        self.deployments = Informer(client, DEPLOYMENT)
        self._client = client
        self._gateway = gateway
        self._scaled: dict[ServiceKey, _Scaled] = {}
        self._wake = asyncio.Event()
        gateway.wake = self._wake.set
        self.autoscalers.add_handler(self._changed)

    def _changed(self, change: Change) -> None:
        metadata = (change.new or change.old or {})["metadata"]
        key, now = (metadata["namespace"], metadata["name"]), asyncio.get_running_loop().time()
        table = self._gateway.table
        if change.new is None:
            self._scaled.pop(key, None)
            self._gateway.loads.pop(key, None)
            table.scalable.discard(key)
            return
        known = self._scaled.get(key)
        if known:
            known.replace(change.new)
        else:
            self._scaled[key] = _Scaled(change.new, now)
        load = self._gateway.loads.setdefault(key, Load(now))
        load.limit = int((change.new.get("spec") or {}).get("containerConcurrency") or 0)
        table.scalable.add(key)
        if known is None:
            self._wake.set()

    async def run(self) -> None:
        await self.autoscalers.synced.wait()
        await self.deployments.synced.wait()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()
            self._wake.clear()
            for key, scaled in list(self._scaled.items()):
                try:
                    await self._scale(key, scaled, asyncio.get_running_loop().time())
                except ApiError as error:
                    # The next tick tries again with what is then true.
                    log.warning("PodAutoscaler %s/%s: not scaled: %s", *key, error)

    async def _scale(self, key: ServiceKey, scaled: _Scaled, now: float) -> None:
        target = (scaled.object.get("spec") or {}).get("scaleTargetRef") or {}
        deployment = self.deployments.store.get(Key(key[0], target.get("name", "")))
        load = self._gateway.loads.get(key)
        if deployment is None or load is None:
            return
        current, ready = int(deployment["spec"].get("replicas", 1)), len(self._gateway.table.endpoints.get(key, ()))
        seconds = now - scaled.sampled
        if seconds > 0:
            area, requests = load.sample(now)
            scaled.sampled = now
            if current or requests or area:
                scaled.scaler.record(now, requests if scaled.policy.metric == "rps" else area, seconds)
        wanted = scaled.scaler.decide(now, scaled.policy, current=current, ready=ready, waiting=load.inflight)
        if wanted != current:
            await self._client.patch(DEPLOYMENT, target["name"], key[0], {"spec": {"replicas": wanted}})
        if scaled.shown != (wanted, ready):
            await self._client.patch_status(scaled.object, _status(wanted, ready))
            scaled.shown = (wanted, ready)


def _status(wanted: int, ready: int) -> dict[str, Any]:
    if ready:
        active = {"status": "True"}
    elif wanted:
        active = {"status": "Unknown", "reason": "Queued", "message": "Requests wait for a Pod to start."}
    else:
        active = {"status": "False", "reason": "NoTraffic", "message": "The target is not receiving traffic."}
    conditions = [{"type": type_, **active} for type_ in ("Active", "Ready")]
    return {"desiredScale": wanted, "actualScale": ready, "conditions": conditions}
