"""``kubectl`` drives the workload controllers, which run over the in-process client and over HTTP alike."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shallop.controller import Manager
from shallop.embedded.apiserver import ApiServer, ensure_tls, write_kubeconfig
from shallop.embedded.workloads import PART
from shallop.embedded.workloads.garbage import GarbageCollector
from shallop.errors import ConflictError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, format_time, is_deleting, key_of
from shallop.kube.remote import RemoteClient, load_kubeconfig
from shallop.settings import Settings
from shallop.store.database import Database
from shallop.webserver import Server, bind

POD = Gvk("v1", "Pod")
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "shallop"},
    "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
}

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


async def kubelet(client: Client) -> None:
    """Pods of the image ``bad`` never start, those of ``task`` end at once, the others run."""
    listing = await client.list(POD)
    async for event in client.watch(POD, resource_version=listing.resource_version):
        if event.type != "DELETED":
            try:
                await _sync(client, event.object)
            except (NotFoundError, ConflictError):
                continue


async def _sync(client: Client, pod: Object) -> None:
    key, now = key_of(pod), format_time(datetime.now(UTC))
    if is_deleting(pod):
        await client.delete(POD, key.name, key.namespace, grace_period_s=0, uid=pod["metadata"]["uid"])
        return
    image = pod["spec"]["containers"][0]["image"]
    if not pod["spec"].get("nodeName") or pod["status"]["phase"] != "Pending" or image == "bad":
        return
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
    status: dict[str, Any] = {"phase": "Running", "podIP": "10.1.0.9", "startTime": now}
    if image == "task":
        ready["status"], status["phase"] = "False", "Succeeded"
    await client.patch_status(pod, status | {"conditions": [*pod["status"]["conditions"], ready]})


class Cluster:
    """A running control plane and the kubeconfig to reach it."""

    def __init__(self, home: Path, over: str) -> None:
        self.home = home
        self.over = over
        self._env = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(home / "kubeconfig")}

    async def kubectl(self, command: str, *, stdin: str = "", fails: bool = False) -> str:
        process = await asyncio.create_subprocess_exec(
            "kubectl",
            *command.split(" "),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._env,
        )
        output, _ = await asyncio.wait_for(process.communicate(stdin.encode()), 30)
        text = output.decode()
        assert (process.returncode != 0) is fails, f"kubectl {command}: {text}"
        return text

    async def images(self) -> list[str]:
        pods = json.loads(await self.kubectl("get pods -o json"))["items"]
        return sorted(p["spec"]["containers"][0]["image"] for p in pods if not is_deleting(p))


@asynccontextmanager
async def open_cluster(home: Path, over: str) -> AsyncIterator[Cluster]:
    tls = ensure_tls(home / "tls")
    server = ApiServer(None, admin_token="workloads-token")
    await server.start()
    await server.register_kinds(PART.kinds)
    local = server.client()
    sock = bind("127.0.0.1", 0, "api_port")
    http = Server(server.asgi, sock, tls=(str(tls.certificate), str(tls.key)))
    await http.start()
    url = f"https://127.0.0.1:{sock.getsockname()[1]}"
    write_kubeconfig(home / "kubeconfig", server=url, ca_pem=tls.ca.read_bytes(), token="workloads-token")
    database = Database(f"sqlite:///{home}/rows.db")
    async with AsyncExitStack() as stack:
        client: Client = local
        if over == "http":
            client = await stack.enter_async_context(RemoteClient(load_kubeconfig(home / "kubeconfig")))
        for obj in (*PART.objects, NODE):
            await local.create(obj)
        manager = Manager(client, Settings(home=home), database, PART.kinds)
        loops: tuple[Callable[[], Awaitable[None]], ...] = (
            manager.run,
            GarbageCollector(client).run,
            lambda: kubelet(local),
        )
        tasks = [asyncio.ensure_future(loop()) for loop in loops]
        try:
            yield Cluster(home, over)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await manager.events.flush()
            await stack.aclose()
            await server.stop()
            await http.stop()
            database.close()


Run = Callable[[Callable[[Cluster], Awaitable[None]]], None]


@pytest.fixture(params=["process", "http"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    def go(scenario: Callable[[Cluster], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(100), open_cluster(tmp_path, request.param) as cluster:
                await scenario(cluster)

        asyncio.run(main())

    return go


def test_rollouts(run: Run) -> None:
    async def scenario(cluster: Cluster) -> None:
        kubectl = cluster.kubectl
        await kubectl("create deployment web --image=app:1 --replicas=3")
        assert "successfully rolled out" in await kubectl("rollout status deployment/web --timeout=20s")
        await kubectl("set image deployment/web app=app:2")
        await kubectl("annotate deployment/web kubernetes.io/change-cause=second")
        await kubectl("rollout status deployment/web --timeout=20s")
        assert await cluster.images() == ["app:2"] * 3
        history = await kubectl("rollout history deployment/web")
        assert history.splitlines()[2].split() == ["1", "<none>"]
        assert history.splitlines()[3].split() == ["2", "second"]
        assert "rolled back" in await kubectl("rollout undo deployment/web")
        await kubectl("rollout status deployment/web --timeout=20s")
        assert await cluster.images() == ["app:1"] * 3
        await kubectl("rollout restart deployment/web")
        await kubectl("rollout status deployment/web --timeout=20s")
        await kubectl("scale deployment/web --replicas=1")
        await kubectl("rollout status deployment/web --timeout=20s")
        assert len(await cluster.images()) == 1
        assert "web    1/1     1            1" in await kubectl("get deployment web")
        described = await kubectl("describe deployment web")
        assert "ScalingReplicaSet" in described
        assert "NewReplicaSetAvailable" in described

    run(scenario)


def test_pause_and_deadline(run: Run) -> None:
    async def scenario(cluster: Cluster) -> None:
        kubectl = cluster.kubectl
        await kubectl("create deployment web --image=app:1")
        await kubectl("rollout status deployment/web --timeout=20s")
        await kubectl("rollout pause deployment/web")
        await kubectl("set image deployment/web app=app:2")
        await kubectl("wait deployment/web --for=jsonpath={.status.observedGeneration}=3 --timeout=10s")
        assert await cluster.images() == ["app:1"]
        await kubectl("rollout resume deployment/web")
        await kubectl("rollout status deployment/web --timeout=20s")
        assert await cluster.images() == ["app:2"]
        await kubectl('patch deployment web -p {"spec":{"progressDeadlineSeconds":1,"minReadySeconds":0}}')
        await kubectl("set image deployment/web app=bad")
        assert "exceeded its progress deadline" in await kubectl("rollout status deployment/web", fails=True)
        assert await cluster.images() == ["app:2", "bad"]

    run(scenario)


def test_jobs(run: Run) -> None:
    async def scenario(cluster: Cluster) -> None:
        kubectl = cluster.kubectl
        await kubectl("create job one --image=task")
        await kubectl("wait --for=condition=complete job/one --timeout=20s")
        described = await kubectl("describe job one")
        assert "SuccessfulCreate" in described
        assert "Completed" in described
        assert "1/1" in await kubectl("get job one")
        await kubectl("create cronjob often --image=task --schedule=*/5_*_*_*_*".replace("_", " "), fails=True)
        manifest = {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": "often"},
            "spec": {
                "schedule": "*/5 * * * *",
                "jobTemplate": {
                    "spec": {
                        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "task"}]}}
                    }
                },
            },
        }
        await kubectl("apply -f -", stdin=json.dumps(manifest))
        await kubectl("create job by-hand --from=cronjob/often")
        await kubectl("wait --for=condition=complete job/by-hand --timeout=20s")
        await kubectl("delete cronjob often")
        await kubectl("delete job one")
        await kubectl("wait --for=delete pod -l job-name=one --timeout=10s")

    run(scenario)


def test_cascades_and_namespaces(run: Run) -> None:
    async def scenario(cluster: Cluster) -> None:
        kubectl = cluster.kubectl
        await kubectl("create namespace team")
        await kubectl("wait -n team --for=create serviceaccount/default --timeout=10s")
        await kubectl("-n team create deployment web --image=app:1 --replicas=2")
        await kubectl("-n team rollout status deployment/web --timeout=20s")
        await kubectl("-n team expose deployment web --port=80")
        await kubectl("-n team wait endpoints/web --for=jsonpath={.subsets[0].addresses[0].ip}=10.1.0.9 --timeout=10s")
        await kubectl("-n team delete deployment web --cascade=orphan")
        assert "web-" in await kubectl("-n team get rs -o name")
        await kubectl("-n team delete rs --all --cascade=foreground --timeout=20s")
        assert "No resources found" in await kubectl("-n team get pods")
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        await kubectl("-n team apply -f -", stdin=json.dumps(claim))
        await kubectl("-n team wait pvc/data --for=jsonpath={.status.phase}=Bound --timeout=10s")
        assert "standard" in await kubectl("-n team get pvc data")
        assert (cluster.home / "volumes" / "team" / "data").is_dir()
        if cluster.over == "http":
            # namespaces/finalize takes PUT only, which the Client has no method for; in process it is the same code.
            return
        await kubectl("delete namespace team --timeout=20s")
        assert not (cluster.home / "volumes" / "team" / "data").exists()

    run(scenario)


def test_a_pod_that_fits_nowhere_says_why(run: Run) -> None:
    async def scenario(cluster: Cluster) -> None:
        kubectl = cluster.kubectl
        overrides = {
            "spec": {"containers": [{"name": "p", "image": "i", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
        }
        text = json.dumps(overrides, separators=(",", ":"))
        await kubectl(f"run p --image=i --overrides={text}")
        await kubectl("wait pod/p --for=condition=PodScheduled=false --timeout=10s")
        # The event is written after the condition.
        async with asyncio.timeout(30):
            while "0/1 nodes are available: 1 Insufficient nvidia.com/gpu." not in await kubectl("describe pod p"):
                await asyncio.sleep(0.1)
        assert "FailedScheduling" in await kubectl("describe pod p")

    run(scenario)


def test_stateful_and_daemon_rollouts(run: Run) -> None:
    def manifest(kind: str, **more: Any) -> str:
        template = {"metadata": {"labels": {"app": "s"}}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}}
        spec = {"selector": {"matchLabels": {"app": "s"}}, "template": template, **more}
        return json.dumps({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "s"}, "spec": spec})

    async def scenario(cluster: Cluster) -> None:
        kubectl = cluster.kubectl
        for kind, more, done in (
            ("StatefulSet", {"replicas": 2, "serviceName": "s"}, "roll out complete: 2 new pods"),
            ("DaemonSet", {}, "successfully rolled out"),
        ):
            name = f"{kind.lower()}/s"
            await kubectl("apply -f -", stdin=manifest(kind, **more))
            await kubectl(f"rollout status {name} --timeout=28s")
            await kubectl(f"set image {name} app=app:2")
            await kubectl(f"annotate {name} kubernetes.io/change-cause=second")
            assert done in await kubectl(f"rollout status {name} --timeout=28s")
            assert set(await cluster.images()) == {"app:2"}
            rows = (await kubectl(f"rollout history {name}")).split("\n")
            assert [row.split()[0] for row in rows[2:] if row] == ["1", "2"]
            assert "app:1" in await kubectl(f"rollout history {name} --revision=1")
            assert "rolled back" in await kubectl(f"rollout undo {name}")
            await kubectl(f"rollout status {name} --timeout=28s")
            assert set(await cluster.images()) == {"app:1"}
            await kubectl(f"rollout restart {name}")
            await kubectl(f"rollout status {name} --timeout=28s")
            if kind == "StatefulSet":
                await kubectl(f"scale {name} --replicas=3")
                await kubectl(f"wait {name} --for=jsonpath={{.status.readyReplicas}}=3 --timeout=28s")
                assert "3/3" in await kubectl(f"get {name}")
            await kubectl(f"delete {name} --cascade=foreground --timeout=28s")

    run(scenario)


def test_drain_respects_a_budget(run: Run) -> None:
    async def scenario(cluster: Cluster) -> None:
        kubectl = cluster.kubectl
        await kubectl("create deployment web --image=app:1 --replicas=2")
        await kubectl("rollout status deployment/web --timeout=28s")
        await kubectl("create poddisruptionbudget web --selector=app=web --min-available=2")
        await kubectl("wait pdb/web --for=jsonpath={.status.currentHealthy}=2 --timeout=28s")
        if cluster.over == "process":
            # kubectl tries again only every 5 s, and over HTTP it is the same server.
            assert "disruption budget" in await kubectl("drain shallop --timeout=1s", fails=True)
            await kubectl("uncordon shallop")
            assert len(await cluster.images()) == 2
        await kubectl("autoscale deployment web --min=2 --max=4 --cpu-percent=50")
        await kubectl("wait hpa/web --for=condition=AbleToScale --timeout=28s")
        described = await kubectl("describe hpa web")
        assert "FailedGetResourceMetric" in described

    run(scenario)
