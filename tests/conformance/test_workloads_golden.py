"""
The controllers' answers beside those of a real Kubernetes: recorded REST steps, replayed over HTTP.

The recordings were made without scheduler and kubelet, so here is none of them either; names that hash a template
differ by design and are compared as ``<hash>``. Only answers that controllers bring about, the polled ones, count.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shallop.controller import Manager
from shallop.embedded.apiserver import ApiServer
from shallop.embedded.workloads import PART
from shallop.embedded.workloads.garbage import GarbageCollector
from shallop.embedded.workloads.scheduler import SCHEDULER
from shallop.settings import Settings
from shallop.store.database import Database
from shallop.webserver import Server, bind

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "fixtures" / "kube" / "golden"
TOKEN = "golden-token"
POLL_S = 5.0

# Steps that concern kinds or columns of others, or what we leave out on purpose.
NOT_OURS = {
    "workload_controllers.json": {},
    "finalizers_gc.json": {},
    "serviceaccounts_tokens.json": {},
}

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded answers are not beside this checkout")


@asynccontextmanager
async def control_plane(home: Path) -> AsyncIterator[str]:
    """The API server over HTTP with the controllers, without scheduler and kubelet."""
    (home / "tls").mkdir()
    (home / "tls" / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n")
    server = ApiServer(None, admin_token=TOKEN)
    await server.start()
    await server.register_kinds(PART.kinds)
    client = server.client()
    for obj in PART.objects:
        await client.create(obj)
    sock = bind("127.0.0.1", 0, "api_port")
    http = Server(server.asgi, sock)
    await http.start()
    database = Database(f"sqlite:///{home}/rows.db")
    kinds = [kind for kind in PART.kinds if kind is not SCHEDULER]
    manager = Manager(client, Settings(home=home), database, kinds)
    tasks = [asyncio.ensure_future(run()) for run in (manager.run, GarbageCollector(client).run)]
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await manager.events.flush()
        await server.stop()
        await http.stop()
        database.close()


def at_path(body: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(body, list) and part.isdigit() and int(part) < len(body):
            body = body[int(part)]
        elif isinstance(body, dict):
            body = body.get(part)
        else:
            return None
    return body


def holds(poll: dict[str, Any], status: int, body: Any) -> bool:
    if "status" in poll:
        return status == poll["status"]
    if "condition" in poll:
        conditions = at_path(body, "status.conditions") or []
        wanted = poll.get("is", "True")
        return any(c["type"] == poll["condition"] and c["status"] == wanted for c in conditions)
    found = at_path(body, poll["path"])
    if "length" in poll:
        return len(found or ()) == poll["length"]
    return found == poll["equals"] if "equals" in poll else found is not None


class Replay:
    """Sends the steps of one file and remembers the raw answers for the templates of later steps."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base
        self._answers: dict[str, Any] = {}
        self.suffixed: set[str] = set()
        self.hashes: set[str] = set()

    async def send(self, step: dict[str, Any], *, wait_s: float) -> tuple[int, Any]:
        request = self._filled(step["request"])
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            status, body = await self._once(request, step.get("as", "admin"))
            self._learn(body)
            if "poll" not in step or holds(step["poll"], status, body):
                break
            if asyncio.get_running_loop().time() > deadline:
                print("gave up waiting for", step["name"], step["poll"])
                break
            await asyncio.sleep(0.02)
        self._answers[step["name"]] = body
        return status, body

    async def _once(self, request: dict[str, Any], who: str) -> tuple[int, Any]:
        headers = dict(request.get("headers") or {})
        if who == "admin":
            headers["Authorization"] = f"Bearer {TOKEN}"
        elif who != "anonymous":
            headers["Authorization"] = f"Bearer {self._filled(who)}"
        body = request.get("body")
        data = body if isinstance(body, str) or body is None else json.dumps(body)
        url = self._base + request["path"]
        async with self._session.request(
            request["method"], url, params=request.get("query") or {}, data=data, headers=headers
        ) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith(("{", "[")) else text

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._filled(inner) for inner in value]
        if not isinstance(value, str):
            return value

        def substitute(match: re.Match[str]) -> str:
            step, _, path = match[1].partition(".")
            return str(at_path(self._answers[step], path))

        return re.sub(r"\$\{([^}]+)\}", substitute, value)

    def _learn(self, body: Any) -> None:
        if isinstance(body, dict):
            metadata = body.get("metadata")
            if isinstance(metadata, dict) and metadata.get("generateName") and metadata.get("name"):
                self.suffixed.add(metadata["name"])
            for label in ("pod-template-hash", "controller-revision-hash"):
                if label in body:
                    self.hashes.add(body[label].rpartition("-")[2])
            for inner in body.values():
                self._learn(inner)
        elif isinstance(body, list):
            for inner in body:
                self._learn(inner)

    def normalised(self, body: Any, step: dict[str, Any]) -> Any:
        """Apply the rules that the recordings were made with, then those of the step."""
        text = json.dumps(body)
        for name in sorted(self.suffixed, key=len, reverse=True):
            text = text.replace(name, f"{name.rpartition('-')[0]}-<suffix>")
        return shaped(json.loads(text), step, self.hashes)


RULES = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uid>"),
    (re.compile(r"20(2[6-9]|[3-9]\d)-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
    (re.compile(r"\b10\.96\.\d+\.\d+\b"), "<clusterIP>"),
    (re.compile(r"-----BEGIN[\s\S]*-----\n?"), "<pem>"),
    (re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+"), "<token>"),
    (re.compile(r"kube-api-access-\w{5}"), "kube-api-access-<suffix>"),
    (re.compile(r"(?<=\.)[0-9a-f]{16}$"), "<suffix>"),
)


def shaped(body: Any, step: dict[str, Any], hashes: set[str]) -> Any:
    body = scrubbed(body, hashes, frozenset(step.get("drop") or ()))
    if "sort" in step and isinstance(items := at_path(body, step["sort"]), list):
        items.sort(key=lambda item: json.dumps(item, sort_keys=True))
    if "unordered" in (step.get("flags") or ()):
        body = unordered(body)
    return body


def unordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unordered(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted((unordered(inner) for inner in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def scrubbed(value: Any, hashes: set[str], drop: frozenset[str], key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: scrubbed(v, hashes, drop, k) for k, v in value.items() if k not in drop}
    if isinstance(value, list):
        return [scrubbed(inner, hashes, drop, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key == "resourceVersion" and value.isdigit() and value != "0":
        return "<rv>"
    for pattern, replacement in RULES:
        value = pattern.sub(replacement, value)
    for digest in hashes:
        value = value.replace(digest, "<hash>")
    return value


def recorded_hashes(steps: list[dict[str, Any]]) -> set[str]:
    return set(re.findall(r'"(?:pod-template|controller-revision)-hash": "(?:\w+-)?(\w+)"', json.dumps(steps)))


# What the recorder's own clients and identity left in the answers, and prose that is not ours to repeat.
def forgiven(body: Any) -> Any:
    if isinstance(body, dict):
        cleaned = {key: forgiven(inner) for key, inner in body.items()}
        if "involvedObject" in cleaned:
            # One recorder writes for all our controllers, and repeats events under the same name.
            for key in ("source", "reportingComponent", "reportingInstance", "eventTime"):
                cleaned.pop(key, None)
        if "columnDefinitions" in cleaned:
            cleaned["columnDefinitions"] = [column["name"] for column in body["columnDefinitions"]]
            cleaned["rows"] = [row["cells"] for row in body["rows"]]
            ages = {"Age", "Duration"}
            for row in cleaned["rows"]:
                for number, name in enumerate(cleaned["columnDefinitions"]):
                    if name in ages:
                        row[number] = "<age>"
        return cleaned
    if isinstance(body, list):
        return [forgiven(inner) for inner in body if not is_foreign_source(inner)]
    return body


def is_foreign_source(value: Any) -> bool:
    """The recorded server also projects a ConfigMap that only OpenShift has."""
    return isinstance(value, dict) and "openshift-service-ca.crt" in json.dumps(value.get("configMap"))


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key, "<absent>"), theirs.get(key, "<absent>"), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(mine, other, f"{path}[{number}]")
    elif ours != theirs:
        yield f"{path}: {json.dumps(ours)[:300]} instead of {json.dumps(theirs)[:300]}"


@pytest.mark.parametrize("file", sorted(NOT_OURS))
def test_the_controllers_answer_as_a_real_cluster(file: str, tmp_path: Path) -> None:
    steps = json.loads((GOLDEN / file).read_text())
    problems: list[str] = []

    async def main() -> None:
        async with control_plane(tmp_path) as base, aiohttp.ClientSession() as session:
            replay = Replay(session, base)
            answers = []
            for step in steps:
                compared = "poll" in step and step["name"] not in NOT_OURS[file]
                status, body = await replay.send(step, wait_s=POLL_S if compared else 0)
                if compared:
                    answers.append((step, status, body))
        hashes = recorded_hashes(steps)
        for step, status, body in answers:
            expected = step["response"]
            if status != expected["status"]:
                problems.append(f"{step['name']}: status {status} instead of {expected['status']}: {body}"[:500])
            elif "volatile" not in (step.get("flags") or ()):
                ours = forgiven(replay.normalised(body, step))
                theirs = forgiven(shaped(expected["body"], step, hashes))
                problems.extend(f"{step['name']}{text}" for text in differences(ours, theirs))

    asyncio.run(main())
    assert not problems, "\n".join(problems)
