"""Essential rules of built-in kinds, worded as a real API server words them."""

from __future__ import annotations

from collections.abc import Callable

from shallop.embedded.apiserver.resources import Resource
from shallop.errors import FieldError
from shallop.kube.objects import Object

__all__ = ["validate"]

Validate = Callable[[Object, Object | None], list[FieldError]]


def validate(resource: Resource, obj: Object, old: Object | None) -> list[FieldError]:
    """Return what is wrong with a built-in object; ``old`` is the stored one on updates."""
    check = _VALIDATE.get(resource.storage)
    return check(obj, old) if check else []


_VALIDATE: dict[str, Validate] = {}
