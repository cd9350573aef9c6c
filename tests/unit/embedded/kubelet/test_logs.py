"""Logs: what is shown of files in the CRI format, over rotations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shallop.embedded.kubelet.logs import follow_log, last_lines, since_of

EARLY, LATE = "2026-01-01T10:00:00.000000001Z", "2026-01-01T11:00:00.000000001Z"


def line(text: str, at: str = EARLY, full: str = "F") -> str:
    return f"{at} stdout {full} {text}\n"


def show(path: Path, is_running: Callable[[], bool] = lambda: False, **options: Any) -> str:
    wanted = {"follow": False, "tail_lines": None, "since": None, "timestamps": False, "limit_bytes": None} | options

    async def collect() -> bytes:
        return b"".join([chunk async for chunk in follow_log(path, is_running=is_running, **wanted)])

    return asyncio.run(collect()).decode()


def test_lines_are_joined_from_rotated_files_and_parts(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    (tmp_path / "0.log.2").write_text(line("one"))
    (tmp_path / "0.log.1").write_text(line("tw", full="P") + line("o"))
    log.write_text(line("three"))
    assert show(log) == "one\ntwo\nthree\n"
    assert show(log, tail_lines=1) == "three\n"
    assert show(log, tail_lines=0) == ""
    assert show(log, limit_bytes=5) == "one\nt"
    assert show(log, tail_lines=1, timestamps=True) == f"{EARLY} three\n"


def test_the_end_of_a_long_log_is_found_over_blocks_and_rotated_files(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    texts = [f"{number:05d}" + "x" * 100 for number in range(5000)]
    (tmp_path / "0.log.1").write_text("".join(line(text) for text in texts[:2500]))
    log.write_text("".join(line(text) for text in texts[2500:]))
    for count in (1, 700, 2499, 2500, 2501, 4999, 6000):
        assert show(log, tail_lines=count).splitlines() == texts[-count:], count
    grown = iter([True, False])

    def running() -> bool:
        going_on = next(grown, False)
        if going_on:
            with open(log, "a") as file:
                file.write(line("more"))
        return going_on

    assert show(log, running, follow=True, tail_lines=1).splitlines() == [texts[-1], "more"]


def test_earlier_lines_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    log.write_text(line("early") + line("late", LATE))
    assert show(log, since=datetime(2026, 1, 1, 10, 30, tzinfo=UTC)) == "late\n"
    now = datetime(2026, 1, 1, 11, 0, 30, tzinfo=UTC)
    assert since_of(now, 60, None) == datetime(2026, 1, 1, 10, 59, 30, tzinfo=UTC)


def test_following_loses_nothing_when_the_log_is_rotated_meanwhile(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    log.write_text(line("first"))
    steps = iter(["grow", "rotate", "again", "end"])

    def running() -> bool:
        step = next(steps, "end")
        if step == "grow":
            with open(log, "a") as file:
                file.write(line("second"))
        elif step in ("rotate", "again"):
            with open(log, "a") as file:
                file.write(line(f"last before {step}"))
            for number in range(4, 0, -1):
                source = tmp_path / (f"0.log.{number - 1}" if number > 1 else "0.log")
                if source.exists():
                    source.rename(tmp_path / f"0.log.{number}")
            log.write_text(line(f"first after {step}"))
        return step != "end"

    expected = ["first", "second", "last before rotate", "first after rotate", "last before again", "first after again"]
    assert show(log, running, follow=True).splitlines() == expected


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    answers = iter([True, False])

    def running() -> bool:
        going_on = next(answers, False)
        if not going_on:
            log.write_text(line("here"))
        return going_on

    assert show(log, running, follow=True) == "here\n"


def test_the_end_of_a_log_is_text_for_messages(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    log.write_text("".join(line(f"line {n}") for n in range(20)))
    assert last_lines(log, 2) == "line 18\nline 19"
    assert last_lines(tmp_path / "none", 2) == ""
