"""What every algorithm is given and gives back."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from shallop.tuning.space import Parameter

__all__ = ["Algorithm", "Past", "Problem", "Proposal", "Reply", "SettingError", "draw", "ranked", "setting"]


class SettingError(ValueError):
    """A setting of an algorithm, or the search space, that the algorithm cannot work with; in words for users."""


@dataclass(frozen=True)
class Problem:
    """
    A search.

    Args:
        name: the experiment's; proposals that name their trials begin with it.
        maximize: whether greater values of the objective are better.
        seed: of everything random.
        parallel: how many trials run at once.
        budget: at most so many trials; None = no end.
        nas: ``spec.nasConfig`` of an Experiment, for architecture search.
    """

    name: str
    parameters: tuple[Parameter, ...]
    maximize: bool
    seed: int
    settings: Mapping[str, str] = field(default_factory=dict)
    parallel: int = 1
    budget: int | None = None
    nas: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Past:
    """
    An earlier proposal and what became of it.

    Args:
        state: ``active``, ``succeeded``, ``failed`` or ``stopped`` (early).
        value: the objective; None while there is none.
        memo: what the algorithm remembered with the proposal.
    """

    name: str
    assignments: Mapping[str, str]
    state: str = "active"
    value: float | None = None
    memo: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.state != "active"


@dataclass(frozen=True)
class Proposal:
    """
    Values to try next.

    Args:
        name: of the trial; empty = any.
        labels: for the trial.
        memo: JSON that comes back in ``Past.memo``.
    """

    assignments: dict[str, str]
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)


class Reply(NamedTuple):
    """``ended``: there will never be another proposal. Fewer proposals than asked for: ask again when a trial ends."""

    proposals: list[Proposal]
    ended: bool = False


class Algorithm(Protocol):
    """
    Proposes values.

    ``suggest`` is a pure function of its arguments: the same history, in the order of proposal, gives the same answer
    in any process, whatever the object was asked before. So a search goes on after a crash as if nothing had happened.
    It is called in a thread, by one caller at a time.

    Attributes:
        uses_results: whether outcomes in the history change proposals; if not, they may be asked for ahead of time.
    """

    uses_results: bool

    def check(self, problem: Problem) -> None:
        """Raises SettingError when the algorithm cannot work on the problem."""
        ...

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        """Return at most ``count`` proposals."""
        ...


def draw(problem: Problem, number: int, salt: str = "") -> random.Random:
    """Return the random generator of proposal ``number``; independent of every other one."""
    return random.Random(f"{problem.seed}/{number}/{salt}")


def ranked(problem: Problem, pasts: Sequence[Past]) -> list[Past]:
    """Return the pasts, the best first; those without a value last, equal ones in their order."""

    def key(past: Past) -> tuple[bool, float]:
        if past.value is None or past.value != past.value:
            return True, 0.0
        return False, -past.value if problem.maximize else past.value

    return sorted(pasts, key=key)


def setting(problem: Problem, name: str, default: float, low: float, high: float = math.inf) -> float:
    """
    Return a numeric setting.

    Raises:
        SettingError: not a number, below ``low`` or above ``high``.
    """
    text = problem.settings.get(name)
    if text is None or text == "":
        return default
    try:
        value = float(text)
    except ValueError:
        raise SettingError(f"{name}: {text!r} is no number") from None
    if not low <= value <= high:
        most = f" and at most {high:g}" if high < math.inf else ""
        raise SettingError(f"{name}: {text} must be at least {low:g}{most}")
    return value
