"""Fixtures for all tests: a whole running platform, environments with public clients."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
_BLOCKED_S = 0.5

# On a loaded machine a property is slow now and then; its bounds are in its assertions, not in milliseconds.
hypothesis_settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("steady")


def missing(what: str) -> None:
    """Skip the test; in CI, where everything that this machine can have must be there, fail."""
    if os.environ.get("CI") and not what.startswith("../shared"):
        pytest.fail(f"required in CI: {what}")
    pytest.skip(what)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def event_loop_never_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a unit test in which one callback of an event loop computes or waits for more than half a second."""
    if "unit" not in request.path.parts:
        yield
        return
    blocked: list[str] = []
    original = asyncio.Handle._run
    try:
        statistics = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
    except OSError:
        statistics = -1

    def queued_s() -> float:
        """How long this thread has been ready to run and was not: a loaded machine, not a blocked loop."""
        return int(os.pread(statistics, 100, 0).split()[1]) / 1e9 if statistics >= 0 else 0.0

    # Looking through all that thousands of tests have left takes 0.4 s; it comes to any callback.
    collections = [0.0, 0.0]  # wall, CPU
    begun = [0.0, 0.0]

    def collecting(phase: str, _: object) -> None:
        now = time.perf_counter(), time.thread_time()
        if phase == "start":
            begun[:] = now
        elif begun[0]:  # it may have begun before this did
            for place in (0, 1):
                collections[place] += now[place] - begun[place]

    def run(handle: asyncio.Handle) -> None:
        before, queued = resource.getrusage(resource.RUSAGE_THREAD), queued_s()
        collections[:] = 0.0, 0.0
        wall, cpu = time.perf_counter(), time.thread_time()
        original(handle)
        wall, cpu = time.perf_counter() - wall - collections[0], time.thread_time() - cpu - collections[1]
        # A wait for what another thread computes ends with it; a wait for the world is a voluntary switch.
        switched = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw > before.ru_nvcsw
        if cpu > _BLOCKED_S or (switched and wall - cpu - (queued_s() - queued) > _BLOCKED_S):
            blocked.append(f"{handle!r}: {wall:.2f} s, of which {cpu:.2f} s computing")

    monkeypatch.setattr(asyncio.Handle, "_run", run)
    gc.callbacks.append(collecting)
    yield
    gc.callbacks.remove(collecting)
    if statistics >= 0:
        os.close(statistics)
    assert not blocked, f"the event loop was blocked: {blocked}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of schemas and recorded answers beside the repository."""
    if not SHARED.is_dir():
        missing("../shared is not there")
    return SHARED


@pytest.fixture(scope="session")
def client_env() -> Callable[[str], Path]:
    """Return the Python of a locked environment with public clients, by the name of its lock."""

    def python_of(name: str) -> Path:
        subprocess.run([sys.executable, str(ROOT / "scripts" / "setup.py"), name], check=True, cwd=ROOT)
        return ROOT / ".venvs" / name / "bin" / "python"

    return python_of


@pytest.fixture(scope="session")
def kubectl() -> str:
    path = shutil.which("kubectl")
    if path is None:
        pytest.skip("kubectl is not on this machine, and no package registry has it")
    return path


@dataclass
class Platform:
    """A running instance of the platform, started as users start it."""

    home: Path
    web: str = ""
    api: str = ""
    gateway: str = ""
    content: str = ""
    kubeconfig: str = ""
    pid: int = 0

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``shallop`` on this home."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SHALLOP_")}
        cache = os.environ.get("SHALLOP_CACHE")
        return subprocess.run(
            [sys.executable, "-m", "shallop.cli", *arguments, "--home", str(self.home)],
            env=environment | ({"SHALLOP_CACHE": cache} if cache else {}),
            capture_output=True,
            text=True,
            check=check,
            timeout=120,
        )

    def up(self, *arguments: str) -> None:
        started = self.command("up", "--detach", "--port", "auto", *arguments, check=False)
        assert started.returncode == 0, f"{started.stdout}\n{started.stderr}"
        status = json.loads(self.command("status", "-o", "json").stdout)
        self.web, self.api, self.gateway = status["web"], status["api"], status["gateway"]
        self.content, self.kubeconfig, self.pid = status["content"], status["kubeconfig"], status["pid"]

    def kill(self) -> None:
        """Kill the control plane as a crash would."""
        os.kill(self.pid, signal.SIGKILL)

    def down(self) -> None:
        self.command("down", check=False)

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        done = subprocess.run(
            ["kubectl", "--kubeconfig", self.kubeconfig, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One platform for all tests that only use it."""
    instance = Platform(tmp_path_factory.mktemp("platform") / "home")
    instance.up()
    yield instance
    instance.down()


@pytest.fixture
def own_platform(tmp_path: Path) -> Iterator[Platform]:
    """A platform that the test may kill; not started yet."""
    instance = Platform(tmp_path / "home")
    yield instance
    instance.down()
