"""
Time per step of a chain of lightweight components, on shallop and with ``kfp.local`` in the same run.

The components do nothing: what is measured is the cost of a step; ``control_plane_cpu_ms`` is what of it the control
plane's processor time is. Needs the client environment:
``.venvs/demo/bin/python benchmarks/steps.py [LENGTH...]`` (default 20 and 100).
"""

import contextlib
import os
import sys
import tempfile
import time
import warnings
from typing import Any

warnings.filterwarnings("ignore", category=FutureWarning, module="kfp")

import kfp  # noqa: E402
from instance import cpu_s, running, write  # noqa: E402
from kfp import dsl, local  # noqa: E402

IMAGE = f"python:{sys.version_info.major}.{sys.version_info.minor}"
RUNS = 5


def increment(number: int) -> int:
    return number + 1


increment_on_shallop = dsl.component(increment, base_image=IMAGE)
# kfp.local runs it in this environment, which has kfp: spared the attempt to install it in every step.
increment_locally = dsl.component(increment, base_image=IMAGE, install_kfp_package=False)


def chain(length: int, component: Any) -> Any:
    @dsl.pipeline(name=f"chain-{length}")
    def pipeline() -> int:
        number = component(number=0).output
        for _ in range(length - 1):
            number = component(number=number).output
        return number

    return pipeline


def time_shallop(client: kfp.Client, length: int) -> float:
    """
    Return how long the run took by the server's clock, in seconds.

    It is asked once a second whether the run is over, five times as often as ``kfp`` does by itself: how fast an answer
    with all of its tasks is given and read is not the cost of a step.
    """
    run = client.create_run_from_pipeline_func(chain(length, increment_on_shallop), enable_caching=False)
    ended = client.wait_for_run_completion(run.run_id, timeout=120, sleep_duration=1)
    if ended.state != "SUCCEEDED":
        sys.exit(f"the chain of {length} ended as {ended.state}: {ended.error}")
    return (ended.finished_at - ended.created_at).total_seconds()


def time_local(length: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=folder)
        start = time.perf_counter()
        task = chain(length, increment_locally)()
        seconds = time.perf_counter() - start
        if task.output != length:
            sys.exit(f"kfp.local computed {task.output} in a chain of {length}")
        return seconds


@contextlib.contextmanager
def quiet() -> Any:
    """Keep what kfp prints per step away."""
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        yield


def main(lengths: list[int]) -> None:
    rows = []
    # kfp.local starts "python3".
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    with running() as status, quiet():
        client = kfp.Client(host=status["web"])
        # Before: the environment is built, its fork-server started, and Pods have left what the next ones use.
        time_shallop(client, 1)
        time_shallop(client, 20)
        ours, cpu_ms = {}, {}
        for length in lengths:
            before = cpu_s(status["pid"])
            ours[length] = sorted(time_shallop(client, length) for _ in range(RUNS))
            cpu_ms[length] = (cpu_s(status["pid"]) - before) * 1000 / length / RUNS
    with quiet():
        time_local(1)
        theirs = {length: time_local(length) for length in lengths}
    for length in lengths:
        median = ours[length][RUNS // 2]
        rows.append(
            {
                "steps": length,
                "shallop_ms_per_step": round(median / length * 1000, 2),
                "shallop_fastest_ms": round(ours[length][0] / length * 1000, 2),
                "control_plane_cpu_ms": round(cpu_ms[length], 2),
                "kfp_local_ms_per_step": round(theirs[length] / length * 1000, 2),
                "ratio": round(theirs[length] / median, 1),
            }
        )
    write("steps", rows)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [20, 100])
