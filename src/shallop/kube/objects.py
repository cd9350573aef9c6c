"""Kubernetes objects as plain dicts, and the vocabulary to read them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = [
    "Gvk",
    "Key",
    "Object",
    "ResourceType",
    "annotations_of",
    "controller_of",
    "find_condition",
    "format_time",
    "gvk_of",
    "is_condition_true",
    "is_deleting",
    "key_of",
    "labels_of",
    "new_uid",
    "owner_reference",
    "parse_quantity",
    "parse_time",
    "set_condition",
]

Object = dict[str, Any]


class Gvk(NamedTuple):
    """A kind in a version, such as ``Gvk("apps/v1", "Deployment")``."""

    api_version: str
    kind: str

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]


class Key(NamedTuple):
    """Where an object lives; ``namespace`` is empty for cluster-scoped objects."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class ResourceType(NamedTuple):
    """A type that an API server serves."""

    gvk: Gvk
    plural: str
    namespaced: bool
    verbs: tuple[str, ...]


def gvk_of(obj: Mapping[str, Any]) -> Gvk:
    return Gvk(obj["apiVersion"], obj["kind"])


def key_of(obj: Mapping[str, Any]) -> Key:
    metadata = obj["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


def labels_of(obj: Mapping[str, Any]) -> dict[str, str]:
    return obj.get("metadata", {}).get("labels") or {}


def annotations_of(obj: Mapping[str, Any]) -> dict[str, str]:
    return obj.get("metadata", {}).get("annotations") or {}


def is_deleting(obj: Mapping[str, Any]) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def new_uid() -> str:
    """Return a random UUID (RFC 9562, version 4), at a fourth of the price of ``str(uuid.uuid4())``."""
    bits = int.from_bytes(os.urandom(16))
    text = f"{bits & _UUID_BITS | _UUID4:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# Version 4 and the variant of the RFC, and the bits that are free.
_UUID4 = 0x4000_8000_0000_0000_0000
_UUID_BITS = (1 << 128) - 1 & ~0xF000_C000_0000_0000_0000


def owner_reference(owner: Mapping[str, Any], *, controller: bool = True) -> dict[str, Any]:
    """Return the reference that a child of ``owner`` carries; ``owner`` must be stored (it has a uid)."""
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    if controller:
        reference |= {"controller": True, "blockOwnerDeletion": True}
    return reference


def controller_of(obj: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the owner reference marked ``controller``, if any."""
    for reference in obj["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return dict(reference)
    return None


def find_condition(obj: Mapping[str, Any], type_: str) -> dict[str, Any] | None:
    for condition in (obj.get("status") or {}).get("conditions") or ():
        if condition.get("type") == type_:
            return dict(condition)
    return None


def is_condition_true(obj: Mapping[str, Any], type_: str) -> bool:
    return (find_condition(obj, type_) or {}).get("status") == "True"


def set_condition(
    conditions: list[dict[str, Any]], type_: str, status: str, reason: str, message: str, now: datetime
) -> list[dict[str, Any]]:
    """
    Return ``conditions`` with one of them set; the transition time moves only when ``status`` changes.

    Args:
        status: "True", "False" or "Unknown".
        now: aware UTC time of the decision.
    """
    result = []
    transition = format_time(now)
    found = False
    for old in conditions:
        if old.get("type") != type_:
            result.append(old)
            continue
        found = True
        if old.get("status") == status:
            transition = old.get("lastTransitionTime", transition)
        result.append(_condition(type_, status, reason, message, transition))
    if not found:
        result.append(_condition(type_, status, reason, message, transition))
    return result


def _condition(type_: str, status: str, reason: str, message: str, transition: str) -> dict[str, Any]:
    condition = {"type": type_, "status": status, "lastTransitionTime": transition}
    if reason:
        condition["reason"] = reason
    if message:
        condition["message"] = message
    return condition


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as ``metav1.Time``."""
    t = time if time.tzinfo is UTC else time.astimezone(UTC)
    # A quarter of what isoformat takes, half of an f-string: every write has several.
    return "%04d-%02d-%02dT%02d:%02d:%02dZ" % (t.year, t.month, t.day, t.hour, t.minute, t.second)  # noqa: UP031


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time; raises ValueError."""
    return datetime.fromisoformat(text)


_SUFFIXES: dict[str, Decimal] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}


def parse_quantity(text: str | int | float) -> Decimal:
    """
    Read a Kubernetes quantity such as ``500m``, ``2Gi`` or ``1e3``.

    Raises:
        ValueError: the text is no quantity.
    """
    return _parse_quantity(str(text).strip())


# A node's are read again for every Pod, and most Pods ask for the same few.
@lru_cache(maxsize=1000)
def _parse_quantity(text: str) -> Decimal:
    for length in (2, 1, 0):
        number, suffix = (text[:-length], text[-length:]) if length else (text, "")
        if suffix in _SUFFIXES and number:
            try:
                return Decimal(number) * _SUFFIXES[suffix]
            except InvalidOperation:
                continue
    raise ValueError(f"not a quantity: {text!r}; write a number with an optional suffix such as m, k, Mi, Gi")
