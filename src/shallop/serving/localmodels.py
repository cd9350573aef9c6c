"""
Models that are kept on nodes: which cache a model's URI belongs to, where it lies, and the objects that bring it; pure.

A node group's ``persistentVolumeSpec`` says where on its nodes models lie (``local`` or ``hostPath``); a model is the
folder ``models/KEY`` below, with the digest of its URI as the key.

Source: KServe 2026-08, LocalModelCache controller: names of volumes and claims, labels, annotations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from shallop.kube.objects import Object, annotations_of, is_deleting, labels_of
from shallop.kube.selectors import match_selector

__all__ = [
    "CACHE_LABEL",
    "CLAIM_NOTE",
    "JOB_NAMESPACE",
    "NAMESPACE_NOTE",
    "SOURCE_NOTE",
    "Match",
    "cached_uri",
    "covers",
    "find_cache",
    "folder_of",
    "is_same_cache",
    "job_name",
    "marks_of",
    "model_key",
    "nodes_of",
    "render_claim",
    "render_job",
    "render_local_models",
    "render_volume",
]

JOB_NAMESPACE = "kserve-localmodel-jobs"
_INTERNAL = "internal.serving.kserve.io/"
# On a service and its Pods: the cache that its model comes from.
CACHE_LABEL = f"{_INTERNAL}localmodel"
SOURCE_NOTE = f"{_INTERNAL}localmodel-sourceuri"
CLAIM_NOTE = f"{_INTERNAL}localmodel-pvc-name"
# Only where the cache is one of the namespace: a LocalModelNamespaceCache.
NAMESPACE_NOTE = f"{_INTERNAL}localmodel-namespace"
_GROUP, _DISABLED = "serving.kserve.io/nodegroup", "serving.kserve.io/disable-localmodel"
_MODELS = "/mnt/models"
_VOLUME = "kserve-pvc-source"


class Match(NamedTuple):
    """A cache that has a model, and the group of nodes whose copy is used."""

    cache: Object
    group: str


def find_cache(service: Object, uri: str, caches: Iterable[Object]) -> Match | None:
    """Return the cache that a service's model comes from: of its own namespace first, of several the nearest URI."""
    notes = annotations_of(service)
    if notes.get(_DISABLED) == "true" or not uri:
        return None
    found = [
        cache
        for cache in caches
        if covers(cache["spec"]["sourceModelUri"], uri)
        and not is_deleting(cache)
        and cache["metadata"].get("namespace", "") in ("", service["metadata"]["namespace"])
        and (notes.get(_GROUP) or cache["spec"]["nodeGroups"][0]) in cache["spec"]["nodeGroups"]
    ]
    if not found:
        return None
    best = max(found, key=lambda item: (bool(item["metadata"].get("namespace")), len(item["spec"]["sourceModelUri"])))
    return Match(best, notes.get(_GROUP) or best["spec"]["nodeGroups"][0])


def covers(source: str, uri: str) -> bool:
    return uri == source or uri.startswith(source.rstrip("/") + "/")


def is_same_cache(service: Object, cache: Object) -> bool:
    """Say whether the marks of a service name this cache."""
    metadata = cache["metadata"]
    wanted = (metadata["name"], metadata.get("namespace", ""))
    return (labels_of(service).get(CACHE_LABEL), annotations_of(service).get(NAMESPACE_NOTE, "")) == wanted


def marks_of(match: Match | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the labels and annotations of a service that uses a cache; None takes one away."""
    if match is None:
        return {CACHE_LABEL: None}, dict.fromkeys((SOURCE_NOTE, CLAIM_NOTE, NAMESPACE_NOTE))
    metadata = match.cache["metadata"]
    notes = {
        SOURCE_NOTE: match.cache["spec"]["sourceModelUri"],
        CLAIM_NOTE: claim_name(metadata["name"], match.group),
        NAMESPACE_NOTE: metadata.get("namespace"),
    }
    return {CACHE_LABEL: metadata["name"]}, notes


def model_key(source: str) -> str:
    return hashlib.sha256(source.rstrip("/").encode()).hexdigest()[:32]


def claim_name(cache: str, group: str) -> str:
    return f"{cache}-{group}"


def cached_uri(claim: str, source: str, uri: str) -> str:
    """Return where in a claim the copy of ``uri`` lies."""
    rest = uri[len(source.rstrip("/")) :].strip("/")
    return f"pvc://{claim}/models/{model_key(source)}" + (f"/{rest}" if rest else "")


def folder_of(group: Object, source: str) -> str:
    """Return the path of a model on the nodes of a group; empty where the group names no path."""
    spec = group["spec"]["persistentVolumeSpec"]
    path = str(((spec.get("local") or spec.get("hostPath")) or {}).get("path") or "")
    return f"{path.rstrip('/')}/models/{model_key(source)}" if path else ""


def nodes_of(group: Object, nodes: Iterable[Object]) -> list[Object]:
    """Return the nodes that the volumes of a group are on."""
    affinity = group["spec"]["persistentVolumeSpec"].get("nodeAffinity") or {}
    terms = (affinity.get("required") or {}).get("nodeSelectorTerms")
    if terms is None:
        return list(nodes)
    return [
        node
        for node in nodes
        if any(match_selector({"matchExpressions": t.get("matchExpressions") or ()}, labels_of(node)) for t in terms)
    ]


def render_volume(cache: Object, group: Object, namespace: str) -> Object:
    """Render the volume of a cache's claim in one namespace."""
    name = claim_name(cache["metadata"]["name"], group["metadata"]["name"])
    suffix = "download" if namespace == JOB_NAMESPACE else namespace
    spec = dict(group["spec"]["persistentVolumeSpec"])
    spec.setdefault("capacity", {"storage": str(group["spec"]["storageLimit"])})
    spec.setdefault("accessModes", ["ReadWriteMany"])
    metadata = {"name": f"{name}-{suffix}", "labels": _labels(cache)}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}


def render_claim(cache: Object, group: Object, namespace: str) -> Object:
    """Render the claim by which Pods of one namespace reach a cache."""
    volume = render_volume(cache, group, namespace)
    spec = dict(group["spec"]["persistentVolumeClaimSpec"]) | {"volumeName": volume["metadata"]["name"]}
    spec.setdefault("accessModes", volume["spec"]["accessModes"])
    spec.setdefault("resources", {"requests": {"storage": str(group["spec"]["storageLimit"])}})
    # Without a class of its own a claim would get the default one, whose volumes these are not.
    spec.setdefault("storageClassName", volume["spec"].get("storageClassName") or "")
    name = claim_name(cache["metadata"]["name"], group["metadata"]["name"])
    metadata = {"name": name, "namespace": namespace, "labels": _labels(cache)}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def _labels(cache: Object) -> dict[str, str]:
    namespace = cache["metadata"].get("namespace")
    return {CACHE_LABEL: cache["metadata"]["name"]} | ({NAMESPACE_NOTE: namespace} if namespace else {})


def render_local_models(node: str, caches: Iterable[Object], groups: Mapping[str, Sequence[str]]) -> Object:
    """
    Render what one node shall have.

    Args:
        groups: name of a group -> the names of its nodes.
    """
    models = []
    for cache in sorted(caches, key=lambda item: (item["metadata"].get("namespace", ""), item["metadata"]["name"])):
        metadata, spec = cache["metadata"], cache["spec"]
        for group in spec["nodeGroups"]:
            if is_deleting(cache) or node not in groups.get(group, ()):
                continue
            entry = {"modelName": metadata["name"], "sourceModelUri": spec["sourceModelUri"], "nodeGroup": group}
            entry |= {"namespace": metadata["namespace"]} if metadata.get("namespace") else {}
            models.append(entry | {key: spec[key] for key in ("serviceAccountName", "storage") if key in spec})
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LocalModelNode",
        "metadata": {"name": node},
        "spec": {"localModels": models},
    }


def job_name(node: str, model: Mapping[str, Any]) -> str:
    identity = "/".join((node, model.get("namespace", ""), model.get("nodeGroup", ""), model["modelName"]))
    return f"{model['modelName'][:40].rstrip('-.')}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def render_job(
    node: str, model: Mapping[str, Any], container: Mapping[str, Any], env: Sequence[Mapping[str, Any]]
) -> Object:
    """
    Render the Job that brings a model to a node.

    Args:
        container: what downloads, as a ClusterStorageContainer has it.
        env: variables that it needs to reach the model.
    """
    source, namespace = model["sourceModelUri"], model.get("namespace") or JOB_NAMESPACE
    labels = {CACHE_LABEL: model["modelName"]}
    labels |= {NAMESPACE_NOTE: model["namespace"]} if model.get("namespace") else {}
    mount = {"name": _VOLUME, "mountPath": _MODELS, "subPath": f"models/{model_key(source)}"}
    downloader = {
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **container,
        "args": [*(container.get("args") or ()), source, _MODELS],
        "env": [*(container.get("env") or ()), *(dict(item) for item in env)],
        "volumeMounts": [*(container.get("volumeMounts") or ()), mount],
    }
    claim = {"claimName": claim_name(model["modelName"], model["nodeGroup"])}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "nodeName": node,
        "containers": [downloader],
        "volumes": [{"name": _VOLUME, "persistentVolumeClaim": claim}],
    }
    if account := model.get("serviceAccountName"):
        spec["serviceAccountName"] = account
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(node, model), "namespace": namespace, "labels": labels},
        "spec": {"backoffLimit": 2, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }
