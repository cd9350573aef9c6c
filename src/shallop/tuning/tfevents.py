"""Scalars in TensorBoard's event files, read without TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from shallop.tuning.tables import Report
from shallop_pod.protobuf import fields_of

__all__ = ["read_events"]

_MAX_RECORD = 1 << 28


def read_events(folder: Path, metrics: Collection[str]) -> list[Report]:
    """
    Return scalars of every event file below a folder.

    Args:
        metrics: ``tag``, or ``directory/tag`` with the directory of the file relative to the folder.

    A file that is being written is read up to its last whole record. Blocks on files.
    """
    reports = []
    for path in sorted(folder.rglob("*tfevents*")):
        directory = path.parent.relative_to(folder).as_posix()
        for time_us, tag, value in _scalars(path):
            for name in (tag, f"{directory}/{tag}" if directory != "." else tag):
                if name in metrics:
                    reports.append(Report(name, repr(value), time_us))
                    break
    return reports


def _records(path: Path) -> Iterator[bytes]:
    # A record is: length (8 bytes), checksum of it (4), data, checksum of that (4).
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            if length > _MAX_RECORD:
                return
            data = file.read(length + 4)
            if len(data) < length + 4:
                return
            yield data[:length]


def _scalars(path: Path) -> Iterator[tuple[int, str, float]]:
    """
    Yield time, tag and value.

    Source: tensorflow/core/util/event.proto and framework/summary.proto: Event.wall_time = 1, Event.summary = 5,
    Summary.value = 1, Value.tag = 1, Value.simple_value = 2, Value.tensor = 8; TensorProto.dtype = 1,
    tensor_content = 4, float_val = 5, double_val = 6.
    """
    for record in _records(path):
        time_us, summary = 0, b""
        for number, value in fields_of(record):
            if number == 1 and isinstance(value, bytes) and len(value) == 8:
                time_us = round(struct.unpack("<d", value)[0] * 1_000_000)
            elif number == 5 and isinstance(value, bytes):
                summary = value
        for number, value in fields_of(summary):
            if number == 1 and isinstance(value, bytes):
                tag, scalar = _value(value)
                if tag and scalar is not None:
                    yield time_us, tag, scalar


def _value(data: bytes) -> tuple[str, float | None]:
    tag, scalar = "", None
    for number, value in fields_of(data):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            tag = value.decode(errors="replace")
        elif number == 2 and len(value) == 4:
            scalar = struct.unpack("<f", value)[0]
        elif number == 8:
            scalar = _tensor(value)
    return tag, scalar


def _tensor(data: bytes) -> float | None:
    kind, content = 1, b""
    for number, value in fields_of(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number in (4, 5, 6) and isinstance(value, bytes):
            content = value
    if kind == 1 and len(content) == 4:
        return float(struct.unpack("<f", content)[0])
    if kind == 2 and len(content) == 8:
        return float(struct.unpack("<d", content)[0])
    return None
