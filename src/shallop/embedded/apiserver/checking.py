"""Compile a schema to a validator: a fast yes or no, and a slow report in the words of a real API server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from shallop.embedded.apiserver.formats import FORMATS, go_regex
from shallop.embedded.apiserver.schema_tree import MISSING, Schema, find_old_item, json_type, parse_schema
from shallop.errors import FieldError
from shallop.kube.patch import json_equal

# ``test(value)``: fine? ``report(value, old, path, errors)``: say what is not fine, ``path`` with a leading dot.
Test = Callable[[Any], bool]
Report = Callable[[Any, Any, str, list[FieldError]], None]


@dataclass(slots=True)
class Validator:
    """``is_valid`` is the fast answer without paths; ``report`` is only asked when that is False."""

    is_valid: Test
    report: Report


_TYPE_TESTS: Mapping[str, Test] = {
    "object": lambda value: type(value) is dict,
    "array": lambda value: type(value) is list,
    "string": lambda value: type(value) is str,
    "boolean": lambda value: type(value) is bool,
    "integer": lambda value: type(value) is int or (type(value) is float and value.is_integer()),
    "number": lambda value: type(value) is int or type(value) is float,
}


_is_text = _TYPE_TESTS["string"]


def shown_path(path: str) -> str:
    return path[1:] or "<nil>"


def _type_invalid(path: str, wanted: str, found: str) -> FieldError:
    shown = path[1:]
    message = f'Invalid value: "{found}": {shown} in body must be of type {wanted}: "{found}"'
    return FieldError("FieldValueTypeInvalid", message, shown or "<nil>")


def _general(text: str) -> FieldError:
    """An error that the real server reports without a field."""
    return FieldError("FieldValueInvalid", f'Invalid value: "": {text}', "<nil>")


def compile_validator(schema: Schema, *, structs_required: bool) -> Validator:
    """
    Build the validator of a node.

    Args:
        structs_required: check ``required``; built-in kinds have their own, finer checks.
    """
    tests: list[Test] = []
    reports: list[Report] = []
    wanted, type_test = _type_test(schema)
    for test, make_error in _constraints(schema):
        tests.append(test)
        reports.append(_reporter(test, make_error))
    if schema.type == "array" or schema.items is not None:
        _add(tests, reports, _list_parts(schema, structs_required=structs_required))
    if schema.type == "object" or schema.properties or schema.additional or schema.required or schema.embedded:
        _add(tests, reports, [_object_part(schema, structs_required=structs_required)])
    if schema.embedded:
        _add(tests, reports, [_embedded_labels()])
    _add(tests, reports, _combinations(schema))
    nullable = schema.nullable

    def is_valid(value: Any) -> bool:
        if value is None and nullable:
            return True
        if type_test is not None and not type_test(value):
            return False
        return all([test(value) for test in tests]) if tests else True

    def report(value: Any, old: Any, path: str, errors: list[FieldError]) -> None:
        if (value is None and nullable) or (old is not MISSING and json_equal(value, old)):
            return
        if type_test is not None and not type_test(value):
            errors.append(_type_invalid(path, wanted, json_type(value)))
            if schema.type == "integer" and type(value) is float:
                errors.append(_general(f"Checked value must be of type integer (default format) in {path[1:]}"))
        for each in reports:
            each(value, old, path, errors)

    if not tests and not nullable and type_test is not None:
        return Validator(type_test, report)
    if (
        len(tests) == 1
        and not nullable
        and (schema.type == "object" or (schema.items is not None and wanted == "array"))
    ):
        # The parts of objects and lists test the type themselves.
        return Validator(tests[0], report)
    return Validator(is_valid, report)


def _add(tests: list[Test], reports: list[Report], parts: list[Validator]) -> None:
    tests += [part.is_valid for part in parts]
    reports += [part.report for part in parts]


def _type_test(schema: Schema) -> tuple[str, Test | None]:
    if schema.int_or_string:
        return "integer,string", lambda value: type(value) is str or _TYPE_TESTS["integer"](value)
    if schema.type_name == "quantity":
        return "string", lambda value: type(value) in (str, int, float)
    return schema.type, _TYPE_TESTS.get(schema.type)


def _reporter(test: Test, make_error: Callable[[Any, str], FieldError]) -> Report:
    def report(value: Any, _old: Any, path: str, errors: list[FieldError]) -> None:
        if not test(value):
            errors.append(make_error(value, path))

    return report


Constraint = tuple[Test, Callable[[Any, str], FieldError]]


def _constraints(schema: Schema) -> list[Constraint]:
    """Scalar and size keywords in the order in which the real server checks them."""
    source = schema.source
    result: list[Constraint] = []
    if "maxLength" in source or "minLength" in source or "pattern" in source:
        result.append(_string_constraint(source))
    if source.get("format") and schema.type:
        result += _format_constraint(schema.type, source["format"])
    result += _number_constraints(source)
    for keyword, kind, size in (("Items", list, "items"), ("Properties", dict, "properties")):
        result += _size_constraints(source, keyword, kind, size)
    if "enum" in source:
        allowed = source["enum"]
        result.append(
            (
                lambda value: any(json_equal(value, choice) for choice in allowed),
                lambda value, path: FieldError.not_supported(shown_path(path), value, [_plain(c) for c in allowed]),
            )
        )
    return result


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _in_body(value: Any, path: str, text: str) -> FieldError:
    return FieldError.invalid(shown_path(path), value, f"{path[1:]} in body should {text}")


def _string_constraint(source: Mapping[str, Any]) -> Constraint:
    shortest, longest = source.get("minLength", 0), source.get("maxLength")
    pattern = source.get("pattern")
    search = go_regex(pattern).search if pattern else None

    def test(value: Any) -> bool:
        if type(value) is not str:
            return True
        size = len(value)
        if size < shortest or (longest is not None and size > longest):
            return False
        return search is None or search(value) is not None

    def error(value: str, path: str) -> FieldError:
        if longest is not None and len(value) > longest:
            return FieldError("FieldValueTooLong", f"Too long: may not be more than {longest} bytes", shown_path(path))
        if len(value) < shortest:
            return _in_body(value, path, f"be at least {shortest} chars long")
        return _in_body(value, path, f"match '{pattern}'")

    return test, error


_INT_BITS = {"int32": 31, "int64": 63}


def _format_constraint(kind: str, name: str) -> list[Constraint]:
    if kind == "string" and name in FORMATS:
        check = FORMATS[name]

        def error(value: str, path: str) -> FieldError:
            shown = path[1:]
            message = f'Invalid value: "{value}": {shown} in body must be of type {name}: "{value}"'
            return FieldError("FieldValueTypeInvalid", message, shown)

        return [(lambda value: type(value) is not str or check(value), error)]
    if kind == "integer" and name in _INT_BITS:
        limit = 1 << _INT_BITS[name]
        text = f"Checked value must be of type integer with format {name} in "
        return [
            (
                lambda value: type(value) is not int or -limit <= value < limit,
                lambda _value, path: _general(text + path[1:]),
            )
        ]
    return []


def _number_constraints(source: Mapping[str, Any]) -> list[Constraint]:
    result: list[Constraint] = []

    def add(test: Test, text: str) -> None:
        result.append(
            (
                lambda value: type(value) not in (int, float) or test(value),
                lambda value, path: _in_body(value, path, text),
            )
        )

    if factor := source.get("multipleOf"):
        add(lambda value: abs(value / factor - round(value / factor)) < 1e-9, f"be a multiple of {factor}")
    if (top := source.get("maximum")) is not None:
        if source.get("exclusiveMaximum"):
            add(lambda value: value < top, f"be less than {top}")
        else:
            add(lambda value: value <= top, f"be less than or equal to {top}")
    if (bottom := source.get("minimum")) is not None:
        if source.get("exclusiveMinimum"):
            add(lambda value: value > bottom, f"be greater than {bottom}")
        else:
            add(lambda value: value >= bottom, f"be greater than or equal to {bottom}")
    return result


def _size_constraints(source: Mapping[str, Any], keyword: str, kind: type[Sized], size: str) -> list[Constraint]:
    result: list[Constraint] = []
    if (least := source.get(f"min{keyword}")) is not None:
        result.append(
            (
                lambda value: type(value) is not kind or len(value) >= least,
                lambda value, path: _in_body(len(value), path, f"have at least {least} {size}"),
            )
        )
    if (most := source.get(f"max{keyword}")) is not None:
        result.append(
            (
                lambda value: type(value) is not kind or len(value) <= most,
                lambda value, path: FieldError(
                    "FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} items", shown_path(path)
                ),
            )
        )
    return result


class _Lazy(dict[str, Any]):
    """Values made at first use: of the hundreds of fields that a schema declares, an object has few."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: str) -> Any:
        value = self[key] = self._make(key)
        return value


def _object_part(schema: Schema, *, structs_required: bool) -> Validator:
    properties = schema.properties
    children = _Lazy(lambda name: compile_validator(properties[name], structs_required=structs_required))
    tests = _Lazy(lambda name: children[name].is_valid)
    required = schema.required if structs_required else ()
    if schema.embedded:
        required = (*required, *(name for name in ("apiVersion", "kind") if name not in required))
    additional: Validator | None = None
    if schema.additional is not None:
        additional = compile_validator(schema.additional, structs_required=structs_required)
    additional_test = additional.is_valid if additional is not None else None
    must_be_dict = schema.type == "object"
    known = tests.get

    def is_valid(value: Any) -> bool:
        if type(value) is not dict:
            return not must_be_dict
        for key, item in value.items():
            test = known(key)
            if test is None and key in properties:
                test = tests[key]
            if test is not None:
                # Most fields are texts: not a call for each of them.
                if type(item) is not str if test is _is_text else not test(item):
                    return False
            elif additional_test is not None and not additional_test(item):
                return False
        for name in required:  # noqa: SIM110 (a loop is twice as fast as all() with a generator)
            if name not in value:
                return False
        return True

    def report(value: Any, old: Any, path: str, errors: list[FieldError]) -> None:
        if type(value) is not dict:
            return
        errors += [FieldError.required(f"{path}.{name}"[1:]) for name in required if name not in value]
        for key, item in value.items():
            child = children[key] if key in properties else additional
            if child is not None and not child.is_valid(item):
                before = old.get(key, MISSING) if isinstance(old, dict) else MISSING
                child.report(item, before, f"{path}.{key}", errors)

    return Validator(is_valid, report)


def _embedded_labels() -> Validator:
    """Labels inside an embedded object follow the rules of real labels."""
    from shallop.embedded.apiserver.metadata import check_labels  # imports resources, which imports this module

    def errors_of(value: Any, path: str) -> list[FieldError]:
        metadata = value.get("metadata") if isinstance(value, dict) else None
        labels = metadata.get("labels") if isinstance(metadata, dict) else None
        return check_labels(labels, f"{path}.metadata.labels"[1:]) if labels else []

    def report(value: Any, _old: Any, path: str, errors: list[FieldError]) -> None:
        errors += errors_of(value, path)

    return Validator(lambda value: not errors_of(value, ""), report)


def _list_parts(schema: Schema, *, structs_required: bool) -> list[Validator]:
    parts = []
    if schema.items is not None:
        parts.append(_items_part(schema, structs_required=structs_required))
    if structs_required and schema.list_type in ("set", "map"):
        parts.append(_unique_part(_duplicates_of_map(schema.keys) if schema.list_type == "map" else _duplicates))
    elif schema.source.get("uniqueItems"):
        parts.append(_unique_part(_duplicates))
    return parts


def _items_part(schema: Schema, *, structs_required: bool) -> Validator:
    items = schema.items
    if items is None:
        raise ValueError("a list without items has no items to check")
    item = compile_validator(items, structs_required=structs_required)
    test = item.is_valid
    must_be_list = schema.type == "array"

    def is_valid(value: Any) -> bool:
        if type(value) is not list:
            return not must_be_list
        for entry in value:  # noqa: SIM110 (a loop is twice as fast as all() with a generator)
            if not test(entry):
                return False
        return True

    def report(value: Any, old: Any, path: str, errors: list[FieldError]) -> None:
        if type(value) is not list:
            return
        for index, entry in enumerate(value):
            if not test(entry):
                item.report(entry, find_old_item(schema, entry, old), f"{path}[{index}]", errors)

    return Validator(is_valid, report)


def _unique_part(duplicates: Callable[[list[Any]], list[tuple[int, str]]]) -> Validator:
    def is_valid(value: Any) -> bool:
        return type(value) is not list or len(value) < 2 or not duplicates(value)

    def report(value: Any, _old: Any, path: str, errors: list[FieldError]) -> None:
        if type(value) is list:
            for index, shown in duplicates(value):
                errors.append(FieldError("FieldValueDuplicate", f"Duplicate value: {shown}", f"{path}[{index}]"[1:]))

    return Validator(is_valid, report)


def _duplicates(items: list[Any]) -> list[tuple[int, str]]:
    seen: set[str] = set()
    result = []
    for index, item in enumerate(items):
        text = json.dumps(item, sort_keys=True, separators=(",", ":"))
        if text in seen:
            result.append((index, text))
        seen.add(text)
    return result


def _duplicates_of_map(keys: tuple[str, ...]) -> Callable[[list[Any]], list[tuple[int, str]]]:
    def duplicates(items: list[Any]) -> list[tuple[int, str]]:
        return _duplicates(
            [{k: item[k] for k in keys if k in item} if isinstance(item, dict) else item for item in items]
        )

    return duplicates


def _combinations(schema: Schema) -> list[Validator]:
    """allOf, anyOf, oneOf and not."""

    def compiled(keyword: str) -> list[Validator]:
        children = schema.source.get(keyword) or ()
        return [compile_validator(parse_schema(child), structs_required=True) for child in children]

    result = []
    if every := compiled("allOf"):
        result.append(_combine(every, all, lambda _valid: "must validate all the schemas (allOf)"))
    if some := compiled("anyOf"):
        result.append(_combine(some, any, lambda _valid: "must validate at least one schema (anyOf)"))
    if one := compiled("oneOf"):
        result.append(_combine(one, lambda valid: sum(valid) == 1, _one_of_text))
    if "not" in schema.source:
        refused = [compile_validator(parse_schema(schema.source["not"]), structs_required=True)]
        result.append(
            _combine(refused, lambda valid: not valid[0], lambda _valid: "must not validate the schema (not)")
        )
    return result


def _one_of_text(valid: list[bool]) -> str:
    found = f"{sum(valid)} valid alternatives" if any(valid) else "none valid"
    return f"must validate one and only one schema (oneOf). Found {found}"


def _combine(
    parts: list[Validator], holds: Callable[[list[bool]], bool], text: Callable[[list[bool]], str]
) -> Validator:
    def is_valid(value: Any) -> bool:
        return holds([part.is_valid(value) for part in parts])

    def report(value: Any, old: Any, path: str, errors: list[FieldError]) -> None:
        valid = [part.is_valid(value) for part in parts]
        if holds(valid):
            return
        message = text(valid)
        summary = _general(f'"{path[1:]}" {message}')
        if "allOf" in message:
            parts[valid.index(False)].report(value, old, path, errors)
            errors.append(summary)
            return
        errors.append(summary)
        # The real server explains only the first alternative that failed.
        if not any(valid):
            parts[0].report(value, old, path, errors)

    return Validator(is_valid, report)
