"""How a cluster is reached: what a kubeconfig, or a Pod's service account, says."""

from __future__ import annotations

import os
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from shallop.errors import SettingsError
from shallop.kube.credentials import Credentials, ExecPlugin, Source, Tls, decode, fixed, from_file, with_pair

__all__ = ["Access", "load_kubeconfig"]

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Access:
    """
    How to reach one API server.

    Args:
        server: URL without a final slash.
        proxy: URL of an HTTP proxy; empty = none.
        server_name: the name in the server's certificate where it is not that of ``server``.
        headers: sent with every request, such as those of impersonation.
        namespace: what the kubeconfig means when no namespace is given.
    """

    server: str
    credentials: Credentials
    proxy: str = ""
    server_name: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    namespace: str = "default"


def load_kubeconfig(path: str | Path | None = None, *, context: str = "") -> Access:
    """
    Read how to reach a cluster.

    Args:
        path: a kubeconfig; None takes the files of ``KUBECONFIG``, then the Pod's service account, then
            ``~/.kube/config``.
        context: a context of the file; empty = its current one.

    Raises:
        SettingsError: the file is missing, has no such context, or uses a login that is not supported.
    """
    variable = os.environ.get("KUBECONFIG", "")
    if path is None and not variable and (_SERVICE_ACCOUNT / "token").exists():
        return in_cluster(os.environ, _SERVICE_ACCOUNT)
    names = [str(path)] if path is not None else [name for name in variable.split(os.pathsep) if name]
    config = _Config([Path(name) for name in names] or [Path.home() / ".kube" / "config"])
    return config.access(context)


def in_cluster(environ: Mapping[str, str], folder: Path) -> Access:
    """Reach the cluster whose Pod we are; raises SettingsError."""
    try:
        host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
        ca_pem = (folder / "ca.crt").read_text()
        namespace = (folder / "namespace").read_text().strip()
    except (KeyError, OSError) as error:
        raise SettingsError(f"service account in {folder}: {error!r}. Name a cluster with --kubeconfig.") from error
    host = f"[{host}]" if ":" in host else host
    server = f"https://{host}:{port}"
    credentials = Credentials(from_file(folder / "token"), Tls(ca_pem))
    return Access(server, credentials, proxy=_environment_proxy(server), namespace=namespace)


class _Config:
    """One or more kubeconfig files as one: of two entries with one name, and of two contexts, the first counts."""

    def __init__(self, files: list[Path]) -> None:
        self._entries: dict[str, dict[str, tuple[Path, dict[str, Any]]]] = {}
        self._current = ""
        self._name = os.pathsep.join(map(str, files))
        missing: list[str] = []
        for file in files:
            try:
                config = yaml.safe_load(file.read_text()) or {}
            except FileNotFoundError as error:
                missing.append(str(error))
                continue
            except (OSError, yaml.YAMLError) as error:
                raise SettingsError(f"kubeconfig {file}: {error}.") from error
            self._add(file, config)
        if len(missing) == len(files):
            raise SettingsError(f"kubeconfig {missing[0]}. Name another one with --kubeconfig or KUBECONFIG.")

    def _add(self, file: Path, config: Any) -> None:
        if not isinstance(config, dict):
            raise SettingsError(f"kubeconfig {file}: not a map; is it a kubeconfig?")
        self._current = self._current or config.get("current-context") or ""
        for section, key in (("contexts", "context"), ("clusters", "cluster"), ("users", "user")):
            known = self._entries.setdefault(section, {})
            for entry in config.get(section) or ():
                known.setdefault(entry.get("name", ""), (file.parent, dict(entry.get(key) or {})))

    def _find(self, section: str, name: str) -> tuple[Path, dict[str, Any]]:
        found = self._entries.get(section, {}).get(name)
        if found is None:
            known = ", ".join(sorted(self._entries.get(section, {}))) or "none"
            raise SettingsError(f"kubeconfig {self._name}: {section} has no entry named {name!r}; it has: {known}.")
        return found

    def access(self, context: str) -> Access:
        _, ctx = self._find("contexts", context or self._current)
        cluster_folder, cluster = self._find("clusters", ctx.get("cluster", ""))
        folder, user = self._find("users", ctx["user"]) if ctx.get("user") else (Path(), {})
        server = str(cluster.get("server", "")).rstrip("/")
        if urlsplit(server).scheme not in ("http", "https"):
            raise SettingsError(
                f"kubeconfig {self._name}: cluster {ctx.get('cluster')!r}: server {server!r} is no URL."
            )
        try:
            tls = _tls(cluster, cluster_folder, user, folder) if server.startswith("https:") else None
        except (OSError, ValueError, ssl.SSLError) as error:
            raise SettingsError(f"kubeconfig {self._name}: certificates of {server}: {error}.") from error
        return Access(
            server=server,
            credentials=Credentials(_source(user, folder, cluster), tls),
            proxy=_proxy(cluster, server),
            server_name=cluster.get("tls-server-name") or "",
            headers=_impersonation(user),
            namespace=ctx.get("namespace") or "default",
        )


def _source(user: Mapping[str, Any], folder: Path, cluster: Mapping[str, Any]) -> Source:
    source = _token_source(user, folder, cluster)
    certificate, key = user.get("client-certificate"), user.get("client-key")
    if certificate and key and not (user.get("client-certificate-data") or user.get("client-key-data")):
        return with_pair(source, folder / certificate, folder / key)
    return source


def _token_source(user: Mapping[str, Any], folder: Path, cluster: Mapping[str, Any]) -> Source:
    if user.get("auth-provider"):
        raise SettingsError("kubeconfig: auth-provider is not supported (Kubernetes removed it, too); use exec.")
    if user.get("tokenFile"):
        return from_file(folder / user["tokenFile"])
    if user.get("token"):
        return fixed(user["token"])
    if user.get("exec"):
        return ExecPlugin.parse(user["exec"], folder, cluster)
    if user.get("username"):
        raise SettingsError("kubeconfig: username and password are not supported; use a token, certificate or exec.")
    return fixed()


def _tls(cluster: Mapping[str, Any], cluster_folder: Path, user: Mapping[str, Any], folder: Path) -> Tls:
    ca_pem = _pem(cluster, "certificate-authority", cluster_folder).decode()
    certificate, key = _pem(user, "client-certificate", folder), _pem(user, "client-key", folder)
    if bool(certificate) != bool(key):
        raise ValueError("client-certificate and client-key go together")
    pair = certificate + b"\n" + key if certificate else b""
    tls = Tls(ca_pem, not cluster.get("insecure-skip-tls-verify"), pair)
    tls.context()  # says now what is wrong with it
    return tls


def _pem(section: Mapping[str, Any], name: str, folder: Path) -> bytes:
    if data := section.get(f"{name}-data"):
        return decode(data)
    file = section.get(name)
    return (folder / file).read_bytes() if file else b""


def _proxy(cluster: Mapping[str, Any], server: str) -> str:
    proxy = str(cluster.get("proxy-url") or "") or _environment_proxy(server)
    if proxy and urlsplit(proxy).scheme not in ("http", "https"):
        raise SettingsError(f"kubeconfig: proxy {proxy!r} is not supported; use an http:// or https:// proxy.")
    return proxy


def _environment_proxy(server: str) -> str:
    parts = urlsplit(server)
    proxies = urllib.request.getproxies_environment()
    host = parts.hostname or ""
    # As Go's standard library, which every other Kubernetes client follows: loopback is never proxied.
    local = host in ("localhost", "::1") or host.startswith("127.")
    bypassed = urllib.request.proxy_bypass_environment(host, proxies)  # type: ignore[attr-defined]
    return "" if local or bypassed else proxies.get(parts.scheme, "")


def _impersonation(user: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    headers = [("Impersonate-User", user["as"])] if user.get("as") else []
    headers += [("Impersonate-Group", group) for group in user.get("as-groups") or ()]
    if user.get("as-uid"):
        headers.append(("Impersonate-Uid", user["as-uid"]))
    for key, values in (user.get("as-user-extra") or {}).items():
        headers += [(f"Impersonate-Extra-{key}", value) for value in values]
    return tuple(headers)
