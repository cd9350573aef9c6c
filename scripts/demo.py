"""
Start the platform and run the example of late flights on it, as ``make demo`` does.

The example runs in an environment with the public clients only (``.venvs/demo``). The platform stays up afterwards.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHALLOP = str(ROOT / ".venv" / "bin" / "shallop")
CLIENTS = str(ROOT / ".venvs" / "demo" / "bin" / "python")
PORTS = (6443, 8080, 8081, 8082)


def main() -> int:
    start = time.monotonic()
    try:
        status = _ensure_running()
        example = subprocess.run(
            [CLIENTS, str(ROOT / "examples" / "flights" / "run.py"), *_addresses(status)], check=False
        )
    except KeyboardInterrupt:
        return 130
    where = f"SHALLOP_HOME={os.environ['SHALLOP_HOME']} " if os.environ.get("SHALLOP_HOME") else ""
    print(f"\n  dashboard      {status['web']}\n  predictions    {status['gateway']}")
    print(f"  kubectl        export KUBECONFIG={status['kubeconfig']}")
    print(f"  the demo took {time.monotonic() - start:.1f} s; the platform stays up", end="")
    print(f" and stops with: {where}.venv/bin/shallop down")
    return example.returncode


def _ensure_running() -> dict[str, Any]:
    status = _status()
    if status["ready"]:
        print(f"shallop runs already (data in {status['home']})")
        return status
    command = [SHALLOP, "up", "--detach"]
    taken = [str(port) for port in PORTS if _is_taken(port)]
    if taken:
        print(f"port {', '.join(taken)} is in use by another program: taking free ones instead")
        command += ["--port", "auto"]
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    status = _status()
    print(f"shallop is up after {time.monotonic() - start:.2f} s (data in {status['home']})")
    return status


def _status() -> dict[str, Any]:
    done = subprocess.run([SHALLOP, "status", "-o", "json"], capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(done.stderr.strip() or f"{SHALLOP} status printed nothing")
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _addresses(status: dict[str, Any]) -> list[str]:
    return ["--web", status["web"], "--gateway", status["gateway"], "--kubeconfig", status["kubeconfig"]]


if __name__ == "__main__":
    sys.exit(main())
