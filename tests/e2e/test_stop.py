"""``shallop down`` in the middle of work: the next ``up`` goes on, and nothing that had finished runs again."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PIPELINE = """
    import sys
    from kfp import Client, dsl

    @dsl.component(base_image="python:3.11")
    def quick(folder: str) -> str:
        open(f"{folder}/quick", "a").write("x")
        return folder

    @dsl.component(base_image="python:3.11")
    def slow(folder: str) -> int:
        import os, time
        open(f"{folder}/slow", "a").write("x")
        while not os.path.exists(f"{folder}/go"):
            time.sleep(0.05)
        return 7

    @dsl.pipeline(name="stopped")
    def stopped(folder: str):
        slow(folder=quick(folder=folder).output)

    client = Client(host=sys.argv[1])
    if len(sys.argv) == 3:
        print(client.create_run_from_pipeline_func(stopped, arguments={"folder": sys.argv[2]}).run_id)
    else:
        print(client.wait_for_run_completion(sys.argv[3], timeout=60, sleep_duration=0.2).state)
"""


def wait_for(path: Path, text: str) -> None:
    command = f'until [ "$(cat {path} 2>/dev/null)" = {text} ]; do sleep 0.05; done'
    subprocess.run(["timeout", "60", "bash", "-c", command], check=True)


@pytest.mark.timeout(180)
def test_a_run_goes_on_after_down_and_up(own_platform: Any, tmp_path: Path, client_env: Callable[[str], Path]) -> None:
    python, script = client_env("demo"), tmp_path / "run.py"
    script.write_text(textwrap.dedent(PIPELINE))

    def client(*arguments: str) -> str:
        done = subprocess.run(
            [str(python), "-W", "ignore", str(script), own_platform.web, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()[-1]

    own_platform.up()
    own_platform.kubectl("create", "configmap", "marker", "--from-literal=a=b")
    # Files under the artifact root are what a step and a test both see.
    folder = own_platform.home / "artifacts" / "meeting"
    folder.mkdir()
    run_id = client(str(folder))
    wait_for(folder / "slow", "x")
    own_platform.down()
    (folder / "go").touch()
    own_platform.up()
    assert client("-", run_id) == "SUCCEEDED"
    assert (folder / "quick").read_text() == "x"
    assert (folder / "slow").read_text() == "xx"
    assert "marker" in own_platform.kubectl("get", "configmaps")


@pytest.mark.timeout(180)
@pytest.mark.skipif(os.geteuid() != 0, reason="finding a Pod's process by its host name needs root")
def test_a_killed_step_runs_again(own_platform: Any, tmp_path: Path, client_env: Callable[[str], Path]) -> None:
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(PIPELINE))
    own_platform.up()
    folder = own_platform.home / "artifacts" / "meeting"
    folder.mkdir()
    command = [str(client_env("demo")), "-W", "ignore", str(script), own_platform.web]
    started = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=True)
    wait_for(folder / "slow", "x")
    victims = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int(entry.name) != os.getpid() and is_step(entry)
    ]
    assert victims
    (folder / "go").touch()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    ended = subprocess.run(
        [*command, "-", started.stdout.split()[-1]], capture_output=True, text=True, check=True, timeout=100
    )
    assert ended.stdout.split()[-1] == "SUCCEEDED"
    assert (folder / "quick").read_text() == "x"
    assert len((folder / "slow").read_text()) >= 1


def is_step(process: Path) -> bool:
    """Say whether a process is the first one inside the Pod of the slow step: its host name is the Pod's."""
    try:
        status = (process / "status").read_text()
    except OSError:
        return False
    first = any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in status.splitlines())
    if not first or process.name == "1":
        return False
    command = ["nsenter", "--target", process.name, "--uts", "hostname"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.startswith("stopped-") and "-slow-" in done.stdout
