"""Metaflow: a flow is a file with a step for each link; each step is a process."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timing

HEAD = "from metaflow import FlowSpec, step\n\n\nclass Shape(FlowSpec):\n"
TAIL = '\n\nif __name__ == "__main__":\n    Shape()\n'


def step(name: str, *lines: str, arguments: str = "") -> str:
    return f"    @step\n    def {name}(self{arguments}):\n" + "".join(f"        {line}\n" for line in lines)


def run(source: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "shape.py")
        file.write_text(HEAD + source + TAIL)
        own = {"METAFLOW_DATASTORE_SYSROOT_LOCAL": folder, "METAFLOW_HOME": folder, "USER": "benchmark"}
        command = [sys.executable, str(file), "--quiet", "--no-pylint", "run", "--max-num-splits", "1000"]
        begun = time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, env={**os.environ, **own}, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun


def chain(length: int) -> float:
    names = ["start", *(f"s{number}" for number in range(length - 2)), "end"]
    links = [
        step(name, "self.x = getattr(self, 'x', 0) + 1", f"self.next(self.{after})")
        for name, after in itertools.pairwise(names)
    ]
    return run("\n".join([*links, step("end", "self.x += 1")]))


def fan_out(width: int) -> float:
    steps = [
        step("start", f"self.items = list(range({width}))", "self.next(self.work, foreach='items')"),
        step("work", "self.x = self.input + 1", "self.next(self.join)"),
        step("join", "self.next(self.end)", arguments=", inputs"),
        step("end", "pass"),
    ]
    return run("\n".join(steps))


timing.report("Metaflow", "process", {"chain": chain, "fan-out": fan_out})
