"""
Names of Services and Pods in ``/etc/hosts``: one file for all Pods of a namespace.

A Pod that comes costs one short line at the end of its namespace's file; only when something goes or changes a file is
written anew, from lines that were rendered when they became true (500 Pods: 0.1 ms).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from shallop.kube.objects import Object, labels_of

__all__ = ["HostsFiles", "Names", "pod_names"]

_HEAD = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"

# Namespace -> name and selector of its Services without a cluster IP.
Headless = Mapping[str, Mapping[str, Mapping[str, str]]]


class Names(NamedTuple):
    """Lines for one Pod: as its own namespace sees it, and as all others do."""

    own: str
    foreign: str


def pod_names(pod: Object, headless: Headless) -> Names:
    """Render the lines of a Pod: its own names, and those of Services without a cluster IP that pick it. Pure."""
    metadata, spec, address = pod["metadata"], pod["spec"], (pod.get("status") or {}).get("podIP")
    if not address:
        return Names("", "")
    namespace, hostname = metadata["namespace"], spec.get("hostname") or metadata["name"]
    lines: list[str] = []
    for seen_from in (namespace, ""):
        names = []
        if spec.get("subdomain"):
            names += [f"{hostname}.{name}" for name in _service_names(namespace, spec["subdomain"], seen_from)]
        if seen_from:
            names += dict.fromkeys([metadata["name"], hostname])
        text = f"{address} {' '.join(names)}\n" if names else ""
        for service, selector in headless.get(namespace, {}).items():
            if selector and selector.items() <= labels_of(pod).items():
                text += f"{address} {' '.join(_service_names(namespace, service, seen_from))}\n"
        lines.append(text)
    return Names(*lines)


def _service_names(namespace: str, service: str, seen_from: str) -> list[str]:
    full = f"{service}.{namespace}"
    names = [full, f"{full}.svc", f"{full}.svc.cluster.local"]
    return [service, *names] if namespace == seen_from else names


class HostsFiles:
    """
    The files of one node.

    Args:
        folder: where they are, by namespace; those of an earlier run are taken over, because Pods that go on have them
            mounted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # What the file of each namespace holds.
        self._texts: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        self._addresses: dict[tuple[str, str], str] | None = None
        # How the file of a namespace begins: with the Services.
        self._heads: dict[str, str] = {}
        self._headless: dict[str, dict[str, Mapping[str, str]]] = {}
        self._stale = True
        self._pods: dict[str, Object] = {}
        # Namespace -> uid -> lines; ``_foreign`` has only Pods that others can name at all.
        self._own: dict[str, dict[str, str]] = {}
        self._foreign: dict[str, dict[str, str]] = {}

    def start(self) -> None:
        """Find the files of an earlier run; they stay as they are until Services are known."""
        self._texts = {path.name: path.read_text() for path in self._folder.glob("*")}

    @property
    def is_waiting(self) -> bool:
        """True until Services were told the first time."""
        return self._addresses is None

    def of(self, namespace: str) -> Path:
        """Return the file that is ``/etc/hosts`` in Pods of a namespace; it exists."""
        if (path := self._paths.get(namespace)) is None:
            path = self._paths[namespace] = self._folder / namespace
        if namespace not in self._texts:
            self._folder.mkdir(mode=0o755, exist_ok=True)
            path.touch()
            self._texts[namespace] = ""
            self._write([namespace])
        return path

    def shows(self, uid: str) -> bool:
        """Say whether a Pod was shown when ``set_pods`` was last called."""
        return uid in self._pods

    def set_services(self, services: Iterable[Object], addresses: Mapping[tuple[str, str], str]) -> None:
        """
        Take the Services; ``set_pods``, which comes next, writes what has changed.

        Args:
            services: of all namespaces.
            addresses: (namespace, service) -> address, for Services with a cluster IP.
        """
        headless: dict[str, dict[str, Mapping[str, str]]] = {}
        for service in services:
            namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
            if (namespace, name) not in addresses:
                headless.setdefault(namespace, {})[name] = (service.get("spec") or {}).get("selector") or {}
        if headless != self._headless:
            self._headless = headless
            pods, self._pods, self._own, self._foreign = self._pods, {}, {}, {}
            for uid, pod in pods.items():
                self._add(uid, pod)
            self._stale = True
        if addresses != self._addresses:
            self._addresses = dict(addresses)
            self._heads.clear()
            self._stale = True

    def set_pods(self, pods: Mapping[str, Object]) -> None:
        """Show these Pods, by uid. A Pod that is the very object of the last call has not changed."""
        gone = [uid for uid, pod in self._pods.items() if pods.get(uid) is not pod]
        new = [uid for uid, pod in pods.items() if self._pods.get(uid) is not pod]
        changed = {self._remove(uid) for uid in gone}
        added: dict[str, str] = {}
        for uid in new:
            namespace, names = self._add(uid, pods[uid])
            added[namespace] = added.get(namespace, "") + names.own
            for other in self._texts if names.foreign else ():
                if other != namespace:
                    added[other] = added.get(other, "") + names.foreign
        if self._addresses is None:
            # Services of an earlier run stay until those of now are known.
            changed = set()
        elif self._stale or "" in changed:
            changed, self._stale = set(self._texts), False
        self._write(changed & self._texts.keys())
        for namespace in added.keys() & self._texts.keys() - changed:
            with open(self._folder / namespace, "a") as file:
                file.write(added[namespace])
            self._texts[namespace] += added[namespace]

    def _add(self, uid: str, pod: Object) -> tuple[str, Names]:
        namespace, names = pod["metadata"]["namespace"], pod_names(pod, self._headless)
        self._pods[uid] = pod
        self._own.setdefault(namespace, {})[uid] = names.own
        if names.foreign:
            self._foreign.setdefault(namespace, {})[uid] = names.foreign
        return namespace, names

    def _remove(self, uid: str) -> str:
        """Forget a Pod; returns the namespace whose file changes, empty for all."""
        namespace = self._pods.pop(uid)["metadata"]["namespace"]
        for lines in (self._own, self._foreign):
            shown = lines.get(namespace, {}).pop(uid, "")
            if not lines.get(namespace):
                lines.pop(namespace, None)
        return "" if shown else str(namespace)

    def _write(self, namespaces: Iterable[str]) -> None:
        for namespace in namespaces:
            if (head := self._heads.get(namespace)) is None:
                addresses = (self._addresses or {}).items()
                of_services = (f"{address} {' '.join(_service_names(*key, namespace))}\n" for key, address in addresses)
                head = self._heads[namespace] = _HEAD + "".join(of_services)
            text = head + "".join(self._own.get(namespace, {}).values())
            for other, lines in self._foreign.items():
                text += "".join(lines.values()) if other != namespace else ""
            if text != self._texts[namespace]:
                # In place, not by rename: Pods have this very file mounted.
                descriptor = os.open(f"{self._folder}/{namespace}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.ftruncate(descriptor, os.write(descriptor, text.encode()))
                finally:
                    os.close(descriptor)
                self._texts[namespace] = text
