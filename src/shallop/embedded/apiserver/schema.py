"""
Schemas compiled to closures: prune, default, validate.

- ``crd_schema(openapi) -> CompiledSchema``: from the ``openAPIV3Schema`` of a CRD version, which
  ``structural.check_crd_schema`` has found sound.
- ``builtin_schema(gvk) -> CompiledSchema | None``: from the table of built-in types; None for kinds not in it.
- ``CompiledSchema.clean(obj) -> (Object, list[str])``: without unknown fields and stray nulls, with defaults; and the
  paths of the unknown fields (``spec.bogus``) for fieldValidation. The input is shared where unchanged, never mutated.
- ``CompiledSchema.validate(obj, old=None) -> list[FieldError]``: causes as a real server words them (schema, list
  types, embedded resources, then ``x-kubernetes-validations``); empty when valid. What is as in ``old`` is accepted.
- ``CompiledSchema.type_error(obj) -> str``: first value of a wrong type of a built-in object, "" when none: the tail of
  ``Pod in version "v1" cannot be handled as a Pod: ...`` (400). Clean first: stray nulls are no error.
- ``CompiledSchema.schema -> Schema``: the tree itself, for server-side apply and OpenAPI.

Source: "Extend the Kubernetes API with CustomResourceDefinitions"; messages as recorded from Kubernetes 1.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

from shallop.embedded.apiserver import builtin_types
from shallop.embedded.apiserver.checking import Validator, compile_validator
from shallop.embedded.apiserver.pruning import Cleaner, compile_cleaner
from shallop.embedded.apiserver.rules import RuleRunner, compile_rules
from shallop.embedded.apiserver.schema_tree import MISSING, TYPE_META, Schema, message_schema, parse_schema
from shallop.errors import FieldError
from shallop.kube.objects import Gvk, Object

__all__ = [
    "MISSING",
    "CompiledSchema",
    "Schema",
    "builtin_schema",
    "crd_schema",
    "message_schema",
    "parse_schema",
]


@cache
def builtin_schema(gvk: Gvk) -> CompiledSchema | None:
    name = builtin_types.type_name(gvk)
    return CompiledSchema(_with_type_meta(message_schema(name)), builtin=True) if name else None


def crd_schema(openapi: Mapping[str, Any]) -> CompiledSchema:
    return CompiledSchema(_with_type_meta(parse_schema(openapi)), builtin=False)


def _with_type_meta(root: Schema) -> Schema:
    """The root of an object: every schema knows apiVersion, kind and metadata."""
    metadata = root.properties.get("metadata")
    if metadata is None or not metadata.type_name:
        metadata = message_schema("meta.v1.ObjectMeta")
    base = {**TYPE_META, "metadata": metadata}
    return Schema(
        type="object",
        properties={**root.properties, **base},
        preserve=root.preserve,
        required=tuple(name for name in root.required if name not in base) if root.source else (),
        source=root.source,
        type_name=root.type_name,
    )


# ---- The compiled form


class CompiledSchema:
    """A schema ready for use; compiling happens at first use of each function."""

    def __init__(self, schema: Schema, *, builtin: bool) -> None:
        self.schema = schema
        self._builtin = builtin

    @cached_property
    def _cleaner(self) -> Cleaner:
        return compile_cleaner(self.schema) or _keep

    @cached_property
    def _validator(self) -> Validator:
        return compile_validator(self.schema, structs_required=not self._builtin)

    @cached_property
    def _rules(self) -> RuleRunner | None:
        return compile_rules(self.schema)

    def clean(self, obj: Object) -> tuple[Object, list[str]]:
        unknown: list[str] = []
        cleaned = self._cleaner(obj, unknown)
        return cleaned, [path.removeprefix(".") for path in unknown]

    def validate(self, obj: Object, old: Object | None = None) -> list[FieldError]:
        errors: list[FieldError] = []
        if not self._validator.is_valid(obj):
            self._validator.report(obj, MISSING if old is None else old, "", errors)
        if self._rules is not None:
            if any(error.reason in _BLOCKING for error in errors):
                errors.append(_RULES_SKIPPED)
            else:
                self._rules(obj, MISSING if old is None else old, "", errors)
        return errors

    def type_error(self, obj: Object) -> str:
        if self._validator.is_valid(obj):
            return ""
        errors: list[FieldError] = []
        self._validator.report(obj, MISSING, "", errors)
        error = errors[0]
        return f"{error.field}: {error.message}" if error.field != "<nil>" else error.message


_BLOCKING = {
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
}
_RULES_SKIPPED = FieldError(
    "FieldValueInvalid",
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation",
    "<nil>",
)


def _keep(value: Any, _unknown: list[str]) -> Any:
    return value
