"""
The puller beside a server of several models: brings what a list names and has the server load it.

``python3 -m shallop_pod.puller --config-dir DIR --model-dir DIR --port N``. The list is ``models.json`` in the first
folder, ``[{"modelName": ..., "modelSpec": {"storageUri": ...}}]``; the volume it lies in follows its ConfigMap. Each
model is a folder of its name in the second folder, whole or not there. The server loads and unloads by the repository
API. What fails is tried again, more and more seldom; the log says why, once.

Source: KServe 0.21 agent, ``--enable-puller``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from shallop_pod.paths import UnsupportedUriError
from shallop_pod.storage import StorageError, fetch, with_config

__all__ = ["Puller", "main"]

_LOOK_S = 0.5
_RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)
_TIMEOUT_S = 300.0


class Puller:
    """
    Makes a server have the models of a list.

    Args:
        folder: of the models.
        ask: path of the repository API -> error, empty when it was done.
        environ: how to reach storage.
    """

    def __init__(self, folder: str, ask: Callable[[str], str], environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._ask = ask
        self._environ = environ
        self._loaded: dict[str, str] = {}
        self._failures: dict[str, tuple[str, int, float]] = {}

    def step(self, wanted: Mapping[str, str], now: float) -> None:
        """
        Bring, load and unload what is due.

        Args:
            wanted: name of a model -> its storage URI.
            now: seconds of any clock that only goes on.
        """
        for name in [*self._loaded, *self._strangers(wanted)]:
            if name not in wanted:
                self._unload(name)
        for name, uri in wanted.items():
            if self._loaded.get(name) == uri:
                continue
            known, tries, due = self._failures.get(name, ("", 0, now))
            if known != uri:
                tries, due = 0, now
            if now < due:
                continue
            error = self._load(name, uri)
            if error:
                self._failures[name] = (uri, tries + 1, now + _RETRY_S[min(tries, len(_RETRY_S) - 1)])
                if tries == 0:
                    print(f"model {name!r} of {uri}: {error}", file=sys.stderr, flush=True)
            else:
                self._failures.pop(name, None)
                self._loaded[name] = uri
                print(f"model {name!r} of {uri} is loaded", flush=True)

    def _strangers(self, wanted: Mapping[str, str]) -> list[str]:
        """Return what an earlier puller left and nobody wants any more."""
        found = os.listdir(self._folder) if os.path.isdir(self._folder) else []
        return [name for name in found if not name.startswith(".") and name not in wanted and name not in self._loaded]

    def _load(self, name: str, uri: str) -> str:
        target = os.path.join(self._folder, name)
        mark = os.path.join(self._folder, f".{name}.uri")
        try:
            if not (os.path.isdir(target) and _read(mark) == uri):
                incoming = os.path.join(self._folder, f".pulling-{name}")
                shutil.rmtree(incoming, ignore_errors=True)
                fetch(uri, incoming, self._environ)
                shutil.rmtree(target, ignore_errors=True)
                os.rename(incoming, target)
                with open(mark, "w", encoding="utf-8") as file:
                    file.write(uri)
        except (StorageError, UnsupportedUriError) as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or target}: {error.strerror or error}"
        return self._ask(f"/v2/repository/models/{name}/load")

    def _unload(self, name: str) -> None:
        self._ask(f"/v2/repository/models/{name}/unload")
        shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)
        if os.path.exists(mark := os.path.join(self._folder, f".{name}.uri")):
            os.unlink(mark)
        self._loaded.pop(name, None)
        self._failures.pop(name, None)
        print(f"model {name!r} is unloaded", flush=True)


def parse_list(text: str) -> dict[str, str]:
    """Return name -> storage URI of ``models.json``; names that cannot be folders are left out."""
    entries: list[Any] = json.loads(text or "[]")
    found = {str(entry["modelName"]): str(entry["modelSpec"]["storageUri"]) for entry in entries}
    return {name: uri for name, uri in found.items() if name and "/" not in name and not name.startswith(".")}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _asker(port: int) -> Callable[[str], str]:
    def ask(path: str) -> str:
        host = os.environ.get("SHALLOP_POD_IP") or "127.0.0.1"
        request = urllib.request.Request(f"http://{host}:{port}{path}", b"", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                answer.read()
            return ""
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode(errors="replace")
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            return f"the server does not answer: {error}"

    return ask


def main(argv: list[str]) -> int:
    """Go on until SIGTERM."""
    parser = argparse.ArgumentParser(prog="puller")
    parser.add_argument("--config-dir", default="/mnt/configs")
    parser.add_argument("--model-dir", default="/mnt/models")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(0))
    puller = Puller(options.model_dir, _asker(options.port), with_config(os.environ))
    while True:
        try:
            wanted = parse_list(_read(os.path.join(options.config_dir, "models.json")))
        except (ValueError, KeyError, TypeError) as error:
            print(f"models.json cannot be read: {error}", file=sys.stderr, flush=True)
        else:
            puller.step(wanted, time.monotonic())
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
