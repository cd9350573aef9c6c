"""PersistentVolume: its phase, and what happens to it and its directory when the claim is gone (reclaim policy)."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio.to_thread

from shallop.controller import Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.persistentvolumeclaim import PROVISIONER
from shallop.errors import NotFoundError
from shallop.kube.objects import Gvk, Key, Object, annotations_of, format_time, is_deleting

__all__ = ["PERSISTENTVOLUME"]

_VOLUME = Gvk("v1", "PersistentVolume")
_CLAIM = Gvk("v1", "PersistentVolumeClaim")
_PROTECTION = "kubernetes.io/pv-protection"


async def reconcile(ctx: Context, volume: Resource[dict[str, Any]]) -> Result:
    """Release or remove a volume whose claim no longer exists."""
    raw, reference = volume.raw, volume.spec.get("claimRef")
    if reference is None:
        await _set_phase(ctx, raw, "Available")
    elif reference.get("uid") and not await _has_claim(ctx, reference):
        await _reclaim(ctx, raw)
        return Result()
    if is_deleting(raw) and reference is None:
        await _unprotect(ctx, raw)
    return Result()


async def _has_claim(ctx: Context, reference: dict[str, Any]) -> bool:
    known = ctx.cache(_CLAIM).get(Key(reference["namespace"], reference["name"]))
    if known and known["metadata"]["uid"] == reference["uid"]:
        return True
    # Data will be removed: the server's word counts, not the cache's.
    try:
        found = await ctx.client.get(_CLAIM, reference["name"], reference["namespace"])
    except NotFoundError:
        return False
    return bool(found["metadata"]["uid"] == reference["uid"])


async def _reclaim(ctx: Context, raw: Object) -> None:
    name, spec = raw["metadata"]["name"], raw["spec"]
    await _set_phase(ctx, raw, "Released")
    delete = spec.get("persistentVolumeReclaimPolicy") == "Delete"
    if delete and annotations_of(raw).get("pv.kubernetes.io/provisioned-by") == PROVISIONER:
        path = Path(spec["hostPath"]["path"])
        if ctx.settings.volumes in path.parents:
            await anyio.to_thread.run_sync(_remove_directory, path)
        if not is_deleting(raw):
            await ctx.client.delete(_VOLUME, name, uid=raw["metadata"]["uid"])
    if delete or is_deleting(raw):
        await _unprotect(ctx, raw)


def _remove_directory(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


async def _set_phase(ctx: Context, raw: Object, phase: str) -> None:
    if (raw.get("status") or {}).get("phase") != phase:
        await ctx.client.patch_status(raw, {"phase": phase, "lastPhaseTransitionTime": format_time(ctx.now())})


async def _unprotect(ctx: Context, raw: Object) -> None:
    finalizers = raw["metadata"].get("finalizers") or []
    if _PROTECTION in finalizers:
        rest = [name for name in finalizers if name != _PROTECTION]
        patch = {"metadata": {"uid": raw["metadata"]["uid"], "finalizers": rest or None}}
        try:
            await ctx.client.patch(_VOLUME, raw["metadata"]["name"], "", patch)
        except NotFoundError:
            pass


def _volume_of_claim(claim: Object) -> Iterable[Key]:
    name = claim["spec"].get("volumeName")
    return [Key("", name)] if name else []


PERSISTENTVOLUME = Kind(
    api_version="v1",
    kind="PersistentVolume",
    plural="persistentvolumes",
    namespaced=False,
    reconcile=reconcile,
    watches=(Watch(_CLAIM, _volume_of_claim),),
)
