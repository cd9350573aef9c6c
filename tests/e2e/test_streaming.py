"""exec, cp, attach, port-forward, proxies and top with the real kubectl and the ``kubernetes`` client."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMESPACE = "streams"
SESSION = Path(__file__).with_name("streaming_session.py")
DEADLINE_S = 60.0
OLD = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
TRANSPORTS = [pytest.param({}, id="websocket"), pytest.param(OLD, id="spdy")]
SERVER = {
    "name": "main",
    "image": "python:3.11",
    "command": ["python3", "-m", "http.server", "8080"],
    "workingDir": "/data/served",
    "env": [{"name": "COLOUR", "value": "blue"}],
    "ports": [{"name": "http", "containerPort": 8080}],
    "readinessProbe": {"tcpSocket": {"port": "http"}},
}
OBJECTS: list[dict[str, Any]] = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": NAMESPACE, "labels": {"app": "web"}},
        "spec": {"containers": [SERVER], "terminationGracePeriodSeconds": 1},
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    },
]


@pytest.fixture(scope="module")
def web(platform: Any) -> Iterator[Any]:
    """The platform with a Pod and a Service that serve its folder."""
    platform.kubectl("apply", "-f", "-", stdin="\n".join(json.dumps(obj) for obj in OBJECTS))
    platform.kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    yield platform
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)


def command_of(platform: Any, *arguments: str) -> list[str]:
    return ["kubectl", "--kubeconfig", platform.kubeconfig, "-n", NAMESPACE, *arguments]


def run(
    platform: Any, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command_of(platform, *arguments),
        input=stdin,
        env=os.environ | (env or {}),
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
    )


@pytest.mark.parametrize("env", TRANSPORTS)
def test_a_command_has_its_output_errors_and_exit_code(web: Any, env: dict[str, str]) -> None:
    done = run(web, "exec", "web", "--", "sh", "-c", "echo $COLOUR; pwd; echo bad >&2; exit 3", env=env)
    assert (done.stdout, done.returncode) == (b"blue\n/data/served\n", 3)
    assert b"bad\n" in done.stderr and b"exit code 3" in done.stderr
    assert run(web, "exec", "web", "--", "no-such-program", env=env).returncode == 127


@pytest.mark.parametrize("env", TRANSPORTS)
def test_input_is_passed_on_and_its_end_too(web: Any, env: dict[str, str]) -> None:
    sent = os.urandom(3_000_000)
    done = run(web, "exec", "-i", "web", "--", "sha256sum", stdin=sent, env=env)
    assert done.stdout.split()[0].decode() == hashlib.sha256(sent).hexdigest(), done.stderr


def test_a_command_runs_inside_the_container(web: Any) -> None:
    script = "cat /proc/1/cmdline | tr '\\0' ' '; kill -0 1 && echo reached; python3 -c 'import socket as s; " \
        "s.create_connection((\"127.0.0.1\", 8080)); print(\"connected\")'"  # fmt: skip
    text = run(web, "exec", "web", "--", "sh", "-c", script).stdout.decode()
    assert "reached" in text and "connected" in text, text


@pytest.mark.parametrize("env", TRANSPORTS)
def test_files_are_copied_both_ways(web: Any, env: dict[str, str], tmp_path: Path) -> None:
    sent = os.urandom(1_000_000)
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_bytes(sent)
    name = f"copy-{len(env)}"
    done = run(web, "cp", str(folder), f"web:/data/served/{name}", env=env)
    assert done.returncode == 0, done.stderr
    back = tmp_path / "back"
    done = run(web, "cp", f"web:/data/served/{name}/inner/file", str(back), env=env)
    assert done.returncode == 0 and back.read_bytes() == sent, done.stderr


def expect(terminal: int, output: bytearray, pattern: bytes) -> None:
    """Read a terminal until a pattern shows, and forget what was read."""
    deadline = time.monotonic() + DEADLINE_S
    while not re.search(pattern, output):
        assert time.monotonic() < deadline, f"{pattern!r} is not in {bytes(output)!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            output += os.read(terminal, 65536)
    output.clear()


@contextlib.contextmanager
def in_terminal(platform: Any, *arguments: str) -> Iterator[tuple[int, int]]:
    """Run kubectl in a terminal; yields the terminal and the process id."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("kubectl", command_of(platform, *arguments))
    try:
        yield terminal, pid
    finally:
        os.close(terminal)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def exit_code(terminal: int, pid: int) -> int:
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_terminal_has_a_size_and_passes_ctrl_c_on(web: Any) -> None:
    output = bytearray()
    with in_terminal(web, "exec", "-it", "web", "--", "sh") as (terminal, pid):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 41, 117, 0, 0))
        os.kill(pid, signal.SIGWINCH)
        os.write(terminal, b"while [ \"$(stty size)\" != '41 117' ]; do sleep 0.1; done; echo sized-$((1+1))\n")
        expect(terminal, output, rb"sized-2")
        os.write(
            terminal,
            b"trap 'echo caught-$((2+3)); x=1' INT; while [ -z $x ]; do echo asleep-$((1+2)); sleep 0.2; done\n",
        )
        expect(terminal, output, rb"asleep-3")
        os.write(terminal, b"\x03")
        expect(terminal, output, rb"caught-5")
        os.write(terminal, b"exit 7\n")
        assert exit_code(terminal, pid) == 7


@contextlib.contextmanager
def forwarded(platform: Any, target: str, port: int, env: dict[str, str]) -> Iterator[str]:
    """Forward a free local port; yields its URL."""
    process = subprocess.Popen(
        command_of(platform, "port-forward", target, f":{port}"),
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert match, line + process.stdout.read()
        yield f"http://127.0.0.1:{match[1]}"
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


@pytest.mark.parametrize("env", TRANSPORTS)
@pytest.mark.parametrize(("target", "port"), [("pod/web", 8080), ("svc/web", 80)])
def test_a_port_is_forwarded(web: Any, env: dict[str, str], target: str, port: int) -> None:
    with forwarded(web, target, port, env) as url:
        for _ in range(3):
            with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
                assert answer.status == 200


def test_a_port_where_nobody_listens_is_an_error_of_that_connection(web: Any) -> None:
    with forwarded(web, "pod/web", 9, {}) as url, pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=DEADLINE_S)


@pytest.mark.parametrize("path", ["pods/web", "pods/web:8080", "pods/http:web:http", "services/web", "services/web:80"])
def test_pods_and_services_are_reached_through_the_api(web: Any, path: str) -> None:
    done = run(web, "get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/{path}/proxy/")
    assert b"Directory listing" in done.stdout, done.stderr


def test_the_python_client_runs_commands_and_forwards_ports(web: Any, client_env: Callable[[str], Path]) -> None:
    command = [str(client_env("demo")), str(SESSION), web.kubeconfig, NAMESPACE, "web"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "ok", done.stdout + done.stderr


def test_a_shell_is_run_in_a_pod_of_its_own(web: Any) -> None:
    output = bytearray()
    command = ("run", "-it", "--rm", "shell", "--restart=Never", "--image=python:3.11", "--", "sh")
    with in_terminal(web, *command) as (terminal, pid):
        expect(terminal, output, rb"command prompt")
        os.write(terminal, b"echo all-$((3*4))-$(tty)\n")
        expect(terminal, output, rb"all-12-/dev/pts/")
        os.write(terminal, b"exit\n")
        assert exit_code(terminal, pid) == 0
    assert run(web, "wait", "--for=delete", "pod/shell", "--timeout=50s").returncode == 0


def test_what_pods_and_the_node_use_is_shown(web: Any) -> None:
    script = "x = b'x' * (80 << 20)\nwhile True: pass"
    run(web, "run", "busy", "--image=python:3.11", "--", "python3", "-c", script)
    assert run(web, "wait", "--for=condition=Ready", "pod/busy", "--timeout=50s").returncode == 0

    def used() -> dict[str, tuple[int, int]]:
        lines = [line.split() for line in run(web, "top", "pods", "--no-headers").stdout.decode().splitlines()]
        return {name: (int(cpu.removesuffix("m")), int(memory.removesuffix("Mi"))) for name, cpu, memory in lines}

    deadline = time.monotonic() + DEADLINE_S
    while not ((found := used()).get("busy", (0, 0)) > (50, 0) and found["busy"][1] >= 80):
        assert time.monotonic() < deadline, found
    assert found["web"][1] > 0
    run(web, "delete", "pod", "busy", "--now")
    node = run(web, "top", "nodes", "--no-headers").stdout.decode().split()
    assert node[0] == "shallop" and node[1].endswith("m") and int(node[3].removesuffix("Mi")) > 0


def test_debugging_by_ephemeral_containers_is_refused_with_a_way_out(web: Any) -> None:
    done = run(web, "debug", "web", "--image=busybox", "--", "sh")
    assert done.returncode != 0 and b"kubectl exec -it web" in done.stderr


def test_input_reaches_a_container_and_its_end_too(web: Any) -> None:
    script = "read first; echo got $first; cat | wc -c; exit 5"
    command = ("run", "-i", "--rm", "reader", "--image=python:3.11", "--restart=Never", "--", "sh", "-c", script)
    done = run(web, *command, stdin=b"hello\n" + b"x" * 200_000)
    assert b"got hello\n200000\n" in done.stdout and done.returncode == 5, done


def test_who_attaches_sees_what_is_printed_from_then_on(web: Any) -> None:
    script = "while :; do echo out-$((1+1)); echo err-$((2+2)) >&2; sleep 0.2; done"
    run(web, "run", "ticking", "--image=python:3.11", "--", "sh", "-c", script)
    assert run(web, "wait", "--for=condition=Ready", "pod/ticking", "--timeout=50s").returncode == 0
    process = subprocess.Popen(command_of(web, "attach", "ticking"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"out-2\n"
        assert any(line == b"err-4\n" for line in process.stderr)
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    run(web, "delete", "pod", "ticking", "--now")
