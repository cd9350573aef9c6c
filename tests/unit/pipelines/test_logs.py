"""Logs of tasks as the node keeps them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from shallop.pipelines.logs import find_log, read_log


def write(home: Path, name: str, text: str, time: int) -> Path:
    file = home / "logs" / "kubeflow" / "pod-0_uid" / "main" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (time, time))
    return file


def test_rotated_files_are_read_first(tmp_path: Path) -> None:
    write(tmp_path, "0.log", "T stdout F new\n", 9)
    write(tmp_path, "0.log.1", "T stdout F old\n", 5)
    (tmp_path / "logs" / "kubeflow" / "pod-01_uid").mkdir()
    names = [file.path.name for file in find_log(tmp_path / "logs", "kubeflow", "pod-0")]
    assert names == ["0.log.1", "0.log"]


def test_the_text_is_taken_out_of_its_lines(tmp_path: Path) -> None:
    write(
        tmp_path, "0.log", "T stdout F a b\nT stderr P half\nT stderr F  whole\nT stdout F \nT stdout F not yet wr", 1
    )

    async def read() -> bytes:
        return b"".join([chunk async for chunk in read_log(tmp_path / "logs", "kubeflow", "pod-0")])

    assert asyncio.run(read()) == b"a b\nhalf whole\n\n"
