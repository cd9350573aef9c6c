"""
Prefect: tasks of a flow with its own temporary server: in threads of one process, which is the usual way, or, with the
argument ``processes``, each by one of two processes that it keeps.
"""

import os
import sys
import time

os.environ |= {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true"}
os.environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "100"

import timing
from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

IN_PROCESSES = "processes" in sys.argv
RUNNER = ProcessPoolTaskRunner(max_workers=2) if IN_PROCESSES else ThreadPoolTaskRunner()


@task
def increment(number: int) -> int:
    return number + 1


@flow(task_runner=RUNNER)
def chain(length: int) -> int:
    number = 0
    for _ in range(length):
        number = increment.submit(number).result() if IN_PROCESSES else increment(number)
    return number


@flow(task_runner=RUNNER)
def fan_out(width: int) -> int:
    return sum(future.result() for future in increment.map(list(range(width))))


def timed(shape: object) -> object:
    def run(steps: int) -> float:
        begun = time.perf_counter()
        shape(steps)
        return time.perf_counter() - begun

    return run


if __name__ == "__main__":
    how = ("Prefect, processes", "processes kept") if IN_PROCESSES else ("Prefect", "none")
    timing.report(*how, {"chain": timed(chain), "fan-out": timed(fan_out)})
