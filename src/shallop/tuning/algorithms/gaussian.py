"""
Bayesian optimisation with a Gaussian process: the next point is where improvement is expected most.

A process with a Matern 5/2 kernel over positions in the unit cube; listed parameters are one axis for each value. The
process sees the ranks of the values, as those of a normal distribution: one trial that went wrong badly would else make
all good ones look alike. Each parameter has a length scale of its own, fitted with the noise to what is most likely.
Trials that still run count with the value that the process expects of them, so that parallel trials keep apart.

Accepted from scikit-optimize's settings: ``n_initial_points``, ``acq_func`` (LCB, PI, else EI) and ``random_state``;
``base_estimator`` and ``acq_optimizer`` are checked and have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, draw, ranked, setting
from shallop.tuning.algorithms.sobol import sobol_point

__all__ = ["BayesianOptimization"]

_CHOICES = {
    "base_estimator": ("GP", "RF", "ET", "GBRT"),
    "acq_func": ("gp_hedge", "LCB", "EI", "PI", "EIps", "PIps"),
    "acq_optimizer": ("auto", "sampling", "lbfgs"),
}
_CANDIDATES, _NEIGHBOURS, _CENTRES, _TRIES = 512, 512, 5, 32
# How far apart two choices of a listed parameter are, before it has a scale of its own.
_LISTED = 0.5
# More points make the process slow and hardly better: the best and the latest stay.
_MOST, _MOST_TO_FIT, _MOST_PENDING = 120, 60, 32
# In parts of the diagonal of the unit cube.
_SCALES, _NOISES = (0.15, 0.3, 0.6, 1.2), (1e-4, 1e-2, 1e-1)
# What a parameter's own scale may be instead of the common one: an important one varies faster.
_FACTORS = (0.5, 2.0, 4.0)
_MOST_AXES, _BAD = 12, 0.5
_NORMAL = NormalDist()


class BayesianOptimization:
    uses_results = True

    def check(self, problem: Problem) -> None:
        for name, value in problem.settings.items():
            if name in _CHOICES:
                if value not in _CHOICES[name]:
                    raise SettingError(f"{name}: {value!r} is not one of {', '.join(_CHOICES[name])}")
            elif name not in ("n_initial_points", "random_state"):
                raise SettingError(f"{name}: unknown setting; known are {', '.join((*_CHOICES, 'n_initial_points'))}")
        setting(problem, "n_initial_points", 10, 1)

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        first = int(setting(problem, "n_initial_points", 10, 1))
        pasts = list(history)
        proposals = []
        for number in range(len(history), len(history) + count):
            usable = [past for past in pasts if past.value is not None and math.isfinite(past.value)]
            if number < first or len(usable) < 2:
                assignments = _spread(problem, number)
            else:
                assignments = _improve(problem, pasts, usable, number)
            proposals.append(Proposal(assignments))
            pasts.append(Past("", assignments))
        return Reply(proposals)


def _spread(problem: Problem, number: int) -> dict[str, str]:
    generator, shift = draw(problem, number), draw(problem, 0, "gaussian")
    point = sobol_point(number, min(len(problem.parameters), 21))
    return {
        one.name: one.value_at((point[i] + shift.random()) % 1.0 if i < len(point) else generator.random())
        for i, one in enumerate(problem.parameters)
    }


def _improve(problem: Problem, pasts: Sequence[Past], usable: list[Past], number: int) -> dict[str, str]:
    import numpy as np

    best_first = ranked(problem, usable)
    kept = best_first if len(usable) <= _MOST else _some(best_first, usable)
    points = np.array([_features(problem, past.assignments) for past in kept])
    sign = -1.0 if problem.maximize else 1.0
    values = _normal_scores(sign * np.array([past.value for past in kept], dtype=float))
    scales, noise = _fit(points[:_MOST_TO_FIT], values[:_MOST_TO_FIT], _axes(problem))
    process = _Process(points, values, scales, noise)
    pending = [_features(problem, past.assignments) for past in pasts if not past.is_over][-_MOST_PENDING:]
    if pending:
        expected, _ = process.predict(np.array(pending))
        process = _Process(np.vstack([points, pending]), np.concatenate([values, expected]), scales, noise)
    candidates = _candidates(problem, best_first[:_CENTRES], number)
    mean, deviation = process.predict(_encode(problem, candidates))
    score = _acquire(problem.settings.get("acq_func", "EI"), mean, deviation, float(values.min()))
    tried = {tuple(past.assignments.values()) for past in pasts}
    order = [
        {one.name: one.value_at(float(u)) for one, u in zip(problem.parameters, candidates[index], strict=True)}
        for index in np.argsort(-score, kind="stable")[:_TRIES]
    ]
    return next((one for one in order if tuple(one.values()) not in tried), order[0])


def _some(best_first: Sequence[Past], usable: Sequence[Past]) -> list[Past]:
    """Return the best and the latest, alternating, so that any beginning of the list has both."""
    best, latest = best_first[: _MOST // 2], usable[: -_MOST - 1 : -1]
    mixed = {id(past): past for pair in zip(best, latest, strict=False) for past in pair}
    mixed |= {id(past): past for past in latest}
    return list(mixed.values())[:_MOST]


def _normal_scores(values: Any) -> Any:
    """Return values of a normal distribution in the same order; equal ones stay equal, and the bad ones become so."""
    import numpy as np

    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - 0.5 * counts
    scores = np.array([_NORMAL.inv_cdf(middle / len(values)) for middle in middles])
    # How bad the bad ones are does not help to find the good ones.
    return np.minimum(scores[places], _BAD)


def _candidates(problem: Problem, best: Sequence[Past], number: int) -> Any:
    """Return positions (candidates, parameters): random ones of the whole space, and some near the best trials."""
    import numpy as np

    generator = np.random.default_rng(draw(problem, number, "candidates").getrandbits(64))
    parameters = problem.parameters
    anywhere = generator.random((_CANDIDATES, len(parameters)))
    centres = np.array([[one.position_of(past.assignments[one.name]) for one in parameters] for past in best])
    near = centres[np.arange(_NEIGHBOURS) % len(best)]
    width = 10 ** generator.uniform(-2.5, -0.5, (_NEIGHBOURS, 1))
    moved = near + generator.normal(size=near.shape) * width
    # Most steps change some parameters and leave the others.
    changes = generator.random(near.shape) < generator.choice((0.3, 0.6, 1.0), (_NEIGHBOURS, 1))
    listed = np.array([one.is_listed for one in parameters])
    fresh = generator.random(near.shape)
    elsewhere = generator.random(near.shape) < 0.3
    near = np.where(listed, np.where(changes & elsewhere, fresh, near), np.where(changes, moved, near))
    return np.clip(np.vstack([anywhere, near]), 0.0, np.nextafter(1.0, 0.0))


def _encode(problem: Problem, positions: Any) -> Any:
    """Return the features of positions, as ``_features`` does for values."""
    import numpy as np

    columns = []
    for index, one in enumerate(problem.parameters):
        if one.is_listed:
            size = len(one.choices)
            chosen = (positions[:, index] * size).astype(int)
            columns.append(_LISTED * (chosen[:, None] == np.arange(size)))
        else:
            columns.append(positions[:, index : index + 1])
    return np.hstack(columns)


def _features(problem: Problem, assignments: Mapping[str, str]) -> list[float]:
    features: list[float] = []
    for one in problem.parameters:
        if one.is_listed:
            features += [_LISTED if choice == assignments[one.name] else 0.0 for choice in one.choices]
        else:
            features.append(one.position_of(assignments[one.name]))
    return features


def _axes(problem: Problem) -> list[int]:
    """Return for each feature the number of its parameter."""
    return [index for index, one in enumerate(problem.parameters) for _ in (one.choices if one.is_listed else (0,))]


class _Process:
    """A Gaussian process given its values; ``scales`` is one length for each feature."""

    def __init__(self, points: Any, values: Any, scales: Any, noise: float) -> None:
        import numpy as np

        self.points, self.scales = points / scales, scales
        kernel = _kernel(self.points, self.points)
        kernel[np.diag_indices_from(kernel)] += noise + 1e-8
        root = np.linalg.cholesky(kernel)
        self.evidence = -float(np.log(np.diag(root)).sum())
        self.inverse = np.linalg.inv(root)
        half = self.inverse @ values
        self.evidence -= 0.5 * float(half @ half)
        self.weights = self.inverse.T @ half

    def predict(self, points: Any) -> tuple[Any, Any]:
        """Return the expected values and their standard deviations."""
        import numpy as np

        cross = _kernel(self.points, points / self.scales)
        explained = self.inverse @ cross
        return cross.T @ self.weights, np.sqrt(np.maximum(1.0 - (explained**2).sum(0), 1e-12))


def _fit(points: Any, values: Any, axes: Sequence[int]) -> tuple[Any, float]:
    """Return the length scales and the noise that explain the values best: a common scale first, then each its own."""
    import numpy as np

    number = max(axes) + 1
    # Long scales are likelier than short ones: few points can be explained by anything.
    prior = np.log(0.6)

    def judge(lengths: Any, noise: float) -> float:
        try:
            process = _Process(points, values, lengths[axes] * np.sqrt(number), noise)
        except np.linalg.LinAlgError:
            return -np.inf
        return process.evidence - 0.5 * float(((np.log(lengths) - prior) ** 2).mean()) * number / 4

    rated = [(judge(np.full(number, scale), noise), scale, noise) for scale in _SCALES for noise in _NOISES]
    best, scale, noise = max(rated)
    lengths = np.full(number, scale)
    for axis in range(min(number, _MOST_AXES)):
        for factor in _FACTORS:
            other = lengths.copy()
            other[axis] = scale * factor
            evidence = judge(other, noise)
            if evidence > best:
                best, lengths = evidence, other
    return lengths[axes] * np.sqrt(number), noise


def _kernel(left: Any, right: Any) -> Any:
    import numpy as np

    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
    distance = np.sqrt(5 * np.maximum(squares, 0))
    return (1 + distance + distance**2 / 3) * np.exp(-distance)


def _acquire(function: str, mean: Any, deviation: Any, best: float) -> Any:
    import numpy as np

    if function == "LCB":
        return 1.96 * deviation - mean
    z = (best - mean) / deviation
    below = 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in z]))
    if function in ("PI", "PIps"):
        return below
    return deviation * (z * below + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))
