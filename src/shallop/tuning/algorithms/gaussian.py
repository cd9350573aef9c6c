"""
Bayesian optimisation with a Gaussian process: the next point is where improvement is expected most.

A process with a Matern 5/2 kernel over positions in the unit cube; listed parameters are one axis for each value. Its
length scale and noise are those of a small grid that explain the values best. Trials that still run count with the
value that the process expects of them, so that parallel trials keep apart.

Accepted from scikit-optimize's settings: ``n_initial_points``, ``acq_func`` (LCB, PI, else EI) and ``random_state``;
``base_estimator`` and ``acq_optimizer`` are checked and have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError, draw, setting
from shallop.tuning.algorithms.sobol import sobol_point

__all__ = ["BayesianOptimization"]

_CHOICES = {
    "base_estimator": ("GP", "RF", "ET", "GBRT"),
    "acq_func": ("gp_hedge", "LCB", "EI", "PI", "EIps", "PIps"),
    "acq_optimizer": ("auto", "sampling", "lbfgs"),
}
_CANDIDATES, _NEIGHBOURS = 256, 128
# More points make the process slow and hardly better: the best and the latest stay.
_MOST = 300
_SCALES, _NOISES = (0.1, 0.2, 0.4, 0.8, 1.6), (1e-6, 1e-3, 1e-1)


class BayesianOptimization:
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

    sign = -1.0 if problem.maximize else 1.0
    ranked = sorted(usable, key=lambda past: sign * float(past.value or 0))
    kept = usable if len(usable) <= _MOST else [*ranked[: _MOST // 2], *usable[-_MOST // 2 :]]
    points = np.array([_features(problem, past.assignments) for past in kept])
    values = sign * np.array([past.value for past in kept], dtype=float)
    spread = values.std()
    scaled = (values - values.mean()) / (spread if spread > 0 else 1.0)
    process = _fit(points, scaled)
    pending = [_features(problem, past.assignments) for past in pasts if not past.is_over][-64:]
    if pending:
        expected, _ = _predict(process, np.array(pending))
        process = _Process(
            np.vstack([points, np.array(pending)]),
            np.concatenate([scaled, expected]),
            process.scale,
            process.noise,
        )
    candidates = _candidates(problem, ranked, number)
    mean, deviation = _predict(process, np.array([_features(problem, one) for one in candidates]))
    score = _acquire(problem.settings.get("acq_func", "EI"), mean, deviation, float(scaled.min()))
    tried = {tuple(past.assignments.items()) for past in pasts}
    order = [candidates[int(index)] for index in np.argsort(-score, kind="stable")]
    return next((one for one in order if tuple(one.items()) not in tried), order[0])


def _candidates(problem: Problem, ranked: Sequence[Past], number: int) -> list[dict[str, str]]:
    """Return random points of the whole space and points near the best ones."""
    generator = draw(problem, number, "candidates")
    found = [{one.name: one.value_at(generator.random()) for one in problem.parameters} for _ in range(_CANDIDATES)]
    for index in range(_NEIGHBOURS):
        centre, width = ranked[index % min(5, len(ranked))], 10 ** generator.uniform(-3, -0.7)
        near = {}
        for one in problem.parameters:
            if one.is_listed:
                same = generator.random() > 0.2
                near[one.name] = centre.assignments[one.name] if same else one.value_at(generator.random())
            else:
                near[one.name] = one.value_at(one.position_of(centre.assignments[one.name]) + generator.gauss(0, width))
        found.append(near)
    return found


def _features(problem: Problem, assignments: Any) -> list[float]:
    features: list[float] = []
    for one in problem.parameters:
        if one.is_listed:
            features += [0.5 if choice == assignments[one.name] else 0.0 for choice in one.choices]
        else:
            features.append(one.position_of(assignments[one.name]))
    return features


class _Process:
    """A Gaussian process given its values."""

    def __init__(self, points: Any, values: Any, scale: float, noise: float) -> None:
        import numpy as np

        self.points, self.scale, self.noise = points, scale, noise
        kernel = _kernel(points, points, scale) + (noise + 1e-8) * np.eye(len(points))
        self.root = np.linalg.cholesky(kernel)
        self.half = np.linalg.solve(self.root, values)
        self.weights = np.linalg.solve(self.root.T, self.half)

    @property
    def evidence(self) -> float:
        import numpy as np

        return float(-0.5 * self.half @ self.half - np.log(np.diag(self.root)).sum())


def _fit(points: Any, values: Any) -> _Process:
    import numpy as np

    best: _Process | None = None
    for scale in _SCALES:
        for noise in _NOISES:
            try:
                process = _Process(points, values, scale * math.sqrt(points.shape[1]), noise)
            except np.linalg.LinAlgError:
                continue
            if best is None or process.evidence > best.evidence:
                best = process
    assert best is not None, "the largest noise makes every kernel definite"
    return best


def _kernel(left: Any, right: Any, scale: float) -> Any:
    import numpy as np

    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
    distance = np.sqrt(5 * np.maximum(squares, 0)) / scale
    return (1 + distance + distance**2 / 3) * np.exp(-distance)


def _predict(process: _Process, points: Any) -> tuple[Any, Any]:
    import numpy as np

    cross = _kernel(process.points, points, process.scale)
    mean = cross.T @ process.weights
    explained = np.linalg.solve(process.root, cross)
    return mean, np.sqrt(np.maximum(1.0 - (explained**2).sum(0), 1e-12))


def _acquire(function: str, mean: Any, deviation: Any, best: float) -> Any:
    import numpy as np

    if function == "LCB":
        return 1.96 * deviation - mean
    z = (best - 0.01 - mean) / deviation
    below = 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in z]))
    if function in ("PI", "PIps"):
        return below
    return deviation * (z * below + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))
