"""Who calls, over the real API server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shallop.controller import Callers
from shallop.embedded.apiserver import ApiServer
from shallop.errors import ForbiddenError, SettingsError, UnauthorizedError
from shallop.kube.client import Client

SECRET = "0123456789abcdef"
PIPELINES = "pipelines.kubeflow.org"


def with_api(go: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        server = ApiServer(None, admin_token="of-the-administrator")
        await server.start()
        try:
            await go(server.client())
        finally:
            await server.stop()

    asyncio.run(main())


def binding(namespace: str, user: str) -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    role = {
        "apiVersion": f"{group}/v1",
        "kind": "Role",
        "metadata": {"name": "reader", "namespace": namespace},
        "rules": [{"apiGroups": [PIPELINES], "resources": ["runs"], "verbs": ["list"]}],
    }
    bound = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "reader", "namespace": namespace},
        "subjects": [{"kind": "User", "name": user, "apiGroup": group}],
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "reader"},
    }
    return {"apiVersion": "v1", "kind": "List", "items": [role, bound]}


def test_a_proxy_is_believed_that_knows_the_secret(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")

    async def go(client: Client) -> None:
        proxied, plain = Callers(client, str(file)), Callers(client)
        headers = {"kubeflow-userid": "anna@example.com", "x-shallop-proxy-secret": SECRET}
        anna = await proxied.identify(headers)
        assert anna == {"username": "anna@example.com", "groups": ["system:authenticated"]}
        for callers, changed in (
            (proxied, {"x-shallop-proxy-secret": "0123456789abcdeg"}),
            (proxied, {"x-shallop-proxy-secret": ""}),
            (proxied, {"kubeflow-userid": ""}),
            (proxied, {"kubeflow-userid": "system:admin"}),
            (plain, {}),
        ):
            with pytest.raises(UnauthorizedError):
                await callers.identify(headers | changed)

        for name in ("team-a", "team-b"):
            await client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for obj in binding("team-a", "anna@example.com")["items"]:
            await client.apply(obj)
        assert await proxied.namespaces(anna, PIPELINES, "runs") == ["team-a"]
        with pytest.raises(ForbiddenError, match=r"'anna@example.com' may not delete runs.* in namespace 'team-a'"):
            await proxied.require(anna, "delete", PIPELINES, "runs", "team-a")
        admin = await plain.identify({"authorization": "Bearer of-the-administrator"})
        assert {"team-a", "team-b"} < set(await plain.namespaces(admin, PIPELINES, "runs"))

    with_api(go)


def test_a_secret_that_others_could_guess_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for text, said in ((None, "No such file"), ("short", "could guess")):
        if text is not None:
            file.write_text(text)
        with pytest.raises(SettingsError, match=said):
            Callers(None, str(file))  # type: ignore[arg-type]
