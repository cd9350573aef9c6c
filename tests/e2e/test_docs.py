"""The README is followed to the letter: its files are saved, its commands are run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    file: str
    text: str


def blocks(document: str) -> Iterator[Block]:
    for match in FENCE.finditer((ROOT / document).read_text()):
        yield Block(match[1], match[2] or "", match[3])


def follow(document: str, folder: Path, env: dict[str, str]) -> str:
    """Save the files of a document and run its commands; return what they printed."""
    script = ["set -euo pipefail"]
    for block in blocks(document):
        if block.file:
            (folder / block.file).write_text(block.text)
        elif block.language == "console":
            script += [line.removeprefix("$ ") for line in block.text.splitlines()]
    # The only liberties: a home and ports of its own, beside whatever runs on this machine.
    text = "\n".join(script).replace("shallop up --detach", "shallop up --detach --port auto\n" + ENDPOINT)
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=env, capture_output=True, text=True, timeout=380, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(400)
def test_the_readme_works_as_written(tmp_path: Path, client_env: Callable[[str], Path], kubectl: str) -> None:
    clients = client_env("demo").parent
    env = {
        "PATH": f"{clients}:{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SHALLOP_HOME": str(tmp_path / "home"),
        "SHALLOP_CACHE": os.environ.get("SHALLOP_CACHE", str(Path.home() / ".cache" / "shallop")),
        "PYTHONWARNINGS": "ignore",
    }
    try:
        output = follow("README.md", tmp_path, env)
    finally:
        shallop = str(ROOT / ".venv" / "bin" / "shallop")
        subprocess.run([shallop, "down", "--home", str(tmp_path / "home")], capture_output=True, check=False)
    assert "SUCCEEDED" in output
    answer = next(line for line in output.splitlines() if "predictions" in line and line.startswith("{"))
    assert json.loads(answer.partition("}")[0] + "}") == {"predictions": [0]}
    assert "iris-predictor-" in output
    assert "shallop has stopped" in output


@pytest.mark.timeout(400)
def test_the_guide_works_as_written(platform: Any, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": platform.kubeconfig}
    output = follow("docs/guide.md", tmp_path, env)
    assert "accuracy 0.9" in output
    best = json.loads(next(line for line in output.splitlines() if line.startswith("best: ")).removeprefix("best: "))
    assert abs(float(best["parameterAssignments"][0]["value"]) - 2) < 5
    assert "of its own namespace" in output
    assert "no" in output.splitlines(), "the default ServiceAccount may not create Pods"


ENDPOINT = """\
export KF_PIPELINES_ENDPOINT=$(shallop status -o json | python3 -c 'import json,sys;print(json.load(sys.stdin)["web"])')
"""


def test_documents_link_only_to_what_exists() -> None:
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/guide.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            if not target.startswith("http"):
                assert (ROOT / document).parent.joinpath(target).exists(), f"{document} links to {target}"
