"""Who we are to an API server, and how that is renewed: tokens, token files, exec plug-ins, client certificates."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from shallop.errors import SettingsError, UnauthorizedError

__all__ = ["Credentials", "ExecPlugin", "Grant", "Login", "Tls", "fixed", "from_file", "with_pair"]

# As client-go: a projected token lives for an hour and is replaced after 48 minutes.
_REREAD_S = 60.0
# A certificate and a key that do not fit are about to: somebody is replacing them.
_MISFIT_S = 2.0
_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_EXEC_TIMEOUT_S = 60


class Grant(NamedTuple):
    """What a source gave; ``until`` is when it must be asked again, in seconds since the epoch."""

    token: str = ""
    pair: bytes = b""
    until: float = math.inf


# Called in a thread; raises UnauthorizedError.
Source = Callable[[], Grant]


@dataclass(frozen=True)
class Tls:
    """How a server is verified; ``ca_pem`` empty = the machine's authorities. ``pair`` is certificate and key, PEM."""

    ca_pem: str = ""
    verify: bool = True
    pair: bytes = b""

    def context(self, pair: bytes = b"") -> ssl.SSLContext:
        """Build the context, with a client certificate if there is one; raises ssl.SSLError."""
        context = ssl.create_default_context(cadata=self.ca_pem or None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if pair or self.pair:
            _load_pair(context, pair or self.pair)
        return context


def _load_pair(context: ssl.SSLContext, pair: bytes) -> None:
    # The ssl module loads key pairs from files only; an anonymous file never has a name on disk.
    if not hasattr(os, "memfd_create"):
        with tempfile.NamedTemporaryFile() as file:
            file.write(pair)
            file.flush()
            context.load_cert_chain(file.name)
        return
    descriptor = os.memfd_create("client-pair")
    try:
        os.write(descriptor, pair)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class Login(NamedTuple):
    """What one request is sent with; ``ssl`` is None for plain HTTP."""

    authorization: str
    ssl: ssl.SSLContext | None


class Credentials:
    """A login that renews itself; use from one event loop."""

    def __init__(self, source: Source, tls: Tls | None) -> None:
        self._source = source
        self._tls = tls
        self._login: Login | None = None
        self._pair = b""
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def login(self) -> Login:
        """
        Return the login of now.

        Raises:
            UnauthorizedError: the token file cannot be read, or the plug-in failed.
        """
        async with self._lock:
            if self._login is None or time.time() >= self._until:
                self._login = await asyncio.to_thread(self._renew)
            return self._login

    def reject(self, login: Login) -> None:
        """Tell that the server refused a login (401): the source is asked again for the next one."""
        if self._login is login:
            self._until = 0.0

    def _renew(self) -> Login:
        grant = self._source()
        self._until = grant.until
        context = self._login.ssl if self._login is not None else None
        if self._tls is not None and (context is None or grant.pair != self._pair):
            try:
                context, self._pair = self._tls.context(grant.pair), grant.pair
            except ssl.SSLError as error:
                if context is None:
                    raise UnauthorizedError(f"client certificate: {error}") from error
                self._until = time.time() + _MISFIT_S
        return Login(f"Bearer {grant.token}" if grant.token else "", context)


def fixed(token: str = "") -> Source:
    """A token that never changes, or none."""

    def keep() -> Grant:
        return Grant(token)

    return keep


def from_file(path: Path) -> Source:
    """A token in a file that somebody replaces now and then."""

    def read() -> Grant:
        try:
            return Grant(path.read_text().strip(), until=time.time() + _REREAD_S)
        except OSError as error:
            raise UnauthorizedError(f"token file {path}: {error.strerror or error}") from error

    return read


def with_pair(source: Source, certificate: Path, key: Path) -> Source:
    """A client certificate and its key in files that somebody replaces now and then, beside what ``source`` gives."""

    def read() -> Grant:
        grant = source()
        if grant.pair:
            return grant
        try:
            pair = certificate.read_bytes() + b"\n" + key.read_bytes()
        except OSError as error:
            text = f"client certificate {error.filename}: {error.strerror or error}"
            raise UnauthorizedError(text) from error
        return grant._replace(pair=pair, until=min(grant.until, time.time() + _REREAD_S))

    return read


@dataclass(frozen=True)
class ExecPlugin:
    """
    A login command of a kubeconfig (``users[].user.exec``).

    Args:
        cluster: what the plug-in is told of the cluster, where it asks for that.

    Source: Kubernetes, "client-go credential plugins", client.authentication.k8s.io/v1.
    """

    api_version: str
    command: str
    arguments: tuple[str, ...]
    env: Mapping[str, str]
    interactive: str
    install_hint: str
    cluster: Mapping[str, Any] | None

    @classmethod
    def parse(cls, plugin: Mapping[str, Any], folder: Path, cluster: Mapping[str, Any]) -> ExecPlugin:
        """Read the section of a kubeconfig in ``folder``; raises SettingsError."""
        version = plugin.get("apiVersion", "")
        if version not in _EXEC_VERSIONS:
            raise SettingsError(
                f"kubeconfig: exec.apiVersion {version!r} of {plugin.get('command')!r} is not supported; "
                f"use {_EXEC_VERSIONS[0]}."
            )
        command = str(plugin.get("command") or "")
        if not command:
            raise SettingsError("kubeconfig: exec.command is missing.")
        if "/" in command:
            command = str(folder / command)
        return cls(
            api_version=version,
            command=command,
            arguments=tuple(plugin.get("args") or ()),
            env={entry["name"]: entry["value"] for entry in plugin.get("env") or ()},
            interactive=plugin.get("interactiveMode") or "IfAvailable",
            install_hint=plugin.get("installHint") or "",
            cluster=cluster if plugin.get("provideClusterInfo") else None,
        )

    def __call__(self) -> Grant:
        terminal = sys.stdin is not None and sys.stdin.isatty()
        if self.interactive == "Always" and not terminal:
            raise UnauthorizedError(f"login command {self.command!r} needs a terminal, and there is none")
        interactive = terminal and self.interactive != "Never"
        spec: dict[str, Any] = {"interactive": interactive} | ({"cluster": dict(self.cluster)} if self.cluster else {})
        info = {"kind": "ExecCredential", "apiVersion": self.api_version, "spec": spec}
        try:
            done = subprocess.run(
                [self.command, *self.arguments],
                env={**os.environ, **self.env, "KUBERNETES_EXEC_INFO": json.dumps(info)},
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                check=True,
                timeout=_EXEC_TIMEOUT_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            hint = f". {self.install_hint}" if self.install_hint else ""
            raise UnauthorizedError(f"login command {self.command!r} failed: {error}{hint}") from error
        return self._parse(done.stdout)

    def _parse(self, output: bytes) -> Grant:
        try:
            credential = json.loads(output)
            if (credential["kind"], credential["apiVersion"]) != ("ExecCredential", self.api_version):
                raise ValueError(f"kind and apiVersion must be ExecCredential, {self.api_version}")
            status = credential["status"]
            certificate, key = status.get("clientCertificateData") or "", status.get("clientKeyData") or ""
            if not status.get("token") and not (certificate and key):
                raise ValueError("status has neither a token nor a client certificate with its key")
            expires = status.get("expirationTimestamp")
            until = datetime.fromisoformat(expires).timestamp() if expires else math.inf
        except (ValueError, KeyError, TypeError) as error:
            raise UnauthorizedError(f"login command {self.command!r} printed no credential: {error}") from error
        pair = f"{certificate}\n{key}".encode() if certificate else b""
        return Grant(status.get("token") or "", pair, until)


def decode(data: str) -> bytes:
    """Read a ``*-data`` field of a kubeconfig."""
    return base64.b64decode(data)
