"""Write the locks in ``requirements/`` with hashes and without any registry's address."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).parent / "uv"
OPTIONS = ["--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate", "--python-version", "3.11"]


def main() -> None:
    requirements = ROOT / "requirements"
    compile_ = [str(UV), "pip", "compile", "--quiet", "--upgrade", *OPTIONS]
    for source in sorted(requirements.glob("*.in")):
        subprocess.run([*compile_, str(source), "-o", str(source.with_suffix(".txt"))], check=True, cwd=ROOT)
    universal = [*compile_, "--universal", "pyproject.toml"]
    subprocess.run([*universal, "-o", str(requirements / "runtime.txt")], check=True, cwd=ROOT)
    subprocess.run([*universal, "--group", "dev", "-o", str(requirements / "dev.txt")], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
