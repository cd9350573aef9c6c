"""
Population based training: trials of a generation take over checkpoints and values of better ones, changed a little.

Settings: ``suggestion_trial_dir`` (where the container finds its checkpoint), ``n_population`` (at least 5),
``truncation_threshold`` (0 to 1), ``resample_probability`` (0 to 1; without it numeric values are multiplied by 0.8 or
1.2). A failed member is tried again with the same values. A member begins with a copy of the folder of the trial named
by its parent label: that of the member whose place it takes, as in Katib; ``inherit_elite`` = ``true`` gives it the
folder of the one whose values it took.

Source: Jaderberg et al., "Population Based Training of Neural Networks" (2017); Katib's labels and settings.
"""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Mapping, Sequence

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, draw, ranked, setting
from shallop.tuning.space import Parameter

__all__ = ["GENERATION", "PARENT", "PopulationBasedTraining"]

GENERATION = "pbt.suggestion.katib.kubeflow.org/generation"
PARENT = "pbt.suggestion.katib.kubeflow.org/parent"
_KNOWN = (
    "suggestion_trial_dir",
    "n_population",
    "truncation_threshold",
    "resample_probability",
    "inherit_elite",
    "random_state",
)


class PopulationBasedTraining:
    uses_results = True

    def check(self, problem: Problem) -> None:
        for name in problem.settings:
            if name not in _KNOWN:
                raise SettingError(f"{name}: unknown setting; known are {', '.join(_KNOWN)}")
        for name in ("suggestion_trial_dir", "n_population", "truncation_threshold"):
            if not problem.settings.get(name):
                raise SettingError(f"{name}: must be set")
        if not problem.settings["suggestion_trial_dir"].startswith("/"):
            raise SettingError("suggestion_trial_dir: must be an absolute path in the container")
        setting(problem, "n_population", 5, 5)
        setting(problem, "truncation_threshold", 0.2, 0, 1)
        setting(problem, "resample_probability", 0, 0, 1)
        for parameter in problem.parameters:
            if not parameter.grid_size:
                raise SettingError(f"parameter {parameter.name}: pbt needs feasibleSpace.step for a double; set a step")

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        proposals: list[Proposal] = []
        retried = {past.memo.get("retry") for past in history}
        failed = [past for past in history if past.state == "failed" and past.name not in retried]
        for past in failed[:count]:
            proposals.append(
                _member(problem, len(history) + len(proposals), dict(past.assignments), past.memo, past.name)
            )
        size = int(setting(problem, "n_population", 5, 5))
        while len(proposals) < count:
            number = len(history) + len(proposals)
            proposals.append(_next(problem, history, [p.memo for p in proposals], size, number))
        return Reply(proposals)


def _member(
    problem: Problem, number: int, values: dict[str, str], memo: Mapping[str, object], retry: str = ""
) -> Proposal:
    name = f"{problem.name}-{uuid.UUID(int=draw(problem, number, 'name').getrandbits(128), version=4)}"
    kept = {key: memo[key] for key in ("generation", "parent", "place") if key in memo}
    labels = {GENERATION: str(kept["generation"])}
    if kept.get("parent"):
        labels[PARENT] = str(kept["parent"])
    return Proposal(values, name, labels, kept | ({"retry": retry} if retry else {}))


def _next(
    problem: Problem, history: Sequence[Past], new: Sequence[Mapping[str, object]], size: int, number: int
) -> Proposal:
    """Return the next member: of the newest generation while it is short of members, else of the one after it."""
    generator = draw(problem, number)
    memos = [*(past.memo for past in history), *new]
    newest = max((int(str(memo["generation"])) for memo in memos), default=0)
    ended = [past for past in history if past.memo["generation"] == newest and past.state in ("succeeded", "stopped")]
    generation = newest + 1 if len(ended) >= size else newest
    if generation == 0:
        values = {one.name: one.value_at(generator.random()) for one in problem.parameters}
        return _member(problem, number, values, {"generation": 0})
    before = [
        past for past in history if past.memo["generation"] == generation - 1 and past.state in ("succeeded", "stopped")
    ]
    values, parent = _descend(problem, before, generator)
    return _member(problem, number, values, {"generation": generation, "parent": parent})


def _descend(problem: Problem, before: Sequence[Past], generator: random.Random) -> tuple[dict[str, str], str]:
    """Take over from a better member (exploit) or change the own values (explore)."""
    order = ranked(problem, before)
    cut = max(1, math.ceil(len(order) * setting(problem, "truncation_threshold", 0.2, 0, 1)))
    elite, rest = order[:cut], order[: len(order) - cut] or order
    losers = order[len(order) - cut :]
    if generator.random() < len(losers) / len(order):
        member, source = generator.choice(losers), generator.choice(elite)
        inherits = source if problem.settings.get("inherit_elite", "").lower() == "true" else member
        return dict(source.assignments), inherits.name
    member = generator.choice(rest)
    chance = problem.settings.get("resample_probability")
    values = {
        one.name: _perturb(one, member.assignments[one.name], float(chance) if chance else None, generator)
        for one in problem.parameters
    }
    return values, member.name


def _perturb(one: Parameter, text: str, resample: float | None, generator: random.Random) -> str:
    if resample is not None:
        return one.value_at(generator.random()) if generator.random() < resample else text
    if one.is_listed:
        index = one.choices.index(text) + generator.choice((-1, 1))
        return one.choices[index % len(one.choices)]
    value = min(max(float(text) * generator.choice((0.8, 1.2)), one.low), one.high)
    return one.value_at(one.position_of(repr(value)))
