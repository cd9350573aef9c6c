"""Pods run as ServiceAccounts that exist."""

from __future__ import annotations

from shallop.embedded.apiserver import failures
from shallop.embedded.apiserver.objects_store import ObjectsStore
from shallop.embedded.apiserver.requests import User
from shallop.embedded.apiserver.resources import Resource
from shallop.kube.objects import Object

__all__ = ["check_service_account"]


def check_service_account(store: ObjectsStore, resource: Resource, obj: Object, old: Object | None, user: User) -> None:
    """
    Refuse a new Pod whose ServiceAccount is not there.

    Every namespace gets ``default`` soon after it was made: a Pod may be earlier, the node waits.

    Raises:
        ForbiddenError
    """
    if resource.storage != "pods" or old is not None:
        return
    metadata = obj["metadata"]
    account = obj["spec"].get("serviceAccountName") or "default"
    if account == "default" or store.get("serviceaccounts", metadata["namespace"], account) is not None:
        return
    why = f'error looking up service account {metadata["namespace"]}/{account}: serviceaccount "{account}" not found'
    raise failures.forbidden(resource, metadata["name"], why)
