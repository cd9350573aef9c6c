"""
Who sends a request to a server with several users, and what RBAC lets them do.

A caller is known by a bearer token of the Kubernetes API, or by the header ``kubeflow-userid`` of a proxy that has
signed people in and proves by a shared secret that it is the one; anybody else on this machine could send that header.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shallop.errors import ForbiddenError, SettingsError, UnauthorizedError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk
from shallop.settings import Settings

__all__ = ["PROXY_SECRET_HEADER", "USER_HEADER", "Callers", "own_headers"]

USER_HEADER = "kubeflow-userid"
PROXY_SECRET_HEADER = "x-shallop-proxy-secret"
# Tokens that Pods of upstream's manifests carry are made for the first, kubectl's for the second.
_AUDIENCES = ("pipelines.kubeflow.org", "https://kubernetes.default.svc.cluster.local")
_MIN_SECRET = 16
_NAMESPACE = Gvk("v1", "Namespace")


class Callers:
    """
    Answers by the reviews of the Kubernetes API.

    Args:
        proxy_secret_file: what a trusted proxy sends with each request; empty = no proxy is trusted.

    Raises:
        SettingsError: the file cannot be read, or holds less than 16 characters.
    """

    def __init__(self, client: Client, proxy_secret_file: str = "") -> None:
        self._client = client
        self._proxy_secret = _read_secret(proxy_secret_file) if proxy_secret_file else b""

    async def identify(self, headers: Mapping[str, str]) -> Mapping[str, Any]:
        """
        Return the caller, as TokenReviews name it.

        Raises:
            UnauthorizedError: nobody that is known here.
        """
        if self._proxy_secret and headers.get(PROXY_SECRET_HEADER):
            return self._of_proxy(headers)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise UnauthorizedError(
                "This server has several users: send 'Authorization: Bearer TOKEN', a token of the Kubernetes API such "
                "as 'kubectl create token ACCOUNT' prints."
            )
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
        spec = {"token": token.strip(), "audiences": list(_AUDIENCES)}
        status = (await self._client.create(review | {"spec": spec})).get("status") or {}
        if not status.get("authenticated"):
            raise UnauthorizedError("The bearer token is unknown, has expired, or its ServiceAccount is gone.")
        user: Mapping[str, Any] = status["user"]
        return user

    def _of_proxy(self, headers: Mapping[str, str]) -> Mapping[str, Any]:
        given = headers[PROXY_SECRET_HEADER].encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._proxy_secret):
            raise UnauthorizedError(f"{PROXY_SECRET_HEADER}: not the secret that this server was started with.")
        user = headers.get(USER_HEADER, "").strip()
        if not user or user.startswith("system:"):
            raise UnauthorizedError(f"{USER_HEADER}: the proxy must name a person here; 'system:' names are no people.")
        return {"username": user, "groups": ["system:authenticated"]}

    async def may(
        self, caller: Mapping[str, Any], verb: str, group: str, resource: str, namespace: str, name: str = ""
    ) -> bool:
        """
        Say whether RBAC lets a caller do something.

        Args:
            resource: with a subresource after a slash, if it is of one.
            namespace: empty = in all of them.
            name: of one object; empty = of all.
        """
        plural, _, subresource = resource.partition("/")
        attributes = {"group": group, "resource": plural, "verb": verb, "namespace": namespace}
        attributes |= {"subresource": subresource, "name": name}
        spec = {
            "user": caller.get("username", ""),
            "groups": caller.get("groups") or [],
            "resourceAttributes": attributes,
        }
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        return bool(((await self._client.create(review)).get("status") or {}).get("allowed"))

    async def require(self, caller: Mapping[str, Any], verb: str, group: str, resource: str, namespace: str) -> None:
        """
        Let a caller do something.

        Raises:
            ForbiddenError: RBAC does not.
        """
        if not await self.may(caller, verb, group, resource, namespace):
            where = f"in namespace {namespace!r}" if namespace else "in all namespaces"
            raise ForbiddenError(f"User {caller.get('username', '')!r} may not {verb} {resource}.{group} {where}.")

    async def namespaces(self, caller: Mapping[str, Any], group: str, resource: str) -> list[str]:
        """Return the namespaces in which a caller may list something."""
        names = sorted(str(item["metadata"]["name"]) for item in (await self._client.list(_NAMESPACE)).items)
        if await self.may(caller, "list", group, resource, ""):
            return names
        return [name for name in names if await self.may(caller, "list", group, resource, name)]


async def own_headers(settings: Settings) -> dict[str, str]:
    """Return what a part sends with its requests to the REST APIs of its own platform: it acts as the administrator."""
    if not settings.multi_user:
        return {}
    token = await asyncio.to_thread((settings.home / "token").read_text)
    return {"Authorization": f"Bearer {token.strip()}"}


def _read_secret(file: str) -> bytes:
    try:
        secret = Path(file).read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"proxy_secret_file: {file}: {error.strerror}.") from error
    if len(secret) < _MIN_SECRET:
        raise SettingsError(f"proxy_secret_file: {file}: less than {_MIN_SECRET} characters; others could guess it.")
    return secret
