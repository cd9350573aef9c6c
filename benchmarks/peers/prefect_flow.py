"""Prefect: tasks of a flow with its own temporary server; they run in threads of one process."""

import os
import time

os.environ |= {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true"}
os.environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "100"

import timing
from prefect import flow, task


@task
def increment(number: int) -> int:
    return number + 1


@flow
def chain(length: int) -> int:
    number = 0
    for _ in range(length):
        number = increment(number)
    return number


@flow
def fan_out(width: int) -> int:
    return sum(future.result() for future in increment.map(list(range(width))))


def timed(shape: object) -> object:
    def run(steps: int) -> float:
        begun = time.perf_counter()
        shape(steps)
        return time.perf_counter() - begun

    return run


timing.report("Prefect", "none", {"chain": timed(chain), "fan-out": timed(fan_out)})
