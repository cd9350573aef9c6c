"""
The grammar of CEL: ``parse(text) -> Node``, and ``located(text, position, message)`` for errors that show their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from shallop.embedded.apiserver.cel_types import CelError

_TOKEN = re.compile(
    r"""(?P<space>[\s]+|//[^\n]*)
    |(?P<float>\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\.\d+(?:[eE][+-]?\d+)?)
    |(?P<int>0x[0-9a-fA-F]+[uU]?|\d+[uU]?)
    |(?P<string>[rRbB]{0,2}(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<name>[_a-zA-Z][_a-zA-Z0-9]*)
    |(?P<op>&&|\|\||==|!=|<=|>=|\.\?|\[\?|[-+*/%<>!?:.,(){}\[\]])""",
    re.VERBOSE | re.DOTALL,
)
_EXPECTING = (
    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}"
)
_BINARY = (("||",), ("&&",), ("==", "!=", "<", "<=", ">", ">=", "in"), ("+", "-"), ("*", "/", "%"))


class Token(NamedTuple):
    kind: str
    text: str
    position: int


class Node(NamedTuple):
    """
    A syntax tree.

    Kinds: const, name, select (text = field), optselect, index, optindex, call (text = function; children: target or
    None, then arguments), list, map (children: keys and values in turn), struct (text = name of the type; children:
    values; value: pairs of a field's name and whether it is optional), unary, binary, ternary.
    """

    kind: str
    text: str
    position: int
    children: tuple[Any, ...] = ()
    value: Any = None


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokens())
        self.at = 0

    def _tokens(self) -> Iterator[Token]:
        position = 0
        while position < len(self.text):
            found = _TOKEN.match(self.text, position)
            if found is None:
                raise self.error(position, f"Syntax error: token recognition error at: '{self.text[position]}'")
            if found.lastgroup != "space":
                yield Token(found.lastgroup or "", found[0], position)
            position = found.end()
        yield Token("end", "<EOF>", position)

    def error(self, position: int, message: str) -> CelError:
        return CelError(located(self.text, position, message))

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def take(self, *texts: str) -> Token | None:
        token = self.token
        if token.text in texts and token.kind in ("op", "name"):
            self.at += 1
            return token
        return None

    def expect(self, text: str) -> Token:
        token = self.take(text)
        if token is None:
            found = self.token
            raise self.error(found.position, f"Syntax error: mismatched input '{found.text}' expecting '{text}'")
        return token

    def parse(self) -> Node:
        node = self.expression()
        if self.token.kind != "end":
            token = self.token
            raise self.error(token.position, f"Syntax error: extraneous input '{token.text}' expecting <EOF>")
        return node

    def expression(self) -> Node:
        node = self.binary(0)
        if token := self.take("?"):
            then = self.binary(0)
            self.expect(":")
            return Node("ternary", "?", token.position, (node, then, self.expression()))
        return node

    def binary(self, level: int) -> Node:
        if level == len(_BINARY):
            return self.unary()
        node = self.binary(level + 1)
        while token := self.take(*_BINARY[level]):
            node = Node("binary", token.text, token.position, (node, self.binary(level + 1)))
        return node

    def unary(self) -> Node:
        if token := self.take("!", "-"):
            return Node("unary", token.text, token.position, (self.unary(),))
        return self.member()

    def member(self) -> Node:
        node = self.primary()
        while token := self.take(".", ".?", "[", "[?", "{"):
            if token.text == "{":
                node = self.struct(node)
                continue
            if token.text in ("[", "[?"):
                index = self.expression()
                self.expect("]")
                node = Node("index" if token.text == "[" else "optindex", "", token.position, (node, index))
                continue
            name = self.token
            if name.kind != "name":
                raise self.error(name.position, f"Syntax error: mismatched input '{name.text}' expecting IDENTIFIER")
            self.at += 1
            if token.text == "." and self.take("("):
                node = Node("call", name.text, token.position, (node, *self.arguments(")")))
            else:
                node = Node("select" if token.text == "." else "optselect", name.text, token.position, (node,))
        return node

    def struct(self, type_: Node) -> Node:
        """The rest of ``Type.name{field: value, ?field: optional}``."""
        names: list[str] = []
        node = type_
        while node.kind == "select":
            names.append(node.text)
            node = node.children[0]
        if node.kind != "name":
            raise self.error(type_.position, "Syntax error: mismatched input '{' expecting <EOF>")
        names.append(node.text)
        fields: list[tuple[str, bool]] = []
        values: list[Node] = []
        while not self.take("}"):
            if fields:
                self.expect(",")
                if self.take("}"):
                    break
            optional = self.take("?") is not None
            name = self.token
            if name.kind != "name":
                raise self.error(name.position, f"Syntax error: mismatched input '{name.text}' expecting IDENTIFIER")
            self.at += 1
            self.expect(":")
            fields.append((name.text, optional))
            values.append(self.expression())
        return Node("struct", ".".join(reversed(names)), node.position, tuple(values), tuple(fields))

    def arguments(self, end: str) -> list[Node]:
        result: list[Node] = []
        while not self.take(end):
            if result:
                self.expect(",")
                if self.take(end):
                    break
            result.append(self.expression())
        return result

    def primary(self) -> Node:
        token = self.token
        self.at += 1
        match token.kind, token.text:
            case ("int", text):
                digits = text.rstrip("uU")
                base = 16 if digits[:2].lower() == "0x" else 10
                return Node("const", "", token.position, (), int(digits, base))
            case ("float", text):
                return Node("const", "", token.position, (), float(text))
            case ("string", text):
                return Node("const", "", token.position, (), _unquote(text))
            case ("name", "true" | "false" | "null" as text):
                return Node("const", "", token.position, (), {"true": True, "false": False, "null": None}[text])
            case ("name", text) if text != "in":
                if self.take("("):
                    return Node("call", text, token.position, (None, *self.arguments(")")))
                return Node("name", text, token.position)
            case ("op", "("):
                node = self.expression()
                self.expect(")")
                return node
            case ("op", "["):
                return Node("list", "", token.position, tuple(self.arguments("]")))
            case ("op", "{"):
                return Node("map", "", token.position, tuple(self.entries()))
        self.at -= 1
        message = f"Syntax error: mismatched input '{token.text}' expecting {_EXPECTING}"
        raise self.error(token.position, message)

    def entries(self) -> list[Node]:
        result: list[Node] = []
        while not self.take("}"):
            if result:
                self.expect(",")
                if self.take("}"):
                    break
            result.append(self.expression())
            self.expect(":")
            result.append(self.expression())
        return result


def located(text: str, position: int, message: str) -> str:
    """A compile error with its line and a mark below it."""
    before = text[:position]
    line, column = before.count("\n"), position - (before.rfind("\n") + 1)
    shown = (text.split("\n") or [""])[line]
    return f"ERROR: <input>:{line + 1}:{column + 1}: {message}\n | {shown}\n | {'.' * column}^"


_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-3][0-7]{2}|.)", re.DOTALL)


def _unquote(token: str) -> str | bytes:
    start = min(index for index in (token.find('"'), token.find("'")) if index >= 0)
    prefix, quoted = token[:start].lower(), token[start:]
    size = 3 if quoted[:3] in ('"""', "'''") else 1
    body = quoted[size:-size]
    if "r" not in prefix:
        body = _ESCAPE.sub(_unescape, body)
    return body.encode() if "b" in prefix else body


def _unescape(found: re.Match[str]) -> str:
    text = found[1]
    if text[0] in "xuU" and len(text) > 1:
        return chr(int(text[1:], 16))
    if text.isdigit() and len(text) == 3:
        return chr(int(text, 8))
    return _ESCAPES.get(text, text)


def parse(text: str) -> Node:
    """Read an expression; raises CelError."""
    return _Parser(text).parse()
