"""The failures that name a resource and an object, worded as a real API server words them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shallop.embedded.apiserver.resources import Resource
from shallop.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    FieldError,
    ForbiddenError,
    InvalidError,
    MethodNotAllowedError,
    NotFoundError,
)

__all__ = ["already_exists", "conflict", "forbidden", "invalid", "method_not_allowed", "not_found", "unknown_resource"]


def details_of(resource: Resource, name: str = "") -> dict[str, Any]:
    details = {"name": name, "group": resource.group, "kind": resource.plural}
    return {key: value for key, value in details.items() if value}


def not_found(resource: Resource, name: str) -> NotFoundError:
    return NotFoundError(f'{resource.qualified} "{name}" not found', details=details_of(resource, name))


def already_exists(resource: Resource, name: str, *, deleting: bool = False) -> AlreadyExistsError:
    prefix = "object is being deleted: " if deleting else ""
    message = f'{prefix}{resource.qualified} "{name}" already exists'
    return AlreadyExistsError(message, details=details_of(resource, name))


_MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(resource: Resource, name: str, why: str = _MODIFIED) -> ConflictError:
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ConflictError(message, details=details_of(resource, name))


def precondition_failed(
    resource: Resource, namespace: str, name: str, what: str, wanted: str, found: str
) -> ConflictError:
    where = "/".join(filter(None, ("/registry", resource.group, resource.plural, namespace, name)))
    why = (
        f"StorageError: invalid object, Code: 4, Key: {where}, ResourceVersion: 0, AdditionalErrorMsg: "
        f"Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
    )
    return conflict(resource, name, why)


def forbidden(resource: Resource, name: str, why: str) -> ForbiddenError:
    what = f'{resource.qualified} "{name}"' if name else resource.qualified
    return ForbiddenError(f"{what} is forbidden: {why}", details=details_of(resource, name))


def invalid(resource: Resource, name: str, errors: Sequence[FieldError]) -> InvalidError:
    return InvalidError.of(resource.kind, resource.group, name, errors)


def unknown_resource() -> NotFoundError:
    return NotFoundError("the server could not find the requested resource", details={})


def method_not_allowed() -> ApiError:
    return MethodNotAllowedError("the server does not allow this method on the requested resource", details={})
