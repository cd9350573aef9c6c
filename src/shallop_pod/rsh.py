"""
Starts programs in other Pods, for MPI: what ssh and sshd do on a cluster, without either.

``python3 -m shallop_pod.rsh serve [-p PORT] [-- COMMAND...]``: wait for calls on all addresses of the Pod; COMMAND runs
beside it, and when it ends so does the server.
``python3 -m shallop_pod.rsh [SSH OPTIONS] HOST COMMAND...``: run a shell command there, pass on what it writes and how
it ends; try again until HOST answers.

Both show each other that they know the key: the file that ``SHALLOP_RSH_KEY`` names, or ``id_rsa`` in an ``.ssh``
folder, as Kubeflow mounts it. On the wire: a nonce, its HMAC with the command, then frames ``length, stream, bytes``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import IO, Callable, Sequence  # noqa: UP035  environments may be Python 3.9

__all__ = ["call", "main", "serve"]

PORT = 2222
_FRAME = struct.Struct("!IB")
_STDOUT, _STDERR, _EXIT = 1, 2, 3
_MAX_COMMAND = 1 << 20
_PATIENCE_S = 60.0
_FOLDERS = ("/home/mpiuser/.ssh", "/root/.ssh", os.path.expanduser("~/.ssh"))


class RshError(Exception):
    """A call that cannot be made; the message is for the owner of the job."""


def main(argv: Sequence[str]) -> int:
    words = list(argv)
    try:
        if words[:1] == ["serve"]:
            return _serve_command(words[1:])
        host, command = _parse_call(words)
        return call(host, PORT, command, _key())
    except RshError as error:
        print(f"rsh: {error}", file=sys.stderr, flush=True)
        return 255


def _parse_call(words: list[str]) -> tuple[str, str]:
    """Leave out what ssh would take as options; ``-l USER``, ``-p PORT``, ``-o SETTING`` have a value."""
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option in ("-l", "-p", "-o", "-i") and words:
            words.pop(0)
    if len(words) < 2:
        raise RshError("usage: python3 -m shallop_pod.rsh HOST COMMAND...")
    return words[0].rpartition("@")[2], " ".join(words[1:])


def _key() -> bytes:
    paths = [os.environ.get("SHALLOP_RSH_KEY", ""), *(os.path.join(folder, "id_rsa") for folder in _FOLDERS)]
    for path in paths:
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            continue
    raise RshError(f"no key: none of {', '.join(path for path in paths if path)} can be read")


def call(host: str, port: int, command: str, key: bytes, patience_s: float = _PATIENCE_S) -> int:
    """
    Run ``command`` with a shell on ``host``; returns its exit code.

    Raises:
        RshError: the host does not answer, or does not know the key.
    """
    with _connect(host, port, patience_s) as connection:
        stream = connection.makefile("rb")
        nonce = stream.read(32)
        body = command.encode()
        connection.sendall(hmac.new(key, nonce + body, hashlib.sha256).digest() + struct.pack("!I", len(body)) + body)
        targets = {_STDOUT: sys.stdout.buffer, _STDERR: sys.stderr.buffer}
        while header := stream.read(_FRAME.size):
            if len(header) < _FRAME.size:
                break
            length, kind = _FRAME.unpack(header)
            data = stream.read(length)
            if kind == _EXIT:
                return int(json.loads(data))
            targets[kind].write(data)
            targets[kind].flush()
    raise RshError(f"{host}: the connection ended before the command did, or it has another key")


def _connect(host: str, port: int, patience_s: float) -> socket.socket:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=10)
            connection.settimeout(None)
            return connection
        except OSError as error:
            # The other Pod may only just start; its name too.
            if time.monotonic() > deadline:
                raise RshError(f"{host}:{port} does not answer: {error}") from error
            time.sleep(0.1)


def _serve_command(words: list[str]) -> int:
    port = PORT
    if words[:1] == ["-p"]:
        port, words = int(words[1]), words[2:]
    command = words[1:] if words[:1] == ["--"] else []
    # A clean end when the Pod is deleted or its job is done.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    listener = socket.create_server(("0.0.0.0", port), backlog=128)
    if not command:
        serve(listener, _key())
        return 0
    threading.Thread(target=serve, args=(listener, _key()), daemon=True).start()
    return subprocess.run(command, check=False).returncode


def serve(listener: socket.socket, key: bytes) -> None:
    """Answer calls until the listener is closed; each in a thread of its own."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, key), daemon=True).start()


def _answer(connection: socket.socket, key: bytes) -> None:
    with connection:
        stream = connection.makefile("rb")
        nonce = secrets.token_bytes(32)
        connection.sendall(nonce)
        header = stream.read(36)
        if len(header) < 36:
            return
        length = struct.unpack("!I", header[32:])[0]
        if length > _MAX_COMMAND:
            return
        body = stream.read(length)
        if not hmac.compare_digest(header[:32], hmac.new(key, nonce + body, hashlib.sha256).digest()):
            return
        _run(connection, body.decode())


def _run(connection: socket.socket, command: str) -> None:
    lock = threading.Lock()

    def send(kind: int, data: bytes) -> None:
        with lock:
            connection.sendall(_FRAME.pack(len(data), kind) + data)

    process = subprocess.Popen(
        ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    pumps = [
        threading.Thread(target=_pump, args=(source, kind, send), daemon=True)
        for source, kind in ((process.stdout, _STDOUT), (process.stderr, _STDERR))
    ]
    for pump in pumps:
        pump.start()
    for pump in pumps:
        pump.join()
    code = process.wait()
    try:
        send(_EXIT, json.dumps(code if code >= 0 else 128 - code).encode())
    except OSError:
        return


def _pump(source: IO[bytes], kind: int, send: Callable[[int, bytes], None]) -> None:
    # Goes on reading when nobody listens any more: the program must not block on a full pipe.
    listening = True
    while data := os.read(source.fileno(), 65536):
        try:
            if listening:
                send(kind, data)
        except OSError:
            listening = False
    source.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
