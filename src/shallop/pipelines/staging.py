"""
Local copies of what the tasks of a run read from and write to an object store.

Tasks know paths only. Their outputs go to a folder of the run on this machine and are stored from there before they
count; inputs are brought before the task starts. Records hold the real URIs, Pods hold no credentials.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec

from shallop.errors import ObjectStoreError
from shallop.kube.client import Client
from shallop.pipelines.podends import ResultArtifact, TaskResult
from shallop.pipelines.providers import access_to
from shallop.pipelines.values import Artifact, Values
from shallop.store.objects import Access, download, exists, is_object_uri, upload

__all__ = ["Staging", "tidy_staging"]

_WEB = aiohttp.ClientTimeout(total=3600, sock_connect=10, sock_read=60)


class Staging:
    """
    Transfers of one run.

    Args:
        namespace: of the Pods; its ConfigMap and Secrets say how object stores are reached.
        folder: of this run alone.
        root: the run's pipeline root; a plain directory needs no transfer of outputs.
        refused: says why a real path may not be read for users, empty when it may: URIs and links are theirs.
        web: whether this process may ask web servers for users: it reaches those of this machine and its network, too.
    """

    def __init__(
        self, client: Client, namespace: str, folder: Path, root: str, refused: Callable[[Path], str], *, web: bool
    ) -> None:
        self._client = client
        self._refused = refused
        self._web = web
        self._namespace = namespace
        self._folder = folder
        self._root = root.partition("?")[0].rstrip("/") if is_object_uri(root) else ""
        self._query = root.partition("?")[2]
        self._brought: dict[str, asyncio.Lock] = {}

    @property
    def local_root(self) -> str:
        """Where outputs are written first; empty when the pipeline root is a directory."""
        return str(self._folder / "outputs") if self._root else ""

    def is_remote(self, values: Values) -> bool:
        return any(_is_fetched(artifact) for items in values.artifacts.values() for artifact in items)

    async def fetch(self, values: Values) -> tuple[Values, str]:
        """
        Bring all input artifacts; return the inputs with paths in place of URIs, and what was not brought.

        An artifact that was only imported and cannot be had keeps its URI: the component may not need its content,
        or may read it by means of its own.

        Raises:
            ObjectStoreError: one that a run has made is not there, or its store cannot be used.
            OSError: the disk is full.
        """
        artifacts: dict[str, list[Artifact]] = {}
        missing = []
        for name, items in values.artifacts.items():
            artifacts[name] = []
            for artifact in items:
                try:
                    artifacts[name].append(await self._bring(artifact))
                except ObjectStoreError as error:
                    if artifact.digest:
                        raise
                    artifacts[name].append(artifact)
                    missing.append(str(error))
        return Values(values.parameters, artifacts), " ".join(missing)

    async def _bring(self, artifact: Artifact) -> Artifact:
        if not _is_fetched(artifact):
            return artifact
        path = self._path_of(artifact.uri)
        async with self._brought.setdefault(artifact.uri, asyncio.Lock()):
            if not await asyncio.to_thread(path.exists):
                access = await self._access(artifact.uri)
                if not await asyncio.to_thread(download, self._with_options(artifact.uri), path, access):
                    raise ObjectStoreError(f"Input artifact '{artifact.name}': nothing is at {artifact.uri}.")
        return msgspec.structs.replace(artifact, uri=str(path))

    async def bring_to(self, uri: str, volume: Path, below: str) -> None:
        """
        Bring an artifact, from a store, a server or this machine, to a place below a volume; nothing when it is there.

        Raises:
            ObjectStoreError: nothing is there, it may not be read, or the place is not in the volume.
            OSError: the volume cannot be written.
        """
        path = await asyncio.to_thread(_place_in, volume, below)
        if await asyncio.to_thread(path.exists):
            return
        if is_object_uri(uri):
            found = await asyncio.to_thread(download, self._with_options(uri), path, await self._access(uri))
        elif uri.startswith(("http://", "https://")):
            if not self._web:
                raise ObjectStoreError(f"{uri}: with several users web addresses are not fetched; do it in a step.")
            found = await _fetch(uri, path)
        else:
            found = await asyncio.to_thread(self._copy, Path(uri.removeprefix("file://")), path)
        if not found:
            raise ObjectStoreError(f"Nothing is at {uri}.")

    def _copy(self, source: Path, target: Path) -> bool:
        if not source.is_absolute() or not source.exists():
            return False
        self._check(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        if source.is_dir():
            shutil.copytree(source, temporary, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, temporary)
        temporary.rename(target)
        return True

    def _check(self, path: Path) -> None:
        """
        Refuse to read for a user what this process may read and his Pods may not.

        Raises:
            ObjectStoreError: a file or folder, or a link within, leads there.
        """
        paths = [path, *(entry for folder, *names in os.walk(path) for entry in _links(Path(folder), *names))]
        for one in paths:
            if problem := self._refused(Path(os.path.realpath(one))):
                raise ObjectStoreError(f"{one} {problem}.")

    def _path_of(self, uri: str) -> Path:
        if self._root and uri.startswith(f"{self._root}/"):
            own = Path(self.local_root + uri.removeprefix(self._root))
            if own.exists():
                return own  # made by this run on this machine
        digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
        return self._folder / "inputs" / digest / (uri.partition("?")[0].rstrip("/").rpartition("/")[2] or "artifact")

    async def store(self, result: TaskResult) -> TaskResult:
        """
        Store all output artifacts; return the result with their URIs.

        Raises:
            ObjectStoreError: the store cannot be used.
        """
        stored: dict[str, list[ResultArtifact]] = {}
        for name, items in result.artifacts.items():
            stored[name] = [msgspec.structs.replace(one, uri=await self._store(one.uri)) for one in items]
        return msgspec.structs.replace(result, artifacts=stored)

    async def _store(self, path: str) -> str:
        if not self._root or not path.startswith(f"{self.local_root}/"):
            return path
        uri = self._root + path.removeprefix(self.local_root)
        await asyncio.to_thread(self._check, Path(path))
        await asyncio.to_thread(upload, Path(path), self._with_options(uri), await self._access(uri))
        return uri

    async def are_there(self, values: Values) -> bool:
        """Say whether all artifacts in object stores still exist; those that never were written need not."""
        for items in values.artifacts.values():
            for artifact in items:
                if not artifact.digest or not is_object_uri(artifact.uri):
                    continue
                access = await self._access(artifact.uri)
                if not await asyncio.to_thread(exists, self._with_options(artifact.uri), access):
                    return False
        return True

    async def _access(self, uri: str) -> Access:
        return await access_to(self._client, self._namespace, uri)

    def _with_options(self, uri: str) -> str:
        """Add the bucket's options, which are in the query of the root, to a URI below it."""
        below = self._query and self._root and uri.startswith(f"{self._root}/") and "?" not in uri
        return f"{uri}?{self._query}" if below else uri

    async def clear(self) -> None:
        """Remove the copies of a run that is over."""
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


def _is_fetched(artifact: Artifact) -> bool:
    """Say whether an input is brought for a task: what an importer has put into the workspace is there already."""
    return is_object_uri(artifact.uri) and not artifact.metadata.get("_kfp_workspace")


def _links(folder: Path, folders: list[str], files: list[str]) -> list[Path]:
    return [path for name in (*folders, *files) if (path := folder / name).is_symlink()]


def _place_in(volume: Path, below: str) -> Path:
    """
    Return where something lies below a volume, whatever links its users have made there.

    Raises:
        ObjectStoreError: that is not in the volume.
    """
    path = volume / below
    folder = Path(os.path.realpath(path.parent))
    if ".." in path.parts or not folder.is_relative_to(os.path.realpath(volume)):
        raise ObjectStoreError(f"'{below}' is not a place in the workspace.")
    return folder / path.name


async def _fetch(uri: str, path: Path) -> bool:
    """
    Bring one file from a web server; False when it has none.

    Raises:
        ObjectStoreError: the server cannot be reached, or refuses.
    """
    temporary = path.with_name(f".{path.name}.part")
    await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
    try:
        async with aiohttp.ClientSession(timeout=_WEB, trust_env=True) as session, session.get(uri) as response:
            if response.status in (404, 410):
                return False
            response.raise_for_status()
            with await asyncio.to_thread(temporary.open, "wb") as file:
                async for chunk in response.content.iter_chunked(1 << 20):
                    await asyncio.to_thread(file.write, chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ObjectStoreError(f"{uri} cannot be read: {error or 'timeout'}; check the address.") from error
    await asyncio.to_thread(temporary.rename, path)
    return True


def tidy_staging(folder: Path, active: set[str]) -> None:
    """Remove copies of runs that are over; a kill can come before ``clear``."""
    for own in folder.iterdir() if folder.is_dir() else ():
        if own.name not in active:
            shutil.rmtree(own, ignore_errors=True)
