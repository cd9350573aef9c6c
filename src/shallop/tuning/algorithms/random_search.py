"""Random search: every proposal is drawn from the parameters' distributions."""

from __future__ import annotations

from collections.abc import Sequence

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, draw

__all__ = ["RandomSearch", "random_assignments"]


class RandomSearch:
    uses_results = False

    def check(self, problem: Problem) -> None:
        return None

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        first = len(history)
        return Reply([Proposal(random_assignments(problem, first + i)) for i in range(count)])


def random_assignments(problem: Problem, number: int, salt: str = "") -> dict[str, str]:
    """Draw one value for each parameter, for proposal ``number``."""
    generator = draw(problem, number, salt)
    return {parameter.name: parameter.value_at(generator.random()) for parameter in problem.parameters}
