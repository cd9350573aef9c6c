"""
The two expression forms that compiled pipelines hold, as a small subset of CEL.

- ``triggerPolicy.condition``: ``inputs.parameter_values['n'] == 'heads'``, with ``== != < <= > >=``, ``! && ||``,
  parentheses, ``int()`` and ``double()``, and string, number, ``true``, ``false``, ``null`` literals.
- ``parameterExpressionSelector``: ``parseJson(string_value)["key"][0]``.

Anything else is refused when it is compiled, so that an upload fails and not a run. Numbers compare as numbers whatever
their JSON form; values of different types are unequal, and ordering them is an error.
"""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shallop.errors import ShallopError

__all__ = ["Condition", "ExpressionError", "Selector", "compile_condition", "compile_selector"]

_Evaluate = Callable[[Mapping[str, Any]], Any]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<parameter>inputs\s*\.\s*parameter_values\s*\[\s*)
      | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<number>-?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<operator>==|!=|<=|>=|&&|\|\||[<>!()\]])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|[xX]([0-9a-fA-F]{2})|([0-3][0-7]{2})|(.))", re.DOTALL)
_PLAIN_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONSTANTS = {"true": True, "false": False, "null": None}
_MAX_DEPTH = 100


class ExpressionError(ShallopError):
    """An expression that is not supported, or that cannot be evaluated for these values."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled trigger condition; ``parameters`` are the inputs it reads."""

    text: str
    parameters: frozenset[str]
    _evaluate: _Evaluate

    def evaluate(self, parameters: Mapping[str, Any]) -> bool:
        """
        Args:
            parameters: resolved inputs of the task.

        Raises:
            ExpressionError: an input is missing, or the operands do not fit the operator.
        """
        try:
            result = self._evaluate(parameters)
        except ExpressionError as error:
            raise ExpressionError(f"Condition {self.text}: {error}") from error
        if not isinstance(result, bool):
            raise ExpressionError(f"Condition {self.text}: gives {_show(result)}, not true or false.")
        return result


@lru_cache(maxsize=4096)
def compile_condition(text: str) -> Condition:
    """
    Raises:
        ExpressionError: outside the subset; the message says where.
    """
    parser = _Parser(text)
    evaluate = parser.parse()
    return Condition(text, frozenset(parser.parameters), evaluate)


class _Parser:
    """Recursive descent: or > and > comparison > not > primary."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.parameters: list[str] = []
        self._tokens = self._tokenize()
        self._at = 0
        self._depth = 0

    def _tokenize(self) -> list[tuple[str, str, int]]:
        tokens, position, end = [], 0, len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if not match or not match.lastgroup:
                raise self._unsupported(position)
            tokens.append((match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
            position = match.end()
        return [*tokens, ("end", "", end)]

    def _unsupported(self, position: int) -> ExpressionError:
        rest = self.text[position : position + 30].strip() or "the end"
        return ExpressionError(
            f"Condition {self.text}: not supported from '{rest}': only comparisons of inputs.parameter_values['name'] "
            "with literals or each other, int(), double(), !, &&, || and parentheses are."
        )

    def parse(self) -> _Evaluate:
        expression = self._or()
        if self._kind != "end":
            raise self._unsupported(self._tokens[self._at][2])
        return expression

    @property
    def _kind(self) -> str:
        return self._tokens[self._at][0]

    @property
    def _value(self) -> str:
        return self._tokens[self._at][1]

    def _accept(self, *operators: str) -> str:
        if self._kind == "operator" and self._value in operators:
            self._at += 1
            return self._tokens[self._at - 1][1]
        return ""

    def _expect(self, symbol: str) -> None:
        if not self._accept(symbol):
            raise self._unsupported(self._tokens[self._at][2])

    def _or(self) -> _Evaluate:
        terms = [self._and()]
        while self._accept("||"):
            terms.append(self._and())
        return terms[0] if len(terms) == 1 else _any_of(terms)

    def _and(self) -> _Evaluate:
        terms = [self._comparison()]
        while self._accept("&&"):
            terms.append(self._comparison())
        return terms[0] if len(terms) == 1 else _all_of(terms)

    def _comparison(self) -> _Evaluate:
        left = self._unary()
        symbol = self._accept("==", "!=", "<", "<=", ">", ">=")
        return _comparison(symbol, left, self._unary()) if symbol else left

    def _unary(self) -> _Evaluate:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ExpressionError(f"Condition: nested more than {_MAX_DEPTH} levels.")
        negated = bool(self._accept("!"))
        operand = self._unary() if negated else self._primary()
        self._depth -= 1
        return _negation(operand) if negated else operand

    def _primary(self) -> _Evaluate:
        kind, value, position = self._tokens[self._at]
        self._at += 1
        if kind == "parameter" and self._kind == "string":
            name = _unquote(self._value)
            self._at += 1
            self._expect("]")
            self.parameters.append(name)
            return _parameter(name)
        if kind == "string":
            return _constant(_unquote(value))
        if kind == "number":
            return _constant(float(value) if re.search(r"[.eE]", value) else int(value))
        if kind == "name" and value in _CONSTANTS:
            return _constant(_CONSTANTS[value])
        if kind == "name" and value in ("int", "double") and self._accept("("):
            operand = self._or()
            self._expect(")")
            return _cast(value, operand)
        if (kind, value) == ("operator", "("):
            inner = self._or()
            self._expect(")")
            return inner
        raise self._unsupported(position)


def _constant(value: Any) -> _Evaluate:
    return lambda parameters: value


def _parameter(name: str) -> _Evaluate:
    def evaluate(parameters: Mapping[str, Any]) -> Any:
        if name not in parameters:
            raise ExpressionError(f"input '{name}' has no value.")
        return parameters[name]

    return evaluate


def _any_of(terms: Sequence[_Evaluate]) -> _Evaluate:
    return lambda parameters: any(_boolean(term(parameters)) for term in terms)


def _all_of(terms: Sequence[_Evaluate]) -> _Evaluate:
    return lambda parameters: all(_boolean(term(parameters)) for term in terms)


def _negation(operand: _Evaluate) -> _Evaluate:
    return lambda parameters: not _boolean(operand(parameters))


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ExpressionError(f"{_show(value)} is not true or false.")
    return value


def _comparison(symbol: str, left: _Evaluate, right: _Evaluate) -> _Evaluate:
    def evaluate(parameters: Mapping[str, Any]) -> bool:
        one, other = left(parameters), right(parameters)
        comparable = _type_of(one) == _type_of(other)
        if symbol in ("==", "!="):
            return (comparable and bool(one == other)) is (symbol == "==")
        if not comparable or _type_of(one) not in ("number", "text", "boolean"):
            raise ExpressionError(f"cannot order {_show(one)} {symbol} {_show(other)}.")
        return _COMPARE[symbol](one, other)

    return evaluate


def _cast(name: str, operand: _Evaluate) -> _Evaluate:
    def evaluate(parameters: Mapping[str, Any]) -> Any:
        value = operand(parameters)
        try:
            if isinstance(value, bool) or value is None:
                raise ValueError
            number = float(value) if name == "double" or not isinstance(value, int | str) else int(value)
            return int(number) if name == "int" else number
        except (TypeError, ValueError, OverflowError):
            raise ExpressionError(f"{name}({_show(value)}) is not a number.") from None

    return evaluate


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return type(value).__name__


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unquote(token: str) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[2] and int(match[2], 16) > sys.maxunicode:
            raise ExpressionError(f"{token}: {match[0]} is no character.")
        for group, base in ((1, 16), (2, 16), (3, 16), (4, 8)):
            if match[group]:
                return chr(int(match[group], base))
        return _PLAIN_ESCAPES.get(match[5], match[5])

    return _ESCAPE.sub(replace, token[1:-1])


# ---- selectors

_SELECTOR_HEAD = re.compile(r"\s*parseJson\(\s*string_value\s*\)\s*")
_SELECTOR_KEY = re.compile(r"\[\s*(?:(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')|(\d+))\s*\]\s*")


@dataclass(frozen=True, slots=True)
class Selector:
    """A compiled ``parseJson(string_value)[...]``: keys of objects and indices of lists, outermost first."""

    text: str
    keys: tuple[str | int, ...]

    def select(self, value: Any) -> Any:
        """
        Take the part out of a value; a text is parsed as JSON first.

        Raises:
            ExpressionError: not JSON, or no such key.
        """
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise ExpressionError(f"{self.text}: the value {_show(value)} is not JSON.") from None
        for key in self.keys:
            try:
                value = _member(value, key)
            except LookupError:
                raise ExpressionError(f"{self.text}: no {json.dumps(key)} in {_show(value)}.") from None
        return value


def _member(value: Any, key: str | int) -> Any:
    if isinstance(key, str) and isinstance(value, dict):
        return value[key]
    if isinstance(key, int) and isinstance(value, list):
        return value[key]
    raise KeyError(key)


@lru_cache(maxsize=4096)
def compile_selector(text: str) -> Selector:
    """
    Raises:
        ExpressionError: any other form.
    """
    head = _SELECTOR_HEAD.match(text)
    keys: list[str | int] = []
    position = head.end() if head else 0
    while head and (match := _SELECTOR_KEY.match(text, position)):
        keys.append(_unquote(match[1]) if match[1] else int(match[2]))
        position = match.end()
    if not head or position < len(text):
        raise ExpressionError(f'Selector {text}: only parseJson(string_value)["key"] is supported.')
    return Selector(text, tuple(keys))
