"""
The control plane is killed at random moments under load: no acknowledged write is lost, no watch has a gap or a repeat.

``SHALLOP_CRASH_KILLS`` sets how often (200 for a release), ``SHALLOP_CRASH_SEED`` repeats a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

KILLS = int(os.environ.get("SHALLOP_CRASH_KILLS", "15"))
SEED = int(os.environ.get("SHALLOP_CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
NAMESPACE = "crash"
MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
REPLICASETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/replicasets"
WRITERS, WATCHERS = 6, 4
CHILDREN = 3
SETTLE_S = 100.0
_TIMEOUT = aiohttp.ClientTimeout(total=30)
_STREAM = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=120)

Object = dict[str, Any]


class ControlPlane:
    """``shallop up`` on one home and one port, started again and again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.recovery_s: list[float] = []

    def start(self) -> None:
        arguments = ["up", "--port", "auto", "--api-port", str(self.port), "--isolation", "none"]
        with open(self.home.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shallop.cli", *arguments, "--home", str(self.home)], stdout=log, stderr=log
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


class Api:
    """Plain REST; ``send`` gives the status 0 when nobody can say whether the request was executed."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.url = f"https://127.0.0.1:{plane.port}"
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        context = ssl.create_default_context(cafile=str(self.plane.home / "tls" / "ca.crt"))
        headers = {"Authorization": f"Bearer {(self.plane.home / 'token').read_text().strip()}"}
        connector = aiohttp.TCPConnector(ssl=context, limit=0, force_close=False)
        self._session = aiohttp.ClientSession(headers=headers, connector=connector, read_bufsize=2**20)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    async def send(self, method: str, path: str, body: Object | None = None, **query: str) -> tuple[int, Object]:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            async with self.session.request(
                method, self.url + path, json=body, params=query, headers={"Content-Type": kind}, timeout=_TIMEOUT
            ) as answer:
                text = await answer.read()
                status = 0 if answer.status >= 500 else answer.status
                return status, json.loads(text) if text.startswith(b"{") else {}
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, {}

    async def ask(self, path: str, **query: str) -> tuple[int, Object]:
        """GET until somebody answers."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            status, body = await self.send("GET", path, **query)
            if status:
                return status, body
            assert time.monotonic() < deadline, f"nobody answers GET {path}"
            await asyncio.sleep(0.02)


class Journal:
    """What is known to have happened, by name: ("ADDED" | "MODIFIED" | "DELETED", n, revision or 0)."""

    def __init__(self) -> None:
        self.steps: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        self.acknowledged = self.happened = self.not_happened = 0

    def add(self, name: str, type_: str, n: int, revision: int) -> None:
        self.steps[name].append((type_, n, revision))

    def live(self) -> dict[str, int]:
        return {name: steps[-1][1] for name, steps in self.steps.items() if steps[-1][0] != "DELETED"}


def revision_of(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])


def number_of(obj: Object) -> int:
    return int(obj["data"]["n"])


def config_map(name: str, n: int, **metadata: Any) -> Object:
    labels = {"run": "crash", "even": str(n % 2 == 0).lower()}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels, **metadata},
        "data": {"n": str(n), "payload": "x" * 500},
    }


async def settle(
    journal: Journal,
    act: Callable[[], Awaitable[tuple[int, Object]]],
    look: Callable[[], Awaitable[tuple[bool, Object]]],
) -> Object:
    """Do one write exactly once: where the answer is lost, look whether it has happened, and else do it again."""
    while True:
        status, body = await act()
        if status in (200, 201):
            journal.acknowledged += 1
            return body
        assert status == 0, f"{status}: {body}"
        done, body = await look()
        if done:
            journal.happened += 1
            return body
        journal.not_happened += 1


async def write_lives(api: Api, journal: Journal, number: int, rng: random.Random, stop: asyncio.Event) -> None:
    """Create, change and delete objects that nobody else touches."""
    life = 0
    while not stop.is_set():
        name, life = f"w{number}-{life}", life + 1
        path = f"{MAPS}/{name}"

        async def exists(path: str = path) -> tuple[bool, Object]:
            status, body = await api.ask(path)
            assert status in (200, 404), body
            return status == 200, body

        obj = await settle(journal, lambda: api.send("POST", MAPS, config_map(name, 0)), exists)  # noqa: B023 called at once
        assert number_of(obj) == 0
        journal.add(name, "ADDED", 0, revision_of(obj))
        for n in range(1, rng.randint(2, 12)):
            obj = await change(api, journal, obj, n, patch=rng.random() < 0.5)
            journal.add(name, "MODIFIED", n, revision_of(obj))
        if rng.random() < 0.7:
            options = {"preconditions": {"uid": obj["metadata"]["uid"]}}

            async def gone() -> tuple[bool, Object]:
                found, body = await exists()
                assert not found or revision_of(body) == revision_of(obj), "an acknowledged change is lost"  # noqa: B023
                return not found, {}

            await settle(journal, lambda: api.send("DELETE", path, options), gone)  # noqa: B023 called at once
            journal.add(name, "DELETED", number_of(obj), 0)


async def change(api: Api, journal: Journal, obj: Object, n: int, *, patch: bool) -> Object:
    name, before = obj["metadata"]["name"], obj
    path = f"{MAPS}/{name}"
    metadata = {"resourceVersion": obj["metadata"]["resourceVersion"]}

    async def act() -> tuple[int, Object]:
        wanted = config_map(name, n, **metadata)
        return await api.send("PATCH" if patch else "PUT", path, wanted)

    async def look() -> tuple[bool, Object]:
        status, body = await api.ask(path)
        assert status == 200, f"{name} is lost: {body}"
        assert number_of(body) in (number_of(before), n), f"{name} is at {number_of(body)}, acknowledged: {n - 1}"
        if number_of(body) == n - 1:
            assert revision_of(body) == revision_of(before), f"{name} changed by itself"
        return number_of(body) == n, body

    return await settle(journal, act, look)


async def make_families(api: Api, journal: Journal, rng: random.Random, stop: asyncio.Event) -> dict[str, str]:
    """Create owners with dependents and delete some; returns owner -> how it was deleted, empty for not at all."""
    fates: dict[str, str] = {}
    number = 0
    while not stop.is_set():
        deployment = rng.random() < 0.3
        name, number = f"{'deployment' if deployment else 'family'}{number}", number + 1
        fate = rng.choice(["Background", "Foreground", "Orphan", ""])

        async def present(path: str) -> tuple[bool, Object]:
            status, body = await api.ask(path)
            return status == 200, body

        async def put(path: str, obj: Object) -> Object:
            item = f"{path}/{obj['metadata']['name']}"
            return await settle(journal, lambda: api.send("POST", path, obj), lambda: present(item))

        path = DEPLOYMENTS if deployment else MAPS
        owner = await put(path, empty_deployment(name) if deployment else family_member(name))
        if not deployment:
            reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": owner["metadata"]["uid"]}
            reference["blockOwnerDeletion"] = True
            for child in range(CHILDREN):
                await put(MAPS, family_member(f"{name}-{child}", ownerReferences=[reference]))
        fates[name] = fate
        if fate:

            async def leaving() -> tuple[bool, Object]:
                status, body = await api.ask(f"{path}/{name}")  # noqa: B023 called at once
                return status == 404 or "deletionTimestamp" in body["metadata"], body

            options = {"propagationPolicy": fate}
            await settle(journal, lambda: api.send("DELETE", f"{path}/{name}", options), leaving)  # noqa: B023
        await asyncio.sleep(0.05)
    return fates


def family_member(name: str, **metadata: Any) -> Object:
    member = config_map(name, 0, **metadata)
    member["metadata"]["labels"] = {"run": "family"}
    return member


def empty_deployment(name: str) -> Object:
    labels = {"app": name}
    container = {"name": "main", "image": "python:3.11", "command": ["sleep", "1000"]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    metadata = {"name": name, "labels": {"run": "family"}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


async def watch(api: Api, revision: int, selector: str, events: list[Object]) -> int:
    """Follow until the object named ``end``; a broken stream goes on from the last revision. Returns reconnections."""
    connections = 0
    while True:
        query = {"watch": "1", "resourceVersion": str(revision), "labelSelector": selector}
        try:
            async with api.session.get(api.url + MAPS, params=query, timeout=_STREAM) as stream:
                if stream.status != 200:
                    await asyncio.sleep(0.02)
                    continue
                connections += 1
                async for line in stream.content:
                    if not line.endswith(b"\n"):
                        break  # cut in the middle by the crash
                    event = json.loads(line)
                    assert event["type"] in ("ADDED", "MODIFIED", "DELETED"), event
                    revision = revision_of(event["object"])
                    events.append(event)
                    if event["object"]["metadata"]["name"] == "end":
                        return connections
        except (aiohttp.ClientError, TimeoutError, OSError):
            await asyncio.sleep(0.02)


async def kill_often(plane: ControlPlane, api: Api, rng: random.Random) -> None:
    for _ in range(KILLS):
        plane.kill()
        begun = time.monotonic()
        plane.start()
        if rng.random() < 0.2:
            # Also while it starts, opens its database and creates what every cluster has.
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            continue
        await api.ask("/readyz")
        plane.recovery_s.append(time.monotonic() - begun)
        await asyncio.sleep(rng.uniform(0.05, 0.5))


def check_watch(events: list[Object], journal: Journal, *, even: bool) -> None:
    revisions = [revision_of(event["object"]) for event in events]
    assert revisions == sorted(set(revisions)), "events out of order, or repeated"
    seen: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for event in events:
        obj = event["object"]
        seen[obj["metadata"]["name"]].append((event["type"], number_of(obj), revision_of(obj)))
    seen.pop("end")
    wanted = {name: selected(steps) if even else list(steps) for name, steps in journal.steps.items()}
    for name, steps in wanted.items():
        # The revision of a deletion is told to watchers only.
        got = [(t, n, 0 if t == "DELETED" else r) for t, n, r in seen.pop(name, [])]
        assert got == [(t, n, 0 if t == "DELETED" else r) for t, n, r in steps], name
    assert not seen, f"nobody wrote {sorted(seen)}"


def selected(steps: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """What a watch of the objects with an even number sees."""
    result: list[tuple[str, int, int]] = []
    inside = False
    for type_, n, revision in steps:
        if n % 2 == 0 and type_ != "DELETED":
            result.append(("ADDED", n, revision))
            inside = True
        elif inside:
            # Leaving a selection is a deletion that shows the last state inside.
            result.append(("DELETED", n if type_ == "DELETED" else n - 1, revision))
            inside = False
    return result


async def check_families(api: Api, fates: dict[str, str]) -> None:
    deadline = time.monotonic() + SETTLE_S
    while problems := await family_problems(api, fates):
        assert time.monotonic() < deadline, problems
        await asyncio.sleep(0.2)


async def family_problems(api: Api, fates: dict[str, str]) -> list[str]:
    """Every owner-reference invariant that does not hold (yet)."""
    items: list[Object] = []
    for path in (MAPS, DEPLOYMENTS, REPLICASETS):
        items += (await api.ask(path))[1]["items"]
    uids = {item["metadata"]["uid"] for item in items}
    by_name = {item["metadata"]["name"]: item for item in items}
    owned: dict[str, list[Object]] = defaultdict(list)
    problems = []
    for item in items:
        for reference in item["metadata"].get("ownerReferences") or ():
            owned[reference["name"]].append(item)
            if reference["uid"] not in uids:
                problems.append(f"{item['metadata']['name']} is owned by {reference['name']}, which is gone")
    for name, fate in fates.items():
        if fate and name in by_name:
            problems.append(f"{name} is not gone ({fate})")
        children = [by_name[child] for child in (f"{name}-{n}" for n in range(CHILDREN)) if child in by_name]
        if not fate and not owned[name]:
            problems.append(f"{name} has lost what it owns")
        if name.startswith("family") and len(children) != (0 if fate in ("Background", "Foreground") else CHILDREN):
            problems.append(f"{name} ({fate or 'not deleted'}) has {len(children)} dependents")
        if fate == "Orphan" and any(child["metadata"].get("ownerReferences") for child in children):
            problems.append(f"{name} still owns what should be an orphan")
        if not fate and "spec" in by_name.get(name, {}) and len(owned[name]) != 1:
            problems.append(f"Deployment {name} has {len(owned[name])} ReplicaSets")
    return problems


async def run(plane: ControlPlane) -> None:
    rng, api, journal = random.Random(SEED), Api(plane), Journal()
    plane.start()
    while not (plane.home / "kubeconfig").exists():
        await asyncio.sleep(0.02)
    await api.open()
    try:
        await api.ask("/readyz")
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        assert (await api.send("POST", "/api/v1/namespaces", namespace))[0] == 201
        revision = int((await api.ask(MAPS))[1]["metadata"]["resourceVersion"])
        events: list[list[Object]] = [[] for _ in range(WATCHERS)]
        selectors = ["run=crash", "run=crash,even=true"]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            watches = [
                group.create_task(watch(api, revision, selectors[i % 2], events[i]), name=f"watch {i}")
                for i in range(WATCHERS)
            ]
            writers = [
                group.create_task(write_lives(api, journal, i, random.Random(rng.random()), stop))
                for i in range(WRITERS)
            ]
            families = group.create_task(make_families(api, journal, random.Random(rng.random()), stop))
            await kill_often(plane, api, rng)
            stop.set()
            await asyncio.wait([*writers, families])
            assert (await api.send("POST", MAPS, config_map("end", 0)))[0] == 201
        for number, seen in enumerate(events):
            check_watch(seen, journal, even=number % 2 == 1)
        listed = (await api.ask(MAPS, labelSelector="run=crash"))[1]["items"]
        assert {i["metadata"]["name"]: number_of(i) for i in listed} == journal.live() | {"end": 0}
        await check_families(api, families.result())
        print(report(plane, journal, events, watches, families.result()))
    finally:
        await api.close()


def report(plane: ControlPlane, journal: Journal, events: Any, watches: Any, fates: dict[str, str]) -> str:
    recovery = sorted(plane.recovery_s)
    figures = {
        "seed": SEED,
        "kills": KILLS,
        "acknowledged_writes": journal.acknowledged,
        "answers_lost_but_done": journal.happened,
        "answers_lost_and_not_done": journal.not_happened,
        "events_seen": sum(map(len, events)),
        "watch_connections": sum(task.result() for task in watches),
        "owners": len(fates),
        "restart_to_ready_s": {"p50": round(recovery[len(recovery) // 2], 2), "max": round(recovery[-1], 2)},
    }
    return json.dumps(figures)


@pytest.mark.timeout(300 + 20 * KILLS)
def test_nothing_acknowledged_is_lost_when_the_control_plane_is_killed(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path / "home")
    try:
        asyncio.run(run(plane))
    finally:
        plane.stop()
