"""Compile a schema to a function that drops unknown fields and stray nulls and fills in defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shallop.embedded.apiserver.schema_tree import MISSING, TYPE_META, Schema, message_schema

# (value, unknown paths found, from it on and with a leading dot) -> the same value, or a cleaned copy
Cleaner = Callable[[Any, list[str]], Any]


def _unknown_field(value: Any, _unknown: list[str]) -> Any:
    """Stands for the cleaner of a field that is not declared."""
    return value


def _integral(value: Any, _unknown: list[str]) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


def compile_cleaner(schema: Schema) -> Cleaner | None:
    """Build the cleaner of a node; None where nothing can need cleaning."""
    if schema.type == "integer":
        return _integral
    if schema.type == "array" and schema.items is not None:
        return _list_cleaner(schema.items)
    if schema.type == "object" or schema.properties or schema.embedded:
        return _object_cleaner(schema)
    return None


def _list_cleaner(items: Schema) -> Cleaner | None:
    clean_item = compile_cleaner(items)
    if clean_item is None:
        return None

    def clean(value: Any, unknown: list[str]) -> Any:
        if type(value) is not list:
            return value
        copy = None
        known = len(unknown)
        for index, item in enumerate(value):
            new = clean_item(item, unknown)
            if len(unknown) != known:
                known = _set_below(f"[{index}]", unknown, known)
            if new is not item:
                copy = copy or list(value)
                copy[index] = new
        return copy or value

    return clean


def _object_cleaner(schema: Schema) -> Cleaner:
    properties = dict(schema.properties)
    if schema.embedded:
        properties |= TYPE_META
        properties["metadata"] = message_schema("meta.v1.ObjectMeta")
    children = {name: compile_cleaner(child) for name, child in properties.items()}
    droppable = {name for name, child in properties.items() if not child.nullable}
    defaults = [(name, _full_default(child)) for name, child in properties.items() if child.default is not MISSING]
    additional = schema.additional
    clean_additional = compile_cleaner(additional) if additional is not None else None
    keep_unknown = schema.preserve or additional is not None
    drop_null_values = additional is not None and not additional.nullable and additional.type != ""

    def clean(value: Any, unknown: list[str]) -> Any:
        if type(value) is not dict:
            return value
        copy = None
        known = len(unknown)
        for key, item in value.items():
            child = children.get(key, _unknown_field)
            if child is None and item is not None:
                # As most are: texts and the like.
                continue
            if child is not _unknown_field:
                if item is None and key in droppable:
                    copy = dict(value) if copy is None else copy
                    del copy[key]
                    continue
            elif keep_unknown:
                if item is None and drop_null_values:
                    copy = dict(value) if copy is None else copy
                    del copy[key]
                    continue
                child = clean_additional
            else:
                unknown.append(f".{key}")
                known += 1
                copy = dict(value) if copy is None else copy
                del copy[key]
                continue
            if child is not None:
                new = child(item, unknown)
                if len(unknown) != known:
                    known = _set_below(f".{key}", unknown, known)
                if new is not item:
                    copy = dict(value) if copy is None else copy
                    copy[key] = new
        for key, default in defaults:
            if key not in value or (copy is not None and key not in copy):
                copy = dict(value) if copy is None else copy
                copy[key] = default
        return value if copy is None else copy

    return clean


def _full_default(schema: Schema) -> Any:
    """The default with the defaults inside it; shared by all objects that get it."""
    cleaner = compile_cleaner(schema)
    return schema.default if cleaner is None else cleaner(schema.default, [])


def _set_below(place: str, unknown: list[str], known: int) -> int:
    """Say where the paths after the first ``known`` are: nearly never are there any, so that nobody names places."""
    unknown[known:] = [place + path for path in unknown[known:]]
    return len(unknown)
