"""
Conditions of InferenceGraphs: whether a path exists in a JSON document. Pure.

The part of GJSON's path syntax that conditions use: keys with ``\\`` escapes and the wildcards ``*`` and ``?``, array
indexes, ``#`` (count, or each element), ``#(...)`` (first match) and ``#(...)#`` (all matches) with the operators
``== != < <= > >= % !%`` and literals with or without quotes, ``.`` and ``|`` between parts, and the modifiers
``@this @keys @values @reverse @flatten @valid``.

Source: GJSON path syntax; KServe inference router, ``condition``.
"""

from __future__ import annotations

import fnmatch
import json
import re
from typing import Any, Callable  # noqa: UP035  environments may be Python 3.9

__all__ = ["ConditionError", "exists", "find"]

_MISSING = object()
_OPERATOR = re.compile(r"(==|!=|<=|>=|!%|<|>|=|%)")


class ConditionError(ValueError):
    """The condition is no path that can be read; the message says where it goes wrong."""


def exists(document: Any, path: str) -> bool:
    """Say whether ``path`` leads to something in ``document``."""
    return find(document, path) is not _MISSING


def find(document: Any, path: str) -> Any:
    """
    Follow ``path`` and return what it leads to; a private marker where it leads nowhere.

    Raises:
        ConditionError: the path cannot be read.
    """
    if path.startswith("[") and path.endswith("]"):
        # Several paths: what exists of them, so that the whole exists always, as in GJSON, unless all are missing.
        found = [value for part in _split(path[1:-1], ",") if (value := find(document, part)) is not _MISSING]
        return found if found else _MISSING
    return _follow(document, _parts(path))


def _split(text: str, mark: str) -> list[str]:
    """Split at ``mark`` outside of brackets and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for position, char in enumerate(text):
        if char == '"' and (position == 0 or text[position - 1] != "\\"):
            quoted = not quoted
        elif not quoted and char in "([{":
            depth += 1
        elif not quoted and char in ")]}":
            depth -= 1
        elif char == mark and not quoted and not depth:
            parts.append(text[start:position])
            start = position + 1
    if depth or quoted:
        raise ConditionError(f"condition {text!r}: a bracket or a quote is not closed")
    return [*parts, text[start:]]


def _parts(path: str) -> list[str]:
    """Split a path into its parts; one after a pipe keeps it in front."""
    parts, current, mark, depth, quoted, escaped = [], "", "", 0, False, False
    for char in path:
        if escaped:
            current += "\\" + char
            escaped = False
            continue
        if char == "\\":
            escaped = True
            continue
        if char == '"':
            quoted = not quoted
        elif not quoted and char in "([{":
            depth += 1
        elif not quoted and char in ")]}":
            depth -= 1
        if char in ".|" and not depth and not quoted:
            parts.append(mark + current)
            current, mark = "", "|" if char == "|" else ""
        else:
            current += char
    if depth or quoted or escaped:
        raise ConditionError(f"condition {path!r}: a bracket, quote or escape is not finished")
    parts.append(mark + current)
    if not all(part.lstrip("|") for part in parts):
        raise ConditionError(f"condition {path!r}: an empty part between two dots")
    return parts


def _follow(value: Any, parts: list[str]) -> Any:
    for index, part in enumerate(parts):
        rest = parts[index + 1 :]
        part = part.lstrip("|")
        # After a pipe the rest is for the whole array, after a dot for each of its elements.
        whole = bool(rest) and rest[0].startswith("|")
        if part == "#" and isinstance(value, list):
            if not rest:
                return len(value)
            found = [item for item in (_follow(element, rest) for element in value) if item is not _MISSING]
            return found
        if part.startswith("#("):
            every = part.endswith(")#")
            matches = _matches(value, part[2 : -2 if every else -1])
            if every:
                if not rest:
                    return matches
                if whole:
                    return _follow(matches, rest)
                return [item for item in (_follow(element, rest) for element in matches) if item is not _MISSING]
            value = matches[0] if matches else _MISSING
        elif part.startswith("@"):
            value = _modify(value, part)
        else:
            value = _step(value, part)
        if value is _MISSING:
            return _MISSING
    return value


def _step(value: Any, part: str) -> Any:
    if part.startswith("[") and part.endswith("]"):
        found = [item for key in _split(part[1:-1], ",") if (item := find(value, key)) is not _MISSING]
        return found if found else _MISSING
    if isinstance(value, list):
        return value[int(part)] if part.isdigit() and int(part) < len(value) else _MISSING
    if not isinstance(value, dict):
        return _MISSING
    plain = re.sub(r"\\(.)", r"\1", part)
    if plain in value:
        return value[plain]
    if re.search(r"(?<!\\)[*?]", part):
        pattern = _pattern(part)
        return next((item for key, item in value.items() if pattern.fullmatch(key)), _MISSING)
    return _MISSING


def _pattern(text: str) -> re.Pattern[str]:
    pieces = re.split(r"(\\.)", text)
    translated = [
        re.escape(piece[1:]) if piece.startswith("\\") and len(piece) == 2 else _glob(piece) for piece in pieces
    ]
    return re.compile("".join(translated), re.DOTALL)


def _glob(text: str) -> str:
    return "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in text)


def _modify(value: Any, name: str) -> Any:
    name = name.partition(":")[0]
    if name == "@this":
        return value
    if name == "@valid":
        return value
    if name == "@reverse":
        if isinstance(value, dict):
            return dict(reversed(list(value.items())))
        return value[::-1] if isinstance(value, list) else value
    if name == "@keys":
        return list(value) if isinstance(value, dict) else _MISSING
    if name == "@values":
        return list(value.values()) if isinstance(value, dict) else _MISSING
    if name == "@flatten":
        if not isinstance(value, list):
            return value
        return [inner for item in value for inner in (item if isinstance(item, list) else [item])]
    raise ConditionError(f"modifier {name} is not known; use @this, @keys, @values, @reverse, @flatten or @valid")


def _matches(value: Any, query: str) -> list[Any]:
    """Return the elements of an array that fit a query; an object counts as an array of itself."""
    elements = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
    left, operator, literal = _query(query)
    found = []
    for element in elements:
        subject = find(element, left) if left else element
        if subject is not _MISSING and (not operator or _compare(subject, operator, literal)):
            found.append(element)
    return found


def _query(query: str) -> tuple[str, str, Any]:
    depth = 0
    for match in _OPERATOR.finditer(query):
        before = query[: match.start()]
        depth = before.count("(") - before.count(")")
        if not depth and before.count('"') % 2 == 0:
            operator = match.group()
            return before.strip(), "==" if operator == "=" else operator, _literal(query[match.end() :].strip())
    return query.strip(), "", None


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "%": lambda a, b: fnmatch.fnmatchcase(str(a), str(b)),
    "!%": lambda a, b: not fnmatch.fnmatchcase(str(a), str(b)),
}


def _compare(subject: Any, operator: str, literal: Any) -> bool:
    if isinstance(subject, str) and not isinstance(literal, str) and literal is not None:
        # A literal without quotes is compared as it is written.
        literal = json.dumps(literal)
    if isinstance(subject, bool) != isinstance(literal, bool) and operator not in ("==", "!="):
        return False
    try:
        return bool(_COMPARISONS[operator](subject, literal))
    except TypeError:
        return operator == "!="
