"""
A small CEL (Common Expression Language) compiler: expressions of ``x-kubernetes-validations`` to Python closures.

- ``compile_expression(text, variables) -> Program``: ``variables`` maps names to ``Type``; raises ``CelError`` with the
  position, as the real server words it.
  ``structs`` names the types that it may build, such as ``Object`` with all that lies below (``Object.spec{...}``).
- ``Program.type -> Type`` and ``Program.variables -> frozenset[str]`` (the names it uses).
- ``Program.evaluate(**values) -> Any``: raises ``CelError`` for what goes wrong at run time ("division by zero").
- ``schema_type(schema) -> Type``, ``to_cel(type, value)``: how JSON of a schema looks to an expression (a string of
  format "duration" is a Duration, "date-time" a datetime).

Covers the language, its macros and the functions on strings, lists, sets, regular expressions, optionals, quantities,
addresses and URLs; not named formats, versions and macros of two variables.
Source: CEL language definition; Kubernetes "Common Expression Language in Kubernetes".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shallop.embedded.apiserver import cel_authorizer, cel_kubernetes
from shallop.embedded.apiserver.cel_functions import FUNCTIONS, METHODS, OPERATORS, TYPE_NAMES, TypeName
from shallop.embedded.apiserver.cel_syntax import Node, located, parse
from shallop.embedded.apiserver.cel_types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    NULL,
    STRING,
    TIMESTAMP,
    TYPE,
    CelError,
    Duration,
    Optional,
    Type,
    schema_type,
    to_cel,
)

__all__ = [
    "BOOL",
    "DYN",
    "STRING",
    "CelError",
    "Duration",
    "Optional",
    "Program",
    "Type",
    "compile_expression",
    "schema_type",
    "to_cel",
]

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
        except (ValueError, LookupError, ArithmeticError) as error:
            raise CelError(str(error)) from error
        except RecursionError as error:
            raise CelError("expression is nested too deeply") from error


def compile_expression(text: str, variables: Mapping[str, Type], structs: tuple[str, ...] = ()) -> Program:
    try:
        tree = parse(text)
        compiler = _Compiler(text, variables, structs)
        code, kind = compiler.compile(tree)
    except RecursionError as error:
        raise CelError("ERROR: <input>:1:1: expression is nested too deeply") from error
    slots = {name: index for index, name in enumerate(variables)}
    return Program(code, kind, slots, compiler.size, frozenset(compiler.used))


_FUNCTIONS = {**FUNCTIONS, **cel_kubernetes.FUNCTIONS}
_METHODS = {**METHODS, **cel_kubernetes.METHODS, **cel_authorizer.METHODS}
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
    def __init__(self, text: str, variables: Mapping[str, Type], structs: tuple[str, ...] = ()) -> None:
        self.text = text
        self.structs = structs
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
        if node.text in TYPE_NAMES:
            name = node.text
            return lambda _env: TypeName(name), TYPE
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

    def _struct(self, node: Node) -> tuple[Code, Type]:
        root = node.text.partition(".")[0]
        if root not in self.structs:
            raise self.error(node, f"undeclared reference to '{node.text}' (in container '')")
        codes, kinds = self._each(node.children)
        fields = [(_property_name(name), optional) for name, optional in node.value]
        for (name, _), kind in zip(node.value, kinds, strict=True):
            inner = kind.args[0] if kind.args else kind
            wanted = f"{node.text}.{name}"
            if inner.name.partition(".")[0] in self.structs and root == "Object" and inner.name != wanted:
                why = "which matches field name path from root Object type"
                raise self.error(node, f'unexpected type name "{inner.name}", expected "{wanted}", {why}')
        parts = [(name, optional, code) for (name, optional), code in zip(fields, codes, strict=True)]

        def build(env: list[Any]) -> dict[str, Any]:
            result = {}
            for name, optional, code in parts:
                value = code(env)
                if optional:
                    if not isinstance(value, Optional):
                        raise CelError("no such overload")
                    if not value.present:
                        continue
                    value = value.held
                result[name] = value
            return result

        return build, Type(node.text)

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
        function = OPERATORS[name]
        return lambda env: function(left(env), right(env)), result or DYN

    def _call(self, node: Node) -> tuple[Code, Type]:
        target, arguments = node.children[0], node.children[1:]
        if node.text == "has" and target is None:
            return self._has(node)
        if node.text in _MACROS and target is not None and len(arguments) in (2, 3):
            return self._macro(node)
        if target is not None and target.kind == "name" and target.text == "optional" and "optional" not in self.scope:
            return self._optional_constructor(node)
        if node.text == "escapeKey" and target is not None and target.kind == "name" and target.text == "jsonpatch":
            return self._escape_key(node)
        if node.text in ("optMap", "optFlatMap") and target is not None and len(arguments) == 2:
            return self._opt_map(node)
        qualified = f"{target.text}.{node.text}" if target is not None and target.kind == "name" else ""
        if qualified in cel_kubernetes.QUALIFIED and qualified.partition(".")[0] not in self.scope:
            target, table = None, {node.text: cel_kubernetes.QUALIFIED[qualified]}
        else:
            table = _FUNCTIONS if target is None else _METHODS
        parts = arguments if target is None else (target, *arguments)
        codes, kinds = self._each(parts)
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

    def _escape_key(self, node: Node) -> tuple[Code, Type]:
        codes, kinds = self._each(node.children[1:])
        self._need(node, "jsonpatch.escapeKey", kinds, len(kinds) == 1 and kinds[0] in (STRING, DYN))
        code = codes[0]
        return lambda env: code(env).replace("~", "~0").replace("/", "~1"), STRING

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


# What evaluating a part may raise; Program.evaluate turns all of it into CelError.
_FAILURES = (CelError, TypeError, AttributeError, ValueError, LookupError, ArithmeticError)


def _logical(left: Code, right: Code, *, stop: bool) -> Code:
    """``&&`` and ``||``: one side that decides wins over an error on the other."""

    def code(env: list[Any]) -> bool:
        try:
            value = _bool(left(env))
        except _FAILURES as error:
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
        failed: Exception | None = None
        for item in items:
            env[slot] = item
            try:
                if _bool(body(env)) is wanted:
                    return True
            except _FAILURES as error:
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
