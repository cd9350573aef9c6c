"""
How the object stores of pipeline roots are reached: ConfigMap ``kfp-launcher`` and the Secrets that it names.

Its ``providers`` is YAML: per provider (``s3``, ``minio``, ``gs``, ``azure``) a ``default`` and, for single buckets or
prefixes, ``overrides``. ``defaultPipelineRoot`` is for runs and pipelines that name none.

Source: the configuration of object stores in the KFP documentation; ``azure`` is ours.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import yaml

from shallop.errors import NotFoundError, ObjectStoreError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk
from shallop.store.objects import Access, ObjectUri, parse_object_uri

__all__ = ["CONFIG_MAP", "access_to", "default_root", "select_provider"]

CONFIG_MAP = "kfp-launcher"
_NAMES = {"s3": "s3", "minio": "minio", "gs": "gs", "az": "azure", "azure": "azure"}
# field of secretRef that names a key of the Secret -> what obstore calls its value
_KEYS = {
    "s3": {"accessKeyKey": "access_key_id", "secretKeyKey": "secret_access_key", "sessionTokenKey": "session_token"},
    "gs": {"tokenKey": "service_account_key"},
    "az": {"accountNameKey": "account_name", "accountKeyKey": "account_key", "sasTokenKey": "sas_key"},
}
_MINIO: dict[str, Any] = {
    "endpoint": "http://minio-service.kubeflow:9000",
    "credentials": {
        "secretRef": {
            "secretName": "mlpipeline-minio-artifact",
            "accessKeyKey": "accesskey",
            "secretKeyKey": "secretkey",
        }
    },
}
_CONFIG_MAP = Gvk("v1", "ConfigMap")
_SECRET = Gvk("v1", "Secret")


async def _config(client: Client, namespace: str) -> Mapping[str, str]:
    try:
        data: Mapping[str, str] = (await client.get(_CONFIG_MAP, CONFIG_MAP, namespace)).get("data") or {}
    except NotFoundError:
        return {}
    return data


async def default_root(client: Client, namespace: str) -> str:
    """Return the pipeline root of runs that name none; empty = the server's own directory."""
    return (await _config(client, namespace)).get("defaultPipelineRoot", "").strip()


async def access_to(client: Client, namespace: str, uri: str) -> Access:
    """
    Return how the bucket of a URI is reached.

    Raises:
        ObjectStoreError: the configuration, or a Secret that it names, cannot be used.
    """
    place = parse_object_uri(uri)
    where = f"ConfigMap {namespace}/{CONFIG_MAP}: providers"
    try:
        providers = yaml.safe_load((await _config(client, namespace)).get("providers", "")) or {}
    except yaml.YAMLError as error:
        raise ObjectStoreError(f"{where}: not YAML: {error}") from error
    if not isinstance(providers, dict):
        raise ObjectStoreError(f"{where}: must be a map such as 's3: {{default: ...}}'.")
    provider = select_provider(providers, place)
    credentials = provider.get("credentials") or {}
    reference = {} if credentials.get("fromEnv") else credentials.get("secretRef") or {}
    endpoint = str(provider.get("endpoint") or "")
    if endpoint and "://" not in endpoint and provider.get("disableSSL"):
        endpoint = f"http://{endpoint}"
    return Access(
        endpoint=endpoint,
        region=str(provider.get("region") or ""),
        path_style=bool(provider.get("forcePathStyle", True)),
        credentials=await _read_secret(client, namespace, reference, place),
    )


def select_provider(providers: Mapping[str, Any], place: ObjectUri) -> Mapping[str, Any]:
    """Choose the override with the longest prefix that fits the place, else the default of its provider."""
    entry = providers.get(_NAMES[place.scheme]) or {}
    fitting = [
        one
        for one in entry.get("overrides") or []
        if one.get("bucketName") == place.bucket
        and f"{place.key}/".startswith(f"{str(one.get('keyPrefix', '')).strip('/')}/".lstrip("/"))
    ]
    if fitting:
        best: Mapping[str, Any] = max(fitting, key=lambda one: len(str(one.get("keyPrefix", ""))))
        return best
    default: Mapping[str, Any] = entry.get("default") or (_MINIO if place.scheme == "minio" else {})
    return default


async def _read_secret(
    client: Client, namespace: str, reference: Mapping[str, Any], place: ObjectUri
) -> dict[str, str]:
    if not reference:
        return {}
    name = str(reference.get("secretName", ""))
    try:
        data = (await client.get(_SECRET, name, namespace)).get("data") or {}
    except NotFoundError:
        raise ObjectStoreError(
            f"Secret {namespace}/{name}: not there; ConfigMap {CONFIG_MAP} names it for {place.scheme}://{place.bucket}."
        ) from None
    values: dict[str, str] = {}
    for field, target in _KEYS[place.family].items():
        if key := reference.get(field):
            if key not in data:
                raise ObjectStoreError(f"Secret {namespace}/{name}: has no key {key!r}; {field} names it.")
            values[target] = base64.b64decode(data[key]).decode()
    return values
