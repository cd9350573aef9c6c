"""``shallop run``, ``why``, ``shell`` and ``cache`` as users type them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

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
