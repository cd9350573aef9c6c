"""ZenML: its local orchestrator with a database in a temporary folder; steps run in one process."""

import os
import tempfile
import time

FOLDER = tempfile.mkdtemp()
os.environ |= {"ZENML_CONFIG_PATH": FOLDER, "ZENML_ANALYTICS_OPT_IN": "false", "ZENML_LOGGING_VERBOSITY": "CRITICAL"}

import timing  # noqa: E402
from zenml import pipeline, step  # noqa: E402


@step(enable_cache=False)
def increment(number: int) -> int:
    return number + 1


def chain(length: int) -> float:
    @pipeline(enable_cache=False, name=f"chain_{length}")
    def made() -> None:
        number = 0
        for _ in range(length):
            number = increment(number=number)

    begun = time.perf_counter()
    made()
    return time.perf_counter() - begun


def fan_out(width: int) -> float:
    @pipeline(enable_cache=False, name=f"fan_out_{width}")
    def made() -> None:
        for number in range(width):
            increment(number=number)

    begun = time.perf_counter()
    made()
    return time.perf_counter() - begun


timing.report("ZenML", "none", {"chain": chain, "fan-out": fan_out})
