"""
From an artifact's URI to the path where a process finds it.

One place for all code in Pods: object stores join here, as one more scheme that maps to a local folder.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

__all__ = ["UnsupportedUriError", "local_path"]


class UnsupportedUriError(ValueError):
    """A URI that is no place on this machine."""


def local_path(uri: str) -> str:
    """
    Return the absolute path of a plain path or a ``file://`` URI.

    Raises:
        UnsupportedUriError: another scheme, another host, or a relative path.
    """
    if uri.startswith("/"):
        return uri
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return unquote(parts.path)
    if parts.scheme and "://" in uri:
        raise UnsupportedUriError(
            f"{uri}: no store for {parts.scheme}:// is configured here; use a path or file:// URI."
        )
    raise UnsupportedUriError(f"{uri!r} is no absolute path; use a path from / on, or a file:// URI.")
