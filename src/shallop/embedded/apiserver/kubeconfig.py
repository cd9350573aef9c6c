"""The kubeconfig that ``shallop up`` writes."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from shallop.embedded.apiserver.tls import write_private

__all__ = ["write_kubeconfig"]

_NAME = "shallop"


def write_kubeconfig(path: Path, *, server: str, ca_pem: bytes, token: str, namespace: str = "default") -> None:
    """Write a kubeconfig (0600) with one cluster, one user by token, and the context ``shallop``."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": _NAME,
                "cluster": {"server": server, "certificate-authority-data": base64.b64encode(ca_pem).decode()},
            }
        ],
        "users": [{"name": _NAME, "user": {"token": token}}],
        "contexts": [{"name": _NAME, "context": {"cluster": _NAME, "user": _NAME, "namespace": namespace}}],
        "current-context": _NAME,
    }
    write_private(path, yaml.safe_dump(config, sort_keys=False).encode())
