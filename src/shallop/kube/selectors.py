"""Label and field selectors: parsing and matching."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shallop.errors import BadRequestError

__all__ = ["Requirement", "format_labels", "match_selector", "matches", "parse_field_selector", "parse_label_selector"]


class Requirement(NamedTuple):
    """One condition on one key; operator is ``in``, ``notin``, ``exists``, ``!exists``, ``gt`` or ``lt``."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


_KEY = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_TERM = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<akey>{_KEY})"
    rf"|(?P<skey>{_KEY})\s+(?P<setop>in|notin)\s*\((?P<set>[^()]*)\)"
    rf"|(?P<ekey>{_KEY})\s*(?P<eqop>==|=|!=)\s*(?P<value>{_VALUE})"
    rf"|(?P<ckey>{_KEY})\s*(?P<cmp>[<>])\s*(?P<number>-?\d+)"
    rf"|(?P<xkey>{_KEY}))\s*(?:,|$)"
)
_VALUE_RE = re.compile(_VALUE + r"\Z")
_OPERATORS = {"=": "in", "==": "in", "!=": "notin", "<": "lt", ">": "gt"}


def parse_label_selector(text: str) -> tuple[Requirement, ...]:
    """
    Parse ``a=b,c in (d,e),!f``; the empty text selects everything.

    Raises:
        BadRequestError: the syntax is wrong.
    """
    requirements = []
    position = 0
    while position < len(text):
        match = _TERM.match(text, position)
        if not match or (match.end() == len(text) and text[match.end() - 1] == "," and position < match.end()):
            raise BadRequestError(f'unable to parse requirement: found "{text[position:]}" in selector "{text}"')
        requirements.append(_requirement(match, text))
        position = match.end()
    return tuple(requirements)


def _requirement(match: re.Match[str], text: str) -> Requirement:
    if match["akey"]:
        return Requirement(match["akey"], "!exists")
    if match["xkey"]:
        return Requirement(match["xkey"], "exists")
    if match["ekey"]:
        return Requirement(match["ekey"], _OPERATORS[match["eqop"]], (match["value"],))
    if match["ckey"]:
        return Requirement(match["ckey"], _OPERATORS[match["cmp"]], (match["number"],))
    values = tuple(value.strip() for value in match["set"].split(","))
    for value in values:
        if not _VALUE_RE.match(value):
            raise BadRequestError(f'unable to parse requirement: invalid value "{value}" in selector "{text}"')
    return Requirement(match["skey"], match["setop"], values)


def parse_field_selector(text: str) -> tuple[Requirement, ...]:
    """
    Parse ``metadata.name=a,status.phase!=Running``; a backslash escapes comma, equals sign and itself.

    Raises:
        BadRequestError: a term without an operator.
    """
    requirements = []
    for term in re.findall(r"(?:\\.|[^,\\])+", text):
        match = re.match(r"\s*([^=!\\]+?)\s*(!=|==|=)((?:\\.|[^\\])*)\Z", term)
        if not match:
            raise BadRequestError(f'invalid selector: "{text}"; can\'t understand "{term}"')
        value = re.sub(r"\\(.)", r"\1", match[3])
        requirements.append(Requirement(match[1], _OPERATORS[match[2]], (value,)))
    return tuple(requirements)


def matches(requirements: tuple[Requirement, ...], read: Callable[[str], str | None]) -> bool:
    """Say whether all requirements hold; ``read`` gives the value of a key, None when it is absent."""
    return all(_holds(requirement, read(requirement.key)) for requirement in requirements)


def _holds(requirement: Requirement, value: str | None) -> bool:
    operator = requirement.operator
    if operator == "in":
        return value is not None and value in requirement.values
    if operator == "notin":
        return value is None or value not in requirement.values
    if operator == "exists":
        return value is not None
    if operator == "!exists":
        return value is None
    try:
        number, bound = int(value or ""), int(requirement.values[0])
    except ValueError:
        return False
    return number > bound if operator == "gt" else number < bound


_EXPRESSION_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!exists"}


def match_selector(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Match a ``metav1.LabelSelector``; None selects nothing, an empty one everything."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_expression_holds(expression, labels) for expression in selector.get("matchExpressions") or ())


def _expression_holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = expression.get("key", ""), _EXPRESSION_OPERATORS.get(expression.get("operator", ""))
    # What cannot be understood selects nothing.
    if operator is None:
        return False
    return _holds(Requirement(key, operator, tuple(expression.get("values") or ())), labels.get(key))


def format_labels(labels: Mapping[str, str]) -> str:
    """Write labels as an equality selector."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
