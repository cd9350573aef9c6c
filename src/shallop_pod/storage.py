"""
The storage initializer: brings a model to the folder where its server looks for it.

``python3 -m shallop_pod.storage SRC DST [SRC DST]...``. Sources: a path, ``file://``, ``pvc://CLAIM/PATH`` (the claim
is mounted on /mnt/pvc, as KServe does), ``http(s)://`` (one file; tar and zip are unpacked), ``s3://``, ``gs://``,
``hf://`` and Azure containers (see ``objectstores``), ``oci://`` images (see ``ociregistry``),
``model-registry://[HOST/]MODEL[/VERSION]`` (the newest artifact of that version, or of the newest one;
``MODEL_REGISTRY_BASE_URL`` is the registry). A folder's content goes into DST, a single file keeps its name. All of it
is fetched into a hidden folder of DST first: DST has the whole model or nothing of it. ``STORAGE_ALLOW_PATTERNS`` and
``STORAGE_IGNORE_PATTERNS`` (JSON or comma lists of globs over relative paths) choose files of folders and archives.

A source of one file may say what it must be: ``URI#sha256=HEX``; for all sources that say nothing ``STORAGE_SHA256``
does. A download that breaks off goes on where it was, a few times. Images have digests of their own.

An error is one line on stderr and in the termination log (``TERMINATION_LOG``, else ``/dev/termination-log``), exit
code 1.

Source: KServe 0.21 storage initializer; Kubeflow model registry's custom storage initializer.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fnmatch
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from typing import IO, Any, Callable, Iterator, Mapping, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod import objectstores, ociregistry
from shallop_pod.paths import UnsupportedUriError, local_path

__all__ = ["StorageError", "fail", "fetch", "main", "parse_registry_uri", "resolve_registry_uri", "split_checksum"]

_REGISTRY = "model-registry://"
_REGISTRY_SERVICE = "model-registry-service"
_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_PVC_MOUNT = "/mnt/pvc"
_TIMEOUT_S = 30.0
_ATTEMPTS = 5
_TERMINATION_LOG = "/dev/termination-log"


class StorageError(Exception):
    """A model cannot be brought; the message is for the owner of the model server."""


def main(argv: Sequence[str]) -> int:
    """Fetch every pair of source and destination."""
    try:
        if not argv or len(argv) % 2:
            raise StorageError("usage: python3 -m shallop_pod.storage SRC DST [SRC DST]...")
        for source, target in zip(argv[::2], argv[1::2]):  # noqa: B905  strict is Python 3.10
            fetch(source, target, with_config(os.environ))
            print(f"{source} is in {target}")
    except (StorageError, UnsupportedUriError) as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename or argv[1]}: {error.strerror or error}")
    return 0


def fail(message: str) -> int:
    """Write an error where the node looks for it; returns the exit code."""
    line = " ".join(message.split())
    print(line, file=sys.stderr)
    # Where there is no such file nobody reads it; the node takes the last line of the log then.
    with contextlib.suppress(OSError):
        descriptor = os.open(os.environ.get("TERMINATION_LOG", _TERMINATION_LOG), os.O_WRONLY | os.O_TRUNC)
        with os.fdopen(descriptor, "w") as log:
            log.write(line)
    return 1


def fetch(source: str, target: str, environ: Mapping[str, str]) -> None:
    """
    Bring ``source`` into the folder ``target``.

    Raises:
        StorageError, UnsupportedUriError: what is wrong with the source.
        OSError: ``target`` cannot be written; the disk is full.
    """
    if source.startswith(_REGISTRY):
        base_url, rest = _registry_of(source, environ)
        headers = _registry_headers(base_url, environ)
        source = resolve_registry_uri(rest, lambda path, query: _get_json(base_url, path, query, headers))
    os.makedirs(target, exist_ok=True)
    incoming = tempfile.mkdtemp(prefix=".incoming-", dir=target)
    try:
        _bring(source, incoming, environ)
        for name in os.listdir(incoming):
            _move(os.path.join(incoming, name), os.path.join(target, name))
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _move(source: str, target: str) -> None:
    # A container that was restarted finds the model of its first start.
    if os.path.isdir(target) and not os.path.islink(target):
        shutil.rmtree(target)
    os.replace(source, target)


def _bring(source: str, folder: str, environ: Mapping[str, str]) -> None:
    chosen = _chooser(environ)
    source, checksum = split_checksum(source)
    checksum = checksum or environ.get("STORAGE_SHA256", "").strip().lower()
    if ociregistry.is_image(source):
        _refuse_checksum(source, checksum, "name the image by its digest, @sha256:...")
        _download_image(source, folder, environ, chosen)
        return
    if objectstores.is_object_store(source):
        _download_objects(source, folder, environ, chosen, checksum)
        return
    if source.startswith(("http://", "https://")):
        _download(source, folder, environ, chosen, checksum)
        return
    if source.startswith(tuple(_REFUSED)):
        scheme = source.partition("://")[0]
        raise StorageError(f"{source}: {scheme}:// is not brought here: {_REFUSED[f'{scheme}://']}.")
    path = _mounted(source) if source.startswith("pvc://") else local_path(source)
    if os.path.isfile(path):
        _check_file(source, path, checksum)
    else:
        _refuse_checksum(source, checksum, "it is for one file; pack the folder")
    if os.path.isdir(path):
        for relative in _files(path):
            if chosen(relative):
                _copy(os.path.join(path, relative), os.path.join(folder, relative))
    elif os.path.isfile(path):
        _copy(path, os.path.join(folder, os.path.basename(path)))
    else:
        raise StorageError(f"{source}: there is no such file or folder on this machine.")
    if not os.listdir(folder):
        raise StorageError(
            f"{source}: nothing in this folder is a model file (STORAGE_ALLOW_PATTERNS, or it is empty)."
        )


# Schemes that KServe knows -> what to do instead.
_REFUSED = {
    "hdfs://": "use webhdfs of the cluster through a ClusterStorageContainer, or copy the model to s3://",
    "webhdfs://": "bring it by a ClusterStorageContainer, or copy the model to s3://",
    "modelscope://": "bring it by a ClusterStorageContainer, or use hf://",
}


def split_checksum(source: str) -> tuple[str, str]:
    """
    Return a URI without its checksum, and the checksum, empty where there is none.

    Raises:
        StorageError: it is none.
    """
    uri, _, fragment = source.rpartition("#")
    kind, _, digest = fragment.partition("=")
    # Names of objects may have such a mark, addresses of the web have one for something else only.
    if "://" not in uri or (kind != "sha256" and not uri.startswith("http")):
        return source, ""
    if kind != "sha256" or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise StorageError(f"{source}: what follows # must be sha256= and 64 hexadecimal digits.")
    return uri, digest.lower()


def _refuse_checksum(source: str, checksum: str, way_out: str) -> None:
    if checksum:
        raise StorageError(f"{source}: a checksum cannot be held against it: {way_out}.")


def _check_file(source: str, path: str, checksum: str) -> None:
    if checksum:
        with open(path, "rb") as file:
            _check(source, file, checksum)


def _check(source: str, file: IO[bytes], checksum: str) -> None:
    """
    Compare a file with what it must be, and rewind it.

    Raises:
        StorageError: it is another one.
    """
    if checksum:
        digest = hashlib.sha256()
        file.seek(0)
        while block := file.read(1 << 20):
            digest.update(block)
        if digest.hexdigest() != checksum:
            raise StorageError(
                f"{source}: checksum mismatch: sha256 is {digest.hexdigest()}, {checksum} was declared; the model "
                "changed, or was damaged on its way."
            )
    file.seek(0)


def _mounted(uri: str) -> str:
    _, _, path = uri[len("pvc://") :].partition("/")
    full = os.path.normpath(os.path.join(_PVC_MOUNT, path))
    if full != _PVC_MOUNT and not full.startswith(_PVC_MOUNT + "/"):
        raise StorageError(f"{uri}: the path leaves the claim.")
    return full


def _files(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield os.path.relpath(os.path.join(parent, name), folder)


def _copy(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)


def _chooser(environ: Mapping[str, str]) -> Callable[[str], bool]:
    allowed = _patterns(environ.get("STORAGE_ALLOW_PATTERNS", ""))
    ignored = _patterns(environ.get("STORAGE_IGNORE_PATTERNS", ""))

    def chosen(relative: str) -> bool:
        return (not allowed or any(fnmatch.fnmatch(relative, pattern) for pattern in allowed)) and not any(
            fnmatch.fnmatch(relative, pattern) for pattern in ignored
        )

    return chosen


def _patterns(text: str) -> list[str]:
    if text.strip().startswith("["):
        return [str(pattern) for pattern in json.loads(text)]
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


# --- object stores --------------------------------------------------------------------------------------------------

# Fields of a storage configuration -> the variables that mean the same.
_CONFIG = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "region": "AWS_DEFAULT_REGION",
    "anonymous": "awsAnonymousCredential",
    "verify_ssl": "S3_VERIFY_SSL",
    "use_virtual_bucket": "S3_USER_VIRTUAL_BUCKET",
    "hf_token": "HF_TOKEN",
}


def with_config(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with what STORAGE_CONFIG and STORAGE_OVERRIDE_CONFIG (JSON objects) say in their place."""
    result = dict(environ)
    for name in ("STORAGE_CONFIG", "STORAGE_OVERRIDE_CONFIG"):
        try:
            config = json.loads(environ.get(name) or "{}")
        except ValueError as error:
            raise StorageError(f"{name}: no JSON object: {error}") from error
        result.update({_CONFIG[key]: str(value) for key, value in config.items() if key in _CONFIG and value})
        if account := config.get("base64_service_account"):
            result["GOOGLE_APPLICATION_CREDENTIALS_JSON"] = base64.b64decode(account).decode(errors="replace")
    return result


def _download_objects(
    source: str, folder: str, environ: Mapping[str, str], chosen: Callable[[str], bool], checksum: str
) -> None:
    context = objectstores.ssl_context(environ)

    def read(request: urllib.request.Request) -> bytes:
        with _open(request, context) as response:
            body: bytes = response.read()
            return body

    try:
        found = [item for item in objectstores.list_objects(source, environ, read) if chosen(item.relative)]
    except objectstores.ObjectStoreError as error:
        raise StorageError(str(error)) from error
    if not found:
        raise StorageError(f"{source}: there is nothing at or below it that is a model file.")
    if len(found) > 1:
        _refuse_checksum(source, checksum, "it is for one file; pack the folder")
    for item in found:
        with tempfile.TemporaryFile(dir=folder) as file:
            _receive(item.request, file, context)
            if len(found) == 1:
                _check(source, file, checksum)
                _unpack(source, item.relative, file, folder, chosen)
            else:
                file.seek(0)
                _write(source, file, folder, item.relative)


# --- images ---------------------------------------------------------------------------------------------------------


def _download_image(source: str, folder: str, environ: Mapping[str, str], chosen: Callable[[str], bool]) -> None:
    try:
        registry = ociregistry.Registry(source, environ, _open)
        for layer in registry.layers():
            with tempfile.TemporaryFile(dir=folder) as file:
                registry.fetch(layer, file, _receive)
                ociregistry.unpack_layer(source, file, folder, chosen)
    except ociregistry.ImageError as error:
        raise StorageError(str(error)) from error
    if not os.listdir(folder):
        raise StorageError(f"{source}: the image has no model files in /models.")


# --- http -----------------------------------------------------------------------------------------------------------


def _download(url: str, folder: str, environ: Mapping[str, str], chosen: Callable[[str], bool], checksum: str) -> None:
    parts = urllib.parse.urlsplit(url)
    headers = json.loads(environ.get(f"{parts.hostname}-headers", "{}"))
    name = os.path.basename(urllib.parse.unquote(parts.path)) or "model"
    if name.endswith(".git"):
        raise StorageError(f"{url}: repositories of git are not brought here; use the URL of an archive of it.")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            _receive(lambda: urllib.request.Request(url, headers=headers), file)
            _check(url, file, checksum)
            _unpack(url, name, file, folder, chosen)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise StorageError(f"{url}: the archive is broken: {error}") from error


def _receive(
    request: Callable[[], urllib.request.Request], file: IO[bytes], context: ssl.SSLContext | None = None
) -> None:
    """
    Bring what a request asks for into an empty file; one that breaks off is asked for its rest.

    Raises:
        StorageError: it cannot be had, or breaks off again and again.
    """
    mark = ""
    for attempt in range(_ATTEMPTS):
        wanted = request()
        if file.tell() and mark:
            wanted.add_header("Range", f"bytes={file.tell()}-")
            wanted.add_header("If-Range", mark)
        with _open(wanted, context) as response:
            if response.status != 206:
                file.seek(0)
                file.truncate()
            start, length = file.tell(), response.headers.get("Content-Length")
            # Only what has a strong name of its version can go on.
            tag = response.headers.get("ETag") or ""
            mark = "" if tag.startswith("W/") else tag
            try:
                shutil.copyfileobj(response, file, 1 << 20)
            except (OSError, http.client.HTTPException) as error:
                problem: Exception | None = error
            else:
                problem = None
        if problem is None and (length is None or file.tell() - start == int(length)):
            return
        if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
            raise problem
        url = wanted.full_url.partition("?")[0]
        told = f"{url}: it ended after {file.tell()} of {start + int(length or 0) or 'unknown'} bytes"
        print(f"{told}; attempt {attempt + 1} of {_ATTEMPTS}", file=sys.stderr)
    raise StorageError(f"{told}, {_ATTEMPTS} times.")


def _open(request: urllib.request.Request, context: ssl.SSLContext | None = None) -> Any:
    # Without the query: it may hold a signature.
    url = request.full_url.partition("?")[0]
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context)
    except urllib.error.HTTPError as error:
        with error:
            code = re.search(rb"<Code>(\w+)</Code>", error.read(4096))
        said = f" ({code.group(1).decode()})" if code else ""
        raise StorageError(f"{url}: the server answered {error.code} {error.reason}{said}.") from error
    except urllib.error.URLError as error:
        raise StorageError(f"{url}: no connection: {error.reason}.") from error
    except TimeoutError as error:
        raise StorageError(f"{url}: no answer within {_TIMEOUT_S:.0f} s.") from error


def _unpack(url: str, name: str, file: IO[bytes], folder: str, chosen: Callable[[str], bool]) -> None:
    file.seek(0)
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if member.issym() or member.islnk():
                    raise StorageError(f"{url}: the archive has a link, {member.name}; pack the files themselves.")
                if content is not None and chosen(member.name):
                    _write(url, content, folder, member.name)
    elif name.endswith(".zip"):
        with zipfile.ZipFile(file) as zipped:
            for info in zipped.infolist():
                if not info.is_dir() and chosen(info.filename):
                    with zipped.open(info) as content:
                        _write(url, content, folder, info.filename)
    else:
        _write(url, file, folder, name)


def _write(url: str, content: IO[bytes], folder: str, relative: str) -> None:
    target = os.path.normpath(os.path.join(folder, relative))
    if not target.startswith(folder + os.sep):
        raise StorageError(f"{url}: the archive would write outside of the model's folder: {relative}")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)


# --- the model registry ---------------------------------------------------------------------------------------------


def parse_registry_uri(uri: str, host: str = "") -> tuple[str, str, str]:
    """
    Return host, model and version of ``model-registry://[HOST/]MODEL[/VERSION]``; empty where absent.

    Args:
        host: the configured registry. Of two parts the first is a host when it is this one, has a port, or is a name of
            the registry's Service; else it is the model.
    """
    location = uri[len(_REGISTRY) :].partition("?")[0].strip("/")
    parts = [urllib.parse.unquote(part) for part in location.split("/")]
    found = ""
    if len(parts) == 3 or (len(parts) == 2 and _is_host(parts[0], host)):
        found = parts.pop(0)
    if len(parts) not in (1, 2) or not all(parts):
        raise StorageError(f"{uri}: write model-registry://MODEL or model-registry://MODEL/VERSION.")
    return found, parts[0], parts[1] if len(parts) == 2 else ""


def _is_host(text: str, configured: str) -> bool:
    return text == configured or ":" in text or text.partition(".")[0] == _REGISTRY_SERVICE


def _registry_of(uri: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the registry's base URL and the URI without its host."""
    scheme = environ.get("MODEL_REGISTRY_SCHEME", "http")
    base_url = environ.get("MODEL_REGISTRY_BASE_URL", "localhost:8080").rstrip("/")
    base_url = base_url if "://" in base_url else f"{scheme}://{base_url}"
    host, model, version = parse_registry_uri(uri, urllib.parse.urlsplit(base_url).netloc)
    quoted = "/".join(urllib.parse.quote(part, safe="") for part in (model, version) if part)
    # The Service's own name is what MODEL_REGISTRY_BASE_URL stands for; it need not resolve here.
    if host and host.partition(":")[0].partition(".")[0] != _REGISTRY_SERVICE:
        base_url = f"{scheme}://{host}"
    return base_url, _REGISTRY + quoted


Get = Callable[[str, Mapping[str, str]], "dict[str, Any] | None"]


def resolve_registry_uri(uri: str, get: Get) -> str:
    """
    Return the URI of the newest model artifact of ``model-registry://MODEL[/VERSION]``.

    Args:
        get: path below the API's prefix and query -> answer; None when there is no such thing.
    """
    _, name, version = parse_registry_uri(uri)
    model = get("registered_model", {"name": name})
    if model is None:
        raise StorageError(f"{uri}: the registry has no model '{name}'.")
    newest = {"orderBy": "CREATE_TIME", "sortOrder": "DESC", "pageSize": "1"}
    if version:
        found = get("model_version", {"name": version, "parentResourceId": model["id"]})
    else:
        found = _first(get(f"registered_models/{model['id']}/versions", newest))
    if found is None:
        raise StorageError(f"{uri}: model '{name}' has no version{f' {version!r}' if version else ''} in the registry.")
    artifact = _first(get(f"model_versions/{found['id']}/artifacts", {**newest, "artifactType": "model-artifact"}))
    location = str((artifact or {}).get("uri") or "")
    if not location or location.startswith(_REGISTRY):
        raise StorageError(
            f"{uri}: version '{found['name']}' of model '{name}' has no artifact with the URI of a model."
        )
    return location


def _first(page: dict[str, Any] | None) -> dict[str, Any] | None:
    items = (page or {}).get("items") or []
    return items[0] if items else None


def _registry_headers(base_url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return headers that say who asks the registry of this Pod's own platform; other registries get no token."""
    headers = {"Accept": "application/json"}
    if base_url == environ.get("MODEL_REGISTRY_BASE_URL", "").rstrip("/"):
        with contextlib.suppress(OSError), open(_TOKEN) as file:
            headers["Authorization"] = f"Bearer {file.read().strip()}"
    return headers


def _get_json(base_url: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any] | None:
    url = f"{base_url}/api/model_registry/v1alpha3/{path}?{urllib.parse.urlencode(query)}"
    try:
        with _open(urllib.request.Request(url, headers=dict(headers))) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except StorageError as error:
        if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 404:
            return None
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
