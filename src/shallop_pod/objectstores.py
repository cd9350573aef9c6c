"""
Object stores that models come from: what lies below a URI and how each object is asked for. Standard library only.

``s3://BUCKET/PREFIX`` (AWS Signature 4, any S3-compatible server by ``AWS_ENDPOINT_URL``), ``gs://BUCKET/PREFIX``
(public buckets, a service account's key in ``GOOGLE_APPLICATION_CREDENTIALS_JSON`` or the file that
``GOOGLE_APPLICATION_CREDENTIALS`` names, an access token in ``GOOGLE_OAUTH_ACCESS_TOKEN``, or
``STORAGE_EMULATOR_HOST``), ``https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX`` (public containers,
``AZURE_STORAGE_SAS_TOKEN``, ``AZURE_STORAGE_ACCESS_KEY``, or a service principal's ``AZ_CLIENT_ID``,
``AZ_CLIENT_SECRET`` and ``AZ_TENANT_ID``) and
``hf://OWNER/MODEL[:REVISION]`` (``HF_TOKEN``, ``HF_ENDPOINT``).

Source: AWS Signature Version 4; S3 ListObjectsV2; GCS JSON API v1; Azure Blob service REST; Hugging Face Hub API;
environment variables as KServe 0.21's storage initializer has them.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import ssl
import urllib.parse
import urllib.request
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shallop_pod.cloudkeys import CloudKeyError, azure_sas, azure_token_request, google_token

__all__ = ["ObjectStoreError", "RemoteObject", "is_object_store", "list_objects", "put_request", "sign", "ssl_context"]

Request = urllib.request.Request
Fetch = Callable[[Request], bytes]
"""Sends a request and returns the body; raises what its caller wants to raise."""

_AZURE = ".blob.core.windows.net"
_EMPTY = hashlib.sha256(b"").hexdigest()


class ObjectStoreError(Exception):
    """The URI or the settings do not say where to look; the message is for the owner of the model server."""


class RemoteObject(NamedTuple):
    """An object; ``relative`` to the URI, ``request`` makes a request that is good for some minutes."""

    relative: str
    request: Callable[[], Request]


def is_object_store(uri: str) -> bool:
    return uri.startswith(("s3://", "gs://", "hf://")) or _azure_host(uri)


def _azure_host(uri: str) -> bool:
    parts = urllib.parse.urlsplit(uri)
    return parts.scheme == "https" and (parts.hostname or "").endswith(_AZURE)


def list_objects(uri: str, environ: Mapping[str, str], fetch: Fetch) -> Iterator[RemoteObject]:
    """
    Yield what lies at or below ``uri``.

    Raises:
        ObjectStoreError: the URI cannot be read.
    """
    if uri.startswith("s3://"):
        return _list_s3(uri, environ, fetch)
    if uri.startswith("gs://"):
        return _list_gs(uri, environ, fetch)
    if uri.startswith("hf://"):
        return _list_hf(uri, environ, fetch)
    return _list_azure(uri, environ, fetch)


def ssl_context(environ: Mapping[str, str]) -> ssl.SSLContext | None:
    """Return what S3_VERIFY_SSL and AWS_CA_BUNDLE ask for; None is the default."""
    if environ.get("S3_VERIFY_SSL", "").lower() in ("0", "false"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    bundle = environ.get("AWS_CA_BUNDLE")
    return ssl.create_default_context(cafile=bundle) if bundle else None


def _below(key: str, prefix: str) -> str:
    """Return a key relative to the prefix: its last part where the prefix is the key itself; empty where neither."""
    if not prefix:
        return key
    if key == prefix:
        return key.rpartition("/")[2]
    return key[len(prefix) + 1 :] if key.startswith(prefix + "/") else ""


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    if not bucket:
        raise ObjectStoreError(f"{uri}: name a bucket, as in s3://BUCKET/FOLDER.")
    return bucket, urllib.parse.unquote(prefix).strip("/")


# --- S3 -------------------------------------------------------------------------------------------------------------


class _S3(NamedTuple):
    endpoint: urllib.parse.SplitResult
    bucket: str
    virtual: bool
    region: str
    access_key: str
    secret_key: str
    token: str

    def request(
        self,
        key: str,
        query: Mapping[str, str],
        body: bytes | None = None,
        more: Mapping[str, str] = {},
    ) -> Request:
        path = "/" + urllib.parse.quote(key, safe="/-_.~") if self.virtual else f"/{self.bucket}"
        if not self.virtual and key:
            path += "/" + urllib.parse.quote(key, safe="/-_.~")
        host = f"{self.bucket}.{self.endpoint.netloc}" if self.virtual else self.endpoint.netloc
        encoded = "&".join(f"{_quote(name)}={_quote(value)}" for name, value in sorted(query.items()))
        url = f"{self.endpoint.scheme}://{host}{path}" + (f"?{encoded}" if encoded else "")
        headers, method = {"host": host, **more}, "GET" if body is None else "PUT"
        if self.access_key:
            now, keys = datetime.datetime.now(datetime.UTC), (self.access_key, self.secret_key)
            digest = hashlib.sha256(body or b"").hexdigest()
            known = {**headers, **self._token()}
            headers = sign(url, known, keys, self.region, now, method=method, digest=digest)
        return Request(url, body, headers, method=method)

    def _token(self) -> dict[str, str]:
        return {"x-amz-security-token": self.token} if self.token else {}


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")


def sign(
    url: str,
    headers: Mapping[str, str],
    keys: tuple[str, str],
    region: str,
    now: datetime.datetime,
    *,
    method: str = "GET",
    digest: str = _EMPTY,
) -> dict[str, str]:
    """
    Return the headers of a request with an AWS Signature 4 for S3.

    Args:
        headers: names in lower case; the host among them.
        keys: access key id and secret key.
        digest: SHA-256 of the body.
    """
    parts, stamp = urllib.parse.urlsplit(url), now.strftime("%Y%m%dT%H%M%SZ")
    signed = {**headers, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    names = ";".join(sorted(signed))
    query = "&".join(sorted(part if "=" in part else f"{part}=" for part in parts.query.split("&") if part))
    lines = [f"{name}:{signed[name].strip()}" for name in sorted(signed)]
    canonical = "\n".join([method, parts.path or "/", query, *lines, "", names, digest])
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{keys[1]}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    credential = f"Credential={keys[0]}/{scope},SignedHeaders={names},Signature={signature}"
    return {**signed, "authorization": f"AWS4-HMAC-SHA256 {credential}"}


def _is_true(text: str) -> bool:
    return text.lower() in ("1", "true", "yes")


def _s3(uri: str, environ: Mapping[str, str]) -> tuple[_S3, str]:
    bucket, prefix = _bucket_and_prefix(uri)
    region = environ.get("AWS_DEFAULT_REGION") or environ.get("AWS_REGION") or "us-east-1"
    endpoint = environ.get("AWS_ENDPOINT_URL") or environ.get("S3_ENDPOINT") or f"https://s3.{region}.amazonaws.com"
    if "://" not in endpoint:
        endpoint = f"{'http' if environ.get('S3_USE_HTTPS') in ('0', 'false') else 'https'}://{endpoint}"
    anonymous = _is_true(environ.get("awsAnonymousCredential", ""))
    access, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
    if anonymous or not secret:
        access = secret = ""
    virtual = _is_true(environ.get("S3_USER_VIRTUAL_BUCKET", ""))
    parts = urllib.parse.urlsplit(endpoint.rstrip("/"))
    return _S3(parts, bucket, virtual, region, access, secret, environ.get("AWS_SESSION_TOKEN", "")), prefix


def put_request(uri: str, environ: Mapping[str, str], body: bytes, content_type: str) -> Request:
    """Return the request that stores an object of S3."""
    store, key = _s3(uri, environ)
    return store.request(key, {}, body, {"content-type": content_type})


def _list_s3(uri: str, environ: Mapping[str, str], fetch: Fetch) -> Iterator[RemoteObject]:
    store, prefix = _s3(uri, environ)
    query = {"list-type": "2", "prefix": prefix}
    while True:
        page = xml.etree.ElementTree.fromstring(fetch(store.request("", query)))
        for item in page.iterfind("{*}Contents"):
            key, size = item.findtext("{*}Key") or "", item.findtext("{*}Size") or "0"
            relative = _below(key, prefix)
            if relative and not key.endswith("/") and size != "0":
                yield RemoteObject(relative, lambda key=key: store.request(key, {}))  # type: ignore[misc]
        token = page.findtext("{*}NextContinuationToken")
        if not token:
            return
        query["continuation-token"] = token


# --- Google, Azure, Hugging Face ------------------------------------------------------------------------------------


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _google_token(environ: Mapping[str, str]) -> str:
    if token := environ.get("GOOGLE_OAUTH_ACCESS_TOKEN"):
        return token
    credentials = environ.get("GOOGLE_APPLICATION_CREDENTIALS_JSON", "")
    if not credentials and (path := environ.get("GOOGLE_APPLICATION_CREDENTIALS")):
        credentials = Path(path).read_text()
    try:
        return google_token(credentials, datetime.datetime.now(datetime.UTC).timestamp()) if credentials else ""
    except CloudKeyError as error:
        raise ObjectStoreError(f"Google Cloud Storage: {error}.") from error


def _list_gs(uri: str, environ: Mapping[str, str], fetch: Fetch) -> Iterator[RemoteObject]:
    bucket, prefix = _bucket_and_prefix(uri)
    base = environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    base = (base if "://" in base else f"http://{base}").rstrip("/")
    headers = _bearer(_google_token(environ))
    root, query = f"{base}/storage/v1/b/{_quote(bucket)}/o", {"prefix": prefix}
    while True:
        page: dict[str, Any] = json.loads(fetch(Request(f"{root}?{urllib.parse.urlencode(query)}", headers=headers)))
        for item in page.get("items") or ():
            name = str(item["name"])
            relative = _below(name, prefix)
            if relative and not name.endswith("/"):
                yield RemoteObject(
                    relative,
                    lambda name=name: Request(f"{root}/{_quote(name)}?alt=media", headers=headers),  # type: ignore[misc]
                )
        if not page.get("nextPageToken"):
            return
        query["pageToken"] = page["nextPageToken"]


def _azure_access(
    parts: urllib.parse.SplitResult, container: str, environ: Mapping[str, str], fetch: Fetch
) -> tuple[str, dict[str, str]]:
    """Return what is added to the query, and the headers, of requests for a container."""
    if given := environ.get("AZURE_STORAGE_SAS_TOKEN") or parts.query:
        return given.lstrip("?"), {}
    if key := environ.get("AZURE_STORAGE_ACCESS_KEY"):
        account, now = (parts.hostname or "").partition(".")[0], datetime.datetime.now(datetime.UTC)
        try:
            return azure_sas(account, container, key, now), {}
        except CloudKeyError as error:
            raise ObjectStoreError(f"Azure Blob Storage: {error}.") from error
    if request := azure_token_request(environ):
        return "", _bearer(json.loads(fetch(request))["access_token"]) | {"x-ms-version": "2021-08-06"}
    return "", {}


def _list_azure(uri: str, environ: Mapping[str, str], fetch: Fetch) -> Iterator[RemoteObject]:
    parts = urllib.parse.urlsplit(uri)
    container, _, prefix = urllib.parse.unquote(parts.path).strip("/").partition("/")
    if not container:
        raise ObjectStoreError(f"{uri}: name a container, as in https://ACCOUNT{_AZURE}/CONTAINER/FOLDER.")
    base = f"{parts.scheme}://{parts.netloc}/{_quote(container)}"
    access, headers = _azure_access(parts, container, environ, fetch)
    query = {"restype": "container", "comp": "list", "prefix": prefix}
    while True:
        url = f"{base}?{urllib.parse.urlencode(query)}" + (f"&{access}" if access else "")
        # The answer begins with a byte order mark.
        page = xml.etree.ElementTree.fromstring(fetch(Request(url, headers=headers)).decode("utf-8-sig"))
        for item in page.iterfind("./Blobs/Blob"):
            name = item.findtext("Name") or ""
            relative = _below(name, prefix)
            if relative and not name.endswith("/"):
                target = f"{base}/{urllib.parse.quote(name)}" + (f"?{access}" if access else "")
                yield RemoteObject(relative, lambda target=target: Request(target, headers=headers))  # type: ignore[misc]
        marker = page.findtext("NextMarker")
        if not marker:
            return
        query["marker"] = marker


def _list_hf(uri: str, environ: Mapping[str, str], fetch: Fetch) -> Iterator[RemoteObject]:
    repository, _, revision = uri[len("hf://") :].strip("/").partition(":")
    if repository.count("/") != 1:
        raise ObjectStoreError(f"{uri}: write hf://OWNER/MODEL or hf://OWNER/MODEL:REVISION.")
    base = (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    headers, revision = _bearer(environ.get("HF_TOKEN", "")), _quote(revision or "main")
    about: dict[str, Any] = json.loads(
        fetch(Request(f"{base}/api/models/{repository}/revision/{revision}", headers=headers))
    )
    # All files of one commit, also when somebody pushes meanwhile.
    commit = about.get("sha") or revision
    for item in about.get("siblings") or ():
        name = str(item["rfilename"])
        target = f"{base}/{repository}/resolve/{commit}/{urllib.parse.quote(name)}"
        yield RemoteObject(name, lambda target=target: Request(target, headers=headers))  # type: ignore[misc]
