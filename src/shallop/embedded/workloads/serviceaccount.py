"""What every namespace gets: the ServiceAccount ``default`` and the ConfigMap ``kube-root-ca.crt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio.to_thread

from shallop.controller import Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.children import is_namespace_ending
from shallop.errors import AlreadyExistsError, ForbiddenError
from shallop.kube.objects import Gvk, Key, Object, is_deleting

__all__ = ["NAMESPACE_DEFAULTS", "render_root_ca", "render_service_account"]

_SERVICE_ACCOUNT = Gvk("v1", "ServiceAccount")
_CONFIG_MAP = Gvk("v1", "ConfigMap")
_ROOT_CA = "kube-root-ca.crt"
_DESCRIPTION = (
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the "
    "internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes "
    "clusters."
)


def render_service_account(namespace: str) -> Object:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}


def render_root_ca(namespace: str, certificate: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": _ROOT_CA,
            "namespace": namespace,
            "annotations": {"kubernetes.io/description": _DESCRIPTION},
        },
        "data": {"ca.crt": certificate},
    }


async def reconcile(ctx: Context, namespace: Resource[dict[str, Any]]) -> Result:
    """Create what is missing and put the certificate back when it differs."""
    if is_deleting(namespace.raw):
        return Result()
    name = namespace.name
    if ctx.cache(_SERVICE_ACCOUNT).get(Key(name, "default")) is None:
        await _create(ctx, render_service_account(name))
    certificate = await anyio.to_thread.run_sync(_read, ctx.settings.home / "tls" / "ca.crt")
    known = ctx.cache(_CONFIG_MAP).get(Key(name, _ROOT_CA))
    if known is None:
        await _create(ctx, render_root_ca(name, certificate))
    elif known.get("data") != {"ca.crt": certificate}:
        patch = [{"op": "add", "path": "/data", "value": {"ca.crt": certificate}}]
        await ctx.client.patch(_CONFIG_MAP, _ROOT_CA, name, patch, patch_type="json")
    return Result()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        # An API server without TLS of its own (in process) has no certificate to hand out.
        return ""


async def _create(ctx: Context, obj: Object) -> None:
    try:
        await ctx.client.create(obj)
    except AlreadyExistsError:
        pass
    except ForbiddenError as error:
        if not is_namespace_ending(error):
            raise


def _namespace_if(obj: Object, name: str) -> list[Key]:
    return [Key("", obj["metadata"]["namespace"])] if obj["metadata"]["name"] == name else []


NAMESPACE_DEFAULTS = Kind(
    api_version="v1",
    kind="Namespace",
    plural="namespaces",
    namespaced=False,
    reconcile=reconcile,
    watches=(
        Watch(_SERVICE_ACCOUNT, lambda obj: _namespace_if(obj, "default")),
        Watch(_CONFIG_MAP, lambda obj: _namespace_if(obj, _ROOT_CA)),
    ),
)
