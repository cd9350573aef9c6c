"""
Model images: what lies below ``/models`` of an image in a container registry, without a container engine.

``oci://REGISTRY/REPOSITORY[:TAG][@sha256:DIGEST]`` (also ``oci+fetch://`` and ``oci+native://``). Of an image for
several platforms this machine's is taken. Every manifest and layer is checked against its digest. Layers are tar,
plain or gzip; what one deletes of those below is deleted. Credentials are Docker's ``config.json`` in variables whose
names begin with ``OCI_DOCKER_CONFIG``. Registries speak TLS, but those on loopback and those that
``OCI_INSECURE_REGISTRIES`` (comma list of HOST or HOST:PORT) names.

Source: OCI distribution specification 1.1; OCI image specification 1.1, layers; KServe 0.21, modelcars.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import re
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

__all__ = ["ImageError", "Reference", "Registry", "is_image", "parse_reference", "unpack_layer"]

Request = urllib.request.Request
Open = Callable[[Request], Any]
"""Sends a request and returns the answer, open; raises what has the ``HTTPError`` as its cause."""
Read = Callable[[Callable[[], Request], IO[bytes]], None]
"""Brings what a request asks for into a file, in several tries where it must."""

_PREFIXES = ("oci://", "oci+fetch://", "oci+native://")
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_REFERENCE = re.compile(
    r"(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_MAX_MANIFEST = 4 * 2**20
_MODELS = "models/"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class ImageError(Exception):
    """An image cannot be brought; the message is for the owner of the model server."""


class Reference(NamedTuple):
    """An image; ``registry`` is the host that answers, ``name`` the one of credentials."""

    registry: str
    name: str
    repository: str
    tag: str
    digest: str


def is_image(uri: str) -> bool:
    return uri.startswith(_PREFIXES)


def parse_reference(uri: str) -> Reference:
    """
    Read the URI of an image, with Docker's short names.

    Raises:
        ImageError: it is none.
    """
    text = uri.partition("://")[2]
    host, slash, rest = text.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, rest = "docker.io", text if slash else f"library/{text}"
    match = _REFERENCE.fullmatch(rest)
    if not match:
        raise ImageError(f"{uri}: write oci://REGISTRY/REPOSITORY:TAG, or oci://REGISTRY/REPOSITORY@sha256:DIGEST.")
    registry = "registry-1.docker.io" if host in ("docker.io", "index.docker.io") else host
    return Reference(registry, host, match["repository"], match["tag"] or "latest", match["digest"] or "")


class Registry:
    """
    Reads one image.

    Args:
        uri: of the image, for messages, too.
        environ: credentials, and registries without TLS.
    """

    def __init__(self, uri: str, environ: Mapping[str, str], open_: Open) -> None:
        self._uri = uri
        self.reference = parse_reference(uri)
        self._open = open_
        self._base = f"{_scheme(self.reference.registry, environ)}://{self.reference.registry}"
        self._basic = _credentials(self.reference.name, environ)
        self._authorization = ""

    def layers(self) -> list[Mapping[str, Any]]:
        """
        Return the layers of the image, the lowest first.

        Raises:
            ImageError: a manifest is broken, or there is none for this machine.
        """
        manifest = self._manifest(self.reference.digest or self.reference.tag, self.reference.digest)
        if "manifests" in manifest:
            digest = self._choose(manifest["manifests"])
            manifest = self._manifest(digest, digest)
        found: list[Mapping[str, Any]] = manifest.get("layers") or []
        return found

    def _choose(self, manifests: Sequence[Mapping[str, Any]]) -> str:
        wanted = ("linux", _MACHINES.get(platform.machine(), platform.machine()))
        images = [item for item in manifests if (item.get("platform") or {}).get("os") != "unknown"]
        for item in images:
            known = item.get("platform") or {}
            if (known.get("os"), known.get("architecture")) == wanted:
                return str(item["digest"])
        if len(images) == 1:
            return str(images[0]["digest"])  # files of a model are the same everywhere
        raise ImageError(f"{self._uri}: the image has no version for {'/'.join(wanted)}.")

    def _manifest(self, name: str, digest: str) -> dict[str, Any]:
        with self._ask(f"manifests/{name}", {"Accept": _ACCEPT}) as answer:
            body = answer.read(_MAX_MANIFEST)
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if digest and found != digest:
            raise ImageError(f"{self._uri}: the manifest has the digest {found}, not {digest}.")
        try:
            manifest: dict[str, Any] = json.loads(body)
        except ValueError as error:
            raise ImageError(f"{self._uri}: the registry answered with no manifest: {error}") from error
        return manifest

    def _ask(self, path: str, headers: Mapping[str, str]) -> Any:
        """Ask; on the first refusal once more with what the registry wants to see."""
        try:
            return self._open(self._request(path, headers))
        except Exception as error:
            refusal = error.__cause__
            if not isinstance(refusal, urllib.error.HTTPError) or refusal.code != 401 or self._authorization:
                raise
            self._authorization = self._authorize(refusal.headers.get("WWW-Authenticate") or "")
            return self._open(self._request(path, headers))

    def _request(self, path: str, headers: Mapping[str, str]) -> Request:
        request = Request(f"{self._base}/v2/{self.reference.repository}/{path}", headers=dict(headers))
        if self._authorization:
            # Not for where a registry sends its clients for blobs.
            request.add_unredirected_header("Authorization", self._authorization)
        return request

    def _authorize(self, challenge: str) -> str:
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and self._basic:
            return f"Basic {self._basic}"
        fields = dict(_CHALLENGE.findall(rest))
        if kind.lower() != "bearer" or "realm" not in fields:
            raise ImageError(
                f"{self._uri}: the registry wants credentials; name a Secret of type kubernetes.io/dockerconfigjson "
                "in imagePullSecrets."
            )
        scope = fields.get("scope") or f"repository:{self.reference.repository}:pull"
        query = {"scope": scope} | ({"service": fields["service"]} if "service" in fields else {})
        request = Request(f"{fields['realm']}?{urllib.parse.urlencode(query)}")
        if self._basic:
            request.add_unredirected_header("Authorization", f"Basic {self._basic}")
        with self._open(request) as answer:
            given = json.loads(answer.read(_MAX_MANIFEST))
        return f"Bearer {given.get('token') or given.get('access_token') or ''}"

    def fetch(self, layer: Mapping[str, Any], file: IO[bytes], read: Read) -> None:
        """
        Bring a layer into a file, checked.

        Raises:
            ImageError: it is another one than the manifest names.
        """
        digest, path = str(layer["digest"]), f"blobs/{layer['digest']}"
        read(lambda: self._request(path, {}), file)
        file.seek(0)
        found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]
        if found != digest:
            raise ImageError(f"{self._uri}: a layer has the digest {found}, not {digest}.")
        file.seek(0)


def _scheme(registry: str, environ: Mapping[str, str]) -> str:
    host = urllib.parse.urlsplit(f"//{registry}").hostname or ""
    plain = [item.strip() for item in environ.get("OCI_INSECURE_REGISTRIES", "").split(",")]
    loopback = host in ("localhost", "::1") or host.startswith("127.")
    return "http" if loopback or registry in plain or host in plain else "https"


def _credentials(registry: str, environ: Mapping[str, str]) -> str:
    """Return user and password as Basic has them, from the first configuration that knows the registry."""
    names = ("https://index.docker.io/v1/", "docker.io", "index.docker.io") if registry == "docker.io" else (registry,)
    for variable in sorted(name for name in environ if name.startswith("OCI_DOCKER_CONFIG")):
        try:
            known = json.loads(environ[variable])
        except ValueError as error:
            raise ImageError(f"imagePullSecrets: a .dockerconfigjson is no JSON: {error}") from error
        for key, entry in (known.get("auths") or {}).items():
            host = key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]
            if key not in names and host not in names:
                continue
            if entry.get("auth"):
                return str(entry["auth"])
            if entry.get("username"):
                pair = f"{entry['username']}:{entry.get('password') or ''}"
                return base64.b64encode(pair.encode()).decode()
    return ""


def unpack_layer(uri: str, file: IO[bytes], folder: str, chosen: Callable[[str], bool]) -> None:
    """
    Lay what a layer has below ``/models`` over a folder.

    Raises:
        ImageError: it is no tar archive, would write elsewhere, or holds links.
    """
    try:
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                name = os.path.normpath(member.name).lstrip("/")
                if name.startswith(_MODELS) and not member.isdir():
                    _lay(uri, archive, member, name[len(_MODELS) :], folder, chosen)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ImageError(f"{uri}: a layer cannot be unpacked (tar, plain or gzip): {error}") from error


def _lay(
    uri: str, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, folder: str, chosen: Callable[[str], bool]
) -> None:
    parent, _, base = name.rpartition("/")
    if ".." in name.split("/"):
        raise ImageError(f"{uri}: the image would write outside of the model's folder: {member.name}")
    if base == ".wh..wh..opq":
        _remove(os.path.join(folder, parent))
    elif base.startswith(".wh."):
        _remove(os.path.join(folder, parent, base[len(".wh.") :]))
    elif not member.isfile():
        raise ImageError(f"{uri}: {member.name} is no file; put the files of the model themselves into the image.")
    elif chosen(name):
        target = os.path.join(folder, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        content = archive.extractfile(member)
        with open(target, "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)  # type: ignore[arg-type]


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
