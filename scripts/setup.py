"""
Prepare virtual environments from the committed locks: ``python3 scripts/setup.py runtime|dev|NAME``.

Needs Python >= 3.11 and a package index only. ``runtime`` and ``dev`` make ``.venv`` (with the ``shallop`` command);
any other NAME makes ``.venvs/NAME`` from ``requirements/NAME.txt``: public clients, exactly as users install them.
A finished environment is left alone until its lock changes.

Environments get the Python that runs this, or the operating system's of the same version where this one was built
without optimisation. ``make PYTHON=...`` is taken at its word.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".venvs" / "tools"
# The lock of an environment may be made for one series of Python; clients are tested with this one.
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


def main(names: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 make may have found an older Python
        print(f"shallop needs Python 3.11 or newer; this is {OWN}. Run make with PYTHON=/path/to/python3.11.")
        return 1
    for name in names or ["runtime"]:
        with _alone(name):
            _prepare(name)
    return 0


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Let others that prepare the same environment wait."""
    TOOLS.parent.mkdir(exist_ok=True)
    with open(TOOLS.parent / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(name: str) -> None:
    own = name in ("runtime", "dev")
    target = ROOT / ".venv" if own else ROOT / ".venvs" / name
    lock = ROOT / "requirements" / f"{name}.txt"
    digest = hashlib.sha256(lock.read_bytes() + OWN.encode() + _pyproject(own)).hexdigest()
    stamp = target / ".lock-digest"
    known = stamp.read_text().split() if stamp.exists() else []
    # The development environment holds all of the runtime one, so it serves for both.
    if known[:1] == [digest] or (name == "runtime" and known[1:2] == [digest]):
        return
    print(f"setting up {target.relative_to(ROOT)} from {lock.relative_to(ROOT)} ...", flush=True)
    start = time.monotonic()
    uv = _uv()
    if not (target / "bin" / "python").exists():
        _run([uv, "venv", "--quiet", "--python", _interpreter(), str(target)])
    python = str(target / "bin" / "python")
    # Compiled once here, not at each start: some machines forbid Python to keep what it compiles.
    compiled = ["--compile-bytecode"] if own else []
    _run(
        [uv, "pip", "sync", "--quiet", "--require-hashes", *compiled, "--python", python, *_index_options(), str(lock)]
    )
    if own:
        _run([python, "-m", "compileall", "-q", "src"])
        _run([uv, "pip", "install", "--quiet", "--no-deps", "--python", python, *_index_options(), "-e", str(ROOT)])
    runtime = ROOT / "requirements" / "runtime.txt"
    second = hashlib.sha256(runtime.read_bytes() + OWN.encode() + _pyproject(own)).hexdigest() if own else ""
    stamp.write_text(f"{digest} {second}")
    print(f"  ready in {time.monotonic() - start:.1f} s", flush=True)


def _pyproject(own: bool) -> bytes:
    return (ROOT / "pyproject.toml").read_bytes() if own else b""


def _interpreter() -> str:
    # make hands PYTHON on only where somebody has set it.
    if os.environ.get("PYTHON") or _module("interpreters").is_optimised():
        return sys.executable
    system = f"/usr/bin/python{OWN}"
    # One that was cut down to the bare language would fail later, and say less.
    needed = [system, "-c", "import ctypes, sqlite3, ssl, venv"]
    try:
        complete = subprocess.run(needed, stderr=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        complete = False
    return system if complete else sys.executable


def _uv() -> str:
    """Return uv: our own one, installed with pip from the hashes in the lock."""
    path = TOOLS / "bin" / "uv"
    with _alone("tools"):
        if not path.exists():
            _run([sys.executable, "-m", "venv", str(TOOLS)])
            pip = [str(TOOLS / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes"]
            _run([*pip, "-r", str(ROOT / "requirements" / "tools.txt")])
    return str(path)


def _module(name: str) -> ModuleType:
    # shallop itself is not installed yet; these modules need the standard library only.
    path = ROOT / "src" / "shallop" / "embedded" / "kubelet" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _pip() -> dict[str, str]:
    module = _module("pip_settings")
    settings: dict[str, str] = module.read_pip_settings(
        os.environ, module.pip_config_files(os.environ, Path(sys.prefix))
    )
    return settings


def _index_options() -> list[str]:
    """Return pip's settings of this machine as options of uv."""
    options: list[str] = _module("pip_settings").machine_options(os.environ, _pip()).uv_arguments()
    return options


def _run(command: list[str]) -> None:
    environment = _module("pip_settings").uv_environment(os.environ, _pip())
    # A lock has chosen all versions already, and uv refuses constraints without "==" beside hashes.
    environment.pop("UV_CONSTRAINT", None)
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"setup failed: {' '.join(command[:4])} ... ended with {done.returncode}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
