"""
Who may use the registry of a server with several users; a single-user server asks nobody.

There is one registry for all namespaces. RBAC says of the Service by which clients reach it who may read (``get`` it)
and who may write (``create`` or ``patch`` its ``services/proxy``, as for requests through the Kubernetes API).

Source: Kubeflow Model Registry's pages and the proxies before it ask whether a caller may ``get`` that Service.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from shallop.controller import Callers, Services
from shallop.errors import ForbiddenError
from shallop.kube.objects import Object

__all__ = ["ROLES", "Access"]

_SERVICE, _NAMESPACE = "model-registry-service", "kubeflow"
_WRITES = {"POST": "create", "PATCH": "patch"}


def _role(name: str, *rules: tuple[str, tuple[str, ...]]) -> Object:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": f"kubeflow-model-registry-{name}"},
        "rules": [
            {"apiGroups": [""], "resources": [resource], "resourceNames": [_SERVICE], "verbs": list(verbs)}
            for resource, verbs in rules
        ],
    }


_READ = ("services", ("get",))
# To be bound in the namespace of the registry; whoever may ``view`` or ``edit`` that has the same rights.
ROLES = (_role("view", _READ), _role("edit", _READ, ("services/proxy", tuple(_WRITES.values()))))


class Access:
    """Answers for one server."""

    def __init__(self, services: Services) -> None:
        self._is_multi_user = services.settings.multi_user
        self._callers = Callers(services.client, services.settings.proxy_secret_file)

    async def check(self, request: Request) -> None:
        """
        Let a request pass.

        Raises:
            UnauthorizedError: nobody that is known here sends it.
            ForbiddenError: the caller may not.
        """
        if not self._is_multi_user:
            return
        caller = await self._callers.identify(request.headers)
        verb = _WRITES.get(request.method, "get")
        resource = "services/proxy" if request.method in _WRITES else "services"
        if not await self._callers.may(caller, verb, "", resource, _NAMESPACE, _SERVICE):
            raise ForbiddenError(_refusal(caller, verb, resource))


def _refusal(caller: Mapping[str, Any], verb: str, resource: str) -> str:
    role = ROLES[resource != "services"]["metadata"]["name"]
    return (
        f"User {caller.get('username', '')!r} may not {verb} {resource} {_SERVICE!r} in namespace {_NAMESPACE!r}: ask "
        f"for a RoleBinding there to the ClusterRole {role!r}."
    )
