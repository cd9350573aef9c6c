"""
Hyperband: many trials with few resources, the best of them again with more.

The parameter ``resource_name`` is the resource; ``r_l`` its greatest value, ``eta`` the factor (3). Each trial of a
later rung repeats the values of a trial of the rung before. Brackets need nothing of each other, so the next one begins
while a rung waits for its last trials; failed trials rank last and hold nobody up.

Source: Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization" (2018), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, ranked, setting
from shallop.tuning.algorithms.random_search import random_assignments

__all__ = ["Hyperband", "check_resource", "with_resource"]


def check_resource(problem: Problem) -> None:
    """Raises SettingError when the settings name no numeric parameter as the resource."""
    for name in ("r_l", "resource_name"):
        if not problem.settings.get(name):
            raise SettingError(f"{name}: must be set")
    if setting(problem, "r_l", 0, 0) <= 1:
        raise SettingError("r_l: must be greater than 1")
    name = problem.settings["resource_name"]
    if not any(one.name == name and one.type != "categorical" for one in problem.parameters):
        raise SettingError(f"resource_name: {name!r} is not the name of a numeric parameter")


def with_resource(problem: Problem, assignments: dict[str, str], resource: float) -> dict[str, str]:
    """Return the values with a whole number of the resource, at least 1."""
    return assignments | {problem.settings["resource_name"]: str(max(1, int(resource + 1e-9)))}


class Hyperband:
    uses_results = True

    def check(self, problem: Problem) -> None:
        check_resource(problem)
        setting(problem, "eta", 3, 0)

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        rungs: dict[tuple[int, int], list[Past]] = {}
        for past in history:
            rungs.setdefault((past.memo["bracket"], past.memo["rung"]), []).append(past)
        eta, most = _eta(problem), setting(problem, "r_l", 1, 0)
        last = _last_bracket(most, eta)
        proposals: list[Proposal] = []
        is_waiting = False
        for bracket in range(last, -1, -1):
            size = math.ceil((last + 1) * eta**bracket / (bracket + 1))
            parents: list[Past] = []
            for rung in range(bracket + 1):
                wanted = math.ceil(size * eta**-rung) if rung == 0 else min(len(parents), math.ceil(size * eta**-rung))
                known = rungs.get((bracket, rung), [])
                for position in range(len(known), wanted):
                    if len(proposals) == count:
                        return Reply(proposals)
                    memo = {"bracket": bracket, "rung": rung}
                    number = len(history) + len(proposals)
                    values = random_assignments(problem, number) if rung == 0 else dict(parents[position].assignments)
                    proposals.append(
                        Proposal(with_resource(problem, values, most * eta ** (rung - bracket)), memo=memo)
                    )
                if len(known) < wanted or not all(past.is_over for past in known):
                    is_waiting = True
                    break
                parents = ranked(problem, known)
        return Reply(proposals, ended=not is_waiting)


def _eta(problem: Problem) -> float:
    eta = setting(problem, "eta", 3, 0)
    return eta if eta > 1 else 3.0


def _last_bracket(most: float, eta: float) -> int:
    return int(math.log(most) / math.log(eta) + 1e-9)
