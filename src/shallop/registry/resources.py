"""
The registry's resources as a table: everything that differs between them is a row here.

Source: Model Registry REST API v1 and v1alpha3 (identical but for the form of ``Metric.step``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ARTIFACTS", "COLLECTIONS", "NESTED", "SPACES", "TYPES", "Collection", "Field", "Nested", "ResourceType"]

# Each space has its own sequence of ids and its own set of external ids.
SPACES = ("context", "artifact", "execution")


@dataclass(frozen=True)
class Field:
    """
    A field of a resource beside the common ones.

    Args:
        kind: ``text``, ``texts`` (list), ``number``, ``integer``, ``millis`` (a time as decimal text) or ``id``.
        required: must be given and not empty on create.
        immutable: only settable on create.
        values: the enumeration, if any; the first value is the default on create.
        refers_to: name of the ResourceType whose id this is; that resource must exist.
    """

    kind: str = "text"
    required: bool = False
    immutable: bool = False
    values: tuple[str, ...] = ()
    refers_to: str = ""


@dataclass(frozen=True)
class ResourceType:
    """
    One type of resource.

    Args:
        label: what messages call it.
        parent: name of the type that scopes the names of this one; empty for top-level types.
        parent_field: the field that carries the parent's id; empty when only the path does.
        named: a name must be given; otherwise the server makes one.
        artifact_type: the discriminator on the wire; empty for types that are no artifacts.
        replaces: creating a second one of the same name under the same parent updates the first.
    """

    name: str
    label: str
    space: str
    fields: Mapping[str, Field] = field(default_factory=dict)
    parent: str = ""
    parent_field: str = ""
    named: bool = False
    artifact_type: str = ""
    replaces: bool = False


@dataclass(frozen=True)
class Collection:
    """A top-level collection: its path, the path of its find operation and the types that it holds."""

    path: str
    find: str
    types: tuple[ResourceType, ...]

    @property
    def label(self) -> str:
        return self.find.replace("_", " ")


@dataclass(frozen=True)
class Nested:
    """A collection below one resource of another: ``/{parent}/{id}/{path}``."""

    parent: Collection
    path: str
    types: tuple[ResourceType, ...]


_TEXT = Field()
_STATE = Field(values=("LIVE", "ARCHIVED"))
_ARTIFACT_STATE = Field(
    values=("UNKNOWN", "PENDING", "LIVE", "MARKED_FOR_DELETION", "DELETED", "ABANDONED", "REFERENCE")
)


def _texts(*names: str) -> dict[str, Field]:
    return dict.fromkeys(names, _TEXT)


def _artifact(name: str, artifact_type: str, fields: Mapping[str, Field], *, replaces: bool = False) -> ResourceType:
    return ResourceType(
        name,
        artifact_type.replace("-", " "),
        "artifact",
        {"state": _ARTIFACT_STATE, **fields},
        parent="ModelVersion",
        artifact_type=artifact_type,
        replaces=replaces,
    )


REGISTERED_MODEL = ResourceType(
    "RegisteredModel",
    "registered model",
    "context",
    {
        "state": _STATE,
        "language": Field("texts"),
        "tasks": Field("texts"),
        **_texts("owner", "readme", "maturity", "provider", "logo", "license", "licenseLink", "libraryName"),
    },
    named=True,
)
MODEL_VERSION = ResourceType(
    "ModelVersion",
    "model version",
    "context",
    {
        "registeredModelId": Field("id", required=True, immutable=True, refers_to="RegisteredModel"),
        "state": _STATE,
        "author": _TEXT,
    },
    parent="RegisteredModel",
    parent_field="registeredModelId",
    named=True,
)
SERVING_ENVIRONMENT = ResourceType("ServingEnvironment", "serving environment", "context", named=True)
INFERENCE_SERVICE = ResourceType(
    "InferenceService",
    "inference service",
    "context",
    {
        "registeredModelId": Field("id", required=True, immutable=True, refers_to="RegisteredModel"),
        "servingEnvironmentId": Field("id", required=True, immutable=True, refers_to="ServingEnvironment"),
        "modelVersionId": Field("id", refers_to="ModelVersion"),
        "runtime": _TEXT,
        "desiredState": Field(values=("DEPLOYED", "UNDEPLOYED")),
    },
    parent="ServingEnvironment",
    parent_field="servingEnvironmentId",
)
SERVE_MODEL = ResourceType(
    "ServeModel",
    "serve model",
    "execution",
    {
        "modelVersionId": Field("id", required=True, immutable=True, refers_to="ModelVersion"),
        "lastKnownState": Field(values=("UNKNOWN", "NEW", "RUNNING", "COMPLETE", "FAILED", "CACHED", "CANCELED")),
    },
    parent="InferenceService",
)
MODEL_ARTIFACT = _artifact(
    "ModelArtifact",
    "model-artifact",
    {
        **_texts("uri", "modelFormatName", "modelFormatVersion", "storageKey", "storagePath", "serviceAccountName"),
        **_texts("modelSourceKind", "modelSourceClass", "modelSourceGroup", "modelSourceId", "modelSourceName"),
    },
)
DOC_ARTIFACT = _artifact("DocArtifact", "doc-artifact", _texts("uri"))
DATA_SET = _artifact(
    "DataSet", "dataset-artifact", _texts("uri", "digest", "sourceType", "source", "schema", "profile")
)
METRIC = _artifact(
    "Metric",
    "metric",
    {"value": Field("number", required=True), "timestamp": Field("millis"), "step": Field("integer")},
    replaces=True,
)
PARAMETER = _artifact(
    "Parameter",
    "parameter",
    {"value": _TEXT, "parameterType": Field(values=("string", "number", "boolean", "object"))},
    replaces=True,
)

ARTIFACTS = (MODEL_ARTIFACT, DOC_ARTIFACT, DATA_SET, METRIC, PARAMETER)
TYPES: Mapping[str, ResourceType] = {
    type_.name: type_
    for type_ in (REGISTERED_MODEL, MODEL_VERSION, SERVING_ENVIRONMENT, INFERENCE_SERVICE, SERVE_MODEL, *ARTIFACTS)
}

_MODELS = Collection("registered_models", "registered_model", (REGISTERED_MODEL,))
_VERSIONS = Collection("model_versions", "model_version", (MODEL_VERSION,))
_ENVIRONMENTS = Collection("serving_environments", "serving_environment", (SERVING_ENVIRONMENT,))
_INFERENCE_SERVICES = Collection("inference_services", "inference_service", (INFERENCE_SERVICE,))

COLLECTIONS = (
    _MODELS,
    _VERSIONS,
    Collection("artifacts", "artifact", ARTIFACTS),
    Collection("model_artifacts", "model_artifact", (MODEL_ARTIFACT,)),
    _ENVIRONMENTS,
    _INFERENCE_SERVICES,
)
NESTED = (
    Nested(_MODELS, "versions", (MODEL_VERSION,)),
    Nested(_VERSIONS, "artifacts", ARTIFACTS),
    Nested(_ENVIRONMENTS, "inference_services", (INFERENCE_SERVICE,)),
    Nested(_INFERENCE_SERVICES, "serves", (SERVE_MODEL,)),
)
