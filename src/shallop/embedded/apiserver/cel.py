"""
A small CEL (Common Expression Language) compiler: expressions of ``x-kubernetes-validations`` to Python closures.

- ``compile_expression(text, variables) -> Program``: ``variables`` maps names to ``Type``; raises ``CelError`` with the
  position, as the real server words it.
- ``Program.type -> Type`` and ``Program.variables -> frozenset[str]`` (the names it uses).
- ``Program.evaluate(**values) -> Any``: raises ``CelError`` for what goes wrong at run time ("division by zero").
- ``schema_type(schema) -> Type``, ``to_cel(type, value)``: how JSON of a schema looks to an expression (a string of
  format "duration" is a Duration, "date-time" a datetime).

Covers the language, its macros and the string, list, regular-expression and optional functions; not quantity, url, ip
and cidr. Source: CEL language definition; Kubernetes "Common Expression Language in Kubernetes".
"""

from __future__ import annotations

import base64
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from shallop.embedded.apiserver.formats import go_regex, parse_duration, parse_timestamp


class CelError(Exception):
    """An expression that does not compile, or failed on a value."""


class SchemaNode(Protocol):
    """What is read of a schema node (``schema.Schema``)."""

    type: str
    int_or_string: bool
    embedded: bool

    @property
    def properties(self) -> Mapping[str, Any]: ...
    @property
    def additional(self) -> Any: ...
    @property
    def items(self) -> Any: ...
    @property
    def source(self) -> Mapping[str, Any]: ...


class Type(NamedTuple):
    """A static type; ``args`` of list, map and optional; ``fields`` of an object."""

    name: str
    args: tuple[Type, ...] = ()
    fields: Mapping[str, Type] | None = None

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})" if self.args else self.name


DYN, INT, DOUBLE, STRING, BOOL, BYTES, NULL = map(
    Type, ("dyn", "int", "double", "string", "bool", "bytes", "null_type")
)
DURATION, TIMESTAMP, TYPE = Type("duration"), Type("timestamp"), Type("type")


class Duration(int):
    """A span of time in nanoseconds."""


class Optional(NamedTuple):
    """CEL's optional value."""

    present: bool
    held: Any = None


# ---- Schemas as types

_SCALARS = {"string": STRING, "integer": INT, "number": DOUBLE, "boolean": BOOL}
_FORMATS = {"duration": DURATION, "date-time": TIMESTAMP, "date": TIMESTAMP, "byte": BYTES}


def schema_type(schema: SchemaNode, *, root: bool = False) -> Type:
    if schema.int_or_string:
        return DYN
    if schema.type == "array":
        return Type("list", (schema_type(schema.items) if schema.items else DYN,))
    if schema.type == "object":
        if schema.additional is not None and not schema.properties:
            return Type("map", (STRING, schema_type(schema.additional)))
        fields = {name: schema_type(child) for name, child in schema.properties.items() if not (root and name in _META)}
        if root or schema.embedded:
            fields |= _META
        return Type("object", (), fields) if fields else DYN
    if schema.type == "string" and schema.source.get("format") in _FORMATS:
        return _FORMATS[schema.source["format"]]
    return _SCALARS.get(schema.type, DYN)


_META: Mapping[str, Type] = {
    "apiVersion": STRING,
    "kind": STRING,
    "metadata": Type("object", (), {"name": STRING, "generateName": STRING}),
}


def to_cel(kind: Type, value: Any) -> Any:
    """A JSON value as an expression sees it; containers convert their parts when those are read."""
    if value is None or type(value) is not str:
        return float(value) if kind is DOUBLE and type(value) is int else value
    if kind is DURATION:
        return _duration(value)
    if kind is TIMESTAMP:
        return _timestamp(value if "T" in value.upper() else value + "T00:00:00Z")
    return base64.b64decode(value) if kind is BYTES else value


def _duration(text: str) -> Duration:
    try:
        return Duration(parse_duration(text))
    except ValueError as error:
        raise CelError(str(error)) from error


def _timestamp(text: str) -> datetime:
    try:
        return parse_timestamp(text)
    except ValueError as error:
        raise CelError(str(error)) from error


# ---- Reading

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
    None, then arguments), list, map (children: keys and values in turn), unary, binary, ternary.
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
        while token := self.take(".", ".?", "[", "[?"):
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
                return Node("const", "", token.position, (), int(text.rstrip("uU"), 0))
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


# ---- Compiling

Code = Callable[[list[Any]], Any]


class Program:
    """A compiled expression."""

    def __init__(self, code: Code, type: Type, slots: Mapping[str, int], size: int, used: frozenset[str]) -> None:
        self._code = code
        self._slots = slots
        self._size = size
        self.type = type
        self.variables = used

    def evaluate(self, /, **values: Any) -> Any:
        environment: list[Any] = [None] * self._size
        for name, value in values.items():
            environment[self._slots[name]] = value
        try:
            return self._code(environment)
        except (TypeError, AttributeError) as error:
            # Values of dynamic type meet an operator that has no overload for them.
            raise CelError("no such overload") from error
        except RecursionError as error:
            raise CelError("expression is nested too deeply") from error


def compile_expression(text: str, variables: Mapping[str, Type]) -> Program:
    try:
        tree = _Parser(text).parse()
        compiler = _Compiler(text, variables)
        code, kind = compiler.compile(tree)
    except RecursionError as error:
        raise CelError("ERROR: <input>:1:1: expression is nested too deeply") from error
    slots = {name: index for index, name in enumerate(variables)}
    return Program(code, kind, slots, compiler.size, frozenset(compiler.used))


_MACROS = ("all", "exists", "exists_one", "existsOne", "map", "filter")
_ESCAPED = {"__underscores__": "__", "__dot__": ".", "__dash__": "-", "__slash__": "/"}


def _property_name(name: str) -> str:
    """Undo the escaping of property names that are no CEL identifiers."""
    if name.startswith("__") and name.endswith("__") and len(name) > 4 and name not in _ESCAPED:
        return name[2:-2]
    for escaped, plain in _ESCAPED.items():
        name = name.replace(escaped, plain)
    return name


class _Compiler:
    def __init__(self, text: str, variables: Mapping[str, Type]) -> None:
        self.text = text
        self.scope = {name: (index, kind) for index, (name, kind) in enumerate(variables.items())}
        self.size = len(variables)
        self.used: set[str] = set()

    def error(self, node: Node, message: str) -> CelError:
        return CelError(located(self.text, node.position, message))

    def compile(self, node: Node) -> tuple[Code, Type]:
        compiled: tuple[Code, Type] = getattr(self, f"_{node.kind}")(node)
        return compiled

    def _const(self, node: Node) -> tuple[Code, Type]:
        value = node.value
        kinds = {bool: BOOL, int: INT, float: DOUBLE, str: STRING, bytes: BYTES}
        return lambda _env: value, kinds.get(type(value), NULL)

    def _name(self, node: Node) -> tuple[Code, Type]:
        if node.text in self.scope:
            index, kind = self.scope[node.text]
            self.used.add(node.text)
            return lambda env: env[index], kind
        if node.text in _TYPE_NAMES:
            name = node.text
            return lambda _env: _TypeName(name), TYPE
        raise self.error(node, f"undeclared reference to '{node.text}' (in container '')")

    def _select(self, node: Node) -> tuple[Code, Type]:
        code, kind = self.compile(node.children[0])
        name, kind = self._field(node, kind)
        return _get_field(code, name, kind), kind

    def _field(self, node: Node, kind: Type) -> tuple[str, Type]:
        """The JSON name and the type of a selected field."""
        if kind.name == "optional":
            kind = kind.args[0]
        if kind.name == "object":
            name = _property_name(node.text)
            if kind.fields is None or name not in kind.fields:
                raise self.error(node, f"undefined field '{node.text}'")
            return name, kind.fields[name]
        if kind.name == "map":
            return node.text, kind.args[1]
        if kind is DYN:
            return node.text, DYN
        raise self.error(node, f"type '{kind}' does not support field selection")

    def _optselect(self, node: Node) -> tuple[Code, Type]:
        code, kind = self.compile(node.children[0])
        name, kind = self._field(node, kind)
        return _get_optional(code, lambda _env: name, kind), Type("optional", (kind,))

    def _index(self, node: Node) -> tuple[Code, Type]:
        container, kind = self.compile(node.children[0])
        index, _ = self.compile(node.children[1])
        item = self._item(node, kind)
        return lambda env: to_cel(item, _at(container(env), index(env))), item

    def _optindex(self, node: Node) -> tuple[Code, Type]:
        container, kind = self.compile(node.children[0])
        index, _ = self.compile(node.children[1])
        item = self._item(node, kind)
        return _get_optional(container, index, item), Type("optional", (item,))

    def _item(self, node: Node, kind: Type) -> Type:
        if kind.name in ("list", "map"):
            return kind.args[-1]
        if kind is DYN or kind.name == "optional":
            return DYN
        raise self.error(node, f"found no matching overload for '_[_]' applied to '({kind}, ...)'")

    def _list(self, node: Node) -> tuple[Code, Type]:
        codes, kinds = self._each(node.children)
        return lambda env: [code(env) for code in codes], Type("list", (_common(kinds),))

    def _map(self, node: Node) -> tuple[Code, Type]:
        keys, key_kinds = self._each(node.children[::2])
        values, kinds = self._each(node.children[1::2])
        pairs = list(zip(keys, values, strict=True))
        kind = Type("map", (_common(key_kinds), _common(kinds)))
        return lambda env: {key(env): value(env) for key, value in pairs}, kind

    def _each(self, nodes: Sequence[Node]) -> tuple[list[Code], list[Type]]:
        compiled = [self.compile(node) for node in nodes]
        return [code for code, _ in compiled], [kind for _, kind in compiled]

    def _unary(self, node: Node) -> tuple[Code, Type]:
        code, kind = self.compile(node.children[0])
        if node.text == "!":
            self._need(node, "!_", [kind], kind in (BOOL, DYN))
            return lambda env: not _bool(code(env)), BOOL
        self._need(node, "-_", [kind], kind in (INT, DOUBLE, DYN, DURATION))
        return lambda env: -code(env), kind

    def _need(self, node: Node, name: str, kinds: Sequence[Type], fine: bool) -> None:
        if not fine:
            shown = ", ".join(map(str, kinds))
            raise self.error(node, f"found no matching overload for '{name}' applied to '({shown})'")

    def _ternary(self, node: Node) -> tuple[Code, Type]:
        (test, then, other), kinds = self._each(node.children)
        self._need(node, "_?_:_", kinds, kinds[0] in (BOOL, DYN) and _fits(kinds[1], kinds[2]))
        return lambda env: then(env) if _bool(test(env)) else other(env), _common(kinds[1:])

    def _binary(self, node: Node) -> tuple[Code, Type]:
        (left, right), kinds = self._each(node.children)
        name = node.text
        if name in ("&&", "||"):
            self._need(node, f"_{name}_", kinds, all(kind in (BOOL, DYN) for kind in kinds))
            return _logical(left, right, stop=name == "||"), BOOL
        result = _binary_type(name, kinds[0], kinds[1])
        self._need(node, "@in" if name == "in" else f"_{name}_", kinds, result is not None)
        function = _OPERATORS[name]
        return lambda env: function(left(env), right(env)), result or DYN

    def _call(self, node: Node) -> tuple[Code, Type]:
        target, arguments = node.children[0], node.children[1:]
        if node.text == "has" and target is None:
            return self._has(node)
        if node.text in _MACROS and target is not None and len(arguments) in (2, 3):
            return self._macro(node)
        if target is not None and target.kind == "name" and target.text == "optional" and "optional" not in self.scope:
            return self._optional_constructor(node)
        if node.text in ("optMap", "optFlatMap") and target is not None and len(arguments) == 2:
            return self._opt_map(node)
        parts = arguments if target is None else (target, *arguments)
        codes, kinds = self._each(parts)
        table = _FUNCTIONS if target is None else _METHODS
        if node.text not in table:
            raise self.error(node, f"undeclared reference to '{node.text}' (in container '')")
        function, receivers, result = table[node.text]
        counts = range(
            function.__code__.co_argcount - len(function.__defaults__ or ()), function.__code__.co_argcount + 1
        )
        fine = len(parts) in counts and (kinds[0].name in receivers or kinds[0] is DYN or not receivers)
        self._need(node, node.text, kinds, fine)
        kind = result(kinds[0]) if callable(result) else result
        if len(codes) == 1:
            only = codes[0]
            return lambda env: function(only(env)), kind
        return lambda env: function(*[code(env) for code in codes]), kind

    def _has(self, node: Node) -> tuple[Code, Type]:
        if len(node.children) != 2 or node.children[1].kind != "select":
            raise self.error(node, "invalid argument to has() macro")
        select = node.children[1]
        code, kind = self.compile(select.children[0])
        name, _ = self._field(select, kind)
        return lambda env: _has_field(code(env), name), BOOL

    def _optional_constructor(self, node: Node) -> tuple[Code, Type]:
        codes, kinds = self._each(node.children[1:])
        if node.text == "none" and not codes:
            return lambda _env: Optional(False), Type("optional", (DYN,))
        if node.text in ("of", "ofNonZeroValue") and len(codes) == 1:
            code = codes[0]
            return lambda env: Optional(True, code(env)), Type("optional", (kinds[0],))
        raise self.error(node, f"undeclared reference to 'optional.{node.text}' (in container '')")

    def _opt_map(self, node: Node) -> tuple[Code, Type]:
        target, kind = self.compile(node.children[0])
        held = kind.args[0] if kind.name == "optional" else DYN
        slot, body, body_kind = self._with_variable(node.children[1], held, node.children[2])
        flat = node.text == "optFlatMap"

        def code(env: list[Any]) -> Optional:
            value: Optional = target(env)
            if not value.present:
                return value
            env[slot] = value.held
            result: Any = body(env)
            return result if flat else Optional(True, result)

        return code, body_kind if flat else Type("optional", (body_kind,))

    def _with_variable(self, variable: Node, kind: Type, body: Node) -> tuple[int, Code, Type]:
        """Compile ``body`` where a macro's variable is known; the slot is where its value goes."""
        if variable.kind != "name":
            raise self.error(variable, "argument must be a simple name")
        slot, self.size = self.size, self.size + 1
        hidden = self.scope.get(variable.text)
        self.scope[variable.text] = (slot, kind)
        code, body_kind = self.compile(body)
        if hidden is None:
            del self.scope[variable.text]
        else:
            self.scope[variable.text] = hidden
        return slot, code, body_kind

    def _macro(self, node: Node) -> tuple[Code, Type]:
        target, *arguments = node.children
        container, kind = self.compile(target)
        if kind.name not in ("list", "map") and kind is not DYN:
            raise self.error(target, f"expression of type '{kind}' cannot be range of a comprehension")
        item = DYN if kind is DYN else kind.args[0]
        slot, body, body_kind = self._with_variable(arguments[0], item, arguments[-1])
        test: Code | None = None
        if node.text == "map":
            if len(arguments) == 3:
                test_slot, test, _ = self._with_variable(arguments[0], item, arguments[1])
                slot_of_test = test_slot
            else:
                slot_of_test = slot
            return _map_macro(container, item, (slot, slot_of_test), test, body), Type("list", (body_kind,))
        if len(arguments) != 2:
            raise self.error(node, f"{node.text}() takes a variable and a condition")
        self._need(node, node.text, [body_kind], body_kind in (BOOL, DYN))
        if node.text == "filter":
            return _filter_macro(container, item, slot, body), Type("list", (item,))
        return _quantifier(node.text, container, item, slot, body), BOOL


def _common(kinds: Sequence[Type]) -> Type:
    return kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else DYN


def _fits(left: Type, right: Type) -> bool:
    """Whether values of the two types may be compared; objects are maps."""
    if DYN in (left, right) or left == right or NULL in (left, right):
        return True
    if {left.name, right.name} <= {"object", "map"}:
        return True
    return left.name == right.name and all(map(_fits, left.args, right.args))


_ARITHMETIC: Mapping[tuple[str, str, str], Type] = {
    **{(op, "int", "int"): INT for op in ("+", "-", "*", "/", "%")},
    **{(op, "double", "double"): DOUBLE for op in ("+", "-", "*", "/")},
    ("+", "string", "string"): STRING,
    ("+", "bytes", "bytes"): BYTES,
    ("+", "duration", "duration"): DURATION,
    ("-", "duration", "duration"): DURATION,
    ("+", "timestamp", "duration"): TIMESTAMP,
    ("+", "duration", "timestamp"): TIMESTAMP,
    ("-", "timestamp", "duration"): TIMESTAMP,
    ("-", "timestamp", "timestamp"): DURATION,
}
_ORDERED = {"int", "double", "string", "bool", "bytes", "duration", "timestamp"}


def _binary_type(name: str, left: Type, right: Type) -> Type | None:
    """Type of the result, None where there is no such operator."""
    if name in ("==", "!="):
        return BOOL if _fits(left, right) else None
    if name == "in":
        if right is DYN:
            return BOOL
        return BOOL if right.name in ("list", "map") and _fits(left, right.args[0]) else None
    if name in ("<", "<=", ">", ">="):
        comparable = left == right or DYN in (left, right) or {left, right} == {INT, DOUBLE}
        return BOOL if comparable and all(kind.name in _ORDERED or kind is DYN for kind in (left, right)) else None
    if DYN in (left, right):
        return DYN
    if name == "+" and left.name == right.name == "list":
        return Type("list", (_common((left.args[0], right.args[0])),))
    return _ARITHMETIC.get((name, left.name, right.name))


# ---- Evaluating


class _TypeName(str):
    """A type as a value: ``type(self) == int``."""


_TYPE_NAMES = {
    *("bool", "bytes", "double", "duration", "int", "list", "map", "null_type", "string", "timestamp", "type", "uint"),
}


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise CelError("no such overload")
    return value


def _get_field(code: Code, name: str, kind: Type) -> Code:
    def get(env: list[Any]) -> Any:
        value = code(env)
        if isinstance(value, Optional):
            return _optional_get(value, name, kind)
        if type(value) is not dict:
            raise CelError("no such overload")
        if name not in value:
            raise CelError(f"no such key: {name}")
        return to_cel(kind, value[name])

    def get_plain(env: list[Any]) -> Any:
        try:
            return code(env)[name]
        except (KeyError, TypeError):
            return get(env)

    return get if kind in (DURATION, TIMESTAMP, BYTES, DOUBLE) else get_plain


def _optional_get(value: Any, key: Any, kind: Type) -> Optional:
    if isinstance(value, Optional):
        if not value.present:
            return value
        value = value.held
    if isinstance(value, list):
        return Optional(True, to_cel(kind, value[key])) if 0 <= key < len(value) else Optional(False)
    return Optional(True, to_cel(kind, value[key])) if key in value else Optional(False)


def _get_optional(container: Code, key: Code, kind: Type) -> Code:
    return lambda env: _optional_get(container(env), key(env), kind)


def _has_field(value: Any, name: str) -> bool:
    if isinstance(value, Optional):
        value = value.held if value.present else {}
    return name in value and value[name] is not None


def _at(container: Any, index: Any) -> Any:
    if isinstance(container, list):
        if type(index) is float and index.is_integer():
            index = int(index)
        if type(index) is not int or not 0 <= index < len(container):
            raise CelError(f"index out of bounds: {index}")
        return container[index]
    if isinstance(container, dict):
        if index not in container:
            raise CelError(f"no such key: {index}")
        return container[index]
    raise CelError("no such overload")


def _logical(left: Code, right: Code, *, stop: bool) -> Code:
    """``&&`` and ``||``: one side that decides wins over an error on the other."""

    def code(env: list[Any]) -> bool:
        try:
            value = _bool(left(env))
        except (CelError, TypeError) as error:
            if _bool(right(env)) is stop:
                return stop
            raise error
        return value if value is stop else _bool(right(env))

    return code


def _items(container: Any, kind: Type) -> list[Any]:
    if isinstance(container, dict):
        return list(container)
    if isinstance(container, list):
        return [to_cel(kind, item) for item in container] if kind in (DURATION, TIMESTAMP, BYTES) else container
    raise CelError("no such overload")


def _quantifier(name: str, container: Code, kind: Type, slot: int, body: Code) -> Code:
    def every(env: list[Any]) -> bool:
        return not _any(_items(container(env), kind), env, wanted=False)

    def some(env: list[Any]) -> bool:
        return _any(_items(container(env), kind), env, wanted=True)

    def one(env: list[Any]) -> bool:
        count = 0
        for item in _items(container(env), kind):
            env[slot] = item
            count += _bool(body(env))
        return count == 1

    def _any(items: list[Any], env: list[Any], *, wanted: bool) -> bool:
        failed = None
        for item in items:
            env[slot] = item
            try:
                if _bool(body(env)) is wanted:
                    return True
            except CelError as error:
                failed = error
        if failed is not None:
            raise failed
        return False

    return {"all": every, "exists": some}.get(name, one)


def _filter_macro(container: Code, kind: Type, slot: int, body: Code) -> Code:
    def code(env: list[Any]) -> list[Any]:
        result = []
        for item in _items(container(env), kind):
            env[slot] = item
            if _bool(body(env)):
                result.append(item)
        return result

    return code


def _map_macro(container: Code, kind: Type, slots: tuple[int, int], test: Code | None, body: Code) -> Code:
    def code(env: list[Any]) -> list[Any]:
        result = []
        for item in _items(container(env), kind):
            env[slots[0]] = env[slots[1]] = item
            if test is None or _bool(test(env)):
                result.append(body(env))
        return result

    return code


def equal(left: Any, right: Any) -> bool:
    """Equality of CEL: numbers by value, everything else only within its type."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, Duration) is not isinstance(right, Duration):
        return False
    return bool(left == right)


def _member(item: Any, container: Any) -> bool:
    if isinstance(container, dict):
        return item in container
    return any(equal(item, other) for other in container)


def _divide(left: Any, right: Any) -> Any:
    if isinstance(left, float):
        return left / right if right else float("nan") if not left else float("inf") * left
    if right == 0:
        raise CelError("division by zero")
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) is (right < 0) else -quotient


def _modulo(left: Any, right: Any) -> Any:
    if right == 0:
        raise CelError("modulus by zero")
    remainder = abs(left) % abs(right)
    return -remainder if left < 0 else remainder


def _checked(value: Any) -> Any:
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise CelError("integer overflow")
    return value


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, datetime):
        return left + _span(right)
    if isinstance(right, datetime):
        return right + _span(left)
    if isinstance(left, Duration):
        return Duration(int(left) + int(right))
    return _checked(left + right)


def _subtract(left: Any, right: Any) -> Any:
    if isinstance(left, datetime):
        if not isinstance(right, datetime):
            return left - _span(right)
        return Duration((left - right) // timedelta(microseconds=1) * 1000)
    if isinstance(left, Duration):
        return Duration(int(left) - int(right))
    return _checked(left - right)


def _span(duration: int) -> timedelta:
    return timedelta(microseconds=duration / 1000)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def code(left: Any, right: Any) -> bool:
        if isinstance(left, bool) is not isinstance(right, bool):
            raise CelError("no such overload")
        return compare(left, right)

    return code


_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": equal,
    "!=": lambda left, right: not equal(left, right),
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
    "in": _member,
    "+": _add,
    "-": _subtract,
    "*": lambda left, right: _checked(left * right),
    "/": _divide,
    "%": _modulo,
}


# ---- Functions: name -> (function, types its first argument may have, type of the result)


def _to_int(value: Any) -> int:
    if isinstance(value, datetime):
        return int(value.timestamp())
    try:
        return int(value)
    except (ValueError, OverflowError) as error:
        raise CelError(f"cannot convert {value!r} to int") from error


def _to_double(value: Any) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise CelError(f"cannot convert {value!r} to double") from error


def _to_string(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Duration():
            return f"{value / 10**9:g}s"
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case bytes():
            return value.decode()
        case float() if value.is_integer():
            return str(int(value))
    return str(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "True", "TRUE", "t", "1"):
        return True
    if value in ("false", "False", "FALSE", "f", "0"):
        return False
    raise CelError(f"cannot convert {value!r} to bool")


def _to_duration(value: Any) -> Duration:
    return value if isinstance(value, Duration) else _duration(value)


def _to_timestamp(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int) else _timestamp(value)


def _type_of(value: Any) -> _TypeName:
    if isinstance(value, Duration):
        return _TypeName("duration")
    if isinstance(value, datetime):
        return _TypeName("timestamp")
    if isinstance(value, _TypeName):
        return _TypeName("type")
    names = {bool: "bool", int: "int", float: "double", str: "string", bytes: "bytes", list: "list", dict: "map"}
    return _TypeName(names.get(type(value), "null_type"))


def _matches(text: str, pattern: str) -> bool:
    try:
        return go_regex(pattern).search(text) is not None
    except ValueError as error:
        raise CelError(str(error)) from error


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match[0] for match in go_regex(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


def _split(text: str, separator: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if separator == "":
        return list(text) if limit < 0 else [*text[: limit - 1], text[limit - 1 :]]
    return text.split(separator, limit - 1 if limit > 0 else -1)


def _char_at(text: str, index: int) -> str:
    if not 0 <= index <= len(text):
        raise CelError(f"index out of range: {index}")
    return text[index : index + 1]


def _substring(text: str, start: int, end: int = -1) -> str:
    end = len(text) if end == -1 else end
    if not 0 <= start <= end <= len(text):
        raise CelError(f"index out of range: {start}")
    return text[start:end]


def _index_of(container: Any, wanted: Any, start: int = 0) -> int:
    if isinstance(container, str):
        return container.find(wanted, start)
    return next((index for index, item in enumerate(container) if equal(item, wanted)), -1)


def _last_index_of(container: Any, wanted: Any) -> int:
    if isinstance(container, str):
        return container.rfind(wanted)
    return max((index for index, item in enumerate(container) if equal(item, wanted)), default=-1)


def _extreme(choose: Callable[[list[Any]], Any], name: str) -> Callable[[Any], Any]:
    def function(items: Any) -> Any:
        if not items:
            raise CelError(f"{name} called on empty list")
        return choose(items)

    return function


def _optional_value(optional: Any) -> Any:
    if not optional.present:
        raise CelError("optional.none() dereference")
    return optional.held


def _held(kind: Type) -> Type:
    return kind.args[0] if kind.args else DYN


def _part(name: str, shift: int = 0) -> Callable[..., Any]:
    def function(time: Any, zone: str = "UTC") -> Any:
        if isinstance(time, Duration):
            units = {"hour": 3600 * 10**9, "minute": 60 * 10**9, "second": 10**9, "millisecond": 10**6}
            return int(time) // units[name]
        local = time.astimezone(ZoneInfo(zone))
        if name == "weekday":
            return (local.weekday() + 1) % 7
        if name == "yearday":
            return int(local.timetuple().tm_yday) - 1
        if name == "millisecond":
            return int(local.microsecond) // 1000
        return int(getattr(local, name)) + shift

    return function


_Function = tuple[Any, tuple[str, ...], Type | Callable[[Type], Type]]
_SIZED = ("string", "bytes", "list", "map")
_FUNCTIONS: Mapping[str, _Function] = {
    "size": (lambda value: len(value), _SIZED, INT),  # noqa: PLW0108 (calls need a Python signature)
    "int": (_to_int, ("int", "double", "string", "timestamp", "duration"), INT),
    "uint": (_to_int, ("int", "double", "string"), INT),
    "double": (_to_double, ("int", "double", "string"), DOUBLE),
    "string": (_to_string, ("int", "double", "string", "bool", "bytes", "timestamp", "duration"), STRING),
    "bool": (_to_bool, ("bool", "string"), BOOL),
    "bytes": (lambda value: value.encode() if isinstance(value, str) else value, ("string", "bytes"), BYTES),
    "duration": (_to_duration, ("string", "duration"), DURATION),
    "timestamp": (_to_timestamp, ("string", "int", "timestamp"), TIMESTAMP),
    "type": (_type_of, (), TYPE),
    "dyn": (lambda value: value, (), DYN),
    "matches": (_matches, ("string",), BOOL),
}
_METHODS: Mapping[str, _Function] = {
    "size": _FUNCTIONS["size"],
    "matches": _FUNCTIONS["matches"],
    "contains": (lambda text, part: part in text, ("string",), BOOL),
    "startsWith": (lambda text, part: text.startswith(part), ("string",), BOOL),
    "endsWith": (lambda text, part: text.endswith(part), ("string",), BOOL),
    "lowerAscii": (lambda text: text.lower(), ("string",), STRING),
    "upperAscii": (lambda text: text.upper(), ("string",), STRING),
    "trim": (lambda text: text.strip(), ("string",), STRING),
    "reverse": (lambda value: value[::-1], ("string", "list"), lambda kind: kind),
    "replace": (lambda text, old, new, count=-1: text.replace(old, new, count), ("string",), STRING),
    "split": (_split, ("string",), Type("list", (STRING,))),
    "join": (lambda items, separator="": separator.join(items), ("list",), STRING),
    "substring": (_substring, ("string",), STRING),
    "charAt": (_char_at, ("string",), STRING),
    "indexOf": (_index_of, ("string", "list"), INT),
    "lastIndexOf": (_last_index_of, ("string", "list"), INT),
    "find": (lambda text, pattern: (_find_all(text, pattern, 1) or [""])[0], ("string",), STRING),
    "findAll": (_find_all, ("string",), Type("list", (STRING,))),
    "isSorted": (lambda items: all(map(operator.le, items, items[1:])), ("list",), BOOL),
    "sum": (lambda items: sum(items), ("list",), _held),  # noqa: PLW0108
    "min": (_extreme(min, "min"), ("list",), _held),
    "max": (_extreme(max, "max"), ("list",), _held),
    "hasValue": (lambda optional: optional.present, ("optional",), BOOL),
    "value": (_optional_value, ("optional",), _held),
    "orValue": (lambda optional, other: optional.held if optional.present else other, ("optional",), _held),
    "or": (lambda optional, other: optional if optional.present else other, ("optional",), lambda kind: kind),
    "getFullYear": (_part("year"), ("timestamp",), INT),
    "getMonth": (_part("month", -1), ("timestamp",), INT),
    "getDate": (_part("day"), ("timestamp",), INT),
    "getDayOfMonth": (_part("day", -1), ("timestamp",), INT),
    "getDayOfWeek": (_part("weekday"), ("timestamp",), INT),
    "getDayOfYear": (_part("yearday"), ("timestamp",), INT),
    "getHours": (_part("hour"), ("timestamp", "duration"), INT),
    "getMinutes": (_part("minute"), ("timestamp", "duration"), INT),
    "getSeconds": (_part("second"), ("timestamp", "duration"), INT),
    "getMilliseconds": (_part("millisecond"), ("timestamp", "duration"), INT),
}
