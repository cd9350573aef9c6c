"""
The ``filterQuery`` language, parsed into a tree; ``tables`` turns the tree into SQL.

    query := and ("OR" and)*      and := term ("AND" term)*      term := "(" query ")" | property operator value
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from shallop.errors import BadRequestError

__all__ = ["AllOf", "AnyOf", "Comparison", "Node", "Scalar", "parse_filter"]

Scalar = str | int | float | bool
MAX_TERMS = 200
MAX_DEPTH = 50


class Comparison(NamedTuple):
    """
    One comparison.

    Args:
        column: the typed suffix (``string``, ``double``, ``int``, ``bool``); empty when none was written.
        operator: ``=``, ``!=``, ``>``, ``<``, ``>=``, ``<=``, ``LIKE``, ``ILIKE`` or ``IN``.
        values: one value; any number, also none, for ``IN``.
    """

    name: str
    column: str
    operator: str
    values: tuple[Scalar, ...]


class AllOf(NamedTuple):
    terms: tuple[Node, ...]


class AnyOf(NamedTuple):
    terms: tuple[Node, ...]


Node = Comparison | AllOf | AnyOf

_TOKEN = re.compile(
    r"""\s+ | --[^\n]*
    | (?P<string>'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
    | (?P<escaped>`[^`]+`)
    | (?P<number>[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator><=|>=|!=|<>|=|<|>)
    | (?P<mark>[().,])""",
    re.VERBOSE | re.DOTALL,
)
_SUFFIXES = {"string_value": "string", "double_value": "double", "int_value": "int", "bool_value": "bool"}
_WORD_OPERATORS = ("LIKE", "ILIKE", "IN")


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


def parse_filter(text: str) -> Node:
    """
    Parse a filterQuery.

    Raises:
        BadRequestError: the text is not in the language; says where.
    """
    return _Parser(text).parse()


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise BadRequestError(f"filterQuery: unexpected {text[position]!r} at character {position + 1}")
        if match.lastgroup:
            yield _Token(match.lastgroup, match.group(), position)
        position = match.end()
    yield _Token("end", "the end", position)


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0
        self._terms = 0

    def parse(self) -> Node:
        node = self._any_of(0)
        if self._peek().kind != "end":
            raise self._unexpected("AND, OR or the end")
        return node

    def _any_of(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise BadRequestError(f"filterQuery: parentheses are nested more than {MAX_DEPTH} deep")
        terms = [self._all_of(depth)]
        while self._take_word("OR"):
            terms.append(self._all_of(depth))
        return terms[0] if len(terms) == 1 else AnyOf(tuple(terms))

    def _all_of(self, depth: int) -> Node:
        terms = [self._term(depth)]
        while self._take_word("AND"):
            terms.append(self._term(depth))
        return terms[0] if len(terms) == 1 else AllOf(tuple(terms))

    def _term(self, depth: int) -> Node:
        if self._take_mark("("):
            node = self._any_of(depth + 1)
            self._expect_mark(")")
            return node
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise BadRequestError(f"filterQuery: more than {MAX_TERMS} comparisons")
        name, column = self._property()
        operator = self._operator()
        values = self._list() if operator == "IN" else (self._value(),)
        return Comparison(name, column, operator, values)

    def _property(self) -> tuple[str, str]:
        parts = [self._name()]
        while self._take_mark("."):
            parts.append(self._name())
        if len(parts) > 1 and parts[-1] in _SUFFIXES:
            return ".".join(parts[:-1]), _SUFFIXES[parts[-1]]
        return ".".join(parts), ""

    def _name(self) -> str:
        token = self._peek()
        if token.kind not in ("word", "escaped"):
            raise self._unexpected("the name of a property")
        self._next += 1
        return token.text.strip("`")

    def _operator(self) -> str:
        token = self._peek()
        word = token.text.upper()
        if token.kind != "operator" and not (token.kind == "word" and word in _WORD_OPERATORS):
            raise self._unexpected("an operator (=, !=, >, <, >=, <=, LIKE, ILIKE, IN)")
        self._next += 1
        return "!=" if word == "<>" else word

    def _list(self) -> tuple[Scalar, ...]:
        self._expect_mark("(")
        values: list[Scalar] = []
        while not self._take_mark(")"):
            if values:
                self._expect_mark(",")
            values.append(self._value())
        return tuple(values)

    def _value(self) -> Scalar:
        token = self._peek()
        value: Scalar
        if token.kind == "string":
            value = re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
        elif token.kind == "number":
            value = int(token.text) if re.fullmatch(r"[-+]?\d{1,18}", token.text) else float(token.text)
        elif token.kind == "word" and token.text.lower() in ("true", "false"):
            value = token.text.lower() == "true"
        else:
            raise self._unexpected("a value: 'text', a number, true or false")
        self._next += 1
        return value

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take_word(self, word: str) -> bool:
        token = self._peek()
        found = token.kind == "word" and token.text.upper() == word
        self._next += found
        return found

    def _take_mark(self, mark: str) -> bool:
        found = self._peek()[:2] == ("mark", mark)
        self._next += found
        return found

    def _expect_mark(self, mark: str) -> None:
        if not self._take_mark(mark):
            raise self._unexpected(f'"{mark}"')

    def _unexpected(self, wanted: str) -> BadRequestError:
        token = self._peek()
        return BadRequestError(
            f"filterQuery: expected {wanted} at character {token.position + 1}, found {token.text[:40]}"
        )
