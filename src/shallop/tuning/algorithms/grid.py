"""Grid search: every combination once, in an order that spreads a short budget over the whole grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, draw

__all__ = ["GridSearch"]


class GridSearch:
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
        factor, offset = _permutation(problem, size)
        proposals = [_combination(problem, (factor * number + offset) % size) for number in range(first, last)]
        return Reply(proposals, ended=last >= size)


def _size(problem: Problem) -> int:
    return math.prod(parameter.grid_size for parameter in problem.parameters)


def _permutation(problem: Problem, size: int) -> tuple[int, int]:
    """Return a factor without a common divisor with ``size`` and an offset: x -> factor * x + offset visits all."""
    generator = draw(problem, 0, "grid")
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
