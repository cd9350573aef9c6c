"""
Facts about Kubernetes' built-in types, read from ``builtin_types.json`` (made by ``scripts/make_builtin_types.py``).

- ``type_name(gvk) -> str``: name of the message of a kind, such as ``apps.v1.Deployment``; "" for other kinds.
- ``fields(type_name) -> Mapping[str, Field]``: the fields as JSON has them (embedded structs flattened).
- ``merge_rule(type_name, field) -> FieldMerge``: the ``lookup`` of ``kube.patch.strategic_merge_patch``.
- ``kinds() -> Mapping[Gvk, str]``: every built-in kind in the table.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from shallop.kube.objects import Gvk
from shallop.kube.patch import FieldMerge

SCALARS = frozenset({"string", "bytes", "bool", "int32", "int64", "double"})


class Field(NamedTuple):
    """
    One field of a message.

    Args:
        type: a scalar, a special type (``quantity``, ``intorstring``, ``time``, ``microtime``, ``duration``, ``raw``,
            ``fieldsv1``, ``stringlist``) or the name of a message; of the items when ``shape`` is "list" or "map".
        list_type: "", "atomic", "set" or "map", with ``keys`` for "map"; "atomic" also for maps and messages.
    """

    number: int
    type: str
    shape: str = ""
    required: bool = False
    inline: bool = False
    list_type: str = ""
    keys: tuple[str, ...] = ()
    granular: bool = False
    merges: bool = False
    merge_key: str = ""


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("builtin_types.json").read_bytes())
    return table


@cache
def kinds() -> Mapping[Gvk, str]:
    return {Gvk(*name.rsplit(" ", 1)): message for name, message in _table()["kinds"].items()}


def type_name(gvk: Gvk) -> str:
    return kinds().get(gvk, "meta.v1.DeleteOptions" if gvk.kind == "DeleteOptions" else "")


def is_message(name: str) -> bool:
    return name in _table()["messages"]


@cache
def is_atomic(name: str) -> bool:
    """Whether a message is owned as a whole under server-side apply."""
    return name in _table()["atomic"]


@cache
def wire_fields(name: str) -> Mapping[str, Field]:
    """Fields of a message as protobuf has them: embedded structs are fields of their own."""
    return {field: _parse(text) for field, text in _table()["messages"].get(name, {}).items()}


@cache
def fields(name: str) -> Mapping[str, Field]:
    """Fields of a message as JSON has them."""
    result: dict[str, Field] = {}
    for field, facts in wire_fields(name).items():
        result |= fields(facts.type) if facts.inline else {field: facts}
    return result


def _parse(text: str) -> Field:
    number, kind, *flags = text.split(" ")
    shape = ""
    if kind.startswith("[]"):
        shape, kind = "list", kind[2:]
    elif kind.startswith("map["):
        shape, kind = "map", kind[kind.index("]") + 1 :]
    named = dict(flag.partition("=")[::2] for flag in flags)
    return Field(
        number=int(number),
        type=kind,
        shape=shape,
        required="required" in named,
        inline="inline" in named,
        list_type=next((kind for kind in ("map", "set", "atomic") if kind in named), ""),
        keys=tuple(filter(None, named.get("map", "").split(","))),
        granular="granular" in named,
        merges="patch" in named,
        merge_key=named.get("patch", ""),
    )


_NO_RULE = FieldMerge()


def merge_rule(type_name: str, field: str) -> FieldMerge:
    facts = fields(type_name).get(field)
    if facts is None:
        return _NO_RULE
    # Values of a map have no struct of their own to look fields up in.
    return FieldMerge("" if facts.shape == "map" else facts.type, facts.merges, facts.merge_key)
