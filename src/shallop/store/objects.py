"""
Object stores by URI: S3-compatible (``s3://``, ``minio://``), Google Cloud Storage (``gs://``), Azure (``az://``).

Files and folders are brought whole to a local path and back. All calls block: use a thread. The work is obstore's,
which is imported on first use.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from shallop.errors import ObjectStoreError

__all__ = ["Access", "ObjectUri", "delete", "download", "exists", "is_object_uri", "parse_object_uri", "upload"]

_FAMILIES = {"s3": "s3", "minio": "s3", "gs": "gs", "az": "az", "azure": "az"}
# An endpoint that is not there must become an error of the step, not a step that hangs.
_RETRY: dict[str, Any] = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}
_CLIENT: dict[str, Any] = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(hours=1)}
_CHUNK_BYTES = 1 << 20


class ObjectUri(NamedTuple):
    """``s3://bucket/a/b?region=x``: scheme, bucket, key ``a/b``, options; the key has no slash at its ends."""

    scheme: str
    bucket: str
    key: str
    options: Mapping[str, str]

    @property
    def family(self) -> str:
        """``s3``, ``gs`` or ``az``: who speaks the same protocol."""
        return _FAMILIES[self.scheme]


@dataclass(frozen=True)
class Access:
    """
    How a bucket is reached.

    Args:
        endpoint: of an S3-compatible or emulated server; empty = the provider's own.
        credentials: names as obstore's stores have them; empty = those of the server's process, or none.
    """

    endpoint: str = ""
    region: str = ""
    path_style: bool = True
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


def is_object_uri(uri: str) -> bool:
    return uri.partition("://")[0] in _FAMILIES and "://" in uri


def parse_object_uri(uri: str) -> ObjectUri:
    """
    Take a URI apart.

    Raises:
        ObjectStoreError: another scheme, or no bucket.
    """
    scheme, _, rest = uri.partition("://")
    place, _, query = rest.partition("?")
    bucket, _, key = place.partition("/")
    if scheme not in _FAMILIES or not bucket:
        raise ObjectStoreError(f"{uri!r}: write s3://BUCKET/..., minio://, gs:// or az://CONTAINER/....")
    options = {name: values[-1] for name, values in parse_qs(query).items()}
    return ObjectUri(scheme, bucket, key.strip("/"), options)


def _open(uri: ObjectUri, access: Access) -> Any:
    from obstore.store import AzureStore, GCSStore, S3Store

    endpoint = uri.options.get("endpoint") or access.endpoint
    if endpoint and "://" not in endpoint:
        insecure = uri.options.get("disableSSL", "").lower() == "true"
        endpoint = f"{'http' if insecure else 'https'}://{endpoint}"
    client = _CLIENT | {"allow_http": endpoint.startswith("http://")}
    common: dict[str, Any] = {"client_options": client, "retry_config": _RETRY}
    config: Any = dict(access.credentials)
    if uri.family == "gs":
        return GCSStore(uri.bucket, config=config | ({"base_url": endpoint} if endpoint else {}), **common)
    if endpoint:
        config["endpoint"] = endpoint
    if uri.family == "az":
        return AzureStore(uri.bucket, config=config, **common)
    config["region"] = uri.options.get("region") or access.region or os.environ.get("AWS_REGION") or "us-east-1"
    path_style = uri.options.get("s3ForcePathStyle", str(access.path_style)).lower() == "true"
    config["virtual_hosted_style_request"] = not path_style
    return S3Store(uri.bucket, config=config, **common)


def upload(path: Path, uri: str, access: Access) -> None:
    """
    Store a file under its URI, a folder's files below it; symbolic links are stored as what they lead to.

    Raises:
        ObjectStoreError: the store refuses, or cannot be reached.
    """
    place = parse_object_uri(uri)
    try:
        store = _open(place, access)
        if path.is_dir():
            for folder, _, names in os.walk(path):
                for name in names:
                    file = Path(folder, name)
                    if file.is_file():
                        _put(store, f"{place.key}/{file.relative_to(path).as_posix()}", file)
        elif path.exists():
            _put(store, place.key, path)
    except Exception as error:  # obstore's errors have no common class below Exception
        raise _failed("cannot be stored", uri, error) from error


def _put(store: Any, key: str, file: Path) -> None:
    import obstore

    with file.open("rb") as content:
        obstore.put(store, key, content)


def download(uri: str, path: Path, access: Access) -> bool:
    """
    Bring an object to ``path``, or all objects below the URI into a folder there; False when there are none.

    ``path`` is complete or not there at all.

    Raises:
        ObjectStoreError: the store refuses, or cannot be reached.
        OSError: ``path`` cannot be written.
    """
    import obstore

    place = parse_object_uri(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    found = False
    try:
        try:
            store = _open(place, access)
            try:
                _get(store, place.key, temporary)
                found = True
            except FileNotFoundError:
                for batch in obstore.list(store, f"{place.key}/"):
                    for meta in batch:
                        target = temporary / meta["path"].removeprefix(f"{place.key}/")
                        target.parent.mkdir(parents=True, exist_ok=True)
                        _get(store, meta["path"], target)
                        found = True
        except OSError:
            raise
        except Exception as error:  # obstore's errors have no common class below Exception
            raise _failed("cannot be read", uri, error) from error
        if found:
            os.replace(temporary, path)
        return found
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _get(store: Any, key: str, target: Path) -> None:
    import obstore

    stream = obstore.get(store, key).stream(min_chunk_size=_CHUNK_BYTES)
    with target.open("wb") as file:
        for chunk in stream:
            file.write(chunk)


def exists(uri: str, access: Access) -> bool:
    """Say whether an object, or one below it, is there."""
    import obstore

    place = parse_object_uri(uri)
    try:
        store = _open(place, access)
        try:
            obstore.head(store, place.key)
            return True
        except FileNotFoundError:
            return any(len(batch) for batch in obstore.list(store, f"{place.key}/"))
    except Exception as error:  # obstore's errors have no common class below Exception
        raise _failed("cannot be looked up", uri, error) from error


def delete(uri: str, access: Access) -> None:
    """Remove an object and all below it; nothing happens when nothing is there."""
    import obstore

    place = parse_object_uri(uri)
    try:
        store = _open(place, access)
        keys = [meta["path"] for batch in obstore.list(store, f"{place.key}/") for meta in batch]
        obstore.delete(store, keys)
        # By itself: one that is not there is an error to Google and Azure, and would leave others behind.
        obstore.delete(store, place.key)
    except FileNotFoundError:
        pass
    except Exception as error:  # obstore's errors have no common class below Exception
        raise _failed("cannot be removed", uri, error) from error


def _failed(what: str, uri: str, error: Exception) -> ObjectStoreError:
    reason = " ".join(str(error).split())[:500]
    return ObjectStoreError(
        f"{uri.partition('?')[0]}: {what}: {reason}. Endpoint and credentials are in ConfigMap "
        "kfp-launcher of the run's namespace."
    )
