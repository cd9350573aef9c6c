"""
From an image to a folder with Python in it: built once, shared by all Pods and all homes of this user.

An environment is a relocatable virtual environment under ``<cache>/envs/<key>/``, made by uv with hard links into
uv's cache, byte-compiled, with ``shallop-lock.txt`` (what was resolved) and ``shallop-environment.json`` (what was
asked for) in it. It appears by a rename, complete, and is never changed afterwards. Who builds holds
``.locks/<key>``; others wait for it, in this process and in others.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import anyio
import anyio.to_thread

from shallop.embedded.kubelet.bytecode import link_bytecode
from shallop.embedded.kubelet.images import ImageEntry, ImageTable
from shallop.embedded.kubelet.interpreters import Interpreter, choose_interpreter, find_interpreters, own_version
from shallop.embedded.kubelet.pip_settings import (
    PackageOptions,
    machine_options,
    pip_config_files,
    read_pip_settings,
    uv_environment,
)
from shallop.errors import EnvironmentBuildError
from shallop.priority import at_usual_priority
from shallop.settings import Settings
from shallop_pod.kfp_component import Install, installs_at_run_time, recognise_install

__all__ = ["Environment", "EnvironmentInfo", "EnvironmentSpec", "Environments", "recognise_install"]

Progress = Callable[[str], None]

_LOCK_FILE = "shallop-lock.txt"
_INFO_FILE = "shallop-environment.json"
_USED_FILE = "shallop-used"
# How exactly it is known when an environment was used last.
_MARK_S = 60.0
# Raise it when the layout changes: older environments are then not found, and age out.
_LAYOUT = 1
# Of the hundreds of architectures of transformers a Pod uses one; Python compiles it when it is first imported.
_NOT_COMPILED = "/tests?/|/transformers/models/"
_EXECUTOR = ("shallop_pod.launcher", "kfp.dsl.executor_main")
_PRELOADS = {
    "numpy": "numpy",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "xgboost": "xgboost",
    "xgboost-cpu": "xgboost",
    "torch": "torch",
}


@dataclass(frozen=True)
class EnvironmentSpec:
    """
    What an environment must contain, and how the image it stands for starts. A value: equal specs are one environment.

    Args:
        image: as the Pod names it; not part of the key.
        python: X.Y of ``interpreter``.
        requirements: sorted; installed with what they need.
        no_deps: sorted; installed alone, in place of what the others brought.
        options: where packages come from.
        command: the image's entrypoint.
        args: the image's arguments, for a container with neither command nor args.
        env: variables of the image.
        shell: ``bash`` when ``sh`` must be one.
        preload: modules for the fork-server.
        workdir: where processes start when the container does not say; empty for the root.
        programs: command lines that stand for programs of the image, by path.
        warnings: what differs from the image; for the Pod's Events.
        installs_at_run_time: the command calls pip itself; give it a place of its own (``PIP_TARGET``).
    """

    image: str
    python: str
    interpreter: str
    requirements: tuple[str, ...] = ()
    no_deps: tuple[str, ...] = ()
    options: PackageOptions = field(default_factory=PackageOptions)
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    shell: str = ""
    preload: tuple[str, ...] = ()
    workdir: str = ""
    programs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    warnings: tuple[str, ...] = ()
    installs_at_run_time: bool = False

    @cached_property
    def key(self) -> str:
        """Name of the folder: 32 hexadecimal digits."""
        parts = {
            "layout": _LAYOUT,
            "interpreter": self.interpreter,
            "platform": [sys.platform, platform.machine()],
            "requirements": self.requirements,
            "no_deps": self.no_deps,
            "options": asdict(self.options) if self.requirements or self.no_deps else None,
            "shell": self.shell,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Environment:
    """
    An environment that is there.

    Args:
        key: of its spec.
        path: the virtual environment; programs are in ``path / "bin"``, which belongs first on PATH.
        python: the interpreter inside.
        digest: ``sha256:`` of the interpreter and of every package version in it; what caching may compare.
        preload: modules that are installed and worth importing before a fork.
        spec: what was asked for.
    """

    key: str
    path: Path
    python: Path
    digest: str
    preload: tuple[str, ...]
    spec: EnvironmentSpec


@dataclass(frozen=True)
class EnvironmentInfo:
    """A line of ``shallop env list``; ``last_used`` in seconds since the epoch."""

    key: str
    path: Path
    image: str
    python: str
    requirements: tuple[str, ...]
    packages: tuple[str, ...]
    last_used: float
    size_bytes: int


class _Contents(NamedTuple):
    """What a built environment holds; read from its folder once."""

    path: Path
    digest: str
    packages: frozenset[str]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _package_of(requirement: str) -> str:
    """The package's name in its normal form; for a URL without a name, the whole text."""
    match = re.match(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?=\s*(?:$|[\[;@<>=!~(]))", requirement)
    return _normalised(match[0]) if match else requirement


def _layered(base: Iterable[str], over: Iterable[str]) -> tuple[str, ...]:
    """Return the requirements of both, sorted; one in ``over`` replaces those of its package in ``base``."""
    over = [" ".join(requirement.split()) for requirement in over]
    named = {_package_of(requirement) for requirement in over}
    kept = [requirement for requirement in base if _package_of(requirement) not in named]
    return tuple(sorted({*kept, *over}))


def _without_cuda(requirements: Iterable[str]) -> list[str]:
    """
    Take the build for CPUs of what would otherwise bring CUDA libraries, on a machine without an NVIDIA GPU.

    Only for what we choose ourselves (images, models), never for what a component asks for. ``xgboost-cpu`` is the
    same project's; it has releases from 2.1.1 on, and is 5 MB where ``xgboost`` brings 290 MB of NCCL.
    """
    if _has_gpu():
        return list(requirements)
    result = []
    for requirement in requirements:
        exact = re.match(r"xgboost\s*(==\s*([\d.]+))?", requirement)
        old = exact is not None and exact[2] and tuple(map(int, exact[2].strip(".").split(".")[:3])) < (2, 1, 1)
        if _package_of(requirement) == "xgboost" and not old:
            requirement = re.sub(r"^xgboost", "xgboost-cpu", requirement)
        elif _package_of(requirement) == "tensorflow" and sys.platform == "linux":
            requirement = re.sub(r"^tensorflow", "tensorflow-cpu", requirement)
        result.append(requirement)
    return result


@cache
def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


class Environments:
    """
    The environments of one cache folder, for the images of one home.

    Args:
        root: ``<cache>/envs``.
        images: image -> what it stands for.
        environ: where uv's and pip's settings are taken from, usually ``os.environ``.
    """

    def __init__(self, root: Path, images: ImageTable, environ: Mapping[str, str]) -> None:
        self._root = root
        self._images = images
        self._environ = environ
        self._pip = read_pip_settings(environ, pip_config_files(environ, Path(sys.base_prefix)))
        self._machine = machine_options(environ, self._pip)
        self._interpreters: dict[str, Interpreter] = {}
        self._known: dict[str, _Contents] = {}
        self._used: dict[str, float] = {}
        self._building: dict[str, anyio.Lock] = {}

    @classmethod
    def of(cls, settings: Settings) -> Environments:
        """The environments that one instance uses."""
        return cls(settings.cache / "envs", ImageTable(settings.home / "images.yaml"), os.environ)

    def resolve(self, image: str, argv: Sequence[str], requirements: Sequence[str] = ()) -> EnvironmentSpec:
        """
        Say which environment a container needs; nothing is built.

        Args:
            image: the container's image.
            argv: its command and arguments; a KFP "install then run" command in it adds its packages.
            requirements: more packages; each replaces what image and command say of the same package.

        Raises:
            ImageResolutionError: the table does not know the image.
        """
        entry, wanted = self._images.find(image)
        interpreter, warning = self._choose(wanted)
        # What follows the installation is different in each step of a pipeline.
        found = recognise_install(argv)
        needs_pip = found is None and installs_at_run_time(argv)
        install = replace(found or Install(), rest=())
        return _specify(image, entry, interpreter, warning, install, needs_pip, tuple(requirements), self._machine)

    def _choose(self, wanted: str) -> tuple[Interpreter, str]:
        known = self._interpreters.get(wanted or own_version())
        if known is None or not os.path.exists(known.path):
            self._interpreters = find_interpreters(self._environ)
        return choose_interpreter(wanted, self._interpreters)

    async def ensure(self, spec: EnvironmentSpec, progress: Progress | None = None) -> Environment:
        """
        Return the environment, building it when it is not there; at most one build of a key runs on this machine.

        Args:
            progress: told in a few words what is going on, in this event loop.

        Raises:
            EnvironmentBuildError: packages cannot be had, or the disk is full; nothing is left behind.
        """
        key = spec.key
        if (environment := self._find(spec)) is not None:
            return environment
        async with self._building.setdefault(key, anyio.Lock()):
            if (environment := self._find(spec)) is not None:
                return environment
            try:
                self._lock_of(key).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                async with _file_lock(self._lock_of(key), progress):
                    if (environment := self._find(spec)) is None:
                        await anyio.to_thread.run_sync(self._remove_leftovers, key)
                        await self._build(spec, progress or (lambda _: None))
                        environment = self._find(spec)
            except OSError as error:
                raise _disk_error(self._root, spec, error) from error
        if environment is None:
            raise EnvironmentBuildError(
                f"image '{spec.image}': environment {key} vanished while it was built; try again."
            )
        return environment

    def digest_of(self, spec: EnvironmentSpec) -> str:
        """Return the digest of an environment; while it is not built, a text that none of them has."""
        environment = self._find(spec)
        return environment.digest if environment else f"not built: {spec.key}"

    def _find(self, spec: EnvironmentSpec) -> Environment | None:
        # The link dangles when the interpreter below was uninstalled: then it is built again.
        if not os.path.exists(f"{self._root}/{spec.key}/bin/python"):
            self._known.pop(spec.key, None)
            return None
        contents = self._known.get(spec.key)
        if contents is None:
            path = self._root / spec.key
            try:
                info = json.loads((path / _INFO_FILE).read_text())
            except (OSError, ValueError):
                return None
            contents = _Contents(path, info["digest"], frozenset(_package_of(line) for line in info["packages"]))
            self._known[spec.key] = contents
        self._mark_used(spec.key)
        return _environment(spec, contents)

    def _mark_used(self, key: str) -> None:
        now = time.time()
        if now - self._used.get(key, 0.0) < _MARK_S:
            return
        self._used[key] = now
        file = self._root / key / _USED_FILE
        try:
            if now - file.stat().st_mtime > _MARK_S:
                os.utime(file)
        except OSError:
            pass  # a read-only cache works too; it only does not know what was used

    async def _build(self, spec: EnvironmentSpec, progress: Progress) -> None:
        final = self._root / spec.key
        work = self._root / f".tmp-{spec.key}-{uuid.uuid4().hex[:8]}"
        environ = uv_environment(self._environ, self._pip) | spec.options.uv_environment()
        builder = _Builder(spec, work, environ, lambda packages: self._relatives(spec, packages), progress)
        try:
            await builder.build()
            if final.exists():
                await anyio.to_thread.run_sync(self._discard, final)
            os.rename(work, final)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(work, ignore_errors=True))

    def _relatives(self, spec: EnvironmentSpec, packages: set[str]) -> list[Path]:
        """Return site-packages of the three environments that share the most packages with one to be."""
        found = []
        for path in self._root.glob("*/" + _INFO_FILE):
            try:
                info = json.loads(path.read_text())
                if info["interpreter"] == spec.interpreter and (shared := len(packages & set(info["packages"]))):
                    found.append((shared, _site_packages(path.parent)))
            except (OSError, ValueError):
                continue
        return [folder for _, folder in sorted(found, reverse=True)[:3]]

    def _lock_of(self, key: str) -> Path:
        # Lock files stay: removing one while another process waits for it would let two build.
        return self._root / ".locks" / key

    def _remove_leftovers(self, key: str) -> None:
        """Remove what a killed build of ``key`` left; the caller holds its lock."""
        for path in self._root.glob(f".tmp-{key}-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _discard(self, path: Path) -> None:
        """Take an environment away at once, then delete it file by file."""
        trash = self._root / f".trash-{path.name}-{uuid.uuid4().hex[:8]}"
        os.rename(path, trash)
        shutil.rmtree(trash, ignore_errors=True)

    @property
    def root(self) -> Path:
        """The folder of all environments."""
        return self._root

    def last_used_for_steps(self, within_s: float, here: str = "") -> Environment | None:
        """
        Return the environment that steps of pipelines used last, if that is not longer ago; blocking.

        Those with large libraries to import do not count. The one with the key ``here`` comes before all that other
        homes may have used since.
        """
        newest, found = time.time() - within_s, None
        for path in self._root.glob("*/" + _USED_FILE):
            try:
                used = path.stat().st_mtime if path.parent.name != here else math.inf
                if used <= newest:
                    continue
                info = json.loads((path.parent / _INFO_FILE).read_text())
                spec = EnvironmentSpec(info["image"], info["python"], info["interpreter"], tuple(info["requirements"]))
                preload = _preload_of(spec, frozenset(_package_of(line) for line in info["packages"]))
            except (OSError, ValueError, KeyError):
                continue
            if preload == _EXECUTOR:
                folder = path.parent
                newest = used
                found = Environment(folder.name, folder, folder / "bin" / "python", info["digest"], preload, spec)
        return found

    # --- the cache as a whole; blocking, for the command line and for the node's start ---

    def list_all(self) -> list[EnvironmentInfo]:
        """Return all environments, the most recently used first."""
        infos = []
        for path in self._root.glob("*/" + _INFO_FILE):
            try:
                raw = json.loads(path.read_text())
                used = (path.parent / _USED_FILE).stat().st_mtime
            except (OSError, ValueError):
                continue
            infos.append(
                EnvironmentInfo(
                    path.parent.name,
                    path.parent,
                    raw["image"],
                    raw["python"],
                    tuple(raw["requirements"]),
                    tuple(raw["packages"]),
                    used,
                    _size_of(path.parent),
                )
            )
        return sorted(infos, key=lambda info: info.last_used, reverse=True)

    def remove(self, key: str) -> bool:
        """Remove one environment; False when there is none. Running processes keep what they have loaded."""
        path = self._root / key
        if not (path / _INFO_FILE).exists():
            return False
        self._known.pop(key, None)
        self._discard(path)
        return True

    def sweep(self) -> None:
        """Remove what killed builds and removals left; builds that run now are left alone."""
        for path in [*self._root.glob(".tmp-*"), *self._root.glob(".trash-*")]:
            with self._lock_of(path.name.split("-")[1]).open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(path, ignore_errors=True)


def _preload_of(spec: EnvironmentSpec, installed: frozenset[str]) -> tuple[str, ...]:
    """
    Choose what a fork-server imports: what the image's entry names, the KFP executor, the libraries asked for by name.

    Libraries that only came along stay out: each adds milliseconds to every fork.
    """
    asked = {_package_of(requirement) for requirement in (*spec.requirements, *spec.no_deps)}
    modules = [module for package, module in _PRELOADS.items() if package in asked and package in installed]
    if "kfp" in asked and "kfp" in installed:
        modules = [*_EXECUTOR, *modules]
    return tuple(dict.fromkeys([*modules, *spec.preload]))


def _site_packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


@lru_cache(maxsize=256)
def _specify(
    image: str,
    entry: ImageEntry,
    interpreter: Interpreter,
    warning: str,
    install: Install,
    needs_pip: bool,
    requirements: tuple[str, ...],
    machine: PackageOptions,
) -> EnvironmentSpec:
    """Put together what an environment needs; the same object for the same question: it knows its key."""
    base = _layered(_without_cuda(entry.requirements), install.requirements)
    if needs_pip:
        base = _layered(base, ["pip"])
    component = PackageOptions(
        install.index_url, install.extra_index_urls, install.find_links, install.trusted_hosts, False, install.pre
    )
    return EnvironmentSpec(
        image=image,
        python=interpreter.version,
        interpreter=interpreter.path,
        requirements=_layered(base, _without_cuda(requirements)),
        no_deps=_layered((), install.no_deps),
        options=machine.merged(component),
        command=entry.command,
        args=entry.args,
        env=entry.env,
        shell=entry.shell,
        preload=entry.preload,
        workdir=entry.workdir,
        programs=entry.programs,
        warnings=(f"image '{image}': {warning}",) if warning else (),
        installs_at_run_time=needs_pip,
    )


@lru_cache(maxsize=256)
def _environment(spec: EnvironmentSpec, contents: _Contents) -> Environment:
    preload = _preload_of(spec, contents.packages)
    return Environment(spec.key, contents.path, contents.path / "bin" / "python", contents.digest, preload, spec)


def _size_of(path: Path) -> int:
    """Bytes that removing the folder would free: files that uv's cache shares by a hard link are not counted."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            stat = os.lstat(os.path.join(folder, name))
            total += stat.st_size if stat.st_nlink == 1 else 0
    return total


@asynccontextmanager
async def _file_lock(path: Path, progress: Progress | None) -> AsyncIterator[None]:
    """Hold an exclusive lock between processes; a killed holder's lock is free at once."""
    with path.open("a") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if progress is not None and not told:
                    progress("waiting for another process that builds the same environment")
                told = True
                # A thread blocked in flock could not be cancelled; another process's build takes seconds anyway.
                await anyio.sleep(0.1)
        yield


def _disk_error(root: Path, spec: EnvironmentSpec, error: OSError) -> EnvironmentBuildError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentBuildError(_disk_full(spec, root))
    return EnvironmentBuildError(
        f"image '{spec.image}': cannot write {error.filename or root}: {error.strerror}. "
        "Correct its permissions or set SHALLOP_CACHE to another folder."
    )


def _disk_full(spec: EnvironmentSpec, root: Path) -> str:
    return (
        f"image '{spec.image}': no space left for its environment in {root}. Free space "
        "('shallop env list' shows what environments take), or set SHALLOP_CACHE to a folder on another disk."
    )


class _Builder:
    """
    One build in one work folder.

    Where the package index cannot be reached, what uv has in its cache will do: a lock made from it is as good.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        work: Path,
        environ: dict[str, str],
        donors: Callable[[set[str]], Sequence[Path]],
        progress: Progress,
    ) -> None:
        self._spec = spec
        self._donors = donors
        self._work = work
        self._environ = environ
        self._progress = progress
        self._uv = _find_uv(environ)

    async def build(self) -> None:
        spec, progress = self._spec, self._progress
        progress(f"creating Python {spec.python}")
        await self._run(
            "venv", "--quiet", "--no-project", "--relocatable", "--python", spec.interpreter, str(self._work)
        )
        packages: dict[str, str] = {}
        if spec.requirements or spec.no_deps:
            progress(f"resolving {_shown(spec)}")
            packages = await self._compile("requirements.in", spec.requirements)
            packages |= await self._compile("no-deps.in", spec.no_deps, "--no-deps")
        lock = "".join(f"{line}\n" for line in sorted(packages.values()))
        (self._work / _LOCK_FILE).write_text(lock)
        if packages:
            progress(f"installing {len(packages)} packages")
            await self._install()
            progress("compiling")
            await self._byte_compile(set(packages.values()))
        self._finish(sorted(packages.values()))

    async def _compile(self, name: str, requirements: Sequence[str], *flags: str) -> dict[str, str]:
        """Resolve requirements; returns package -> its line of the lock."""
        if not requirements:
            return {}
        path = self._work / name
        path.write_text("".join(f"{requirement}\n" for requirement in requirements))
        if self._spec.options.pre:
            flags = (*flags, "--prerelease", "allow")
        output = await self._run(
            "pip", "compile", "--quiet", "--no-header", "--no-annotate", *flags,
            "--python", str(self._work / "bin" / "python"), *self._spec.options.uv_arguments(), str(path),
        )  # fmt: skip
        lines = [line.strip() for line in output.splitlines()]
        return {_package_of(line): line for line in lines if line and not line.startswith(("#", "-"))}

    async def _install(self) -> None:
        python = str(self._work / "bin" / "python")
        lock = str(self._work / _LOCK_FILE)
        options = ("--quiet", "--link-mode", "hardlink", "--python", python)
        await self._run("pip", "sync", *options, *self._spec.options.uv_arguments(), lock)

    async def _byte_compile(self, installed: set[str]) -> None:
        # Without it each first import takes 2 to 4 times as long. uv's own way would compile tests too, two fifths of
        # all files in scikit-learn, pandas and scipy (11.4 s of CPU time instead of 6.9 s on 2 cores).
        python = str(self._work / "bin" / "python")
        packages = _site_packages(self._work)
        donors = await anyio.to_thread.run_sync(self._donors, installed)
        await anyio.to_thread.run_sync(link_bytecode, packages, donors)
        command = [python, "-m", "compileall", "-q", "-q", "-j", "0", "-x", _NOT_COMPILED, "."]
        # Files that do not compile (templates, Python 2) are not imported either.
        await self._process(command, self._environ, packages)

    def _finish(self, packages: list[str]) -> None:
        spec = self._spec
        if spec.shell:
            shell = shutil.which(spec.shell, path=self._environ.get("PATH"))
            if shell:
                (self._work / "bin" / "sh").symlink_to(shell)
        content = json.dumps([spec.interpreter, spec.shell, packages])
        info: dict[str, Any] = {
            "image": spec.image,
            "python": spec.python,
            "interpreter": spec.interpreter,
            "requirements": [
                _without_passwords(text)
                for text in (*spec.requirements, *(f"{requirement} --no-deps" for requirement in spec.no_deps))
            ],
            "packages": packages,
            "digest": "sha256:" + hashlib.sha256(content.encode()).hexdigest(),
        }
        (self._work / _USED_FILE).touch()
        (self._work / _INFO_FILE).write_text(json.dumps(info, indent=1))

    async def _run(self, *arguments: str) -> str:
        # Few tries at first: whoever is offline should not wait 8 s for uv to believe it.
        code, output, stderr = await self._call(arguments, {"UV_HTTP_RETRIES": "1"})
        if code == 0:
            return output
        from_cache = ""
        if is_network_error(stderr) and "UV_OFFLINE" not in self._environ:
            code, output, from_cache = await self._call(arguments, {"UV_OFFLINE": "1"})
            if code == 0:
                self._progress("the package index cannot be reached: using packages of uv's cache")
                return output
            if not is_unreachable(stderr):
                # Somebody is there and has trouble; that passes.
                code, output, stderr = await self._call(arguments, {})
                if code == 0:
                    return output
        raise EnvironmentBuildError(self._explain(stderr, from_cache))

    async def _call(self, arguments: Sequence[str], defaults: Mapping[str, str]) -> tuple[int, str, str]:
        environ = {**defaults, **self._environ}
        done = await self._process([self._uv, *arguments], environ, self._work.parent)
        return done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")

    async def _process(
        self, command: Sequence[str], environ: Mapping[str, str], folder: Path
    ) -> CompletedProcess[bytes]:
        return await anyio.run_process(
            at_usual_priority(command), check=False, env=environ, cwd=folder, start_new_session=True
        )

    def _explain(self, stderr: str, from_cache: str) -> str:
        spec = self._spec
        if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
            return _disk_full(spec, self._work.parent)
        text = essential_lines(stderr)
        if from_cache and is_network_error(stderr):
            text += f" uv's cache does not have everything either: {essential_lines(from_cache)}"
        return (
            f"image '{spec.image}' (Python {spec.python}; {_shown(spec) or 'no packages'}): {_without_passwords(text)} "
            f"{_advice(stderr, spec.python)}"
        )


def _shown(spec: EnvironmentSpec) -> str:
    return _without_passwords(", ".join([*spec.requirements, *spec.no_deps]))


def _without_passwords(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://****@", text)


def essential_lines(stderr: str, limit: int = 700) -> str:
    """Return the sentences of uv's error output in one line, without its drawing."""
    lines = [re.sub(r"^([\s×│├╰─▶|`>-]|error: )+", "", line).strip() for line in stderr.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("warning:", "Resolved", "Using", "Caused by: "))]
    text = re.sub(r":? cause: ", ": ", " ".join(kept)) or stderr.strip() or "uv ended without a message."
    if len(text) > limit:
        text = text[:limit].rsplit(" ", 1)[0] + " ..."
    return text if text.endswith((".", "...", "!", ":")) else text + "."


# No answer at all, not even a refusal of the index: trying again at once is of no use.
_UNREACHABLE = ("dns error", "failed to lookup address", "tcp connect", "connection refused", "unreachable", "no route")
_NETWORK = (*_UNREACHABLE, "error sending request", "failed to fetch", "timed out")


def is_unreachable(stderr: str) -> bool:
    """Say whether uv found nobody at the address of the package index."""
    return any(words in stderr.lower() for words in _UNREACHABLE)


def is_network_error(stderr: str) -> bool:
    """Say whether uv failed because of the network or the package index."""
    return any(words in stderr.lower() for words in _NETWORK)


def _advice(stderr: str, python: str) -> str:
    text = stderr.lower()
    if is_network_error(stderr):
        return (
            "Check the network and the package index (index-url in pip.conf, UV_DEFAULT_INDEX); what was built while "
            "it could be reached works without ('shallop env list')."
        )
    if "network was disabled" in text or "offline" in text:
        return "The machine is set to work offline: give it the package by find-links, or unset UV_OFFLINE."
    if "failed to build" in text or "build backend" in text:
        return f"It has no wheel for Python {python}: choose a version that has one, or another image."
    return "Correct the package names and versions."


def _find_uv(environ: Mapping[str, str]) -> str:
    """The uv that was installed with us, else the one on PATH."""
    try:
        import uv

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv", path=environ.get("PATH"))
    if found is None:
        raise EnvironmentBuildError(
            "uv is not installed: no environment can be built. Install it with 'pip install uv'."
        )
    return found
