"""Sobol's sequence: points that fill the space evenly, whatever the trials measure."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import cache

from shallop.tuning.algorithms.contract import Past, Problem, Proposal, Reply, draw

__all__ = ["Sobol", "scrambled_point", "sobol_point"]

_BITS = 32
# Degree and coefficients of primitive polynomials, first direction numbers; after the first dimension.
# Source: Joe and Kuo, "Constructing Sobol sequences with better two-dimensional projections" (2008), new-joe-kuo-6.
_JOE_KUO: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (1, 0, (1,)),
    (2, 1, (1, 3)),
    (3, 1, (1, 3, 1)),
    (3, 2, (1, 1, 1)),
    (4, 1, (1, 1, 3, 3)),
    (4, 4, (1, 3, 5, 13)),
    (5, 2, (1, 1, 5, 5, 17)),
    (5, 4, (1, 1, 5, 5, 5)),
    (5, 7, (1, 1, 7, 11, 19)),
    (5, 11, (1, 1, 5, 1, 1)),
    (5, 13, (1, 1, 1, 3, 11)),
    (5, 14, (1, 3, 5, 5, 31)),
    (6, 1, (1, 3, 3, 9, 7, 49)),
    (6, 13, (1, 1, 1, 15, 21, 21)),
    (6, 16, (1, 3, 1, 13, 27, 49)),
    (6, 19, (1, 1, 1, 15, 7, 5)),
    (6, 22, (1, 3, 1, 15, 13, 25)),
    (6, 25, (1, 1, 5, 5, 19, 61)),
    (7, 1, (1, 3, 7, 11, 23, 15, 103)),
    (7, 4, (1, 3, 7, 13, 13, 15, 69)),
)


class Sobol:
    """Dimensions after the 21st are random numbers: the published table goes on, few searches do."""

    uses_results = False

    def check(self, problem: Problem) -> None:
        return None

    def suggest(self, problem: Problem, history: Sequence[Past], count: int) -> Reply:
        first = len(history)
        return Reply([Proposal(_assignments(problem, first + i)) for i in range(count)])


def _assignments(problem: Problem, number: int) -> dict[str, str]:
    generator = draw(problem, number)
    point = scrambled_point(number, min(len(problem.parameters), len(_JOE_KUO) + 1), draw(problem, 0, "sobol"))
    return {
        one.name: one.value_at(point[index] if index < len(point) else generator.random())
        for index, one in enumerate(problem.parameters)
    }


def scrambled_point(number: int, dimensions: int, seeds: random.Random) -> list[float]:
    """
    Return a point of the sequence that a fresh generator makes of Sobol's: as even, without a first point in a corner.

    Source: Owen, "Randomly permuted (t,m,s)-nets and (t,s)-sequences" (1995): each bit is turned or not by chance, a
    chance of its own for all the bits before it.
    """
    point = []
    for bits in _coordinates(number, dimensions):
        scrambled, seed = bits, seeds.getrandbits(64)
        for position in range(_BITS):
            text = f"{seed}/{position}/{bits >> (_BITS - position)}"
            scrambled ^= (hashlib.blake2b(text.encode(), digest_size=1).digest()[0] & 1) << (_BITS - 1 - position)
        point.append(scrambled / (1 << _BITS))
    return point


def sobol_point(number: int, dimensions: int) -> list[float]:
    """Return point ``number`` (from 0) of the sequence, each coordinate in [0, 1)."""
    return [bits / (1 << _BITS) for bits in _coordinates(number, dimensions)]


def _coordinates(number: int, dimensions: int) -> list[int]:
    code = number ^ (number >> 1)
    point = []
    for dimension in range(dimensions):
        bits = 0
        for position, direction in enumerate(_directions(dimension)):
            if code >> position & 1:
                bits ^= direction
        point.append(bits)
    return point


@cache
def _directions(dimension: int) -> tuple[int, ...]:
    if dimension == 0:
        return tuple(1 << (_BITS - 1 - i) for i in range(_BITS))
    degree, coefficients, first = _JOE_KUO[dimension - 1]
    directions = [m << (_BITS - 1 - i) for i, m in enumerate(first)]
    for i in range(degree, _BITS):
        value = directions[i - degree] ^ (directions[i - degree] >> degree)
        for k in range(1, degree):
            if coefficients >> (degree - 1 - k) & 1:
                value ^= directions[i - k]
        directions.append(value)
    return tuple(directions)
