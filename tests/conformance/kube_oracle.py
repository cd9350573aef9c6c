"""Replays recorded answers of a real Kubernetes API server against ours, normalised as the recording was."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from shallop.controller import Manager
from shallop.embedded import workloads
from shallop.embedded.apiserver import ApiServer, User
from shallop.embedded.apiserver.objects_store import Change
from shallop.embedded.apiserver.requests import parse_bool
from shallop.embedded.workloads.garbage import GarbageCollector
from shallop.settings import Settings
from shallop.store.database import Database

GOLDEN = Path(__file__).parents[2] / ".." / "shared" / "fixtures" / "kube" / "golden"
ADMIN_TOKEN, ALICE_TOKEN = "admin-token", "alice-token"
# The recording waited up to 12 s.
_POLL_S = 12.0
_SETTLE_S = 2.0


# ---- The server


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[ApiServer]:
    """An API server with the built-in controllers, RBAC on."""
    users = {ALICE_TOKEN: User("alice", ("dev", "system:authenticated"), uid="2")}
    (home / "tls").mkdir(parents=True)
    (home / "tls" / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    server = ApiServer(home / "objects.db", admin_token=ADMIN_TOKEN, users=users)
    settings = Settings(home=home)
    database = Database(f"sqlite:///{home / 'rows.db'}")
    await server.start()
    server.store.listeners.append(partial(_add_foreign, server))
    # The recorded cluster had no scheduler and no kinds of ours.
    kinds = [kind for kind in workloads.PART.kinds if kind.kind != "Pod" and kind.schema is None]
    manager = Manager(
        server.client(field_manager="kube-controller-manager"),
        settings,
        database,
        kinds,
        component="kube-controller-manager",
    )
    tasks = [
        asyncio.create_task(manager.run()),
        asyncio.create_task(GarbageCollector(server.client(field_manager="kube-controller-manager")).run()),
    ]
    try:
        yield server
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop()


def _add_foreign(server: ApiServer, change: Change) -> None:
    """Put a ConfigMap into a new namespace, as a controller of another distribution did in the recorded cluster."""
    if change.new.resource == "namespaces" and change.old is None:
        metadata = {
            "name": _FOREIGN,
            "namespace": change.new.name,
            "annotations": {"service.beta.openshift.io/inject-cabundle": "true"},
        }
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"service-ca.crt": ""}}
        create = server.client(field_manager="kube-controller-manager").create(body)
        _RUNNING.add(task := asyncio.get_running_loop().create_task(create))
        task.add_done_callback(_RUNNING.discard)


_FOREIGN = "openshift-service-ca.crt"
_RUNNING: set[asyncio.Task[Any]] = set()


class Answered:
    """One HTTP answer; ``lines`` grows while a stream goes on."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.ended = False

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    def decoded(self) -> Any:
        if self.header("content-type").startswith("application/json"):
            with suppress(ValueError):
                return json.loads(self.body) if self.body else ""
        return self.body.decode()


def _authorization(who: str, answers: Mapping[str, Any]) -> str | None:
    fixed = {"admin": ADMIN_TOKEN, "alice": ALICE_TOKEN, "invalid": "wrong"}
    if who == "anonymous":
        return None
    return "Bearer " + fixed.get(who, str(fill(who, answers)))


async def send(
    server: ApiServer,
    request: Mapping[str, Any],
    who: str,
    answers: Mapping[str, Any],
    stop: asyncio.Event | None = None,
    into: Answered | None = None,
) -> Answered:
    """Send one request of a step in process; ``stop`` plays the client that hangs up."""
    body = fill(request.get("body"), answers)
    raw = b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    query = fill(request.get("query") or {}, answers)
    headers = {"host": "127.0.0.1:6443", "user-agent": "golden/1.0"}
    headers |= {key.lower(): value for key, value in (request.get("headers") or {}).items()}
    authorization = _authorization(who, answers)
    if authorization:
        headers["authorization"] = authorization
    scope = {
        "type": "http",
        "method": request["method"],
        "path": str(fill(request["path"], answers)),
        "query_string": urlencode(query, doseq=True).encode(),
        "headers": [(key.encode(), str(value).encode()) for key, value in headers.items()],
    }
    answered = into or Answered()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": raw, "more_body": False}
        await (stop or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def reply(message: Any) -> None:
        if message["type"] == "http.response.start":
            answered.status = message["status"]
            answered.headers = [(k.decode(), v.decode()) for k, v in message["headers"]]
        else:
            answered.body += message.get("body", b"")

    await server.asgi(scope, receive, reply)
    answered.ended = True
    return answered


# ---- Templates and normalisation, as the recording's README describes

_TEMPLATE = re.compile(r"\$\{([^}]+)\}")


def fill(value: Any, answers: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$repeat", "times"}:
            return value["$repeat"] * value["times"]
        return {fill(key, answers): fill(item, answers) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, answers) for item in value]
    if not isinstance(value, str):
        return value
    whole = _TEMPLATE.fullmatch(value)
    if whole:
        return _lookup(whole[1], answers)
    return _TEMPLATE.sub(lambda match: str(_lookup(match[1], answers)), value)


def _lookup(path: str, answers: Mapping[str, Any]) -> Any:
    step, *rest = path.split(".")
    found = answers[step]
    for part in rest:
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"20(?:2[6-9]|[3-9]\d)-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----\n?", re.DOTALL)
_CLUSTER_IP = re.compile(r"\b10\.96\.\d+\.\d+\b")
_API_ACCESS = re.compile(r"kube-api-access-[a-z0-9]{5}")
_EVENT_NAME = re.compile(r"\.[0-9a-f]{16}\b")
_SUFFIX = r"[bcdfghjklmnpqrstvwxz2456789]{5}"
# Names of ReplicaSets and revisions carry a hash of the template; ours is another hash function.
_HASH = re.compile(
    r"(?<![\w.])((?:[a-z0-9]+-)*)[bcdfghjklmnpqrstvwxz2456789]{8,10}(?:(-)(<suffix>|" + _SUFFIX + r")?)?(?![\w-])"
)


class Normaliser:
    """Replaces what differs from run to run; remembers generated names."""

    def __init__(self) -> None:
        self.prefixes: set[str] = set()

    def learn(self, value: Any) -> None:
        if isinstance(value, dict):
            prefix = value.get("generateName")
            if isinstance(prefix, str) and prefix:
                self.prefixes.add(prefix)
            for item in value.values():
                self.learn(item)
        elif isinstance(value, list):
            for item in value:
                self.learn(item)

    def apply(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._field(name, item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.apply(item) for item in value if not _is_foreign(item)]
        return self.text(value) if isinstance(value, str) else value

    def _field(self, name: str, value: Any) -> Any:
        if name == "resourceVersion" and isinstance(value, str):
            return value if value in ("", "0") else "<rv>"
        if name == "managedFields" and isinstance(value, list):
            kept = [entry for entry in value if entry.get("manager") != "kube-controller-manager"]
            # They are ordered by time, in seconds: which of two writes falls into the next one is chance.
            return sorted((self.apply(entry) for entry in kept), key=lambda entry: json.dumps(entry, sort_keys=True))
        if name == "continue" and value:
            return "<continue>"
        if name == "token" and value and isinstance(value, str):
            return "<token>"
        if name == "nodePort" and isinstance(value, int):
            return "<nodePort>"
        return self.apply(value)

    def text(self, text: str) -> str:
        text = _UUID.sub("<uid>", text)
        text = _TIME.sub("<time>", text)
        text = _JWT.sub("<token>", text)
        text = _PEM.sub("<pem>", text)
        text = _CLUSTER_IP.sub("<clusterIP>", text)
        text = _API_ACCESS.sub("kube-api-access-<suffix>", text)
        text = _EVENT_NAME.sub(".<suffix>", text)
        text = re.sub(r'(resourceVersion\\*"?[:=] ?\\*"?)\d+', r"\1<rv>", text)
        text = re.sub(
            r"((?:resource version|current|ResourceVersion in precondition|in object meta): )\d+", r"\1<rv>", text
        )
        text = re.sub(r"(too old resource version: )\S+ \(\d+\)", r"\1<rv> (<rv>)", text)
        for prefix in self.prefixes:
            text = re.sub(re.escape(prefix) + _SUFFIX + r"\b", prefix + "<suffix>", text)
            if len(prefix) > 58:
                text = re.sub(re.escape(prefix[:58]) + _SUFFIX + r"\b", prefix[:58] + "<suffix>", text)
        text = _HASH.sub(lambda found: f"{found[1]}<hash>{found[2] or ''}{'<suffix>' if found[3] else ''}", text)
        return re.sub(r"(30|31|32)\d{3}(?=/TCP|/UDP)", "<nodePort>", text)


def _is_foreign(item: Any) -> bool:
    """Things of another distribution that the recorded controller-manager made."""
    if not isinstance(item, dict):
        return False
    name = (item.get("metadata") or {}).get("name") if isinstance(item.get("metadata"), dict) else None
    return _FOREIGN in (
        name,
        (item.get("configMap") or {}).get("name") if "configMap" in item else None,
    )


# Tails of decode errors are Go's: what stands before them is compared.
_TAILS = re.compile(
    r"(cannot be handled as an? [\w]+: |json parse error: |error decoding patch: |error decoding YAML: |yaml: |"
    r"continue key is not valid: |found |unable to parse requirement: |invalid selector: )(?!strict decoding).*",
    re.DOTALL,
)


def _without_tail(value: Any) -> Any:
    if isinstance(value, dict) and value.get("kind") == "Status" and value.get("code") == 400:
        return {
            **value,
            "message": re.sub(
                r"^(unable to parse requirement: )?found .*|^unable to parse.*",
                "selector",
                _TAILS.sub(r"\1", value["message"]),
            ),
        }
    return value


def _ages(body: Any, recorded: Any) -> Any:
    """Put the recording's placeholders where ours has an age or a description of its own."""
    if isinstance(recorded, dict) and isinstance(body, dict):
        # Texts that describe columns are our own.
        return {
            key: recorded[key]
            if key == "description" and key in recorded and "priority" in body
            else _ages(value, recorded.get(key))
            for key, value in body.items()
        }
    if isinstance(recorded, list) and isinstance(body, list) and len(recorded) == len(body):
        return [_ages(item, other) for item, other in zip(body, recorded, strict=True)]
    if recorded in ("<age>", "<description>", "<build>", "<hash>", "<server>", "<time>") and isinstance(body, str):
        return recorded
    if isinstance(recorded, str) and isinstance(body, str) and ("<age>" in recorded or " ago)" in recorded):
        return recorded
    return body


def drop(value: Any, names: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: drop(item, names) for key, item in value.items() if key not in names}
    return [drop(item, names) for item in value] if isinstance(value, list) else value


def keep(body: Any, rule: Mapping[str, Any]) -> Any:
    """Reduce the list or map at ``rule['list']`` to the entries named in ``rule['in']``."""
    path = rule["list"].split(".")
    if not isinstance(body, dict):
        return body
    parent = body
    for step in path[:-1]:
        parent = parent.get(step) or {}
    found = parent.get(path[-1])
    if isinstance(found, dict):
        parent[path[-1]] = {key: value for key, value in found.items() if key in rule["in"]}
    elif isinstance(found, list):
        parent[path[-1]] = [item for item in found if _at(item, rule.get("key", "")) in rule["in"]]
    return body


def _at(item: Any, path: str) -> Any:
    for step in filter(None, path.split(".")):
        item = item.get(step, "") if isinstance(item, dict) else ""
    return item


def order(body: Any, rules: list[str] | str | None) -> Any:
    for rule in [rules] if isinstance(rules, str) else rules or ():
        parent = body
        *path, last = rule.split(".")
        for step in path:
            parent = parent.get(step) or {}
        if isinstance(parent.get(last), list):
            parent[last] = sorted(parent[last], key=lambda item: json.dumps(item, sort_keys=True))
    return body


def _canonical(value: Any) -> Any:
    """For lists in any order, and for texts that join lists in any order."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_canonical(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, str):
        return "".join(sorted(value))
    return value


# ---- Comparing


def shape(value: Any) -> Any:
    return {key: shape(item) for key, item in value.items()} if isinstance(value, dict) else type(value).__name__


async def run_step(server: ApiServer, step: Mapping[str, Any], answers: dict[str, Any], norm: Normaliser) -> list[str]:
    """Run one step; returns the differences, empty when the answer is that of the recording."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        problems = await _run_once(server, step, answers, norm)
        # What is polled for may be there before all that a controller still writes is.
        if not problems or "poll" not in step or time.monotonic() > deadline:
            return problems
        await asyncio.sleep(0.05)


async def _run_once(server: ApiServer, step: Mapping[str, Any], answers: dict[str, Any], norm: Normaliser) -> list[str]:
    answered = await _poll(server, step, answers)
    body = answered.decoded()
    answers[step["name"]] = body
    norm.learn(step["request"].get("body"))
    recorded = step["response"]
    problems = []
    if not _same_status(answered.status, recorded["status"]):
        problems.append(f"status {answered.status}, recorded {recorded['status']}: {str(body)[:400]}")
        return problems
    flags = step.get("flags") or []
    if step.get("setup_of") == "cleanup" or "volatile" in flags or answered.status != recorded["status"]:
        return problems
    mine, theirs = prepare(body, step, norm), prepare(recorded["body"], step, norm)
    if recorded["content_type"] == "application/yaml" and isinstance(mine, str):
        mine, theirs = norm.apply(yaml.safe_load(mine)), yaml.safe_load(theirs)
    mine, theirs = _without_tail(_ages(mine, theirs)), _without_tail(theirs)
    if "unordered" in flags:
        mine, theirs = _canonical(mine), _canonical(theirs)
    problems += differences(theirs, mine)
    # Beyond what a real server warns of, ours says which fields nobody honours here.
    warnings = [
        norm.text(value) for key, value in answered.headers if key == "warning" and "has no effect here" not in value
    ]
    if warnings != (recorded.get("warning_headers") or []):
        problems.append(f"warnings {warnings}, recorded {recorded.get('warning_headers')}")
    return problems


def prepare(body: Any, step: Mapping[str, Any], norm: Normaliser) -> Any:
    norm.learn(body)
    body = norm.apply(drop(body, step.get("drop") or []))
    for rule in step.get("keep") or ():
        body = keep(body, rule)
    return order(body, step.get("sort")) if isinstance(body, dict) else body


def _same_status(mine: int, recorded: int) -> bool:
    # The real server answers 500 to some mistakes of the client.
    return mine == recorded or (recorded == 500 and 400 <= mine < 500)


async def _poll(server: ApiServer, step: Mapping[str, Any], answers: Mapping[str, Any]) -> Answered:
    deadline = time.monotonic() + _POLL_S
    while True:
        answered = await send(server, step["request"], step.get("as", "admin"), answers)
        poll = step.get("poll")
        if not poll or _holds(answered, poll) or time.monotonic() > deadline:
            return answered
        await asyncio.sleep(0.05)


def _holds(answered: Answered, poll: Mapping[str, Any]) -> bool:
    body = answered.decoded()
    if "status" in poll and answered.status != poll["status"]:
        return False
    if "condition" in poll:
        conditions = (body.get("status") or {}).get("conditions") or [] if isinstance(body, dict) else []
        wanted = poll.get("is", "True")
        if not any(c["type"] == poll["condition"] and c["status"] == wanted for c in conditions):
            return False
    if "path" in poll:
        found: Any = body
        for part in poll["path"].split("."):
            if isinstance(found, list):
                found = found[int(part)] if int(part) < len(found) else None
            else:
                found = found.get(part) if isinstance(found, dict) else None
        if "equals" in poll:
            return bool(found == poll["equals"])
        if "length" in poll:
            return len(found or ()) == poll["length"]
        return found is not None
    return True


def differences(recorded: Any, mine: Any, path: str = "") -> list[str]:
    """Name the places where two values differ."""
    if isinstance(recorded, dict) and isinstance(mine, dict):
        problems = [f"{path}.{key}: missing, recorded {_short(recorded[key])}" for key in recorded if key not in mine]
        problems += [f"{path}.{key}: extra {_short(mine[key])}" for key in mine if key not in recorded]
        for key in recorded.keys() & mine.keys():
            problems += differences(recorded[key], mine[key], f"{path}.{key}")
        return problems
    if isinstance(recorded, list) and isinstance(mine, list) and len(recorded) == len(mine):
        return [
            problem
            for index, (left, right) in enumerate(zip(recorded, mine, strict=True))
            for problem in differences(left, right, f"{path}[{index}]")
        ]
    if recorded == mine and isinstance(recorded, bool) == isinstance(mine, bool):
        return []
    return [f"{path}: {_short(mine)}, recorded {_short(recorded)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 700 else text[:700] + "..."


# ---- Watches


async def run_watch(
    server: ApiServer, entry: Mapping[str, Any], answers: dict[str, Any], norm: Normaliser
) -> list[str]:
    """Run one watch scenario."""
    for step in entry.get("setup") or ():
        setup = {"setup_of": "*", "response": {"status": 0}, **step}
        answers[step["name"]] = (await _poll(server, setup, answers)).decoded()
    if "watch" not in entry:
        return []
    stop = asyncio.Event()
    answered = Answered()
    who = entry.get("as") or entry["watch"].get("as", "admin")
    task = asyncio.create_task(send(server, entry["watch"], who, answers, stop, answered))
    await asyncio.sleep(0.05)
    for action in entry.get("actions") or ():
        step = {"setup_of": "*", "response": {"status": 0}, "name": "action", **action}
        answers[step["name"]] = (await _poll(server, step, answers)).decoded()
        await asyncio.sleep(0.05)
    closes = entry.get("end") == "client closes"
    if closes:
        await asyncio.sleep(0.3)
        stop.set()
    await asyncio.wait_for(task, 15)
    if entry.get("http_status", 200) != 200:
        if not _same_status(answered.status, entry["http_status"]):
            return [f"status {answered.status}, recorded {entry['http_status']}"]
        if answered.status != entry["http_status"]:
            return []
        return differences(_without_tail(entry["body"]), _without_tail(norm.apply(answered.decoded())))
    events = [json.loads(line) for line in answered.body.splitlines()]
    norm.learn(events)
    mine = drop(norm.apply(events), ["managedFields"])
    theirs = drop(norm.apply(entry["events"]), ["managedFields"])
    if "unordered" in (entry.get("flags") or ()):
        mine, theirs = _canonical(mine), _canonical(theirs)
    return differences(theirs, _ages(mine, theirs))


def is_watching(step: Mapping[str, Any]) -> bool:
    return parse_bool(str((step["request"].get("query") or {}).get("watch", "")))
