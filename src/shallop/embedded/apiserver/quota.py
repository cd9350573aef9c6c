"""ResourceQuota: what a namespace uses is counted as it changes, and a write that would go beyond is refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from decimal import Decimal

from shallop.embedded.apiserver import failures
from shallop.embedded.apiserver.objects_store import Change, ObjectsStore
from shallop.embedded.apiserver.quantities import format_quantity
from shallop.embedded.apiserver.resources import Resource
from shallop.embedded.apiserver.usage import Amounts, in_scopes, usage_of
from shallop.kube.objects import Object, parse_quantity

__all__ = ["QUOTAS", "Quotas"]

log = logging.getLogger(__name__)
QUOTAS = "resourcequotas"
# Under a quota of one of these, every container must say how much it wants.
_COMPUTE = ("cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
_NOTHING = nullcontext()


class _Quota:
    """One ResourceQuota: its limits, and what is used of them now."""

    def __init__(self, obj: Object) -> None:
        self.spec: Object = obj.get("spec") or {}
        self.hard = {key: parse_quantity(value) for key, value in (self.spec.get("hard") or {}).items()}
        self.used: Amounts = dict.fromkeys(self.hard, Decimal(0))

    def usage(self, storage: str, obj: Object | None) -> Amounts:
        if obj is None or not in_scopes(self.spec, storage, obj):
            return {}
        return {key: value for key, value in usage_of(storage, obj).items() if key in self.hard}

    def move(self, storage: str, old: Object | None, new: Object | None) -> bool:
        """Count a change; says whether anything is used more or less now."""
        delta = _difference(self.usage(storage, new), self.usage(storage, old))
        for key, value in delta.items():
            self.used[key] += value
        return bool(delta)

    def status(self) -> Object:
        return {
            "hard": self.spec.get("hard") or {},
            "used": {key: _show(key, self.used[key]) for key in sorted(self.used)},
        }


def _difference(left: Amounts, right: Amounts) -> Amounts:
    delta = {key: left.get(key, Decimal(0)) - right.get(key, Decimal(0)) for key in left | right}
    return {key: value for key, value in delta.items() if value}


def _show(key: str, amount: Decimal) -> str:
    return format_quantity(amount, binary="memory" in key or "storage" in key)


class Quotas:
    """
    The ResourceQuotas of all namespaces.

    A write holds its namespace's quotas from the check until it is stored, so two writes cannot use the same rest.
    """

    def __init__(self, store: ObjectsStore) -> None:
        self._store = store
        self._quotas: dict[str, dict[str, _Quota]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.dirty: dict[tuple[str, str], None] = {}
        self.changed = asyncio.Event()
        for stored in store.list(QUOTAS):
            self._add(stored.namespace, stored.name, stored.object)
        store.listeners.append(self._changed)

    def status(self, namespace: str, name: str) -> Object | None:
        """Return what the status of a quota should say; None when it is gone."""
        quota = self._quotas.get(namespace, {}).get(name)
        return quota.status() if quota else None

    def _changed(self, change: Change) -> None:
        new, old = change.new, change.old
        if new.resource == QUOTAS:
            if change.deleted:
                self._quotas.get(new.namespace, {}).pop(new.name, None)
                if not self._quotas.get(new.namespace):
                    self._quotas.pop(new.namespace, None)
                    self._locks.pop(new.namespace, None)
            elif old is None or old.object.get("spec") != new.object.get("spec"):
                self._add(new.namespace, new.name, new.object)
            elif old.object.get("status") != new.object.get("status"):
                # Somebody else may have written it.
                self._mark(new.namespace, new.name)
        for name, quota in self._quotas.get(new.namespace, {}).items():
            if (new.resource, new.name) == (QUOTAS, name) and old is None:
                continue
            after = None if change.deleted else new.object
            if quota.move(new.resource, old.object if old else None, after):
                self._mark(new.namespace, name)

    def _add(self, namespace: str, name: str, obj: Object) -> None:
        """Count a new or changed quota once from the start."""
        quota = _Quota(obj)
        for resource in self._store.resources_in(namespace):
            for stored in self._store.list(resource, namespace):
                quota.move(resource, None, stored.object)
        self._quotas.setdefault(namespace, {})[name] = quota
        self._mark(namespace, name)

    def _mark(self, namespace: str, name: str) -> None:
        self.dirty[(namespace, name)] = None
        self.changed.set()

    def reserved(
        self, resource: Resource, namespace: str, obj: Object, old: Object | None
    ) -> AbstractAsyncContextManager[None]:
        """
        Check a write and hold what it needs until it is stored.

        Raises:
            ForbiddenError: a quota would be exceeded, or a container does not say what it needs.
        """
        return self._held(resource, namespace, obj, old) if self._grows(resource, namespace, obj, old) else _NOTHING

    @asynccontextmanager
    async def _held(self, resource: Resource, namespace: str, obj: Object, old: Object | None) -> AsyncIterator[None]:
        lock = self._locks.setdefault(namespace, asyncio.Lock())
        async with lock:
            for name, quota in sorted(self._quotas.get(namespace, {}).items()):
                _check(resource, name, quota, obj, old)
            yield

    def _grows(self, resource: Resource, namespace: str, obj: Object, old: Object | None) -> bool:
        for quota in self._quotas.get(namespace, {}).values():
            before = quota.usage(resource.storage, old)
            if old is None or any(value > before.get(k, 0) for k, value in quota.usage(resource.storage, obj).items()):
                return True
        return False


def _check(resource: Resource, name: str, quota: _Quota, obj: Object, old: Object | None) -> None:
    if not in_scopes(quota.spec, resource.storage, obj):
        return
    wanted = obj["metadata"].get("name", "")
    missing = _unspecified(quota, obj.get("spec") or {}) if resource.storage == "pods" and old is None else []
    if missing:
        raise failures.forbidden(resource, wanted, f"failed quota: {name}: must specify {'; '.join(missing)}")
    delta = _difference(quota.usage(resource.storage, obj), quota.usage(resource.storage, old))
    beyond = sorted(key for key, value in delta.items() if value > 0 and quota.used[key] + value > quota.hard[key])
    if beyond:
        requested, used, limited = (
            ",".join(f"{key}={_show(key, amounts[key])}" for key in beyond)
            for amounts in (delta, quota.used, quota.hard)
        )
        why = f"exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}"
        raise failures.forbidden(resource, wanted, why)


def _unspecified(quota: _Quota, spec: Object) -> list[str]:
    """Name the compute resources under quota that containers do not mention."""
    whole: Object = spec.get("resources") or {}
    missing: list[str] = []
    for key in sorted(set(_COMPUTE) & quota.hard.keys()):
        which, _, what = key.rpartition(".")
        which = which or "requests"
        if what in (whole.get(which) or {}):
            continue
        names = [
            container.get("name", "")
            for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
            if what not in ((container.get("resources") or {}).get(which) or {})
        ]
        if names:
            missing.append(f"{key} for: {','.join(sorted(names))}")
    return missing
