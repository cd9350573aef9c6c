"""Tree-structured Parzen estimators, by Optuna: each parameter by itself, or all together (``multivariate-tpe``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, draw, setting
from shallop.tuning.algorithms.random_search import random_assignments
from shallop.tuning.space import Parameter

__all__ = ["Tpe"]

# hyperopt's settings that Optuna has under other names or not at all are checked all the same.
_KNOWN = ("n_startup_trials", "n_ei_candidates", "n_EI_candidates", "gamma", "prior_weight", "random_state")


class Tpe:
    """
    Args:
        multivariate: sample parameters together.

    The study is only a cache of the history; trial numbers in it are numbers of proposals.
    """

    def __init__(self, *, multivariate: bool = False) -> None:
        self._multivariate = multivariate
        self._study: Any = None
        self._told: list[str] = []

    def check(self, problem: Problem) -> None:
        for name in problem.settings:
            if name not in _KNOWN:
                raise SettingError(f"{name}: unknown setting; known are {', '.join(_KNOWN)}")
        gamma = setting(problem, "gamma", 0.25, 0)
        if not 0 < gamma < 1:
            raise SettingError("gamma: must be greater than 0 and less than 1")
        if setting(problem, "prior_weight", 1, 0) == 0:
            raise SettingError("prior_weight: must be greater than 0")
        setting(problem, "n_ei_candidates", 24, 1)
        setting(problem, "n_EI_candidates", 24, 1)
        setting(problem, "n_startup_trials", 10, 1)

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        study = self._follow(problem, history)
        startup = int(setting(problem, "n_startup_trials", 10, 1))
        proposals: list[Proposal] = []
        for number in range(len(history), len(history) + count):
            if number < startup:
                assignments = random_assignments(problem, number)
                self._add(study, problem, Past("", assignments))
            else:
                assignments = self._ask(study, problem, number)
            proposals.append(Proposal(assignments))
        return Reply(proposals)

    def _follow(self, problem: Problem, history: Sequence[Past]) -> Any:
        """Bring the study in step with the history; start over when it is not a continuation."""
        import optuna

        states = [past.state for past in history]
        before = len(self._told)
        if (
            self._study is None
            or before > len(history)
            or any(old not in ("active", new) for old, new in zip(self._told, states, strict=False))
        ):
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self._study = optuna.create_study(direction="maximize" if problem.maximize else "minimize")
            self._told, before = [], 0
        for number, past in enumerate(history):
            if number >= before:
                self._add(self._study, problem, past)
            if past.is_over and self._told[number] == "active":
                self._tell(number, past)
        return self._study

    def _add(self, study: Any, problem: Problem, past: Past) -> None:
        from optuna.trial import TrialState, create_trial

        distributions = {one.name: _distribution(one) for one in problem.parameters}
        params = {one.name: _to_param(one, past.assignments[one.name]) for one in problem.parameters}
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        self._told.append("active")

    def _tell(self, number: int, past: Past) -> None:
        from optuna.trial import TrialState

        usable = past.value is not None and math.isfinite(past.value)
        self._study.tell(number, past.value if usable else None, TrialState.COMPLETE if usable else TrialState.FAIL)
        self._told[number] = past.state

    def _ask(self, study: Any, problem: Problem, number: int) -> dict[str, str]:
        import warnings

        from optuna.samplers import TPESampler

        gamma = problem.settings.get("gamma")
        options: dict[str, Any] = {}
        if gamma:
            options["gamma"] = lambda trials: max(1, math.ceil(float(gamma) * trials))
        candidates = problem.settings.get("n_ei_candidates") or problem.settings.get("n_EI_candidates")
        with warnings.catch_warnings():
            # multivariate and constant_liar are called experimental; both have been there for years.
            warnings.simplefilter("ignore")
            study.sampler = TPESampler(
                n_startup_trials=1,
                n_ei_candidates=int(float(candidates)) if candidates else 24,
                prior_weight=setting(problem, "prior_weight", 1.0, 0),
                multivariate=self._multivariate,
                constant_liar=True,
                # A sampler of its own for each proposal: nothing depends on what this process did before.
                seed=draw(problem, number, "tpe").getrandbits(32),
                **options,
            )
            trial = study.ask({one.name: _distribution(one) for one in problem.parameters})
        self._told.append("active")
        return {one.name: _from_param(one, trial.params[one.name]) for one in problem.parameters}


def _distribution(one: Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.is_listed:
        return CategoricalDistribution(tuple(range(len(one.choices))))
    if one.grid_size and one.distribution == "uniform":
        return IntDistribution(0, one.grid_size - 1)
    return FloatDistribution(0.0, 1.0)


def _to_param(one: Parameter, text: str) -> float | int:
    if one.is_listed:
        return one.choices.index(text)
    position = one.position_of(text)
    return int(position * one.grid_size) if one.grid_size and one.distribution == "uniform" else position


def _from_param(one: Parameter, value: Any) -> str:
    if one.is_listed or (one.grid_size and one.distribution == "uniform"):
        return one.grid_value(int(value))
    return one.value_at(float(value))
