"""Which form of an answer a client asks for."""

from __future__ import annotations

import re
from typing import NamedTuple

from shallop.errors import NotAcceptableError

__all__ = ["Form", "negotiate"]

_TYPES = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
_META_VERSIONS = ("v1", "v1beta1")
_PARTIAL = ("PartialObjectMetadata", "PartialObjectMetadataList")


class Form(NamedTuple):
    """``as_`` is empty (the object), ``Table`` or ``PartialObjectMetadata``; ``version`` is that of meta.k8s.io."""

    as_: str = ""
    version: str = "v1"
    yaml: bool = False
    discovery: str = ""

    @property
    def is_json(self) -> bool:
        """Whether the object itself is wanted, as it is."""
        return not self.as_ and not self.yaml


_JSON = Form()


def negotiate(accept: str) -> Form:
    """
    Pick the first form of an Accept header that can be given.

    Raises:
        NotAcceptableError: there is none.
    """
    if not accept or accept in ("*/*", "application/json"):
        return _JSON
    known_type = False
    clauses = []
    for order, clause in enumerate(accept.split(",")):
        media, *parameters = (part.strip() for part in clause.split(";"))
        named = dict(parameter.partition("=")[::2] for parameter in parameters)
        clauses.append((-_quality(named.get("q", "1")), order, media.lower(), named))
    for _, _, media, named in sorted(clauses, key=lambda clause: clause[:2]):
        if media in ("*/*", "application/*"):
            return _JSON
        if media not in _TYPES:
            continue
        known_type = True
        # Protobuf is never sent; clients that prefer it take JSON from a list or as what we have.
        if media == _TYPES[2]:
            continue
        form = _form(named, yaml=media == "application/yaml")
        if form is not None:
            return form
    if known_type and re.search(r"protobuf", accept) and "as=" not in accept:
        return _JSON
    if known_type:
        raise NotAcceptableError(f"only the following media types are accepted: {', '.join(_TYPES)}")
    raise NotAcceptableError(f"406: Not Acceptable\n\nAvailable representations: {', '.join(_TYPES)}", details={})


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0


def _form(named: dict[str, str], *, yaml: bool) -> Form | None:
    as_ = named.get("as", "")
    if not as_:
        return Form(yaml=yaml)
    group, version = named.get("g", ""), named.get("v", "")
    if as_ == "APIGroupDiscoveryList" and group == "apidiscovery.k8s.io" and version in ("v2", "v2beta1"):
        return Form(discovery=version)
    if group != "meta.k8s.io" or version not in _META_VERSIONS:
        return None
    if as_ == "Table":
        return Form("Table", version)
    if as_ in _PARTIAL:
        return Form("PartialObjectMetadata", version)
    return None
