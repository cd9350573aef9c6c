"""From what a client sent to what is stored: decode, keep what is the server's, set defaults, validate. No I/O."""

from __future__ import annotations

import json
import random
from datetime import datetime

from shallop.embedded.apiserver import defaults, failures, unhonoured, validation
from shallop.embedded.apiserver.fieldmanagers import record_update
from shallop.embedded.apiserver.metadata import validate_metadata
from shallop.embedded.apiserver.requests import WriteOptions
from shallop.embedded.apiserver.resources import Resource
from shallop.embedded.apiserver.schema import CompiledSchema, builtin_schema, message_schema
from shallop.errors import BadRequestError, FieldError, InvalidError
from shallop.kube.objects import Gvk, Object, format_time, new_uid

__all__ = [
    "check_body",
    "complete_create",
    "decode_typed",
    "draft_create",
    "finish_update",
    "generate_name",
    "is_same",
    "prepare_update",
    "readmit",
    "validate_create",
]

_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
# Names are no secrets: no question to the system for each letter.
_random = random.Random()
_MAX_PREFIX = 58
# What clients cannot set; on update the stored values stay.
_SERVER_OWNED = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "resourceVersion",
)


def generate_name(prefix: str) -> str:
    """Return ``prefix`` and five random characters that form no words."""
    return prefix[:_MAX_PREFIX] + "".join(_random.choices(_SUFFIX_ALPHABET, k=5))


def check_body(resource: Resource, namespace: str, name: str, obj: Object) -> Object:
    """
    Check that a body is an object of this resource for this address.

    Args:
        name: name in the URL; empty for a creation.

    Returns:
        A copy with private metadata; ``kind`` and ``apiVersion`` come first, the namespace is set.
    """
    found = (str(obj.get("apiVersion") or ""), str(obj.get("kind") or ""))
    if not isinstance(obj.get("metadata", {}), dict | None):
        raise BadRequestError(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            "metadata must be an object"
        )
    if resource.custom and not found[1]:
        raise BadRequestError(
            f"the object provided is unrecognized (must be of type {resource.kind}): "
            f"Object 'Kind' is missing in '{_plain_json(obj)}'"
        )
    wanted = ("", resource.api_version) if not resource.custom else (resource.api_version,)
    if found[0] not in wanted:
        if not resource.custom and found[1] in ("", resource.kind) and "/" not in found[0] and not resource.group:
            why = f'no kind "{resource.kind}" is registered for version "{found[0]}"'
            raise BadRequestError(
                f'{resource.kind} in version "{found[0]}" cannot be handled as a {resource.kind}: {why}'
            )
        raise BadRequestError(
            f"the API version in the data ({found[0]}) does not match the expected API version ({resource.api_version})"
        )
    if found[1] not in ("", resource.kind):
        if resource.custom:
            problem = FieldError.invalid("kind", found[1], f"must be {resource.kind}")
            given = (obj.get("metadata") or {}).get("name") or ""
            raise InvalidError.of(str(found[1]), resource.group, str(given), [problem])
        raise BadRequestError(
            f'{found[1]} in version "{resource.version}" cannot be handled as a {resource.kind}: converting '
            f"({found[1]}) to ({resource.kind}): unknown conversion"
        )
    metadata = dict(obj.get("metadata") or {})
    if metadata.get("namespace") and metadata["namespace"] != namespace:
        raise BadRequestError("the namespace of the provided object does not match the namespace sent on the request")
    if name:
        if not metadata.get("name"):
            raise BadRequestError(
                f"the name of the object ({name} based on URL) was undeterminable: name must be provided"
            )
        if metadata["name"] != name:
            raise BadRequestError(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            )
    if namespace:
        metadata["namespace"] = namespace
    identity = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
    return identity | obj | identity


def _plain_json(obj: Object) -> str:
    return json.dumps(obj, separators=(",", ":"))


def decode_typed(gvk: Gvk, obj: Object) -> Object:
    """
    Read a body that is not stored, such as options or a review; unknown fields go.

    Raises:
        BadRequestError: a field has a wrong type.
    """
    schema = builtin_schema(gvk)
    if schema is None:
        return obj
    cleaned, _ = schema.clean(obj)
    if error := schema.type_error(cleaned):
        raise BadRequestError(f'{gvk.kind} in version "{gvk.version}" cannot be handled as a {gvk.kind}: {error}')
    return cleaned


def decode(resource: Resource, obj: Object, options: WriteOptions, old: Object | None = None) -> Object:
    """
    Drop unknown fields, set schema defaults, and complain as ``fieldValidation`` says.

    Args:
        old: the stored object; parts of a built-in object that are shared with it are not read again.

    Raises:
        BadRequestError: a wrong type in a built-in object, or unknown fields under Strict.
    """
    if options.typed and not resource.custom:
        return obj
    schema = resource.schema
    problems = [text if text.startswith("line ") else f'duplicate field "{text}"' for text in options.duplicates]
    if schema is not None:
        kept = _shared(obj, old) if old is not None and not resource.custom else {}
        new = {key: value for key, value in obj.items() if key not in kept} if kept else obj
        if resource.custom and (wrong := metadata_error(obj["metadata"])):
            raise cannot_handle(resource, wrong)
        cleaned, unknown = schema.clean(new)
        if not resource.custom:
            if error := schema.type_error(cleaned):
                raise cannot_handle(resource, error)
            problems += [f'unknown field "{path}"' for path in unknown]
        else:
            problems += [f'unknown field "{path}"' for path in sorted(unknown)]
        # In the order of ``obj``: kind and apiVersion first.
        obj = (
            {key: kept[key] if key in kept else cleaned[key] for key in obj if key in kept or key in cleaned} | cleaned
            if kept
            else cleaned
        )
    if problems and options.field_validation == "Strict":
        raise cannot_handle(resource, f"strict decoding error: {', '.join(problems)}")
    if options.field_validation == "Warn":
        options.warnings += problems
    return obj


def metadata_error(metadata: Object) -> str:
    """Return what in the metadata of a custom resource is of a wrong type; empty when nothing is."""
    return _METADATA.type_error(metadata)


_METADATA = CompiledSchema(message_schema("meta.v1.ObjectMeta"), builtin=True)


def _shared(obj: Object, old: Object) -> Object:
    kept = {key: value for key, value in obj.items() if value and value is old.get(key)}
    # Metadata is a copy, of the very same parts in most writes.
    if obj["metadata"] == old["metadata"]:
        kept["metadata"] = obj["metadata"]
    return kept


def cannot_handle(resource: Resource, why: str) -> BadRequestError:
    return BadRequestError(
        f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {why}'
    )


def draft_create(
    resource: Resource, obj: Object, options: WriteOptions, now: datetime, *, applied: bool = False
) -> Object:
    """
    Make the object that a creation asks for, before anybody else has a say.

    Args:
        obj: from ``check_body``.
        applied: the object comes from a server-side apply and has its managedFields already.

    Raises:
        BadRequestError, InvalidError
    """
    if obj["metadata"].get("resourceVersion"):
        raise BadRequestError("resourceVersion should not be set on objects to be created")
    obj = _private(decode(resource, obj, options))
    metadata = obj["metadata"]
    for key in (*_SERVER_OWNED, "selfLink"):
        if key != "generation" or resource.generation:
            metadata.pop(key, None)
    if not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = generate_name(metadata["generateName"])
    metadata["uid"] = new_uid()
    metadata["creationTimestamp"] = format_time(now)
    if resource.generation:
        metadata["generation"] = 1
    if resource.has_status and (resource.custom or defaults.status_is_reset(resource)):
        obj.pop("status", None)
    obj = _with_defaults(resource, obj, None)
    options.warnings += unhonoured.warnings_of(resource, obj)
    if not applied:
        obj = record_update(resource, None, obj, options, now)
    return obj


def complete_create(resource: Resource, obj: Object) -> Object:
    """Add what the server adds to a draft; nobody owns that."""
    return obj if resource.custom else defaults.complete(resource, obj)


def readmit(resource: Resource, obj: Object) -> Object:
    """Read again a new object that somebody changed on its way in: unknown fields go, defaults come."""
    obj = _private(decode(resource, obj, WriteOptions(field_validation="Ignore")))
    return _with_defaults(resource, obj, None)


def validate_create(resource: Resource, obj: Object) -> None:
    """
    Raises:
        InvalidError
    """
    _validate(resource, obj, None)


def prepare_update(
    resource: Resource, obj: Object, old: Object, options: WriteOptions, now: datetime, subresource: str = ""
) -> Object:
    """Make the object that an update stores, without managedFields; ``obj`` is from ``check_body``."""
    obj = _private(decode(resource, obj, options, old))
    metadata, old_metadata = obj["metadata"], old["metadata"]
    for key in _SERVER_OWNED:
        if key in old_metadata:
            metadata[key] = old_metadata[key]
        else:
            metadata.pop(key, None)
    metadata.pop("selfLink", None)
    if subresource in ("status", "resize", "ephemeralcontainers"):
        obj = (
            _only_status(resource, obj, old)
            if subresource == "status"
            else _private(obj | {"status": old.get("status")})
        )
    elif resource.has_status:
        _keep_status(obj, old)
    obj = _with_defaults(resource, obj, old)
    if not subresource and obj.get("spec") != old.get("spec"):
        options.warnings += unhonoured.warnings_of(resource, obj)
    _validate(resource, obj, old, subresource)
    return finish_update(resource, obj, old)


def finish_update(resource: Resource, obj: Object, old: Object) -> Object:
    """Count a changed spec as a new generation."""
    if resource.generation and not _same_spec(obj, old):
        obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
    return obj


def _private(obj: Object) -> Object:
    copy = dict(obj)
    copy["metadata"] = dict(obj["metadata"])
    return copy


def _keep_status(obj: Object, old: Object) -> None:
    obj.pop("status", None)
    if "status" in old:
        obj["status"] = old["status"]


def _only_status(resource: Resource, obj: Object, old: Object) -> Object:
    """What ``/status`` may change: the status, and in some built-in kinds labels and annotations."""
    result = _private(old)
    result.pop("status", None)
    if obj.get("status") is not None:
        result["status"] = obj["status"]
    if not resource.custom:
        for key in ("annotations", *(() if resource.group in ("apps", "batch") else ("labels",))):
            result["metadata"].pop(key, None)
            if obj["metadata"].get(key):
                result["metadata"][key] = obj["metadata"][key]
        if "finalizers" in obj["metadata"] or "finalizers" in result["metadata"]:
            result["metadata"]["finalizers"] = obj["metadata"].get("finalizers") or []
    if "managedFields" in obj["metadata"]:
        result["metadata"]["managedFields"] = obj["metadata"]["managedFields"]
    if not result["metadata"].get("finalizers"):
        result["metadata"].pop("finalizers", None)
    return result


def _with_defaults(resource: Resource, obj: Object, old: Object | None) -> Object:
    if not resource.custom:
        try:
            return defaults.apply_defaults(resource, obj, old)
        except BadRequestError as error:
            # A value that cannot even be read, such as a quantity.
            raise cannot_handle(resource, error.message) from error
    if resource.default is not None:
        obj = _private(resource.default(obj))
    return obj


def _validate(resource: Resource, obj: Object, old: Object | None, subresource: str = "") -> None:
    errors: list[FieldError] = validate_metadata(resource, obj, old)
    if resource.custom:
        if resource.schema is not None:
            errors += resource.schema.validate(_visible(obj), _visible(old) if old else None)
        if resource.validate is not None and not errors and subresource != "status":
            errors += resource.validate(obj, old)
    else:
        errors += validation.validate(resource, obj, old)
    if errors:
        raise failures.invalid(resource, obj["metadata"].get("name", ""), errors)


def _visible(obj: Object) -> Object:
    """The object as its schema and rules see it: of the metadata they know the name only."""
    metadata = obj["metadata"]
    return obj | {"metadata": {key: metadata[key] for key in ("name", "generateName") if key in metadata}}


def _same_spec(new: Object, old: Object) -> bool:
    ignored = ("metadata", "status", "kind", "apiVersion")
    return {k: v for k, v in new.items() if k not in ignored} == {k: v for k, v in old.items() if k not in ignored}


def is_same(new: Object, old: Object) -> bool:
    """Whether a write changes nothing; when a manager only renews what it owns, nothing changes either."""
    if any(new.get(key) != old.get(key) for key in new.keys() | old.keys() if key != "metadata"):
        return False
    return _comparable(new) == _comparable(old)


def _comparable(obj: Object) -> Object:
    metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
    metadata["managedFields"] = [
        {key: value for key, value in entry.items() if key != "time"} for entry in metadata.get("managedFields") or ()
    ]
    return obj | {"metadata": metadata}
