"""The commands ``shallop controllers`` and ``shallop install``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import Any

from shallop import __version__

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the commands to the parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--kubeconfig", metavar="FILE", help="the cluster (KUBECONFIG, the Pod's own, ~/.kube/config)")
    common.add_argument("--context", default="", help="a context of the kubeconfig (default: its current one)")
    _add_controllers(commands, common)
    _add_install(commands, common)


def _add_controllers(commands: Any, common: argparse.ArgumentParser) -> None:
    controllers = commands.add_parser(
        "controllers",
        parents=[common],
        help="run the controllers against a Kubernetes cluster",
        description="Run the controllers of InferenceServices against any Kubernetes cluster, until Ctrl-C.",
    )
    controllers.add_argument(
        "--leader-elect", action="store_true", help="of several replicas only one acts, by a Lease"
    )
    controllers.add_argument(
        "--lease-namespace", default="", metavar="NAME", help="where the Lease is (default: that of the kubeconfig)"
    )
    controllers.add_argument(
        "--lease-duration",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="a leader that is silent for so long is replaced; it stops by itself after two thirds (default 15)",
    )
    controllers.add_argument(
        "--gateway-url",
        default="",
        metavar="URL",
        help="where users reach models by path (default: they use the addresses of their Services)",
    )
    controllers.add_argument("--health-port", type=int, default=0, metavar="PORT", help="serve /healthz and /readyz")
    controllers.add_argument("--verbose", "-v", action="store_true", help="log every decision")
    controllers.set_defaults(command=_controllers)


def _add_install(commands: Any, common: argparse.ArgumentParser) -> None:
    install = commands.add_parser(
        "install",
        parents=[common],
        help="install the controllers into a Kubernetes cluster",
        description="Install types, roles and the controllers' Deployment. CRDs that somebody else installed are kept.",
        epilog="to remove it: shallop install --dry-run | kubectl delete -f -   (this deletes all InferenceServices)",
    )
    install.add_argument("--namespace", "-n", default="shallop-system", help="of the controllers (default %(default)s)")
    install.add_argument(
        "--image", default=f"shallop:{__version__}", help="an image that has shallop (default %(default)s)"
    )
    install.add_argument("--replicas", type=int, default=2, metavar="N", help="one acts, others wait (default 2)")
    install.add_argument("--dry-run", action="store_true", help="only print what would be installed")
    install.add_argument("--output", "-o", choices=["yaml", "json"], default="yaml", help="format of --dry-run")
    install.set_defaults(command=_install)


def _controllers(options: argparse.Namespace) -> int:
    from shallop.cluster.run import Lease, run
    from shallop.controller.leader import LeaseTimes
    from shallop.kube.kubeconfig import load_kubeconfig
    from shallop.settings import Settings

    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    access = load_kubeconfig(options.kubeconfig, context=options.context)
    lease = None
    if options.leader_elect:
        duration_s = max(options.lease_duration, 3.0)
        times = LeaseTimes(duration_s, duration_s * 2 / 3, duration_s * 2 / 15)
        lease = Lease(options.lease_namespace or access.namespace, times)
    settings = Settings(gateway_base=options.gateway_url.rstrip("/"))
    return run(access, settings, lease, health_port=options.health_port)


def _install(options: argparse.Namespace) -> int:
    from shallop.cluster.install import dump, install
    from shallop.cluster.manifests import Installation

    installation = Installation(options.namespace, options.image, options.replicas)
    if options.dry_run:
        print(dump(installation, options.output), end="")
        return 0
    return asyncio.run(install(installation, options.kubeconfig, options.context))
