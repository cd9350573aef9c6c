"""
Asynchronous successive halving: no rung ever waits.

Settings as for ``hyperband`` (``r_l``, ``resource_name``, ``eta``), and ``r_min`` (1), the resource of the first rung.
When a trial may start, the best trial among the upper ``1/eta`` of a rung that was not promoted yet runs again with
``eta`` times the resource, the highest rung first; when there is none, a new one starts on the first rung.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, ranked, setting
from shallop.tuning.algorithms.hyperband import check_resource, with_resource
from shallop.tuning.algorithms.random_search import random_assignments

__all__ = ["Asha"]


class Asha:
    uses_results = True

    def check(self, problem: Problem) -> None:
        check_resource(problem)
        if setting(problem, "eta", 3, 0) <= 1:
            raise SettingError("eta: must be greater than 1")
        if setting(problem, "r_min", 1, 1) > setting(problem, "r_l", 1, 0):
            raise SettingError("r_min: must not be greater than r_l")

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        eta, least = setting(problem, "eta", 3, 0), setting(problem, "r_min", 1, 1)
        top = int(math.log(setting(problem, "r_l", 1, 0) / least) / math.log(eta) + 1e-9)
        rungs: list[list[Past]] = [[] for _ in range(top + 1)]
        promoted: set[int] = set()
        numbers = {id(past): number for number, past in enumerate(history)}
        for past in history:
            rungs[past.memo["rung"]].append(past)
            promoted.add(past.memo.get("parent", -1))
        proposals: list[Proposal] = []
        while len(proposals) < count:
            chosen = _promotable(problem, rungs, numbers, promoted, eta)
            number = len(history) + len(proposals)
            if chosen is None:
                values, memo = random_assignments(problem, number), {"rung": 0}
            else:
                rung, parent = chosen
                promoted.add(parent)
                values, memo = dict(history[parent].assignments), {"rung": rung + 1, "parent": parent}
            proposals.append(Proposal(with_resource(problem, values, least * eta ** memo["rung"]), memo=memo))
        return Reply(proposals)


def _promotable(
    problem: Problem, rungs: Sequence[Sequence[Past]], numbers: dict[int, int], promoted: set[int], eta: float
) -> tuple[int, int] | None:
    for rung in range(len(rungs) - 2, -1, -1):
        ended = [past for past in rungs[rung] if past.is_over]
        for past in ranked(problem, ended)[: int(len(ended) / eta)]:
            if past.value is not None and numbers[id(past)] not in promoted:
                return rung, numbers[id(past)]
    return None
