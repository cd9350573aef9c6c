"""One Pod on this node: from its declaration to processes, and from what they do to its status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shallop_pod
from shallop.embedded.kubelet.containerenv import container_environment, expand, expand_all
from shallop.embedded.kubelet.environments import Environment
from shallop.embedded.kubelet.execution import (
    AttachedExecution,
    LogExecution,
    ProcessExecution,
    read_all,
    start_execution,
)
from shallop.embedded.kubelet.holders import HELD, Sharing, can_share
from shallop.embedded.kubelet.ignored import ignored_fields
from shallop.embedded.kubelet.images import stand_in
from shallop.embedded.kubelet.logs import follow_streams, last_lines, log_file, log_path
from shallop.embedded.kubelet.memory_volumes import in_memory, remove_pod_folder
from shallop.embedded.kubelet.podfolder import PRIVATE, make_container_folders
from shallop.embedded.kubelet.probes import Exec, check, watch_probe
from shallop.embedded.kubelet.sandbox import (
    Ended,
    NetworkOptions,
    Sandbox,
    end_orphans,
    kill_shim,
    read_ended,
    take_interrupted,
)
from shallop.embedded.kubelet.status import ContainerRecord, render_status, seconds_time, terminated_state
from shallop.embedded.kubelet.volumes import (
    TokenVolume,
    container_mounts,
    has_size_limits,
    over_limit,
    prepare_volumes,
    references,
    token_seconds,
)
from shallop.errors import ApiError, EnvironmentBuildError, ImageResolutionError, NodeError, NotFoundError
from shallop.kube.objects import Gvk, Key, Object, annotations_of, format_time, is_deleting, parse_quantity, parse_time
from shallop_pod.zygote import Request

if TYPE_CHECKING:
    from shallop.embedded.kubelet.node import Node

__all__ = ["REQUIREMENTS", "PodWorker"]

log = logging.getLogger(__name__)
_POD = Gvk("v1", "Pod")
REQUIREMENTS = "environment.shallop.dev/requirements"
ISOLATION = "shallop.dev/isolation"
# Of Pods that are many of a kind: their Python programs run in forked processes, see shallop_pod.interpreter.
WARM = "start.shallop.dev/warm"
_BACK_OFF_S = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
_SETUP_RETRY_S = (1.0, 5.0, 15.0, 60.0, 300.0)
# A container that ran this long starts its back-off anew.
_STABLE_S = 600.0
_FIRST_PROBE_S = 0.05
_KILL_S = 5.0
# A Pod that runs to its end may be over so soon that nobody needs to hear that it ran: a write less.
_BRIEF_S = 0.025
# The same of a Pod that is one of many of a kind.
_BRIEF_OF_MANY_S = 0.15
# What begins with the start of a container, which must be known at once then.
_BEGIN_AT_START = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "restartPolicy")
# How long what a Pod leaves stays that is over: the next step of its chain, or the next trial, starts first.
_LINGER_S = 0.02
# How often volumes with a size limit are measured.
_MEASURE_S = 5.0
_HOOK_S = 600.0
# A token is replaced when this part of its life is over.
_TOKEN_AGE = 0.8


class PodWorker:
    """
    Runs one Pod. ``update`` brings news of its object; everything else comes from its shim, probes and timers.

    One task per Pod takes every decision, so that no two of them race; status is written by others, one at a time and
    always the newest, so that a slow API never delays a start.
    """

    def __init__(self, node: Node, pod: Object) -> None:
        self._node = node
        self._pod = pod
        self._references: set[tuple[str, str]] | None = None  # looked for when something has changed
        self._uid = str(pod["metadata"]["uid"])
        self._folder = node.settings.pods / self._uid
        self._wake = asyncio.Event()
        self._sandbox: Sandbox | None = None
        self._records = _records(pod)
        self._specs = {c["name"]: c for c in (*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"])}
        self._environments: dict[str, Environment] = {}
        # Containers that the engine runs, because no environment stands for their image.
        self._engined: set[str] = set()
        self._volumes: dict[str, Path] = {}
        self._token_volume: TokenVolume | None = None
        self._probes: dict[str, list[asyncio.Task[None]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._asked: dict[str, tuple[Environment | None, Request, Sharing | None]] = {}
        # Runs of containers that the shim has not heard of yet: what they are forked from is being started.
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._address = ""
        self._start_time = (pod.get("status") or {}).get("startTime") or format_time(node.now())
        self._verdict: tuple[str, str, str] = ("", "", "")
        self._kill_at: float | None = None
        self._gone = False
        self._too_large = ""
        self._ending = False
        self._stopping: set[str] = set()
        self._stops: set[asyncio.Task[None]] = set()
        self._lost = False
        self._stale = False
        self._written: dict[str, Any] | None = None
        # What brings the newest status to the API, and whether that has changed since it began.
        self._writer: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._changed = self._over = False

    @property
    def key(self) -> str:
        return f"{self._pod['metadata']['namespace']}/{self._pod['metadata']['name']}"

    @property
    def _is_one_of_many(self) -> bool:
        return annotations_of(self._pod).get(WARM) == "true"

    @property
    def _brief_s(self) -> float:
        """For how long nobody needs to hear that it runs, because it may be over by then."""
        if self._pod["spec"].get("restartPolicy", "Always") == "Always":
            return 0.0
        return _BRIEF_OF_MANY_S if self._is_one_of_many else _BRIEF_S

    def update(self, pod: Object | None) -> None:
        """Take the newest object; None when it no longer exists."""
        if pod is None:
            self._gone = True
        else:
            self._pod = pod
        self._wake.set()

    def refresh(self, kind: str, key: Key) -> None:
        """A ConfigMap or Secret has changed: bring files up to date, and try again what it was missing for."""
        if key.namespace != self._pod["metadata"]["namespace"]:
            return
        if self._references is None:
            self._references = references(self._pod)
        if (kind, key.name) not in self._references:
            return
        for record in self._records:
            if (record.state.get("waiting") or {}).get("reason") == "CreateContainerConfigError":
                record.next_start = 0.0
                if timer := self._timers.pop(record.name, None):
                    timer.cancel()
        self._stale = True
        self._wake.set()

    def is_running(self, container: str) -> bool:
        return any(record.name == container and not record.finished for record in self._records) and not self._gone

    @property
    def network_namespace(self) -> str:
        """Path of the Pod's own network namespace; empty when it has none."""
        own = self._node.network.own_network and not self._pod["spec"].get("hostNetwork")
        return self._sandbox.network_namespace if own and self._sandbox is not None else ""

    def first_processes(self) -> dict[str, int]:
        """Return the first process of each running container."""
        started = self._sandbox.started if self._sandbox is not None else {}
        return {r.name: int(started[r.id]["pid"]) for r in self._records if r.running and r.id in started}

    def current_restart(self, container: str) -> int:
        return next((record.restarts for record in self._records if record.name == container), 0)

    async def run(self) -> None:
        """Work until the Pod is over; cancelling leaves its processes as they are."""
        measurer = asyncio.create_task(self._watch_sizes()) if has_size_limits(self._pod) else None
        try:
            if self._phase() in ("Succeeded", "Failed") and not any(record.running for record in self._records):
                await self._clear_remains()
                await self._wait_for_deletion()
                return
            if await self._set_up():
                await self._loop()
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._stop_probes()
            self._over = True
            left = [task for task in (self._writer, measurer) if task is not None]
            for task in left:
                task.cancel()
            await asyncio.gather(*(t for t in left if isinstance(t, asyncio.Task)), return_exceptions=True)
            if self._sandbox is not None:
                self._sandbox.leave()

    def _phase(self) -> str:
        return str((self._pod.get("status") or {}).get("phase", "Pending"))

    async def _clear_remains(self) -> None:
        """
        Free what a Pod that is over still has, because the platform was killed while it did so.

        Its containers' records may be gone already: taken for a Pod that begins, it would run once more.
        """
        if self._folder.exists():
            self._sandbox = await Sandbox.adopt(self._folder, self._told)
            if self._sandbox is None:
                await asyncio.to_thread(end_orphans, self._folder)
            await self._clean_up()

    # Setting up -------------------------------------------------------------------------------------------------

    async def _set_up(self) -> bool:
        """Make volumes, environments and the sandbox; False when the Pod went away before."""
        known = self._folder.exists() or (self._pod.get("status") or {}).get("containerStatuses")
        if known:
            await self._adopt()
        if not any(record.running or record.exit_code is not None for record in self._records):
            for text in ignored_fields(self._pod, memory_volumes=self._node.may_mount):
                self._event("FieldIgnored", text, "Warning")
        if await self._prepare_with_retries():
            return True
        await self._clean_up()
        return False

    async def _prepare_with_retries(self) -> bool:
        attempt = 0
        while not self._gone:
            if is_deleting(self._pod):
                return True
            try:
                await self._prepare()
            except (NodeError, OSError, ApiError) as error:
                self._show_problem(error)
                delay = _SETUP_RETRY_S[min(attempt, len(_SETUP_RETRY_S) - 1)]
                attempt += 1
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
                continue
            return True
        return False

    async def _adopt(self) -> None:
        """Take over what an earlier process of the platform started."""
        self._sandbox = await Sandbox.adopt(self._folder, self._told)
        if self._sandbox is None:
            await asyncio.to_thread(end_orphans, self._folder)
        ended = await asyncio.to_thread(read_ended, self._folder)
        started = self._sandbox.started if self._sandbox else {}
        known = (self._pod.get("status") or {}).get("podIP") or ""
        if self._sandbox or ended:
            self._address = known
        interrupted = await asyncio.to_thread(take_interrupted, self._folder)
        stopped = {id_.rpartition("-")[0]: int(id_.rpartition("-")[2]) for id_ in interrupted}
        for record in self._records:
            if record.name in stopped and self._sandbox is None:
                # The platform was stopped under it: it has not failed, it runs again.
                record.state, record.restarts = {"waiting": {"reason": "ContainerCreating"}}, stopped[record.name] + 1
                record.ready = record.started = False
                continue
            runs = [int(id_.rpartition("-")[2]) for id_ in (*started, *ended) if id_.rpartition("-")[0] == record.name]
            if "running" in record.state and record.restarts not in runs:
                now = time.time()
                self._end(record, Ended(record.id, 137, 9, now, now), "it was killed together with its shim")
                continue
            if not runs:
                continue
            record.restarts = max(runs)
            if record.id in started:
                self._mark_running(record, started[record.id]["at"])
            else:
                self._end(record, ended[record.id])

    async def _prepare(self) -> None:
        node, pod = self._node, self._pod
        own_network = node.network.own_network and not pod["spec"].get("hostNetwork")
        if self._sandbox is None and not self._address and own_network == node.network.own_network:
            self._sandbox = node.spares.take(self._uid, self._folder, self._told)
        if self._sandbox is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._address = node.network.allocate(self._uid, self._address)
        node.announce(pod, self._address)
        self._stale = False
        await self._prepare_volumes(None if self._sandbox is None else self._sandbox.kept.token)
        names = [record.name for record in self._records if not record.finished]
        if len(names) == 1:
            environments = [await self._environment(self._specs[names[0]])]
        else:
            environments = await asyncio.gather(*(self._environment(self._specs[name]) for name in names))
        self._environments.update(zip(names, environments, strict=True))
        if self._sandbox is None:
            network = NetworkOptions("", self._address, 0, "")
            if own_network:
                network = NetworkOptions(node.network.bridge, self._address, node.network.prefix, node.network.gateway)
            zygote = await node.base_zygote()
            self._sandbox = await Sandbox.create(self._folder, zygote, network, self._told)

    async def _refresh_volumes(self) -> None:
        self._stale = False
        try:
            await self._prepare_volumes()
        except (NodeError, OSError, ApiError) as error:
            # What runs goes on with what it has, as on Kubernetes.
            self._event("FailedMount", str(error), "Warning")
            self._renew_tokens()

    async def _prepare_volumes(self, kept: TokenVolume | None = None) -> None:
        node = self._node
        self._volumes, self._token_volume = await prepare_volumes(
            self._pod, node.settings, self._lookup, node.token, node.ca_pem, may_mount=node.may_mount, kept=kept
        )
        self._renew_tokens()

    def _renew_tokens(self) -> None:
        if (seconds := token_seconds(self._pod)) is None:
            return
        if timer := self._timers.pop("token", None):
            timer.cancel()

        def due() -> None:
            self._stale = True
            self._due("token")

        self._timers["token"] = asyncio.get_running_loop().call_later(_TOKEN_AGE * seconds, due)

    async def _environment(self, container: Object) -> Environment:
        node = self._node
        argv = [*(container.get("command") or ()), *(container.get("args") or ())]
        extra = [line for line in annotations_of(self._pod).get(REQUIREMENTS, "").splitlines() if line.strip()]
        # The annotation is about the model's libraries; what fetches the model needs none of them.
        is_init = any(record.init and record.name == container["name"] for record in self._records)
        try:
            spec = node.environments.resolve(container["image"], argv, () if is_init else extra)
        except ImageResolutionError:
            if node.engine is None:
                raise
            await node.engine.ensure(container["image"], container.get("imagePullPolicy") or "IfNotPresent")
            self._engined.add(container["name"])
            return await node.base()
        for warning in spec.warnings:
            self._event("ImageSubstituted", warning, "Warning", container["name"])
        started = time.monotonic()
        told = False

        def progress(text: str) -> None:
            nonlocal told
            if not told:
                self._show()
                self._event("Pulling", f'Pulling image "{container["image"]}": {text}', container=container["name"])
                told = True

        environment = await node.environments.ensure(spec, progress)
        if told:
            seconds = time.monotonic() - started
            self._event(
                "Pulled", f'Image "{container["image"]}" is ready after {seconds:.1f}s', container=container["name"]
            )
        return environment

    def _show_problem(self, error: Exception) -> None:
        reason = "CreateContainerConfigError"
        if isinstance(error, ImageResolutionError | EnvironmentBuildError):
            reason = "ErrImagePull"
            if any(
                (r.state.get("waiting") or {}).get("reason", "").startswith(("ErrImage", "ImagePull"))
                for r in self._records
            ):
                reason = "ImagePullBackOff"
        for record in self._records:
            if "waiting" in record.state:
                record.state = {"waiting": {"reason": reason, "message": str(error)}}
        self._event("Failed", str(error), "Warning")
        self._show()

    def _lookup(self, kind: str, name: str) -> Object | None:
        return self._node.lookup(kind, self._pod["metadata"]["namespace"], name)

    # Deciding ---------------------------------------------------------------------------------------------------

    async def _loop(self) -> None:
        while not self._gone:
            self._wake.clear()
            if self._lost:
                await self._recover()
            if self._stale and not is_deleting(self._pod):
                await self._refresh_volumes()
            if is_deleting(self._pod):
                if await self._terminate():
                    return
            elif self._expired():
                self._kill_everything(
                    "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
                )
            elif self._too_large and not self._verdict[0]:
                self._kill_everything("Evicted", self._too_large)
            else:
                self._advance()
            if self._is_over():
                await self._finish()
                await self._wait_for_deletion()
                return
            await self._wake.wait()
        await self._clean_up()

    def _advance(self) -> None:
        """Start what may start now."""
        if self._verdict[0]:
            return
        for record in self._records:
            if not record.init:
                break
            if not record.running and not record.finished:
                self._start_when_due(record)
            if record.sidecar and record.started:
                continue
            if record.exit_code != 0 or not record.finished:
                return
        for record in self._records:
            if not record.init and not record.running and not record.finished:
                self._start_when_due(record)

    def _start_when_due(self, record: ContainerRecord) -> None:
        loop = asyncio.get_running_loop()
        if record.name in self._timers:
            return
        delay = record.next_start - loop.time()
        if delay > 0:
            self._timers[record.name] = loop.call_later(delay, self._due, record.name)
            return
        if record.exit_code is not None:
            record.last, record.restarts = record.state, record.restarts + 1
        try:
            self._start(record)
        except (NodeError, OSError) as error:
            record.state = {"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}}
            record.next_start = loop.time() + 10
            self._event("Failed", f"Error: {error}", "Warning", record.name)
            self._timers[record.name] = loop.call_later(10, self._due, record.name)
            self._show()

    def _due(self, name: str) -> None:
        self._timers.pop(name, None)
        self._wake.set()

    def _expired(self) -> bool:
        limit = self._pod["spec"].get("activeDeadlineSeconds")
        if limit is None or self._verdict[0]:
            return False
        left = parse_time(self._start_time).timestamp() + float(limit) - time.time()
        if left > 0 and "deadline" not in self._timers:
            self._timers["deadline"] = asyncio.get_running_loop().call_later(left, self._due, "deadline")
        return left <= 0

    async def _watch_sizes(self) -> None:
        """Evict the Pod when one of its volumes grows over its limit."""
        while True:
            await asyncio.sleep(_MEASURE_S)
            problem = await asyncio.to_thread(over_limit, self._pod, self._volumes)
            if problem:
                self._too_large = problem
                self._wake.set()
                return

    def _kill_everything(self, reason: str, message: str) -> None:
        self._verdict = ("Failed", reason, message)
        self._event(reason, message)
        for record in self._records:
            if record.running:
                self._signal(record, signal.SIGKILL)
            else:
                record.finished = True

    def _is_over(self) -> bool:
        if self._verdict[0]:
            return not any(record.running for record in self._records)
        failed_init = any(r.init and not r.sidecar and r.finished and r.exit_code for r in self._records)
        main = [record for record in self._records if not record.init]
        return failed_init or all(record.finished for record in main)

    # Containers -------------------------------------------------------------------------------------------------

    def _start(self, record: ContainerRecord) -> None:
        assert self._sandbox is not None
        container = self._specs[record.name]
        environment = self._environments[record.name]
        if record.restarts or self._sandbox.kept.container != record.name:
            make_container_folders(str(self._folder), record.name)
        if record.name in self._engined:
            self._launch(record, None, self._by_engine(record, container))
            return
        env = self._env(container, environment)
        words = [*(container.get("command") or environment.spec.command), *(container.get("args") or ())]
        if not container.get("command") and not container.get("args"):
            words += environment.spec.args
        if not words:
            raise NodeError(
                f"container '{record.name}': no command, and the entrypoint of image '{container['image']}' is "
                "not known here; set command in the Pod"
            )
        argv = expand_all(words, env)
        argv = stand_in(argv, dict(environment.spec.programs))
        if "workingDir" not in container and environment.spec.workdir:
            container = {**container, "workingDir": environment.spec.workdir}
        request = self._node.isolate(self._pod, container, self._mounts(record, environment, env), argv, env)
        plain = True
        if request.plan is not None:
            self._limit(record, container)
            request.plan["cgroups"] = self._node.groups.existing(self._uid, record.id)
        program, option, module = [*request.argv, "", ""][:3]
        if program in ("python3", "python") and option == "-m" and module.startswith("shallop_pod."):
            request = replace(request, module=module, argv=request.argv[3:])
            plain = False
        elif program in ("python3", "python") and self._is_one_of_many:
            request = replace(request, module="shallop_pod.interpreter")
            plain = False
        self._launch(record, None if plain else environment, request, self._sharing(record, container, request, env))

    def _launch(
        self,
        record: ContainerRecord,
        environment: Environment | None,
        request: Request,
        sharing: Sharing | None = None,
    ) -> None:
        record.ready = record.started = False
        self._ask(record.id, environment, request, sharing)
        # Between asking and being told it counts as running: it must not be asked for twice.
        record.state = {"running": {"startedAt": seconds_time(time.time())}}

    def _ask(self, id_: str, environment: Environment | None, request: Request, sharing: Sharing | None) -> None:
        if sharing is None and (socket := self._node.ready_zygote(environment)) is not None:
            self._order(id_, socket, request, (environment, request, sharing))
            return
        task = asyncio.get_running_loop().create_task(self._ask_to_start(id_, environment, request, sharing))
        self._asking[id_] = task
        task.add_done_callback(lambda done: self._asking.pop(id_) if self._asking.get(id_) is done else None)

    def _sharing(
        self, record: ContainerRecord, container: Object, request: Request, env: Mapping[str, str]
    ) -> Sharing | None:
        """Return what a container that may share its model's memory is to share it by, None for the others."""
        if annotations_of(self._pod).get(WARM) == "false":
            return None
        level = self._node.isolation.level
        owner = can_share(self._pod, container, request, level=level, restarts=record.restarts)
        if not owner:
            return None
        mounts = container_mounts(container, self._volumes, env, f"spec.containers[{record.name}]")
        sources = {mount["target"]: mount["source"] for mount in mounts}
        limits = (container.get("resources") or {}).get("limits") or {}
        return Sharing(
            (owner, record.name),
            self._uid,
            request,
            sources,
            self.network_namespace,
            int(parse_quantity(limits["memory"])) if "memory" in limits else None,
            float(parse_quantity(limits["cpu"])) if "cpu" in limits else None,
        )

    def _by_engine(self, record: ContainerRecord, container: Object) -> Request:
        """Return what runs a container by the engine: its client, as a process of the machine."""
        engine, node = self._node.engine, self._node
        assert engine is not None
        inherited = {name for name in node.base_environment() if not name.startswith("KUBERNETES_")}
        base = {name: value for name, value in node.base_environment().items() if name not in inherited}
        env = container_environment(self._pod_with_address(), container, self._lookup, base)
        expanded = {**container, **{k: expand_all(container[k], env) for k in ("command", "args") if container.get(k)}}
        kind = "initContainers" if record.init else "containers"
        mounts = container_mounts(container, self._volumes, env, f"spec.{kind}[{record.name}]")
        hosts = node.network.hosts.of(self._pod["metadata"]["namespace"])
        mounts.append({"target": "/etc/hosts", "source": str(hosts), "readonly": True})
        path = container.get("terminationMessagePath") or "/dev/termination-log"
        mounts.append({"target": path, "source": self._message_file(record.name)})
        argv, env = engine.render_run(
            self._engine_name(record), expanded, env, mounts, hostname=self._hostname(), network=self.network_namespace
        )
        return Request("shallop_pod.execute", argv, env, "/", {"reap": True})

    def _engine_name(self, record: ContainerRecord) -> str:
        return f"shallop-{self._uid}-{record.id}"

    def _limit(self, record: ContainerRecord, container: Object) -> None:
        limits = (container.get("resources") or {}).get("limits") or {}
        memory, cpu = limits.get("memory"), limits.get("cpu")
        if memory is None and cpu is None:
            return
        failed = self._node.groups.limit(
            self._uid,
            record.id,
            memory_bytes=None if memory is None else int(parse_quantity(memory)),
            cpu_cores=None if cpu is None else float(parse_quantity(cpu)),
        )
        why = "control groups cannot be made on this machine without root"
        if "memory" in failed:
            text = f"limit of {memory} is not enforced: {why}"
            self._event("MemoryLimitIgnored", text, "Warning", record.name)
        if "cpu" in failed:
            text = f"limit of {cpu} is not enforced, only OMP_NUM_THREADS is set: {why}"
            self._event("CPULimitIgnored", text, container=record.name)

    async def _ask_to_start(
        self, id_: str, environment: Environment | None, request: Request, sharing: Sharing | None
    ) -> None:
        """Have the shim start a container by the fork-server of an environment; None: any that runs programs."""
        node, asked = self._node, request
        try:
            socket = None
            if sharing is not None and environment is not None:
                socket = await node.holders.socket(environment, sharing)
            if socket is not None:
                asked = replace(request, module=HELD[request.module])
            else:
                socket = await (node.base_zygote() if environment is None else node.zygotes.socket(environment))
        except (NodeError, EnvironmentBuildError) as error:
            self._told({"event": "failed", "id": id_, "error": str(error)})
            return
        self._order(id_, socket, asked, (environment, request, sharing))

    def _order(
        self, id_: str, socket: Path, request: Request, asked: tuple[Environment | None, Request, Sharing | None]
    ) -> None:
        if self._sandbox is not None:
            name, _, restart = id_.rpartition("-")
            self._asked[id_] = asked
            settings = self._node.settings
            file = log_file(settings, self._pod, name, int(restart))
            rotated = (file, int(settings.log_max_mib * 2**20), settings.log_files)
            spec = self._specs[name]
            brief_s = 0.0 if any(spec.get(key) for key in _BEGIN_AT_START) else self._brief_s
            self._sandbox.start(id_, socket, rotated, request, _attachable(spec), brief_s)

    def _env(self, container: Object, environment: Environment) -> dict[str, str]:
        name = container["name"]
        base = self._node.base_environment()
        base["PATH"] = f"{environment.path}/bin:{base['PATH']}"
        base |= {"HOME": f"{self._folder}/home/{name}", "HOSTNAME": self._hostname()}
        base["TERMINATION_LOG"] = self._message_file(name)
        base |= {"VIRTUAL_ENV": str(environment.path), "POD_IP": self._address}
        limits = (container.get("resources") or {}).get("limits") or {}
        if "cpu" in limits:
            base["OMP_NUM_THREADS"] = str(self._node.threads(limits["cpu"]))
        base |= self._node.gpus.variables(self._folder, container)
        base |= {name: expand(value, base) for name, value in environment.spec.env}
        return container_environment(self._pod_with_address(), container, self._lookup, base)

    def _pod_with_address(self) -> Object:
        if not self._address:
            return self._pod
        status = self._pod.get("status") or {}
        return {**self._pod, "status": {**status, "podIP": self._address, "hostIP": "127.0.0.1"}}

    def _hostname(self) -> str:
        return str(self._pod["spec"].get("hostname") or self._pod["metadata"]["name"])[:63]

    def _message_file(self, name: str) -> str:
        return f"{self._folder}/messages/{name}"

    def _mounts(
        self, record: ContainerRecord, environment: Environment, env: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        container = self._specs[record.name]
        kind = "initContainers" if record.init else "containers"
        mounts = container_mounts(container, self._volumes, env, f"spec.{kind}[{record.name}]")
        if not self._node.may_mount:
            # Every container has a /dev/shm in memory; a volume of this kind is declared to make it large enough.
            # Here that is no tmpfs of its own, so the container's is the one in memory.
            memory = in_memory(self._pod)
            declared = container.get("volumeMounts") or ()
            if any(mount["mountPath"] == "/dev/shm" and mount["name"] in memory for mount in declared):
                mounts = [mount for mount in mounts if mount["target"] != "/dev/shm"]
        taken = {mount["target"].rstrip("/") for mount in mounts}
        for target, name in PRIVATE.items():
            if target not in taken:
                mounts.append({"target": target, "source": f"{self._folder}/private/{record.name}/{name}"})
        if "/etc/hosts" not in taken:
            hosts = self._node.network.hosts.of(self._pod["metadata"]["namespace"])
            mounts.append({"target": "/etc/hosts", "source": str(hosts)})
        if self._node.network.resolv_conf and not self._pod["spec"].get("hostNetwork"):
            mounts.append({"target": "/etc/resolv.conf", "source": str(self._node.network.resolv_conf)})
        mounts.append({"target": "/dev", "devices": True})
        path = container.get("terminationMessagePath") or "/dev/termination-log"
        mounts.append({"target": path, "source": self._message_file(record.name)})
        mounts += self._working_folder(record, mounts)
        mounts += self._visible(environment, record.name, mounts)
        return mounts

    def _working_folder(self, record: ContainerRecord, mounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Make the working directory, as container engines do: in the volume where it lies, or as a private folder."""
        asked = self._specs[record.name].get("workingDir") or self._environments[record.name].spec.workdir
        if not asked or asked == "/":
            return []
        path = Path(asked)
        for mount in sorted(mounts, key=lambda mount: len(mount["target"]), reverse=True):
            if path.is_relative_to(mount["target"]) and "source" in mount:
                if not mount.get("readonly"):
                    (Path(mount["source"]) / path.relative_to(mount["target"])).mkdir(parents=True, exist_ok=True)
                return []
        if path.is_dir():
            return []
        folder = self._folder / "private" / record.name / "workdir"
        folder.mkdir(mode=0o755, exist_ok=True)
        return [{"target": str(path), "source": str(folder)}]

    def _visible(self, environment: Environment, container: str, mounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Hide the platform's own data, and show again what a process needs of it, or of a covered folder."""
        settings = self._node.settings
        hidden = [{"target": place, "tmpfs": True} for place in _places_of(settings.home, mounts)]
        folder = str(self._folder)
        needed = [
            *_always_needed(settings.artifacts, settings.run, environment.path, environment.python),
            f"{folder}/home/{container}",
            f"{folder}/messages",
        ]
        targets = [mount["target"] for mount in (*mounts, *hidden)]
        covers = {os.path.normpath(target) for target in targets if not target.startswith("/etc/")}
        prefixes = tuple(f"{cover.rstrip('/')}/" for cover in covers)
        shown = [path for path in needed if path in covers or path.startswith(prefixes)]
        return hidden + [{"target": path, "source": path} for path in dict.fromkeys(shown)]

    def _told(self, event: dict[str, Any] | None) -> None:
        """Take news of the shim."""
        if event is None:
            self._lost = True
        elif (record := next((r for r in self._records if r.id == event.get("id")), None)) is not None:
            asked = self._asked.pop(record.id, None)
            if event["event"] == "started" or (event["event"] == "exited" and asked is not None):
                self._event("Started", f"Started container {record.name}", container=record.name)
            if event["event"] == "started":
                self._mark_running(record, event["at"], hook=True)
            elif event["event"] == "failed" and event.get("unreachable") and asked is not None:
                # The fork-server ended between our asking for it and the shim's; the next one is new.
                self._ask(record.id, *asked)
            elif event["event"] == "failed":
                now = time.time()
                self._end(record, Ended(record.id, 128, None, 0.0, now), event["error"])
                self._event("Failed", f"Error: {event['error']}", "Warning", record.name)
            elif event["event"] == "exited":
                self._end(record, Ended(**{key: value for key, value in event.items() if key != "event"}))
        self._wake.set()

    def _mark_running(self, record: ContainerRecord, at: float, *, hook: bool = False) -> None:
        record.state = {"running": {"startedAt": seconds_time(at)}}
        if hook and (self._specs[record.name].get("lifecycle") or {}).get("postStart"):
            self._stop_probes(record.name)
            self._probes[record.name] = [asyncio.create_task(self._post_start(record))]
        else:
            self._begin_service(record)

    async def _post_start(self, record: ContainerRecord) -> None:
        """Run the hook; until it is done the container is not started, when it fails the container ends."""
        problem = await self._run_hook(record, self._specs[record.name]["lifecycle"]["postStart"], _HOOK_S)
        if problem:
            self._event("FailedPostStartHook", f"PostStartHook failed: {problem}", "Warning", record.name)
            self._signal(record, signal.SIGKILL)
        else:
            self._begin_service(record)

    async def _run_hook(self, record: ContainerRecord, hook: Mapping[str, Any], timeout_s: float) -> str:
        """Do what a lifecycle hook says; returns what went wrong, empty when nothing did."""
        if "sleep" in hook:
            await asyncio.sleep(float(hook["sleep"]["seconds"]))
            return ""
        probe = {**hook, "timeoutSeconds": timeout_s}
        return await check(probe, self._specs[record.name], self._address, self._execute_in(record))

    def _begin_service(self, record: ContainerRecord) -> None:
        container = self._specs[record.name]
        record.started = "startupProbe" not in container
        record.ready = record.started and "readinessProbe" not in container
        self._start_probes(record, container)
        self._show(0.0)

    def _end(self, record: ContainerRecord, ended: Ended, message: str = "") -> None:
        self._stop_probes(record.name)
        record.ready = record.started = False
        out_of_memory = ended.code == 137 and self._node.groups.ran_out_of_memory(self._uid, record.id)
        self._node.groups.remove(self._uid, record.id)
        text = message or self._message(record, ended)
        record.state = terminated_state(ended, self._uid, text, out_of_memory=out_of_memory)
        policy = self._pod["spec"].get("restartPolicy", "Always")
        again = policy == "Always" or (policy == "OnFailure" and ended.code != 0)
        if record.init and not record.sidecar:
            again = ended.code != 0 and policy != "Never"
        record.finished = self._ending or not (again or record.sidecar)
        if not record.finished:
            stable = ended.at - ended.started_at > _STABLE_S
            record.failures = 0 if stable else record.failures + 1
            delay = _BACK_OFF_S[min(record.failures - 1, len(_BACK_OFF_S) - 1)] if record.failures else 0.0
            record.next_start = asyncio.get_running_loop().time() + delay
            if delay and not is_deleting(self._pod):
                self._crash_loop(record, delay)
        if not self._is_over():  # the last status is written by _finish
            self._show()

    def _crash_loop(self, record: ContainerRecord, delay: float) -> None:
        text = f"back-off {delay:.0f}s restarting failed container={record.name} pod={self.key}"
        record.last = record.state
        record.state = {"waiting": {"reason": "CrashLoopBackOff", "message": text}}
        record.restarts += 1
        self._event("BackOff", f"Back-off restarting failed container {record.name}", "Warning", record.name)

    def _message(self, record: ContainerRecord, ended: Ended) -> str:
        path = self._message_file(record.name)
        with contextlib.suppress(OSError):
            # Most containers leave none. The container may have made it anything: a link, or a pipe.
            found = os.lstat(path)
            if found.st_size and stat.S_ISREG(found.st_mode):
                flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with open(os.open(path, flags), "r+", errors="replace") as file:
                    text = file.read().strip()
                    file.truncate(0)
                if text:
                    return text
        if ended.code == 0 or self._specs[record.name].get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return ""
        # As on Kubernetes: 80 lines or 2048 bytes, whichever is less.
        return last_lines(log_path(self._node.settings, self._pod, record.name, record.restarts), 80)

    # Probes -----------------------------------------------------------------------------------------------------

    def _start_probes(self, record: ContainerRecord, container: Object) -> None:
        self._stop_probes(record.name)
        if any(name in container for name in ("startupProbe", "readinessProbe", "livenessProbe")):
            self._probes[record.name] = [asyncio.create_task(self._probe(record, container))]

    def _stop_probes(self, name: str = "") -> None:
        if not self._probes:
            return
        for task in [t for key, tasks in self._probes.items() if key == name or not name for t in tasks]:
            task.cancel()
        for key in [key for key in self._probes if key == name or not name]:
            del self._probes[key]

    async def _probe(self, record: ContainerRecord, container: Object) -> None:
        def once(probe: Mapping[str, Any]) -> Any:
            return lambda: check(probe, container, self._address, self._execute_in(record))

        if startup := container.get("startupProbe"):

            def started(good: bool, problem: str) -> None:
                if good:
                    record.started = True
                    record.ready = "readinessProbe" not in container
                    self._show()
                    self._wake.set()
                else:
                    self._unhealthy(record, "Startup", problem, restart=True)

            await watch_probe(startup, once(startup), started, until_success=True, first_period_s=_FIRST_PROBE_S)
        async with asyncio.TaskGroup() as group:
            if readiness := container.get("readinessProbe"):

                def ready(good: bool, problem: str) -> None:
                    if not good:
                        self._unhealthy(record, "Readiness", problem, restart=False)
                    record.ready = good
                    self._show()

                group.create_task(watch_probe(readiness, once(readiness), ready, first_period_s=_FIRST_PROBE_S))
            if liveness := container.get("livenessProbe"):

                def alive(good: bool, problem: str) -> None:
                    if not good:
                        self._unhealthy(record, "Liveness", problem, restart=True)

                group.create_task(watch_probe(liveness, once(liveness), alive))

    def _unhealthy(self, record: ContainerRecord, kind: str, problem: str, *, restart: bool) -> None:
        self._event("Unhealthy", f"{kind} probe failed: {problem}", "Warning", record.name)
        if restart and record.running:
            text = f"Container {record.name} failed {kind.lower()} probe, will be restarted"
            self._event("Killing", text, container=record.name)
            self._signal(record, signal.SIGTERM)
            grace = float(self._pod["spec"].get("terminationGracePeriodSeconds", 30))
            asyncio.get_running_loop().call_later(grace, self._kill_run, record, record.id)

    def _kill_run(self, record: ContainerRecord, id_: str) -> None:
        if record.id == id_ and record.running:
            self._signal(record, signal.SIGKILL)

    async def execute(self, name: str, command: Sequence[str], *, stdin: bool, tty: bool) -> ProcessExecution | None:
        """Start a command in a running container; None when it does not run."""
        record = next((r for r in self._records if r.name == name and r.running), None)
        if record is None or self._sandbox is None or record.id not in self._sandbox.started:
            return None
        if record.name in self._engined and self._node.engine is not None:
            engine = self._node.engine
            argv = engine.render_exec(self._engine_name(record), command, stdin=stdin, tty=tty)
            request = Request("shallop_pod.execute", argv, engine.environment, "/", {"reap": True})
        else:
            request = self._inside(record, self._sandbox.started[record.id]["pid"], list(command))
        if tty:
            request = replace(request, env={"TERM": "xterm", **request.env})
        return await start_execution(await self._node.base_zygote(), request, stdin=stdin, tty=tty)

    async def attach(self, name: str) -> AttachedExecution | LogExecution | None:
        """Join a running container; None when it does not run."""
        record = next((r for r in self._records if r.name == name and r.running), None)
        if record is None or self._sandbox is None or record.id not in self._sandbox.started:
            return None
        if _attachable(self._specs[name]):
            return AttachedExecution(*await self._sandbox.attach(record.id))
        run = record.id

        def is_running() -> bool:
            return record.id == run and self.is_running(name)

        path = log_path(self._node.settings, self._pod, name, record.restarts)
        return LogExecution(follow_streams(path, is_running))

    def _inside(self, record: ContainerRecord, pid: int, argv: list[str]) -> Request:
        """Return what runs a command with a container's variables, in its namespaces and control group."""
        container, environment = self._specs[record.name], self._environments[record.name]
        env = self._env(container, environment)
        if "workingDir" not in container and environment.spec.workdir:
            container = {**container, "workingDir": environment.spec.workdir}
        mounts = self._mounts(record, environment, env) if self._node.isolation.level == "none" else []
        request = self._node.isolate(self._pod, container, mounts, argv, env)
        if self._node.isolation.level == "none":
            return request
        return replace(request, plan={"join": pid, "cgroups": self._node.groups.existing(self._uid, record.id)})

    def _execute_in(self, record: ContainerRecord) -> Exec:
        async def execute(argv: list[str]) -> tuple[int, str]:
            execution = await self.execute(record.name, argv, stdin=False, tty=False)
            if execution is None:
                raise NodeError(f"container {record.name} is not running")
            try:
                return await read_all(execution)
            finally:
                execution.kill()
                execution.close()

        return execute

    # Ending -----------------------------------------------------------------------------------------------------

    def _signal(self, record: ContainerRecord, number: int) -> None:
        if (task := self._asking.get(record.id)) is not None and not task.done():
            # The shim would not know whom to signal, and start it afterwards.
            task.cancel()
            self._told({"event": "failed", "id": record.id, "error": "ended before it was started"})
        elif number == signal.SIGKILL and record.name in self._engined and self._node.engine is not None:
            # Its client cannot pass this one on; it ends when the container does.
            task = asyncio.create_task(self._node.engine.kill(self._engine_name(record)))
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)
        elif self._sandbox is not None:
            self._sandbox.signal(record.id, number)

    async def _terminate(self) -> bool:
        """Go on with stopping a deleted Pod; True when it is done."""
        loop = asyncio.get_running_loop()
        running = [record for record in self._records if record.running]
        if running and self._sandbox is not None:
            if self._kill_at is None:
                grace = self._pod["metadata"].get("deletionGracePeriodSeconds")
                grace = float(self._pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace)
                self._kill_at = loop.time() + grace
                self._timers["kill"] = loop.call_later(grace, self._due, "kill")
                self._stop_probes()
            if loop.time() >= self._kill_at:
                for record in running:
                    self._signal(record, signal.SIGKILL)
                return False
            # Sidecars serve the others to their end.
            main = [record for record in running if not record.sidecar]
            for record in main or running:
                if record.name not in self._stopping:
                    self._stopping.add(record.name)
                    self._event("Killing", f"Stopping container {record.name}", container=record.name)
                    task = asyncio.create_task(self._stop_container(record, self._kill_at - loop.time()))
                    self._stops.add(task)
                    task.add_done_callback(self._stops.discard)
            return False
        for record in self._records:
            record.finished = True
        await self._write_status(self._render("" if self._ran() else "Failed"))
        await self._clean_up()
        metadata = self._pod["metadata"]
        with contextlib.suppress(NotFoundError):
            await self._node.client.delete(
                _POD, metadata["name"], metadata["namespace"], uid=self._uid, grace_period_s=0
            )
        return True

    def _ran(self) -> bool:
        return all(record.exit_code is not None for record in self._records if not record.init)

    async def _stop_container(self, record: ContainerRecord, grace: float) -> None:
        hook = ((self._specs[record.name].get("lifecycle") or {}).get("preStop")) or {}
        if hook and (problem := await self._run_hook(record, hook, grace)):
            self._event("FailedPreStopHook", problem, "Warning", record.name)
        self._signal(record, signal.SIGTERM)

    async def _recover(self) -> None:
        """The shim was killed: what it ran may still run without anybody to write its log, so it is ended."""
        self._lost = False
        kill_shim(self._folder)
        await asyncio.to_thread(end_orphans, self._folder)
        ended = await asyncio.to_thread(read_ended, self._folder)
        if self._sandbox is not None:
            self._sandbox.leave()
        self._sandbox = None
        (self._folder / "shim.sock").unlink(missing_ok=True)
        now = time.time()
        for record in self._records:
            if record.running:
                self._end(record, ended.get(record.id) or Ended(record.id, 137, 9, now, now), "its shim was killed")
        if not self._is_over():
            await self._prepare_with_retries()

    async def _finish(self) -> None:
        """Write the last status, then free everything but the logs."""
        await self._stop_sidecars()
        # Before anybody hears that its place is free.
        self._node.gpus.release(self._folder)
        await self._write_status(self._render())
        await asyncio.sleep(_LINGER_S)
        await self._clean_up()

    async def _stop_sidecars(self) -> None:
        """End the sidecars of a Pod that is over, the last one first, within its grace period."""
        self._ending = True
        loop = asyncio.get_running_loop()
        grace = float(self._pod["spec"].get("terminationGracePeriodSeconds", 30))
        deadline = loop.time() + (0 if self._verdict[0] else grace)
        for record in reversed([record for record in self._records if record.sidecar]):
            if record.running:
                self._stop_probes(record.name)
                await self._stop_container(record, grace)
                await self._ended_by(record, deadline)
            if record.running:
                self._signal(record, signal.SIGKILL)
                await self._ended_by(record, loop.time() + _KILL_S)
            record.finished = True

    async def _ended_by(self, record: ContainerRecord, deadline: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while record.running and not self._lost:
                    self._wake.clear()
                    await self._wake.wait()

    async def _wait_for_deletion(self) -> None:
        while not self._gone and not is_deleting(self._pod):
            self._wake.clear()
            await self._wake.wait()
        if not self._gone:
            metadata = self._pod["metadata"]
            with contextlib.suppress(NotFoundError):
                await self._node.client.delete(
                    _POD, metadata["name"], metadata["namespace"], uid=self._uid, grace_period_s=0
                )

    async def _clean_up(self) -> None:
        self._stop_probes()
        given = False
        if self._sandbox is not None:
            sandbox, kept = self._sandbox, (self._kept(), self._token_volume)
            given = self._recyclable() and await self._node.spares.give_back(self._uid, sandbox, *kept)
            if not given:
                await sandbox.quit()
            self._sandbox = None
        if self._node.isolation.level == "none":
            await asyncio.to_thread(end_orphans, self._folder)
        if self._engined and self._node.engine is not None:
            await self._node.engine.remove_all(f"shallop-{self._uid}-")
        self._node.groups.remove(self._uid)
        self._node.network.release(self._uid)
        self._node.holders.release(self._uid)
        if not given and self._folder.exists():
            await asyncio.to_thread(remove_pod_folder, self._folder)

    def _kept(self) -> str:
        """Return the container whose private folders the next Pod may find; those of several would pile up."""
        return self._records[0].name if len(self._records) == 1 else ""

    def _recyclable(self) -> bool:
        return self._node.isolation.level != "none" and not self._pod["spec"].get("hostNetwork")

    # Status -----------------------------------------------------------------------------------------------------

    def _render(self, phase: str = "") -> dict[str, Any]:
        verdict, reason, message = self._verdict
        now: datetime = self._node.now()
        status = render_status(
            self._pod,
            self._records,
            address=self._address,
            start_time=self._start_time,
            now=now,
            phase=verdict or phase,
            reason=reason,
            message=message,
        )
        for condition in status["conditions"]:
            if condition["type"] == "PodReadyToStartContainers":
                condition["message"] = f"isolation: {self._node.isolation.level}"
        return status

    def _show(self, after_s: float | None = None) -> None:
        """Have the status written that is true by then."""
        self._changed = True
        if self._writer is None and not self._over:
            after_s = self._brief_s if after_s is None else after_s
            self._writer = asyncio.get_running_loop().call_later(after_s, self._begin_writing)

    def _begin_writing(self) -> None:
        self._writer, self._changed = None, False
        if not self._is_over():  # the last status is written by _finish
            self._writer = asyncio.get_running_loop().create_task(self._write_status(self._render()))
            self._writer.add_done_callback(self._end_writing)

    def _end_writing(self, task: asyncio.Task[None]) -> None:
        self._writer = None
        if not task.cancelled() and self._changed:
            self._show()

    async def _write_status(self, status: dict[str, Any]) -> None:
        if status == self._written:
            return
        delay = 0.05
        while not self._gone:
            try:
                self._pod = await self._node.client.patch_status(self._pod, status)
                self._written = status
                return
            except NotFoundError:
                return
            except ApiError as error:
                log.warning("Pod %s: status not written: %s", self.key, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5)

    def _event(self, reason: str, message: str, type_: str = "Normal", container: str = "") -> None:
        kind = "initContainers" if any(r.init and r.name == container for r in self._records) else "containers"
        path = f"spec.{kind}{{{container}}}" if container else ""
        self._node.events.record(self._pod, reason, message, type_, field_path=path)


# Strings, not paths, in what follows: every start of a container asks some dozens of these questions.


def _is_below(path: str, folder: str) -> bool:
    """Say whether a path is a folder or lies in it; both without ``..`` and double slashes."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _places_of(home: Path, mounts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a container would see the platform's home: at its own place, and inside of a mounted folder above it."""
    real = _real(home)
    above = [
        mount
        for mount in mounts
        # Most are of the home itself.
        if "source" in mount
        and not mount["source"].startswith(real)
        and _is_below(real, os.path.normpath(mount["source"]))
    ]
    return [str(home), *(f"{mount['target']}/{os.path.relpath(real, mount['source'])}" for mount in above)]


@lru_cache(maxsize=64)
def _always_needed(artifacts: Path, run: Path, environment: Path, python: Path) -> tuple[str, ...]:
    """What every process needs to see; the last two: where its interpreter and our own package really lie."""
    interpreter, package = os.path.dirname(os.path.dirname(_real(python))), _real(shallop_pod.__path__[0])
    return str(artifacts), str(run / "python"), str(environment), interpreter, package


@lru_cache(maxsize=64)
def _real(path: str | Path) -> str:
    return os.path.realpath(path)


def _attachable(container: Object) -> dict[str, bool]:
    """Return what input a container is declared to have; empty when none."""
    if not (container.get("stdin") or container.get("tty")):
        return {}
    return {"stdin": bool(container.get("stdin")), "tty": bool(container.get("tty")),
            "once": bool(container.get("stdinOnce"))}  # fmt: skip


def _records(pod: Object) -> list[ContainerRecord]:
    status = pod.get("status") or {}
    known = {
        c["name"]: c for c in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    }
    records = []
    for init, containers in ((True, pod["spec"].get("initContainers") or ()), (False, pod["spec"]["containers"])):
        for container in containers:
            sidecar = init and container.get("restartPolicy") == "Always"
            record = ContainerRecord(container["name"], container["image"], init, sidecar)
            if old := known.get(record.name):
                record.restarts = int(old.get("restartCount", 0))
                record.state, record.last = old.get("state") or record.state, old.get("lastState") or {}
            elif not init and pod["spec"].get("initContainers"):
                record.state = {"waiting": {"reason": "PodInitializing"}}
            records.append(record)
    return records
