"""
How a whole instance behaves with many objects, watchers, Pods, and a large namespace to delete.

Run: ``python benchmarks/scale.py [objects] [watchers] [namespace] [controllers] [burst] [pods] [--kubeconfig FILE]``;
without names all of them. With a kubeconfig the same load goes to that cluster, whose memory and CPU are then not
measured. Results, one row per point of a curve, are in ``results/scale.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from instance import cpu_s, processes_of, running, write

from shallop.kube.kubeconfig import load_kubeconfig

OBJECTS = (1000, 2000, 5000, 10_000)
WATCHERS = (10, 100, 500, 1000)
NAMESPACES = (250, 500, 1000, 2000)
PODS = (100, 250, 500)
CONTROLLED = (200, 400, 800)
BURST = 50
WRITES = 50
_PAYLOAD = "x" * 1300
_TIMEOUT = aiohttp.ClientTimeout(total=300)

Row = dict[str, Any]


class Target:
    """The API under load, and its process where it is ours."""

    def __init__(self, kubeconfig: str, pid: int = 0, home: Path | None = None) -> None:
        self.access = load_kubeconfig(kubeconfig)
        self.pid = pid
        self.home = home
        self.session: aiohttp.ClientSession | None = None
        self.ssl: Any = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Target]:
        login = await self.access.credentials.login()
        headers = {"Authorization": login.authorization, "Content-Type": "application/json"}
        connector = aiohttp.TCPConnector(ssl=login.ssl or True, limit=0)
        async with aiohttp.ClientSession(headers=headers, connector=connector, read_bufsize=2**20) as self.session:
            yield self

    async def send(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        assert self.session is not None
        async with self.session.request(
            method, self.access.server + path, json=body, params=query, timeout=_TIMEOUT
        ) as answer:
            value = await answer.json()
            assert answer.status < 300, value
            return value

    async def read(self, path: str, **query: str) -> tuple[float, int]:
        """GET without decoding: seconds and bytes."""
        assert self.session is not None
        begun = time.perf_counter()
        async with self.session.get(self.access.server + path, params=query, timeout=_TIMEOUT) as answer:
            size = len(await answer.read())
            assert answer.status == 200
        return time.perf_counter() - begun, size

    def rss_mib(self) -> float | None:
        if not self.pid:
            return None
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return round(pages * resource.getpagesize() / 2**20, 1)

    def cpu_s(self) -> float:
        return cpu_s(self.pid) if self.pid else 0.0


def config_map(name: str, **labels: str) -> Any:
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"payload": _PAYLOAD}}


async def gather(count: int, at_once: int, call: Callable[[int], Awaitable[Any]]) -> float:
    """Call with 0 .. count - 1, some at once; returns seconds."""
    begun, numbers = time.perf_counter(), iter(range(count))

    async def work() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.perf_counter() - begun


async def until(check: Callable[[], Awaitable[bool]], timeout_s: float = 600.0) -> float:
    begun = time.perf_counter()
    while not await check():
        assert time.perf_counter() - begun < timeout_s, "not reached"
        await asyncio.sleep(0.1)
    return time.perf_counter() - begun


async def namespaced(target: Target, name: str) -> str:
    await target.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return f"/api/v1/namespaces/{name}"


async def drop(target: Target, name: str) -> float:
    """Delete a namespace and wait until it is gone; seconds."""
    begun = time.perf_counter()
    await target.send("DELETE", f"/api/v1/namespaces/{name}")

    async def gone() -> bool:
        items = (await target.send("GET", "/api/v1/namespaces"))["items"]
        return name not in {item["metadata"]["name"] for item in items}

    await until(gone)
    return time.perf_counter() - begun


def _ms(samples: list[float]) -> Row:
    ordered = sorted(samples)
    p99 = ordered[max(0, int(len(ordered) * 0.99) - 1)]
    return {"p50_ms": round(statistics.median(ordered) * 1000, 2), "p99_ms": round(p99 * 1000, 2)}


async def objects(target: Target) -> list[Row]:
    """Memory and latency of lists as objects become more."""
    rows: list[Row] = []
    paths = [await namespaced(target, f"objects-{number}") for number in range(20)]
    before, stored = target.rss_mib(), 0
    for count in OBJECTS:

        async def create(number: int, first: int = stored) -> None:
            await target.send("POST", f"{paths[number % 20]}/configmaps", config_map(f"c{first + number}"))

        seconds = await gather(count - stored, 8, create)
        created, stored = count - stored, count
        whole = [await target.read("/api/v1/configmaps") for _ in range(5)]
        page = [(await target.read("/api/v1/configmaps", limit="500"))[0] for _ in range(20)]
        one = [(await target.read(f"{paths[0]}/configmaps"))[0] for _ in range(20)]
        get = [(await target.read(f"{paths[0]}/configmaps/c0"))[0] for _ in range(200)]
        rss = target.rss_mib()
        rows.append(
            {
                "what": "objects",
                "count": count,
                "creates_per_s": round(created / seconds),
                "list_all_ms": round(statistics.median(s for s, _ in whole) * 1000, 1),
                "list_all_mb": round(whole[0][1] / 1e6, 1),
                "list_page_500_ms": round(statistics.median(page) * 1000, 1),
                "list_namespace_ms": round(statistics.median(one) * 1000, 1),
                "get_p50_ms": _ms(get)["p50_ms"],
                "rss_mib": rss,
                "kib_per_object": round((rss - before) * 1024 / count, 1) if rss and before else None,
            }
        )
    for number in range(20):
        await drop(target, f"objects-{number}")
    return rows


async def watchers(target: Target) -> list[Row]:
    """From a write to its event at every one of many watches."""
    rows = []
    path = await namespaced(target, "watchers")
    for count in WATCHERS:
        revision = (await target.send("GET", f"{path}/configmaps"))["metadata"]["resourceVersion"]
        heard: dict[bytes, list[float]] = {}
        ready = asyncio.Semaphore(0)
        tasks = [
            asyncio.create_task(_watch(target, f"{path}/configmaps", revision, heard, ready)) for _ in range(count)
        ]
        for _ in tasks:
            await ready.acquire()
        delays, cpu = [], target.cpu_s()
        for number in range(WRITES):
            name = f"w{count}-{number}"
            marker = f'"{name}"'.encode()
            heard[marker] = []
            begun = time.perf_counter()
            await target.send("POST", f"{path}/configmaps", config_map(name))
            while len(heard[marker]) < count:  # noqa: ASYNC110 a thousand tasks notifying would be measured, too
                await asyncio.sleep(0.001)
            delays += [at - begun for at in heard.pop(marker)]
        cpu = target.cpu_s() - cpu
        row = {"what": "watchers", "count": count, **_ms(delays), "rss_mib": target.rss_mib()}
        rows.append(row | {"server_cpu_us_per_event": round(cpu * 1e6 / (count * WRITES), 1)})
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await drop(target, "watchers")
    return rows


async def _watch(
    target: Target, path: str, revision: str, heard: dict[bytes, list[float]], ready: asyncio.Semaphore
) -> None:
    assert target.session is not None
    query = {"watch": "1", "resourceVersion": revision}
    timeout = aiohttp.ClientTimeout(total=None)
    async with target.session.get(target.access.server + path, params=query, timeout=timeout) as stream:
        ready.release()
        async for line in stream.content:
            now = time.perf_counter()
            for marker, times in heard.items():
                if marker in line:
                    times.append(now)


async def namespace(target: Target) -> list[Row]:
    """Deleting a namespace with many objects."""
    rows = []
    for count in NAMESPACES:
        path = await namespaced(target, f"large-{count}")

        async def create(number: int, path: str = path) -> None:
            await target.send("POST", f"{path}/configmaps", config_map(f"c{number}"))

        await gather(count, 8, create)
        cpu = target.cpu_s()
        seconds = await drop(target, f"large-{count}")
        rows.append(
            {
                "what": "delete namespace",
                "count": count,
                "seconds": round(seconds, 2),
                "ms_per_object": round(seconds * 1000 / count, 2),
                "server_cpu_s": round(target.cpu_s() - cpu, 2),
            }
        )
    return rows


async def controllers(target: Target) -> list[Row]:
    """What controllers do for many Services, and for one Deployment or Job of many Pods that nobody starts."""
    rows = []
    for what in ("services", "deployment", "job"):
        for count in CONTROLLED:
            name = f"{what}-{count}"
            path = await namespaced(target, name)
            cpu, begun = target.cpu_s(), time.perf_counter()
            await _make(target, what, name, path, count)
            seconds, cpu = time.perf_counter() - begun, target.cpu_s() - cpu
            row = {"what": what, "count": count, "seconds": round(seconds, 2)}
            row["server_cpu_ms_each"] = round(cpu * 1000 / count, 2)
            rows.append(row | {"delete_s": round(await drop(target, name), 2)})
    return rows


async def _make(target: Target, what: str, namespace: str, path: str, count: int) -> None:
    labels = {"app": "x"}
    container = {"name": "main", "image": "python:3.11", "command": ["sleep", "1000"]}
    pod: Row = {"containers": [container], "schedulingGates": [{"name": "benchmark/never"}]}
    if what == "services":

        async def create(number: int) -> None:
            spec = {"selector": {"app": f"s{number}"}, "ports": [{"port": 80}]}
            await target.send("POST", f"{path}/services", {"metadata": {"name": f"s{number}"}, "spec": spec})

        await gather(count, 8, create)
        kind, wanted = f"{path}/endpoints", lambda found: len(found["items"]) == count
    elif what == "deployment":
        template = {"metadata": {"labels": labels}, "spec": pod}
        spec = {"replicas": count, "selector": {"matchLabels": labels}, "template": template}
        kinds = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        await target.send("POST", kinds, {"metadata": {"name": "d"}, "spec": spec})
        kind, wanted = f"{kinds}/d", lambda found: (found.get("status") or {}).get("replicas") == count
    else:
        template = {"spec": pod | {"restartPolicy": "Never"}}
        kinds = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        spec = {"completions": count, "parallelism": count, "template": template}
        await target.send("POST", kinds, {"metadata": {"name": "j"}, "spec": spec})
        kind, wanted = f"{kinds}/j", lambda found: (found.get("status") or {}).get("active") == count

    async def done() -> bool:
        return bool(wanted(await target.send("GET", kind)))

    await until(done)


def sleeper(name: str) -> Any:
    container = {"name": "main", "image": "python:3.11", "command": ["sleep", "100000"]}
    resources = {"requests": {"cpu": "1m", "memory": "1Mi"}}
    spec = {"containers": [container | {"resources": resources}], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


async def pods(target: Target) -> list[Row]:
    """Many sleeping Pods."""
    return [await _sleep(target, "pods", count) for count in PODS]


async def burst(target: Target) -> list[Row]:
    """Pods that are all asked for at one moment."""
    return [await _sleep(target, "burst of pods", BURST)]


async def _sleep(target: Target, what: str, count: int) -> Row:
    name = f"{what.replace(' ', '-')}-{count}"
    path = await namespaced(target, name)
    cpu, begun, before = target.cpu_s(), time.perf_counter(), _all_pss(target)

    async def create(number: int) -> None:
        await target.send("POST", f"{path}/pods", sleeper(f"p{number}"))

    async def all_run() -> bool:
        items = (await target.send("GET", f"{path}/pods", fieldSelector="status.phase=Running"))["items"]
        return len(items) == count

    await gather(count, BURST, create)
    await until(all_run)
    seconds, cpu = time.perf_counter() - begun, target.cpu_s() - cpu
    row = {"what": what, "count": count, "seconds": round(seconds, 2), "ms_per_pod": round(seconds * 1000 / count, 1)}
    row |= {"server_cpu_s": round(cpu, 2), "rss_mib": target.rss_mib()}
    if before is not None:
        row["mib_per_pod"] = round(((_all_pss(target) or 0) - before) / count, 2)
    idle = target.cpu_s()
    await asyncio.sleep(5)
    row["idle_cpu_percent"] = round((target.cpu_s() - idle) / 5 * 100, 1)
    row["delete_s"] = round(await drop(target, name), 2)
    return row


def _all_pss(target: Target) -> float | None:
    """Memory of every process of the instance, shared pages counted once; MiB."""
    if target.home is None:
        return None
    total = 0
    for pid in processes_of(target.home, target.pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


LOADS = {
    "objects": objects,
    "watchers": watchers,
    "namespace": namespace,
    "controllers": controllers,
    "burst": burst,
    "pods": pods,
}


async def measure(target: Target, names: list[str]) -> list[Row]:
    rows: list[Row] = []
    async with target.open():
        for name in names:
            for row in await LOADS[name](target):
                print(row, flush=True)
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loads", nargs="*", metavar="|".join(LOADS))
    parser.add_argument("--kubeconfig", default="")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    names = options.loads or list(LOADS)
    if options.kubeconfig:
        write("scale-cluster", uvloop.run(measure(Target(options.kubeconfig), names)))
        return
    with running() as status:
        target = Target(status["kubeconfig"], status["pid"], Path(status["home"]))
        write("scale", uvloop.run(measure(target, names)))


if __name__ == "__main__":
    main()
