"""Writes what is used into the status of ResourceQuotas."""

from __future__ import annotations

import asyncio
import logging

from shallop.embedded.apiserver.quota import Quotas
from shallop.embedded.apiserver.resources import Registry
from shallop.embedded.apiserver.verbs import Verbs
from shallop.errors import ApiError, NotFoundError
from shallop.kube.objects import Gvk, Object

__all__ = ["QuotaController"]

log = logging.getLogger(__name__)


class QuotaController:
    """Follows the counters of ``Quotas``; changes that come together are written once."""

    def __init__(self, quotas: Quotas, registry: Registry, verbs: Verbs) -> None:
        self._quotas = quotas
        self._registry = registry
        self._verbs = verbs
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="resource quotas")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._quotas.changed.wait()
            self._quotas.changed.clear()
            while self._quotas.dirty:
                namespace, name = next(iter(self._quotas.dirty))
                del self._quotas.dirty[(namespace, name)]
                try:
                    await self._write(namespace, name)
                except NotFoundError:
                    continue
                except ApiError as error:
                    log.warning("ResourceQuota %s/%s: %s", namespace, name, error)

    async def _write(self, namespace: str, name: str) -> None:
        resource = self._registry.by_gvk(Gvk("v1", "ResourceQuota"))
        if resource is None:
            return

        def change(old: Object) -> Object | None:
            status = self._quotas.status(namespace, name)
            if status is None or status == old.get("status"):
                return None
            return old | {"status": status}

        await self._verbs.change(resource, namespace, name, change)
