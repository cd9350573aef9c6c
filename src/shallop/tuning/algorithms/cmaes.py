"""
CMA-ES on numeric parameters, by the ``cmaes`` library; listed parameters are drawn at random beside it.

Proposals of one generation come from one distribution. When the first ``population`` of them have ended, the next
generation begins; what ends later is too late to count. Which generation a proposal is of is in its memo, so the whole
course can be replayed from the history.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, draw, setting
from shallop.tuning.space import Parameter

__all__ = ["CmaEs"]

_STRATEGIES = ("none", "ipop", "bipop", "")
_KNOWN = ("random_state", "sigma", "restart_strategy")
_LEFT_OUT = 1e10


class CmaEs:
    uses_results = True

    def check(self, problem: Problem) -> None:
        for name in problem.settings:
            if name not in _KNOWN:
                raise SettingError(f"{name}: unknown setting; known are {', '.join(_KNOWN)}")
        if len(_numeric(problem)) < 2:
            raise SettingError("cmaes needs at least two parameters of type double or int; choose another algorithm")
        if problem.settings.get("restart_strategy", "") not in _STRATEGIES:
            raise SettingError(f"restart_strategy: must be one of {', '.join(filter(None, _STRATEGIES))}")
        if setting(problem, "sigma", 0.2, 0) == 0:
            raise SettingError("sigma: must be greater than 0")

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        numeric = _numeric(problem)
        optimizer, generation, restarts = self._replay(problem, numeric, history)
        proposals = []
        for number in range(len(history), len(history) + count):
            optimizer._rng.seed(draw(problem, number, "cmaes").getrandbits(32))
            point = optimizer.ask()
            generator = draw(problem, number)
            assignments = {}
            for one in problem.parameters:
                u = generator.random() if one.is_listed else float(point[numeric.index(one)])
                assignments[one.name] = one.value_at(u)
            proposals.append(
                Proposal(assignments, memo={"generation": generation, "run": restarts, "x": [float(x) for x in point]})
            )
        return Reply(proposals)

    def _replay(self, problem: Problem, numeric: list[Parameter], history: Sequence[Past]) -> tuple[Any, int, int]:
        optimizer, generation, run = self._start(problem, numeric, 0), 0, 0
        by_generation: dict[tuple[int, int], list[Past]] = {}
        for past in history:
            by_generation.setdefault((past.memo.get("run", 0), past.memo.get("generation", 0)), []).append(past)
        while True:
            ended = [past for past in by_generation.get((run, generation), ()) if past.is_over]
            if len(ended) < optimizer.population_size:
                return optimizer, generation, run
            # In the order of proposal, not of ending: the same history gives the same course.
            optimizer.tell([(_point(past), _loss(problem, past)) for past in ended[: optimizer.population_size]])
            generation += 1
            if optimizer.should_stop() and problem.settings.get("restart_strategy") in ("ipop", "bipop"):
                generation, run = 0, run + 1
                optimizer = self._start(problem, numeric, run)

    def _start(self, problem: Problem, numeric: list[Parameter], run: int) -> Any:
        import numpy as np
        from cmaes import CMA

        generator = draw(problem, run, "cmaes start")
        dimensions = len(numeric)
        smallest = 4 + int(3 * np.log(dimensions))
        factor = 2**run
        if problem.settings.get("restart_strategy") == "bipop" and run % 2:
            factor = 1  # every other restart searches a small region again
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CMA(
                mean=np.array([0.5 if not run else generator.random() for _ in numeric]),
                sigma=setting(problem, "sigma", 0.2, 0),
                bounds=np.array([[0.0, 1.0]] * dimensions),
                population_size=smallest * factor,
                seed=generator.getrandbits(32),
            )


def _numeric(problem: Problem) -> list[Parameter]:
    return [one for one in problem.parameters if one.is_numeric]


def _point(past: Past) -> Any:
    import numpy as np

    return np.array(past.memo["x"])


def _loss(problem: Problem, past: Past) -> float:
    if past.value is None or past.value != past.value:
        return _LEFT_OUT
    return -past.value if problem.maximize else past.value
