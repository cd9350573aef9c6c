"""The floor: fork a process that has the kfp executor imported, let it compute, wait for its end; one by one."""

import os
import time

import timing
from kfp.dsl import executor


def fork(number: int) -> int:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        assert executor
        os.write(write, str(number + 1).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    result = int(os.read(read, 100))
    os.close(read)
    os.close(write)
    return result


def chain(length: int) -> float:
    begun, number = time.perf_counter(), 0
    for _ in range(length):
        number = fork(number)
    assert number == length
    return time.perf_counter() - begun


timing.report("fork with the same imports", "process", {"chain": chain, "fan-out": chain})
