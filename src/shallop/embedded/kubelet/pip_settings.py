"""
The machine's package settings, pip's translated for uv.

uv reads its own settings itself (``UV_*``, ``uv.toml``, ``SSL_CERT_FILE``, proxies). Many machines only have pip's:
``pip.conf`` files and ``PIP_*``. They are read as pip reads them (a later file wins over an earlier one, the
environment over files, ``[install]`` over ``[global]``) and used where uv's own setting of the same thing is absent.

Source: pip 25 documentation, "Configuration"; uv documentation, "Environment variables".
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PackageOptions", "machine_options", "pip_config_files", "read_pip_settings", "uv_environment"]

_TRUE = ("1", "true", "yes", "on", "t", "y")


@dataclass(frozen=True)
class PackageOptions:
    """Where packages come from; all of it is part of an environment's key."""

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    no_index: bool = False
    pre: bool = False

    def merged(self, over: PackageOptions) -> PackageOptions:
        """Return these with ``over`` on top, as options on pip's command line go over its configuration."""
        return PackageOptions(
            over.index_url or self.index_url,
            _union(self.extra_index_urls, over.extra_index_urls),
            _union(self.find_links, over.find_links),
            _union(self.trusted_hosts, over.trusted_hosts),
            (self.no_index and not over.index_url) or over.no_index,
            self.pre or over.pre,
        )

    def uv_environment(self) -> dict[str, str]:
        """Return variables for uv: arguments could be read by every user of the machine, and URLs hold passwords."""
        wanted = {
            "UV_DEFAULT_INDEX": self.index_url,
            "UV_EXTRA_INDEX_URL": " ".join(self.extra_index_urls),
            "UV_FIND_LINKS": ",".join(self.find_links),
            "UV_INSECURE_HOST": " ".join(self.trusted_hosts),
        }
        return {name: value for name, value in wanted.items() if value}

    def uv_arguments(self) -> list[str]:
        """Return what uv has no variables for."""
        return ["--no-index"] if self.no_index else []


def _union(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))


def pip_config_files(environ: Mapping[str, str], prefix: Path) -> list[Path]:
    """Return the files that pip would read, in its order; ``prefix`` is that of the interpreter pip would run in."""
    chosen = environ.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return []
    home = Path(environ.get("HOME") or Path.home())
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    shared = [Path(entry) for entry in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep) if entry]
    files = [folder / "pip/pip.conf" for folder in shared] + [Path("/etc/pip.conf")]
    files += [Path("/Library/Application Support/pip/pip.conf"), home / "Library/Application Support/pip/pip.conf"]
    files += [home / ".pip/pip.conf", config_home / "pip/pip.conf", prefix / "pip.conf"]
    return files + ([Path(chosen)] if chosen else [])


def read_pip_settings(environ: Mapping[str, str], files: Sequence[Path]) -> dict[str, str]:
    """Return pip's settings for ``install`` by option name (``extra-index-url``), values as they are written."""
    settings: dict[str, str] = {}
    for section in ("global", "install"):
        for path in files:
            settings.update(_section(path, section))
    for name, value in environ.items():
        if name.startswith("PIP_") and value and name != "PIP_CONFIG_FILE":
            settings[name[4:].lower().replace("_", "-")] = value
    return settings


def _section(path: Path, section: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError):
        return {}  # pip itself warns about such a file; uv can do without it
    if not parser.has_section(section):
        return {}
    return {name.replace("_", "-"): value for name, value in parser.items(section) if value}


def machine_options(environ: Mapping[str, str], pip: Mapping[str, str]) -> PackageOptions:
    """Return what a component without options of its own gets: uv's settings where there are some, else pip's."""
    uv_index = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    extra = environ.get("UV_EXTRA_INDEX_URL") or ("" if environ.get("UV_INDEX") else pip.get("extra-index-url", ""))
    links = environ.get("UV_FIND_LINKS", "").replace(",", " ") or pip.get("find-links", "")
    return PackageOptions(
        "" if uv_index else pip.get("index-url", ""),
        tuple(extra.split()),
        tuple(links.split()),
        tuple((environ.get("UV_INSECURE_HOST") or pip.get("trusted-host", "")).split()),
        pip.get("no-index", "").lower() in _TRUE,
        pip.get("pre", "").lower() in _TRUE,
    )


def uv_environment(environ: Mapping[str, str], pip: Mapping[str, str]) -> dict[str, str]:
    """Return the environment to run uv with: the caller's own, completed by what pip's settings say."""
    # An active virtual environment or project of whoever started shallop has nothing to do with ours.
    unwanted = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT")
    result = {name: value for name, value in environ.items() if name not in unwanted}
    # pip takes the best version of all indexes; uv on its own stops at the first index that has the package.
    result.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    for option, variable in (("cert", "SSL_CERT_FILE"), ("timeout", "UV_HTTP_TIMEOUT"), ("proxy", "ALL_PROXY")):
        value = pip.get(option) or (pip.get("default-timeout") if option == "timeout" else "")
        if value:
            result.setdefault(variable, value)
    if constraint := pip.get("constraint"):
        result.setdefault("UV_CONSTRAINT", constraint)
    result["UV_NO_PROGRESS"] = "1"
    result["NO_COLOR"] = "1"
    return result
