"""
Where a model comes from: what a storage URI means. Pure, but for looking at no more than names.

Honoured here: a plain absolute path, ``file://``, ``pvc://claim/path`` (mounted, never copied) and ``model-registry://``
(resolved to the URI that the registry has). Everything else is for the storage initializer of the Pod to download.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from shallop.errors import ShallopError

__all__ = [
    "Claim",
    "ModelPathError",
    "RegistryReference",
    "check_uri",
    "claim_of",
    "find_missing",
    "has_known_scheme",
    "local_path",
    "parse_registry_uri",
]

SCHEMES = (
    *("file", "pvc", "model-registry", "s3", "gs", "http", "https", "hf", "modelscope", "oci", "oci+native"),
    *("oci+fetch", "hdfs", "webhdfs"),
)
REGISTRY = "model-registry://"
# Names under which this platform's own registry is known inside Pods.
_OWN_REGISTRY = "model-registry-service"


class ModelPathError(ShallopError):
    """A path of this machine that a URI names does not exist."""


class Claim(NamedTuple):
    """A folder of a PersistentVolumeClaim; ``path`` is relative, empty for all of it."""

    name: str
    path: str


class RegistryReference(NamedTuple):
    """A model of a registry; an empty version is the newest, an empty host the platform's own registry."""

    host: str
    model: str
    version: str


def has_known_scheme(uri: str) -> bool:
    """Say whether a URI means something by itself; others need a ClusterStorageContainer that brings them."""
    scheme, separator, _ = uri.partition("://")
    return not separator or scheme in SCHEMES


def check_uri(uri: str) -> str:
    """Return what is wrong with a storage URI, empty when nothing is."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "" if uri.startswith("/") else "a path must be absolute; or use a URI such as pvc://claim/folder"
    if scheme not in SCHEMES:
        return f"scheme {scheme}:// is not known; use one of {', '.join(SCHEMES)} or an absolute path"
    if not rest.strip("/"):
        return f"nothing follows {scheme}://"
    if problem := _check_checksum(uri):
        return problem
    if scheme in ("pvc", "file") and ".." in PurePosixPath(rest).parts:
        return "must not contain '..'"
    if scheme == "file" and not rest.startswith("/"):
        return "use three slashes: file:///absolute/path"
    if scheme == "model-registry":
        return _check_registry_uri(uri)
    return ""


def _check_checksum(uri: str) -> str:
    start, _, fragment = uri.rpartition("#")
    kind, _, digest = fragment.partition("=")
    if "://" not in start or (kind != "sha256" and not start.startswith("http")):
        return ""
    if kind != "sha256" or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        return "what follows # must be sha256= and 64 hexadecimal digits"
    if start.startswith(("pvc://", "oci")):
        return "a checksum is for one file that is brought; a claim is mounted, an image has a digest: @sha256:..."
    return ""


def _check_registry_uri(uri: str) -> str:
    try:
        parse_registry_uri(uri)
    except ValueError as error:
        return str(error)
    return ""


def claim_of(uri: str) -> Claim | None:
    """Return the claim that a ``pvc://`` URI names, None for other URIs."""
    if not uri.startswith("pvc://"):
        return None
    name, _, path = uri.removeprefix("pvc://").partition("/")
    return Claim(name, path.strip("/"))


def local_path(uri: str, namespace: str, volumes: Path) -> Path | None:
    """
    Return where the model lies on this machine, None when it lies elsewhere or is unsafe to name.

    Args:
        volumes: the folder of all claims, ``<namespace>/<claim>`` below it.
    """
    if claim := claim_of(uri):
        root = (volumes / namespace / claim.name).resolve()
        path = (root / claim.path).resolve()
        return path if path.is_relative_to(root) and root.parent == (volumes / namespace).resolve() else None
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    return Path(uri) if uri.startswith("/") else None


def find_missing(component: str, wanted: Mapping[str, str]) -> str:
    """
    Say which path of this machine is not there; empty where all are, or lie elsewhere.

    Args:
        wanted: field below the component -> URI.
    """
    for field, uri in wanted.items():
        path = None if claim_of(uri) else local_path(uri, "", Path())
        # A folder that may not be looked into is as good as absent; os.path says so without raising.
        if path and not os.path.exists(path):
            return (
                f"spec.{component}.{field}: {path} does not exist on this machine; put the model there, and the "
                "service goes on, or name another place, such as pvc://claim/folder or s3://bucket/folder"
            )
    return ""


def parse_registry_uri(uri: str) -> RegistryReference:
    """
    Read ``model-registry://[host/]model[/version]``.

    Two parts are a model and a version, unless the first looks like the address of a registry.

    Raises:
        ValueError: too few or too many parts.
    """
    location = uri.removeprefix(REGISTRY).partition("?")[0]
    parts = [unquote(part) for part in location.strip("/").split("/")]
    host = parts.pop(0) if len(parts) == 3 or (len(parts) == 2 and _is_host(parts[0])) else ""
    if not 1 <= len(parts) <= 2 or not all(parts):
        raise ValueError("write model-registry://MODEL or model-registry://MODEL/VERSION")
    return RegistryReference("" if _is_own(host) else host, parts[0], parts[1] if len(parts) == 2 else "")


def _is_host(text: str) -> bool:
    return ":" in text or _is_own(text)


def _is_own(host: str) -> bool:
    return host.partition(":")[0].partition(".")[0] == _OWN_REGISTRY
