"""
Predictions at half of the peak for minutes, while a canary is ramped up, Pods are killed and the service is scaled.

Run: ``.venv/bin/python benchmarks/soak.py [SECONDS]``, by default 600; ``soak.py 40`` is a short one. Counts answers
that were no predictions and how the control plane's memory grew. Linux only.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from footprint import pss_mib
from instance import running, wait_until, write
from load import content_length, measure
from serving import BODY, MODEL, Instance, answers, service

from shallop.kube.objects import Gvk
from shallop.kube.remote import RemoteClient, load_kubeconfig

NAME, CONNECTIONS = "soak", 8
ISVC, POD = Gvk("serving.kserve.io/v1beta1", "InferenceService"), Gvk("v1", "Pod")
PATH = f"/serving/default/{NAME}/v1/models/{NAME}:predict"


async def ask(gateway: str, per_s: float, until: float, seen: Counter[str]) -> None:
    """Send predictions over one connection, ``per_s`` a second, until a time of the loop's clock."""
    parts = urlsplit(gateway)
    head = f"POST {PATH} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    loop = asyncio.get_running_loop()
    due = loop.time()
    while due < until:
        writer.write(head + BODY)
        try:
            said = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(content_length(said))
            good = said.startswith(b"HTTP/1.1 200") and b"predictions" in body
            seen["good" if good else f"failed: {said.split(b' ', 1)[1][:3].decode()} {body[:100].decode()}"] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            seen[f"failed: {error!r}"] += 1
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        due = max(due + 1 / per_s, loop.time() - 1)
        await asyncio.sleep(max(0.0, due - loop.time()))
    writer.close()


async def disturb(client: RemoteClient, folder: str, until: float, done: Counter[str]) -> None:
    """Ramp a canary up and promote it, kill a Pod, scale up and down; again and again."""
    loop, version = asyncio.get_running_loop(), 0

    async def patch(**predictor: Any) -> None:
        await client.patch(ISVC, NAME, "default", {"spec": {"predictor": predictor}})

    while loop.time() < until:
        version += 1
        env = [{"name": "VERSION", "value": str(version)}]
        for percent in (10, 50, None):
            await patch(canaryTrafficPercent=percent, model={"env": env})
            done["steps of a canary"] += 1
            await asyncio.sleep(3)
        await patch(minReplicas=2)
        await asyncio.sleep(3)
        pods = (await client.list(POD, "default")).items
        victim = random.choice(pods)["metadata"]["name"]
        await client.delete(POD, victim, "default", grace_period_s=0)
        done["kills"] += 1
        await asyncio.sleep(2)
        await patch(minReplicas=1)
        done["changes of scale"] += 2
        await asyncio.sleep(2)


async def watch_memory(pid: int, until: float, seconds: float, samples: list[float]) -> None:
    """Take the memory of the control plane at the quarters of the time."""
    loop = asyncio.get_running_loop()
    for left in (0.75, 0.5, 0.25, 0.0):
        await asyncio.sleep(until - left * seconds - loop.time())
        samples.append(pss_mib(pid))


async def soak(instance: Instance, seconds: float) -> list[dict[str, Any]]:
    peak = await measure(instance.gateway + PATH, BODY, CONNECTIONS, 3)
    before, begun = pss_mib(instance.pid), time.perf_counter()
    until = asyncio.get_running_loop().time() + seconds
    seen, done, samples = Counter[str](), Counter[str](), list[float]()
    async with RemoteClient(load_kubeconfig(str(instance.home / "kubeconfig"))) as client, asyncio.TaskGroup() as tasks:
        tasks.create_task(disturb(client, instance.folder, until, done))
        tasks.create_task(watch_memory(instance.pid, until, seconds, samples))
        for _ in range(CONNECTIONS):
            tasks.create_task(ask(instance.gateway, peak["per_s"] / 2 / CONNECTIONS, until, seen))
    elapsed = time.perf_counter() - begun
    good = seen.pop("good", 0)
    for what, count in seen.items():
        print(f"{count} x {what}", file=sys.stderr)
    return [
        {"what": "seconds", "value": round(elapsed)},
        {"what": "predictions per second", "value": round(good / elapsed)},
        {"what": "failed requests", "value": seen.total()},
        *({"what": what, "value": count} for what, count in done.items()),
        *(
            {"what": f"growth of the control plane, quarter {number} (MiB)", "value": round(after - since, 1)}
            for number, (since, after) in enumerate(pairwise([before, *samples]), 1)
        ),
    ]


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder, running() as status:
        (Path(folder) / "model.joblib").write_bytes(MODEL.read_bytes())
        instance = Instance(status, folder)
        instance.apply(service(NAME, folder))
        wait_until(lambda: answers(instance, NAME), "the first prediction", 300)
        rows = uvloop.run(soak(instance, seconds))
    write("soak", rows)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 600.0)
