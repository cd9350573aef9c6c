"""
What the unmodified ``model-registry`` client sees of a server with several users; prints the writer's token at the end.

``python model_registry_users_session.py PORT KUBECONFIG URI``: anna may write, vera read, and bert has no rights.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import kubernetes
from model_registry import ModelRegistry
from mr_openapi.exceptions import ForbiddenException, UnauthorizedException

PORT, KUBECONFIG, URI = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ROLES = {"anna": "edit", "vera": "view", "bert": ""}


def make_users() -> dict[str, str]:
    """Make accounts and bindings; return a token for each."""
    kubernetes.config.load_kube_config(KUBECONFIG)
    core, rbac = kubernetes.client.CoreV1Api(), kubernetes.client.RbacAuthorizationV1Api()
    tokens = {}
    for account, role in ROLES.items():
        core.create_namespaced_service_account("default", {"metadata": {"name": account}})
        binding = {
            "metadata": {"name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "default"}],
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": f"kubeflow-model-registry-{role}",
            },
        }
        if role:
            rbac.create_namespaced_role_binding("kubeflow", binding)
        asked = {"spec": {"audiences": [], "expirationSeconds": 3600}}
        tokens[account] = core.create_namespaced_service_account_token(account, "default", asked).status.token
    return tokens


def client(token: str | None) -> ModelRegistry:
    return ModelRegistry("http://127.0.0.1", PORT, author="ann", is_secure=False, user_token=token)


def refused(error: type[Exception], call: Callable[[], Any], text: str) -> None:
    try:
        call()
    except error as found:
        assert text in str(found), found
        return
    raise AssertionError("was not refused")


def register(registry: ModelRegistry, name: str) -> Any:
    return registry.register_model(name, URI, model_format_name="sklearn", model_format_version="1", version="1")


def main() -> None:
    tokens = make_users()
    # A client lists models when it is made.
    refused(UnauthorizedException, lambda: client(None), "several users")
    refused(UnauthorizedException, lambda: client("wrong"), "unknown")
    refused(ForbiddenException, lambda: client(tokens["bert"]), "'kubeflow-model-registry-view'")
    anna, vera = client(tokens["anna"]), client(tokens["vera"])
    assert register(anna, "flights").name == "flights"
    artifact = anna.get_model_artifact("flights", "1")
    assert artifact is not None
    assert artifact.uri == URI
    found = vera.get_registered_model("flights")
    assert found is not None
    found.description = "changed"
    refused(ForbiddenException, lambda: vera.update(found), "may not patch services/proxy")
    refused(ForbiddenException, lambda: register(vera, "other"), "'kubeflow-model-registry-edit'")
    print(tokens["anna"])


if __name__ == "__main__":
    main()
