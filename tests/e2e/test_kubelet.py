"""Pods as processes of this machine: the real API server, scheduler and node agent, at every level of isolation."""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import ipaddress
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import shallop_pod
from shallop.controller import Manager, Services
from shallop.embedded import workloads
from shallop.embedded.apiserver import ApiServer, ensure_tls
from shallop.embedded.kubelet.node import Node
from shallop.embedded.kubelet.outside import close_way_out, open_way_out
from shallop.errors import BadRequestError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, is_condition_true
from shallop.settings import Settings
from shallop.store.database import Database
from shallop_pod.netlink import Netlink

POD, EVENT, CONFIGMAP, SECRET = (Gvk("v1", kind) for kind in ("Pod", "Event", "ConfigMap", "Secret"))
IS_ROOT = os.geteuid() == 0
LEVELS = [
    pytest.param("namespaces", marks=pytest.mark.skipif(not IS_ROOT, reason="own networks for Pods need root")),
    "user",
    "none",
]
DEADLINE_S = 20.0


class World:
    """A running node; ``settings.home`` outlives it."""

    def __init__(self, client: Client, node: Node, settings: Settings) -> None:
        self.client = client
        self.node = node
        self.settings = settings

    async def run(self, name: str, *command: str, image: str = "python", **fields: Any) -> Object:
        """Create a Pod; fields of the container: env, ports, ...; ``pod``: fields of its spec."""
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 3, **fields.pop("pod", {})}
        metadata = {"name": name, "namespace": "default", **fields.pop("metadata", {})}
        container = {"name": "main", "image": image, **({"command": list(command)} if command else {}), **fields}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **spec}}
        return await self.client.create(body)

    async def create(self, kind: str, name: str, **fields: Any) -> Object:
        gvk = Gvk("v1", kind)
        metadata = {"name": name, "namespace": "default"}
        return await self.client.create({"apiVersion": gvk.api_version, "kind": kind, "metadata": metadata, **fields})

    async def get(self, name: str) -> Object:
        return await self.client.get(POD, name, "default")

    async def until(self, name: str, check: Callable[[Object], Any], deadline_s: float = DEADLINE_S) -> Object:
        """Return the Pod when it satisfies ``check``."""
        pod: Object = {}
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    pod = await self.get(name)
                    if check(pod):
                        return pod
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{name}: {pod.get('status')}\n{await self.events(name)}") from None

    async def phase(self, name: str, *phases: str) -> Object:
        return await self.until(name, lambda pod: (pod.get("status") or {}).get("phase") in phases)

    async def ended(self, name: str) -> Object:
        return await self.phase(name, "Succeeded", "Failed")

    async def ready(self, name: str) -> Object:
        return await self.until(name, lambda pod: is_condition_true(pod, "Ready"))

    async def gone(self, name: str, deadline_s: float = DEADLINE_S) -> None:
        async with asyncio.timeout(deadline_s):
            with contextlib.suppress(NotFoundError):
                while True:
                    await self.get(name)
                    await asyncio.sleep(0.01)

    async def output(self, name: str, *command: str, **fields: Any) -> str:
        """Run a Pod to its end and return what it printed."""
        await self.run(name, *command, **fields)
        await self.ended(name)
        return await self.logs(name)

    async def logs(self, name: str, container: str = "main", **options: Any) -> str:
        pod = await self.get(name)
        return b"".join([chunk async for chunk in self.node.read_logs(pod, container, **options)]).decode()

    async def events(self, name: str) -> list[tuple[str, str]]:
        await self.node.events.flush()
        events = (await self.client.list(EVENT, "default")).items
        return [(e["reason"], e["message"]) for e in events if e["involvedObject"]["name"] == name]

    async def event(self, name: str, reason: str) -> str:
        """Return the message of an Event, which may still be on its way."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for found, message in await self.events(name):
                    if found == reason:
                        return message
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    leftovers = processes_of(tmp_path / "home")
    assert not leftovers, f"processes are left: {leftovers}"
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


def processes_of(home: Path) -> list[str]:
    """Return the command lines of processes that know the folder; fork-servers end by themselves."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes()
                if os.fsencode(home) in environment and "--ready-fd" not in command:
                    found.append(command)
    return found


@contextlib.contextmanager
def must_run(tasks: list[asyncio.Task[None]]) -> Iterator[None]:
    """Show why a task has ended rather than what the test missed by it."""
    try:
        yield
    finally:
        for task in tasks:
            if task.done():
                task.result()


@contextlib.asynccontextmanager
async def running(home: Path, cache: Path, isolation: str) -> AsyncIterator[World]:
    settings = Settings(home=home, cache=cache, isolation=isolation)
    for folder in (settings.artifacts, settings.volumes, settings.pods, settings.logs, settings.run):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ensure_tls(home / "tls", hosts=["127.0.0.1"])
    database = Database(f"sqlite:///{home / 'rows.db'}")
    server = ApiServer(home / "objects.db", admin_token="t", key_file=home / "tls" / "accounts.key")
    await server.start()
    await server.register_kinds(workloads.PART.kinds)
    client = server.client()
    node = Node(Services(settings, client, database, lambda: datetime.now(UTC)))
    started = asyncio.Event()
    manager = Manager(client, settings, database, workloads.PART.kinds)
    tasks = [asyncio.create_task(manager.run(started)), asyncio.create_task(node.run())]
    try:
        await asyncio.wait([asyncio.create_task(started.wait()), *tasks], return_when=asyncio.FIRST_COMPLETED)
        with must_run(tasks):
            yield World(client, node, settings)
    finally:
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await node.stop(keep_pods=False)
        await server.stop()
        database.close()


@pytest.fixture
def on_node(home: Path, cache: Path) -> Callable[..., None]:
    """Run a coroutine function of a World."""

    def run(test: Callable[[World], Awaitable[None]], isolation: str = "auto") -> None:
        async def main() -> None:
            async with asyncio.timeout(100), running(home, cache, isolation) as world:
                await test(world)

        asyncio.run(main())

    return run


SERVE = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(open(sys.argv[2]).read()) if len(sys.argv) > 2 and os.path.exists(sys.argv[2]) else 200)
        self.end_headers()
        self.wfile.write(os.environ["WHO"].encode())
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""


def server(port: int = 8080, *more: str) -> tuple[str, ...]:
    return ("python3", "-c", SERVE, str(port), *more)


def probe(port: int = 8080, **fields: Any) -> dict[str, Any]:
    return {"httpGet": {"path": "/", "port": port}, "periodSeconds": 1, **fields}


async def fetch(address: str, port: int) -> str:
    reader, writer = await asyncio.open_connection(address, port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    data = await reader.read()
    writer.close()
    return data.partition(b"\r\n\r\n")[2].decode()


def state(pod: Object, container: int = 0) -> dict[str, Any]:
    return pod["status"]["containerStatuses"][container]["state"]


# --- what keeps Pods apart ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_ten_pods_listen_on_one_port(on_node: Callable[..., None], level: str) -> None:
    async def test(world: World) -> None:
        assert world.node.isolation.level == level
        names = [f"server-{n}" for n in range(10)]
        for name in names:
            env = [{"name": "WHO", "value": name}]
            await world.run(name, *server(), env=env, readinessProbe=probe())
        pods = [await world.ready(name) for name in names]
        addresses = {pod["status"]["podIP"] for pod in pods}
        assert len(addresses) == 10
        assert [await fetch(pod["status"]["podIP"], 8080) for pod in pods] == names

    on_node(test, level)


@pytest.mark.parametrize("level", LEVELS)
def test_mounts_are_at_paths_that_the_machine_has_not(on_node: Callable[..., None], level: str) -> None:
    async def test(world: World) -> None:
        await world.create("ConfigMap", "settings", data={"a.txt": "from a map"})
        await world.create("Secret", "key", stringData={"password": "s3cret"})
        text = await world.output(
            "reader",
            "sh",
            "-c",
            "cat /mnt/models/a.txt; echo; cat /var/run/secrets/mine/password; echo;"
            "stat -c %a /var/run/secrets/mine/..data/password;"
            "echo kept > /made/up/path/file; cat /made/up/path/file; cat $PLACE/a.txt; echo; cat ${URI#file://}/a.txt",
            env=[{"name": "PLACE", "value": "/mnt/models"}, {"name": "URI", "value": "file:///mnt/models"}],
            volumeMounts=[
                {"name": "models", "mountPath": "/mnt/models"},
                {"name": "key", "mountPath": "/var/run/secrets/mine"},
                {"name": "scratch", "mountPath": "/made/up/path"},
            ],
            pod={
                "volumes": [
                    {"name": "models", "configMap": {"name": "settings"}},
                    {"name": "key", "secret": {"secretName": "key"}},
                    {"name": "scratch", "emptyDir": {}},
                ]
            },
        )
        assert text.splitlines() == ["from a map", "s3cret", "600", "kept", "from a map", "from a map"]
        assert not os.path.exists("/made")

    on_node(test, level)


@pytest.mark.parametrize("level", LEVELS)
def test_names_of_services_and_pods_resolve(on_node: Callable[..., None], level: str) -> None:
    async def test(world: World) -> None:
        ports = [{"port": 80, "targetPort": 8080}]
        await world.create("Service", "web", spec={"selector": {"app": "web"}, "ports": ports})
        await world.create("Service", "gang", spec={"clusterIP": "None", "selector": {"app": "web"}, "ports": ports})
        env = [{"name": "WHO", "value": "the server"}]
        await world.run(
            "server",
            *server(),
            env=env,
            readinessProbe=probe(),
            metadata={"labels": {"app": "web"}},
            pod={"hostname": "worker-0", "subdomain": "gang"},
        )
        await world.ready("server")
        program = """
import time, urllib.request
services = ["web", "web.default", "web.default.svc.cluster.local"]
for url in (*services, "worker-0.gang:8080", "worker-0.gang.default.svc:8080"):
    for attempt in range(50):
        try:
            print(urllib.request.urlopen(f"http://{url}/", timeout=5).read().decode())
            break
        except OSError as error:
            last = error
            time.sleep(0.1)
    else:
        print(url, last)
"""
        text = await world.output("client", "python3", "-c", program)
        assert text.splitlines() == ["the server"] * 5

    on_node(test, level)


@pytest.mark.parametrize("level", LEVELS)
def test_pods_inherit_nothing_and_have_private_folders(on_node: Callable[..., None], level: str) -> None:
    os.environ["SHALLOP_TEST_MARK"] = "of the platform"

    async def test(world: World) -> None:
        program = """
import os
print(sorted(os.environ))
print(os.listdir('/tmp'))
open('/tmp/mine', 'w')
print(os.environ['HOME'])
"""
        first = await world.output("first", "python3", "-c", program)
        second = await world.output("second", "python3", "-c", program)
        assert "SHALLOP_TEST_MARK" not in first and "'PATH'" in first
        # This test's home, and maybe the program itself, lie below /tmp: what a process needs of them is shown there.
        needed = [path for path in (world.settings.home, Path(__file__)) if path.is_relative_to("/tmp")]
        seen = set(ast.literal_eval(first.splitlines()[1]))
        assert first.splitlines()[1] == second.splitlines()[1]
        assert seen <= {path.relative_to("/tmp").parts[0] for path in needed}
        assert first.splitlines()[2] != second.splitlines()[2]
        if level != "none":
            text = await world.output(
                "nosy", "sh", "-c", f"cat {world.settings.home}/objects.db; ls {world.settings.home}"
            )
            assert "No such file" in text and "objects.db" not in text.splitlines()[-1]

    try:
        on_node(test, level)
    finally:
        del os.environ["SHALLOP_TEST_MARK"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_deleted_pod_leaves_no_process(on_node: Callable[..., None], level: str) -> None:
    async def test(world: World) -> None:
        mark = f"{300 + os.getpid() % 1000}.0625"
        await world.run(
            "nest", "sh", "-c", f"sleep {mark} & setsid sleep {mark} & trap '' TERM; while :; do sleep {mark}; done"
        )
        await world.phase("nest", "Running")
        await asyncio.sleep(0.3)
        assert len(pids_of(f"sleep {mark}")) == 3
        await world.client.delete(POD, "nest", "default", grace_period_s=1)
        await world.gone("nest")
        assert pids_of(f"sleep {mark}") == []
        assert not (world.settings.pods / "nest").exists()

    on_node(test, level)


def pids_of(command: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == command.replace(" ", "\0").encode() + b"\0":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not IS_ROOT, reason="own networks for Pods need root")
def test_a_pod_sees_its_own_processes_and_name(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        text = await world.output("alone", "sh", "-c", "hostname; ls -d /proc/[0-9]* | wc -l; hostname -i")
        name, processes, address = text.split()
        assert name == "alone" and int(processes) <= 5
        assert address == (await world.get("alone"))["status"]["podIP"]
        labels = (await world.client.get(Gvk("v1", "Node"), "shallop"))["metadata"]["labels"]
        assert labels["shallop.dev/isolation"] == "namespaces"

    on_node(test)


def test_a_container_has_a_root_and_devices_of_its_own(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        script = (
            "ls /; echo; ls /dev; echo; head -c 5 /dev/zero | tr '\\0' z; echo lost > /dev/null; "
            "test -w /dev/tty && test -r /dev/urandom && test -c /dev/full && echo devices; "
            "echo mine > /model && echo x > /dev/shm/x && mkdir /run/mine && cat /model"
        )
        for name in ("first", "second"):  # the second comes from a process that waited for it
            text = await world.output(name, "sh", "-c", script)
            root, devices, rest = text.split("\n\n")
            assert set(os.listdir("/")) - set(root.split()) <= {".dockerenv"} and "model" not in root.split()
            assert {"full", "null", "pts", "random", "shm", "stdout", "tty", "zero"} <= set(devices.split())
            assert not {"mem", "kmsg", "port"} & set(devices.split())
            assert rest.split() == ["zzzzzdevices", "mine"]
        assert not os.path.exists("/model") and not os.path.exists("/run/mine")

    on_node(test)


@pytest.mark.parametrize("level", LEVELS)
def test_a_working_directory_is_made_and_devices_are_private(on_node: Callable[..., None], level: str) -> None:
    async def test(world: World) -> None:
        script = "pwd; echo x > file && echo written; echo why > /dev/termination-log; touch /dev/shm/$NAME; exit 3"
        name = f"shallop-test-{os.getpid()}"
        env = [{"name": "NAME", "value": name}]
        text = await world.output("maker", "sh", "-c", script, workingDir="/not/there", env=env)
        assert text.splitlines()[-1] == "written"
        assert state(await world.get("maker"))["terminated"]["message"].strip() == "why"
        if level != "none":
            assert text.splitlines()[0] == "/not/there"
            assert not os.path.exists(f"/dev/shm/{name}")
        Path(f"/dev/shm/{name}").unlink(missing_ok=True)
        assert not os.path.exists("/not")

    on_node(test, level)


@pytest.mark.parametrize("level", LEVELS)
def test_two_instances_do_not_disturb_each_other(
    on_node: Callable[..., None], cache: Path, tmp_path: Path, level: str
) -> None:
    async def start(world: World, who: str) -> str:
        ports = [{"port": 80, "targetPort": 8080}]
        await world.create("Service", "web", spec={"selector": {"app": "web"}, "ports": ports})
        labels = {"labels": {"app": "web"}}
        env = [{"name": "WHO", "value": who}]
        # Schedulers of one process share their books; two instances are two processes otherwise.
        place = {"nodeName": "shallop"}
        await world.run("server", *server(), env=env, readinessProbe=probe(), metadata=labels, pod=place)
        return str((await world.ready("server"))["status"]["podIP"])

    async def test(world: World) -> None:
        async with running(tmp_path / "other", cache, level) as other:
            first, second = await start(world, "first"), await start(other, "second")
            assert first != second
            program = "import urllib.request as u; print(u.urlopen('http://web/', timeout=5).read().decode())"
            await asyncio.sleep(0.3)
            for instance, who in ((world, "first"), (other, "second")):
                text = await instance.output("client", "python3", "-c", program, pod={"nodeName": "shallop"})
                assert text == f"{who}\n"

    on_node(test, level)


NEIGHBOUR = """
import ctypes, os, socket, sys
sys.path.insert(0, sys.argv[1])
from shallop_pod.netlink import Netlink
ctypes.CDLL(None).unshare(0x40000000)
print(os.getpid(), flush=True)
pod = input()
with Netlink() as netlink:
    index = socket.if_nametoindex("eth0")
    netlink.add_address(index, "198.51.100.2", 30)
    netlink.set_up(index)
    netlink.add_default_route("198.51.100.1", index)
listener = socket.create_server(("198.51.100.2", 9000))
print("ready", flush=True)
print(listener.accept()[1][0], flush=True)
try:
    socket.create_connection((pod, 8080), 1)
    print("reached")
except TimeoutError:
    print("blocked")
"""


@pytest.mark.skipif(not IS_ROOT, reason="own networks for Pods need root")
def test_pods_reach_other_machines_but_not_the_other_way_round(on_node: Callable[..., None]) -> None:
    link = f"sht{os.getpid()}"

    async def test(world: World) -> None:
        await world.run("server", *server(), env=[{"name": "WHO", "value": "x"}], readinessProbe=probe())
        pod = (await world.ready("server"))["status"]["podIP"]
        source = str(Path(shallop_pod.__path__[0]).parent)
        pipe = asyncio.subprocess.PIPE
        machine = await asyncio.create_subprocess_exec(
            sys.executable, "-c", NEIGHBOUR, source, stdin=pipe, stdout=pipe
        )  # fmt: skip
        assert machine.stdin and machine.stdout
        namespace = os.open(f"/proc/{int(await machine.stdout.readline())}/ns/net", os.O_RDONLY)
        with Netlink() as netlink:
            netlink.add_veth(link, 0, "eth0", namespace)
            netlink.add_address(socket.if_nametoindex(link), "198.51.100.1", 30)
        os.close(namespace)
        Path(f"/proc/sys/net/ipv4/conf/{link}/forwarding").write_text("1")
        machine.stdin.write(f"{pod}\n".encode())
        assert await machine.stdout.readline() == b"ready\n"
        program = "import socket; socket.create_connection(('198.51.100.2', 9000), 5)"
        await world.output("client", "python3", "-c", program)
        assert (await world.get("client"))["status"]["phase"] == "Succeeded"
        assert (await machine.stdout.readline()).decode().strip() == "198.51.100.1"
        assert await machine.stdout.readline() == b"blocked\n"
        assert await machine.wait() == 0

    on_node(test)


@pytest.mark.skipif(not IS_ROOT, reason="own networks for Pods need root")
def test_rules_of_others_do_not_hide_pods_from_each_other(on_node: Callable[..., None]) -> None:
    """A network that wants the addresses of ours for itself, such as one of a cluster on this machine."""
    stranger = f"sho{os.getpid()}"
    program = "import socket as s; l = s.create_server(('0.0.0.0', 9000)); print(l.accept()[1][0])"

    async def test(world: World) -> None:
        ready = {"exec": {"command": ["sh", "-c", "grep -q :2328 /proc/net/tcp"]}, "periodSeconds": 1}
        await world.run("server", "python3", "-c", program, readinessProbe=ready)
        address = (await world.ready("server"))["status"]["podIP"]
        open_way_out(stranger, ipaddress.ip_interface(f"{address}/22").network)
        await world.output(
            "client", "python3", "-c", f"import socket as s; s.create_connection(('{address}', 9000), 9)"
        )
        await world.ended("server")
        assert await world.logs("server") == f"{(await world.get('client'))['status']['podIP']}\n"

    with Netlink() as netlink:
        netlink.add_bridge(stranger)
        try:
            on_node(test)
        finally:
            close_way_out(stranger)
            netlink.delete_link(socket.if_nametoindex(stranger))


# --- what becomes of a Pod ------------------------------------------------------------------------------------------


def test_exit_codes_become_phases_and_reasons(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.run("good", "true")
        await world.run("bad", "sh", "-c", "echo gone wrong; echo why > $TERMINATION_LOG; exit 4")
        await world.run("silent", "sh", "-c", "echo gone wrong; exit 4")
        await world.run("link", "sh", "-c", "rm $TERMINATION_LOG && ln -s /etc/passwd $TERMINATION_LOG && exit 4")
        await world.run("told", "sh", "-c", "echo gone wrong; exit 4", terminationMessagePolicy="FallbackToLogsOnError")
        await world.run("shot", "sh", "-c", "kill -9 $$$$")
        await world.run("absent", "no-such-program")
        good, bad, shot, absent = [await world.ended(name) for name in ("good", "bad", "shot", "absent")]
        assert good["status"]["phase"] == "Succeeded" and state(good)["terminated"]["reason"] == "Completed"
        assert bad["status"]["phase"] == "Failed"
        assert (state(bad)["terminated"]["exitCode"], state(bad)["terminated"]["reason"]) == (4, "Error")
        assert state(bad)["terminated"]["message"].strip() == "why"
        for name in ("silent", "link"):
            assert "message" not in (found := state(await world.ended(name))["terminated"]) and found["exitCode"] == 4
        assert state(await world.ended("told"))["terminated"]["message"] == "gone wrong"
        assert state(shot)["terminated"]["exitCode"] == 137
        assert state(absent)["terminated"]["exitCode"] in (127, 128)
        assert {"Scheduled", "Started"} <= {reason for reason, _ in await world.events("good")}
        ready = next(c for c in good["status"]["conditions"] if c["type"] == "Ready")
        assert (ready["status"], ready["reason"]) == ("False", "PodCompleted")

    on_node(test)


def test_an_unknown_image_says_what_to_do(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.run("stranger", "true", image="acme/train:7")
        pod = await world.until(
            "stranger",
            lambda pod: (
                "waiting" in str((pod.get("status") or {}).get("containerStatuses")) and "Image" in str(state(pod))
            ),
        )
        assert state(pod)["waiting"]["reason"] in ("ErrImagePull", "ImagePullBackOff")
        assert "acme/train:7" in state(pod)["waiting"]["message"]
        assert pod["status"]["phase"] == "Pending"
        await world.client.delete(POD, "stranger", "default")
        await world.gone("stranger")

    on_node(test)


def test_a_missing_reference_waits_until_it_is_there(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        reference = {"configMapKeyRef": {"name": "later", "key": "word"}}
        await world.run("patient", "sh", "-c", "echo $WORD", env=[{"name": "WORD", "valueFrom": reference}])
        pod = await world.until("patient", lambda pod: "CreateContainerConfigError" in str(pod.get("status")))
        assert "later" in state(pod)["waiting"]["message"] and pod["status"]["phase"] == "Pending"
        await world.create("ConfigMap", "later", data={"word": "hello"})
        await world.phase("patient", "Succeeded")
        assert await world.logs("patient") == "hello\n"

    on_node(test)


def test_a_crashing_container_is_restarted_with_growing_pauses(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.run("loop", "sh", "-c", "echo again; exit 3", pod={"restartPolicy": "Always"})
        pod = await world.until("loop", lambda pod: "CrashLoopBackOff" in str(pod.get("status")))
        status = pod["status"]["containerStatuses"][0]
        assert pod["status"]["phase"] == "Running"
        assert status["restartCount"] >= 1
        assert status["lastState"]["terminated"]["exitCode"] == 3
        assert "again" in await world.logs("loop", previous=True)
        assert "Back-off" in await world.event("loop", "BackOff")
        await world.client.delete(POD, "loop", "default")
        await world.gone("loop")

    on_node(test)


def test_init_containers_run_first_and_in_order(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        def step(name: str, command: str, **more: Any) -> dict[str, Any]:
            mounts = [{"name": "shared", "mountPath": "/shared"}]
            return {"name": name, "image": "python", "command": ["sh", "-c", command], "volumeMounts": mounts, **more}

        volumes = [{"name": "shared", "emptyDir": {}}]
        first, second = step("first", "sleep 0.1; echo 1 >> /shared/log"), step("second", "echo 2 >> /shared/log")
        helper = step("helper", "echo side >> /shared/log; sleep 1000", restartPolicy="Always")
        pod = {"initContainers": [first, helper, second], "volumes": volumes}
        text = await world.output("steps", "cat", "/shared/log", volumeMounts=first["volumeMounts"], pod=pod)
        assert text.split()[0] == "1" and set(text.split()) == {"1", "side", "2"}
        assert (await world.get("steps"))["status"]["phase"] == "Succeeded"
        await world.run("broken", "true", pod={"initContainers": [step("first", "exit 5")], "volumes": volumes})
        broken = await world.ended("broken")
        assert broken["status"]["phase"] == "Failed"
        assert broken["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 5
        assert "waiting" in state(broken)

    on_node(test)


def test_probes_decide_readiness_and_restarts(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.create(
            "PersistentVolumeClaim",
            "answers",
            spec={"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
        )
        code = world.settings.volumes / "default" / "answers" / "code"
        await world.run(
            "server",
            *server(8080, "/answers/code"),
            env=[{"name": "WHO", "value": "x"}],
            ports=[{"name": "http", "containerPort": 8080}],
            startupProbe={"tcpSocket": {"port": "http"}, "periodSeconds": 1},
            readinessProbe=probe(failureThreshold=1),
            livenessProbe={
                "exec": {"command": ["sh", "-c", "! test -e /answers/dead"]},
                "periodSeconds": 1,
                "failureThreshold": 2,
            },
            volumeMounts=[{"name": "answers", "mountPath": "/answers"}],
            pod={
                "restartPolicy": "Always",
                "volumes": [{"name": "answers", "persistentVolumeClaim": {"claimName": "answers"}}],
            },
        )
        await world.ready("server")
        code.write_text("500")
        await world.until("server", lambda pod: not is_condition_true(pod, "Ready"))
        assert "500" in await world.event("server", "Unhealthy")
        code.write_text("200")
        await world.ready("server")
        (code.parent / "dead").touch()
        await world.until(
            "server",
            lambda pod: (
                pod["status"]["containerStatuses"][0]["restartCount"] == 1
                or pod["status"]["containerStatuses"][0]["lastState"]
            ),
        )
        (code.parent / "dead").unlink()

    on_node(test)


def test_a_deadline_ends_a_pod(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.run("slow", "sleep", "100", pod={"activeDeadlineSeconds": 1})
        pod = await world.ended("slow")
        assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "DeadlineExceeded")

    on_node(test)


def test_termination_is_graceful_then_certain(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.run("polite", "sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
        await world.run("plain", "sleep", "100", pod={"terminationGracePeriodSeconds": 30})
        hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /shared/hook"]}}}
        await world.create(
            "PersistentVolumeClaim",
            "shared",
            spec={"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
        )
        await world.run(
            "hooked", "sleep", "100", lifecycle=hook, volumeMounts=[{"name": "shared", "mountPath": "/shared"}],
            pod={"volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]},
        )  # fmt: skip
        for name in ("polite", "plain", "hooked"):
            await world.phase(name, "Running")
        await asyncio.sleep(0.3)
        pod = await world.get("polite")
        started = time.monotonic()
        for name in ("polite", "plain", "hooked"):
            await world.client.delete(POD, name, "default")
        for name in ("polite", "plain", "hooked"):
            await world.gone(name)
        assert time.monotonic() - started < 3
        assert (world.settings.volumes / "default" / "shared" / "hook").read_text() == "hook\n"
        log = world.settings.logs / "default" / f"polite_{pod['metadata']['uid']}" / "main" / "0.log"
        assert [line.split(" ", 3)[3] for line in log.read_text().splitlines()] == ["up", "bye"]

    on_node(test)


# --- what a container gets ------------------------------------------------------------------------------------------


def test_the_environment_is_composed_as_declared(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.create("ConfigMap", "config", data={"COLOR": "red", "shape": "round"})
        await world.create("Secret", "secret", data={"TOKEN": base64.b64encode(b"abc").decode()})
        env = [
            {"name": "BASE", "value": "one"},
            {"name": "BOTH", "value": "$(BASE)-$(COLOR)-$$(BASE)-$(NONE)"},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "OPTIONAL", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": True}}},
        ]
        text = await world.output(
            "vars",
            "sh",
            "-c",
            'echo "$BOTH $NAME $CPU $P_TOKEN $shape ${OPTIONAL-unset} $OMP_NUM_THREADS $(pwd) $1"; test "$IP"',
            "sh",
            "$(BASE)",
            env=env,
            envFrom=[{"configMapRef": {"name": "config"}}, {"prefix": "P_", "secretRef": {"name": "secret"}}],
            resources={"limits": {"cpu": "1500m"}},
            workingDir="/job/dir",
            volumeMounts=[{"name": "work", "mountPath": "/job/dir"}],
            pod={"volumes": [{"name": "work", "emptyDir": {}}]},
        )
        assert text == "one-red-$(BASE)-$(NONE) vars 2 abc round unset 2 /job/dir one\n"
        assert (await world.get("vars"))["status"]["phase"] == "Succeeded"

    on_node(test)


def test_volumes_of_every_kind(on_node: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "file").write_text("of the host\n")

    async def test(world: World) -> None:
        await world.create(
            "PersistentVolumeClaim",
            "data",
            spec={"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
        )
        volumes = [
            {"name": "host", "hostPath": {"path": str(tmp_path / "host")}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {
                "name": "about",
                "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]},
            },
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ]
        mounts = [
            {"name": "host", "mountPath": "/from/host", "readOnly": True},
            {"name": "data", "mountPath": "/data", "subPath": "inner"},
            {"name": "about", "mountPath": "/etc/podinfo"},
            {"name": "memory", "mountPath": "/dev/shm"},
        ]
        script = (
            "cat /from/host/file; echo x > /from/host/new || echo read-only; echo kept > /data/file;"
            "cat /etc/podinfo/labels; echo;"
            "touch /dev/shm/x && echo shm; ls /var/run/secrets/kubernetes.io/serviceaccount"
        )
        text = await world.output(
            "all", "sh", "-c", script, volumeMounts=mounts, pod={"volumes": volumes}, metadata={"labels": {"a": "b"}}
        )
        lines = text.splitlines()
        assert lines[0] == "of the host" and "read-only" in lines and 'a="b"' in lines and "shm" in lines
        assert {"ca.crt", "namespace", "token"} <= set(lines)
        assert (world.settings.volumes / "default" / "data" / "inner" / "file").read_text() == "kept\n"
        assert not (tmp_path / "host" / "new").exists()

    on_node(test)


def test_a_volume_in_memory_is_a_tmpfs_of_its_size_until_the_pod_goes(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        if not world.node.may_mount:
            pytest.skip("file systems are mounted at the isolation level of root only")
        volumes = [{"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]
        mounts = [{"name": "scratch", "mountPath": "/scratch"}]
        script = "grep ' /scratch ' /proc/mounts; head -c 2000000 /dev/zero > /scratch/big || echo full"
        text = await world.output("memory", "sh", "-c", script, volumeMounts=mounts, pod={"volumes": volumes})
        assert "/scratch tmpfs" in text and "size=1024k" in text and "full" in text

        def mounted() -> bool:
            return str(world.settings.pods) in Path("/proc/self/mounts").read_text()

        # A Pod that is over keeps no volumes, whether it is deleted or not yet.
        await world.client.delete(POD, "memory", "default")
        async with asyncio.timeout(30):
            while mounted():
                await asyncio.sleep(0.02)

    on_node(test)


def test_what_is_not_supported_is_said(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        volumes = [{"name": "remote", "nfs": {"server": "s", "path": "/"}}]
        await world.run("remote", "true", pod={"volumes": volumes})
        pod = await world.until("remote", lambda pod: "CreateContainerConfigError" in str(pod.get("status")))
        assert "nfs" in state(pod)["waiting"]["message"]
        assert "nfs" in await world.event("remote", "Failed")

    on_node(test)


# --- logs -----------------------------------------------------------------------------------------------------------


def test_logs_follow_end_and_filter(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.run(
            "talker", "sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.3; done; printf end; echo err >&2"
        )
        await world.phase("talker", "Running", "Succeeded")
        pod, seen, started = await world.get("talker"), [], time.monotonic()
        async for chunk in world.node.read_logs(pod, "main", follow=True):
            seen.append((chunk.decode(), time.monotonic() - started))
        text = "".join(chunk for chunk, _ in seen)
        assert text.startswith("line 1\nline 2\nline 3\n") and "end" in text and "err" in text
        assert len(seen) >= 3, "lines came when they were printed"
        await world.ended("talker")
        assert (await world.logs("talker", tail_lines=1)).strip() in ("end", "err")
        assert await world.logs("talker", limit_bytes=6) == "line 1"
        assert (await world.logs("talker", timestamps=True)).split(" ")[0].endswith("Z")
        with pytest.raises(BadRequestError, match="previous"):
            await world.logs("talker", previous=True)

    on_node(test)


def test_logs_of_a_fast_writer_rotate_and_lose_nothing(on_node: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        program = "import sys\nfor i in range(300000): sys.stdout.write(f'{i:06} ' + 'x' * 60 + '\\n')"
        await world.run("flood", "python3", "-c", program)
        await world.ended("flood")
        text = await world.logs("flood")
        assert [int(line[:6]) for line in text.splitlines()] == list(range(300000))

    on_node(test)


# --- resources ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not IS_ROOT, reason="own networks for Pods need root")
def test_the_network_is_removed_with_the_node(on_node: Callable[..., None]) -> None:
    bridges: list[str] = []

    async def test(world: World) -> None:
        bridges.append(world.node.network.bridge)
        assert bridges[0] in {name for _, name in socket.if_nameindex()}
        await world.run("up", "sleep", "100")
        await world.phase("up", "Running")

    on_node(test)
    assert bridges[0] not in {name for _, name in socket.if_nameindex()}


# --- commands in running containers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_command_runs_with_the_variables_and_files_of_its_container(on_node: Callable[..., None], level: str) -> None:
    async def test(world: World) -> None:
        await world.create("ConfigMap", "words", data={"word": "from a map"})
        pod = await world.run(
            "runs",
            "sleep",
            "1000",
            env=[{"name": "COLOUR", "value": "blue"}],
            volumeMounts=[{"name": "words", "mountPath": "/mnt/words"}],
            pod={"volumes": [{"name": "words", "configMap": {"name": "words"}}]},
        )
        await world.until("runs", lambda pod: (pod.get("status") or {}).get("phase") == "Running")
        script = "read word; echo $COLOUR $word; cat /mnt/words/word; exit 5"
        execution = await world.node.execute(pod, "main", ["sh", "-c", script], stdin=True, tty=False)
        await execution.write(b"hello\n")
        execution.end_input()
        text = b""
        while data := await execution.read(1):
            text += data
        assert (text, await execution.exit_code()) == (b"blue hello\nfrom a map", 5)
        execution.close()
        with pytest.raises(BadRequestError, match="does not run now"):
            await world.node.execute(pod, "other", ["true"], stdin=False, tty=False)

    on_node(test, level)
