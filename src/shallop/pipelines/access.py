"""
Who may do what on a multi-user server.

What a caller may do is what RBAC says of the resources of ``pipelines.kubeflow.org`` in a namespace. A single-user
server asks nobody, and its rows are in no namespace.

Source: the multi-user mode of Kubeflow Pipelines: resources and verbs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from shallop.controller import Callers, Services
from shallop.errors import BadRequestError, ForbiddenError, NotFoundError
from shallop.kube.objects import Gvk, Object

__all__ = ["ROLES", "Access"]

GROUP = "pipelines.kubeflow.org"
_NAMESPACE = Gvk("v1", "Namespace")
_READ = ("get", "list", "readArtifact")
_RESOURCES = ("pipelines", "pipelines/versions", "experiments", "runs", "jobs", "viewers", "visualizations")


def _role(name: str, verbs: tuple[str, ...]) -> Object:
    label = "rbac.authorization.k8s.io/aggregate-to"
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {
            "name": f"kubeflow-pipelines-{name}",
            "labels": {
                f"{label}-{name}": "true",
                f"rbac.authorization.kubeflow.org/aggregate-to-kubeflow-{name}": "true",
            },
        },
        "rules": [{"apiGroups": [GROUP], "resources": list(_RESOURCES), "verbs": list(verbs)}],
    }


# Whoever may ``edit`` or ``view`` a namespace may do the same with its pipelines.
ROLES = (_role("edit", ("*",)), _role("view", _READ))


class Access:
    """Answers for one server; all methods of a single-user server let everything pass."""

    def __init__(self, services: Services) -> None:
        self.is_multi_user = services.settings.multi_user
        self._client = services.client
        self._callers = Callers(services.client, services.settings.proxy_secret_file)

    def authenticated(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Any]:
        """Wrap a handler: only known callers reach it."""

        async def known(request: Request) -> Response:
            request.state.caller = await self._callers.identify(request.headers)
            return await handler(request)

        return known

    async def place(self, request: Request, verb: str, resource: str, namespace: str) -> str:
        """
        Return the namespace of a new row; empty on a single-user server.

        Raises:
            BadRequestError: a multi-user server needs one.
            ForbiddenError: the caller may not.
            NotFoundError: there is no such namespace.
        """
        if not self.is_multi_user:
            return ""
        if not namespace:
            raise BadRequestError("namespace: required, this server has several users; send the one to work in.")
        await self._require(request, verb, resource, namespace)
        await self._require_namespace(namespace)
        return namespace

    async def selection(self, request: Request, resource: str, namespace: str) -> str | None:
        """Return the namespace whose rows are listed, None = all; errors as ``place``."""
        return await self.place(request, "list", resource, namespace) if self.is_multi_user else None

    async def allow(self, request: Request, verb: str, resource: str, row: Mapping[str, Any]) -> None:
        """
        Let a caller do something with a row that exists.

        Raises:
            ForbiddenError: the caller may not.
        """
        await self.check(request, verb, resource, row["namespace"])

    async def check(self, request: Request, verb: str, resource: str, namespace: str) -> None:
        """Let a caller do something in a namespace; empty = what is shared by all namespaces."""
        if self.is_multi_user:
            await self._require(request, verb, resource, namespace)

    async def share(self, request: Request, verb: str, namespace: str) -> str:
        """Return the namespace of pipelines, where none means that they are shared: everybody may read those."""
        if self.is_multi_user and namespace:
            return await self.place(request, verb, "pipelines", namespace)
        await self.allow_pipeline(request, verb, {"namespace": ""})
        return ""

    async def allow_pipeline(self, request: Request, verb: str, row: Mapping[str, Any]) -> None:
        """Let a caller do something with a pipeline; errors as ``allow``."""
        if row["namespace"] or verb not in _READ:
            await self.allow(request, verb, "pipelines", row)

    async def _require(self, request: Request, verb: str, resource: str, namespace: str) -> None:
        try:
            await self._callers.require(request.state.caller, verb, GROUP, resource, namespace)
        except ForbiddenError as error:
            raise ForbiddenError(
                f"{error.message[:-1]}: ask for a RoleBinding to the ClusterRole 'kubeflow-pipelines-edit' or "
                "'kubeflow-pipelines-view'."
            ) from error

    async def _require_namespace(self, namespace: str) -> None:
        try:
            await self._client.get(_NAMESPACE, namespace)
        except NotFoundError:
            raise NotFoundError(
                f"namespace: no namespace {namespace!r}; create it with 'kubectl create namespace {namespace}'."
            ) from None
