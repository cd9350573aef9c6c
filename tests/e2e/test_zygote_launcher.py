"""Pipeline tasks: components compiled by the unmodified KFP SDK, run by fork-server and launcher."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from shallop.embedded.kubelet.environments import Environment, Environments
from shallop.embedded.kubelet.images import ImageTable
from shallop.embedded.kubelet.zygotes import Zygotes
from shallop.errors import EnvironmentBuildError
from shallop.settings import Settings
from shallop_pod.zygote import Child, Request, connect, spawn

FIXTURES = Path(__file__).parents[2] / ".." / "shared" / "fixtures" / "kfp"
KFP = "kfp==2.17.0"
TYPES = {"model": "system.Model", "metrics": "system.Metrics", "data": "system.Dataset"}

PIPELINE = """
import sys
from typing import NamedTuple
from kfp import compiler, dsl
from kfp.dsl import Input, Metrics, Model, Output

@dsl.component
def everything(x: int, items: list, config: dict, model: Output[Model], metrics: Output[Metrics],
               text: dsl.OutputPath(str)) -> NamedTuple("Outputs", [("total", int), ("ok", bool), ("back", list)]):
    from collections import namedtuple
    with open(model.path, "w") as file:
        file.write("weights")
    model.metadata["shape"] = {"layers": [1, 2], "bias": True}
    metrics.log_metric("accuracy", 0.5)
    with open(text, "w") as file:
        file.write("some text")
    print("hello from the component", config["a"])
    return namedtuple("Outputs", ["total", "ok", "back"])(x + 1, True, items)

@dsl.component
def state():
    import json, logging, os, signal, sys
    print("FACTS", json.dumps({
        "modules": sorted(name for name in sys.modules if name != "shallop_pod.rehearsal"),
        "handlers": [str(handler) for handler in logging.getLogger().handlers], "level": logging.getLogger().level,
        "path": sys.path[1:-1], "sigterm": str(signal.getsignal(signal.SIGTERM)), "environ": sorted(os.environ),
        "files": len(os.listdir("/proc/self/fd")), "stdout": sys.stdout.name, "umask": os.umask(0),
    }))

@dsl.component
def fails(model: Output[Model]):
    with open(model.path, "w") as file:
        file.write("half a model")
    raise ValueError("the data has no rows")

@dsl.component
def silent() -> str:
    return None

@dsl.component
def leaves(code: int):
    import sys
    sys.exit(code)

@dsl.component
def waits(model: Output[Model]):
    import time
    with open(model.path, "w") as file:
        file.write("half a model")
    print("waiting", flush=True)
    time.sleep(60)

@dsl.component
def custom(model: Output[Model]):
    import os, tempfile
    folder = tempfile.mkdtemp()
    open(os.path.join(folder, "weights"), "w").write("w")
    model.set_path(folder)

@dsl.component
def fills(model: Output[Model]):
    with open(model.path, "wb") as file:
        file.write(b"x" * 1_000_000)

@dsl.pipeline
def all_of_them():
    everything(x=1, items=[1], config={"a": 1})
    state()
    fails()
    silent()
    leaves(code=3)
    waits()
    custom()
    fills()

compiler.Compiler().compile(all_of_them, sys.argv[1])
"""

PACKAGE = """
[build-system]
requires = []
build-backend = "back"
backend-path = ["."]

[project]
name = "alpha"
version = "1"
"""
BACKEND = """
import os, zipfile

FILES = {
    "alpha.py": "x = 1",
    "alpha-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: alpha\\nVersion: 1\\n",
    "alpha-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "alpha-1.dist-info/RECORD": "",
}

def build_wheel(folder, *_):
    with zipfile.ZipFile(os.path.join(folder, "alpha-1-py3-none-any.whl"), "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return "alpha-1-py3-none-any.whl"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launcher")


@pytest.fixture(scope="module")
def environments(folder: Path) -> Environments:
    return Environments(folder / "envs", ImageTable(folder / "images.yaml"), os.environ)


def build(environments: Environments, image: str, argv: list[str], *requirements: str) -> Environment:
    try:
        return anyio.run(environments.ensure, environments.resolve(image, argv, requirements))
    except EnvironmentBuildError as error:
        if "Check the network" in str(error):
            pytest.skip(f"packages cannot be had: {error}")
        raise


@pytest.fixture(scope="module")
def compiled(folder: Path, environments: Environments) -> dict[str, dict[str, Any]]:
    """Executor name -> its container, as the SDK compiled it."""
    sdk = build(environments, "python:3.11", [], KFP)
    (folder / "pipeline.py").write_text(PIPELINE)
    command = [sdk.python, "-W", "ignore", folder / "pipeline.py", folder / "pipeline.yaml"]
    subprocess.run(command, check=True, cwd=folder, env={"PATH": os.environ["PATH"], "HOME": str(folder)})
    executors = yaml.safe_load((folder / "pipeline.yaml").read_text())["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()}


@pytest.fixture(scope="module")
def zygotes(folder: Path) -> Iterator[Zygotes]:
    servers = Zygotes.of(Settings(home=folder / "home"))
    yield servers
    servers.stop()


@dataclass
class Task:
    """One task: its folder holds everything it writes."""

    folder: Path
    inputs: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)  # name -> folder of its URI

    def argv(self, command: list[str]) -> list[str]:
        outputs = {
            "parameters": {name: {"outputFile": f"{self.folder}/{name}"} for name in self.parameters},
            "artifacts": {
                name: {"artifacts": [{"name": name, "type": {"schemaTitle": TYPES[name]}, "uri": f"{uri}/{name}"}]}
                for name, uri in self.artifacts.items()
            },
            "outputFile": f"{self.folder}/executor_output.json",
        }
        task = {
            "name": "task",
            "dir": str(self.folder),
            "executorInput": {"inputs": {"parameterValues": self.inputs}, "outputs": outputs},
            "outputParameters": self.parameters,
        }
        return ["--task", json.dumps(task), "--", *command]

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found

    @property
    def log(self) -> str:
        return self.folder.with_suffix(".log").read_text()


class Runner:
    def __init__(self, folder: Path, environments: Environments, zygotes: Zygotes) -> None:
        self.folder = folder
        self.environments = environments
        self.zygotes = zygotes

    def start(self, task: Task, image: str, command: list[str], plan: dict[str, Any] | None = None) -> Child:
        environment = build(self.environments, image, command)
        env = {
            "PATH": f"{environment.path}/bin:/usr/bin:/bin",
            "PYTHONPATH": str(self.folder / "home/run/python"),
            "HOME": str(self.folder),
        }
        request = Request("shallop_pod.launcher", task.argv(command), env, "/", plan)
        socket = anyio.run(self.zygotes.socket, environment)
        with open(os.devnull) as stdin, task.folder.with_suffix(".log").open("wb") as log:
            return spawn(str(socket), request, (stdin.fileno(), log.fileno(), log.fileno()))

    def run(self, task: Task, image: str, command: list[str], plan: dict[str, Any] | None = None) -> int:
        found = self.start(task, image, command, plan).wait(60)
        assert found is not None
        return found.code


@pytest.fixture
def runner(folder: Path, environments: Environments, zygotes: Zygotes) -> Runner:
    return Runner(folder, environments, zygotes)


def command_of(container: dict[str, Any]) -> list[str]:
    return [*container["command"], *container["args"]]


def test_a_component_of_the_sdk_runs_and_leaves_its_result(
    runner: Runner, compiled: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    task = Task(
        tmp_path / "task",
        {"x": 41, "items": [1, {"a": None}], "config": {"a": "é"}},
        {"total": "NUMBER_INTEGER", "ok": "BOOLEAN", "back": "LIST", "text": "STRING"},
        {"model": str(tmp_path / "artifacts"), "metrics": str(tmp_path / "artifacts")},
    )
    container = compiled["everything"]
    assert runner.run(task, container["image"], command_of(container)) == 0
    result = task.result
    assert result["state"] == "SUCCEEDED" and result["exitCode"] == 0 and result["error"] is None
    assert result["parameters"] == {"total": 42, "ok": True, "back": [1, {"a": None}], "text": "some text"}
    (model,), (metrics,) = result["artifacts"]["model"], result["artifacts"]["metrics"]
    assert model["metadata"] == {"shape": {"layers": [1, 2], "bias": True}}
    assert model["uri"] == f"{tmp_path}/artifacts/model" and model["sizeBytes"] == 7
    assert model["digest"] == "sha256:" + hashlib.sha256(b"weights").hexdigest()
    assert metrics["metadata"] == {"accuracy": 0.5} and metrics["digest"] is None
    assert result["usage"]["cpuSeconds"] < 5 and result["startedAt"] <= result["endedAt"]
    assert "hello from the component é" in task.log
    assert result["environment"] == build(runner.environments, "python:3.11", command_of(container)).digest


def test_a_task_finds_its_process_as_if_it_had_not_been_forked_in_advance(
    runner: Runner, compiled: dict[str, dict[str, Any]], zygotes: Zygotes, tmp_path: Path
) -> None:
    container, facts, pids, standbys = compiled["state"], [], [], [0]
    environment = build(runner.environments, container["image"], command_of(container))
    earlier = anyio.run(zygotes.socket, environment)
    zygotes.stop()
    deadline = time.monotonic() + 30
    while earlier.exists():
        # Until it has taken its socket away it would be found again.
        assert time.monotonic() < deadline
    socket_path = anyio.run(zygotes.socket, environment)
    with connect(str(socket_path)) as connection:
        (server, *_) = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    for number in range(2):
        task = Task(tmp_path / f"task{number}")
        child = runner.start(task, container["image"], command_of(container))
        pids.append(child.pid)
        ended = child.wait(60)
        assert ended is not None and ended.code == 0
        (line,) = [line for line in task.log.splitlines() if line.startswith("FACTS ")]
        facts.append(json.loads(line.removeprefix("FACTS ")))
        standbys.append(wait_for_standby(server, pids))
    assert pids[1] == standbys[1]
    assert facts[0] == facts[1]


def wait_for_standby(server: int, but: list[int]) -> int:
    """Return the child of the fork-server that waits for its request and has done what it does before that."""
    deadline, before, quiet = time.monotonic() + 30, "", 0
    while quiet < 5:
        assert time.monotonic() < deadline
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        found = [int(text) for text in children if int(text) not in but]
        now = Path(f"/proc/{found[0]}/stat").read_text() if found else ""
        quiet = quiet + 1 if now and now == before and now.rpartition(")")[2].split()[0] == "S" else 0
        before = now
        time.sleep(0.02)
    return found[0]


def test_without_a_fork_server_the_result_is_the_same(
    environments: Environments, compiled: dict[str, dict[str, Any]], zygotes: Zygotes, folder: Path, tmp_path: Path
) -> None:
    command = command_of(compiled["custom"])
    environment = build(environments, "python:3.11", command)
    task = Task(tmp_path / "task", artifacts={"model": str(tmp_path / "a")})
    env = {"PATH": f"{environment.path}/bin:/usr/bin:/bin", "PYTHONPATH": str(folder / "home/run/python")}
    argv = ["python3", "-m", "shallop_pod.launcher", *task.argv(command)]
    found = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert task.result["artifacts"]["model"][0]["sizeBytes"] == 1


def test_its_environment_has_the_pinned_sdk_alone(
    environments: Environments, compiled: dict[str, dict[str, Any]]
) -> None:
    environment = build(environments, "python:3.11", command_of(compiled["everything"]))
    assert (environment.path / "shallop-lock.txt").read_text() == f"{KFP}\n"
    assert environment.preload[:2] == ("shallop_pod.launcher", "kfp.dsl.executor_main")


def test_a_failure_is_told_and_its_half_written_outputs_are_gone(
    runner: Runner, compiled: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    task = Task(tmp_path / "task", artifacts={"model": str(tmp_path / "a")})
    assert runner.run(task, "python:3.11", command_of(compiled["fails"])) == 1
    assert task.result["state"] == "FAILED" and task.result["exitCode"] == 1
    assert task.result["error"]["message"].endswith("ValueError: the data has no rows")
    assert task.result["artifacts"] == {} and not (tmp_path / "a" / "model").exists()
    assert "Traceback" in task.log


def test_a_missing_output_is_a_failure(runner: Runner, compiled: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    task = Task(tmp_path / "task", parameters={"Output": "STRING"})
    assert runner.run(task, "python:3.11", command_of(compiled["silent"])) == 1
    assert "Output parameter 'Output' was not written" in task.result["error"]["message"]
    assert "Output parameter 'Output' was not written" in task.log


@pytest.mark.parametrize("code", [0, 3])
def test_sys_exit_is_the_exit_code(
    runner: Runner, compiled: dict[str, dict[str, Any]], tmp_path: Path, code: int
) -> None:
    task = Task(tmp_path / "task", {"code": code})
    assert runner.run(task, "python:3.11", command_of(compiled["leaves"])) == code
    assert task.result["exitCode"] == code and (task.result["error"] is None) == (code == 0)


@pytest.mark.parametrize("own_pids", [False, True])
def test_a_terminated_component_leaves_a_result(
    runner: Runner, compiled: dict[str, dict[str, Any]], tmp_path: Path, own_pids: bool
) -> None:
    if own_pids and os.geteuid() != 0:
        pytest.skip("namespaces without a user namespace need root")
    task = Task(tmp_path / "task", artifacts={"model": str(tmp_path / "a")})
    child = runner.start(task, "python:3.11", command_of(compiled["waits"]), {"pid": True} if own_pids else None)
    deadline = time.monotonic() + 20
    while "waiting" not in task.log and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGTERM)
    found = child.wait(10)
    assert found is not None and found.code == 143
    assert task.result["state"] == "FAILED" and task.result["exitCode"] == 143
    assert not (tmp_path / "a" / "model").exists()


def test_a_custom_path_ends_at_the_artifacts_uri(
    runner: Runner, compiled: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    task = Task(tmp_path / "task", artifacts={"model": str(tmp_path / "a")})
    assert runner.run(task, "python:3.11", command_of(compiled["custom"])) == 0
    assert (tmp_path / "a" / "model" / "weights").read_text() == "w"
    assert task.result["artifacts"]["model"][0]["sizeBytes"] == 1


def test_a_source_larger_than_a_program_argument_runs(
    runner: Runner, compiled: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    command = command_of(compiled["leaves"])
    source = next(index for index, word in enumerate(command) if "def leaves" in word)
    command[source] += f"\nEMBEDDED = {'x' * 400_000!r}\n"
    task = Task(tmp_path / "task", {"code": 0})
    assert runner.run(task, "python:3.11", command) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk of its own needs a mount namespace")
def test_a_full_disk_is_a_clear_failure(runner: Runner, compiled: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    small = str(tmp_path / "small")
    plan = {"mounts": [{"target": small, "tmpfs": True, "options": "size=64k"}]}
    task = Task(tmp_path / "task", artifacts={"model": small})
    os.mkdir(small)
    assert runner.run(task, "python:3.11", command_of(compiled["fills"]), plan) == 1
    assert "No space left on device" in task.result["error"]["message"]

    full = Task(Path(small) / "task", artifacts={"model": small})
    full.folder.with_suffix(".log").parent.mkdir(exist_ok=True)
    assert runner.run(full, "python:3.11", command_of(compiled["fills"]), plan) == 1


def test_any_program_is_run_as_it_is(runner: Runner, tmp_path: Path) -> None:
    script = 'mkdir --parents $(dirname "$1") && printf "$0" > "$1"; echo said >&2; printf 12 > "$2"'
    task = Task(tmp_path / "task", {}, {"n": "NUMBER_INTEGER"}, {"data": str(tmp_path / "a")})
    command = ["sh", "-c", script, "text", str(tmp_path / "a/data"), str(task.folder / "n")]
    assert runner.run(task, "alpine", command) == 0
    assert task.result["parameters"] == {"n": 12}
    assert task.result["artifacts"]["data"][0]["sizeBytes"] == 4
    assert task.log == "said\n"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["sh", "-c", "exit 3"], 3, "ended with exit code 3"),
        (["sh", "-c", "kill -11 $$"], 139, "was ended by SIGSEGV"),
        (["no-such-program"], 127, "Cannot start 'no-such-program': No such file or directory"),
        (["echo", "x" * 200_000], 126, "An argument is longer than 128 KiB"),
    ],
)
def test_a_programs_failure_is_told(
    runner: Runner, tmp_path: Path, command: list[str], code: int, message: str
) -> None:
    task = Task(tmp_path / "task")
    assert runner.run(task, "alpine", command) == code
    assert task.result["exitCode"] == code and message in task.result["error"]["message"]


def test_a_program_that_runs_pip_does_not_change_the_environment(runner: Runner, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(PACKAGE)
    (package / "back.py").write_text(BACKEND)
    command = ["sh", "-ec", f"pip install -q --no-index {package} && python3 -c 'import alpha'"]
    for attempt in ("one", "two"):
        task = Task(tmp_path / attempt)
        assert runner.run(task, "python:3.11", command) == 0, task.log
    environment = build(runner.environments, "python:3.11", command)
    assert not list(environment.path.rglob("alpha*"))


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the compiled pipelines of ../shared are not there")
def test_every_environment_of_the_compiled_pipelines_is_built(environments: Environments) -> None:
    keys = set()
    for path in sorted(FIXTURES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            for executor in document.get("deploymentSpec", {}).get("executors", {}).values():
                container = executor.get("container", {"image": "argostub/"})
                if not container["image"].startswith("argostub/"):
                    argv = [*container.get("command", []), *container.get("args", [])]
                    keys.add(build(environments, container["image"], argv).key)
    assert len(keys) == 9
