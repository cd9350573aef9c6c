"""Luigi: tasks with files as outputs, two workers, which fork a process for each task."""

import os
import tempfile
import time
from pathlib import Path

import luigi
import timing


class Step(luigi.Task):
    folder = luigi.Parameter()
    index = luigi.IntParameter()

    def requires(self) -> list[luigi.Task]:
        return [Step(self.folder, self.index - 1)] if self.index > 1 else []

    def output(self) -> luigi.LocalTarget:
        return luigi.LocalTarget(os.path.join(self.folder, str(self.index)))

    def run(self) -> None:
        before = int(Path(self.input()[0].path).read_text()) if self.index > 1 else 0
        with self.output().open("w") as file:
            file.write(str(before + 1))


class Alone(Step):
    def requires(self) -> list[luigi.Task]:
        return []

    def run(self) -> None:
        with self.output().open("w") as file:
            file.write("1")


def build(make: object) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        assert luigi.build(make(folder), local_scheduler=True, workers=2, log_level="CRITICAL")
        return time.perf_counter() - begun


timing.report(
    "Luigi",
    "process",
    {
        "chain": lambda length: build(lambda folder: [Step(folder, length)]),
        "fan-out": lambda width: build(lambda folder: [Alone(folder, index) for index in range(width)]),
    },
)
