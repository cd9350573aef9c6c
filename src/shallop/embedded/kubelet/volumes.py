"""Volumes of a Pod as folders of this machine, and where its containers see them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shallop.embedded.kubelet.containerenv import Lookup, expand, field_value, resource_value
from shallop.embedded.kubelet.memory_volumes import in_memory, mount_memory, size_of
from shallop.errors import NodeError
from shallop.kube.objects import Object, parse_quantity
from shallop.settings import Settings

__all__ = [
    "TOKEN_FOLDER",
    "TokenSource",
    "TokenVolume",
    "Volumes",
    "container_mounts",
    "has_size_limits",
    "is_as_written",
    "over_limit",
    "prepare_volumes",
    "references",
    "token_seconds",
]

# (Pod, audience, seconds) -> token of the Pod's service account
TokenSource = Callable[[Object, str, int], Awaitable[str]]
_REFERRING = {
    "configMap": "ConfigMap",
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
    "secret": "Secret",
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
}
_SMALL_BYTES = 16 << 10
_SUPPORTED = "emptyDir, configMap, secret, projected, downwardAPI, hostPath, persistentVolumeClaim, ephemeral"
# The folder of the volume that every Pod is given for its token: its name has a random end, and no volume has this one.
TOKEN_FOLDER = "api.access"
_TOKEN_VOLUME = "kube-api-access-"


class TokenVolume(NamedTuple):
    """
    The volume of a Pod's token, as it was written.

    Args:
        owner: namespace and service account.
        token: name of the token's file.
        files: name -> content and mode.
        version: name of the folder that they are in.
    """

    owner: tuple[str, str]
    token: str
    files: Mapping[str, tuple[bytes, int]]
    version: str

    @property
    def frame(self) -> dict[str, tuple[bytes, int]]:
        """Return what is the same in each Pod of the owner."""
        return {name: file for name, file in self.files.items() if name != self.token}


class Volumes(NamedTuple):
    """Volume name -> folder (or file, for a hostPath), and what the one of the token holds, where there is one."""

    folders: dict[str, Path]
    token: TokenVolume | None


async def prepare_volumes(
    pod: Object,
    settings: Settings,
    lookup: Lookup,
    token: TokenSource,
    ca_pem: Callable[[], bytes],
    *,
    may_mount: bool = False,
    kept: TokenVolume | None = None,
) -> Volumes:
    """
    Make the folders behind a Pod's volumes; doing it again brings their content up to date.

    Args:
        may_mount: whether volumes in memory can be that; they are on disk otherwise.
        kept: what an earlier Pod has left in the folder of the token's volume; only for a Pod that does not run.

    Raises:
        NodeError: something that is not optional is missing, or a type that is not supported.
    """
    root = f"{settings.pods}/{pod['metadata']['uid']}/volumes"
    if kept is None:
        os.makedirs(root, mode=0o755, exist_ok=True)
    memory = in_memory(pod) if may_mount else set()
    found: dict[str, Path] = {}
    written: TokenVolume | None = None
    volumes = pod["spec"].get("volumes") or ()
    of_token = next((v["name"] for v in volumes if v["name"].startswith(_TOKEN_VOLUME) and "projected" in v), "")
    for position, volume in enumerate(volumes):
        name, where = volume["name"], f"spec.volumes[{position}]"
        if "hostPath" in volume:
            found[name] = _host_path(volume["hostPath"], settings, f"{where}.hostPath")
        elif "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            found[name] = _claim(pod, settings, lookup, claim, where)
        elif "ephemeral" in volume:
            found[name] = _claim(pod, settings, lookup, f"{pod['metadata']['name']}-{name}", where)
        else:
            folder = f"{root}/{TOKEN_FOLDER}" if name == of_token else f"{root}/{name}"
            if name != of_token or kept is None:
                folder = _make_folder(folder, f"{root}/{name}")
            if name in memory:
                await asyncio.to_thread(mount_memory, Path(folder), size_of(pod, name))
            files = await _files_of(pod, volume, lookup, token, ca_pem, where)
            if name == of_token and files is not None:
                written = await _write_token_volume(folder, _token_volume(pod, volume, files), files, kept)
            elif files is not None:
                await _write(folder, files, private="secret" in volume or "projected" in volume)
            found[name] = Path(folder)
    return Volumes(found, written)


def _make_folder(folder: str, earlier: str) -> str:
    """Make the folder of a volume; that of a Pod that runs since before an upgrade may have its ``earlier`` name."""
    if folder != earlier and os.path.isdir(earlier):
        return earlier
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, mode=0o777)
    return folder


def _token_volume(pod: Object, volume: Mapping[str, Any], files: Mapping[str, tuple[bytes, int]]) -> TokenVolume | None:
    """Return what a volume for a token is to hold; None where it is not of the plain form. Pure."""
    sources = volume["projected"].get("sources") or ()
    names = [source["serviceAccountToken"]["path"] for source in sources if "serviceAccountToken" in source]
    if len(names) != 1 or any("/" in name for name in files):
        return None
    owner = pod["metadata"]["namespace"], pod["spec"].get("serviceAccountName") or "default"
    return TokenVolume(owner, names[0], files, "")


async def _write_token_volume(
    folder: str, wanted: TokenVolume | None, files: Mapping[str, tuple[bytes, int]], kept: TokenVolume | None
) -> TokenVolume | None:
    """Write the files; in what another Pod of the same owner has left only the token is another one."""
    if wanted is None:
        await _write(folder, files, private=True)
        return None
    fits = kept is not None and kept[:2] == wanted[:2] and kept.frame == wanted.frame
    if kept is not None and fits and _overwrite(f"{folder}/{kept.version}/{kept.token}", *files[kept.token]):
        return wanted._replace(version=kept.version)
    return wanted._replace(version=await _write(folder, files, private=True))


def _overwrite(path: str, content: bytes, mode: int) -> bool:
    """Give a file that nobody reads now another content; False when it is not ours alone, or the disk is full."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        owner = found.st_uid, found.st_nlink, stat.S_IMODE(found.st_mode)
        if owner != (os.geteuid(), 1, mode & 0o700) or os.write(descriptor, content) != len(content):
            return False
        if found.st_size > len(content):
            os.ftruncate(descriptor, len(content))
        return True
    finally:
        os.close(descriptor)


def _host_path(source: Mapping[str, Any], settings: Settings, where: str) -> Path:
    given, kind = source["path"], source.get("type") or ""
    # What is checked is what is mounted: a link may lead elsewhere.
    path = Path(os.path.realpath(given))
    if problem := settings.refused_path(path):
        raise NodeError(f"{where}.path: {given} {problem}")
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch()
    if not path.exists():
        raise NodeError(f"{where}.path: {given} does not exist on this machine")
    if kind in _HOST_PATH_TYPES and not _HOST_PATH_TYPES[kind][0](path):
        raise NodeError(f"{where}.type: type check failed: {given} is not {_HOST_PATH_TYPES[kind][1]}")
    return path


_HOST_PATH_TYPES: dict[str, tuple[Callable[[Path], bool], str]] = {
    "Directory": (Path.is_dir, "a directory"),
    "DirectoryOrCreate": (Path.is_dir, "a directory"),
    "File": (Path.is_file, "a file"),
    "FileOrCreate": (Path.is_file, "a file"),
    "Socket": (Path.is_socket, "a socket"),
    "CharDevice": (Path.is_char_device, "a character device"),
    "BlockDevice": (Path.is_block_device, "a block device"),
}


def over_limit(pod: Object, volumes: Mapping[str, Path]) -> str:
    """Say, in the kubelet's words, which emptyDir is larger than its ``sizeLimit``; empty when none is. Blocking."""
    for volume in pod["spec"].get("volumes") or ():
        limit = (volume.get("emptyDir") or {}).get("sizeLimit")
        if limit and volume["name"] in volumes and _size(volumes[volume["name"]]) > parse_quantity(limit):
            return f'Usage of EmptyDir volume "{volume["name"]}" exceeds the limit "{limit}". '
    return ""


def has_size_limits(pod: Object) -> bool:
    return any((volume.get("emptyDir") or {}).get("sizeLimit") for volume in pod["spec"].get("volumes") or ())


def _size(folder: Path) -> int:
    total = 0
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


def _claim(pod: Object, settings: Settings, lookup: Lookup, claim: str, where: str) -> Path:
    found = lookup("PersistentVolumeClaim", claim)
    if found is None:
        raise NodeError(f'{where}: persistentvolumeclaim "{claim}" not found')
    folder = settings.volumes / str(pod["metadata"]["namespace"]) / claim
    if name := (found.get("spec") or {}).get("volumeName"):
        volume = lookup("PersistentVolume", name)
        if volume is None:
            raise NodeError(f'{where}: persistentvolume "{name}" not found')
        source = volume["spec"].get("hostPath") or volume["spec"].get("local") or {}
        # What an administrator declared lies where they said; everything else is a folder of the platform's own.
        if source.get("path") and source["path"] != str(folder):
            folder = Path(os.path.realpath(source["path"]))
            if problem := settings.refused_path(folder):
                raise NodeError(f'{where}: persistentvolume "{name}": {source["path"]} {problem}')
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


async def _files_of(
    pod: Object,
    volume: Mapping[str, Any],
    lookup: Lookup,
    token: TokenSource,
    ca_pem: Callable[[], bytes],
    where: str,
) -> dict[str, tuple[bytes, int]] | None:
    """Return path -> (content, mode) of a volume made of files; None for an empty folder."""
    if "emptyDir" in volume:
        return None
    for kind, key in (("ConfigMap", "configMap"), ("Secret", "secret")):
        if key in volume:
            source = volume[key]
            name = source.get("secretName") or source.get("name")
            return _object_files(kind, name, source, lookup, f"{where}.{key}", source.get("defaultMode", 0o644))
    if "downwardAPI" in volume:
        return _downward_files(pod, volume["downwardAPI"], lookup)
    if "projected" not in volume:
        kind = next((key for key in volume if key != "name"), "nothing")
        raise NodeError(f"{where}: volumes of type {kind} cannot be mounted on this machine; use one of {_SUPPORTED}")
    files: dict[str, tuple[bytes, int]] = {}
    mode = volume["projected"].get("defaultMode", 0o644)
    for position, source in enumerate(volume["projected"].get("sources") or ()):
        path = f"{where}.projected.sources[{position}]"
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            text = await token(pod, wanted.get("audience") or "", int(wanted.get("expirationSeconds") or 3600))
            files[wanted["path"]] = (text.encode(), 0o600)
        elif "downwardAPI" in source:
            files.update(_downward_files(pod, source["downwardAPI"], lookup))
        elif (source.get("configMap") or {}).get("name") == "kube-root-ca.crt":
            files["ca.crt"] = (ca_pem(), 0o644)
        else:
            kind, key = ("ConfigMap", "configMap") if "configMap" in source else ("Secret", "secret")
            files.update(_object_files(kind, source[key]["name"], source[key], lookup, path, mode))
    return files


def _object_files(
    kind: str, name: str, source: Mapping[str, Any], lookup: Lookup, where: str, mode: int
) -> dict[str, tuple[bytes, int]]:
    obj = lookup(kind, name)
    if obj is None:
        if source.get("optional"):
            return {}
        raise NodeError(f'{where}: {kind.lower()} "{name}" not found')
    if kind == "Secret":
        data = {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
    else:
        data = {key: value.encode() for key, value in (obj.get("data") or {}).items()}
        data |= {key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()}
    if not source.get("items"):
        return {key: (value, mode) for key, value in data.items()}
    files = {}
    for item in source["items"]:
        if item["key"] not in data:
            if source.get("optional"):
                continue
            raise NodeError(f"{where}: references non-existent key: {item['key']}")
        files[item["path"]] = (data[item["key"]], item.get("mode", mode))
    return files


def _downward_files(pod: Object, source: Mapping[str, Any], lookup: Lookup) -> dict[str, tuple[bytes, int]]:
    files = {}
    for item in source.get("items") or ():
        if "fieldRef" in item:
            text = field_value(pod, item["fieldRef"]["fieldPath"])
        else:
            text = resource_value(pod, pod["spec"]["containers"][0], item["resourceFieldRef"], lookup)
        files[item["path"]] = (text.encode(), item.get("mode", 0o644))
    return files


async def _write(folder: str, files: Mapping[str, tuple[bytes, int]], *, private: bool) -> str:
    if sum(len(content) for content, _ in files.values()) <= _SMALL_BYTES:
        # A token and a certificate: handing them to a thread takes longer than writing them.
        return _write_files(folder, files, private=private)
    return await asyncio.to_thread(_write_files, folder, files, private=private)


def _write_files(folder: str, files: Mapping[str, tuple[bytes, int]], *, private: bool) -> str:
    """
    Replace the content of a folder at once: readers see all old files or all new ones, through ``..data``.

    Returns:
        Where that leads.

    Every Pod has such a volume for its token: with plain system calls it takes a fifth of the time of ``pathlib``.
    """
    version = f"..{_digest_of(files)}"
    links = {name for name in os.listdir(folder) if not name.startswith("..")}
    old = os.readlink(f"{folder}/..data") if os.path.lexists(f"{folder}/..data") else ""
    if old == version:
        return version
    root = f"{folder}/{version}"
    if os.path.isdir(root):  # left by a killed writer
        shutil.rmtree(root)
    os.mkdir(root, 0o700 if private else 0o755)
    for path, (content, mode) in files.items():
        parts = path.split("/")
        if ".." in parts or path.startswith("/"):
            raise NodeError(f"volume {os.path.basename(folder)}: path {path!r} leaves the volume")
        if len(parts) > 1:
            os.makedirs(os.path.dirname(f"{root}/{path}"), exist_ok=True)
        with open(os.open(f"{root}/{path}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb", buffering=0) as file:
            file.write(content)
            os.fchmod(file.fileno(), mode & 0o700 if private else mode)
    with contextlib.suppress(FileNotFoundError):  # of a killed writer
        os.unlink(f"{folder}/..data_new")
    os.symlink(version, f"{folder}/..data_new")
    os.replace(f"{folder}/..data_new", f"{folder}/..data")
    tops = {path.split("/")[0] for path in files}
    for top in tops - links:
        os.symlink(f"..data/{top}", f"{folder}/{top}")
    for top in links - tops:
        os.unlink(f"{folder}/{top}")
    if old:
        shutil.rmtree(f"{folder}/{old}", ignore_errors=True)
    return version


def is_as_written(folder: str, volume: TokenVolume) -> bool:
    """Say whether a folder holds what was written there, the token aside, and nothing else. Blocking."""
    root = f"{folder}/{volume.version}"
    try:
        if {*os.listdir(folder)} != {"..data", volume.version, *volume.files} or {*os.listdir(root)} != {*volume.files}:
            return False
        links = {"..data": volume.version} | {name: f"..data/{name}" for name in volume.files}
        if any(os.readlink(f"{folder}/{name}") != target for name, target in links.items()):
            return False
        if not all(_is_own(place, stat.S_IFDIR, mode) for place, mode in ((folder, None), (root, 0o700))):
            return False
        if not all(_is_own(f"{root}/{name}", stat.S_IFREG, mode & 0o700) for name, (_, mode) in volume.files.items()):
            return False
        return all(Path(root, name).read_bytes() == content for name, (content, _) in volume.frame.items())
    except OSError:
        return False


def _is_own(path: str, kind: int, mode: int | None) -> bool:
    """Say whether a path is of a kind and ours alone, as we made it; a mode of None is what our umask says."""
    found = os.lstat(path)
    if stat.S_IFMT(found.st_mode) != kind or found.st_uid != os.geteuid() or os.listxattr(path, follow_symlinks=False):
        return False
    if mode is None:
        return not found.st_mode & 0o022
    return stat.S_IMODE(found.st_mode) == mode and (kind == stat.S_IFDIR or found.st_nlink == 1)


def _digest_of(files: Mapping[str, tuple[bytes, int]]) -> str:
    digest = hashlib.sha256()
    for path, (content, mode) in files.items():
        digest.update(f"{path}\0{mode}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def references(pod: Object) -> set[tuple[str, str]]:
    """Return (kind, name) of the ConfigMaps and Secrets that a Pod names, in volumes or variables."""
    found: set[tuple[str, str]] = set()

    def visit(value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                kind = _REFERRING.get(key)
                if kind is not None and isinstance(inner, dict):
                    found.add((kind, inner.get("secretName") or inner.get("name") or ""))
                visit(inner)
        elif isinstance(value, list):
            for inner in value:
                visit(inner)

    spec = pod["spec"]
    visit([spec.get("volumes"), spec.get("initContainers"), spec["containers"]])
    return found


def token_seconds(pod: Object) -> int | None:
    """Return how long the shortest-lived token among a Pod's files is valid; None when it has none."""
    sources = [
        source["serviceAccountToken"]
        for volume in pod["spec"].get("volumes") or ()
        for source in (volume.get("projected") or {}).get("sources") or ()
        if "serviceAccountToken" in source
    ]
    return min((max(600, int(source.get("expirationSeconds") or 3600)) for source in sources), default=None)


def container_mounts(
    container: Object, volumes: Mapping[str, Path], env: Mapping[str, str], where: str
) -> list[dict[str, Any]]:
    """
    Return the mounts of a container, as ``shallop_pod.isolation`` takes them.

    Args:
        env: for ``subPathExpr``.

    Raises:
        NodeError: an unknown volume, or a subPath that leaves it.
    """
    mounts = []
    for position, mount in enumerate(container.get("volumeMounts") or ()):
        path = f"{where}.volumeMounts[{position}]"
        if mount["name"] not in volumes:
            raise NodeError(f'{path}.name: the Pod has no volume "{mount["name"]}"')
        source = volumes[mount["name"]]
        sub = mount.get("subPath") or expand(mount.get("subPathExpr") or "", env)
        if "$(" in sub and mount.get("subPathExpr"):
            raise NodeError(f"{path}.subPathExpr: {sub!r}: the container has no such variable")
        if sub:
            inner = source / sub
            if ".." in Path(sub).parts or Path(sub).is_absolute():
                raise NodeError(f"{path}.subPath: {sub!r} must stay inside the volume")
            if not inner.exists():
                inner.mkdir(parents=True)
            if not inner.resolve().is_relative_to(source.resolve()):
                raise NodeError(f"{path}.subPath: {sub!r} is a link that leaves the volume")
            source = inner
        mounts.append({"target": mount["mountPath"], "source": str(source), "readonly": bool(mount.get("readOnly"))})
    return mounts
