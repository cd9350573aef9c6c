"""
What the storage initializer needs to know to reach an object store: variables from Secrets; pure.

Two ways, as in KServe: the Secrets of the Pod's ServiceAccount, by the names of their keys, and
``spec.predictor.model.storage``, which names a key of the Secret ``storage-config``. Values stay in their Secrets: a
Pod refers to them.

Source: KServe 0.21 credentials builder; key and annotation names.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

from shallop.errors import ShallopError
from shallop.kube.objects import Object, annotations_of

__all__ = ["CredentialsError", "env_of_config", "env_of_pull_secrets", "env_of_secrets", "storage_of_config"]

# Keys of Secrets that are variables of the initializer by themselves.
_KEYS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"),
    *("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ACCESS_KEY", "GOOGLE_OAUTH_ACCESS_TOKEN"),
    *(f"{start}_{end}" for start in ("AZ", "AZURE") for end in ("CLIENT_ID", "CLIENT_SECRET", "TENANT_ID")),
)
# Files, as KServe calls them, that are variables of the initializer.
_FILES = {"gcloud-application-credentials.json": "GOOGLE_APPLICATION_CREDENTIALS_JSON"}
_ANNOTATIONS = {
    "s3-endpoint": "S3_ENDPOINT",
    "s3-region": "AWS_DEFAULT_REGION",
    "s3-usehttps": "S3_USE_HTTPS",
    "s3-verifyssl": "S3_VERIFY_SSL",
    "s3-usevirtualbucket": "S3_USER_VIRTUAL_BUCKET",
    "s3-useanoncredential": "awsAnonymousCredential",
    "s3-cabundle": "AWS_CA_BUNDLE",
}
_PREFIX = "serving.kserve.io/"


class CredentialsError(ShallopError):
    """``spec.predictor.model.storage`` names what is not there; the message says what and where."""


def env_of_secrets(secrets: Iterable[Object]) -> list[dict[str, Any]]:
    """Return variables for what the Secrets of a ServiceAccount hold; of two Secrets the first wins."""
    env: dict[str, dict[str, Any]] = {}
    for secret in secrets:
        name, data = secret["metadata"]["name"], secret.get("data") or {}
        for key, variable in (*((key, key) for key in _KEYS), *_FILES.items()):
            if key in data:
                reference = {"secretKeyRef": {"name": name, "key": key}}
                env.setdefault(variable, {"name": variable, "valueFrom": reference})
        if "https-host" in data and "headers" in data:
            header = f"{_text(data['https-host'])}-headers"
            env.setdefault(header, {"name": header, "valueFrom": {"secretKeyRef": {"name": name, "key": "headers"}}})
        for mark, variable in _ANNOTATIONS.items():
            if value := annotations_of(secret).get(_PREFIX + mark):
                env.setdefault(variable, {"name": variable, "value": value})
    return list(env.values())


def env_of_pull_secrets(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return variables by which the initializer knows the credentials of image registries."""
    return [
        {
            "name": f"OCI_DOCKER_CONFIG_{index}",
            "valueFrom": {"secretKeyRef": {"name": name, "key": ".dockerconfigjson", "optional": True}},
        }
        for index, name in enumerate(names)
    ]


def storage_of_config(storage: Mapping[str, Any], secret: Object | None, name: str) -> tuple[str, list[dict[str, Any]]]:
    """
    Return the URI and the variables of ``model.storage``.

    Args:
        storage: the block of the specification: key, path, parameters.
        secret: the Secret that holds configurations, None when there is none.
        name: of that Secret.

    Raises:
        CredentialsError: the Secret, its key or what it must say is missing.
    """
    where, parameters = "spec.predictor.model.storage", dict(storage.get("parameters") or {})
    data = (secret or {}).get("data") or {}
    kind = parameters.get("type") or ""
    wanted = [storage["key"]] if storage.get("key") else [f"default_{kind}", "default"]
    key = next((item for item in wanted if item in data), "")
    if not key and not kind:
        raise CredentialsError(f"{where}.key: Secret {name!r} has no key {wanted[0]!r}; create it, or name another")
    config: dict[str, Any] = _config(where, name, key, data[key]) if key else {}
    kind = str(parameters.get("type") or config.get("type") or "")
    bucket, path = parameters.get("bucket") or config.get("bucket") or "", str(storage.get("path") or "").strip("/")
    if kind not in ("s3", "gs", "hf"):
        raise CredentialsError(f"{where}: storage of type {kind or 'unknown'!r} is not supported; use s3, gs or hf")
    env = [{"name": "STORAGE_OVERRIDE_CONFIG", "value": json.dumps(parameters, sort_keys=True)}] if parameters else []
    if key:
        reference = {"secretKeyRef": {"name": name, "key": key}}
        env.append({"name": "STORAGE_CONFIG", "valueFrom": reference})  # type: ignore[dict-item]
    return f"{kind}://{'/'.join(part for part in (bucket, path) if part)}", env


def env_of_config(where: str, storage: Mapping[str, Any], secret: Object | None, name: str) -> list[dict[str, Any]]:
    """
    Return the variables of a block that names a key of the Secret of storage configurations.

    Args:
        where: path of the block, for messages.

    Raises:
        CredentialsError: there is no such key.
    """
    key, parameters = str(storage.get("key") or ""), dict(storage.get("parameters") or {})
    if key not in ((secret or {}).get("data") or {}):
        raise CredentialsError(f"{where}.key: Secret {name!r} has no key {key!r}; create it, or name another")
    env: list[dict[str, Any]] = [{"name": "STORAGE_CONFIG", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}]
    override = {"name": "STORAGE_OVERRIDE_CONFIG", "value": json.dumps(parameters, sort_keys=True)}
    return [*env, override] if parameters else env


def _config(where: str, name: str, key: str, data: str) -> dict[str, Any]:
    try:
        config = json.loads(_text(data))
    except ValueError as error:
        raise CredentialsError(f"{where}: key {key!r} of Secret {name!r} is no JSON object: {error}") from error
    if not isinstance(config, dict):
        raise CredentialsError(f"{where}: key {key!r} of Secret {name!r} is no JSON object")
    return config


def _text(data: str) -> str:
    try:
        return base64.b64decode(data).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
