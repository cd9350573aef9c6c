"""Reads the Prometheus endpoint of a trial's Pods."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import aiohttp

from shallop.kube.objects import Object
from shallop.tuning.collect import Collected
from shallop.tuning.metrics import parse_exposition, to_microseconds
from shallop.tuning.observation import metric_names

__all__ = ["scrape"]

_TIMEOUT = aiohttp.ClientTimeout(total=2)


async def scrape(trial: Object, pods: Sequence[Object], now: datetime) -> list[Collected]:
    """Return what running Pods show now; a Pod that does not answer yet, or any more, gives nothing."""
    spec = trial["spec"]
    get = spec["metricsCollector"]["source"]["httpGet"]
    names = metric_names(spec["objective"])
    found = []
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        for pod in pods:
            status = pod.get("status") or {}
            if status.get("phase") != "Running" or not status.get("podIP"):
                continue
            url = f"http://{status['podIP']}:{get['port']}{get['path']}"
            try:
                async with session.get(url) as response:
                    text = await response.text() if response.status == 200 else ""
            except (aiohttp.ClientError, TimeoutError):
                continue
            reports = parse_exposition(text, names, to_microseconds(now))
            found.append(Collected(f"scrape/{pod['metadata']['uid']}", reports))
    return found
