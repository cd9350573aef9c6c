"""
What a CustomResourceDefinition's schema must look like.

- ``check_crd_schema(openapi, path="spec.validation.openAPIV3Schema") -> list[FieldError]``: structural-schema rules,
  defaults, patterns, list types and CEL rules of one version; empty when the schema can be served. When several
  versions have different schemas, the real server's path is ``spec.versions[i].schema.openAPIV3Schema``.

Source: "Extend the Kubernetes API with CustomResourceDefinitions", structural schema; recorded messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shallop.embedded.apiserver.formats import go_regex
from shallop.embedded.apiserver.rules import check_rules
from shallop.embedded.apiserver.schema import CompiledSchema, parse_schema
from shallop.errors import FieldError

Schema = Mapping[str, Any]

_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_FORBIDDEN = ("$ref", "definitions", "dependencies", "id", "patternProperties", "additionalItems", "deprecated")
# Inside allOf, anyOf, oneOf and not only value validations may stand.
_NOT_IN_JUNCTORS = ("type", "default", "additionalProperties", "nullable", "title", "description")
_JUNCTORS = ("allOf", "anyOf", "oneOf")


def check_crd_schema(openapi: Schema, path: str = "spec.validation.openAPIV3Schema") -> list[FieldError]:
    errors = []
    if not openapi.get("type"):
        errors.append(FieldError.required(f"{path}.type", "must not be empty at the root"))
    elif openapi["type"] != "object":
        errors.append(FieldError.invalid(f"{path}.type", openapi["type"], "must be object at the root"))
    if openapi.get("nullable"):
        errors.append(FieldError.forbidden(f"{path}.nullable", "nullable cannot be true at the root"))
    errors += _check_node(openapi, path, root=True)
    if errors:
        return errors
    return list(_check_compiled(openapi, path, root=True))


def _check_node(node: Schema, path: str, *, root: bool = False) -> list[FieldError]:
    errors = [
        FieldError.forbidden(f"{path}.{name}", "is not supported")
        for name in _FORBIDDEN
        if node.get(name) and name != "deprecated"
    ]
    errors += _check_type(node, path)
    errors += _check_list_type(node, path)
    if node.get("uniqueItems"):
        text = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        errors.append(FieldError.forbidden(f"{path}.uniqueItems", text))
    if node.get("properties") and node.get("additionalProperties"):
        text = "additionalProperties and properties are mutual exclusive"
        errors.append(FieldError.forbidden(f"{path}.additionalProperties", text))
    if node.get("x-kubernetes-embedded-resource") and node.get("type") != "object":
        text = "must be object if x-kubernetes-embedded-resource is true"
        errors.append(FieldError.invalid(f"{path}.type", node.get("type", ""), text))
    errors += _check_pattern(node, path)
    for keyword in _JUNCTORS:
        for index, part in enumerate(node.get(keyword) or ()):
            errors += _check_junctor(part, f"{path}.{keyword}[{index}]")
    if isinstance(node.get("not"), dict):
        errors += _check_junctor(node["not"], f"{path}.not")
    for child, child_path, what in _children(node, path):
        if not (child.get("type") or _is_typeless(child) or (root and child_path.endswith("[metadata]"))):
            errors.append(FieldError.required(f"{child_path}.type", f"must not be empty for specified {what}"))
        errors += _check_node(child, child_path)
    return errors


def _is_typeless(node: Schema) -> bool:
    return bool(node.get("x-kubernetes-int-or-string") or node.get("x-kubernetes-preserve-unknown-fields"))


def _children(node: Schema, path: str) -> Iterator[tuple[Schema, str, str]]:
    for name, child in (node.get("properties") or {}).items():
        yield child, f"{path}.properties[{name}]", "object fields"
    if isinstance(node.get("additionalProperties"), dict):
        yield node["additionalProperties"], f"{path}.additionalProperties", "object fields"
    if isinstance(node.get("items"), dict):
        yield node["items"], f"{path}.items", "array items"


def _check_type(node: Schema, path: str) -> list[FieldError]:
    kind = node.get("type")
    if kind and kind not in _TYPES:
        return [FieldError.not_supported(f"{path}.type", kind, _TYPES)]
    if kind and node.get("x-kubernetes-int-or-string"):
        return [FieldError.invalid(f"{path}.type", kind, "must be empty if x-kubernetes-int-or-string is true")]
    if kind == "array" and not isinstance(node.get("items"), dict):
        return [FieldError.required(f"{path}.items", "must be specified")]
    return []


def _check_list_type(node: Schema, path: str) -> list[FieldError]:
    kind = node.get("x-kubernetes-list-type")
    keys = node.get("x-kubernetes-list-map-keys") or ()
    if kind is None:
        return []
    if kind not in ("atomic", "map", "set"):
        return [FieldError.not_supported(f"{path}.x-kubernetes-list-type", kind, ("atomic", "map", "set"))]
    if node.get("type") != "array":
        text = "must be array if x-kubernetes-list-type is specified"
        return [FieldError.invalid(f"{path}.type", node.get("type", ""), text)]
    if kind == "map":
        if not keys:
            text = "must not be empty if x-kubernetes-list-type is map"
            return [FieldError.required(f"{path}.x-kubernetes-list-map-keys", text)]
        return _check_map_keys(node, keys, path)
    if keys:
        text = "may not be specified if x-kubernetes-list-type is not map"
        return [FieldError.forbidden(f"{path}.x-kubernetes-list-map-keys", text)]
    return []


def _check_map_keys(node: Schema, keys: list[str], path: str) -> list[FieldError]:
    errors = []
    items = node.get("items") or {}
    properties = items.get("properties") or {}
    if items.get("type") != "object":
        text = "must be object if parent array's x-kubernetes-list-type is map"
        errors.append(FieldError.invalid(f"{path}.items.type", items.get("type", ""), text))
    for index, key in enumerate(keys):
        if key not in properties:
            text = "entries must all be names of item properties"
            errors.append(FieldError.invalid(f"{path}.x-kubernetes-list-map-keys[{index}]", key, text))
        elif key not in (items.get("required") or ()) and "default" not in properties[key]:
            text = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            errors.append(FieldError.required(f"{path}.items.properties[{key}].default", text))
    return errors


def _check_pattern(node: Schema, path: str) -> list[FieldError]:
    pattern = node.get("pattern")
    if not pattern:
        return []
    try:
        go_regex(pattern)
    except ValueError as error:
        text = f"must be a valid regular expression, but isn't: {error}"
        return [FieldError.invalid(f"{path}.pattern", pattern, text)]
    return []


def _check_junctor(node: Schema, path: str) -> list[FieldError]:
    allowed = {"type"} if _is_int_or_string_part(node) else set()
    errors = [
        FieldError.forbidden(f"{path}.{name}", "must be empty to be structural")
        for name in _NOT_IN_JUNCTORS
        if node.get(name) and name not in allowed
    ]
    errors += _check_pattern(node, path)
    for keyword in _JUNCTORS:
        for index, part in enumerate(node.get(keyword) or ()):
            errors += _check_junctor(part, f"{path}.{keyword}[{index}]")
    for child, child_path, _what in _children(node, path):
        errors += _check_junctor(child, child_path)
    return errors


def _is_int_or_string_part(node: Schema) -> bool:
    """``anyOf: [{type: integer}, {type: string}]`` is how int-or-string is written."""
    return node.get("type") in ("integer", "string") and len(node) == 1


def _check_compiled(node: Schema, path: str, *, root: bool = False) -> Iterator[FieldError]:
    """Checks that need a schema which is sound: defaults and CEL rules."""
    if "default" in node:
        yield from _check_default(node, path)
    if node.get("x-kubernetes-validations"):
        yield from check_rules(parse_schema(node), path, root=root)
    for child, child_path, _what in _children(node, path):
        yield from _check_compiled(child, child_path)


def _check_default(node: Schema, path: str) -> Iterator[FieldError]:
    value = node["default"]
    compiled = CompiledSchema(
        parse_schema({key: part for key, part in node.items() if key != "default"}), builtin=False
    )
    cleaned, unknown = compiled.clean(value) if isinstance(value, dict) else (value, [])
    for name in unknown:
        yield FieldError.invalid(f"{path}.default", value, f'unknown field "{name}"')
    for error in compiled.validate(cleaned):
        place = f"{path}.default" if error.field == "<nil>" else f"{path}.default.{error.field}"
        yield error._replace(field=place)
