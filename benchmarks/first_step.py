"""
How long after submission the first step's own code runs, on an instance that has just started.

Run: ``python benchmarks/first_step.py``. The step is a lightweight component of kfp that says what time it is; its
environment is in the cache. Ten starts on one home: ``at once`` submits as soon as the platform is ready, ``after 3 s``
a moment later, as people do; ``second step`` is the same again, with everything warm. It takes about two minutes.
Results are in ``results/first_step.json``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
from instance import make_home, start, stop, write
from runs import Server

STARTS = 10
COMPILE = """
import sys
from kfp import compiler, dsl

@dsl.component(base_image="python:3.11")
def now() -> float:
    import time
    return time.time()

@dsl.pipeline(name="now")
def pipeline() -> float:
    return now().set_caching_options(False).output

compiler.Compiler().compile(pipeline, sys.argv[1])
"""


def compiled(folder: Path) -> Any:
    import yaml

    file = folder / "now.yaml"
    script = folder / "compile.py"
    script.write_text(COMPILE)
    python = peers.python_of(peers.PEERS["floor"], Path(tempfile.gettempdir()) / "shallop-peers")
    subprocess.run([python, "-W", "ignore", str(script), str(file)], check=True)
    return yaml.safe_load(file.read_text())


def first_line_s(server: Server, spec: Any) -> float:
    begun = time.time()
    run_id = server.submit(spec)
    server.ended(run_id)
    return float(server.call(f"/runs/{run_id}/tasks")["outputs"]["parameters"]["Output"]) - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=STARTS)
    options = parser.parse_args()
    folder = make_home()
    samples: dict[str, list[float]] = {"at once": [], "after 3 s": [], "second step": []}
    try:
        spec = compiled(folder)
        first_line_s(Server(start(folder / "home")), spec)  # the environment is built
        stop(folder / "home")
        for pause_s, what in ((0.0, "at once"), (3.0, "after 3 s")):
            for _ in range(options.starts):
                server = Server(start(folder / "home"))
                time.sleep(pause_s)
                for name in (what, "second step"):
                    samples[name].append(first_line_s(server, spec))
                    print(name, f"{samples[name][-1] * 1000:.0f} ms", flush=True)
                stop(folder / "home")
    finally:
        stop(folder / "home")
        shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for what, values in samples.items():
        milliseconds = sorted(value * 1000 for value in values)
        rows.append(
            {"what": what, "p50_ms": round(statistics.median(milliseconds)), "most_ms": round(milliseconds[-1])}
        )
    write("first_step", rows, key="what")


if __name__ == "__main__":
    main()
