"""Request bodies: JSON, YAML and protobuf to plain dicts, with repeated keys noticed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import yaml

from shallop.embedded.apiserver import protobuf
from shallop.embedded.apiserver.resources import Resource
from shallop.errors import BadRequestError, UnsupportedMediaTypeError
from shallop.kube.objects import Object

__all__ = ["Body", "parse_body", "parse_patch", "media_type", "patch_type"]  # noqa: RUF022 (in the order of use)

JSON = "application/json"
YAML = "application/yaml"
_PATCH_TYPES = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}


class Body(NamedTuple):
    """A decoded body; ``duplicates`` are paths of repeated keys, or whole texts for YAML."""

    value: Any
    duplicates: list[str]


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def parse_body(raw: bytes, content_type: str, *, kind: str, custom: bool = False) -> Body:
    """
    Decode the body of a create or update.

    Raises:
        BadRequestError: the text is malformed or no object.
        UnsupportedMediaTypeError: another format, or protobuf for a custom resource.
    """
    type_ = media_type(content_type) or JSON
    if type_ == JSON:
        body = _parse_json(raw, kind, merge=not custom)
    elif type_ == YAML:
        body = _parse_yaml(raw, kind)
    elif type_ == protobuf.MEDIA_TYPE and not custom:
        return Body(protobuf.decode(raw), [])
    else:
        accepted = [JSON, YAML, *(() if custom else (protobuf.MEDIA_TYPE,))]
        raise UnsupportedMediaTypeError(
            f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
        )
    if not isinstance(body.value, dict):
        raise BadRequestError(
            f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse "
            f"error: the body must be an object ({raw[:40].hex()})"
        )
    return body


def patch_type(resource: Resource | None, content_type: str) -> str:
    """Return ``json``, ``merge``, ``strategic`` or ``apply``."""
    found = _PATCH_TYPES.get(media_type(content_type), "")
    custom = resource is not None and resource.custom
    if not found or (custom and found == "strategic"):
        if custom:
            raise UnsupportedMediaTypeError(
                "the body of the request was in an unknown format - accepted media types include: "
                "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
            )
        raise UnsupportedMediaTypeError("415: Unsupported Media Type", details={})
    return found


def parse_patch(raw: bytes, type_: str) -> Body:
    """Decode a patch; apply configurations may be YAML."""
    if type_ == "apply":
        if raw.lstrip()[:1] == b"{":
            return _parse_json(raw, "an apply configuration", merge=False)
        try:
            return _parse_yaml(raw, "an apply configuration")
        except BadRequestError as error:
            raise BadRequestError(f"error decoding YAML: {error.message.partition('yaml: ')[2]}") from error
    try:
        return _parse_json(raw, "a patch", merge=False)
    except BadRequestError as error:
        raise BadRequestError(f"error decoding patch: {error.message}") from error


class _Pairs(dict[str, Any]):
    """A JSON object that had a key twice; ``pairs`` keeps them all."""

    pairs: list[tuple[str, Any]]


_fast_decode = msgspec.json.Decoder().decode
_fast_encode = msgspec.json.Encoder().encode


def _parse_plain_json(raw: bytes) -> Any:
    """
    Decode JSON at a tenth of the price, if it surely has no key twice; ``_UNSURE`` else.

    A key that was given twice is lost when it is decoded, and a colon with it. Only escapes could hide one.
    """
    if b"\\u" in raw:
        return _UNSURE
    try:
        value = _fast_decode(raw)
        return value if _fast_encode(value).count(b":") == raw.count(b":") else _UNSURE
    except (ValueError, RecursionError):
        # The other parser takes more, and words what it does not take.
        return _UNSURE


_UNSURE = object()


def _parse_json(raw: bytes, kind: str, *, merge: bool) -> Body:
    value = _parse_plain_json(raw)
    return _parse_repeating_json(raw, kind, merge=merge) if value is _UNSURE else Body(value, [])


def _parse_repeating_json(raw: bytes, kind: str, *, merge: bool) -> Body:
    repeated = False

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        repeated = True
        marked = _Pairs(found)
        marked.pairs = pairs
        return marked

    try:
        value = json.loads(raw, object_pairs_hook=build)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(
            f"the object provided is unrecognized (must be of type {kind}): "
            f"couldn't get version/kind; json parse error: {error} ({raw[:40].hex()})"
        ) from error
    duplicates: list[str] = []
    if repeated:
        value = _resolve(value, "", duplicates, merge=merge)
    return Body(value, duplicates)


def _resolve(value: Any, path: str, duplicates: list[str], *, merge: bool) -> Any:
    """Note repeated keys; like Go, a typed decoder merges repeated maps, an untyped one keeps the last value."""
    if isinstance(value, list):
        return [_resolve(item, f"{path}[{i}]", duplicates, merge=merge) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    result: dict[str, Any] = {}
    pairs: Iterable[tuple[str, Any]] = value.pairs if isinstance(value, _Pairs) else value.items()
    for key, item in pairs:
        where = f"{path}.{key}" if path else key
        resolved = _resolve(item, where, duplicates, merge=merge)
        if key in result:
            duplicates.append(where)
            if merge and isinstance(resolved, dict) and isinstance(result[key], dict):
                resolved = {**result[key], **resolved}
        result[key] = resolved
    return result


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: times stay text, a repeated key is noticed, no anchors bombs."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self.duplicates: list[str] = []


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Object:
    loader.flatten_mapping(node)
    result: Object = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        key = key if isinstance(key, str) else json.dumps(key)
        if key in result:
            loader.duplicates.append(f'line {key_node.start_mark.line + 1}: key "{key}" already set in map')
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
# YAML 1.1 as Go reads it: a bare y or n is a truth value, too.
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("[yYnN]$"), list("yYnN"))
_Loader.bool_values = {**yaml.CSafeLoader.bool_values, "y": True, "n": False}
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: str(node.value))


def _parse_yaml(raw: bytes, kind: str) -> Body:
    loader = None
    try:
        for token in yaml.scan(raw, yaml.CSafeLoader):
            # A few aliases can stand for gigabytes; no manifest needs them.
            if isinstance(token, yaml.AliasToken):
                raise BadRequestError("YAML aliases are not accepted; write the value out")
        loader = _Loader(raw)
        value = loader.get_single_data()
        return Body(value, loader.duplicates)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(
            f"the object provided is unrecognized (must be of type {kind}): yaml: {error} ({raw[:40].hex()})"
        ) from error
    finally:
        if loader is not None:
            loader.dispose()
