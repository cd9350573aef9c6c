"""
DARTS: the search happens inside each trial; this only tells the trial the space and the settings.

Every trial gets the same three values. They are Python literals in single quotes, which the trial's command hands on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, SettingError

__all__ = ["Darts"]

_DEFAULTS: dict[str, Any] = {
    "num_epochs": 50,
    "w_lr": 0.025,
    "w_lr_min": 0.001,
    "w_momentum": 0.9,
    "w_weight_decay": 3e-4,
    "w_grad_clip": 5.0,
    "alpha_lr": 3e-4,
    "alpha_weight_decay": 1e-3,
    "batch_size": 128,
    "num_workers": 4,
    "init_channels": 16,
    "print_step": 50,
    "num_nodes": 4,
    "stem_multiplier": 3,
}


class Darts:
    uses_results = True

    def check(self, problem: Problem) -> None:
        if not problem.nas:
            raise SettingError("darts searches architectures: give spec.nasConfig instead of spec.parameters")
        for name, text in problem.settings.items():
            if name not in _DEFAULTS:
                raise SettingError(f"{name}: unknown setting; known are {', '.join(_DEFAULTS)}")
            if text == "None" and name in ("w_grad_clip", "print_step"):
                continue
            try:
                value = type(_DEFAULTS[name])(text)
            except ValueError:
                raise SettingError(f"{name}: {text!r} is no number") from None
            if value < 0 or (value == 0 and name not in ("num_workers", "w_momentum", "w_lr_min")):
                raise SettingError(f"{name}: {text} must be greater than 0")
        for operation in problem.nas.get("operations") or ():
            _operations(operation)

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        settings = {name: str(value) for name, value in _DEFAULTS.items()} | dict(problem.settings)
        space = [name for operation in problem.nas["operations"] for name in _operations(operation)]
        assignments = {
            "algorithm-settings": quoted(settings),
            "search-space": quoted(space),
            "num-layers": str(problem.nas["graphConfig"]["numLayers"]),
        }
        return Reply([Proposal(dict(assignments)) for _ in range(count)])


def quoted(value: Any) -> str:
    """Return JSON with single quotes, as Katib's trials of architecture searches read it."""
    return json.dumps(value).replace('"', "'")


def _operations(operation: Mapping[str, Any]) -> list[str]:
    kind = operation["operationType"]
    if kind == "skip_connection":
        return [kind]
    parameters = list(operation.get("parameters") or ())
    if len(parameters) != 1:
        raise SettingError(f"operation {kind}: darts needs exactly one parameter, the filter sizes")
    return [f"{kind}_{size}x{size}" for size in (parameters[0].get("feasibleSpace") or {}).get("list") or ()]
