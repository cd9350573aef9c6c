"""Resource quantities in their canonical form, as a real API server stores them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from shallop.errors import BadRequestError
from shallop.kube.objects import Object, parse_quantity

__all__ = ["canonical_quantities", "canonical_quantity", "format_quantity"]

_PATTERN = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = ("n", "u", "m", "", "k", "M", "G", "T", "P", "E")
_EXPONENT = re.compile(r"[eE][-+]?\d+\Z")


def canonical_quantities(values: Object | None) -> Object | None:
    """Return a map of quantities with each in canonical form."""
    return {name: canonical_quantity(value) for name, value in values.items()} if values else values


def canonical_quantity(value: Any) -> str:
    """
    Write a quantity with the largest suffix that needs no fraction: ``2048Mi`` is ``2Gi``, ``0.5`` is ``500m``.

    Raises:
        BadRequestError: the value is no quantity.
    """
    text = str(value).strip()
    try:
        amount = parse_quantity(text)
    except ValueError:
        raise BadRequestError(f"quantities must match the regular expression '{_PATTERN}'") from None
    if _EXPONENT.search(text):
        return text
    if text.endswith("i") and amount == amount.to_integral_value():
        return _scaled(amount, Decimal(1024), _BINARY, 0)
    # Nothing is smaller than a nano; the rest is rounded up.
    return _scaled(-((-amount * 10**9) // 1), Decimal(1000), _DECIMAL, 0)


def format_quantity(amount: Decimal, *, binary: bool = False) -> str:
    """Write an amount with the largest suffix that needs no fraction; ``binary`` prefers Ki, Mi, Gi."""
    if binary and amount == amount.to_integral_value() and amount % 1024 == 0:
        return _scaled(amount, Decimal(1024), _BINARY, 0)
    return _scaled(-((-amount * 10**9) // 1), Decimal(1000), _DECIMAL, 0)


def _scaled(amount: Decimal, step: Decimal, suffixes: tuple[str, ...], index: int) -> str:
    if amount == 0:
        return "0"
    while index < len(suffixes) - 1 and amount % step == 0:
        amount /= step
        index += 1
    return f"{int(amount)}{suffixes[index]}"
