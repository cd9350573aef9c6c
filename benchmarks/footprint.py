"""
What shallop costs when it does nothing: time until ready, memory and CPU of all its processes.

Memory is the proportional set size, which counts pages shared by processes once. Linux only.
Run: ``python benchmarks/footprint.py [IDLE_SECONDS]``.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from instance import SHALLOP, cpu_s, make_home, processes_of, start, stop, write

STARTS = 5


def time_up(home: Path) -> float:
    """Return seconds until ``shallop up --detach`` says that the platform is ready."""
    begun = time.perf_counter()
    command = [SHALLOP, "up", "--detach", "--port", "auto", "--home", str(home)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=90)
    seconds = time.perf_counter() - begun
    stop(home)
    return seconds


def pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def main(idle_s: float) -> None:
    home = make_home()
    try:
        first = time_up(home)
        ready = statistics.median(time_up(home) for _ in range(STARTS))
        pid = start(home)["pid"]
        time.sleep(5)  # what a start leaves behind is done
        processes = processes_of(home, pid)
        before = {number: cpu_s(number) for number in processes}
        time.sleep(idle_s)
        used = {number: cpu_s(number) - before[number] for number in processes}
        rows = [
            {"what": "ready, empty home (s)", "value": round(first, 3)},
            {"what": f"ready, median of {STARTS} (s)", "value": round(ready, 3)},
            {"what": "processes", "value": len(processes)},
            {"what": "memory of all, PSS (MiB)", "value": round(sum(map(pss_mib, processes)), 1)},
            {"what": f"CPU of all, idle for {idle_s:.0f} s (%)", "value": round(sum(used.values()) / idle_s * 100, 2)},
        ]
        for number, command in processes.items():
            words = command.replace(str(home), "HOME").split()
            name = " ".join(word.rpartition("/")[2] for word in words[:4])
            rows.append({"what": f"  {name}: PSS (MiB)", "value": round(pss_mib(number), 1)})
    finally:
        stop(home)
        shutil.rmtree(home, ignore_errors=True)
    write("footprint", rows)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
