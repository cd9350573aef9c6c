"""
What containers have in the folder of their Pod, and what of it the next Pod of the same sandbox finds.

Each Pod needs some twenty inodes that differ in nothing but a token, and file systems that look for inodes that were
not in use lately (ext4) take 0.1 ms to make one: what nobody has touched is used again. Where nothing at all has
changed since it was looked at, its change times say so: they move with every entry, size, mode, owner and attribute,
and no program can set them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from shallop.embedded.kubelet.memory_volumes import unmount_memory
from shallop.embedded.kubelet.volumes import TOKEN_FOLDER, TokenVolume, is_as_written

__all__ = ["NOTHING", "PRIVATE", "Kept", "clear_folder", "clear_quickly", "make_container_folders"]

# Private folders that containers expect to write to, and what they are called in the Pod's folder.
PRIVATE = {"/tmp": "tmp", "/var/tmp": "var-tmp"}
# The last: one record of a container of an earlier Pod, whose file the shim takes for its next one.
_NEXT_RECORD = "record.next"
_OF_THE_SHIM = ("shim.sock", "shim.json", "shim.log", _NEXT_RECORD)
_ABOVE = ("home", "messages", "private", "volumes")
# What the shims of earlier Pods have left, to be removed together.
_LEFT, _MOST_LEFT = "left-", 16
# Kernels before 6.13 write change times by their ticks, of 10 ms at most: what has changed later than this may change
# again and show the same time.
_SETTLED_NS = 20_000_000


class Kept(NamedTuple):
    """
    What a sandbox has for its next Pod.

    Args:
        container: whose folders are there, as they were made; empty for none.
        token: what is in the folder of its token's volume; the token is that of an earlier Pod.
        times: change times of all of it, by place; empty when some of it had changed too lately.
    """

    container: str = ""
    token: TokenVolume | None = None
    times: Mapping[str, int] = MappingProxyType({})


NOTHING = Kept()


def make_container_folders(folder: str, container: str) -> None:
    """Make what every container has, where it is not there: home, private folders, the file of its last message."""
    os.makedirs(f"{folder}/home/{container}", mode=0o700, exist_ok=True)
    for name in PRIVATE.values():
        place = f"{folder}/private/{container}/{name}"
        if not os.path.isdir(place):
            os.makedirs(place)
            os.chmod(place, 0o1777)
    os.makedirs(f"{folder}/messages", mode=0o700, exist_ok=True)
    flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(f"{folder}/messages/{container}", flags, 0o600))


def clear_quickly(folder: str, container: str, token: TokenVolume | None, kept: Kept) -> bool:
    """
    Put aside what a Pod has left where nothing but what is kept was there and nobody has touched that; else False.

    Some dozen questions to the file system: handing them to a thread takes longer. Only removing may: of a file that
    has been written to disk it waits for that (2 ms where ext4 discards blocks), so now and then a thread does it.

    Args:
        container, token: of the Pod that is over.
        kept: what it found at its start.
    """
    version, known = (volume and volume.version for volume in (token, kept.token))
    if not kept.times or container != kept.container or version != known:
        return False
    try:
        if any(os.lstat(f"{folder}/{place}").st_ctime_ns != changed for place, changed in kept.times.items()):
            return False
        names = os.listdir(folder)
        left = sum(name.startswith(_LEFT) for name in names)
        wants_record = _NEXT_RECORD not in names
        if left > _MOST_LEFT:
            return False
        for name in names:
            if name in _OF_THE_SHIM or name in _ABOVE or name.startswith(_LEFT):
                continue
            if wants_record and name.endswith(".exit"):
                os.rename(f"{folder}/{name}", f"{folder}/{_NEXT_RECORD}")
                wants_record = False
            else:
                os.rename(f"{folder}/{name}", f"{folder}/{_LEFT}{left}")
                left += 1
    except OSError:
        return False
    return True


def clear_folder(folder: str, container: str, token: TokenVolume | None = None) -> Kept:
    """
    Remove what a Pod has left in its folder. Blocking.

    Its shim's files stay, and what ``container`` and the volume of its token were given at their start, where that is
    as it was made, with no attributes added.
    """
    unmount_memory(Path(folder))
    made = {f"home/{container}": 0o700, f"messages/{container}": 0o600}
    made |= {f"private/{container}/{name}": 0o1777 for name in PRIVATE.values()}
    whole = {place for place, mode in made.items() if container and _is_untouched(f"{folder}/{place}", mode)}
    volume = f"volumes/{TOKEN_FOLDER}"
    if container and token is not None and is_as_written(f"{folder}/{volume}", token):
        whole.add(volume)
    else:
        token = None
    _clear(folder, "", whole | ({"volumes/"} if container else set()))
    if not whole >= made.keys():
        container = ""
    return Kept(container, token, _times(folder, whole, token) if container else {})


def _clear(folder: str, below: str, kept: set[str]) -> None:
    with os.scandir(folder) as entries:
        for entry in list(entries):
            place = f"{below}{entry.name}"
            if place in _OF_THE_SHIM or place in kept:
                continue
            if any(name.startswith(f"{place}/") for name in kept) and entry.is_dir(follow_symlinks=False):
                _clear(entry.path, f"{place}/", kept)
            elif entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)


def _is_untouched(path: str, mode: int) -> bool:
    """Say whether a folder or file is there, empty, and as it was made."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    if stat.S_IMODE(found.st_mode) != mode or found.st_uid != os.geteuid() or os.listxattr(path, follow_symlinks=False):
        return False
    return not os.listdir(path) if stat.S_ISDIR(found.st_mode) else stat.S_ISREG(found.st_mode) and not found.st_size


def _times(folder: str, whole: set[str], token: TokenVolume | None) -> dict[str, int]:
    """Return when what is kept has changed, and what else a Pod may have added to; nothing where that was just now."""
    places = whole | {"messages", "volumes", *(os.path.dirname(name) for name in whole if name.startswith("private/"))}
    if token is not None:
        version = f"volumes/{TOKEN_FOLDER}/{token.version}"
        places |= {version, *(f"{version}/{name}" for name in token.frame)}
    times = {place: os.lstat(f"{folder}/{place}").st_ctime_ns for place in places}
    return times if max(times.values()) < time.time_ns() - _SETTLED_NS else {}
