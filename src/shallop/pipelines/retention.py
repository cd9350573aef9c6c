"""
Removes what is too old: runs, entries of the cache, and files of artifacts that nothing uses any more.

A run that is not over, or that a run which is not over repeats, stays; so does an artifact while a run, an entry of the
cache, a model of the registry or an InferenceService uses it. Directories that users have chosen as pipeline root are
theirs: files are removed below the server's own directory and in object stores.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import sqlalchemy as sa

from shallop.controller import Services, own_headers
from shallop.errors import NotFoundError, ObjectStoreError, ShallopError
from shallop.kube.objects import Gvk
from shallop.pipelines import tables
from shallop.pipelines.messages import to_micros
from shallop.pipelines.podends import pod_namespace
from shallop.pipelines.providers import access_to
from shallop.settings import Settings
from shallop.store.objects import delete, is_object_uri

__all__ = ["Retention", "Swept", "is_limited", "is_used"]

log = logging.getLogger(__name__)

_PAUSE_S = 3600.0
_BATCH = 100
_DAY_S = 86400
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SERVER = Gvk("serving.kserve.io/v1beta1", "InferenceService")
_MODELS = "/api/model_registry/v1alpha3/model_artifacts"


class Swept(NamedTuple):
    """How much was removed: rows, and ``folders`` of runs on this machine."""

    runs: int
    cache_entries: int
    artifacts: int
    folders: int


def is_limited(settings: Settings) -> bool:
    """Say whether anything is ever too old."""
    return any((settings.run_max_age_days, settings.run_max_count, settings.artifact_max_age_days)) or (
        settings.cache_max_age_s > 0
    )


def is_used(uri: str, users: Iterable[str]) -> bool:
    """Say whether one of the places that others use is this one, lies in it, or holds it."""
    place = _place(uri)
    return any(one.startswith(place) or place.startswith(one) for one in users if one != "/")


def _place(uri: str) -> str:
    """Return a URI as places are compared: without its scheme where that is ``file``, with a final ``/``."""
    return f"{uri.removeprefix('file://').partition('?')[0].rstrip('/')}/"


class Retention:
    """
    Owns the sweeps; ``run`` lives as long as the platform.

    Args:
        users: gives the URIs that others than runs use, each with a final ``/``.
    """

    def __init__(self, services: Services, users: Callable[[], Awaitable[set[str]]] | None = None) -> None:
        self._services = services
        self._settings = services.settings
        self._database = services.database
        self._users = users or self._find_users

    async def run(self) -> None:
        """Sweep now and then; what cannot be removed, or asked for, now is tried again the next time."""
        while True:
            try:
                swept = await self.sweep()
                if any(swept):
                    log.info("removed what is too old: %s", swept)
            except (ShallopError, OSError, aiohttp.ClientError, sa.exc.OperationalError) as error:
                log.warning("what is too old was not removed: %s", error)
            await asyncio.sleep(_PAUSE_S)

    async def sweep(self) -> Swept:
        settings, now = self._settings, to_micros(self._services.now())
        runs = entries = artifacts = folders = 0
        if settings.run_max_age_days or settings.run_max_count:
            before = now - int(settings.run_max_age_days * _DAY_S * 1e6) if settings.run_max_age_days else 0
            while count := await self._database.write(
                lambda c: tables.delete_expired_runs(c, before=before, keep=settings.run_max_count, limit=_BATCH)
            ):
                runs += count
        if settings.cache_max_age_s > 0:
            oldest = now - int(settings.cache_max_age_s * 1e6)
            entries = await self._database.write(lambda c: tables.delete_old_cache_entries(c, oldest))
        if settings.artifact_max_age_days:
            users = await self._users()
            age_s = settings.artifact_max_age_days * _DAY_S
            artifacts = await self._sweep_artifacts(now - int(age_s * 1e6), users)
            folders = await self._sweep_folders(age_s, users)
        return Swept(runs, entries, artifacts, folders)

    async def _sweep_artifacts(self, before: int, users: set[str]) -> int:
        """Forget artifacts that nothing uses; what they have in object stores is removed after that."""

        def forget(connection: sa.Connection) -> list[tables.Row]:
            unused = tables.unused_artifacts(connection, before)
            gone = [row for row in unused if not is_used(row["uri"], users)]
            tables.delete_artifacts(connection, [row["id"] for row in gone])
            return gone

        gone = await self._database.write(forget)
        for row in gone:
            if is_object_uri(row["uri"]):
                try:
                    access = await access_to(self._services.client, pod_namespace(row), row["uri"])
                    await asyncio.to_thread(delete, row["uri"], access)
                except ObjectStoreError as error:
                    log.warning("artifact %s is forgotten, but its content stays: %s", row["id"], error)
        return len(gone)

    async def _sweep_folders(self, age_s: float, users: set[str]) -> int:
        """Remove folders of runs of which no row is left: files of all their artifacts, and what tasks left beside."""
        found = await asyncio.to_thread(lambda: list(_run_folders(self._settings.artifacts)))
        known = await self._database.read(lambda c: tables.runs_with_rows(c, [folder.name for folder in found]))
        count = 0
        for folder in found:
            if folder.name not in known and not is_used(str(folder), users):
                count += await asyncio.to_thread(_remove_old, folder, age_s)
        return count

    async def _find_users(self) -> set[str]:
        """Ask the registry and the cluster; an error ends the sweep, as nothing that is used may be removed."""
        users = set(await self._registered())
        try:
            for server in (await self._services.client.list(_SERVER)).items:
                users |= set(_storage_uris(server.get("spec") or {}))
        except NotFoundError:  # a platform without serving
            pass
        return {_place(uri) for uri in users if uri}

    async def _registered(self) -> list[str]:
        uris: list[str] = []
        headers, limit = await own_headers(self._settings), aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(headers=headers, timeout=limit, raise_for_status=True) as session:
            token = ""
            while True:
                query = {"pageSize": "1000"} | ({"nextPageToken": token} if token else {})
                async with session.get(f"{self._settings.web_url}{_MODELS}", params=query) as answer:
                    page: dict[str, Any] = await answer.json()
                uris += [one["uri"] for one in page.get("items") or () if one.get("uri")]
                token = page.get("nextPageToken") or ""
                if not token:
                    return uris


def _storage_uris(value: Any) -> Iterator[str]:
    """Yield every URI in the specification of a server, whatever the field is called."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, str) and key in ("storageUri", "uri", "value", "path"):
                yield item
            else:
                yield from _storage_uris(item)
    elif isinstance(value, list):
        for item in value:
            yield from _storage_uris(item)


def _run_folders(root: Path) -> Iterator[Path]:
    """Yield ``PIPELINE/RUN`` and, of a server with several users, ``NAMESPACE/PIPELINE/RUN``."""
    for pattern in ("*/*", "*/*/*"):
        for folder in root.glob(pattern):
            if _UUID.fullmatch(folder.name) and not _UUID.fullmatch(folder.parent.name) and folder.is_dir():
                yield folder


def _remove_old(folder: Path, age_s: float) -> bool:
    if time.time() - folder.stat().st_mtime < age_s:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()
