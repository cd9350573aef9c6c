"""
Processes that hold loaded models: one for each ReplicaSet of model servers, from which its replicas are forked.

Replicas share the memory of their model by copy-on-write, and one more of them neither imports nor loads. A holder
(``shallop_pod.modelserver.holder``) is a fork-server, so that a replica enters its Pod and is watched as any container.
It is there while its ReplicaSet has Pods here. Where anything speaks against it a container starts as ever, and loads
its model itself, and tells what is wrong with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import stat
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from shallop.embedded.kubelet.environments import Environment
from shallop.embedded.kubelet.limits import ControlGroups
from shallop.embedded.kubelet.zygotes import ForkServer, Zygotes
from shallop.errors import NodeError
from shallop.kube.objects import Object
from shallop_pod.shim import process_start
from shallop_pod.zygote import Request, ZygoteError, spawn

__all__ = ["HELD", "Holders", "Sharing", "can_share", "digest_of", "render_key", "render_request"]

log = logging.getLogger(__name__)
# Module of a container -> the one that its holder runs, and that the container then runs in a child of it.
HELD = {"shallop_pod.modelserver": "shallop_pod.modelserver.holder"}
# Different in each Pod, and of no meaning to a model.
_OF_THE_POD = ("HOME", "HOSTNAME", "POD_IP", "SHALLOP_HOSTS", "SHALLOP_POD_IP", "TERMINATION_LOG")
_PRIVATE = ("/tmp", "/var/tmp")
# A container that has failed twice shall not depend on what has been loaded before.
_MOST_RESTARTS = 1
_SHARED_RESOURCES = {"cpu", "memory", "ephemeral-storage"}
# Tokens, which differ from Pod to Pod.
_SECRETS = "/var/run/secrets/"
_IDLE_S = 60.0
_LOAD_TIMEOUT_S = 600.0
_MOST_FILES = 10_000
_MOST_BYTES = 16 << 30
_REMEMBERED = 10_000
_CHUNK_BYTES = 1 << 20
_RUN = "holder"
_KILL_S = 5.0


def can_share(pod: Object, container: Object, request: Request, *, level: str, restarts: int) -> str:
    """
    Return the uid of the ReplicaSet whose Pods may share what this container loads, empty for none. Pure.

    Args:
        level: of isolation; without namespaces paths are different in each Pod.
        restarts: of the container.
    """
    owners = pod["metadata"].get("ownerReferences") or ()
    owner: Object = next((owner for owner in owners if owner.get("controller")), {})
    resources = container.get("resources") or {}
    asked = {*(resources.get("limits") or ()), *(resources.get("requests") or ())}
    plain = not (container.get("stdin") or container.get("tty"))
    if owner.get("kind") != "ReplicaSet" or request.module not in HELD or not plain or asked - _SHARED_RESOURCES:
        return ""
    return str(owner["uid"]) if level != "none" and restarts <= _MOST_RESTARTS else ""


class Sharing(NamedTuple):
    """
    A container that may be forked from a holder.

    Args:
        owner: of its Pod, and the container's name: who shares.
        uid: of its Pod.
        request: how it would be started alone.
        sources: what its volumes are on this machine, by where it sees them.
        network: path of the Pod's network namespace, empty for none.
        memory_bytes, cpu_cores: its limits, for the holder while it loads.
    """

    owner: tuple[str, str]
    uid: str
    request: Request
    sources: Mapping[str, str]
    network: str = ""
    memory_bytes: int | None = None
    cpu_cores: float | None = None


def render_key(environment: str, sharing: Sharing) -> str:
    """Return what must be equal of two containers, beside the content of their volumes, for them to share. Pure."""
    request = sharing.request
    env = {name: value for name, value in request.env.items() if name not in _OF_THE_POD}
    places = sorted(sharing.sources)
    text = json.dumps([environment, request.module, *request.argv, request.cwd, places, env], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def render_request(sharing: Sharing, socket: Path, cgroups: Sequence[str]) -> Request:
    """Return what starts the holder of a container: it is where the container would be while it loads. Pure."""
    request = sharing.request
    plan = {key: value for key, value in (request.plan or {}).items() if key not in ("pid", "netns", "cgroups")}
    private = [{"target": target, "tmpfs": True, "options": "mode=1777"} for target in _PRIVATE]
    own = {*_PRIVATE} - {*sharing.sources}
    plan["mounts"] = [m for m in plan.get("mounts") or () if m["target"] not in own]
    plan["mounts"] += [mount for mount in private if mount["target"] in own]
    plan["cgroups"] = list(cgroups)
    if sharing.network:
        plan["netns"] = sharing.network
    options = ["--socket", str(socket), "--plan", json.dumps(plan), "--idle-s", str(_IDLE_S), "--", *request.argv]
    env = {name: value for name, value in request.env.items() if not name.startswith("SHALLOP_POD_IP")}
    return replace(request, module=HELD[request.module], argv=options, env=env, cwd="/", plan=None)


@dataclass
class _Holder:
    """What holds the models of one ReplicaSet's containers."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: set[str] = field(default_factory=set)
    key: str = ""
    content: str = ""
    server: ForkServer | None = None

    def end(self) -> None:
        if self.server is not None:
            self.server.end()
            self.server = None


class Holders:
    """
    The holders of one instance.

    Args:
        folder: for their sockets; 0700.
    """

    def __init__(self, folder: Path, zygotes: Zygotes, groups: ControlGroups) -> None:
        self._folder = folder
        self._zygotes = zygotes
        self._groups = groups
        self._holders: dict[tuple[str, str], _Holder] = {}
        # Of owners whose Pods are gone, too: a service that comes back from zero would try again each time.
        self._refused: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._known: dict[tuple[int, ...], str] = {}

    async def socket(self, environment: Environment, sharing: Sharing) -> Path | None:
        """
        Return the socket of a holder for a container, which takes as long as loading where none is there yet.

        Returns:
            None: it cannot be shared, and is to be started alone.
        """
        if sharing.owner in self._refused:
            return None
        holder = self._holders.setdefault(sharing.owner, _Holder())
        holder.users.add(sharing.uid)
        async with holder.lock:
            alive = holder.server is not None and holder.server.is_alive()
            key = render_key(environment.key, sharing)
            if alive and holder.key != key:
                return None
            content = asyncio.create_task(asyncio.to_thread(digest_of, sharing.sources, self._known))
            try:
                if alive and holder.content == await content and holder.server is not None:
                    return holder.server.path
                holder.end()
                server = await self._start(environment, sharing)
                # What has changed while it was read may have been read in part.
                loaded = await content
                if not loaded or loaded != await asyncio.to_thread(digest_of, sharing.sources, self._known):
                    server.end()
                    raise NodeError("what its volumes hold is not known well enough")
            except (NodeError, ZygoteError, OSError) as error:
                log.info("container %s of Pod %s loads its model itself: %s", sharing.owner[1], sharing.uid, error)
                self._refuse(sharing.owner)
                return None
            finally:
                content.cancel()
            holder.key, holder.content, holder.server = key, loaded, server
            self._forget_digests()
            if not holder.users:
                # The last Pod went meanwhile.
                holder.end()
                return None
            return server.path

    def release(self, uid: str) -> None:
        """A Pod is over: a holder ends with its last one."""
        for owner, holder in list(self._holders.items()):
            if uid in holder.users:
                holder.users.discard(uid)
                if not holder.users:
                    holder.end()
                    del self._holders[owner]

    def stop(self) -> None:
        """End all, those of an earlier process too; who was forked from one goes on."""
        for holder in self._holders.values():
            holder.end()
        self._holders.clear()
        for path in self._folder.glob("*.sock"):
            with contextlib.suppress(ProcessLookupError):  # it ends by itself just now
                if (left := ForkServer.at(path)) is not None:
                    left.end()
            path.unlink(missing_ok=True)

    def _forget_digests(self) -> None:
        while len(self._known) > _REMEMBERED:
            self._known.pop(next(iter(self._known)))

    def _refuse(self, owner: tuple[str, str]) -> None:
        self._refused[owner] = None
        if len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)

    async def _start(self, environment: Environment, sharing: Sharing) -> ForkServer:
        """Start a holder; one that does not get so far is killed, also when the caller is cancelled."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{os.urandom(8).hex()}.sock"
        # Groups of its own: it may still be ending when its Pod's are removed.
        uid = str(uuid.uuid4())
        if sharing.memory_bytes is not None or sharing.cpu_cores is not None:
            self._groups.limit(uid, _RUN, memory_bytes=sharing.memory_bytes, cpu_cores=sharing.cpu_cores)
        request = render_request(sharing, path, self._groups.existing(uid, _RUN))
        zygote = await self._zygotes.socket(environment)
        server = None
        told, tell = os.pipe()
        try:
            pid = await asyncio.to_thread(_spawn, str(zygote), request, tell)
            try:
                word = await _read(told)
                if word == "ready":
                    server = ForkServer.at(path)
            finally:
                if server is None:
                    await asyncio.to_thread(_kill, pid)
        finally:
            os.close(told)
            self._groups.remove(uid)
        if server is None:
            raise NodeError(word or "the process that was to load it ended")
        return server


def _spawn(zygote: str, request: Request, tell: int) -> int:
    """Start a holder whose word comes through a pipe; returns its pid. Closes the pipe's end."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        child = spawn(zygote, request, (null, tell, null))
    finally:
        os.close(null)
        os.close(tell)
    child.close()
    return child.pid


def _kill(pid: int) -> None:
    """Kill a process that is no child of ours, and wait until it has ended: its control groups can be removed then."""
    with contextlib.suppress(ProcessLookupError):
        started = process_start(pid)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_S
        while started is not None and process_start(pid) == started and time.monotonic() < deadline:
            time.sleep(0.005)


async def _read(pipe: int) -> str:
    """Return what is said on a pipe, empty when its other end is closed without a word."""
    loop = asyncio.get_running_loop()
    said: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pipe, lambda: None if said.done() else said.set_result(None))
    try:
        async with asyncio.timeout(_LOAD_TIMEOUT_S):
            await said
    except TimeoutError:
        return "it took too long"
    finally:
        loop.remove_reader(pipe)
    return os.read(pipe, 4096).decode(errors="replace")


def digest_of(sources: Mapping[str, str], known: MutableMapping[tuple[int, ...], str]) -> str:
    """
    Return a digest of all files of some folders, by the place where they are seen. Blocking.

    Args:
        known: of files that were read before, by what changes when they do; is added to.

    Returns:
        Empty when it cannot be told: too much, or something that is neither file nor folder.
    """
    total = hashlib.sha256()
    count = size = 0
    try:
        for place, source in sorted(sources.items()):
            for name, path in () if place.startswith(_SECRETS) else _walk(source):
                status = os.lstat(path)
                count, size = count + 1, size + status.st_size
                if count > _MOST_FILES or size > _MOST_BYTES:
                    return ""
                entry = [place, name, status.st_mode, _content_of(path, status, source, known)]
                total.update(json.dumps(entry).encode())
    except OSError:
        return ""
    return total.hexdigest()


def _walk(source: str) -> Iterator[tuple[str, str]]:
    """Yield the names and paths of a folder's entries, in one order, or of a file itself."""
    if not os.path.isdir(source):
        yield "", os.path.realpath(source)
        return
    for root, folders, files in os.walk(source):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = os.path.join(root, name)
            yield os.path.relpath(path, source), path


def _content_of(path: str, status: os.stat_result, source: str, known: MutableMapping[tuple[int, ...], str]) -> str:
    """Return the digest of a file or the target of a link; OSError for what may change unseen."""
    if stat.S_ISDIR(status.st_mode):
        return ""
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(path)
        inside = os.path.realpath(path).startswith(os.path.realpath(source) + "/")
        if os.path.isabs(target) or not inside:
            raise OSError(f"{path}: where it leads is not known")
        return target
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path}: no file")
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if identity not in known:
        known[identity] = _read_digest(path)
    return known[identity]


def _read_digest(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
