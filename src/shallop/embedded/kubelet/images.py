"""
Which environment stands for a container image.

Data, not code: ``images.yaml`` beside this file, and what the user adds in ``<home>/images.yaml``, which comes first.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from shallop.errors import ImageResolutionError, SettingsError

__all__ = ["ImageEntry", "ImageTable", "add_image", "read_requirements", "remove_image", "stand_in"]

_VERSION = re.compile(r"3\.\d+")
_TAG_VERSION = re.compile(r"(?:python)?-?(3\.\d+)(?![\d])")
_NAME_VERSION = re.compile(r"(3)\.?(\d+)$")
_FIELDS = ("image", "python", "requirements", "command", "args", "env", "shell", "preload", "workdir", "programs")


@dataclass(frozen=True)
class ImageEntry:
    """
    One line of the table.

    Args:
        image: glob over the repository, or over ``repository:tag`` when it has a colon.
        python: ``X.Y``; ``tag`` or ``name`` take it from there; empty is the control plane's.
        requirements: packages that the image contains.
        command: its entrypoint.
        args: arguments, or the program without an entrypoint, when the container has neither command nor args.
        env: variables that it sets, in the order of the file.
        shell: ``bash`` when ``sh`` must be one.
        preload: modules that the environment's fork-server imports.
        workdir: where its processes start; empty for the root.
        programs: command lines that stand for programs of the image which are no Python, by their paths.
    """

    image: str
    python: str = ""
    requirements: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    shell: str = ""
    preload: tuple[str, ...] = ()
    workdir: str = ""
    programs: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def python_of(self, repository: str, tag: str) -> str:
        """Return X.Y for one image, empty when it names none."""
        if self.python == "tag":
            match = _TAG_VERSION.match(tag)
            return match[1] if match else ""
        if self.python == "name":
            match = _NAME_VERSION.search(repository)
            return f"{match[1]}.{match[2]}" if match else ""
        return self.python


def _split_image(image: str) -> tuple[str, str, str]:
    """Cut an image into registry, repository and tag; Docker Hub's ``library/`` and digests are dropped."""
    name = image.partition("@")[0]
    registry, slash, rest = name.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, rest = "", name
    repository, _, tag = rest.partition(":")
    return registry, repository.removeprefix("library/"), tag


def _matches(pattern: str, image: str) -> bool:
    registry, repository, tag = _split_image(image)
    names = [repository, f"{registry}/{repository}"]
    if ":" in pattern.rpartition("/")[2]:
        names = [f"{name}:{tag or 'latest'}" for name in names]
    return image == pattern or any(fnmatchcase(name, pattern) for name in names)


class ImageTable:
    """
    The table of one home; the user's file is read again when it has changed.

    Args:
        user_file: ``<home>/images.yaml``; may be absent.
    """

    def __init__(self, user_file: Path) -> None:
        self._user_file = user_file
        self._built_in = _read(Path(__file__).with_name("images.yaml"))
        self._user: tuple[ImageEntry, ...] = ()
        self._stamp: tuple[int, int] | None = None

    @property
    def entries(self) -> tuple[ImageEntry, ...]:
        """All entries, the user's first."""
        try:
            stat = os.stat(self._user_file)
            stamp = (stat.st_mtime_ns, stat.st_ino)
        except FileNotFoundError:
            self._user, self._stamp = (), None
        else:
            if stamp != self._stamp:
                self._user, self._stamp = _read(self._user_file), stamp
        return self._user + self._built_in

    def find(self, image: str) -> tuple[ImageEntry, str]:
        """
        Return the entry for an image and the Python version it stands for, empty for any.

        Raises:
            ImageResolutionError: no entry matches, or the user's file cannot be used.
        """
        try:
            entries = self.entries
        except SettingsError as error:
            raise ImageResolutionError(f"image '{image}': {error}") from error
        for entry in entries:
            if _matches(entry.image, image):
                _, repository, tag = _split_image(image)
                return entry, entry.python_of(repository, tag)
        raise ImageResolutionError(_unknown(image, entries))


def _unknown(image: str, entries: Iterable[ImageEntry]) -> str:
    repository = _split_image(image)[1]
    known = {entry.image.removeprefix("*/"): entry.image for entry in entries}
    near = difflib.get_close_matches(repository, known, 1, 0.7)
    near = near or [name for name in known if name.rpartition("/")[2] == repository.rpartition("/")[2]][:1]
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return (
        f"no local environment for image '{image}'{hint} Map it with "
        f"'shallop env add {image} --python 3.11 --requirements FILE' (FILE lists what the image contains)."
    )


def _read(path: Path) -> tuple[ImageEntry, ...]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as YAML: {error}") from error
    items = document.get("images") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise SettingsError(f"{path}: images: expected a list of entries.")
    return tuple(_parse(item, f"{path}: images[{index}]") for index, item in enumerate(items))


def _parse(item: Any, where: str) -> ImageEntry:
    if not isinstance(item, dict) or not isinstance(item.get("image"), str):
        raise SettingsError(f"{where}.image: required; a name or a pattern such as 'acme/*'.")
    for name in item:
        if name not in _FIELDS:
            raise SettingsError(f"{where}.{name}: no such field; known are {', '.join(_FIELDS)}.")
    python = str(item.get("python", ""))
    if python not in ("", "tag", "name") and not _VERSION.fullmatch(python):
        raise SettingsError(f'{where}.python: {python!r} is no version; write it as "3.11", in quotes.')
    env = item.get("env", {})
    if not isinstance(env, dict):
        raise SettingsError(f"{where}.env: expected a map of names and values.")
    return ImageEntry(
        item["image"],
        python,
        _strings(item, "requirements", where),
        _strings(item, "command", where),
        _strings(item, "args", where),
        tuple((str(name), str(value)) for name, value in env.items()),
        str(item.get("shell", "")),
        _strings(item, "preload", where),
        str(item.get("workdir", "")),
        tuple((str(path), tuple(str(words).split())) for path, words in (item.get("programs") or {}).items()),
    )


def _strings(item: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = item.get(name, [])
    if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
        raise SettingsError(f"{where}.{name}: expected a list of strings.")
    return tuple(value)


def stand_in(argv: Sequence[str], programs: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what runs in place of a program that only the real image has; programs are named by their first words."""
    for name, stands in programs.items():
        words = name.split()
        if list(argv[: len(words)]) == words:
            return [*stands[:-1], *argv[len(words) :]] if tuple(stands[-1:]) == ("$@",) else list(stands)
    return list(argv)


def read_requirements(path: Path) -> tuple[str, ...]:
    """
    Return the requirements of a ``requirements.txt``: one a line, comments and blank lines left out.

    Raises:
        SettingsError: the file cannot be read, or has a line with an option (``-r``, ``--index-url``).
    """
    try:
        lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    requirements = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    for number, text in enumerate(requirements, 1):
        if text.startswith("-"):
            raise SettingsError(
                f"{path}:{number}: {text.split()[0]} is an option; list packages only (indexes: pip.conf, uv.toml)."
            )
    return tuple(text for text in requirements if text)


def add_image(
    user_file: Path, image: str, *, python: str = "", requirements: Sequence[str] = (), command: Sequence[str] = ()
) -> ImageEntry:
    """Add or replace the user's entry for ``image`` and return it; SettingsError when a value cannot be used."""
    wanted = {"image": image, "python": python, "requirements": list(requirements), "command": list(command)}
    item = {name: value for name, value in wanted.items() if value}
    entry = _parse(item, f"{user_file}: {image}")
    _write(user_file, [item, *(other for other in _raw(user_file) if other["image"] != image)])
    return entry


def remove_image(user_file: Path, image: str) -> bool:
    """Remove the user's entry for ``image``; False when there is none."""
    items = _raw(user_file)
    kept = [item for item in items if item["image"] != image]
    if len(kept) != len(items):
        _write(user_file, kept)
    return len(kept) != len(items)


def _raw(user_file: Path) -> list[dict[str, Any]]:
    if not user_file.exists():
        return []
    _read(user_file)  # a broken file is reported, never overwritten
    items: list[dict[str, Any]] = yaml.safe_load(user_file.read_text(encoding="utf-8"))["images"]
    return items


def _write(user_file: Path, items: list[dict[str, Any]]) -> None:
    user_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=user_file.parent, prefix=".images-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yaml.safe_dump({"images": items}, file, sort_keys=False)
        os.replace(temporary, user_file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
