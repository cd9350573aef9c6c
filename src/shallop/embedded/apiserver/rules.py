"""
``x-kubernetes-validations``: CEL rules on the nodes of a schema.

- ``compile_rules(schema) -> RuleRunner | None``: runs every rule of a schema tree; None where there is none.
- ``check_rules(schema, path, *, root) -> list[FieldError]``: what is wrong with the rules of one node, at CRD creation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shallop.embedded.apiserver.cel import (
    BOOL,
    DYN,
    STRING,
    CelError,
    Optional,
    Program,
    Type,
    compile_expression,
    schema_type,
    to_cel,
)
from shallop.embedded.apiserver.schema_tree import MISSING, Schema, find_old_item, json_type
from shallop.errors import FieldError

# (value, old value or MISSING, path with a leading dot, errors)
RuleRunner = Callable[[Any, Any, str, list[FieldError]], None]


class Rule(NamedTuple):
    """One compiled rule."""

    program: Program
    message_program: Program | None
    message: str
    reason: str
    field_path: str
    optional_old: bool
    type: Type

    @property
    def is_transition(self) -> bool:
        return "oldSelf" in self.program.variables


def _variables(kind: Type, source: Mapping[str, Any]) -> dict[str, Type]:
    old = Type("optional", (kind,)) if source.get("optionalOldSelf") else kind
    return {"self": kind, "oldSelf": old}


def _compile_rule(source: Mapping[str, Any], kind: Type) -> Rule:
    variables = _variables(kind, source)
    expression = source.get("messageExpression")
    return Rule(
        program=compile_expression(source["rule"], variables),
        message_program=compile_expression(expression, variables) if expression else None,
        message=source.get("message") or f"failed rule: {source['rule'].strip()}",
        reason=source.get("reason") or "FieldValueInvalid",
        field_path=source.get("fieldPath") or "",
        optional_old=bool(source.get("optionalOldSelf")),
        type=kind,
    )


def compile_rules(schema: Schema, *, root: bool = True) -> RuleRunner | None:
    sources = schema.source.get("x-kubernetes-validations")
    rules = [_compile_rule(source, schema_type(schema, root=root)) for source in sources or ()]
    children = {
        name: runner for name, child in schema.properties.items() if (runner := compile_rules(child, root=False))
    }
    additional = None if schema.additional is None else compile_rules(schema.additional, root=False)
    items = None if schema.items is None else compile_rules(schema.items, root=False)
    if not (rules or children or additional or items):
        return None
    own = [_rule_runner(rule) for rule in rules]

    def run(value: Any, old: Any, path: str, errors: list[FieldError]) -> None:
        if value is None:
            return
        for each in own:
            each(value, old, path, errors)
        if isinstance(value, dict):
            for name, item in value.items():
                runner = children.get(name, additional)
                if runner is not None:
                    runner(item, _old_field(old, name), f"{path}.{name}", errors)
        elif items is not None and isinstance(value, list):
            for index, item in enumerate(value):
                items(item, find_old_item(schema, item, old), f"{path}[{index}]", errors)

    return run


def _old_field(old: Any, name: str) -> Any:
    return old.get(name, MISSING) if isinstance(old, dict) else MISSING


def _rule_runner(rule: Rule) -> RuleRunner:
    uses_old = rule.is_transition

    def run(value: Any, old: Any, path: str, errors: list[FieldError]) -> None:
        has_old = _is_present(old)
        if uses_old and not has_old and not rule.optional_old:
            return
        if has_old and not uses_old and old == value:
            return  # unchanged values are not held against an update
        old_value = to_cel(rule.type, old) if has_old else None
        arguments = {
            "self": to_cel(rule.type, value),
            "oldSelf": Optional(has_old, old_value) if rule.optional_old else old_value,
        }
        try:
            if rule.program.evaluate(**arguments) is True:
                return
        except CelError as error:
            errors.append(_runtime_error(value, path, f"{error} evaluating rule: {rule.message}"))
            return
        errors.append(_failure(rule, value, path, _message(rule, arguments)))

    return run


def _is_present(old: Any) -> bool:
    return old is not MISSING and old is not None


def _runtime_error(value: Any, path: str, text: str) -> FieldError:
    return FieldError.invalid(path[1:] or "<nil>", json_type(value), text)


def _message(rule: Rule, arguments: Mapping[str, Any]) -> str:
    if rule.message_program is not None:
        try:
            text = rule.message_program.evaluate(**arguments)
        except CelError:
            return rule.message  # a message that cannot be made must not hide that the rule failed
        if isinstance(text, str) and text.strip() and "\n" not in text:
            return text
    return rule.message


def _failure(rule: Rule, value: Any, path: str, message: str) -> FieldError:
    field = f"{path}{rule.field_path}"[1:] or "<nil>"
    match rule.reason:
        case "FieldValueForbidden":
            return FieldError.forbidden(field, message)
        case "FieldValueRequired":
            return FieldError.required(field, message)
        case "FieldValueDuplicate":
            return FieldError(rule.reason, f"Duplicate value: {_shown(value)}", field)
    if isinstance(value, (dict, list)):
        return FieldError("FieldValueInvalid", f"Invalid value: {message}", field)
    return FieldError.invalid(field, value, message)


def _shown(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# ---- At CRD creation


def check_rules(schema: Schema, path: str, *, root: bool) -> list[FieldError]:
    """
    Compile the rules of one node.

    Args:
        path: of the node, such as ``spec.validation.openAPIV3Schema.properties[spec]``.
    """
    errors: list[FieldError] = []
    kind = schema_type(schema, root=root)
    for index, source in enumerate(schema.source.get("x-kubernetes-validations") or ()):
        errors += _check_rule(source, kind, f"{path}.x-kubernetes-validations[{index}]")
    return errors


def _check_rule(source: Mapping[str, Any], kind: Type, path: str) -> list[FieldError]:
    if not (source.get("rule") or "").strip():
        return [FieldError.required(f"{path}.rule", "rule is not specified")]
    variables = _variables(kind, source)
    errors = []
    wanted = (
        ("rule", BOOL, "cel expression must evaluate to a bool"),
        ("messageExpression", STRING, "messageExpression must evaluate to a string"),
    )
    for name, type_, complaint in wanted:
        if not source.get(name):
            continue
        field = f"{path}.{name}"
        try:
            program = compile_expression(source[name], variables)
        except CelError as error:
            what = "compilation failed" if name == "rule" else "messageExpression compilation failed"
            errors.append(FieldError("FieldValueInvalid", f"Invalid value: {_go_rule(source)}: {what}: {error}", field))
            continue
        if program.type not in (type_, DYN):
            errors.append(FieldError("FieldValueInvalid", f"Invalid value: {_go_rule(source)}: {complaint}", field))
    return errors


def _go_rule(source: Mapping[str, Any]) -> str:
    """The rule as the real server dumps it into its messages."""
    shown = {
        "Rule": source.get("rule", ""),
        "Message": source.get("message", ""),
        "MessageExpression": source.get("messageExpression", ""),
        "Reason": source.get("reason"),
        "FieldPath": source.get("fieldPath", ""),
        "OptionalOldSelf": source.get("optionalOldSelf"),
    }
    return json.dumps(shown, separators=(",", ":"), ensure_ascii=False)
