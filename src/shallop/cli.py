"""The ``shallop`` command."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shallop import __version__, instance
from shallop.cluster.commands import add_commands as add_cluster_commands
from shallop.errors import ApiError, SettingsError, ShallopError
from shallop.runner.commands import add_commands as add_run_commands
from shallop.settings import Settings

__all__ = ["main"]

_TEACH = """\
first steps:
  shallop up --detach              start the platform in the background
  shallop status                   where everything is
  export KUBECONFIG=$(shallop status -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["kubeconfig"])')
  kubectl get pods -A              any Kubernetes client works
  shallop run train.py --watch     run a KFP pipeline and see its steps
  shallop apply -f model.yaml      or declare things without kubectl
  shallop logs my-pod -f           follow what a Pod prints
  shallop down                     stop it; nothing that you declared is lost

Clients: kfp.Client(host="http://127.0.0.1:8080"); the model registry is on 8080 too, predictions on 8081.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "command"):
        parser.print_help()
        return 2
    try:
        return int(options.command(options) or 0)
    except ShallopError as error:
        print(f"shallop: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away, as "head" does: not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _common(**options: Any) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    text = "where all data is (SHALLOP_HOME; default ~/.shallop)"
    common.add_argument("--home", type=Path, metavar="DIR", help=text, **options)
    return common


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shallop",
        description="Kubeflow's APIs on one machine, in one process: pipelines, training, tuning, registry, serving.",
        epilog=_TEACH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shallop {__version__}")
    common = _common()
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_up(commands, common)
    _add_down(commands, common)
    _add_status(commands, common)
    _add_apply(commands, common)
    _add_logs(commands, common)
    _add_env(commands, common)
    add_run_commands(commands, common)
    add_cluster_commands(commands)
    doctor = commands.add_parser("doctor", parents=[common], help="say what this machine can do and what to mend")
    doctor.set_defaults(command=_doctor)
    return parser


_LIMITS = {
    "env_max_gib": "largest size of all environments; 0 = no limit",
    "env_max_age_days": "environments unused for so long are removed; 0 = never",
    "log_max_mib": "largest size of a log file, before the next one is begun",
    "log_files": "log files that are kept of each run of a container",
    "log_retention_days": "logs of Pods that are gone are removed after so long; 0 = never",
    "run_max_age_days": "runs of pipelines are removed so long after their end; 0 = never",
    "run_max_count": "runs of pipelines that are kept of each namespace, the newest; 0 = all",
    "artifact_max_age_days": "artifacts that nothing uses any more are removed after so long; 0 = never",
}
_Commands = Any  # argparse keeps the type of its sub-parsers private


def _add_up(commands: _Commands, common: argparse.ArgumentParser) -> None:
    up = commands.add_parser(
        "up",
        parents=[common],
        help="start the platform",
        description="Start the platform and stay in the foreground; Ctrl-C stops it and its Pods. Nothing is lost: "
        "the next 'up' on the same home goes on where this one ended.",
    )
    up.add_argument("--detach", "-d", action="store_true", help="start in the background, return when it is ready")
    up.add_argument("--host", default=Settings.host, help="address to listen on (default %(default)s)")
    up.add_argument("--port", choices=["auto"], help="'auto' takes free ports for everything not given below")
    for name, what in (
        ("api", "Kubernetes API"),
        ("web", "dashboard and REST APIs"),
        ("gateway", "predictions"),
        ("content", "user-made content"),
        ("katib", "Katib's database manager"),
    ):
        default = getattr(Settings, f"{name}_port")
        up.add_argument(f"--{name}-port", type=int, metavar="PORT", help=f"port of {what} (default {default})")
    up.add_argument(
        "--isolation",
        choices=["auto", "namespaces", "user", "none"],
        default=Settings.isolation,
        help="how Pods are kept apart (default: the best that this machine allows, see 'shallop doctor')",
    )
    up.add_argument(
        "--host-paths",
        metavar="any|none|FOLDER,...",
        default=Settings.host_paths,
        help="which folders of this machine Pods may mount by hostPath; never the platform's own (default %(default)s)",
    )
    up.add_argument(
        "--bare",
        action="store_true",
        help="only a small Kubernetes: API, built-in controllers and node, to try 'shallop install' and 'controllers'",
    )
    up.add_argument(
        "--multi-user",
        action="store_true",
        help="callers of pipelines and the registry need a token of the Kubernetes API; RBAC says what they see",
    )
    up.add_argument(
        "--proxy-secret-file",
        metavar="FILE",
        default="",
        help="with --multi-user: believe the header kubeflow-userid of a proxy that sends this file's content as "
        "x-shallop-proxy-secret",
    )
    up.add_argument(
        "--synchronous",
        choices=["normal", "full"],
        default=Settings.synchronous,
        help="'full': every write waits for the disk, so that a power cut loses nothing (default %(default)s)",
    )
    up.add_argument(
        "--cache-max-age",
        type=float,
        metavar="SECONDS",
        default=Settings.cache_max_age_s,
        help="do not use outputs of pipeline steps again that are older (default: never too old)",
    )
    up.add_argument(
        "--cron-timezone",
        metavar="ZONE",
        default=Settings.cron_timezone,
        help="of recurring runs whose expression names none, such as Europe/Berlin (default %(default)s)",
    )
    up.add_argument(
        "--engine", choices=["podman", "docker"], default="", help="run images that no environment stands for by this"
    )
    for name, what in _LIMITS.items():
        default = getattr(Settings, name)
        option = f"--{name.replace('_', '-')}"
        up.add_argument(option, type=type(default), default=default, metavar="N", help=f"{what} (default {default:g})")
    up.add_argument("--verbose", "-v", action="store_true", help="log every decision")
    up.set_defaults(command=_up)


def _add_down(commands: _Commands, common: argparse.ArgumentParser) -> None:
    down = commands.add_parser("down", parents=[common], help="stop the platform")
    down.add_argument(
        "--keep-pods", action="store_true", help="leave processes of Pods running; the next 'up' takes them over"
    )
    down.set_defaults(command=_down)


def _add_status(commands: _Commands, common: argparse.ArgumentParser) -> None:
    status = commands.add_parser("status", parents=[common], help="show whether it runs, and its URLs")
    status.add_argument("--output", "-o", choices=["text", "json"], default="text")
    status.set_defaults(command=_status)


def _add_apply(commands: _Commands, common: argparse.ArgumentParser) -> None:
    apply = commands.add_parser(
        "apply",
        parents=[common],
        help="declare objects from YAML or JSON",
        description="Server-side apply of every object in the files; '-' reads standard input.",
    )
    apply.add_argument("--filename", "-f", action="append", required=True, metavar="FILE")
    apply.add_argument("--namespace", "-n", default="default", help="for objects that name none (default %(default)s)")
    apply.set_defaults(command=_apply)


def _add_logs(commands: _Commands, common: argparse.ArgumentParser) -> None:
    logs = commands.add_parser("logs", parents=[common], help="show what a Pod printed")
    logs.add_argument("pod")
    logs.add_argument("--namespace", "-n", default="default")
    logs.add_argument("--container", "-c", default="")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the container ends")
    logs.add_argument("--tail", type=int, metavar="LINES", help="only the last lines")
    logs.add_argument("--previous", "-p", action="store_true", help="of the container before its last restart")
    logs.set_defaults(command=_logs)


def _add_env(commands: _Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("env", parents=[common], help="environments that stand for images; alone: list them")
    parser.set_defaults(command=_env_list)
    env = parser.add_subparsers(title="commands", metavar="COMMAND")
    # What was said before the command's name stays.
    common = _common(default=argparse.SUPPRESS)
    listing = env.add_parser("list", parents=[common], help="built environments and known images")
    listing.set_defaults(command=_env_list)
    add = env.add_parser(
        "add",
        parents=[common],
        help="say which environment stands for an image",
        epilog="example: shallop env add acme/train:7 --python 3.11 --requirements requirements.txt",
    )
    add.add_argument("image")
    add.add_argument("--python", default="3.11", metavar="X.Y", help="interpreter version (default %(default)s)")
    add.add_argument("--requirements", type=Path, metavar="FILE", help="a pip requirements file")
    add.set_defaults(command=_env_add)
    remove = env.add_parser("remove", parents=[common], help="remove a built environment")
    remove.add_argument("key", help="the first characters of its name in 'shallop env list'")
    remove.set_defaults(command=_env_remove)


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings()
    return replace(settings, home=options.home.absolute()) if options.home else settings


def _up(options: argparse.Namespace) -> int:
    settings = _settings(options)
    names = ("api_port", "web_port", "gateway_port", "content_port", "katib_port")
    automatic = 0 if options.port == "auto" else None
    settings = replace(settings, host=options.host, isolation=options.isolation, cache_max_age_s=options.cache_max_age)
    settings = replace(
        settings,
        bare=options.bare,
        multi_user=options.multi_user,
        proxy_secret_file=str(Path(options.proxy_secret_file).absolute()) if options.proxy_secret_file else "",
        host_paths=options.host_paths,
        synchronous=options.synchronous,
        engine=options.engine,
    )
    settings = replace(settings, **{name: getattr(options, name) for name in _LIMITS})
    settings = replace(settings, cron_timezone=options.cron_timezone)
    given = {name: getattr(options, name) if getattr(options, name) is not None else automatic for name in names}
    ports: dict[str, Any] = {name: port for name, port in given.items() if port is not None}
    settings = replace(settings, **ports)
    if options.detach:
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--detach", "-d")]
        _print_status(instance.start_detached([*arguments, "--home", str(settings.home)], settings))
        return 0
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    from shallop.platform import run

    return run(settings)


def _down(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if instance.stop(settings, keep_pods=options.keep_pods):
        print("shallop has stopped." + (" Its Pods go on." if options.keep_pods else ""))
    else:
        print(f"shallop does not run on {settings.home}.")
    return 0


def _status(options: argparse.Namespace) -> int:
    status = instance.read_status(_settings(options))
    if options.output == "json":
        print(json.dumps(status, indent=2))
    else:
        _print_status(status)
    return 0 if status["ready"] else 1


def _print_status(status: dict[str, Any]) -> None:
    if not status["ready"]:
        print(f"shallop does not run on {status['home']}. Start it with 'shallop up --detach'.")
        return
    print(f"shallop is ready (process {status['pid']}, data in {status['home']})")
    for label, key in (("dashboard", "web"), ("predictions", "gateway"), ("Kubernetes API", "api")):
        print(f"  {label:<15}{status[key]}")
    print(f"  {'kubeconfig':<15}{status['kubeconfig']}")


def _client_call(options: argparse.Namespace, call: Any) -> Any:
    """Run ``call(client)`` against the running instance, with errors that say what to do."""
    from shallop.kube.remote import RemoteClient, load_kubeconfig

    status = instance.read_status(_settings(options))
    if not status["ready"]:
        raise SettingsError(f"shallop does not run on {status['home']}. Start it with 'shallop up --detach'.")

    async def session() -> Any:
        async with RemoteClient(load_kubeconfig(status["kubeconfig"])) as client:
            return await call(client)

    return asyncio.run(session())


def _apply(options: argparse.Namespace) -> int:
    from shallop.manifests import load_manifests

    objects = [obj for name in options.filename for obj in load_manifests(name)]

    async def apply_all(client: Any) -> int:
        types = {type_.gvk: type_ for type_ in await client.resource_types()}
        failed = 0
        for obj in objects:
            type_ = types.get((obj["apiVersion"], obj["kind"]))
            if type_ is not None and type_.namespaced:
                obj["metadata"].setdefault("namespace", options.namespace)
            what = f"{obj['kind'].lower()}/{obj['metadata']['name']}"
            try:
                await client.apply(obj, field_manager="shallop-apply", force=False)
                print(f"{what} applied")
            except ApiError as error:
                failed += 1
                print(f"{what}: {error}", file=sys.stderr)
        return 1 if failed else 0

    return int(_client_call(options, apply_all))


def _logs(options: argparse.Namespace) -> int:
    async def show(client: Any) -> int:
        query = {"container": options.container, "previous": options.previous, "follow": options.follow}
        async for chunk in client.logs(options.pod, options.namespace, tail_lines=options.tail, **query):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        return 0

    return int(_client_call(options, show))


def _env_list(options: argparse.Namespace) -> int:
    from shallop.embedded.kubelet.environments import Environments
    from shallop.embedded.kubelet.housekeeping import processes_using, why_kept
    from shallop.embedded.kubelet.images import ImageTable

    settings = _settings(options)
    environments = Environments.of(settings)
    used, now = processes_using(environments.root), time.time()
    print(f"{'ENVIRONMENT':<18}{'PYTHON':<8}{'SIZE':>10}  {'LAST USED':<18}{'WHY IT IS KEPT':<30}REQUIREMENTS")
    for item in environments.list_all():
        requirements = " ".join(item.requirements) or "-"
        last = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.last_used))
        why = why_kept(item, used, now, settings)
        print(
            f"{item.key[:16]:<18}{item.python:<8}{item.size_bytes / 1e6:>7.0f} MB  {last:<18}{why:<30}"
            f"{requirements[:90]}"
        )
    print("\nImages that have an environment:")
    for entry in ImageTable(settings.home / "images.yaml").entries:
        print(f"  {entry.image}")
    return 0


def _env_add(options: argparse.Namespace) -> int:
    from shallop.embedded.kubelet import images

    settings = _settings(options)
    lines = images.read_requirements(options.requirements) if options.requirements else ()
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    images.add_image(settings.home / "images.yaml", options.image, python=options.python, requirements=lines)
    print(f"{options.image} -> Python {options.python}, {len(lines)} requirement(s). It is built on first use.")
    return 0


def _env_remove(options: argparse.Namespace) -> int:
    from shallop.embedded.kubelet.environments import Environments

    environments = Environments.of(_settings(options))
    keys = [item.key for item in environments.list_all() if item.key.startswith(options.key)]
    if len(keys) != 1:
        raise SettingsError(f"environment {options.key!r}: {len(keys)} match; see 'shallop env list'.")
    environments.remove(keys[0])
    print(f"{keys[0]} is removed. It is built again when it is needed.")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from shallop.doctor import examine

    findings = examine(_settings(options))
    for finding in findings:
        print(f"{finding.level:<5} {finding.what}" + (f"\n      {finding.advice}" if finding.advice else ""))
    return 1 if any(finding.level == "FAIL" for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
