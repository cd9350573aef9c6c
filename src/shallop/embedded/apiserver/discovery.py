"""Discovery documents: aggregated (v2, v2beta1) and one per group or version (legacy)."""

from __future__ import annotations

import base64
import hashlib

from shallop.embedded.apiserver.resources import Registry, Resource, Subresource, version_priority
from shallop.kube.objects import Object

__all__ = ["api_group", "api_groups", "api_resources", "api_versions", "aggregated"]  # noqa: RUF022 (by size)


def aggregated(registry: Registry, *, core: bool, version: str) -> Object:
    """Return the ``APIGroupDiscoveryList`` of the core group or of all others."""
    items: list[Object] = []
    for group, versions in registry.groups().items():
        if (group == "") == core:
            ordered = sorted(versions.items(), key=lambda item: version_priority(item[0]))
            items.append(
                {
                    "metadata": {"name": group} if group else {},
                    "versions": [
                        {
                            "version": name,
                            "resources": [_resource(resource) for resource in _sorted(resources)],
                            "freshness": "Current",
                        }
                        for name, resources in ordered
                    ],
                }
            )
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }


def _sorted(resources: list[Resource]) -> list[Resource]:
    return sorted(resources, key=lambda resource: resource.plural)


def _resource(resource: Resource) -> Object:
    group, version = (resource.group, resource.version) if resource.custom else ("", "")
    found: Object = {
        "resource": resource.plural,
        "responseKind": {"group": group, "version": version, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        found["shortNames"] = list(resource.short_names)
    if resource.categories:
        found["categories"] = list(resource.categories)
    if resource.subresources:
        found["subresources"] = [_subresource(resource, sub, group, version) for sub in resource.subresources]
    return found


def _subresource(resource: Resource, sub: Subresource, group: str, version: str) -> Object:
    kind = {"group": group, "version": version, "kind": resource.kind}
    if sub.gvk is not None:
        core = sub.gvk.group == ""
        kind = {"group": sub.gvk.group, "version": "" if core else sub.gvk.version, "kind": sub.gvk.kind}
    return {"subresource": sub.name, "responseKind": kind, "verbs": list(sub.verbs)}


def api_versions(server: str) -> Object:
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    }


def api_groups(registry: Registry) -> Object:
    groups = [_group(name, list(versions)) for name, versions in registry.groups().items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def api_group(registry: Registry, name: str) -> Object:
    return {"kind": "APIGroup", "apiVersion": "v1"} | _group(name, list(registry.groups()[name]))


def _group(name: str, versions: list[str]) -> Object:
    rendered = [
        {"groupVersion": f"{name}/{version}", "version": version} for version in sorted(versions, key=version_priority)
    ]
    return {"name": name, "versions": rendered, "preferredVersion": rendered[0]}


def api_resources(registry: Registry, group: str, version: str) -> Object:
    """Return the ``APIResourceList`` of one version."""
    resources = []
    for resource in _sorted(registry.groups()[group][version]):
        resources.append(_legacy(resource))
        # A real server lists those of custom resources the other way round.
        subresources = reversed(resource.subresources) if resource.custom else resource.subresources
        resources += [_legacy_subresource(resource, sub) for sub in subresources]
    group_version = f"{group}/{version}" if group else version
    head = {"kind": "APIResourceList"} | ({"apiVersion": "v1"} if group else {})
    return head | {"groupVersion": group_version, "resources": resources}


def _legacy(resource: Resource) -> Object:
    found: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        found["shortNames"] = list(resource.short_names)
    if resource.categories:
        found["categories"] = list(resource.categories)
    if resource.custom:
        found["storageVersionHash"] = _storage_hash(resource)
    return found


def _storage_hash(resource: Resource) -> str:
    """Changes with the version in which objects are stored."""
    text = f"{resource.group}/{resource.storage_version}/{resource.kind}"
    return base64.b64encode(hashlib.sha256(text.encode()).digest()[:8]).decode()


def _legacy_subresource(resource: Resource, sub: Subresource) -> Object:
    found: Object = {
        "name": f"{resource.plural}/{sub.name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(sub.verbs),
    }
    if sub.gvk is not None:
        found["kind"] = sub.gvk.kind
        if sub.gvk.group:
            found |= {"group": sub.gvk.group, "version": sub.gvk.version}
    return found
