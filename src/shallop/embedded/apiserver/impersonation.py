"""Acting as another user: the ``Impersonate-*`` headers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from shallop.embedded.apiserver.authorization import Attributes, Authorize
from shallop.embedded.apiserver.requests import ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User, account_groups
from shallop.errors import BadRequestError, ForbiddenError

__all__ = ["impersonated"]

_EXTRA = "impersonate-extra-"
_IDENTITY = "authentication.k8s.io"


def impersonated(user: User, headers: Iterable[tuple[bytes, bytes]], authorize: Authorize) -> User:
    """
    Return the user that a request acts as; ``user`` itself when it does not impersonate.

    Raises:
        BadRequestError: groups, uid or extra fields without a user.
        ForbiddenError: ``user`` may not impersonate what is asked.
    """
    given = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in headers if name.startswith(b"impersonate-")
    ]
    if not given:
        return user
    name = next((value for key, value in given if key == "impersonate-user"), "")
    groups = [value for key, value in given if key == "impersonate-group"]
    uid = next((value for key, value in given if key == "impersonate-uid"), "")
    extra: dict[str, list[str]] = {}
    for key, value in given:
        if key.startswith(_EXTRA):
            extra.setdefault(unquote(key.removeprefix(_EXTRA)), []).append(value)
    if not name:
        raise BadRequestError("Impersonate-Group, -Uid and -Extra headers need an Impersonate-User header")
    for attributes in _wanted(name, groups, uid, extra):
        if not authorize(user, attributes)[0]:
            what = f'{attributes.resource}{"." + attributes.group if attributes.group else ""} "{attributes.name}"'
            details = {"name": attributes.name, "group": attributes.group, "kind": attributes.resource}
            raise ForbiddenError(
                f"{what} is forbidden: {attributes.describe(user)}",
                details={key: value for key, value in details.items() if value},
            )
    if not groups:
        groups = list(account_groups(name))
    everybody = UNAUTHENTICATED if name == ANONYMOUS.name else AUTHENTICATED
    if everybody not in groups:
        groups.append(everybody)
    return User(name, tuple(groups), uid, {key: tuple(values) for key, values in extra.items()})


def _wanted(name: str, groups: Iterable[str], uid: str, extra: dict[str, list[str]]) -> Iterator[Attributes]:
    parts = name.split(":")
    if account_groups(name):
        yield Attributes("impersonate", "", "serviceaccounts", parts[2], parts[3])
    else:
        yield Attributes("impersonate", "", "users", "", name)
    for group in groups:
        yield Attributes("impersonate", "", "groups", "", group)
    if uid:
        yield Attributes("impersonate", _IDENTITY, "uids", "", uid)
    for key, values in extra.items():
        for value in values:
            yield Attributes("impersonate", _IDENTITY, f"userextras/{key}", "", value)
