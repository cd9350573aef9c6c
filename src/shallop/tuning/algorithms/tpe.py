"""Tree-structured Parzen estimators, by Optuna: each parameter by itself, or all together (``multivariate-tpe``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, draw, ranked, setting
from shallop.tuning.algorithms.random_search import random_assignments
from shallop.tuning.space import Parameter

__all__ = ["Tpe"]

# hyperopt's settings that Optuna has under other names or not at all are checked all the same.
_KNOWN = ("n_startup_trials", "n_ei_candidates", "n_EI_candidates", "gamma", "prior_weight", "random_state")

# At most so many count as good, as Optuna has it.
_BEST = 25
# Histories up to this are shown whole; of longer ones twice the best, so many of the latest and of the others.
_ALL, _LATEST, _OTHERS = 200, 100, 50


class Tpe:
    """
    Args:
        multivariate: sample parameters together.

    Optuna looks at every trial once for each parameter of each proposal. Of a long history it is shown the best, the
    latest and some of the others: at 1,000 trials a quarter of the time, and no growth after that.
    """

    uses_results = True

    def __init__(self, *, multivariate: bool = False) -> None:
        self._multivariate = multivariate
        self._problem: Problem | None = None
        # Trials as Optuna has them, by number and state: a cache.
        self._frozen: dict[tuple[int, str], Any] = {}

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
        startup = int(setting(problem, "n_startup_trials", 10, 1))
        proposals: list[Proposal] = []
        pasts = list(history)
        if self._problem != problem:
            self._problem = problem
            self._frozen.clear()
        for number in range(len(history), len(history) + count):
            is_early = number < startup
            assignments = random_assignments(problem, number) if is_early else self._ask(problem, pasts, number)
            proposals.append(Proposal(assignments))
            pasts.append(Past("", assignments))
        return Reply(proposals)

    def _ask(self, problem: Problem, pasts: Sequence[Past], number: int) -> dict[str, str]:
        import warnings

        import optuna
        from optuna.samplers import TPESampler

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        gamma = float(problem.settings.get("gamma") or 0)
        candidates = problem.settings.get("n_ei_candidates") or problem.settings.get("n_EI_candidates")
        ended = sum(past.is_over for past in pasts)
        with warnings.catch_warnings():
            # multivariate and constant_liar are called experimental; both have been there for years.
            warnings.simplefilter("ignore")
            sampler = TPESampler(
                n_startup_trials=1,
                n_ei_candidates=int(float(candidates)) if candidates else 24,
                prior_weight=setting(problem, "prior_weight", 1.0, 0),
                multivariate=self._multivariate,
                constant_liar=True,
                # A sampler of its own for each proposal: nothing depends on what this process did before.
                seed=draw(problem, number, "tpe").getrandbits(32),
                # How many count as good is a share of all trials, not of those that are shown.
                gamma=lambda shown: _good(ended, gamma),
            )
            storage = _shown([self._freeze(problem, index, pasts[index]) for index in _window(problem, pasts)])
            direction = optuna.study.StudyDirection.MAXIMIZE if problem.maximize else None
            study = optuna.create_study(storage=storage, sampler=sampler, direction=direction)
            trial = study.ask({one.name: _distribution(one) for one in problem.parameters})
        return {one.name: _from_param(one, trial.params[one.name]) for one in problem.parameters}

    def _freeze(self, problem: Problem, index: int, past: Past) -> Any:
        found = self._frozen.get((index, past.state))
        if found is None:
            found = _freeze(problem, index, past)
            if past.is_over:
                self._frozen[index, past.state] = found
        return found


def _good(ended: int, gamma: float) -> int:
    """Return how many of so many trials are good ones; Optuna's default is a tenth, at most 25."""
    return max(1, math.ceil(gamma * ended)) if gamma else min(math.ceil(0.1 * ended), _BEST)


def _window(problem: Problem, pasts: Sequence[Past]) -> list[int]:
    """Return the numbers of the trials that are shown, in order."""
    if len(pasts) <= _ALL:
        return list(range(len(pasts)))
    gamma = float(problem.settings.get("gamma") or 0)
    numbers = {id(past): index for index, past in enumerate(pasts)}
    ended = [past for past in pasts if past.is_over]
    chosen = {numbers[id(past)] for past in ranked(problem, ended)[: max(2 * _BEST, _good(len(ended), gamma))]}
    chosen |= {index for index, past in enumerate(pasts) if not past.is_over}
    chosen |= set(range(len(pasts) - _LATEST, len(pasts)))
    rest = [index for index in range(len(pasts)) if index not in chosen]
    chosen |= set(rest[:: max(1, len(rest) // _OTHERS)])
    return sorted(chosen)


def _freeze(problem: Problem, index: int, past: Past) -> Any:
    from optuna.trial import TrialState, create_trial

    state, value = TrialState.RUNNING, None
    if past.is_over:
        usable = past.value is not None and math.isfinite(past.value)
        state, value = (TrialState.COMPLETE, past.value) if usable else (TrialState.FAIL, None)
    distributions = {one.name: _distribution(one) for one in problem.parameters}
    params = {one.name: _to_param(one, past.assignments[one.name]) for one in problem.parameters}
    trial = create_trial(state=state, value=value, params=params, distributions=distributions)
    # Number 0 is that of the trial that is asked for.
    trial.number = index + 1
    return trial


def _shown(trials: Sequence[Any]) -> Any:
    """Return a storage whose trials are these, whatever is stored in it."""
    from optuna.storages import InMemoryStorage

    class Shown(InMemoryStorage):
        def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[Any]:
            return [trial for trial in trials if states is None or trial.state in states]

    return Shown()


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
