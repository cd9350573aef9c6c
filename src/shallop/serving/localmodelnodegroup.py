"""LocalModelNodeGroup: nodes that keep models on their disks, and where. Only data, which LocalModelCaches read."""

from __future__ import annotations

from shallop.controller.kind import Column, Kind
from shallop.errors import FieldError
from shallop.kube.objects import Object
from shallop.serving.localmodels import folder_of
from shallop.serving.schemas import LOCAL_MODEL_NODE_GROUP as SCHEMA

__all__ = ["LOCAL_MODEL_NODE_GROUP"]


def validate(group: Object, old: Object | None) -> list[FieldError]:
    """Check that models have a place on the nodes."""
    if folder_of(group, "").startswith("/"):
        return []
    detail = "give the absolute path of a folder of the nodes, here or in hostPath.path"
    return [FieldError.required("spec.persistentVolumeSpec.local.path", detail)]


LOCAL_MODEL_NODE_GROUP = Kind(
    api_version="serving.kserve.io/v1alpha1",
    kind="LocalModelNodeGroup",
    plural="localmodelnodegroups",
    namespaced=False,
    status=False,
    schema=SCHEMA,
    columns=(
        Column("Limit", "string", ".spec.storageLimit"),
        Column("Age", "date", ".metadata.creationTimestamp"),
    ),
    validate=validate,
)
