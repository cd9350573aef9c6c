"""Fork-servers: how processes start, what they inherit, and how their exit is known."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from shallop.embedded.kubelet.environments import Environment, EnvironmentSpec
from shallop.embedded.kubelet.zygotes import Zygotes, link_pod_package
from shallop.errors import NodeError
from shallop.priority import steps_behind
from shallop.settings import Settings
from shallop_pod.zygote import Child, Exit, Request, ZygoteError, connect, spawn

PROGRAM = """
import fcntl, json, os, random, signal, sys, threading, time, atexit

def main(argv):
    return globals()[argv[0]](*argv[1:])

def facts():
    print(json.dumps({
        "env": dict(os.environ), "cwd": os.getcwd(), "argv": sys.argv, "fds": os.listdir("/proc/self/fd"),
        "sid": os.getsid(0), "pid": os.getpid(), "path": sys.path[:2], "random": random.random(),
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "umask": os.umask(0),
    }))

def code(n): return int(n)
def show(path): print(open(path).read())
def leave(text): sys.exit(text)
def crash(): raise RuntimeError("broken")
def die(n): os.kill(os.getpid(), int(n))
def length(text): print(len(text))
def wait(seconds): time.sleep(float(seconds)); return 5
def burn():
    end = time.process_time() + 0.2
    while time.process_time() < end: pass
def late():
    atexit.register(lambda: print("atexit"))
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    print("main")
def fork_and_leave():
    if os.fork() == 0: time.sleep(30)
def hold(path):
    global held
    held = open(path, "a")
    fcntl.flock(held, fcntl.LOCK_EX)
def hold_and_wait(path):
    hold(path)
    locked.set()
    time.sleep(30)
def hold_in_a_thread(path):
    global locked
    locked = threading.Event()
    threading.Thread(target=hold_and_wait, args=[path], daemon=True).start()
    locked.wait()
def hold_in_a_child(path):
    answer, told = os.pipe()
    if os.fork() == 0:
        hold(path)
        os.write(told, b"locked")
        time.sleep(30)
    os.read(answer, 10)
"""


def environment(key: str = "0" * 32, preload: tuple[str, ...] = ()) -> Environment:
    spec = EnvironmentSpec("python", "3", sys.executable)
    return Environment(key, Path(sys.prefix), Path(sys.executable), "sha256:0", preload, spec)


@contextmanager
def zygotes(folder: Path, limit: int = 2, idle_s: float = 60.0) -> Iterator[Zygotes]:
    settings = Settings(home=folder / "home", max_zygotes=limit, zygote_idle_s=idle_s)
    found = Zygotes.of(settings)
    try:
        yield found
    finally:
        found.stop()


class Starter:
    """Starts functions of PROGRAM by one fork-server."""

    def __init__(self, folder: Path, servers: Zygotes) -> None:
        self.folder = folder
        self.socket = anyio.run(servers.socket, environment())
        (folder / "program.py").write_text(PROGRAM)
        self.log = folder / "log"

    def start(self, *argv: str, cwd: str = "/", plan: dict[str, Any] | None = None) -> Child:
        python_path = os.pathsep.join([str(self.folder), str(self.folder / "home/run/python")])
        with open(os.devnull) as stdin, self.log.open("wb") as output:
            stdio = (stdin.fileno(), output.fileno(), output.fileno())
            return spawn(
                str(self.socket), Request("program", argv, {"PYTHONPATH": python_path, "A": "1"}, cwd, plan), stdio
            )

    def run(self, *argv: str, cwd: str = "/", plan: dict[str, Any] | None = None) -> Exit:
        found = self.start(*argv, cwd=cwd, plan=plan).wait(20)
        assert found is not None
        return found


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    with zygotes(tmp_path) as servers:
        yield Starter(tmp_path, servers)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_process_inherits_nothing_but_what_it_is_given(starter: Starter, tmp_path: Path) -> None:
    child = starter.start("facts", cwd=str(tmp_path))
    assert child.wait(20) == Exit(0, None, pytest.approx(0, abs=1), pytest.approx(0, abs=1e9))
    facts = json.loads(starter.log.read_text())
    assert set(facts["env"]) <= {"PYTHONPATH", "A", "LC_CTYPE"} and facts["env"]["A"] == "1"
    assert facts["cwd"] == str(tmp_path) and facts["argv"] == ["program", "facts"]
    assert len(facts["fds"]) <= 5  # stdio, the line to whoever asked, and the listing itself
    assert facts["sid"] == facts["pid"] == child.pid
    assert facts["path"] == [str(tmp_path), str(tmp_path)] and facts["sigterm"] and facts["umask"] == 0o022
    starter.run("facts")
    assert json.loads(starter.log.read_text())["random"] != facts["random"]


@pytest.mark.parametrize(
    ("argv", "code", "number", "text"),
    [
        (("code", "0"), 0, None, ""),
        (("code", "7"), 7, None, ""),
        (("leave", "goodbye"), 1, None, "goodbye"),
        (("crash",), 1, None, "RuntimeError: broken"),
        (("die", "9"), 137, 9, ""),
        (("die", "11"), 139, 11, ""),
        (("absent",), 1, None, "KeyError"),
        (("late",), 0, None, "main\nthread\natexit"),
    ],
)
def test_exit_codes_are_those_of_a_process(
    starter: Starter, argv: tuple[str, ...], code: int, number: int | None, text: str
) -> None:
    found = starter.run(*argv)
    assert (found.code, found.signal) == (code, number)
    assert text in starter.log.read_text()


def test_usage_is_reported(starter: Starter) -> None:
    found = starter.run("burn")
    assert 0.15 < found.cpu_s < 1 and 5e6 < found.max_rss_bytes < 1e9


def test_arguments_may_be_larger_than_the_kernel_allows_for_programs(starter: Starter) -> None:
    assert starter.run("length", "x" * 3_000_000).code == 0
    assert starter.log.read_text() == "3000000\n"


def test_a_missing_working_directory_is_said(starter: Starter) -> None:
    assert starter.run("code", "0", cwd="/no/such/folder").code == 128
    assert "working directory '/no/such/folder'" in starter.log.read_text()


def test_a_running_process_is_waited_for_and_can_be_killed(starter: Starter) -> None:
    child = starter.start("wait", "30")
    assert child.wait(0.05) is None
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait(10) == Exit(143, 15, pytest.approx(0, abs=1), pytest.approx(0, abs=1e9))


def test_the_exit_code_arrives_when_the_fork_server_is_killed(starter: Starter) -> None:
    child = starter.start("wait", "0.5")
    with connect(str(starter.socket)):
        pass
    server = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    found = child.wait(10)
    assert found is not None and (found.code, found.signal) == (5, None)
    with pytest.raises(ZygoteError):
        starter.start("code", "0")


def test_when_both_are_killed_that_is_an_exit_too(starter: Starter) -> None:
    child = starter.start("wait", "30")
    server = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    until(lambda: not is_alive(server))
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10) == Exit(137, 9)


def test_processes_come_after_who_started_them(starter: Starter) -> None:
    child = starter.start("wait", "30")
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(os.PRIO_PROCESS, 0) + steps_behind()
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait(10) is not None


def test_a_forked_grandchild_does_not_hold_up_the_exit(starter: Starter) -> None:
    child = starter.start("fork_and_leave")
    found = child.wait(5)
    assert found is not None and found.code == 0
    os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces without a user namespace need root")
def test_a_process_of_its_own_pid_namespace_reports_like_any_other(starter: Starter, tmp_path: Path) -> None:
    plan = {"pid": True, "mounts": [{"target": "/mnt/models", "source": str(tmp_path)}]}
    child = starter.start("facts", cwd="/mnt/models", plan=plan)
    assert child.wait(20) == Exit(0, None, pytest.approx(0, abs=1), pytest.approx(0, abs=1e9))
    facts = json.loads(starter.log.read_text())
    assert facts["pid"] == 1 and child.pid > 1 and facts["cwd"] == "/mnt/models"
    assert starter.run("code", "6", plan=plan).code == 6
    assert starter.run("die", "9", plan=plan).code in (0, 137)  # the first process of a namespace cannot kill itself
    waiting = starter.start("wait", "30", plan=plan)
    assert waiting.wait(0.05) is None
    os.killpg(waiting.pid, signal.SIGKILL)
    assert (found := waiting.wait(10)) is not None and found.code == 137


def test_namespaces_that_cannot_be_entered_are_an_error(starter: Starter) -> None:
    with pytest.raises(ZygoteError, match=r"isolation: .*/no/such/folder"):
        starter.start("code", "0", plan={"mounts": [{"target": "/mnt", "source": "/no/such/folder"}]})


def children_of(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.fixture
def zygote_pid(starter: Starter) -> int:
    with connect(str(starter.socket)) as connection:
        (pid, *_) = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    """What every container has, with its folder at a place that does not exist on the machine."""
    (tmp_path / "shown").mkdir()
    mounts = [{"target": "/dev", "devices": True}, {"target": "/shown/here", "source": str(tmp_path / "shown")}]
    return {"user": os.geteuid() != 0, "pid": True, "mounts": mounts}


def standby_of(starter: Starter, zygote_pid: int, plan: dict[str, Any]) -> int:
    """Run a process; return the standby that was forked for the next one: root forks no process in between."""
    ended = starter.start("code", "0", plan=plan)
    assert (found := ended.wait(20)) is not None and found.code == 0
    until(lambda: not is_alive(ended.pid))

    def standbys() -> list[int]:
        children = children_of(zygote_pid)
        return children if os.geteuid() == 0 else [inner for child in children for inner in children_of(child)]

    until(lambda: len(children_of(zygote_pid)) == len(standbys()) == 1)
    return standbys()[0]


def test_the_next_process_is_the_standby(starter: Starter, zygote_pid: int, plan: dict[str, Any]) -> None:
    waiting = standby_of(starter, zygote_pid, plan)
    child = starter.start("wait", "0.2", plan=plan)
    assert child.pid == waiting
    found = child.wait(20)
    assert found is not None and found.code == 5


def test_a_task_ends_when_it_is_told_so_at_the_moment_of_its_start(
    starter: Starter, tmp_path: Path, plan: dict[str, Any]
) -> None:
    task = json.dumps({"name": "t", "dir": str(tmp_path / "task"), "executorInput": {}})
    argv = ["--task", task, "--", "sleep", "60"]
    env = {"PYTHONPATH": str(tmp_path / "home/run/python"), "PATH": os.environ["PATH"]}
    with open(os.devnull, "r+") as nothing:
        stdio = (nothing.fileno(),) * 3
        child = spawn(str(starter.socket), Request("shallop_pod.launcher", argv, env, "/", plan), stdio)
    os.kill(child.pid, signal.SIGTERM)
    found = child.wait(30)
    assert found is not None and found.code == 143


@pytest.mark.parametrize("function", ["hold", "hold_in_a_thread", "hold_in_a_child"])
def test_nothing_of_a_container_is_left_when_its_end_is_known(
    starter: Starter, plan: dict[str, Any], tmp_path: Path, function: str
) -> None:
    for _ in range(5):
        assert starter.run(function, str(tmp_path / "lock"), plan=plan).code == 0
        with open(tmp_path / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_process_of_another_shape_is_not_the_standby(starter: Starter, zygote_pid: int, plan: dict[str, Any]) -> None:
    waiting = standby_of(starter, zygote_pid, plan)
    child = starter.start("code", "3")
    assert child.pid != waiting
    found = child.wait(20)
    assert found is not None and found.code == 3
    until(lambda: not is_alive(waiting))


@pytest.mark.parametrize("outside", [True, False], ids=["who stays outside", "the process to be"])
def test_a_killed_standby_harms_nobody(starter: Starter, zygote_pid: int, plan: dict[str, Any], outside: bool) -> None:
    waiting = standby_of(starter, zygote_pid, plan)
    (guard,) = children_of(zygote_pid)  # for root the same
    os.kill(guard if outside else waiting, signal.SIGKILL)
    until(lambda: state_of(guard if outside else waiting) in ("", "Z"))
    assert starter.run("code", "4", plan=plan).code == 4


def test_a_standby_ends_with_its_fork_server(starter: Starter, zygote_pid: int, plan: dict[str, Any]) -> None:
    waiting = standby_of(starter, zygote_pid, plan)
    os.kill(zygote_pid, signal.SIGKILL)
    until(lambda: not is_alive(waiting))


def test_what_is_mounted_after_the_standby_was_forked_is_seen(
    starter: Starter, zygote_pid: int, plan: dict[str, Any], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting on the machine needs root")
    waiting = standby_of(starter, zygote_pid, plan)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], check=True)
    try:
        (disk / "file").write_text("there")
        child = starter.start("show", str(disk / "file"), plan=plan)
        assert child.pid != waiting
        assert child.wait(20) is not None
        assert starter.log.read_text() == "there\n"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_nonsense_from_one_client_harms_no_other(starter: Starter) -> None:
    with connect(str(starter.socket)) as connection:
        connection.sendall(b"\x00\x00\x00\x02{}")
    with connect(str(starter.socket)) as connection:
        connection.sendall(b"\xff\xff")
    assert starter.run("code", "3").code == 3


def test_a_stopped_fork_server_ends_after_its_last_process(tmp_path: Path) -> None:
    with zygotes(tmp_path) as servers:
        starter = Starter(tmp_path, servers)
        child = starter.start("wait", "0.5")
        servers.stop()
    with pytest.raises(ZygoteError):
        starter.start("code", "0")
    found = child.wait(10)
    assert found is not None and found.code == 5


def test_an_idle_fork_server_ends_and_is_started_again(tmp_path: Path) -> None:
    with zygotes(tmp_path, idle_s=0.2) as servers:
        path = anyio.run(servers.socket, environment())
        until(lambda: not path.exists())
        assert anyio.run(servers.socket, environment()) == path and path.exists()


def test_a_fork_server_survives_the_control_plane_and_is_adopted(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    first, second = Zygotes.of(settings), Zygotes.of(settings)
    path = anyio.run(first.socket, environment())
    inode = path.stat().st_ino
    assert anyio.run(second.socket, environment()) == path
    assert path.stat().st_ino == inode
    second.stop()
    until(lambda: not path.exists())


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    with zygotes(tmp_path, limit=2) as servers:
        paths = [anyio.run(servers.socket, environment(str(number) * 32)) for number in range(3)]
        until(lambda: not paths[0].exists())
        assert paths[1].exists() and paths[2].exists()


def test_asking_at_once_starts_one(tmp_path: Path) -> None:
    async def ask(servers: Zygotes) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(servers.socket, environment())

    with zygotes(tmp_path) as servers:
        anyio.run(ask, servers)
        assert len(servers._zygotes) == 1


def test_a_library_that_cannot_be_imported_is_not_preloaded(tmp_path: Path) -> None:
    with zygotes(tmp_path) as servers:
        path = anyio.run(servers.socket, environment(preload=("json", "no_such_library")))
        assert "no_such_library is not preloaded" in path.with_suffix(".log").read_text()


def test_an_environment_without_python_is_a_clear_error(tmp_path: Path) -> None:
    broken = environment()
    spec = EnvironmentSpec("acme/train:7", "3", "/x")
    broken = Environment(broken.key, tmp_path, Path("/bin/false"), "", (), spec)
    with zygotes(tmp_path) as servers, pytest.raises(NodeError, match=r"image 'acme/train:7'.*did not start"):
        anyio.run(servers.socket, broken)


def test_long_paths_work(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 80) / ("y" * 80)
    folder.mkdir(parents=True)
    with zygotes(folder) as servers:
        assert Starter(folder, servers).run("code", "4").code == 4


def test_pods_see_the_pod_package_and_nothing_else(tmp_path: Path) -> None:
    folder = link_pod_package(Settings(home=tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == ["shallop_pod", "sitecustomize.py"]
    assert (folder / "shallop_pod" / "zygote.py").exists()
    assert link_pod_package(Settings(home=tmp_path)) == folder


def test_twenty_forks_are_fast(starter: Starter, record_property: Callable[[str, object], None]) -> None:
    times = []
    for _ in range(20):
        started = time.perf_counter()
        assert starter.run("code", "0").code == 0
        times.append((time.perf_counter() - started) * 1000)
    record_property("fork_ms_median", statistics.median(times))
    # 5 ms on an idle machine; a new interpreter with kfp takes 440 ms, even a bare one with this package takes 60 ms.
    assert statistics.median(times) < 40
