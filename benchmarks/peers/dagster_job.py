"""Dagster: ops of a job on its multiprocess executor; each is an interpreter that imports Dagster and the job."""

import time

import timing
from dagster import DagsterInstance, execute_job, job, op, reconstructable


@op
def begin() -> int:
    return 0


@op
def increment(number: int) -> int:
    return number + 1


def _chain(length: int) -> object:
    @job(name=f"chain_{length}")
    def made() -> None:
        number = begin()
        for index in range(length - 1):
            number = increment.alias(f"s{index}")(number)

    return made


def _fan_out(width: int) -> object:
    @job(name=f"fan_out_{width}")
    def made() -> None:
        number = begin()
        for index in range(width - 1):
            increment.alias(f"s{index}")(number)

    return made


def chain_2() -> object:
    return _chain(2)


def chain_5() -> object:
    return _chain(5)


def chain_20() -> object:
    return _chain(20)


def chain_100() -> object:
    return _chain(100)


def fan_out_5() -> object:
    return _fan_out(5)


def fan_out_20() -> object:
    return _fan_out(20)


def fan_out_100() -> object:
    return _fan_out(100)


def run(made: object) -> float:
    with DagsterInstance.local_temp() as instance:
        begun = time.perf_counter()
        with execute_job(reconstructable(made), instance=instance) as result:
            assert result.success
        return time.perf_counter() - begun


if __name__ == "__main__":
    chains = {2: chain_2, 5: chain_5, 20: chain_20, 100: chain_100}
    fans = {5: fan_out_5, 20: fan_out_20, 100: fan_out_100}
    timing.report("Dagster", "process", {"chain": lambda n: run(chains[n]), "fan-out": lambda n: run(fans[n])})
