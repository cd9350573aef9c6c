"""
ENAS: architectures drawn from a policy that learns from what trials measured (REINFORCE).

Outputs are Katib's: ``architecture``, for each layer an operation and one bit per earlier layer (a skip connection),
and ``nn_config``. The policy has one logit per layer and operation and one per pair of layers, instead of Katib's
recurrent controller: with tens of trials it learns as much, and it is replayed from the history in milliseconds. So
of the ``controller_*`` settings ``hidden_size``, ``train_steps`` and ``log_every_steps`` are checked and have no
effect, and the learning rate is that of one trial, not of one of fifty steps.

Source: Pham et al., "Efficient Neural Architecture Search via Parameter Sharing" (2018), for space and reward.
"""

from __future__ import annotations

import ast
import copy
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, draw, setting
from shallop.tuning.algorithms.darts import quoted
from shallop.tuning.space import parse_parameter

__all__ = ["Enas"]

_DEFAULTS: dict[str, float] = {
    "controller_hidden_size": 64,
    "controller_temperature": 5.0,
    "controller_tanh_const": 2.25,
    "controller_entropy_weight": 1e-5,
    "controller_baseline_decay": 0.999,
    "controller_learning_rate": 5e-5,
    "controller_skip_target": 0.4,
    "controller_skip_weight": 0.8,
    "controller_train_steps": 50,
    "controller_log_every_steps": 10,
}
_OPTIONAL = ("controller_temperature", "controller_tanh_const", "controller_entropy_weight", "controller_skip_weight")
# What fifty steps of Adam at the default rate move a logit, roughly: the step of one trial at that rate.
_STEP_PER_RATE = 0.1 / 5e-5
_MOST_OPERATIONS = 10_000


class Enas:
    """Remembers for the next suggestion what was learned from the trials before the first one that is not over."""

    uses_results = True

    def __init__(self) -> None:
        self._problem: Problem | None = None
        self._learned: list[tuple[str, str, float | None]] = []
        self._student = _Student(_Policy(0, 0, 0.0))

    def check(self, problem: Problem) -> None:
        if not problem.nas:
            raise SettingError("enas searches architectures: give spec.nasConfig instead of spec.parameters")
        for name, text in problem.settings.items():
            if name == "random_state":
                continue
            if name not in _DEFAULTS:
                raise SettingError(f"{name}: unknown setting; known are {', '.join(_DEFAULTS)}")
            if not (text == "None" and name in _OPTIONAL):
                setting(problem, name, _DEFAULTS[name], 0)
        if len(_space(problem)) > _MOST_OPERATIONS:
            raise SettingError(f"nasConfig.operations: more than {_MOST_OPERATIONS} combinations of parameters")

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        space, layers = _space(problem), int(problem.nas["graphConfig"]["numLayers"])
        over = list(itertools.takewhile(lambda past: past.is_over, history))
        marks = [(past.assignments["architecture"], past.state, past.value) for past in over]
        if self._problem != problem or marks[: len(self._learned)] != self._learned:
            target = float(problem.settings.get("controller_skip_target") or 0.4)
            self._problem, self._learned = problem, []
            self._student = _Student(_Policy(layers, len(space), target))
        for past in over[len(self._learned) :]:
            self._student.learn(problem, past)
        self._learned = marks
        student = copy.deepcopy(self._student)
        for past in history[len(over) :]:
            student.learn(problem, past)
        policy = student.policy
        proposals = []
        for number in range(len(history), len(history) + count):
            architecture = policy.sample(draw(problem, number))
            proposals.append(Proposal(_assignments(problem, space, architecture)))
        return Reply(proposals)


@dataclass
class _Student:
    """A policy, and the mean of the rewards that it has seen lately."""

    policy: _Policy
    baseline: float | None = None

    def learn(self, problem: Problem, past: Past) -> None:
        if past.value is None or not math.isfinite(past.value) or past.state not in ("succeeded", "stopped"):
            return
        rate = setting(problem, "controller_learning_rate", 5e-5, 0) * _STEP_PER_RATE
        decay = min(setting(problem, "controller_baseline_decay", 0.999, 0, 1), 0.9)
        reward = past.value if problem.maximize else -past.value
        self.baseline = reward if self.baseline is None else decay * self.baseline + (1 - decay) * reward
        self.policy.learn(ast.literal_eval(past.assignments["architecture"]), reward - self.baseline, rate)


class _Policy:
    def __init__(self, layers: int, operations: int, skip_target: float) -> None:
        start = math.log(skip_target / (1 - skip_target)) if 0 < skip_target < 1 else 0.0
        self.operations = [[0.0] * operations for _ in range(layers)]
        self.skips = [[start] * layer for layer in range(layers)]

    def sample(self, generator: random.Random) -> list[list[int]]:
        architecture = []
        for logits, skips in zip(self.operations, self.skips, strict=True):
            operation = generator.choices(range(len(logits)), _softmax(logits))[0]
            architecture.append([operation, *(int(generator.random() < _sigmoid(skip)) for skip in skips)])
        return architecture

    def learn(self, architecture: Sequence[Sequence[int]], advantage: float, rate: float) -> None:
        """Move the logits along the gradient of the architecture's log-probability."""
        step = rate * math.tanh(advantage * 10)
        for layer, (operation, *bits) in enumerate(architecture):
            logits = self.operations[layer]
            for index, share in enumerate(_softmax(logits)):
                logits[index] += step * ((index == operation) - share)
            skips = self.skips[layer]
            for index, bit in enumerate(bits):
                skips[index] += step * (bit - _sigmoid(skips[index]))


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _space(problem: Problem) -> list[dict[str, Any]]:
    """Return every operation with every combination of its parameters, numbered in order."""
    found: list[dict[str, Any]] = []
    for operation in problem.nas["operations"]:
        parameters = [parse_parameter(raw) for raw in operation.get("parameters") or ()]
        for one in parameters:
            if not one.grid_size:
                raise SettingError(f"operation parameter {one.name}: enas needs feasibleSpace.step for a double")
        values = [[one.grid_value(index) for index in range(one.grid_size)] for one in parameters]
        for combination in itertools.product(*values):
            chosen = {one.name: value for one, value in zip(parameters, combination, strict=True)}
            found.append({"opt_id": len(found), "opt_type": operation["operationType"], "opt_params": chosen})
    return found


def _assignments(problem: Problem, space: Sequence[dict[str, Any]], architecture: list[list[int]]) -> dict[str, str]:
    graph = problem.nas["graphConfig"]
    used = sorted({layer[0] for layer in architecture})
    config = {
        "num_layers": graph["numLayers"],
        "input_sizes": graph["inputSizes"],
        "output_sizes": graph["outputSizes"],
        "embedding": {str(index): space[index] for index in used},
    }
    return {"architecture": quoted(architecture), "nn_config": quoted(config)}
