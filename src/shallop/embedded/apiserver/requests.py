"""Who asks, and with which options: what every verb needs besides the object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from shallop.errors import BadRequestError, FieldError, InvalidError

__all__ = ["ADMIN", "ListQuery", "User", "WatchQuery", "WriteOptions"]

_TRUE = frozenset({"1", "t", "T", "true", "True", "TRUE"})
MASTERS = "system:masters"


@dataclass(frozen=True)
class User:
    """An authenticated user."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


AUTHENTICATED, UNAUTHENTICATED = "system:authenticated", "system:unauthenticated"
ADMIN = User("admin", (MASTERS, AUTHENTICATED), uid="1")
ANONYMOUS = User("system:anonymous", (UNAUTHENTICATED,))
_ACCOUNT = "system:serviceaccount:"


def account_groups(name: str) -> tuple[str, ...]:
    """Return the groups of a service account; empty for the name of another user."""
    namespace, separator, account = name.removeprefix(_ACCOUNT).partition(":")
    if not name.startswith(_ACCOUNT) or not separator or not namespace or not account or ":" in account:
        return ()
    return ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")


@dataclass
class WriteOptions:
    """Options of a write; ``warnings`` collects what the client should be told besides the answer."""

    user: User = ADMIN
    dry_run: bool = False
    field_manager: str = "unknown"
    field_validation: str = "Warn"
    force: bool = False
    manager_given: bool = False
    # Whether a new Pod may get its node with its creation; a user's shows first what the user has sent.
    place: bool = False
    # Rendered by code of ours, which is checked for types before it runs, and names no unknown fields: what is built in
    # is not read once more at each write.
    typed: bool = False
    # Repetitions of a key in the body, found while parsing.
    duplicates: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ListQuery:
    label_selector: str = ""
    field_selector: str = ""
    limit: int = 0
    continue_: str = ""
    resource_version: str = ""
    match: str = ""


@dataclass(frozen=True)
class WatchQuery:
    label_selector: str = ""
    field_selector: str = ""
    resource_version: str = ""
    match: str = ""
    bookmarks: bool = False
    initial_events: bool = False
    timeout_s: float | None = None


def parse_bool(text: str) -> bool:
    """Read a flag as Go does; anything that is no clear no, is a yes for the flags of this API."""
    return text in _TRUE or text not in {"", "0", "f", "F", "false", "False", "FALSE"}


def parse_int(text: str) -> int:
    if not text:
        return 0
    try:
        return int(text)
    except ValueError:
        raise BadRequestError(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def parse_write_options(kind: str, query: Mapping[str, list[str]], user: User, user_agent: str) -> WriteOptions:
    """
    Read the query parameters of a write.

    Args:
        kind: CreateOptions, UpdateOptions, PatchOptions or DeleteOptions, for messages.
    """
    options = WriteOptions(user=user)
    errors = []
    dry_run = query.get("dryRun", [])
    if dry_run:
        options.dry_run = True
        if dry_run != ["All"]:
            shown = json.dumps(dry_run, separators=(",", ":"))
            text = f'Unsupported value: {shown}: supported values: "All"'
            errors.append(FieldError("FieldValueNotSupported", text, "dryRun"))
    manager = (query.get("fieldManager") or [""])[0]
    options.manager_given = bool(manager)
    options.field_manager = manager or user_agent.split("/", maxsplit=1)[0].strip() or "unknown"
    for position, character in enumerate(manager):
        if not character.isprintable():
            what = f"invalid character U+{ord(character):04X} (at position {position})"
            text = f"Invalid value: {json.dumps(manager)}: {what}"
            errors.append(FieldError("FieldValueInvalid", text, "fieldManager"))
            break
    if len(manager) > 128:
        errors.append(FieldError("FieldValueTooLong", "Too long: may not be more than 128 bytes", "fieldManager"))
    validation = (query.get("fieldValidation") or [""])[0]
    if validation and validation not in ("Strict", "Warn", "Ignore"):
        errors.append(FieldError.not_supported("fieldValidation", validation, ["", "Ignore", "Strict", "Warn"]))
    options.field_validation = validation or "Warn"
    options.force = parse_bool((query.get("force") or [""])[0])
    if kind == "DeleteOptions":
        # Deletes have no managers and validate no fields.
        errors = [error for error in errors if error.field == "dryRun"]
    if errors:
        raise InvalidError.of(kind, "meta.k8s.io", "", errors)
    return options


def parse_list_query(query: Mapping[str, list[str]]) -> ListQuery:
    def first(name: str) -> str:
        return (query.get(name) or [""])[0]

    parse_int(first("timeoutSeconds"))
    return ListQuery(
        label_selector=first("labelSelector"),
        field_selector=first("fieldSelector"),
        limit=max(parse_int(first("limit")), 0),
        continue_=first("continue"),
        resource_version=first("resourceVersion"),
        match=first("resourceVersionMatch"),
    )


def parse_watch_query(query: Mapping[str, list[str]]) -> WatchQuery:
    def first(name: str) -> str:
        return (query.get(name) or [""])[0]

    timeout_s = parse_int(first("timeoutSeconds"))
    return WatchQuery(
        label_selector=first("labelSelector"),
        field_selector=first("fieldSelector"),
        resource_version=first("resourceVersion"),
        match=first("resourceVersionMatch"),
        bookmarks=parse_bool(first("allowWatchBookmarks")),
        initial_events=parse_bool(first("sendInitialEvents")),
        timeout_s=float(timeout_s) if timeout_s > 0 else None,
    )
