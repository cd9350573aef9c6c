"""The CEL subset: values, types, errors and their positions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.apiserver.cel import DYN, CelError, Duration, compile_expression, schema_type
from shallop.embedded.apiserver.rules import compile_rules
from shallop.embedded.apiserver.schema import MISSING, parse_schema

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "s": {"type": "string"},
        "b": {"type": "boolean"},
        "dur": {"type": "string", "format": "duration"},
        "at": {"type": "string", "format": "date-time"},
        "list": {"type": "array", "items": {"type": "string"}},
        "times": {"type": "array", "items": {"type": "string", "format": "duration"}},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "ios": {"x-kubernetes-int-or-string": True},
        "obj": {"type": "object", "properties": {"k": {"type": "string"}, "dash-ed": {"type": "string"}}},
        "namespace": {"type": "string"},
    },
}
VALUE: dict[str, Any] = {
    "n": 7,
    "x": 2,
    "s": "hello",
    "b": True,
    "dur": "90m",
    "at": "2024-02-29T12:00:00Z",
    "list": ["a", "b", "c"],
    "times": ["1s", "2s"],
    "map": {"k": 1, "l": 2},
    "ios": "50%",
    "obj": {"k": "v", "dash-ed": "d"},
    "namespace": "ns",
}
SELF = schema_type(parse_schema(SCHEMA))


def evaluate(expression: str, value: Any = None) -> Any:
    return compile_expression(expression, {"self": SELF}).evaluate(**{"self": VALUE if value is None else value})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3 - 4 / 2", 5),
        ("-7 / 2", -3),
        ("-7 % 3", -1),
        ("7.0 / 2.0", 3.5),
        ("(1 + 2) * 3", 9),
        ("self.n > 5 ? 'big' : 'small'", "big"),
        ("self.x / 4.0", 0.5),
        ("'a' + \"b\" + r'\\n' + '\\n' + '''c'''", "ab\\n\nc"),
        ("self.n == 7 && self.s != 'x' || false", True),
        ("!self.b", False),
        ("has(self.n) && !has(self.obj.k) || has(self.map.k)", True),
        ("'b' in self.list", True),
        ("'zz' in self.map", False),
        ("3 in [1, 2, 3]", True),
        ("self.list[1]", "b"),
        ("self.map['l']", 2),
        ("self.map.k", 1),
        ("{'a': 1, 'b': 2}.b", 2),
        ("[1] + [2]", [1, 2]),
        ("size(self.s) + self.list.size() + size(self.map)", 10),
        ("self.list.all(e, e < 'd')", True),
        ("self.list.exists(e, e == 'b')", True),
        ("self.list.exists_one(e, e >= 'b')", False),
        ("self.list.filter(e, e != 'a').map(e, e + e)", ["bb", "cc"]),
        ("self.list.map(e, e > 'a', e)", ["b", "c"]),
        ("self.map.all(k, self.map[k] > 0)", True),
        ("self.list.exists(a, self.list.exists(b, a + b == 'bc'))", True),
        ("self.s.startsWith('he') && self.s.endsWith('lo') && self.s.contains('ll')", True),
        ("self.s.matches('^h.*o$') && matches(self.s, 'l+')", True),
        ("self.s.upperAscii() + self.s.substring(1, 3) + self.s.charAt(0)", "HELLOelh"),
        ("self.s.replace('l', 'L', 1)", "heLlo"),
        ("'a,b'.split(',')", ["a", "b"]),
        ("self.list.join('-')", "a-b-c"),
        ("self.s.indexOf('l') + self.list.lastIndexOf('c')", 4),
        ("self.dur < duration('2h') && self.dur == duration('1h30m')", True),
        ("self.dur + duration('30m') == duration('2h')", True),
        ("self.times.all(t, t < duration('3s'))", True),
        ("self.at > timestamp('2020-01-01T00:00:00Z')", True),
        ("self.at - timestamp('2024-02-28T12:00:00Z') == duration('24h')", True),
        ("self.at.getFullYear() + self.at.getMonth() + self.at.getDayOfMonth()", 2024 + 1 + 28),
        ("self.dur.getHours()", 1),
        ("type(self.n) == int && type(self.s) == string && type(self.list) == list", True),
        ("type(self.ios) == int ? self.ios < 10 : self.ios.endsWith('%')", True),
        ("int('12') + int(3.7) + int(self.x)", 17),
        ("double(self.n) / 2.0", 3.5),
        ("string(5) + string(true) + string(2.0)", "5true2"),
        ("self.obj.dash__dash__ed + self.__namespace__", "dns"),
        ("self.?n.orValue(0) + self.?x.hasValue() ? 1 : 0", None),
        ("self.?s.orValue('none')", "hello"),
        ("optional.none().orValue(3) + optional.of(4).value()", 7),
        ("self.list[?9].hasValue()", False),
        ("self.list.isSorted() && [3, 1].max() == 3 && [1, 2].sum() == 3", True),
        ("dyn(1) == 1.0", True),
        ("dyn(true) == dyn(1)", False),
        ("null == self.ios", False),
        ("0x10 + 1u", 17),
        ("true // a remark", True),
    ],
)
def test_expressions(expression: str, expected: Any) -> None:
    if expected is None:
        with pytest.raises(CelError, match="found no matching overload for '_\\+_'"):
            evaluate(expression)
    else:
        assert evaluate(expression) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1 / (self.n - 7)", "division by zero"),
        ("self.n % 0", "modulus by zero"),
        ("self.list[9]", "index out of bounds: 9"),
        ("self.map['none']", "no such key: none"),
        ("self.obj.k", "no such key: k"),
        ("duration('x')", "not a duration"),
        ("int('x')", "cannot convert"),
        ("dyn(1) + dyn('a')", "no such overload"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("optional.none().value()", "dereference"),
        ("[].max()", "max called on empty list"),
    ],
)
def test_what_goes_wrong_at_run_time_is_named(expression: str, message: str) -> None:
    with pytest.raises(CelError, match=message):
        evaluate(expression, {**VALUE, "obj": {}})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("false && 1 / 0 > 0", False),
        ("1 / 0 > 0 && false", False),
        ("true || 1 / 0 > 0", True),
        ("1 / 0 > 0 || true", True),
        ("self.list.exists(e, e == 'c' || self.list[9] == e)", True),
        ("self.list.all(e, e == 'a' && self.list[9] == e)", False),
        ("has(self.obj) && has(self.obj.k)", True),
    ],
)
def test_a_side_that_decides_hides_an_error_on_the_other(expression: str, expected: bool) -> None:
    assert evaluate(expression) is expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("self.nope", "ERROR: <input>:1:5: undefined field 'nope'\n | self.nope\n | ....^"),
        ("self.s == 5", "ERROR: <input>:1:8: found no matching overload for '_==_' applied to '(string, int)'"),
        ("self.n + 's'", "1:8: found no matching overload for '_\\+_' applied to '(int, string)'"),
        ("!self.n", "found no matching overload for '!_'"),
        ("self.n ? 1 : 2", "'_?_:_'"),
        ("self.n.startsWith('x')", "found no matching overload for 'startsWith'"),
        ("self.s.startsWith()", "found no matching overload for 'startsWith'"),
        ("nope", "undeclared reference to 'nope'"),
        ("frob(1)", "undeclared reference to 'frob'"),
        ("self.n.all(x, true)", "cannot be range of a comprehension"),
        ("self.list.all(x, 1)", "found no matching overload for 'all'"),
        ("self.list.all(x.y, true)", "must be a simple name"),
        ("has(self)", "invalid argument to has"),
        ("self.s ==", "1:10: Syntax error: mismatched input '<EOF>'"),
        ("self.s == 'x", "Syntax error: token recognition error"),
        ("(1", "Syntax error: mismatched input '<EOF>' expecting '\\)'"),
        ("1 2", "Syntax error: extraneous input '2'"),
        ("self.1", "Syntax error"),
        ("", "Syntax error"),
        ("true &&\n self.nope", "ERROR: <input>:2:6: undefined field 'nope'\n |  self.nope\n | .....\\^"),
    ],
)
def test_what_does_not_compile_is_shown_with_its_place(expression: str, message: str) -> None:
    with pytest.raises(CelError) as raised:
        evaluate(expression)
    assert message.replace("\\", "") in str(raised.value)


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    with pytest.raises(CelError, match="nested too deeply"):
        compile_expression("(" * 5000 + "1" + ")" * 5000, {})


@given(st.text(max_size=30))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    try:
        compile_expression(text, {"self": DYN})
    except CelError:
        pass


atoms = st.sampled_from(
    ["self", "1", "-2", "0", "1.5", "'a'", "true", "null", "[1, 'a']", "{'k': 1}", "duration('1s')"]
)
programs = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds(
            "({} {} {})".format, inner, st.sampled_from(["+", "-", "/", "%", "==", "<", "in", "&&", "||"]), inner
        ),
        st.builds("({} ? {} : {})".format, inner, inner, inner),
        st.builds("dyn({})".format, inner),
        st.builds("{}.{}({})".format, inner, st.sampled_from(["split", "indexOf", "charAt", "substring"]), inner),
        st.builds("{}.{}(x, {})".format, inner, st.sampled_from(["all", "exists", "map", "filter"]), inner),
        st.builds("{}({})".format, st.sampled_from(["size", "int", "string", "timestamp", "type"]), inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}.{}()".format, inner, st.sampled_from(["min", "sum", "isSorted", "getHours", "value", "trim"])),
    ),
    max_leaves=6,
)


@given(programs, st.sampled_from([1, "x", [1, "a"], {"k": 1}, None, True, 1.5]))
def test_any_program_answers_or_fails_with_a_reason(text: str, value: Any) -> None:
    try:
        compile_expression(text, {"self": DYN}).evaluate(**{"self": value})
    except CelError:
        pass


@given(st.integers(-1000, 1000), st.integers(-1000, 1000).filter(bool))
def test_division_truncates_and_agrees_with_the_remainder(left: int, right: int) -> None:
    arguments = {"a": left, "b": right}
    types = {"a": DYN, "b": DYN}
    quotient = compile_expression("a / b", types).evaluate(**arguments)
    remainder = compile_expression("a % b", types).evaluate(**arguments)
    assert quotient * right + remainder == left
    assert abs(remainder) < abs(right)


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_durations_add_up(left: int, right: int) -> None:
    program = compile_expression("a + b - b == a", {"a": DYN, "b": DYN})
    assert program.evaluate(a=Duration(left), b=Duration(right)) is True


# ---- rules on schemas


def complaints(schema: dict[str, Any], value: Any, old: Any = MISSING) -> list[str]:
    errors: list[Any] = []
    run = compile_rules(parse_schema(schema))
    assert run is not None
    run(value, old, "", errors)
    return [f"{error.field}: {error.message}" for error in errors]


def with_rule(schema: dict[str, Any], rule: str, **extra: Any) -> dict[str, Any]:
    return {**schema, "x-kubernetes-validations": [{"rule": rule, **extra}]}


def test_a_transition_rule_runs_on_updates_only() -> None:
    string = with_rule({"type": "string"}, "self == oldSelf", message="fixed")
    schema = {"type": "object", "properties": {"s": string}}
    assert complaints(schema, {"s": "a"}) == []
    assert complaints(schema, {"s": "b"}, {"s": "a"}) == ['s: Invalid value: "b": fixed']
    assert complaints(schema, {"s": "b"}, {}) == []


def test_items_of_a_keyed_list_know_their_old_selves() -> None:
    item = with_rule(
        {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}, "self.v >= oldSelf.v"
    )
    lists = {"type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}
    schema = {"type": "object", "properties": {"l": lists}}
    old = {"l": [{"k": "a", "v": 1}, {"k": "b", "v": 5}]}
    new = {"l": [{"k": "b", "v": 4}, {"k": "a", "v": 2}, {"k": "c", "v": 0}]}
    assert complaints(schema, new, old) == ["l[0]: Invalid value: failed rule: self.v >= oldSelf.v"]


def test_a_value_that_did_not_change_passes_a_new_rule() -> None:
    schema = {"type": "object", "properties": {"n": with_rule({"type": "integer"}, "self > 5")}}
    assert complaints(schema, {"n": 1}, {"n": 1}) == []
    assert complaints(schema, {"n": 2}, {"n": 1}) == ["n: Invalid value: 2: failed rule: self > 5"]


def test_a_broken_message_expression_falls_back_to_the_message() -> None:
    rule = with_rule({"type": "string"}, "false", message="plain", messageExpression="string(1 / 0)")
    schema = {"type": "object", "properties": {"s": rule}}
    assert complaints(schema, {"s": "x"}) == ['s: Invalid value: "x": plain']


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("quantity('1Gi') == quantity('1024Mi')", True),
        ("quantity('1.5').isLessThan(quantity('1500m').add(1))", True),
        ("quantity('2k').sub(quantity('1')).asInteger()", 1999),
        ("quantity('500m').isInteger()", False),
        ("quantity('500m').asApproximateFloat()", 0.5),
        ("[quantity('-1').sign(), quantity('0').sign(), quantity('1').compareTo(quantity('2'))]", [-1, 0, -1]),
        ("[isQuantity('1Ki'), isQuantity('a'), isQuantity('')]", [True, False, False]),
        ("ip('127.0.0.1').family()", 4),
        ("ip('::1').isLoopback() && ip('10.0.0.1').isGlobalUnicast()", True),
        ("[isIP('::ffff:1.2.3.4'), isIP('1.2.3'), isIP('fe80::1')]", [False, False, True]),
        ("[ip.isCanonical('2001:DB8::1'), ip.isCanonical('2001:db8::1')]", [False, True]),
        ("ip('224.0.0.5').isLinkLocalMulticast() && ip('169.254.1.1').isLinkLocalUnicast()", True),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3') && !cidr('10.0.0.0/8').containsIP(ip('::1'))", True),
        ("cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && !cidr('10.1.0.0/16').containsCIDR('10.0.0.0/8')", True),
        ("string(cidr('10.1.2.3/8').masked()) + ' ' + string(cidr('10.1.2.3/8').ip())", "10.0.0.0/8 10.1.2.3"),
        ("cidr('10.0.0.0/8').prefixLength()", 8),
        ("[isCIDR('10.0.0.0'), isCIDR('10.0.0.0/33'), isCIDR('::/0')]", [False, False, True]),
        ("url('https://a.b:80/p%20q?x=1&x=2').getHost()", "a.b:80"),
        ("url('https://[::1]:80/p').getHostname() + url('https://a/b?c').getPort()", "::1"),
        ("url('https://a/p%20q').getEscapedPath() + url('https://a').getScheme()", "/p%20qhttps"),
        ("url('https://a?x=1&x=2').getQuery()['x']", ["1", "2"]),
        ("[isURL('/a'), isURL('../a'), isURL('https://a:b'), isURL('https://a b')]", [True, False, False, False]),
        ("sets.contains([1, 2.0], [2, 1]) && !sets.contains([1], [true])", True),
        ("sets.equivalent([1, 1, 2], [2, 1]) && sets.intersects([1], [1, 2]) && !sets.intersects([], [1])", True),
        ("'%s has %d of %.1f, %x%%'.format([self.s, self.n, 2.56, 255])", "hello has 7 of 2.6, ff%"),
        ("'%s %s %s'.format([[1, 'a'], {'k': true}, null])", "[1, a] {k: true} null"),
    ],
)
def test_what_kubernetes_adds(expression: str, expected: Any) -> None:
    assert evaluate(expression) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("quantity('x') == quantity('1')", "quantities must match"),
        ("quantity('500m').asInteger() == 1", "cannot convert value to integer"),
        ("ip('x').family() == 4", "parse error"),
        ("cidr('10.0.0.0/8').containsIP('x')", "parse error"),
        ("url('x').getHost() == ''", "parse error"),
        ("'%d'.format(['a']) == ''", "needs an integer"),
        ("'%d'.format([]) == ''", "out of range"),
        ("'%q'.format([1]) == ''", "could not parse formatting clause"),
    ],
)
def test_what_kubernetes_adds_fails_with_a_reason(expression: str, message: str) -> None:
    with pytest.raises(CelError, match=message):
        evaluate(expression)


def test_what_is_of_another_type_is_no_quantity() -> None:
    for wrong in ("quantity(1)", "self.s.isInteger()", "quantity('1').family()", "sets.contains(1, [1])"):
        with pytest.raises(CelError, match="found no matching overload"):
            evaluate(wrong)
