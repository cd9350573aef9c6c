"""The objects that pages show, kept up to date once for all browsers, and the news that they have changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from weakref import WeakKeyDictionary

from shallop.controller import Informer, Store
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object

__all__ = ["INFERENCE_SERVICE", "POD", "Live", "News", "live_of"]

INFERENCE_SERVICE = Gvk("serving.kserve.io/v1beta1", "InferenceService")
POD = Gvk("v1", "Pod")


class News:
    """The kinds that have changed since they were last taken; belongs to one reader."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()
        self._changed = asyncio.Event()

    def add(self, kind: str) -> None:
        self._kinds.add(kind)
        self._changed.set()

    async def wait(self) -> None:
        await self._changed.wait()

    def take(self) -> list[str]:
        """Return the changed kinds in order of name and forget them."""
        kinds = sorted(self._kinds)
        self._kinds.clear()
        self._changed.clear()
        return kinds


class Live:
    """Copies of what pages show, and its readers."""

    def __init__(self) -> None:
        self._stores: dict[Gvk, Store] = {}
        self._readers: set[News] = set()

    async def run(self, client: Client) -> None:
        """Follow the objects until cancelled."""
        async with asyncio.TaskGroup() as group:
            for gvk in (INFERENCE_SERVICE, POD):
                informer = Informer(client, gvk)
                informer.add_handler(partial(self._tell, gvk.kind))
                self._stores[gvk] = informer.store
                group.create_task(informer.run(), name=f"dashboard {gvk.kind}")

    def list(self, gvk: Gvk) -> list[Object]:
        """Return the objects of one kind; none before ``run``."""
        return self._stores[gvk].list() if gvk in self._stores else []

    @contextlib.contextmanager
    def reading(self) -> Iterator[News]:
        """Collect news for one reader."""
        news = News()
        self._readers.add(news)
        try:
            yield news
        finally:
            self._readers.remove(news)

    def _tell(self, kind: str, change: object) -> None:
        for news in self._readers:
            news.add(kind)


_BY_CLIENT: WeakKeyDictionary[Client, Live] = WeakKeyDictionary()


def live_of(client: Client) -> Live:
    """Return the one Live of a client: routes read what the task keeps up to date."""
    return _BY_CLIENT.setdefault(client, Live())
