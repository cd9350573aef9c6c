"""Commands started in another Pod: what they write and how they end comes back, strangers get nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from shallop_pod.rsh import RshError, call, main, serve

KEY = b"known to both"


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener, KEY))
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)


def test_output_and_exit_code_come_back(port: int, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code = call("127.0.0.1", port, "echo 'to you'; echo trouble >&2; exit 7", KEY)
    captured = capfdbinary.readouterr()
    assert (code, captured.out, captured.err) == (7, b"to you\n", b"trouble\n")
    assert call("127.0.0.1", port, "kill -9 $$", KEY) == 137


def test_who_does_not_know_the_key_is_refused(port: int, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(RshError, match="another key"):
        call("127.0.0.1", port, "echo secret", b"guessed")
    assert capfdbinary.readouterr().out == b""


def test_a_host_that_never_answers_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = unused.getsockname()[1]
    with pytest.raises(RshError, match=rf"127\.0\.0\.1:{free} does not answer"):
        call("127.0.0.1", free, "true", KEY, patience_s=0.3)


def test_a_call_without_a_command_says_how_to_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", "ConnectionAttempts=10", "host"]) == 255
    assert "HOST COMMAND" in capsys.readouterr().err
