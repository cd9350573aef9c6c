"""The shapes as kfp pipelines of lightweight components."""

import sys
from typing import Any

from kfp import dsl

IMAGE = f"python:{sys.version_info.major}.{sys.version_info.minor}"


def increment(number: int) -> int:
    return number + 1


def chain(length: int, component: Any) -> Any:
    @dsl.pipeline(name=f"chain-{length}")
    def pipeline() -> int:
        number = component(number=0).output
        for _ in range(length - 1):
            number = component(number=number).output
        return number

    return pipeline


def fan_out(width: int, component: Any) -> Any:
    @dsl.pipeline(name=f"fan-out-{width}")
    def pipeline() -> None:
        for number in range(width):
            component(number=number)

    return pipeline
