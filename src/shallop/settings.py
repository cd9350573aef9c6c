"""Every setting, with its default, unit and meaning."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from zoneinfo import available_timezones

from shallop.errors import SettingsError

__all__ = ["Settings"]

_SHARED = ("artifacts", "tuning")  # folders of the home for Pods: artifacts of runs, files of trials


def _default_home() -> Path:
    return Path(os.environ.get("SHALLOP_HOME") or Path.home() / ".shallop")


def _default_cache() -> Path:
    if cache := os.environ.get("SHALLOP_CACHE"):
        return Path(cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shallop"


@dataclass(frozen=True)
class Settings:
    """
    How one instance runs. Ports of 0 are chosen at start and then written into ``status.json``.

    Args:
        home: all data of the instance; ``SHALLOP_HOME``.
        cache: environments shared by all instances of this user; ``SHALLOP_CACHE``.
        host: the address that the platform's servers bind.
        api_port: the Kubernetes API, TLS.
        web_port: dashboard, KFP and registry REST.
        gateway_port: online prediction.
        content_port: a second web origin for content that users write.
        bare: whether only Kubernetes itself runs: API, built-in controllers and node, as a small cluster for tests.
        gateway_base: URL of the gateway where it is not ``gateway_port`` of this machine; empty = there is none, models
            are reached by their Services.
        multi_user: whether callers of the pipelines and registry APIs need a token, and see what RBAC lets them.
        proxy_secret_file: with ``multi_user``: a file with the secret by which a proxy in front proves that those whom
            it names in the header ``kubeflow-userid`` have signed in; empty = that header is not believed.
        synchronous: ``normal`` (a killed process loses nothing) or ``full`` (a power cut loses nothing either: every
            commit waits for the disk).
        katib_port: Katib's database manager, gRPC.
        node_name: the name of the Node object.
        isolation: ``auto``, ``namespaces`` (root), ``user`` (user namespaces) or ``none``.
        host_paths: folders of the machine that ``hostPath`` volumes may lie in: ``any``, ``none``, or absolute paths
            with commas between; the platform's own home never.
        cpu_overcommit: how many times the machine's cores Pods may request.
        max_zygotes: warm fork-servers kept at once.
        cache_max_age_s: outputs of pipeline steps that are older, in seconds, are not used again; 0 = never too old.
        cron_timezone: time zone of cron expressions of recurring runs that begin with none of their own (``TZ=...``).
        run_max_age_days: runs of pipelines are removed so many days after their end; 0 = never.
        run_max_count: of each namespace only so many of the newest runs are kept; 0 = all.
        artifact_max_age_days: files of artifacts that no run, entry of the cache, registered model or InferenceService
            uses any more are removed so many days after they were written; 0 = never.
        zygote_idle_s: a fork-server without work for so long ends, in seconds.
        env_max_gib: environments that were used the longest ago are removed while all take more, in GiB; 0 = no limit.
        env_max_age_days: environments that were not used for so many days are removed; 0 = never.
        engine: ``podman`` or ``docker``, for images that no environment stands for; empty = such Pods wait.
        log_max_mib: a container's log file is begun anew when it is larger, in MiB.
        log_files: how many files of one run of a container are kept.
        log_retention_days: logs of Pods that are gone are removed so many days after their last line; 0 = never.
    """

    home: Path = field(default_factory=_default_home)
    cache: Path = field(default_factory=_default_cache)
    host: str = "127.0.0.1"
    api_port: int = 6443
    web_port: int = 8080
    gateway_port: int = 8081
    content_port: int = 8082
    bare: bool = False
    gateway_base: str | None = None
    multi_user: bool = False
    proxy_secret_file: str = ""
    synchronous: str = "normal"
    katib_port: int = 6789
    node_name: str = "shallop"
    isolation: str = "auto"
    host_paths: str = "any"
    cpu_overcommit: float = 4.0
    max_zygotes: int = 4
    zygote_idle_s: float = 600.0
    cache_max_age_s: float = 0.0
    cron_timezone: str = "UTC"
    run_max_age_days: float = 0.0
    run_max_count: int = 0
    artifact_max_age_days: float = 0.0
    engine: str = ""
    env_max_gib: float = 0.0
    env_max_age_days: float = 60.0
    log_max_mib: float = 10.0
    log_files: int = 5
    log_retention_days: float = 0.0

    def __post_init__(self) -> None:
        if self.isolation not in ("auto", "namespaces", "user", "none"):
            raise SettingsError(f"isolation: {self.isolation!r} is not known; use one of auto, namespaces, user, none.")
        if self.proxy_secret_file and not self.multi_user:
            raise SettingsError("proxy_secret_file: only a server with several users asks who calls; add --multi-user.")
        if self.synchronous not in ("normal", "full"):
            raise SettingsError(f"synchronous: {self.synchronous!r} is not known; use normal or full.")
        for folder in self.host_path_folders or ():
            if not folder.is_absolute():
                raise SettingsError(
                    f"host_paths: {str(folder)!r} is no absolute path; use any, none, or /folder,/folder."
                )
        # Looked up only for another than the default: the list is read from some hundred files.
        if self.cron_timezone != "UTC" and self.cron_timezone not in available_timezones():
            raise SettingsError(f"cron_timezone: {self.cron_timezone!r} is not known; use one such as Europe/Berlin.")
        limits = ("env_max_gib", "env_max_age_days", "log_retention_days", "run_max_age_days", "run_max_count")
        for name in (*limits, "artifact_max_age_days"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}: {getattr(self, name)} is negative; use 0 for no limit.")
        if self.log_max_mib <= 0 or self.log_files < 1:
            raise SettingsError("log_max_mib, log_files: a log needs at least one file of some size.")
        for name in ("api_port", "web_port", "gateway_port", "content_port", "katib_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise SettingsError(f"{name}: {getattr(self, name)} is no port; use 1 to 65535, or auto.")

    def with_ports(self, api: int, web: int, gateway: int, content: int, katib: int) -> Settings:
        """Return the settings with the ports that were really bound."""
        return replace(self, api_port=api, web_port=web, gateway_port=gateway, content_port=content, katib_port=katib)

    @property
    def web_url(self) -> str:
        return f"http://{self.host}:{self.web_port}"

    @property
    def gateway_url(self) -> str:
        return self.gateway_base if self.gateway_base is not None else f"http://{self.host}:{self.gateway_port}"

    @property
    def content_url(self) -> str:
        return f"http://{self.host}:{self.content_port}"

    @property
    def api_url(self) -> str:
        return f"https://{self.host}:{self.api_port}"

    @property
    def host_path_folders(self) -> tuple[Path, ...] | None:
        """Folders that ``hostPath`` volumes may lie in; None = all."""
        if self.host_paths == "any":
            return None
        return () if self.host_paths == "none" else tuple(Path(text.strip()) for text in self.host_paths.split(","))

    def refused_path(self, path: Path) -> str:
        """
        Say why nothing that users wrote may read or mount a path of this machine; empty when it may. Pure.

        What the platform shares with Pods anyway may always be used, the rest of its home never: its token is there.

        Args:
            path: real, all links followed.
        """
        home = Path(os.path.realpath(self.home))
        if any(path.is_relative_to(home / name) for name in _SHARED):
            return ""
        if path.is_relative_to(home):
            return f"belongs to the platform; Pods may use what is outside of {home}"
        allowed = self.host_path_folders
        if allowed is None or any(path.is_relative_to(os.path.realpath(folder)) for folder in allowed):
            return ""
        return f"may not be used: this platform was started with '--host-paths {self.host_paths}'"

    @cached_property
    def artifacts(self) -> Path:
        """Default pipeline root: a plain directory."""
        return self.home / "artifacts"

    @cached_property
    def staging(self) -> Path:
        """Local copies of artifacts in object stores, while their run lasts: ``<run id>``."""
        return self.artifacts / ".staging"  # there, because Pods see that folder of the home and no other

    @cached_property
    def volumes(self) -> Path:
        """Directories behind PersistentVolumeClaims: ``<namespace>/<claim>``."""
        return self.home / "volumes"

    @cached_property
    def pods(self) -> Path:
        """Private state of Pods: ``<uid>``."""
        return self.home / "pods"

    @cached_property
    def logs(self) -> Path:
        """Container logs, kept after their Pod: ``<namespace>/<pod>_<uid>/<container>/<restart>.log``."""
        return self.home / "logs"

    @cached_property
    def run(self) -> Path:
        """Process ids and sockets."""
        return self.home / "run"
