"""
What a finished component leaves: its output parameters and artifacts, read and checked.

Source: KFP v2 executor output, as kfp 2.17.0 ``dsl/executor.py`` writes it and the upstream launcher reads it: that
file first, then one file per parameter.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from typing import TYPE_CHECKING, Any, Iterator, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod.paths import UnsupportedUriError, local_path

if TYPE_CHECKING:
    from shallop_pod.launcher import Task

__all__ = ["OutputError", "content_digest", "parse_parameter", "read_outputs"]

_CHUNK_BYTES = 1 << 20
_NON_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


class OutputError(Exception):
    """The outputs are not what the component declares."""


def read_outputs(task: Task) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """
    Return parameters and artifacts as result.json holds them.

    Raises:
        OutputError: a declared parameter is missing or has the wrong type, or the executor's file is not readable.
        OSError: content cannot be copied or read, for example because the disk is full.
    """
    written = _read_executor_output(task.output_file)
    parameters = _read_parameters(task, written.get("parameterValues") or {})
    returned = written.get("artifacts") or {}
    artifacts = {
        name: _merge_artifacts(declared, (returned.get(name) or {}).get("artifacts") or [])
        for name, declared in task.artifacts.items()
    }
    return parameters, artifacts


def _read_executor_output(path: str) -> dict[str, Any]:
    if not path or not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise OutputError(f"{path}: the component's output file is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise OutputError(f"{path}: the component's output file must hold a JSON object.")
    return content


# --- parameters -----------------------------------------------------------------------------------------------------


def _read_parameters(task: Task, written: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, kind in task.output_parameters.items():
        path = task.parameter_files.get(name, "")
        if written.get(name) is not None:
            values[name] = _check_type(name, written[name], kind)
        elif path and os.path.exists(path):
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                values[name] = parse_parameter(name, file.read(), kind)
        elif name not in task.optional_outputs:
            raise OutputError(
                f"Output parameter '{name}' was not written: return it from the function, "
                f"or write it to its output file {path}".rstrip()
                + "."
            )
    return values


def parse_parameter(name: str, text: str, kind: str) -> Any:
    """Return the value of a parameter file's text; OutputError when it is not of its type."""
    try:
        if kind == "NUMBER_INTEGER":
            return _check_type(name, int(text) if "." not in text else float(text), kind)
        if kind == "NUMBER_DOUBLE":
            return _check_type(name, float(text), kind)
        if kind == "BOOLEAN":
            return {"true": True, "false": False}[text.strip().lower()]
        if kind in ("LIST", "STRUCT"):
            return _check_type(name, json.loads(text), kind)
    except (ValueError, KeyError):
        raise OutputError(f"Output parameter '{name}': {_shown(text)} is not of type {kind}.") from None
    return text


def _check_type(name: str, value: Any, kind: str) -> Any:
    """Return the value as its type travels: integers stay integers."""
    if isinstance(value, float) and not math.isfinite(value):
        raise OutputError(
            f"Output parameter '{name}' is {value}, which no parameter can hold; write it to an artifact."
        )
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        "NUMBER_INTEGER": is_number and float(value).is_integer() if is_number else False,
        "NUMBER_DOUBLE": is_number,
        "BOOLEAN": isinstance(value, bool),
        "STRING": isinstance(value, str),
        "LIST": isinstance(value, list),
        "STRUCT": isinstance(value, dict),
    }.get(kind, True)
    if not fits:
        raise OutputError(f"Output parameter '{name}': {_shown(value)} is not of type {kind}.")
    return int(value) if kind == "NUMBER_INTEGER" else _finite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _finite(value: Any) -> Any:
    """Write numbers that JSON has not as protobuf's JSON mapping does."""
    if isinstance(value, float) and not math.isfinite(value):
        return _NON_FINITE.get(value, "NaN")
    if isinstance(value, dict):
        return {key: _finite(element) for key, element in value.items()}
    return [_finite(element) for element in value] if isinstance(value, list) else value


# --- artifacts ------------------------------------------------------------------------------------------------------


def _merge_artifacts(declared: Sequence[dict[str, Any]], returned: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    merged = []
    for index in range(max(len(declared), len(returned))):
        base = declared[index] if index < len(declared) else {}
        over = returned[index] if index < len(returned) else {}
        record = {
            "name": over.get("name") or base.get("name", ""),
            "type": base.get("type") or over.get("type") or {},
            "uri": over.get("uri") or base.get("uri", ""),
            "metadata": _finite({**base.get("metadata", {}), **(over.get("metadata") or {})}),
        }
        merged.append({**record, **_content_of(record["uri"], over.get("custom_path") or "")})
    return merged


def _content_of(uri: str, custom_path: str) -> dict[str, Any]:
    """Bring content to its place and describe it; a place elsewhere is taken on trust."""
    try:
        path = local_path(uri)
    except UnsupportedUriError:
        return {"digest": None, "sizeBytes": 0}
    if custom_path and os.path.abspath(custom_path) != path and os.path.lexists(custom_path):
        _copy(custom_path, path)
    digest, size_bytes = content_digest(path)
    return {"digest": digest, "sizeBytes": size_bytes}


def _copy(source: str, target: str) -> None:
    """Copy a file or a directory so that ``target`` is either complete or not there."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = f"{target}.{os.getpid()}.part"
    try:
        if os.path.isdir(source):
            try:
                shutil.copytree(source, temporary, symlinks=True)
            except shutil.Error as error:
                reason = str(error.args[0][0][2])
                code = errno.ENOSPC if "No space left" in reason else errno.EIO
                raise OSError(code, reason, source) from error
        else:
            shutil.copyfile(source, temporary)
        if os.path.isdir(target) and not os.path.islink(target):
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        elif os.path.exists(temporary):
            os.unlink(temporary)


def content_digest(path: str) -> tuple[str | None, int]:
    """
    Return ``sha256:...`` and the size in bytes of a file or a directory; ``(None, 0)`` when there is nothing.

    A directory's digest covers the names, kinds and contents of all it holds, in the order of their paths; times,
    owners and modes do not count, so the same content has the same digest wherever and whenever it was written.
    """
    if os.path.isfile(path):
        digest, size_bytes = _file_digest(path)
        return f"sha256:{digest}", size_bytes
    if not os.path.isdir(path):
        return None, 0
    total = hashlib.sha256()
    size_bytes = 0
    for relative, full in sorted(_walk(path)):
        if os.path.islink(full):
            entry = f"link {os.readlink(full)}"
        elif os.path.isdir(full):
            entry = "directory"
        elif os.path.isfile(full):
            entry, size = _file_digest(full)
            size_bytes += size
        else:
            continue  # a socket or a pipe has no content
        total.update(f"{relative}\0{entry}\0".encode(errors="surrogateescape"))
    return f"sha256:{total.hexdigest()}", size_bytes


def _walk(root: str) -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            full = os.path.join(folder, name)
            yield os.path.relpath(full, root), full


def _file_digest(path: str) -> tuple[str, int]:
    digest = hashlib.sha256()
    size_bytes = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return digest.hexdigest(), size_bytes
