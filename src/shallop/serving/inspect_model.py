"""
What a model needs, read from its files.

``requirements.txt`` beside a model, and the files of an MLflow model (``requirements.txt``, ``conda.yaml``), say it.
Otherwise its bytes do. Nothing is unpickled: a pickle is a program of its author. The strings inside it say enough, the
version of scikit-learn above all, which the library itself writes into every estimator.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import yaml

from shallop.serving.libraries import merge_requirements

__all__ = ["Inspection", "inspect_file", "inspect_model", "model_file"]

MAX_BYTES = 512 * 1024 * 1024  # decompressed; what a scan reads at most
_MAX_FILES = 10_000
_CHUNK = 1024 * 1024
_OVERLAP = 512
_PICKLES = (".joblib", ".pkl", ".pickle")
_BOOSTERS = (".bst", ".json", ".ubj")
_SUFFIXES = {
    ".onnx": "onnx",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".pt2": "pytorch",
    ".mar": "pytorch",
    ".keras": "tensorflow",
    ".h5": "tensorflow",
    ".safetensors": "huggingface",
    ".pmml": "pmml",
    ".pdiparams": "paddle",
}
_FILES = {"saved_model.pb": "tensorflow", "pytorch_model.bin": "huggingface"}
# A pickle of protocol 2 or later, and what joblib compresses one with.
_PICKLE_STARTS = (b"\x80", b"\x78", b"\x1f\x8b", b"BZh", b"\xfd7z", b"\x5d\x00\x00", b"\x04\x22\x4d")

# Top-level modules whose presence in a pickle means that a package is needed to load it.
_PACKAGES = {
    "sklearn": "scikit-learn",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
    "pandas": "pandas",
    "polars": "polars",
    "scipy": "scipy",
    "imblearn": "imbalanced-learn",
    "category_encoders": "category-encoders",
    "feature_engine": "feature-engine",
    "statsmodels": "statsmodels",
    "sktime": "sktime",
    "skops": "skops",
    "dill": "dill",
    "cloudpickle": "cloudpickle",
}
_VERSION = re.compile(rb"[0-9]+(?:\.[0-9A-Za-z]+)+(?:\+[0-9A-Za-z.]+)?")
# How pickle protocols 0 to 5 write a text: opcode, then its length or the text up to a new line.
_TEXT = rb"(?:\x8c(?P<n1>.)|X(?P<n4>.{4})|V)"
_MEMO = rb"(?:\x94|q.|r.{4}|\np[0-9]+\n)?"
_SKLEARN_VERSION = re.compile(rb"_sklearn_version" + _MEMO + _TEXT + rb"(?P<text>[0-9][0-9A-Za-z.+]{0,40})", re.DOTALL)
_MODULE = re.compile(
    rb"(?:\x8c.|X.{4}|c|\n)(?P<module>(?:"
    + b"|".join(name.encode() for name in [*_PACKAGES, "numpy"])
    + rb")(?:\.[a-z_][a-z0-9_]*)*)",
    re.DOTALL,
)
_JSON_VERSION = re.compile(rb'"version"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]')
# UBJSON: the key, then an array, typed and counted or plain, of three small integers of any width.
_UBJ_VERSION = re.compile(rb"version\[(?:\$(?P<type>.))?(?:#(?:[iU].|I.{2}|l.{4}|L.{8}))?(?P<items>.{3,27})", re.DOTALL)
_UBJ_WIDTHS = {b"i": 1, b"U": 1, b"I": 2, b"l": 4, b"L": 8}


class Inspection(NamedTuple):
    """
    What a model needs.

    Args:
        requirements: pip requirement lines, sorted; empty when the files say nothing.
        formats: that the files have, in KServe's words, where their names tell.
    """

    requirements: tuple[str, ...]
    formats: tuple[str, ...] = ()


def model_file(folder: Path) -> Path | None:
    """Return the model file of a folder, or the file itself; None when there is none or a choice."""
    if folder.is_file():
        return folder
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for suffixes in (_PICKLES, _BOOSTERS):
        found = [path for path in files if path.suffix in suffixes]
        if found:
            return found[0] if len(found) == 1 else None
    return files[0] if len(files) == 1 else None


def inspect_model(location: Path) -> Inspection | None:
    """Inspect what a server would load from a folder; None when it cannot be read. Blocks: run it in a thread."""
    try:
        if (location / "MLmodel").is_file():
            return Inspection(_mlflow_requirements(location), ("mlflow",))
        written = _read_requirements(location / "requirements.txt")
        formats = _formats(location)
        path = None if formats else model_file(location)
        if path is None:
            return Inspection(written, formats) if written or formats else None
        stat = path.stat()
        found = inspect_file(path, stat.st_mtime_ns, stat.st_size)
        return Inspection(tuple(sorted(merge_requirements(found.requirements, written))), formats)
    except OSError:
        return None


def _formats(location: Path) -> tuple[str, ...]:
    """Return the formats that names of files tell, at any depth of a repository of models."""
    found = set()
    for number, path in enumerate([location] if location.is_file() else location.rglob("*")):
        if format_ := _SUFFIXES.get(path.suffix, "") or _FILES.get(path.name, ""):
            found.add(format_)
        if number > _MAX_FILES:
            break
    return tuple(sorted(found))


def _mlflow_requirements(folder: Path) -> tuple[str, ...]:
    lines = _read_requirements(folder / "requirements.txt") or _conda_requirements(folder / "conda.yaml")
    # The light package loads models as the full one does, without its server and user interface.
    lines = tuple(re.sub(r"^mlflow(?=$|[\s\[<>=!~;])(\[[^]]*\])?", "mlflow-skinny", line) for line in lines)
    return tuple(sorted(merge_requirements(("mlflow-skinny", "numpy", "pandas"), lines)))


def _read_requirements(path: Path) -> tuple[str, ...]:
    """Return the requirements of a file: those that name packages, not its options."""
    try:
        lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    found = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return tuple(line for line in found if line and not line.startswith("-"))


def _conda_requirements(path: Path) -> tuple[str, ...]:
    try:
        dependencies: list[Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return ()
    return tuple(str(line) for item in dependencies if isinstance(item, dict) for line in item.get("pip") or ())


@lru_cache(maxsize=256)
def inspect_file(path: Path, _mtime_ns: int, _size_bytes: int) -> Inspection:
    """Inspect one file; the answer is remembered until the file changes."""
    if path.suffix in _PICKLES or (path.suffix not in _BOOSTERS and _is_pickle(path)):
        return Inspection(tuple(sorted(_inspect_pickle(path))))
    return Inspection(tuple(_inspect_booster(path)))


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3).startswith(_PICKLE_STARTS)


def _inspect_pickle(path: Path) -> set[str]:
    version, modules, booster = "", set[str](), ""
    with path.open("rb") as raw:
        head = raw.read(6)
        raw.seek(0)
        if head.startswith(b"\x04\x22\x4d\x18"):
            # The standard library cannot look inside; joblib needs this package to load the file.
            return {"lz4"}
        for window in _windows(_decompressed(raw, head)):
            version = version or _sklearn_version(window)
            modules |= {match["module"].decode() for match in _MODULE.finditer(window) if _is_whole(match)}
            booster = booster or _ubj_version(window)
    return _requirements(version, booster, modules)


def _requirements(sklearn_version: str, booster_version: str, modules: set[str]) -> set[str]:
    lines = {_PACKAGES[top] for top in {module.partition(".")[0] for module in modules} - {"numpy"}}
    if sklearn_version:
        lines = (lines - {"scikit-learn"}) | {f"scikit-learn=={sklearn_version}"}
    if booster_version and "xgboost" in lines:
        lines = (lines - {"xgboost"}) | {f"xgboost=={booster_version}"}
    if any(module.startswith("numpy._core") for module in modules):
        lines.add("numpy>=2")
    elif sklearn_version and _numbers(sklearn_version) < (1, 4, 2):
        # Built against the binary interface of NumPy 1, without saying so in their metadata.
        lines.add("numpy<2")
    return lines


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _sklearn_version(window: bytes) -> str:
    for match in _SKLEARN_VERSION.finditer(window):
        length = match["n1"] or match["n4"]
        text = match["text"][: int.from_bytes(length, "little")] if length else match["text"]
        if _VERSION.fullmatch(text):
            return text.decode()
    return ""


def _is_whole(match: re.Match[bytes]) -> bool:
    """Whether the text that a pickle announces is the module's name and no more, or a GLOBAL line."""
    opcode, text = match.group()[:1], match["module"]
    if opcode == b"\x8c":
        return match.group()[1] == len(text)
    if opcode == b"X":
        return int.from_bytes(match.group()[1:5], "little") == len(text)
    return match.string[match.end() : match.end() + 1] == b"\n"


def _inspect_booster(path: Path) -> list[str]:
    with path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(65536)
        file.seek(max(0, size - 65536))
        tail = file.read()
    if head.startswith(b"binf"):
        return ["xgboost<3.1"]  # the first binary format, removed in 3.1
    if head.startswith(b"tree\n"):
        return ["lightgbm"]
    if b"learner" not in head + tail:
        return []
    for part in (tail, head):
        if match := _JSON_VERSION.search(part):
            return [f"xgboost=={b'.'.join(match.groups()).decode()}"]
        if version := _ubj_version(part):
            return [f"xgboost=={version}"]
    return ["xgboost"]


def _ubj_version(window: bytes) -> str:
    for match in _UBJ_VERSION.finditer(window):
        numbers = _ubj_integers(match["items"], match["type"])
        if len(numbers) == 3 and all(number < 1000 for number in numbers):
            return ".".join(map(str, numbers))
    return ""


def _ubj_integers(data: bytes, type_: bytes | None) -> list[int]:
    numbers: list[int] = []
    while data and len(numbers) < 3:
        kind = type_ or data[:1]
        data = data if type_ else data[1:]
        width = _UBJ_WIDTHS.get(kind)
        if width is None or len(data) < width:
            break
        numbers.append(int.from_bytes(data[:width], "big"))
        data = data[width:]
    return numbers


def _decompressed(raw: IO[bytes], head: bytes) -> Iterator[bytes]:
    if head.startswith(b"\x1f\x8b"):
        return _read(gzip.GzipFile(fileobj=raw))
    if head.startswith(b"BZh"):
        return _read(bz2.BZ2File(raw))
    if head.startswith((b"\xfd7zXZ", b"\x5d\x00\x00")):
        return _read(lzma.LZMAFile(raw))
    if head[:1] == b"\x78" and int.from_bytes(head[:2], "big") % 31 == 0:
        return _inflate(raw)
    return _read(raw)


def _inflate(raw: IO[bytes]) -> Iterator[bytes]:
    stream = zlib.decompressobj()
    while data := raw.read(_CHUNK):
        while data and not stream.eof:
            yield stream.decompress(data, _CHUNK)
            data = stream.unconsumed_tail


def _windows(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield pieces that overlap, so that nothing looked for is cut; a broken or endless file ends early."""
    rest, total = b"", 0
    try:
        for chunk in chunks:
            window = rest + chunk
            yield window
            rest, total = window[-_OVERLAP:], total + len(chunk)
            if total >= MAX_BYTES:
                return
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return


def _read(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk
