"""
Grid search: every combination once, in an order that spreads a short budget over the whole grid.

The first ones lie where the points of a Sobol sequence fall, so that after any number of trials each parameter has
had all of its values about equally often; what is left of a grid comes in a random order.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, draw
from shallop.tuning.algorithms.sobol import sobol_point

__all__ = ["GridSearch"]

_SOBOL_DIMENSIONS, _POINTS = 21, 2048


class GridSearch:
    uses_results = False

    def __init__(self) -> None:
        self._problem: Problem | None = None
        self._order: Iterator[int] = iter(())
        self._known: list[int] = []

    def check(self, problem: Problem) -> None:
        for parameter in problem.parameters:
            if not parameter.grid_size:
                raise SettingError(
                    f"parameter {parameter.name}: grid search needs feasibleSpace.step for a double; "
                    "set a step, or choose another algorithm"
                )
        size = _size(problem)
        if problem.budget is not None and problem.budget > size:
            raise SettingError(
                f"maxTrialCount: {problem.budget} is greater than the {size} combinations of the grid; "
                f"set it to at most {size}"
            )

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        size = _size(problem)
        first = len(history)
        last = min(first + count, size)
        if self._problem != problem:
            self._problem, self._order, self._known = problem, _walk(problem, size), []
        self._known += itertools.islice(self._order, max(0, last - len(self._known)))
        return Reply([_combination(problem, index) for index in self._known[first:last]], ended=last >= size)


def _size(problem: Problem) -> int:
    return math.prod(parameter.grid_size for parameter in problem.parameters)


def _walk(problem: Problem, size: int) -> Iterator[int]:
    """Yield every combination once: first those that the points of a shifted Sobol sequence hit."""
    dimensions = len(problem.parameters)
    generator = draw(problem, 0, "grid")
    shifts = [generator.random() for _ in range(dimensions)]
    done: dict[int, None] = {}
    for number in range(min(2 * size, _POINTS) if dimensions <= _SOBOL_DIMENSIONS else 0):
        index, factor = 0, 1
        for one, u, moved in zip(problem.parameters, sobol_point(number, dimensions), shifts, strict=True):
            index += factor * int((u + moved) % 1.0 * one.grid_size)
            factor *= one.grid_size
        if index not in done:
            done[index] = None
            yield index
    factor, offset = _permutation(generator, size)
    for number in range(size):
        index = (factor * number + offset) % size
        if index not in done:
            yield index


def _permutation(generator: random.Random, size: int) -> tuple[int, int]:
    """Return a factor without a common divisor with ``size`` and an offset: x -> factor * x + offset visits all."""
    factor = generator.randrange(1, size + 1)
    while math.gcd(factor, size) != 1:
        factor = generator.randrange(1, size + 1)
    return factor, generator.randrange(size)


def _combination(problem: Problem, index: int) -> Proposal:
    assignments = {}
    for parameter in problem.parameters:
        index, position = divmod(index, parameter.grid_size)
        assignments[parameter.name] = parameter.grid_value(position)
    return Proposal(assignments)
