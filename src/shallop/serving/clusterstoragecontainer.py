"""
ClusterStorageContainer: a container that brings models of some URIs, instead of the built-in storage initializer.

Honoured: ``supportedUriFormats`` (prefix, regex), ``container``, ``workloadType`` and the top-level ``disabled``.
``supportsMultiModelDownload`` has no effect: a container gets all URIs that it brings. One that is named by
``storageContainerName`` counts for that predictor; otherwise the first by name that supports a URI, ``default`` last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from shallop.controller.kind import Column, Kind
from shallop.errors import FieldError, ShallopError
from shallop.kube.objects import Object
from shallop.serving.schemas import CLUSTER_STORAGE_CONTAINER as SCHEMA

__all__ = [
    "CLUSTER_STORAGE_CONTAINER",
    "DEFAULT_CONTAINER",
    "DOWNLOAD_JOB",
    "INIT_CONTAINER",
    "StorageContainerError",
    "select_container",
]

INIT_CONTAINER, DOWNLOAD_JOB = "initContainer", "localModelDownloadJob"
_BUILT_IN: dict[str, Any] = {
    "name": "storage-initializer",
    "image": "kserve/storage-initializer:v0.21.0",
    "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}, "limits": {"memory": "1Gi"}},
}
DEFAULT_CONTAINER: Object = {
    "apiVersion": "serving.kserve.io/v1alpha1",
    "kind": "ClusterStorageContainer",
    "metadata": {"name": "default"},
    "spec": {
        "container": _BUILT_IN,
        "supportedUriFormats": [
            *({"prefix": f"{scheme}://"} for scheme in ("gs", "s3", "hf", "oci", "model-registry", "file")),
            {"regex": "https://(.+?).blob.core.windows.net/(.+)"},
            {"regex": "https?://(.+)/(.+)"},
        ],
        "workloadType": INIT_CONTAINER,
        "supportsMultiModelDownload": True,
    },
}


class StorageContainerError(ShallopError):
    """The storage container that a service names cannot bring its model."""


def validate(container: Object, old: Object | None) -> list[FieldError]:
    """Check what a schema cannot say."""
    spec, errors = container.get("spec") or {}, []
    for index, format_ in enumerate(spec.get("supportedUriFormats") or ()):
        path = f"spec.supportedUriFormats[{index}]"
        if not format_.get("prefix") and not format_.get("regex"):
            errors.append(FieldError.required(f"{path}.prefix", "give a prefix or a regex"))
        try:
            re.compile(format_.get("regex") or "")
        except re.error as error:
            errors.append(FieldError.invalid(f"{path}.regex", format_["regex"], f"no regular expression: {error}"))
    kind = spec.get("workloadType") or INIT_CONTAINER
    if kind not in (INIT_CONTAINER, DOWNLOAD_JOB):
        errors.append(FieldError.not_supported("spec.workloadType", kind, (INIT_CONTAINER, DOWNLOAD_JOB)))
    return errors


def select_container(
    uri: str, containers: Iterable[Object], workload: str = INIT_CONTAINER, name: str = ""
) -> Mapping[str, Any] | None:
    """
    Return the container that brings a URI, None where no ClusterStorageContainer does.

    Args:
        name: of the one that the user chose; empty for any.

    Raises:
        StorageContainerError: the one that was chosen is not there, is disabled or does not support the URI.
    """
    known = {str(item["metadata"]["name"]): item for item in containers}
    if name:
        problem = _problem(known.get(name), uri, workload)
        if problem:
            raise StorageContainerError(
                f'spec.predictor.storageContainerName: ClusterStorageContainer "{name}" {problem}'
            )
        return _container(known[name])
    for item in sorted(
        known.values(), key=lambda item: (item["metadata"]["name"] == "default", item["metadata"]["name"])
    ):
        if not _problem(item, uri, workload):
            return _container(item)
    return None


def _container(item: Object) -> Mapping[str, Any]:
    container: Mapping[str, Any] = item["spec"]["container"]
    return container


def _problem(item: Object | None, uri: str, workload: str) -> str:
    if item is None:
        return "does not exist"
    if item.get("disabled"):
        return "is disabled"
    spec = item["spec"]
    kind = spec.get("workloadType") or INIT_CONTAINER
    if kind != workload:
        return f"has workloadType {kind}, not {workload}"
    for format_ in spec["supportedUriFormats"]:
        prefix, regex = format_.get("prefix"), format_.get("regex")
        if (prefix and uri.startswith(prefix)) or (regex and re.search(regex, uri)):
            return ""
    return f"does not support {uri}"


CLUSTER_STORAGE_CONTAINER = Kind(
    api_version="serving.kserve.io/v1alpha1",
    kind="ClusterStorageContainer",
    plural="clusterstoragecontainers",
    namespaced=False,
    status=False,
    schema=SCHEMA,
    columns=(
        Column("Disabled", "boolean", ".disabled"),
        Column("Image", "string", ".spec.container.image"),
        Column("Age", "date", ".metadata.creationTimestamp"),
    ),
    validate=validate,
)
