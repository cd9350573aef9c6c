"""
Conditions on objects, in the part of the GJSON path syntax that trial templates use.

Understood: keys (``\\.`` for a dot in a key), indexes, ``#`` (length, or each element), queries ``#(path op value)``
for the first and ``#(...)#`` for all matches with ==, !=, <, <=, >, >=, % and !%, ``|`` (the whole result goes on),
``@this`` and ``[path,path]``.

Source: the published GJSON syntax description; checked with the conditions of Katib's examples.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["GjsonError", "Match", "evaluate", "find"]


class GjsonError(ValueError):
    """A path that cannot be read."""


class Match(NamedTuple):
    """What a condition found; ``reason`` and ``message`` of the first object found, if it has them."""

    reason: str = ""
    message: str = ""


class _Absent:
    pass


ABSENT = _Absent()


def evaluate(condition: str, obj: Any) -> Match | None:
    """
    Return the match of a success or failure condition on a run's object, None when it does not hold.

    It holds when the path finds an object or a non-empty list of objects.

    Raises:
        GjsonError: the condition cannot be read.
    """
    found = find(condition, obj)
    if isinstance(found, list):
        found = found[0] if found else ABSENT
    if not isinstance(found, dict):
        return None
    return Match(_text(found.get("reason")), _text(found.get("message")))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def find(path: str, value: Any) -> Any:
    """Return what a path finds, ``ABSENT`` when there is nothing."""
    return _walk(_parse(path), value)


class _Step(NamedTuple):
    kind: str
    text: str
    piped: bool


_STEP_END = ".|"


@lru_cache(256)
def _parse(path: str) -> list[_Step]:
    steps, position, piped = [], 0, False
    while position < len(path):
        step, position = _read_step(path, position, piped)
        steps.append(step)
        if position < len(path):
            if path[position] not in _STEP_END:
                raise GjsonError(f"{path!r}: unexpected {path[position]!r} at position {position}")
            piped = path[position] == "|"
            position += 1
    if not steps:
        raise GjsonError("the path is empty")
    return steps


def _read_step(path: str, position: int, piped: bool) -> tuple[_Step, int]:
    if path.startswith("#(", position):
        end = _closing(path, position + 1, "()")
        every = path.startswith("#", end + 1)
        return _Step("all" if every else "first", path[position + 2 : end], piped), end + (2 if every else 1)
    if path[position] == "[":
        end = _closing(path, position, "[]")
        return _Step("multi", path[position + 1 : end], piped), end + 1
    name = ""
    while position < len(path) and path[position] not in _STEP_END:
        if path[position] == "\\" and position + 1 < len(path):
            position += 1
        name += path[position]
        position += 1
    return _Step("each" if name == "#" else "this" if name == "@this" else "key", name, piped), position


def _closing(path: str, start: int, pair: str) -> int:
    depth, quoted, position = 0, False, start
    while position < len(path):
        char = path[position]
        if quoted:
            if char == "\\":
                position += 1
            elif char == '"':
                quoted = False
        elif char == '"':
            quoted = True
        elif char == pair[0]:
            depth += 1
        elif char == pair[1]:
            depth -= 1
            if not depth:
                return position
        position += 1
    raise GjsonError(f"{path!r}: no {pair[1]!r} closes the {pair[0]!r} at position {start}")


def _walk(steps: list[_Step], value: Any) -> Any:
    for index, step in enumerate(steps):
        if isinstance(value, _Absent):
            return ABSENT
        rest = steps[index + 1 :]
        if step.kind in ("all", "each") and rest and not rest[0].piped:
            # A dot after a list goes on in each element, up to the next pipe.
            stop = next((i for i, later in enumerate(rest) if later.piped), len(rest))
            elements = value if step.kind == "each" and isinstance(value, list) else _apply(step, value)
            if not isinstance(elements, list):
                return ABSENT
            answers = [_walk(rest[:stop], element) for element in elements]
            kept = [answer for answer in answers if not isinstance(answer, _Absent)]
            return _walk(rest[stop:], kept) if rest[stop:] else kept
        value = _apply(step, value)
    return value


def _apply(step: _Step, value: Any) -> Any:
    if step.kind == "this":
        return value
    if step.kind == "multi":
        found = [find(path, value) for path in _split(step.text)]
        return [item for item in found if not isinstance(item, _Absent)]
    if step.kind == "each":
        return len(value) if isinstance(value, list) else ABSENT
    if step.kind in ("all", "first"):
        if not isinstance(value, list):
            return ABSENT
        matches = _query(step.text)
        found = [element for element in value if matches(element)]
        return found if step.kind == "all" else (found[0] if found else ABSENT)
    if isinstance(value, dict):
        return value.get(step.text, ABSENT)
    if isinstance(value, list) and step.text.isdigit() and int(step.text) < len(value):
        return value[int(step.text)]
    return ABSENT


@lru_cache(256)
def _split(text: str) -> tuple[str, ...]:
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return tuple(part.strip() for part in parts if part.strip())


_OPERATORS = ("==", "!=", "<=", ">=", "!%", "<", ">", "%", "=")


@lru_cache(256)
def _query(text: str) -> Callable[[Any], bool]:
    position, quoted, depth = 0, False, 0
    while position < len(text):
        char = text[position]
        if char == '"':
            quoted = not quoted
        depth += 0 if quoted else (char == "(") - (char == ")")
        operator = next((o for o in _OPERATORS if text.startswith(o, position)), "")
        if operator and not quoted and not depth:
            path, wanted = text[:position].strip(), _literal(text[position + len(operator) :].strip())
            return lambda element: _holds(find(path, element) if path else element, operator, wanted)
        position += 1
    path = text.strip()
    return lambda element: not isinstance(find(path, element), _Absent)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _holds(found: Any, operator: str, wanted: Any) -> bool:
    if isinstance(found, _Absent):
        return False
    if operator in ("%", "!%"):
        matches = isinstance(found, str) and fnmatch.fnmatchcase(found, str(wanted))
        return matches == (operator == "%")
    same_kind = isinstance(found, str) == isinstance(wanted, str)
    if operator in ("==", "="):
        return bool(same_kind and found == wanted)
    if operator == "!=":
        return not (same_kind and found == wanted)
    if not same_kind or isinstance(found, dict | list | bool) or found is None or wanted is None:
        return False
    return bool(
        (operator == "<" and found < wanted)
        or (operator == "<=" and found <= wanted)
        or (operator == ">" and found > wanted)
        or (operator == ">=" and found >= wanted)
    )
