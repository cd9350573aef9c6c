"""Calls of users' webhooks over HTTPS: by URL, or to an endpoint of a Service."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from shallop.kube.objects import Object

__all__ = ["CallFailedError", "ResolveService", "WebhookCaller"]

ResolveService = Callable[[str, str, str], tuple[str, int] | None]


class CallFailedError(Exception):
    """A webhook could not be asked, or what it said is no answer."""


class _Target(NamedTuple):
    url: str
    host: str
    context: ssl.SSLContext


class WebhookCaller:
    """
    Asks webhooks, on connections that are kept.

    Args:
        resolve_service: finds an endpoint of a Service; None where there are no Services.
    """

    def __init__(self, resolve_service: ResolveService | None) -> None:
        self._resolve_service = resolve_service
        self._session: aiohttp.ClientSession | None = None

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(
        self, config: Object, body: Object, *, agent: str, timeout_s: int, limit: int, prefix: str = ""
    ) -> Any:
        """
        Send ``body`` to where a ``clientConfig`` points, and return the JSON that comes back.

        Args:
            prefix: begins messages about calls that failed.
            limit: bytes that are read of the answer.

        Raises:
            CallFailedError
        """
        target = self._target(config, prefix)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._post(target, body, prefix, agent, timeout_s, limit)
        except TimeoutError as error:
            raise CallFailedError(f"{prefix}no answer within {timeout_s} s from {target.url}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise CallFailedError(f'{prefix}Post "{target.url}": {error}') from error

    async def _post(self, target: _Target, body: Object, prefix: str, agent: str, timeout_s: int, limit: int) -> Any:
        if self._session is None:
            # Proxies of the environment are for the outside; a webhook is part of the cluster.
            self._session = aiohttp.ClientSession(trust_env=False)
        async with self._session.post(
            f"{target.url}?timeout={timeout_s}s",
            json=body,
            headers={"Host": target.host, "Accept": "application/json", "User-Agent": agent},
            ssl=target.context,
            server_hostname=target.host.partition(":")[0],
            allow_redirects=False,
        ) as answer:
            raw = bytearray()
            async for chunk in answer.content.iter_any():
                raw += chunk
                if len(raw) > limit:
                    raise CallFailedError(f"{prefix}the answer has more than {limit} bytes")
            if answer.status != 200:
                raise CallFailedError(f"{prefix}the server answered {answer.status}")
            try:
                return json.loads(raw)
            except ValueError as error:
                raise CallFailedError(f"the answer is no JSON: {error}") from error

    def _target(self, config: Object, prefix: str) -> _Target:
        context = _context(config.get("caBundle") or "")
        if url := config.get("url"):
            return _Target(url, urlsplit(url).netloc, context)
        service = config.get("service") or {}
        namespace, name = service.get("namespace", ""), service.get("name", "")
        port = str(service.get("port") or 443)
        found = None
        if self._resolve_service is not None:
            found = self._resolve_service(namespace, name, port)
        if found is None:
            raise CallFailedError(f'{prefix}no endpoints available for service "{name}"')
        path = "/" + (service.get("path") or "").lstrip("/")
        host, number = found
        return _Target(f"https://{host}:{number}{path}", f"{name}.{namespace}.svc", context)


@lru_cache(maxsize=64)
def _context(bundle: str) -> ssl.SSLContext:
    try:
        authorities = base64.b64decode(bundle).decode() if bundle else None
        return ssl.create_default_context(cadata=authorities)
    except (ValueError, ssl.SSLError) as error:
        raise CallFailedError(f"unable to load root certificates: {error}") from error
