"""Runs in an environment with the official client: prints what its informer hears, one JSON array a line."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from kubernetes import client, config
from kubernetes.informer import ADDED, DELETED, ERROR, MODIFIED, SharedInformer


def main() -> None:
    kubeconfig, namespace = sys.argv[1:]
    config.load_kube_config(kubeconfig)
    informer = SharedInformer(client.CoreV1Api().list_namespaced_config_map, namespace, label_selector="run=informer")
    done = threading.Event()

    def tell(type_: str, obj: Any) -> None:
        number = (obj.data or {}).get("n")
        print(json.dumps([type_, obj.metadata.name, number, obj.metadata.resource_version]), flush=True)
        if obj.metadata.name == "end":
            done.set()

    for type_ in (ADDED, MODIFIED, DELETED):
        informer.add_event_handler(type_, lambda obj, type_=type_: tell(type_, obj))
    informer.add_event_handler(ERROR, lambda error: print(json.dumps(["ERROR", repr(error)[:200]]), flush=True))
    informer.start()
    done.wait()
    cache = {obj.metadata.name: obj.data["n"] for obj in informer.cache.list()}
    print(json.dumps(["CACHE", cache]), flush=True)
    informer.stop()


if __name__ == "__main__":
    main()
