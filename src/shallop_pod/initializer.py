"""
The initializer of a TrainJob: brings a data set or a model to ``/workspace``, where training finds it.

``python3 -m shallop_pod.initializer dataset|model``; ``STORAGE_URI`` says what: ``hf://OWNER/NAME`` (with the package
huggingface_hub, ``ACCESS_TOKEN`` where it is needed), ``s3://BUCKET/PREFIX`` (``ENDPOINT``, ``ACCESS_KEY_ID``,
``SECRET_ACCESS_KEY``, ``REGION``), ``http(s)://``, ``file://``, ``pvc://CLAIM/PATH``.
``IGNORE_PATTERNS`` is a comma list of globs; of models the formats that PyTorch does not need stay out by default.
An error is one line on stderr and in the termination log, exit code 1.

Source: Kubeflow Trainer 2.3, initializers: names of variables, folders, patterns.
"""

from __future__ import annotations

import os
import sys
from typing import Mapping, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod import storage
from shallop_pod.paths import UnsupportedUriError

__all__ = ["initialize", "main"]

_WORKSPACE = "/workspace"
_MODEL_ALLOW = ["*.json", "*.safetensors", "*.model", "*.txt", "*.gguf"]
_MODEL_IGNORE = "*.msgpack,*.h5,*.bin,*.pt,*.pth"
_HUB = "hf://"
# Kubeflow's names of what the storage module reads under AWS's.
_S3 = {
    "ENDPOINT": "AWS_ENDPOINT_URL",
    "ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID",
    "SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    # REGION may be "auto": then the store's own default counts.
    "REGION": "AWS_DEFAULT_REGION",
}


def main(argv: Sequence[str]) -> int:
    """Bring what ``STORAGE_URI`` names; the step is the first argument."""
    step = argv[0] if argv else ""
    if step not in ("dataset", "model"):
        print("usage: python3 -m shallop_pod.initializer dataset|model", file=sys.stderr)
        return 2
    try:
        target = initialize(step, os.environ, os.path.join(_WORKSPACE, step))
    except (storage.StorageError, UnsupportedUriError, OSError) as error:
        return storage.fail(f"{step} {os.environ.get('STORAGE_URI', '')}: {error}")
    print(f"{os.environ['STORAGE_URI']} is in {target}", flush=True)
    return 0


def initialize(step: str, environ: Mapping[str, str], target: str) -> str:
    """
    Fetch into ``target`` and return it.

    Raises:
        StorageError, UnsupportedUriError, OSError: what is wrong with the source.
    """
    uri = environ.get("STORAGE_URI", "")
    if not uri:
        raise storage.StorageError("STORAGE_URI: required; set initializer storageUri, such as hf://OWNER/NAME")
    ignore = environ.get("IGNORE_PATTERNS", _MODEL_IGNORE if step == "model" else "")
    if uri.startswith(_HUB):
        _fetch_from_hub(step, uri, ignore, environ.get("ACCESS_TOKEN") or environ.get("HF_TOKEN"), target)
        return target
    if uri.startswith("cache://"):
        text = (
            "cache:// needs Kubeflow's data cache, a cluster of its own, which is not served here; use s3:// or file://"
        )
        raise UnsupportedUriError(text)
    os.makedirs(target, exist_ok=True)
    named = {name: environ[own] for own, name in _S3.items() if environ.get(own, "auto") != "auto"}
    known = {**environ, **named}
    storage.fetch(uri, target, known | {"STORAGE_IGNORE_PATTERNS": ignore} if ignore else known)
    return target


def _fetch_from_hub(step: str, uri: str, ignore: str, token: str | None, target: str) -> None:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise storage.StorageError("hf:// needs the package huggingface_hub in the initializer's image") from error
    try:
        snapshot_download(
            uri[len(_HUB) :],
            repo_type=step,
            local_dir=target,
            token=token or None,
            allow_patterns=_MODEL_ALLOW if step == "model" else None,
            ignore_patterns=[pattern.strip() for pattern in ignore.split(",") if pattern.strip()] or None,
        )
    except Exception as error:  # the library's own errors, and those of the network below it
        raise storage.StorageError(f"the hub does not give it: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
