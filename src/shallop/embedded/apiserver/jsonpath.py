"""JSON paths of printer columns: ``.a.b``, ``.list[0]``, ``[-1:]``, ``[*]``, ``[?(@.type=="Ready")].status``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["compile_path"]

_STEP = re.compile(
    r"""\.(?P<key>(?:\\.|[^.\[\]\\])+)
    |\[(?P<index>-?\d+)\]
    |\[(?P<slice>(?P<from>-?\d*):(?P<to>-?\d*))\]
    |\[(?P<all>\*)\]
    |\[['"](?P<quoted>[^'"]*)['"]\]
    |\[\?\(\s*@(?P<path>[^=!<>]*?)\s*(?P<op>==|!=)\s*(?P<value>[^)]*?)\s*\)\]""",
    re.VERBOSE,
)
Select = Callable[[Any], list[Any]]


def compile_path(text: str) -> Select:
    """
    Return a function from an object to the values at a path, in order.

    Raises:
        ValueError: the path cannot be read.
    """
    text = text.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    if text and text[0] not in ".[":
        text = "." + text
    steps: list[Select] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if not match:
            raise ValueError(f"not a JSON path that is understood: {text!r}, at {text[position:]!r}")
        steps.append(_step(match))
        position = match.end()

    def select(obj: Any) -> list[Any]:
        found = [obj]
        for step in steps:
            found = [value for item in found for value in step(item)]
        return found

    return select


def _step(match: re.Match[str]) -> Select:
    if match["key"] is not None or match["quoted"] is not None:
        key = re.sub(r"\\(.)", r"\1", match["key"]) if match["key"] is not None else match["quoted"]
        if key == "*":
            return _all
        return lambda node: [node[key]] if isinstance(node, dict) and key in node else []
    if match["all"]:
        return _all
    if match["index"] is not None:
        index = int(match["index"])
        return lambda node: [node[index]] if isinstance(node, list) and -len(node) <= index < len(node) else []
    if match["slice"] is not None:
        part = slice(*(int(bound) if bound else None for bound in (match["from"], match["to"])))
        return lambda node: node[part] if isinstance(node, list) else []
    return _filter(compile_path(match["path"]), match["op"], _literal(match["value"]))


def _all(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return list(node) if isinstance(node, list) else []


def _filter(read: Select, operator: str, wanted: Any) -> Select:
    def matches(item: Any) -> bool:
        found = read(item)
        return bool(found) and (found[0] == wanted) == (operator == "==")

    return lambda node: [item for item in node if matches(item)] if isinstance(node, list) else []


def _literal(text: str) -> Any:
    if text[:1] in "'\"" and text:
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return text
