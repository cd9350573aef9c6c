"""Memory that was freed goes back to the system."""

from __future__ import annotations

import asyncio

import pytest

from shallop import memory


def test_memory_is_given_back_when_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = iter([100, 100, 100, 300, 120, 110, 110, 110])
    trimmed = []

    class Library:
        @staticmethod
        def malloc_trim(pad: int) -> int:
            trimmed.append(pad)
            return 1

    monkeypatch.setattr(memory, "_EVERY_S", 0.0)
    monkeypatch.setattr(memory, "_GROWN_BYTES", 50)
    monkeypatch.setattr(memory, "_resident_bytes", lambda: next(resident))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Library)
    with pytest.raises(RuntimeError):  # the end of the figures
        asyncio.run(memory.give_back())
    assert trimmed == [0]
