"""The embedded API server as one value: store, verbs, HTTP application, in-process client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from shallop.controller.kind import Kind
from shallop.embedded.apiserver.admission_plugins import AdmissionPlugins
from shallop.embedded.apiserver.allocation import KUBERNETES_IP
from shallop.embedded.apiserver.app import App
from shallop.embedded.apiserver.authorization import Rbac
from shallop.embedded.apiserver.client import LocalClient
from shallop.embedded.apiserver.converting import Converter
from shallop.embedded.apiserver.crds import CrdController
from shallop.embedded.apiserver.escalation import check_escalation
from shallop.embedded.apiserver.event_retention import EventRetention
from shallop.embedded.apiserver.objects_store import ObjectsStore
from shallop.embedded.apiserver.quota_status import QuotaController
from shallop.embedded.apiserver.rbac_defaults import AggregationController, render_default_rbac
from shallop.embedded.apiserver.requests import User
from shallop.embedded.apiserver.resources import Registry
from shallop.embedded.apiserver.reviews import review
from shallop.embedded.apiserver.service_accounts import check_service_account
from shallop.embedded.apiserver.subresources import Subresources
from shallop.embedded.apiserver.tokens import Tokens
from shallop.embedded.apiserver.verbs import Verbs
from shallop.embedded.apiserver.webhook_calls import ResolveService, WebhookCaller
from shallop.errors import NotFoundError
from shallop.kube.node import NodeApi
from shallop.kube.objects import Object, annotations_of, gvk_of

__all__ = ["ApiServer"]

_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease", "kubeflow")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ApiServer:
    """
    A Kubernetes API server in this process.

    Args:
        path: the database of objects; None = in memory only.
        admin_token: bearer token of the administrator.
        key_file: private key that signs tokens of service accounts; None = one for the life of this process.
        node: access to logs of Pods; may also be set later as ``server.node``.
        resolve_service: ``(namespace, name, port name or number) -> (host, port)`` of an endpoint, None when there is
            none; for ``services/NAME/proxy``.
        hosts: names that a Host header may carry besides loopback and the names of the API inside Pods.
        users: further bearer tokens.
        synchronous: whether a commit waits for the disk, see Settings.
        now: aware UTC clock.

    Serve ``asgi`` with any ASGI server between ``start`` and ``stop``; both run on the loop that serves.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        admin_token: str,
        key_file: Path | None = None,
        node: NodeApi | None = None,
        resolve_service: ResolveService | None = None,
        hosts: Iterable[str] = (),
        users: Mapping[str, User] | None = None,
        synchronous: str = "normal",
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.registry = Registry()
        self.store = ObjectsStore(path, synchronous=synchronous)
        self._webhooks = WebhookCaller(resolve_service)
        converter = Converter(self._webhooks)
        self.verbs = Verbs(self.store, self.registry, now, converter)
        self.tokens = Tokens(self.store, admin_token, key_file, now, users)
        self.subresources = Subresources(self.verbs, self.registry, self.tokens.issue)
        self._crds = CrdController(self.store, self.registry, self.verbs, now)
        self._quotas = QuotaController(self.verbs.quotas, self.registry, self.verbs)
        self._roles = AggregationController(self.store, self.registry, self.verbs)
        self._events = EventRetention(self.store)
        rbac = Rbac(self.store)
        self.verbs.checks.append(partial(check_escalation, rbac))
        self.verbs.checks.append(partial(check_service_account, self.store))
        self._app = App(self.verbs, self.subresources, self.registry, self.tokens, rbac, hosts)
        self._app.node = node
        self._app.resolve_service = resolve_service
        self._plugins = AdmissionPlugins(self.store, self.registry, self._webhooks, converter, rbac)
        self.verbs.plugins = self._plugins
        self._review = lambda resource, namespace, body, user: review(
            resource, namespace, body, user, self.tokens, rbac, now()
        )

    @property
    def asgi(self) -> ASGIApp:
        return self._app

    @property
    def node(self) -> NodeApi | None:
        return self._app.node

    @node.setter
    def node(self, node: NodeApi | None) -> None:
        self._app.node = node

    def client(self, *, field_manager: str = "shallop") -> LocalClient:
        return LocalClient(
            self.verbs, self.subresources, self.registry, field_manager=field_manager, review=self._review
        )

    async def start(self) -> None:
        """Start writing and create what every cluster has."""
        self.store.start()
        self._crds.start()
        client = self.client()
        for obj in _first_objects():
            await _ensure(client, obj)
        await asyncio.gather(*(_ensure_role(client, obj) for obj in render_default_rbac()))
        await self._roles.start()
        self._quotas.start()
        self._events.start()

    async def stop(self) -> None:
        """End all watches, write what is under way, close the database."""
        await self._events.stop()
        await self._quotas.stop()
        await self._roles.stop()
        await self._crds.stop()
        await self.store.stop()
        await self._webhooks.stop()

    async def register_kinds(self, kinds: Iterable[Kind]) -> None:
        """Serve kinds of ours: their CRDs are stored, their admission functions run in this process."""
        ours = [kind for kind in kinds if kind.schema is not None]
        for kind in ours:
            self.registry.admission[kind.gvk] = (kind.default, kind.validate)
            if kind.held is not None:
                self.registry.held[kind.gvk] = kind.held
        client = self.client()
        merged: dict[str, Object] = {}
        for kind in ours:
            crd = kind.crd()
            name = crd["metadata"]["name"]
            if name in merged:
                # Two versions of one kind are declared as two Kinds: the first one is the stored version.
                crd["spec"]["versions"][0]["storage"] = False
                merged[name]["spec"]["versions"] += crd["spec"]["versions"]
            else:
                merged[name] = crd
        await asyncio.gather(*(client.apply(crd) for crd in merged.values()))
        for crd in merged.values():
            stored = self.store.get("customresourcedefinitions.apiextensions.k8s.io", "", crd["metadata"]["name"])
            if stored is not None:
                self.registry.add_crd(stored.object)
        missing = [kind for kind in ours if self.registry.by_gvk(kind.gvk) is None]
        while missing:
            await asyncio.sleep(0.002)
            missing = [kind for kind in missing if self.registry.by_gvk(kind.gvk) is None]


def _first_objects() -> Iterable[Object]:
    for name in _NAMESPACES:
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": KUBERNETES_IP,
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    }
    for name, value in (("system-cluster-critical", 2000000000), ("system-node-critical", 2000001000)):
        yield {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
        }


async def _ensure_role(client: LocalClient, obj: Object) -> None:
    """Create a default role or binding, or give it what this version adds, unless its annotation forbids that."""
    try:
        known = await client.get(gvk_of(obj), obj["metadata"]["name"])
    except NotFoundError:
        await client.create(obj)
        return
    if annotations_of(known).get("rbac.authorization.kubernetes.io/autoupdate") != "true" or "aggregationRule" in obj:
        return
    added = {
        key: [*(known.get(key) or ()), *missing]
        for key in ("rules", "subjects")
        if (missing := [item for item in obj.get(key) or () if item not in (known.get(key) or ())])
    }
    if added:
        await client.update(known | added)


async def _ensure(client: LocalClient, obj: Object) -> None:
    metadata = obj["metadata"]
    try:
        await client.get(gvk_of(obj), metadata["name"], metadata.get("namespace", ""))
    except NotFoundError:
        await client.create(obj)
