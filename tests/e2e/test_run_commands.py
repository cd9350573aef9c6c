"""``shallop run``, ``why``, ``shell`` and ``cache`` as users type them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

PIPELINE = """
from kfp import dsl


@dsl.component
def make(rows: int, data: dsl.Output[dsl.Dataset]):
    with open(data.path, "w") as file:
        file.write("x\\n" * rows)


@dsl.component
def check(data: dsl.Input[dsl.Dataset], most: int) -> int:
    with open(data.path) as file:
        count = len(file.readlines())
    if count > most:
        raise ValueError(f"too many: {count}")
    return count


@dsl.pipeline(name="run-commands")
def checked(rows: int = 3, most: int = 2) -> int:
    return check(data=make(rows=rows).outputs["data"], most=most).output
"""


class Instance(Protocol):
    """The fixtures ``platform`` and ``own_platform``."""

    home: Path

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]: ...


def test_a_failed_run_is_explained_tried_out_corrected_and_repeated(
    platform: Instance, tmp_path: Path, client_env: Callable[[str], Path]
) -> None:
    python = str(client_env("demo"))
    file = tmp_path / "pipeline.py"
    file.write_text(PIPELINE)
    failed = platform.command("run", str(file), "--python", python, "-p", "rows=4", "--watch", check=False)
    assert failed.returncode == 1, failed.stderr
    assert "step check failed: ValueError: too many: 4" in failed.stdout
    (line,) = [line for line in failed.stdout.splitlines() if line.startswith("run ")]
    run_id = line.split()[1]

    why = platform.command("why", run_id).stdout
    assert "Not from the cache: component 'comp-make' has no kept outputs" in why
    assert "MiB of memory" in why

    folder = tmp_path / "step"
    shell = ("shell", run_id, "check", "--folder", str(folder), "-c")
    assert platform.command(*shell, "wc -l < inputs/data").stdout.strip() == "4"
    assert platform.command(*shell, "./run.sh", check=False).returncode == 1
    source = folder / "component.py"
    source.write_text(source.read_text().replace("count > most", "count > 2 * most"))
    assert platform.command(*shell, "./run.sh").returncode == 0
    assert json.loads((folder / "outputs" / "result.json").read_text())["parameters"] == {"Output": 4}

    file.write_text(PIPELINE.replace("count > most", "count > 2 * most"))
    again = platform.command("run", str(file), "--python", python, "--repeat", run_id[:13], "--watch")
    assert "make  cached" in again.stdout
    assert "Output = 4" in again.stdout
    once_more = platform.command("run", "--repeat", "latest", "--from", "make", "-p", "rows=1", "--watch")
    assert "Output = 1" in once_more.stdout
    assert "cached" not in once_more.stdout

    compared = platform.command("compare", run_id, "latest").stdout
    assert ["*", "parameter", "rows", "4", "1"] in [line.split() for line in compared.splitlines()], compared

    assert "comp-make" in platform.command("cache", "list", "--pipeline", "run-commands").stdout
    assert "entries are forgotten" in platform.command("cache", "clear", "--pipeline", "run-commands").stdout
    assert "comp-make" not in platform.command("cache", "list", "--pipeline", "run-commands").stdout


def test_a_pipeline_runs_without_a_platform(own_platform: Instance, tmp_path: Path) -> None:
    document = {
        "pipelineInfo": {"name": "local"},
        "schemaVersion": "2.1.0",
        "root": {
            "dag": {"tasks": {"echo": {"componentRef": {"name": "comp"}, "taskInfo": {"name": "echo"}}}},
            "inputDefinitions": {"parameters": {"word": {"parameterType": "STRING"}}},
        },
        "components": {"comp": {"executorLabel": "exec"}},
        "deploymentSpec": {"executors": {"exec": {"container": {"image": "alpine", "command": ["true"]}}}},
    }
    file = tmp_path / "pipeline.yaml"
    file.write_text(json.dumps(document))
    done = own_platform.command("run", str(file), "--local-only", "-p", "word=a")
    assert "SUCCEEDED" in done.stdout

    # Who stops it stops its run and all of its processes.
    document["deploymentSpec"] = {"executors": {"exec": {"container": {"image": "alpine", "command": ["sleep", "86"]}}}}
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "shallop.cli", "run", str(file), "--local-only", "-p", "word=a"]
    with subprocess.Popen([*command, "--home", str(own_platform.home)], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert any("●" in line for line in iter(running.stdout.readline, ""))
        running.send_signal(signal.SIGINT)
        assert "The run was terminated by user." in running.stdout.read()
    assert running.returncode == 130
    own, deadline = str(own_platform.home).encode(), time.monotonic() + 30
    while left := [line for path in Path("/proc").glob("[0-9]*/cmdline") if own in (line := _read(path))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it is over


class Terminal:
    """A command in a pseudo-terminal that it controls, as a terminal window gives it."""

    def __init__(self, *command: str, lines: int, columns: int) -> None:
        self._master, slave = os.openpty()
        self.resize(lines, columns)
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "shallop.cli", *command], **streams, env=environment
        )
        os.close(slave)
        self.shown = ""

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str, timeout_s: float = 60) -> str:
        """Wait until something new is shown that the pattern finds; return it, and forget all up to its end."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} is not in {self.shown!r}"
            self.shown += os.read(self._master, 1 << 16).decode(errors="replace")
        self.shown = self.shown[found.end() :]
        return found.group()

    def exit_code(self) -> int:
        try:
            return self._process.wait(timeout=60)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._master)


def two_steps() -> dict[str, Any]:
    kind = {"artifactType": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}}
    word = {"parameters": {"word": {"parameterType": "STRING"}}}
    path = "{{$.outputs.artifacts['data'].path}}"
    read = "grep -q {{$.inputs.parameters['word']}} {{$.inputs.artifacts['data'].path}}"
    source = {"taskOutputArtifact": {"producerTask": "write", "outputArtifactKey": "data"}}
    given = {"parameters": {"word": {"runtimeValue": {"constant": "kept"}}}, "artifacts": {"data": source}}
    tasks = {
        "write": {"componentRef": {"name": "write"}, "taskInfo": {"name": "write"}},
        "read": {"componentRef": {"name": "read"}, "taskInfo": {"name": "read"}, "inputs": given},
    }
    tasks["read"]["dependentTasks"] = ["write"]
    return {
        "pipelineInfo": {"name": "in-a-terminal"},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": tasks}},
        "components": {
            "write": {"executorLabel": "write", "outputDefinitions": {"artifacts": {"data": kind}}},
            "read": {"executorLabel": "read", "inputDefinitions": {"artifacts": {"data": kind}, **word}},
        },
        "deploymentSpec": {
            "executors": {
                "write": {"container": {"image": "alpine", "command": ["sh", "-c", f"echo what was kept > {path}"]}},
                "read": {"container": {"image": "alpine", "command": ["sh", "-c", read]}},
            }
        },
    }


def test_a_shell_in_a_terminal(platform: Instance, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps(two_steps()))
    run_id = platform.command("run", str(file)).stdout.strip()
    deadline = time.monotonic() + 60
    while "SUCCEEDED" not in platform.command("why", run_id, "read", check=False).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    terminal = Terminal(
        "shell", run_id, "read", "--folder", str(tmp_path / "step"), "--home", str(platform.home), lines=31, columns=97
    )
    terminal.expect(r"run\.sh runs it again")
    terminal.expect(r"[#$] ")
    terminal.type("stty size; cat inputs/data; cat inputs.json; echo; echo $((6*7))ok\r")
    terminal.expect(r"31 97\r\n")
    terminal.expect(r"what was kept\r\n")
    terminal.expect(r'"word": "kept"')
    terminal.expect("42ok")
    terminal.expect(r"[#$] ")
    # The window is made larger while something runs, which Ctrl-C then ends; the shell goes on.
    # (It is sh that says so: a shell that reads commands may lose a signal while it starts one.)
    terminal.type("sh -c 'echo beg\"\"un; exec sleep 500'\r")
    terminal.expect("begun")
    terminal.resize(40, 120)
    terminal.type("\x03")
    terminal.expect(r"[#$] ")
    terminal.type("stty size\r")
    terminal.expect(r"40 120\r\n")
    terminal.expect(r"[#$] ")
    terminal.type("./run.sh; echo again=$?; exit 7\r")
    terminal.expect(r"again=0")
    assert terminal.exit_code() == 7
