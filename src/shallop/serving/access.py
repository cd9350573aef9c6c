"""How a Pod that brings a model reaches it: what Secrets and accounts of its namespace say."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from shallop.controller.manager import Context
from shallop.errors import NotFoundError
from shallop.kube.objects import Gvk, Object, annotations_of
from shallop.serving.credentials import env_of_config, env_of_pull_secrets, env_of_secrets, storage_of_config

__all__ = ["account_env", "configured_env", "configured_storage", "logger_env"]

SECRET, SERVICE_ACCOUNT = Gvk("v1", "Secret"), Gvk("v1", "ServiceAccount")


async def configured_storage(
    ctx: Context, obj: Object, namespace: str, block: Mapping[str, Any]
) -> tuple[str, list[dict[str, Any]]]:
    """
    Read the URI and the variables of a ``storage`` block from the Secret of storage configurations.

    Args:
        obj: may name another Secret by its annotation.

    Raises:
        CredentialsError: what the block names is not there.
    """
    name, secret = await _config_secret(ctx, obj, namespace)
    return storage_of_config(block, secret, name)


async def configured_env(
    ctx: Context, obj: Object, namespace: str, where: str, block: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """
    Read the variables alone of a ``storage`` block.

    Args:
        obj: may name another Secret by its annotation.
        where: path of the block, for messages.

    Raises:
        CredentialsError: what the block names is not there.
    """
    name, secret = await _config_secret(ctx, obj, namespace)
    return env_of_config(where, block, secret, name)


async def _config_secret(ctx: Context, obj: Object, namespace: str) -> tuple[str, Object | None]:
    name = annotations_of(obj).get("serving.kserve.io/storageSecretName", "storage-config")
    with contextlib.suppress(NotFoundError):
        return name, await ctx.client.get(SECRET, name, namespace)
    return name, None


async def logger_env(ctx: Context, service: Object, component: str) -> list[dict[str, Any]]:
    """
    Return the variables by which the logger of a component reaches the bucket that it writes to.

    Raises:
        CredentialsError: its storage block names what is not there.
    """
    logger = service["spec"][component].get("logger") or {}
    if not str(logger.get("url") or "").startswith("s3://"):
        return []
    block, namespace = logger.get("storage") or {}, service["metadata"]["namespace"]
    env = await account_env(ctx, namespace, block.get("serviceAccountName") or "logger-sa")
    if not block:
        return env
    where = f"spec.{component}.logger.storage"
    return [*env, *await configured_env(ctx, service, namespace, where, block)]


async def account_env(
    ctx: Context, namespace: str, account: str, pull_secrets: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """
    Return the variables that the Secrets of a ServiceAccount stand for.

    Args:
        pull_secrets: names of Secrets with credentials of image registries; those of the account come after them.
    """
    secrets = []
    try:
        found = await ctx.client.get(SERVICE_ACCOUNT, account, namespace)
    except NotFoundError:
        return env_of_pull_secrets(pull_secrets)  # the Pod says so itself when the account does not come
    for reference in found.get("secrets") or ():
        with contextlib.suppress(NotFoundError):
            secrets.append(await ctx.client.get(SECRET, reference["name"], namespace))
    pull = dict.fromkeys([*pull_secrets, *(item["name"] for item in found.get("imagePullSecrets") or ())])
    return [*env_of_secrets(secrets), *env_of_pull_secrets(pull)]
