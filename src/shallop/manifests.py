"""Reading manifests that people write, with errors that name the file, the line and the field."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from shallop.errors import SettingsError
from shallop.kube.objects import Object

__all__ = ["load_manifests"]

_MAX_VALUES = 2_000_000  # with aliases written out: a few lines can stand for more than memory


def load_manifests(name: str) -> list[Object]:
    """
    Read every object of a YAML or JSON file, of the files of a folder, or of standard input ("-"); Lists are unpacked.

    Raises:
        SettingsError: a file cannot be read, is no YAML, or holds something that is no object.
    """
    path = Path(name)
    if name != "-" and path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml", ".json"))
        return [obj for file in files for obj in load_manifests(str(file))]
    try:
        text = sys.stdin.read() if name == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}: {error}") from error
    return list(_objects(name, text))


def _objects(name: str, text: str) -> Iterator[Object]:
    try:
        documents = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        size = sum(_size(document, {}) for document in documents)
    except yaml.YAMLError as error:
        raise SettingsError(f"{name}: this is no YAML: {error}") from error
    except RecursionError as error:
        raise SettingsError(f"{name}: nested too deeply for a manifest.") from error
    if size > _MAX_VALUES:
        raise SettingsError(f"{name}: YAML aliases expand to more than {_MAX_VALUES} values; write them out.")
    for number, document in enumerate(documents, 1):
        if document is None:
            continue
        where = f"{name}, document {number}" if len(documents) > 1 else name
        yield from _unpack(where, document)


def _unpack(where: str, document: Any) -> Iterator[Object]:
    if not isinstance(document, dict):
        raise SettingsError(f"{where}: expected an object with apiVersion and kind, found {type(document).__name__}.")
    if str(document.get("kind", "")).endswith("List") and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from _unpack(where, item)
        return
    for field in ("apiVersion", "kind"):
        if not isinstance(document.get(field), str):
            raise SettingsError(f"{where}: {field}: required text is missing.")
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise SettingsError(f"{where}: metadata.name: required text is missing.")
    yield document


def _size(node: Any, known: dict[int, int]) -> int:
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES + 1  # stands meanwhile: a cycle counts as endless
        known[id(node)] = 1 + sum(_size(child, known) for child in (node.values() if isinstance(node, dict) else node))
    return known[id(node)]
