"""Applies what a cluster needs, in an order that works."""

from __future__ import annotations

import asyncio
import json

import yaml

from shallop.cluster.manifests import MANAGED_BY, Installation, render_crds, render_objects
from shallop.errors import NotFoundError, SettingsError
from shallop.kube.kubeconfig import load_kubeconfig
from shallop.kube.objects import Gvk, Object, is_condition_true, labels_of
from shallop.kube.remote import RemoteClient

__all__ = ["dump", "install"]

_CRD = Gvk("apiextensions.k8s.io/v1", "CustomResourceDefinition")
_ESTABLISHED_S = 30.0
_MANAGER = "shallop-install"


def dump(installation: Installation, format_: str) -> str:
    """Return everything as YAML documents, or as one JSON List."""
    objects = [*render_crds(), *render_objects(installation)]
    if format_ == "json":
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2) + "\n"
    return yaml.safe_dump_all(objects, sort_keys=False)


async def install(installation: Installation, kubeconfig: str | None, context: str) -> int:
    """Install; may be repeated. Raises ApiError where the user of the kubeconfig may not do it."""
    async with RemoteClient(load_kubeconfig(kubeconfig, context=context)) as client:
        names = []
        for crd in render_crds():
            names.append(crd["metadata"]["name"])
            print(await _install_crd(client, crd))
        await _wait_established(client, names)
        for obj in render_objects(installation):
            await client.apply(obj, field_manager=_MANAGER)
            print(f"{obj['kind'].lower()}/{obj['metadata']['name']} applied")
    return 0


async def _install_crd(client: RemoteClient, crd: Object) -> str:
    name = crd["metadata"]["name"]
    try:
        known = await client.get(_CRD, name)
    except NotFoundError:
        known = None
    if known is not None and not MANAGED_BY.items() <= labels_of(known).items():
        return f"customresourcedefinition/{name} kept: somebody else installed it"
    await client.apply(crd, field_manager=_MANAGER)
    return f"customresourcedefinition/{name} applied"


async def _wait_established(client: RemoteClient, names: list[str]) -> None:
    waiting = list(names)
    try:
        async with asyncio.timeout(_ESTABLISHED_S):
            while waiting:
                if is_condition_true(await client.get(_CRD, waiting[0]), "Established"):
                    waiting.pop(0)
                else:
                    await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise SettingsError(
            f"CustomResourceDefinition {waiting[0]} is not established; see kubectl describe."
        ) from error
