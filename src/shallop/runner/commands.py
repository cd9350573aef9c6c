"""The commands ``run``, ``why``, ``compare``, ``shell`` and ``cache``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from shallop import instance
from shallop.errors import SettingsError, ShallopError
from shallop.runner.client import PipelinesClient
from shallop.runner.tree import reason_of, waiting_for
from shallop.settings import Settings

__all__ = ["add_commands"]

_Commands = Any  # argparse keeps the type of its sub-parsers private
_SELECTORS = ("pipeline", "component", "run")


def add_commands(commands: _Commands, common: argparse.ArgumentParser) -> None:
    _add_run(commands, common)
    _add_why(commands, common)
    _add_compare(commands, common)
    _add_shell(commands, common)
    _add_cache(commands, common)


def _add_namespace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", "-n", default="", help="with 'up --multi-user': where to work")


def _add_run(commands: _Commands, common: argparse.ArgumentParser) -> None:
    run = commands.add_parser(
        "run",
        parents=[common],
        help="run a pipeline from its Python or YAML file",
        description="Run a pipeline and, with --watch, show it until its end.",
        epilog="examples: shallop run train.py -p epochs=3 --watch\n"
        "          shallop run train.py --repeat latest --watch      after a correction: only what it changes runs\n"
        "          shallop run --repeat latest --from train          from one step on",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("file", nargs="?", type=Path, help="Python source, or what 'kfp dsl compile' writes")
    run.add_argument("--parameter", "-p", action="append", default=[], metavar="NAME=VALUE")
    run.add_argument("--watch", "-w", action="store_true", help="show it until it is over; the exit code tells the end")
    run.add_argument("--name", default="", help="of the run (default: the pipeline's)")
    run.add_argument("--experiment", default="", help="its name; made when it is not there")
    run.add_argument("--no-cache", action="store_true", help="do every step again")
    run.add_argument("--repeat", default="", metavar="RUN", help="take over what would be the same as in this run")
    run.add_argument("--from", dest="start", default="", metavar="STEP", help="with --repeat: do this step again")
    run.add_argument("--pipeline", default="", metavar="FUNCTION", help="in a Python file with several pipelines")
    run.add_argument("--python", default="", metavar="PYTHON", help="an interpreter with kfp, to compile with")
    run.add_argument("--local-only", action="store_true", help="without a platform: start the engine for this run only")
    _add_namespace(run)
    run.set_defaults(command=_run)


def _add_why(commands: _Commands, common: argparse.ArgumentParser) -> None:
    why = commands.add_parser("why", parents=[common], help="say why each step of a run ran, or did not")
    why.add_argument("run", help="id, the first characters of it, a name, or 'latest'")
    why.add_argument("step", nargs="?", default="", help="only this step")
    _add_namespace(why)
    why.set_defaults(command=_why)


def _add_compare(commands: _Commands, common: argparse.ArgumentParser) -> None:
    compare = commands.add_parser("compare", parents=[common], help="show runs beside each other")
    compare.add_argument("run", nargs="+", help="id, the first characters of it, a name, or 'latest'")
    _add_namespace(compare)
    compare.set_defaults(command=_compare)


def _add_shell(commands: _Commands, common: argparse.ArgumentParser) -> None:
    shell = commands.add_parser(
        "shell",
        parents=[common],
        help="open a shell in the environment of a step, with its inputs",
        epilog="example: shallop shell latest train -c ./run.sh",
    )
    shell.add_argument("run", help="id, the first characters of it, a name, or 'latest'")
    shell.add_argument("step", help="its name, or its path such as for-loop-1[2]/train")
    shell.add_argument("--folder", type=Path, help="where its files go (default: a new temporary folder)")
    shell.add_argument("-c", dest="script", default="", metavar="COMMAND", help="run this instead of a shell")
    _add_namespace(shell)
    shell.set_defaults(command=_shell)


def _add_cache(commands: _Commands, common: argparse.ArgumentParser) -> None:
    cache = commands.add_parser("cache", help="outputs of steps that are used again").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    for name, what, command in (
        ("list", "show what is kept, the newest first", _cache_list),
        ("clear", "forget what is kept; artifacts stay", _cache_clear),
    ):
        parser = cache.add_parser(name, parents=[common], help=what)
        for selector in _SELECTORS:
            parser.add_argument(f"--{selector}", default="", metavar="NAME" if selector != "run" else "RUN")
        _add_namespace(parser)
        if name == "clear":
            parser.add_argument("--all", action="store_true", help="everything")
        parser.set_defaults(command=command)


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(home=options.home.absolute()) if options.home else Settings()


def _connect(options: argparse.Namespace) -> PipelinesClient:
    settings = _settings(options)
    status = instance.read_status(settings)
    if not status["ready"]:
        raise SettingsError(f"shallop does not run on {status['home']}. Start it with 'shallop up --detach'.")
    token = settings.home / "token"
    return PipelinesClient(status["web"], token.read_text().strip() if token.exists() else "", options.namespace)


def _run(options: argparse.Namespace) -> int:
    if options.file is None and not options.repeat:
        raise ShallopError("run: name a file, or a run with --repeat.")
    if options.start and not options.repeat:
        raise ShallopError("--from: needs --repeat RUN, the run whose other steps are taken over.")
    # Nothing is compiled for a server that does not run.
    client = None if options.local_only else _connect(options)
    document = None
    if options.file is not None:
        from shallop.runner.compile import load_pipeline, without_cache

        document = load_pipeline(options.file, _settings(options), pipeline=options.pipeline, python=options.python)
        document = without_cache(document) if options.no_cache else document
    if client is None:
        from shallop.runner.local import run_locally

        options.watch = True
        settings = _settings(options)
        home = settings.home if options.home else settings.cache / "local"
        return run_locally(replace(settings, home=home), lambda url: _submit(PipelinesClient(url), options, document))
    return _submit(client, options, document)


def _submit(client: PipelinesClient, options: argparse.Namespace, document: dict[str, Any] | None) -> int:
    from shallop.runner.compile import parse_parameters
    from shallop.runner.watch import show_end, watch_run

    if options.repeat:
        earlier = client.find_run(options.repeat)
        typed = document or client.call("GET", f"/runs/{earlier}").get("pipeline_spec") or _version_of(client, earlier)
        body: dict[str, Any] = {"from_task": options.start, "display_name": options.name}
        body["parameters"] = parse_parameters(options.parameter, typed)
        body |= {"pipeline_spec": document} if document else {}
        run = client.call("POST", f"/runs/{earlier}:rerun", body)
    else:
        document = document or {}
        name = options.name or document.get("pipeline_spec", document)["pipelineInfo"]["name"]
        body = {"display_name": name, "pipeline_spec": document}
        body["runtime_config"] = {"parameters": parse_parameters(options.parameter, document)}
        if options.experiment or client.namespace:
            body["experiment_id"] = _experiment(client, options.experiment or "Default")
        run = client.call("POST", "/runs", body)
    run_id = str(run["run_id"])
    if not options.watch:
        print(run_id)
        return 0
    if sys.stdout.isatty():
        print(f"run {run_id}  {client.url}/#/runs/details/{run_id}")
    watch_run(client, run_id)
    return show_end(client, run_id, is_local=options.local_only)


def _version_of(client: PipelinesClient, run_id: str) -> dict[str, Any]:
    reference = client.call("GET", f"/runs/{run_id}")["pipeline_version_reference"]
    path = f"/pipelines/{reference['pipeline_id']}/versions/{reference['pipeline_version_id']}"
    document: dict[str, Any] = client.call("GET", path)["pipeline_spec"]
    return document


def _experiment(client: PipelinesClient, name: str) -> str:
    from json import dumps

    predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
    found = client.call("GET", "/experiments", filter=dumps({"predicates": [predicate]})).get("experiments", [])
    made = (
        found[0]
        if found
        else client.call("POST", "/experiments", {"display_name": name, "namespace": client.namespace})
    )
    return str(made["experiment_id"])


def _step(tasks: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    """Return the task that a user names by its path, or by its name alone; of several the one that failed."""
    steps = [task for task in tasks if task["path"] != "root"]
    found = [task for task in steps if task["path"].removeprefix("root/") == wanted.removeprefix("root/")]
    found = found or [task for task in steps if wanted in (task["name"], task["display_name"])]
    found.sort(key=lambda task: task["own_state"] != "FAILED")
    if not found:
        names = ", ".join(task["path"].removeprefix("root/") for task in steps[:20])
        raise ShallopError(f"step {wanted!r}: no such step; this run has {names or 'none yet'}.")
    return found[0]


def _why(options: argparse.Namespace) -> int:
    client = _connect(options)
    run_id = client.find_run(options.run)
    tasks = client.call("GET", f"/runs/{run_id}/tasks")["tasks"]
    chosen = [_step(tasks, options.step)] if options.step else [task for task in tasks if task["path"] != "root"]
    for task in chosen:
        print(f"{task['path'].removeprefix('root/'):<32} {task['own_state']:<10} {reason_of(task)}")
        if task["own_state"] == "RUNNING" and task["pods"]:
            pod = client.call("GET", f"/runs/{run_id}/tasks/{task['task_id']}/pod")
            print(f"{'':<43} {waiting_for(pod) or 'It runs.'}")
        if message := (task.get("error") or {}).get("message", ""):
            print(f"{'':<43} {message.splitlines()[-1]}")
        if usage := task.get("usage"):
            cpu_s, rss_bytes = usage.get("cpuSeconds", 0), usage.get("maxRssBytes", 0)
            print(f"{'':<43} It took {cpu_s:.2f} s of CPU and at most {rss_bytes / 2**20:.0f} MiB of memory.")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from shallop.runner.compare import render_comparison

    client = _connect(options)
    ids = ",".join(client.find_run(wanted) for wanted in options.run)
    print("\n".join(render_comparison(client.call("GET", "/runs:compare", run_ids=ids))))
    return 0


def _shell(options: argparse.Namespace) -> int:
    from shallop.runner.shell import open_shell

    client, settings = _connect(options), _settings(options)
    run_id = client.find_run(options.run)
    task = _step(client.call("GET", f"/runs/{run_id}/tasks")["tasks"], options.step)
    pod = client.call("GET", f"/runs/{run_id}/tasks/{task['task_id']}/pod")
    folder = options.folder.absolute() if options.folder else Path(tempfile.mkdtemp(prefix=f"{task['name']}-"))
    folder.mkdir(parents=True, exist_ok=True)
    kubeconfig = instance.read_status(settings)["kubeconfig"]
    return open_shell(kubeconfig, pod, folder, options.script)


def _selected(options: argparse.Namespace, client: PipelinesClient) -> dict[str, str]:
    query = {"pipeline_name": options.pipeline, "component": options.component}
    query["run_id"] = client.find_run(options.run) if options.run else ""
    return {name: value for name, value in query.items() if value}


def _cache_list(options: argparse.Namespace) -> int:
    client = _connect(options)
    listed = client.call("GET", "/cache", **_selected(options, client))
    print(f"{'PIPELINE':<24}{'COMPONENT':<24}{'KEPT':<22}{'RUN':<10}KEY")
    for one in listed["entries"]:
        kept = one["created_at"][:19] + "Z"
        print(f"{one['pipeline_name']:<24}{one['component']:<24}{kept:<22}{one['run_id'][:8]:<10}{one['key'][:12]}")
    if (hidden := listed["total_size"] - len(listed["entries"])) > 0:
        print(f"and {hidden} more")
    return 0


def _cache_clear(options: argparse.Namespace) -> int:
    client = _connect(options)
    query = _selected(options, client) | ({"all": "true"} if options.all else {})
    if not query:
        raise ShallopError("cache clear: name what to forget with --pipeline, --component or --run, or give --all.")
    deleted = client.call("DELETE", "/cache", **query)["deleted"]
    print(f"{deleted} entries are forgotten; these steps run again.")
    return 0
