"""Flyte: a workflow run locally by flytekit, which calls the tasks in its own process."""

import time

import timing
from flytekit import task, workflow


@task
def increment(number: int) -> int:
    return number + 1


def chain(length: int) -> float:
    def body() -> int:
        number = increment(number=0)
        for _ in range(length - 1):
            number = increment(number=number)
        return number

    return timed(body)


def fan_out(width: int) -> float:
    def body() -> int:
        numbers = [increment(number=index) for index in range(width)]
        return numbers[-1]

    return timed(body)


def timed(body: object) -> float:
    made = workflow(body)
    begun = time.perf_counter()
    made()
    return time.perf_counter() - begun


timing.report("Flyte (flytekit)", "none", {"chain": chain, "fan-out": fan_out})
