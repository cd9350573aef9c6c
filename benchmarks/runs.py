"""
How the engine of pipelines behaves with many tasks and many runs, on a whole instance with a Pod per task.

Run: ``python benchmarks/runs.py [large] [cached] [fair] [stored]``; without names all of them. A task is a container
that does nothing (``true``): what is measured is the platform. ``control_plane_cpu_ms`` is the processor time of the
control-plane process per task: engine, API and node agent together, without shims and tasks. ``large`` takes other
sizes after ``--tasks`` and other shapes after ``--shapes``. It has each run twice: alone, for times, processor time and
``rss_*``, the memory of the control plane before, at most, and at the end; and for at most a minute beside clients that
ask for pages one after the other: ``*_p95_ms`` are their requests. Results are in ``results/runs.json``: rows that are
measured replace those of the same ``what``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from instance import cpu_s, running, stamp, write

from shallop.priority import take_precedence

TASKS = (100, 1000, 10_000)
STORED = 10_000
ASKED_S = 60.0
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")

Row = dict[str, Any]


class Server:
    def __init__(self, status: dict[str, Any]) -> None:
        self.url = f"{status['web']}/apis/v2beta1"
        self.pid = status["pid"]

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def seconds(self, path: str) -> float:
        """Return how long a request takes, without the decoding of its answer."""
        begun = time.perf_counter()
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            answer.read()
        return time.perf_counter() - begun

    def submit(self, spec: Any, name: str = "") -> str:
        body = {"display_name": name or spec["pipelineInfo"]["name"], "pipeline_spec": spec}
        return str(self.call("/runs", body)["run_id"])

    def state(self, run_id: str) -> Row:
        """Return a run without its document and tasks: asking must not cost what is measured."""
        return dict(self.call(f"/runs?view=SUMMARY&filter={_only('id', run_id)}")["runs"][0])

    def wait(self, run_id: str, *, pause_s: float = 0.2, timeout_s: float = 1800.0) -> Row:
        """Return a run when it is over."""
        deadline = time.monotonic() + timeout_s
        while (run := self.state(run_id))["state"] not in _ENDED:
            if time.monotonic() > deadline:
                raise SystemExit(f"run {run_id} is still {run['state']}")
            time.sleep(pause_s)
        return run

    def ended(self, run_id: str, *, pause_s: float = 0.2) -> Row:
        """Return a run when it has ended well."""
        run = self.wait(run_id, pause_s=pause_s)
        if run["state"] != "SUCCEEDED":
            raise SystemExit(f"run {run_id} ended {run['state']}: {run.get('error')}")
        return run

    def terminate(self, run_id: str) -> None:
        self.call(f"/runs/{run_id}:terminate", {})
        self.wait(run_id)

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def fan_out(count: int, *, cached: bool = False) -> Any:
    """Tasks of one DAG that need nothing of each other."""
    name = "fan-out" if cached else f"fan-out-{count}"
    return _pipeline(name, {f"task-{number}": _task(f"task-{number}", cached) for number in range(count)})


def loop(count: int) -> Any:
    """One task for every item of a list."""
    each = {
        **_task("each"),
        "componentRef": {"name": "iteration"},
        "parameterIterator": {"items": {"raw": json.dumps(list(range(count)))}, "itemInput": "item"},
    }
    spec = _pipeline(f"loop-{count}", {"each": each})
    spec["components"]["iteration"] = {
        "inputDefinitions": {"parameters": {"item": {"parameterType": "NUMBER_INTEGER"}}},
        "dag": {"tasks": {"inner": _task("inner")}},
    }
    return spec


def chain(count: int, *, cached: bool = False) -> Any:
    tasks = {}
    for number in range(count):
        tasks[f"task-{number}"] = _task(f"task-{number}", cached)
        if number:
            tasks[f"task-{number}"]["dependentTasks"] = [f"task-{number - 1}"]
            tasks[f"task-{number}"]["inputs"] = {
                "parameters": {
                    "text": {
                        "taskOutputParameter": {"producerTask": f"task-{number - 1}", "outputParameterKey": "text"}
                    }
                }
            }
        else:
            tasks["task-0"]["inputs"] = {"parameters": {"text": {"runtimeValue": {"constant": "0"}}}}
        tasks[f"task-{number}"]["componentRef"] = {"name": "next"}
    spec = _pipeline(f"chain-{count}", tasks)
    text = {"parameters": {"text": {"parameterType": "STRING"}}}
    spec["components"]["next"] = {"executorLabel": "next", "inputDefinitions": text, "outputDefinitions": text}
    script = 'mkdir -p "$(dirname "$0")"; printf "%s+" "$1" > "$0"'
    spec["deploymentSpec"]["executors"]["next"] = {
        "container": {
            "image": "alpine",
            "command": ["sh", "-c", script],
            "args": ["{{$.outputs.parameters['text'].output_file}}", "{{$.inputs.parameters['text']}}"],
        }
    }
    return spec


def _task(name: str, cached: bool = False) -> Any:
    return {
        "componentRef": {"name": "nothing"},
        "taskInfo": {"name": name},
        "cachingOptions": {"enableCache": cached},
    }


def _pipeline(name: str, tasks: Any) -> Any:
    return {
        "pipelineInfo": {"name": name},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": tasks}},
        "components": {"nothing": {"executorLabel": "nothing"}},
        "deploymentSpec": {"executors": {"nothing": {"container": {"image": "alpine", "command": ["true"]}}}},
    }


def go_first() -> None:
    """Go before other programs, where the system allows it: how long this one waits for a core is no one's answer."""
    with contextlib.suppress(PermissionError):
        os.setsid()
    take_precedence()


def _percentile(samples: list[float], share: float) -> float:
    ordered = sorted(samples)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 2)


def _listing(server: Server, count: int) -> list[float]:
    return [server.seconds("/runs?page_size=20&sort_by=created_at%20desc") for _ in range(count)]


def large(server: Server, sizes: tuple[int, ...], shapes: tuple[str, ...]) -> list[Row]:
    """Runs of more and more tasks, and how the pages that people look at answer beside such a run."""
    rows = []
    server.ended(server.submit(chain(2)))
    server.ended(server.submit(fan_out(1, cached=True)))  # whose outputs all of "cached" have
    for shape in shapes:
        for count in sizes:
            spec = SHAPES[shape](count)
            row = {"what": f"{shape} of {count}", "tasks": count, **_alone(server, spec, count)}
            row |= _beside(server, spec, trees=count <= 1000) | stamp()
            rows.append(row)
            print(row, flush=True)
    return rows


def _alone(server: Server, spec: Any, count: int) -> Row:
    """Run while nobody asks for anything but, twice a second, whether it is over."""
    stored = int(server.call("/runs?page_size=1&view=SUMMARY").get("total_size", 0))
    cpu, begun, before = server.cpu_s(), time.perf_counter(), server.rss_mib()
    peak = before
    run_id = server.submit(spec)
    created = time.perf_counter() - begun
    while server.state(run_id)["state"] not in _ENDED:
        peak = max(peak, server.rss_mib())
        time.sleep(0.5)
    run = server.ended(run_id)
    cpu = server.cpu_s() - cpu
    seconds = _duration_s(run)
    return {
        "runs_stored": stored,
        "seconds": round(seconds, 2),
        "ms_per_task": round(seconds * 1000 / count, 2),
        "control_plane_cpu_ms": round(cpu * 1000 / count, 2),
        "submit_ms": round(created * 1000, 1),
        "run_at_end_ms": _percentile([server.seconds(f"/runs/{run_id}") for _ in range(5)], 0.5),
        "tree_at_end_ms": _percentile([server.seconds(f"/runs/{run_id}/tasks") for _ in range(5)], 0.5),
        "rss_before": before,
        "rss_peak": peak,
        "rss_end": server.rss_mib(),
    }


def _beside(server: Server, spec: Any, *, trees: bool) -> Row:
    """Ask for pages while such a run goes on; of one that takes long the first minute says enough."""
    asked: dict[str, list[float]] = {"list": [], "run": [], "home": []} | ({"tree": []} if trees else {})
    run_id = server.submit(spec)
    deadline, pause_until = time.monotonic() + ASKED_S, 0.0
    while (is_on := server.state(run_id)["state"] not in _ENDED) and time.monotonic() < deadline:
        asked["list"] += [server.seconds(path) for path in _pages("list", run_id)]
        if time.perf_counter() > pause_until:
            begun_asking = time.perf_counter()
            for name in asked.keys() - {"list"}:
                asked[name] += [server.seconds(path) for path in _pages(name, run_id)]
            # Large answers cost what they cost; asked for without end they would be most of what is measured.
            pause_until = 11 * time.perf_counter() - 10 * begun_asking
        time.sleep(0.2)
    if is_on:
        server.terminate(run_id)
    return {f"{name}_p95_ms": _percentile(samples, 0.95) for name, samples in asked.items() if samples}


def _pages(name: str, run_id: str) -> list[str]:
    """Return what a page asks for."""
    recent = "/runs?view=SUMMARY&page_size=25&sort_by=created_at%20desc"
    return {
        "list": ["/runs?page_size=20&sort_by=created_at%20desc"],
        "run": [f"/runs/{run_id}"],
        "tree": [f"/runs/{run_id}/tasks"],
        "home": [recent, *(f"{recent}&filter={_only('state', state)}" for state in ("RUNNING", "FAILED"))],
    }[name]


def _only(key: str, value: str) -> str:
    predicates = [{"operation": "EQUALS", "key": key, "string_value": value}]
    return urllib.parse.quote(json.dumps({"predicates": predicates}))


def cached(server: Server) -> list[Row]:
    """The same 100 steps twice: a chain in which each step needs the output of the one before, and a fan-out."""
    rows = []
    for shape in (chain, fan_out):
        server.ended(server.submit(shape(100, cached=True)))
        samples = []
        for _ in range(3):
            begun = time.perf_counter()
            server.ended(server.submit(shape(100, cached=True)))
            samples.append(time.perf_counter() - begun)
        seconds = statistics.median(samples)
        rows.append({"what": f"cached {shape.__name__.replace('_', '-')}", "tasks": 100, "seconds": round(seconds, 3)})
        print(rows[-1], flush=True)
    return rows


def fair(server: Server) -> list[Row]:
    """Fifty runs of three steps that are submitted while one of a thousand tasks runs; and the fifty alone."""
    rows = []
    for beside in (0, 1000):
        whole = server.submit(fan_out(beside)) if beside else ""
        time.sleep(2.0 if beside else 0.0)
        with ThreadPoolExecutor(10) as pool:
            ids = list(pool.map(lambda _: server.submit(chain(3)), range(50)))
        durations = []
        for id_ in ids:
            server.ended(id_)
        for id_ in ids:
            durations.append(_duration_s(server.state(id_)))
        row: Row = {"what": f"50 runs beside {beside} tasks", "tasks": 150, "seconds": round(max(durations), 2)}
        row["median_s"] = round(statistics.median(durations), 2)
        if whole:
            row["large_still_ran"] = server.state(whole)["state"] not in _ENDED
            server.ended(whole)
        rows.append(row)
        print(row, flush=True)
    return rows


def _duration_s(run: Row) -> float:
    begun, ended = (datetime.fromisoformat(run[key].replace("Z", "+00:00")) for key in ("created_at", "finished_at"))
    return (ended - begun).total_seconds()


def stored(server: Server) -> list[Row]:
    """The list of runs, first page and last, when many runs are stored."""
    spec = _pipeline("empty", {})

    def submit(number: int) -> None:
        server.submit(spec, f"run {number}")

    begun, cpu = time.perf_counter(), server.cpu_s()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, range(STORED)))
    seconds, cpu = time.perf_counter() - begun, server.cpu_s() - cpu
    samples = _listing(server, 200)
    row = {"what": "list of runs", "tasks": STORED, "list_p95_ms": _percentile(samples, 0.95)}
    row |= {"list_p50_ms": _percentile(samples, 0.5), "submit_ms": round(seconds * 1000 / STORED, 2)}
    row["control_plane_cpu_ms"] = round(cpu * 1000 / STORED, 2)
    print(row, flush=True)
    return [row]


SHAPES: dict[str, Callable[[int], Any]] = {
    "fan-out": fan_out,
    "loop": loop,
    "chain": chain,
    "cached": lambda count: fan_out(count, cached=True),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loads", nargs="*", metavar="large|cached|fair|stored")
    parser.add_argument("--tasks", type=int, nargs="+", default=list(TASKS))
    parser.add_argument("--shapes", nargs="+", default=["fan-out", "loop"], choices=list(SHAPES))
    options = parser.parse_args()
    loads: dict[str, Callable[[Server], list[Row]]] = {
        "large": lambda server: large(server, tuple(options.tasks), tuple(options.shapes)),
        "cached": cached,
        "fair": fair,
        "stored": stored,
    }
    rows: list[Row] = []
    with running() as status:
        server = Server(status)
        go_first()  # not before the server has started: it would inherit that
        for name in options.loads or loads:
            rows += loads[name](server)
    write("runs", rows, key="what")


if __name__ == "__main__":
    main()
