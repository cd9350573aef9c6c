"""Resolving ``model-registry://`` through the registry's public REST API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from shallop.errors import ShallopError, UnavailableError
from shallop.serving.storage import REGISTRY, check_uri, parse_registry_uri

__all__ = ["Fetch", "ModelNotFoundError", "http_fetch", "resolve_model"]

Fetch = Callable[[str, Mapping[str, str]], Awaitable[dict[str, Any] | None]]
"""Gets a path of the registry API with query parameters; None when there is nothing."""

_TIMEOUT_S = 10.0


class ModelNotFoundError(ShallopError):
    """The registry does not have what the URI names; the message says which part."""


async def resolve_model(uri: str, fetch: Fetch) -> str:
    """
    Return the URI of the newest model artifact that ``model-registry://`` names.

    Raises:
        ModelNotFoundError: no such model, version or artifact, or an artifact without URI.
        UnavailableError: the registry does not answer.
    """
    reference = parse_registry_uri(uri)
    if reference.host:
        raise ModelNotFoundError(f"{uri}: {reference.host} is not this platform's registry; leave the host out")
    model = await fetch("registered_model", {"name": reference.model})
    if model is None:
        raise ModelNotFoundError(f"{uri}: the registry has no model {reference.model!r}")
    version = await _version(fetch, model, reference.version)
    if version is None:
        what = f"version {reference.version!r}" if reference.version else "version"
        raise ModelNotFoundError(f"{uri}: model {reference.model!r} has no {what} in the registry")
    artifacts = await fetch(f"model_versions/{version['id']}/artifacts", _NEWEST | {"artifactType": "model-artifact"})
    items = (artifacts or {}).get("items") or []
    found = str(items[0].get("uri") or "") if items else ""
    if not found or found.startswith(REGISTRY) or check_uri(found):
        raise ModelNotFoundError(
            f"{uri}: version {version['name']!r} has no artifact with the URI of a model: {found!r}"
        )
    return found


_NEWEST = {"orderBy": "CREATE_TIME", "sortOrder": "DESC", "pageSize": "1"}


async def _version(fetch: Fetch, model: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    if name:
        return await fetch("model_version", {"name": name, "parentResourceId": model["id"]})
    versions = await fetch(f"registered_models/{model['id']}/versions", _NEWEST)
    items = (versions or {}).get("items") or []
    return items[0] if items else None


def http_fetch(base_url: str, headers: Mapping[str, str] | None = None) -> Fetch:
    """Return a Fetch over HTTP; ``base_url`` is the origin of the registry, ``headers`` go with each request."""

    async def fetch(path: str, params: Mapping[str, str]) -> dict[str, Any] | None:
        url = f"{base_url}/api/model_registry/v1/{path}"
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
                session.get(url, params=params) as response,
            ):
                if response.status == 404:
                    return None
                if response.status != 200:
                    raise UnavailableError(f"model registry {base_url}: {path} answered {response.status}")
                body: dict[str, Any] = await response.json()
                return body
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError(f"model registry {base_url} does not answer: {error}") from error

    return fetch
