"""
Parameters of a search: what values they may have, and values as positions in the unit interval.

A position ``u`` in [0, 1) maps to a value through the parameter's distribution, so that uniform positions give values
distributed as asked. Algorithms work on positions and need not know ranges, steps, logarithms or lists. Values are
text, as Katib carries them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from statistics import NormalDist
from typing import Any

__all__ = ["Parameter", "parse_parameter"]

_NORMAL = NormalDist()
# A normal distribution spans its range with three standard deviations to each side.
_SIGMAS = 3.0
_TAIL = _NORMAL.cdf(-_SIGMAS)


@dataclass(frozen=True)
class Parameter:
    """
    One parameter.

    Args:
        type: ``double``, ``int``, ``discrete`` or ``categorical``.
        low, high: inclusive bounds of ``double`` and ``int``.
        step: distance between values; None = every value.
        choices: values of ``discrete`` and ``categorical``.
        distribution: ``uniform``, ``logUniform``, ``normal`` or ``logNormal``.
    """

    name: str
    type: str
    low: float = 0.0
    high: float = 0.0
    step: Decimal | None = None
    start: Decimal = Decimal(0)
    choices: tuple[str, ...] = ()
    distribution: str = "uniform"

    @property
    def is_numeric(self) -> bool:
        return self.type in ("double", "int")

    @property
    def is_listed(self) -> bool:
        return not self.is_numeric

    @cached_property
    def grid_size(self) -> int:
        """How many values there are; 0 = a continuum."""
        if self.is_listed:
            return len(self.choices)
        if self._spacing is None:
            return 0
        return int((Decimal(repr(self.high)) - self.start) / self._spacing) + 1

    @cached_property
    def _spacing(self) -> Decimal | None:
        return self.step if self.step is not None else (Decimal(1) if self.type == "int" else None)

    def grid_value(self, index: int) -> str:
        """Return the value number ``index`` of ``grid_size``."""
        if self.is_listed:
            return self.choices[index]
        assert self._spacing is not None
        return self._text(self.start + self._spacing * index)

    def value_at(self, u: float) -> str:
        """Return the value at a position; positions outside [0, 1) count as its ends."""
        u = min(max(u, 0.0), math.nextafter(1.0, 0.0))
        if self.is_listed:
            return self.choices[int(u * len(self.choices))]
        spread = self._spread(u)
        if self._spacing is None:
            return self._text(spread)
        if self.distribution == "uniform":
            # Cells of equal size, the ends included.
            return self.grid_value(int(u * self.grid_size))
        index = round((spread - float(self.start)) / float(self._spacing))
        return self.grid_value(min(max(index, 0), self.grid_size - 1))

    def position_of(self, text: str) -> float:
        """Return a position whose value is ``text``: for a listed value the middle of its cell."""
        if self.is_listed:
            index = self.choices.index(text) if text in self.choices else 0
            return (index + 0.5) / len(self.choices)
        value = float(text)
        if self._spacing is not None and self.distribution == "uniform":
            index = round((value - float(self.start)) / float(self._spacing))
            return min(max((index + 0.5) / self.grid_size, 0.0), math.nextafter(1.0, 0.0))
        return self._gather(value)

    def _bounds(self) -> tuple[float, float]:
        if self.distribution in ("logUniform", "logNormal"):
            return math.log(self.low), math.log(self.high)
        return self.low, self.high

    def _spread(self, u: float) -> float:
        low, high = self._bounds()
        if self.distribution in ("normal", "logNormal"):
            inside = _NORMAL.inv_cdf(_TAIL + u * (1 - 2 * _TAIL))
            position = (low + high) / 2 + inside * (high - low) / (2 * _SIGMAS)
        else:
            position = low + u * (high - low)
        value = math.exp(position) if self.distribution.startswith("log") else position
        return min(max(value, self.low), self.high)

    def _gather(self, value: float) -> float:
        low, high = self._bounds()
        if high == low:
            return 0.0
        value = min(max(value, self.low), self.high)
        position = math.log(value) if self.distribution.startswith("log") else value
        if self.distribution in ("normal", "logNormal"):
            inside = (position - (low + high) / 2) * 2 * _SIGMAS / (high - low)
            u = (_NORMAL.cdf(inside) - _TAIL) / (1 - 2 * _TAIL)
        else:
            u = (position - low) / (high - low)
        return min(max(u, 0.0), math.nextafter(1.0, 0.0))

    def _text(self, value: Decimal | float) -> str:
        if self.type == "int":
            return str(round(value))
        if isinstance(value, Decimal):
            return format(value.normalize(), "f")
        return repr(value)


def parse_parameter(raw: Mapping[str, Any]) -> Parameter:
    """
    Read one of an Experiment's ``spec.parameters``.

    Raises:
        ValueError: in words for users, beginning with the field below the parameter.
    """
    name, type_, space = raw.get("name", ""), raw.get("parameterType", ""), raw.get("feasibleSpace") or {}
    distribution = space.get("distribution") or "uniform"
    if type_ in ("discrete", "categorical"):
        choices: Sequence[Any] = space.get("list") or ()
        if type_ == "discrete":
            for choice in choices:
                _number(choice, "feasibleSpace.list")
        return Parameter(name, type_, choices=tuple(str(choice) for choice in choices), distribution=distribution)
    low, high = _number(space.get("min", ""), "feasibleSpace.min"), _number(space.get("max", ""), "feasibleSpace.max")
    if type_ == "int":
        for field, number in (("min", low), ("max", high)):
            if number != number.to_integral_value():
                raise ValueError(f"feasibleSpace.{field}: {number} is no whole number, and the parameter is an int")
    if low > high:
        raise ValueError(f"feasibleSpace.max: {high} is less than feasibleSpace.min {low}")
    if distribution.startswith("log") and low <= 0:
        raise ValueError(f"feasibleSpace.min: must be greater than 0 for the distribution {distribution}")
    step = _number(space["step"], "feasibleSpace.step") if space.get("step") not in (None, "") else None
    if step is not None and step <= 0:
        raise ValueError("feasibleSpace.step: must be greater than 0")
    parameter = Parameter(name, type_, float(low), float(high), step, low, (), distribution)
    return parameter


def _number(text: Any, field: str) -> Decimal:
    try:
        number = Decimal(str(text).strip())
    except ArithmeticError:
        raise ValueError(f"{field}: {text!r} is no number") from None
    if not number.is_finite():
        raise ValueError(f"{field}: {text!r} is not finite")
    return number
