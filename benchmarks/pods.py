"""
Pods of ``sleep``: how long until all of 50, 100, 250 and 500 that are created at once run, and until they are gone.

Uses nothing but the standard library and kubectl's credentials: ``.venv/bin/python benchmarks/pods.py [COUNT...]``.
"""

from __future__ import annotations

import json
import ssl
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from instance import cpu_s, processes_of, running, wait_until, write

NAMESPACE = "pods"


class Api:
    def __init__(self, status: dict[str, Any], home: Path) -> None:
        self._url = status["api"]
        self._context = ssl.create_default_context(cafile=str(home / "tls" / "ca.crt"))
        self._headers = {"Authorization": f"Bearer {(home / 'token').read_text()}", "Content-Type": "application/json"}

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._url + path, data, self._headers, method=method)
        with urllib.request.urlopen(request, context=self._context, timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found


def pod(name: str) -> dict[str, Any]:
    container = {"name": "main", "image": "debian", "command": ["sleep", "100000"]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def pss_mib(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def measure(api: Api, status: dict[str, Any], home: Path, count: int) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    before, start = cpu_s(status["pid"]), time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: api("POST", path, pod(f"sleep-{count}-{number}")), range(count)))
    created = time.monotonic() - start

    def all_run() -> bool:
        items = api("GET", path)["items"]
        return sum((item.get("status") or {}).get("phase") == "Running" for item in items) == count

    wait_until(all_run, f"{count} Pods run", 300)
    ran = time.monotonic() - start
    used = cpu_s(status["pid"]) - before
    memory = pss_mib(list(processes_of(home, status["pid"])))
    start = time.monotonic()
    api("DELETE", path)
    wait_until(lambda: not api("GET", path)["items"], f"{count} Pods are gone", 300)
    return {
        "pods": count,
        "created (s)": created,
        "all running (s)": ran,
        "each (ms)": 1000 * ran / count,
        "control plane CPU, each (ms)": 1000 * used / count,
        "memory of all, PSS (MiB)": memory,
        "deleted (s)": time.monotonic() - start,
    }


def main(counts: list[int]) -> None:
    with running() as status:
        home = Path(status["kubeconfig"]).parent
        api = Api(status, home)
        api("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        measure(api, status, home, 2)
        write("pods", [measure(api, status, home, count) for count in counts])


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [50, 100, 250, 500])
