"""The node agent: this machine as a Node, and a worker for each Pod that is bound to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from shallop import __version__
from shallop.controller import Change, EventRecorder, Index, Informer, Services
from shallop.embedded.kubelet.capability import IsolationReport, probe
from shallop.embedded.kubelet.engine import find_engine
from shallop.embedded.kubelet.environments import Environment, Environments
from shallop.embedded.kubelet.execution import dial
from shallop.embedded.kubelet.gpus import GPU, Gpus, find_gpus
from shallop.embedded.kubelet.holders import Holders
from shallop.embedded.kubelet.housekeeping import clean_up
from shallop.embedded.kubelet.limits import ControlGroups
from shallop.embedded.kubelet.logs import follow_log, log_folder, log_path, since_of
from shallop.embedded.kubelet.memory_volumes import remove_pod_folder, unmount_memory
from shallop.embedded.kubelet.network import Network, service_of_slice
from shallop.embedded.kubelet.pod import ISOLATION, PodWorker
from shallop.embedded.kubelet.sandbox import Sandbox, end_orphans, kill_shim, write_interrupted
from shallop.embedded.kubelet.spares import Spares
from shallop.embedded.kubelet.usage import Sample, difference, take_sample
from shallop.embedded.kubelet.zygotes import Zygotes, link_pod_package
from shallop.errors import AlreadyExistsError, BadRequestError, InternalError, NodeError, NotFoundError
from shallop.kube.node import Execution, Usage
from shallop.kube.objects import Gvk, Key, Object, format_time, key_of, labels_of, parse_quantity
from shallop_pod.zygote import Request

__all__ = ["Node"]

log = logging.getLogger(__name__)
_POD, _NODE, _ACCOUNT = Gvk("v1", "Pod"), Gvk("v1", "Node"), Gvk("v1", "ServiceAccount")
_WATCHED = {
    "ConfigMap": Gvk("v1", "ConfigMap"),
    "Secret": Gvk("v1", "Secret"),
    "PersistentVolumeClaim": Gvk("v1", "PersistentVolumeClaim"),
    "PersistentVolume": Gvk("v1", "PersistentVolume"),
    "Service": Gvk("v1", "Service"),
    "EndpointSlice": Gvk("discovery.k8s.io/v1", "EndpointSlice"),
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of the environment that the platform was started in, Pods get only what reaches networks.
_INHERITED = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_LEASE_S = 40
# How long the name of a Pod that has ended may still be found.
_FORGET_S = 0.05
_CLEAN_UP_S = 3600.0
# Use is measured over this time, or since the last question when that was so many seconds ago.
_WINDOW_S = 0.5
_FRESH_S = (5.0, 60.0)
# After a start: how long nothing is made in advance, and how lately an environment must have been used to be worth it.
_QUIET_S = 1.0
_RECENT_S = 7 * 24 * 3600.0
# Any image without packages: shims and ordinary programs are forked from its fork-server.
_BASE_IMAGE = "debian"


class Node:
    """
    Runs Pods as processes of this machine.

    Pods are found through their ``spec.nodeName``; each has one :class:`PodWorker`. It is also the API server's
    ``NodeApi``.
    """

    def __init__(self, services: Services) -> None:
        self.settings = services.settings
        self.client = services.client
        self.now = services.now
        self.isolation: IsolationReport = probe(self.settings)
        # With the rights that this level needs, file systems can be mounted for Pods, too.
        self.may_mount = self.isolation.level == "namespaces" and shutil.which("mount") is not None
        self.engine = find_engine(self.settings.engine)
        self.events = EventRecorder(self.client, "kubelet", self.now, host=self.settings.node_name)
        self.environments = Environments.of(self.settings)
        self.groups = ControlGroups(self.settings.home)
        self.gpus = Gpus(find_gpus())
        self.zygotes = Zygotes.of(self.settings)
        self.holders = Holders(self.settings.run / "holders", self.zygotes, self.groups)
        self.network = Network(self.settings, own_network=self.isolation.level == "namespaces")
        self._base: Environment | None = None
        self._ca_pem = b""
        self._inherited = {name: os.environ[name] for name in (*_INHERITED, *_CERTIFICATES) if name in os.environ}
        self.spares = Spares(self.settings.run / "sandboxes", self.network, self.base_zygote)
        self._python_path = link_pod_package(self.settings)
        self._informers = {kind: Informer(self.client, gvk) for kind, gvk in _WATCHED.items()}
        self._pods = Informer(self.client, _POD)
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._slices = Index(self._informers["EndpointSlice"], service_of_slice)
        # Services that something has changed about, by namespace and name.
        self._changed_services: set[tuple[str, str]] = set()
        self._network_changed = asyncio.Event()
        self._named: dict[str, Object] = {}
        self._base_lock = asyncio.Lock()
        self._sample: Sample | None = None
        self._object: Object | None = None

    async def run(self) -> None:
        """Register, then run Pods until cancelled; their processes go on."""
        self.network.start()
        await self.base_zygote()
        await asyncio.to_thread(self.holders.stop)
        await self._register()
        for kind in ("ConfigMap", "Secret"):
            self._informers[kind].add_handler(self._reference_changed)
        self._informers["Service"].add_handler(self._service_changed)
        self._informers["EndpointSlice"].add_handler(self._slice_changed)
        try:
            async with asyncio.TaskGroup() as group:
                for informer in self._informers.values():
                    group.create_task(informer.run(), name=f"node {informer.gvk.kind}")
                for informer in self._informers.values():
                    await informer.synced.wait()
                group.create_task(self._keep_network(), name="pod network")
                self._pods.add_handler(self._pod_changed)
                group.create_task(self._pods.run(), name="node Pod")
                await self._pods.synced.wait()
                await self._remove_strangers()
                await self.spares.end_all()
                group.create_task(self.spares.run(), name="spare sandboxes")
                await asyncio.to_thread(self.environments.sweep)
                group.create_task(self._prewarm(), name="first fork-server")
                group.create_task(self._heartbeat(), name="node heartbeat")
                group.create_task(self._keep_house(), name="node housekeeping")
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self.network.close()

    async def stop(self, *, keep_pods: bool) -> None:
        """Call after ``run`` has ended: end the processes of all Pods, or leave them for the next start."""
        await self.spares.end_all()
        self.holders.stop()
        if keep_pods:
            return
        folders = [folder for folder in self.settings.pods.iterdir() if folder.is_dir()]
        problems = await asyncio.gather(*(self._interrupt(folder) for folder in folders), return_exceptions=True)
        for folder, problem in zip(folders, problems, strict=True):
            # The processes of the others must end all the same.
            if problem is not None:
                log.error("Pod %s was not ended in order", folder.name, exc_info=problem)
                kill_shim(folder)
                await asyncio.to_thread(end_orphans, folder)
        # What is in memory ends with what used it; nothing of ours stays mounted.
        for folder in folders:
            await asyncio.to_thread(unmount_memory, folder)
        await self.zygotes.settle()
        self.zygotes.stop()
        if self.network.own_network:
            self.network.remove()

    async def _interrupt(self, folder: Path) -> None:
        """End a Pod's processes so that the next start runs again what had not ended by itself."""
        sandbox = await Sandbox.adopt(folder, lambda _: None)
        running = [] if sandbox is None else list(sandbox.started)
        if sandbox is not None:
            sandbox.leave()
        write_interrupted(folder, running)
        await self._end_sandbox(folder)
        for id_ in running:
            (folder / f"{id_}.exit").unlink(missing_ok=True)

    async def _end_sandbox(self, folder: Path) -> None:
        sandbox = await Sandbox.adopt(folder, lambda _: None)
        if sandbox is not None:
            for id_ in sandbox.started:
                sandbox.signal(id_, 15)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    while sandbox.started:  # noqa: ASYNC110 its events come by themselves
                        await asyncio.sleep(0.01)
            await sandbox.quit()
        kill_shim(folder)
        await asyncio.to_thread(end_orphans, folder)
        if self.engine is not None:
            await self.engine.remove_all(f"shallop-{folder.name}-")

    # Pods -------------------------------------------------------------------------------------------------------

    def _note_name(self, change: Change) -> None:
        """Keep the Pods that others can find by name; of 10,000 that have ended nothing is looked at again."""
        pod, uid = change.new, (change.new or change.old or {})["metadata"]["uid"]
        if change.old is not None and change.old["metadata"]["uid"] != uid:
            self._note_name(Change(change.old, None))
        known = self._named.get(uid)
        if pod is not None and known is not None and not (pod.get("status") or {}).get("podIP"):
            # Announced, and changed by somebody before its status says so.
            pod = _with_address(pod, known["status"]["podIP"])
        if pod is not None and (names := _names_of(pod)):
            # Who has the same names stays the same object: it is known to the hosts files.
            if known is None or _names_of(known) != names:
                self._named[uid] = pod
                self._network_changed.set()
        elif self._named.pop(uid, None) is not None:
            # Nobody waits for a name to go; whoever comes after the Pod goes first, and takes it along.
            asyncio.get_running_loop().call_later(_FORGET_S, self._forget_name, uid)

    def _forget_name(self, uid: str) -> None:
        if self.network.hosts.shows(uid):
            self._network_changed.set()

    def announce(self, pod: Object, address: str) -> None:
        """Let a Pod be found by its names before it runs: what trains looks up its own name first."""
        uid, pod = pod["metadata"]["uid"], _with_address(pod, address)
        known = self._named.get(uid)
        if known is None or _names_of(known) != _names_of(pod):
            self._named[uid] = pod
            self.network.hosts.set_pods(self._named)

    def _pod_changed(self, change: Change) -> None:
        self._note_name(change)
        pod = change.new or change.old or {}
        uid = pod["metadata"]["uid"]
        if pod["spec"].get("nodeName") != self.settings.node_name:
            return
        worker = self._workers.get(uid)
        if change.new is None:
            if worker is not None:
                worker.update(None)
            return
        if worker is not None:
            worker.update(pod)
            return
        address = (pod.get("status") or {}).get("podIP")
        if address and (self.settings.pods / uid).exists():
            # It goes on since before a restart: no other Pod may get its address meanwhile.
            self.network.allocate(uid, address)
        worker = self._workers[uid] = PodWorker(self, pod)
        task = self._tasks[uid] = asyncio.create_task(worker.run(), name=f"pod {key_of(pod)}")
        task.add_done_callback(lambda done: self._worker_ended(uid, done))
        if change.old is not None and change.old["metadata"]["uid"] != uid:
            # Deleted and made again under the same name while we were not looking.
            self._pod_changed(Change(change.old, None))

    def _reference_changed(self, change: Change) -> None:
        obj = change.new or change.old or {}
        if change.new is not None and (change.old or {}).get("data") == change.new.get("data") and change.old:
            return
        for worker in self._workers.values():
            worker.refresh(obj["kind"], key_of(obj))

    def _worker_ended(self, uid: str, task: asyncio.Task[None]) -> None:
        worker = self._workers.pop(uid, None)
        self._tasks.pop(uid, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # One Pod's failure must not end the node; the next change of the object, or a restart, tries again.
            log.error("worker of Pod %s failed", worker.key if worker else uid, exc_info=error)

    async def _remove_strangers(self) -> None:
        """End what runs for Pods that were deleted while nobody looked."""
        known = {pod["metadata"]["uid"] for pod in self._pods.store.list()}
        for folder in self.settings.pods.iterdir():
            if folder.is_dir() and folder.name not in known:
                await self._end_sandbox(folder)
                await asyncio.to_thread(remove_pod_folder, folder)
        await asyncio.to_thread(self.groups.adopt, known)

    async def _prewarm(self) -> None:
        """
        Start the fork-server that the first step of a pipeline will need: its imports are most of what that waits for.

        It ends when it is idle, as any. Where others were asked for at once it would only be in their way.
        """
        await asyncio.sleep(_QUIET_S)
        if self.zygotes.count > 1:
            return
        here = self.zygotes.last_with_imports()
        environment = await asyncio.to_thread(self.environments.last_used_for_steps, _RECENT_S, here)
        if environment is not None:
            try:
                await self.zygotes.socket(environment)
            except (NodeError, OSError) as error:
                log.warning("no fork-server in advance: %s", error)

    async def base(self) -> Environment:
        """Return the environment without packages."""
        return await self.environments.ensure(self.environments.resolve(_BASE_IMAGE, []))

    async def base_zygote(self) -> Path:
        """Return the socket of the fork-server for shims and ordinary programs."""
        async with self._base_lock:
            if self._base is not None:
                with contextlib.suppress(NodeError):  # removed meanwhile: it is built again
                    return await self.zygotes.socket(self._base)
            self._base = await self.base()
            return await self.zygotes.socket(self._base)

    def ready_zygote(self, environment: Environment | None) -> Path | None:
        """Return the socket of a fork-server that listens already, None when there is none; None: that for programs."""
        environment = environment or self._base
        return None if environment is None else self.zygotes.ready(environment)

    def cannot_run(self, image: str, argv: Sequence[str]) -> str | None:
        """Say why no local environment can stand for an image; None when one can, or an engine runs it."""
        if self.engine is not None:
            return None
        try:
            self.environments.resolve(image, argv)
        except NodeError as error:
            return str(error)
        return None

    def environment_of(self, image: str, argv: Sequence[str]) -> str:
        """Return the digest of the environment that stands for an image; reads files: call it in a thread."""
        try:
            return self.environments.digest_of(self.environments.resolve(image, argv))
        except NodeError:
            return ""

    def lookup(self, kind: str, namespace: str, name: str) -> Object | None:
        if kind == "Node":
            return self._object
        return self._informers[kind].store.get(Key("" if kind == "PersistentVolume" else namespace, name))

    async def token(self, pod: Object, audience: str, seconds: int) -> str:
        """Return a token of a Pod's service account, which is worth nothing when the Pod is gone."""
        metadata = pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec: dict[str, Any] = {"expirationSeconds": max(600, seconds), "boundObjectRef": bound}
        if audience:
            spec["audiences"] = [audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        account = pod["spec"].get("serviceAccountName") or "default"
        request = await self.client.create_subresource(_ACCOUNT, account, metadata["namespace"], "token", body)
        return str(request["status"]["token"])

    def ca_pem(self) -> bytes:
        """Return the certificate that API servers of this home are known by; it is made once."""
        if not self._ca_pem:
            self._ca_pem = (self.settings.home / "tls" / "ca.crt").read_bytes()
        return self._ca_pem

    def base_environment(self) -> dict[str, str]:
        """Return the variables that every container has; nothing else of the platform's own is passed on."""
        env = {"PATH": _PATH, "LANG": "C.UTF-8", "PYTHONPATH": str(self._python_path), "TMPDIR": "/tmp"}
        env |= self._inherited
        env |= {
            "KUBERNETES_SERVICE_HOST": "kubernetes.default.svc",
            "KUBERNETES_SERVICE_PORT": "443",
            "KF_PIPELINES_ENDPOINT": "http://ml-pipeline.kubeflow:8888",
            "MODEL_REGISTRY_BASE_URL": "http://model-registry-service.kubeflow:8080",
        }
        if not self.network.own_network:
            env |= {
                "KF_PIPELINES_ENDPOINT": self.settings.web_url,
                "MODEL_REGISTRY_BASE_URL": self.settings.web_url,
                "KUBERNETES_SERVICE_HOST": self.settings.host,
                "KUBERNETES_SERVICE_PORT": str(self.settings.api_port),
            }
        return env

    @staticmethod
    def threads(cpu: str) -> int:
        """Return how many threads a CPU limit is worth."""
        return max(1, math.ceil(parse_quantity(cpu)))

    def isolate(
        self,
        pod: Object,
        container: Object,
        mounts: list[dict[str, Any]],
        argv: list[str],
        env: dict[str, str],
    ) -> Request:
        """Return what starts a container's process apart from others: by a plan, or by paths of this machine."""
        folder = container.get("workingDir") or "/"
        hostname = str(pod["spec"].get("hostname") or pod["metadata"]["name"])[:63]
        level = self.isolation.level
        plan: dict[str, Any] | None
        if level == "none":
            (folder, *argv), env = _rewrite(
                mounts, [folder, *argv], env, keep=(self.settings.home, self.settings.cache)
            )
            plan = {"reap": True} if sys.platform.startswith("linux") else None
            return Request("shallop_pod.execute", argv, env | self._shim_variables(pod, env), folder, plan)
        plan = {"pid": True, "hostname": hostname, "mounts": mounts}
        if level == "user":
            plan["user"] = True
            env = env | self._shim_variables(pod, env)
        elif not pod["spec"].get("hostNetwork"):
            plan["netns"] = "pod"
        return Request("shallop_pod.execute", argv, env, folder, plan)

    def _shim_variables(self, pod: Object, env: Mapping[str, str]) -> dict[str, str]:
        hosts = self.network.hosts.of(pod["metadata"]["namespace"])
        return {"SHALLOP_POD_IP": env.get("POD_IP", ""), "SHALLOP_HOSTS": str(hosts)}

    # Network ----------------------------------------------------------------------------------------------------

    def _service_changed(self, change: Change) -> None:
        metadata = (change.new or change.old or {})["metadata"]
        self._changed_services.add((metadata["namespace"], metadata["name"]))
        self._network_changed.set()

    def _slice_changed(self, change: Change) -> None:
        self._changed_services |= {service_of_slice(item) for item in change if item is not None}
        self._network_changed.set()

    async def _keep_network(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._network_changed.wait()
            self._network_changed.clear()
            begun = loop.time()
            changed, self._changed_services = self._changed_services, set()
            services = self._informers["Service"].store
            await self.network.update({key: (services.get(Key(*key)), self._slices.get(key)) for key in changed})
            self.network.hosts.set_pods(self._named)
            # Changes come in bursts; one update for all of a burst, which takes a fifth of the time at most.
            await asyncio.sleep(max(0.01, 4 * (loop.time() - begun)))

    # Node object ------------------------------------------------------------------------------------------------

    async def _register(self) -> None:
        name = self.settings.node_name
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
            "node-role.kubernetes.io/control-plane": "",
            ISOLATION: self.isolation.level,
        }
        node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        try:
            stored = await self.client.create(node)
        except AlreadyExistsError:
            stored = await self.client.patch(_NODE, name, "", {"metadata": {"labels": labels}})
        self._object = await self.client.patch_status(stored, self._node_status())

    def _node_status(self) -> dict[str, Any]:
        now = format_time(self.now())
        resources = {"cpu": str(os.cpu_count() or 1), "memory": f"{_memory_kib()}Ki", "pods": "1000"}
        resources["ephemeral-storage"] = f"{shutil.disk_usage(self.settings.home).total // 1024}Ki"
        if self.gpus.numbers:
            resources[GPU] = str(len(self.gpus.numbers))
        # CPU is shared gladly, memory and GPUs are not.
        allocatable = resources | {"cpu": str(int((os.cpu_count() or 1) * self.settings.cpu_overcommit))}
        release = platform.uname()
        return {
            "capacity": resources,
            "allocatable": allocatable,
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "; ".join(filter(None, (f"isolation: {self.isolation.level}", self.network.problem))),
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ],
            "addresses": [
                {"type": "InternalIP", "address": self.settings.host},
                {"type": "Hostname", "address": self.settings.node_name},
            ],
            "nodeInfo": {
                "kubeletVersion": f"v1.36.0+shallop.{__version__}",
                "kubeProxyVersion": "",
                "kernelVersion": release.release,
                "osImage": _os_name(),
                "containerRuntimeVersion": f"shallop://{__version__}",
                "operatingSystem": "linux",
                "architecture": platform.machine(),
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
            },
        }

    async def _heartbeat(self) -> None:
        lease = Gvk("coordination.k8s.io/v1", "Lease")
        spec: dict[str, Any] = {"holderIdentity": self.settings.node_name, "leaseDurationSeconds": _LEASE_S}
        while True:
            spec["renewTime"] = self.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            name, namespace = self.settings.node_name, "kube-node-lease"
            try:
                await self.client.patch(lease, name, namespace, {"spec": spec})
            except NotFoundError:
                body = {"apiVersion": lease.api_version, "kind": lease.kind, "spec": spec}
                await self.client.create(body | {"metadata": {"name": name, "namespace": namespace}})
            await asyncio.sleep(_LEASE_S / 4)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_CLEAN_UP_S)
            known = {pod["metadata"]["uid"] for pod in self._pods.store.list()}
            for what in await asyncio.to_thread(clean_up, self.environments, self.settings, known):
                log.info("removed %s: unused for longer than the settings allow", what)

    # Logs -------------------------------------------------------------------------------------------------------

    async def read_logs(
        self,
        pod: Object,
        container: str,
        *,
        follow: bool = False,
        previous: bool = False,
        tail_lines: int | None = None,
        since_s: int | None = None,
        since_time: datetime | None = None,
        timestamps: bool = False,
        limit_bytes: int | None = None,
    ) -> AsyncIterator[bytes]:
        """See ``shallop.kube.node.NodeApi``."""
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        runs = _runs(log_folder(self.settings, pod) / container)
        wanted = runs[-1] if runs else None
        if previous:
            # Of a container that waits to be started again, the last run is the previous one.
            earlier = [run for run in runs if run < _restarts(pod, container)]
            wanted = earlier[-1] if earlier else None
        if wanted is None and previous:
            raise BadRequestError(f'previous terminated container "{container}" in pod "{name}" not found')
        if wanted is None and not (follow and worker is not None and worker.is_running(container)):
            state = "ContainerCreating" if worker is not None else "not started"
            raise BadRequestError(f'container "{container}" in pod "{name}" is waiting to start: {state}')
        restart = wanted if wanted is not None else 0
        path = log_path(self.settings, pod, container, restart)

        def is_running() -> bool:
            current = self._workers.get(uid)
            return (
                current is not None and current.is_running(container) and current.current_restart(container) == restart
            )

        async for chunk in follow_log(
            path,
            follow=follow and not previous,
            tail_lines=tail_lines,
            since=since_of(self.now(), since_s, since_time),
            timestamps=timestamps,
            limit_bytes=limit_bytes,
            is_running=is_running,
        ):
            yield chunk

    # Streams ----------------------------------------------------------------------------------------------------

    async def execute(
        self, pod: Object, container: str, command: Sequence[str], *, stdin: bool, tty: bool
    ) -> Execution:
        """See ``shallop.kube.node.NodeApi``."""
        worker = self._workers.get(pod["metadata"]["uid"])
        try:
            execution = None if worker is None else await worker.execute(container, command, stdin=stdin, tty=tty)
        except NodeError as error:
            raise InternalError(f"error executing command in container: {error}") from error
        if execution is None:
            raise BadRequestError(f'container not found ("{container}"): it does not run now')
        return execution

    async def attach(self, pod: Object, container: str) -> Execution:
        """See ``shallop.kube.node.NodeApi``."""
        worker = self._workers.get(pod["metadata"]["uid"])
        try:
            execution = None if worker is None else await worker.attach(container)
        except OSError as error:
            raise InternalError(f"error attaching to container {container}: {error}") from error
        if execution is None:
            raise BadRequestError(f'container not found ("{container}"): it does not run now')
        return execution

    async def dial(self, pod: Object, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See ``shallop.kube.node.NodeApi``."""
        worker = self._workers.get(pod["metadata"]["uid"])
        namespace = "" if worker is None else worker.network_namespace
        return await dial(namespace, (pod.get("status") or {}).get("podIP") or self.settings.host, port)

    async def usage(self) -> Mapping[str, Usage]:
        """See ``shallop.kube.node.NodeApi``."""
        before = self._sample
        now = await self._take_sample()
        # Who asks again and again gets what was used since; who asks the first time waits for a second look.
        if (
            before is None
            or not _FRESH_S[0] <= now.at_s - before.at_s <= _FRESH_S[1]
            or set(now.cpu_s) - set(before.cpu_s)
        ):
            await asyncio.sleep(_WINDOW_S)
            before, now = now, await self._take_sample()
        return difference(before, now)

    async def _take_sample(self) -> Sample:
        roots = {
            f"{uid}/{name}": pid
            for uid, worker in self._workers.items()
            for name, pid in worker.first_processes().items()
        }
        clock = asyncio.get_running_loop().time()
        self._sample = await asyncio.to_thread(take_sample, roots, clock)
        return self._sample


def _runs(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.stem) for path in folder.glob("*.log") if path.stem.isdigit())


def _restarts(pod: Object, container: str) -> int:
    status = pod.get("status") or {}
    listed = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return next((int(entry.get("restartCount", 0)) for entry in listed if entry["name"] == container), 0)


def _with_address(pod: Object, address: str) -> Object:
    return {**pod, "status": {**(pod.get("status") or {}), "podIP": address}}


def _names_of(pod: Object) -> tuple[object, ...]:
    """Return what names of a Pod depend on; empty when it has none now."""
    status, spec = pod.get("status") or {}, pod["spec"]
    if not status.get("podIP") or status.get("phase") not in ("Running", "Pending"):
        return ()
    return (status["podIP"], spec.get("hostname"), spec.get("subdomain"), labels_of(pod))


def _rewrite(
    mounts: list[dict[str, Any]], argv: list[str], env: dict[str, str], *, keep: Iterable[Path]
) -> tuple[list[str], dict[str, str]]:
    """
    Replace mount paths by the folders behind them, in whole path segments and once.

    Args:
        keep: folders of the platform, which may lie below a mount path such as /tmp and stay what they are.
    """
    table = {
        mount["target"].rstrip("/"): mount["source"]
        for mount in mounts
        if "source" in mount and mount["target"] != mount["source"] and mount["target"] != "/etc/hosts"
    }
    if not table:
        return argv, env
    shown = dict(table)
    table |= {str(path): str(path) for path in keep}
    names = "|".join(re.escape(target) for target in sorted(table, key=len, reverse=True))
    # A path begins where no path goes on, or after the scheme of a URI: file:///mnt/models.
    pattern = re.compile(rf"(?:(?<=://)|(?<![\w./-]))({names})(?=/|$|[^\w.-])")

    def change(text: str) -> str:
        return pattern.sub(lambda match: table[match[1]], text)

    changed = {name: value if name in ("PATH", "PYTHONPATH") else change(value) for name, value in env.items()}
    return [change(word) for word in argv], changed | {"SHALLOP_MOUNTS": json.dumps(shown)}


def _memory_kib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024


def _os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return platform.system()
