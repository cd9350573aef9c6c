"""openAPIV3Schema of JobSet: strict in its own fields and in those of a Job, open below the Pod's specification."""

from __future__ import annotations

from typing import Any

__all__ = ["ACTIONS", "SCHEMA"]

Schema = dict[str, Any]

ACTIONS = (
    "FailJobSet",
    "RestartJobSet",
    "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob",
    "RestartJobAndIgnoreMaxRestarts",
)
_STRING: Schema = {"type": "string"}
_BOOLEAN: Schema = {"type": "boolean"}
_INT32: Schema = {"type": "integer", "format": "int32"}
_COUNT: Schema = _INT32 | {"minimum": 0}
_STRINGS: Schema = {"type": "object", "additionalProperties": _STRING}
_ANY: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_IMMUTABLE: Schema = {"x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "Value is immutable"}]}


def _object(properties: dict[str, Schema], *required: str, **more: Any) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, **more}
    return schema | ({"required": list(required)} if required else {})


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _keyed(*keys: str) -> Schema:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


_NAMES = _list(_STRING, **{"x-kubernetes-list-type": "atomic"})
_METADATA = _object(
    {
        **dict.fromkeys(("name", "namespace"), _STRING),
        **dict.fromkeys(("labels", "annotations"), _STRINGS),
        "finalizers": _list(_STRING),
    }
)
# The API server judges the Pod's specification in the Job that is made of it.
_POD_TEMPLATE = _object({"metadata": _METADATA, "spec": _ANY})
_JOB_TEMPLATE = _object(
    {
        "metadata": _METADATA,
        "spec": _object(
            {
                **dict.fromkeys(("parallelism", "completions", "backoffLimit", "backoffLimitPerIndex"), _INT32),
                **dict.fromkeys(("maxFailedIndexes", "ttlSecondsAfterFinished"), _INT32),
                "activeDeadlineSeconds": {"type": "integer", "format": "int64"},
                **dict.fromkeys(("completionMode", "podReplacementPolicy", "managedBy"), _STRING),
                **dict.fromkeys(("suspend", "manualSelector"), _BOOLEAN),
                **dict.fromkeys(("selector", "podFailurePolicy", "successPolicy"), _ANY),
                "template": _POD_TEMPLATE,
            },
            "template",
        ),
    }
)
_DEPENDENCY = _object({"name": _STRING, "status": _enum("Ready", "Complete")}, "name", "status")
_REPLICATED_JOB = _object(
    {
        "name": _STRING | {"description": "Part of the names of the Jobs: JOBSET-NAME-INDEX."},
        "groupName": _STRING | {"default": "default"},
        "replicas": _COUNT | {"default": 1, "description": "Number of Jobs made of the template."},
        "template": _JOB_TEMPLATE,
        "dependsOn": _list(_DEPENDENCY, maxItems=5, **_keyed("name"), **_IMMUTABLE)
        | {"description": "Earlier replicated Jobs that must be Ready or Complete before these start."},
    },
    "name",
    "template",
)
_FAILURE_RULE = _object(
    {
        "name": _STRING,
        "action": _enum(*ACTIONS),
        "onJobFailureReasons": _list(_STRING),
        "onJobFailureMessagePatterns": _list(_STRING),
        "targetReplicatedJobs": _NAMES,
    },
    "action",
    "name",
)
_CLAIM_POLICY = _object(
    {
        "templates": _list(_object({"metadata": _METADATA, "spec": _ANY})),
        "retentionPolicy": _object({"whenDeleted": _enum("Delete", "Retain") | {"default": "Delete"}}),
    },
    **{
        "x-kubernetes-validations": [
            {
                "rule": "!has(self.templates) || self.templates.all(t, !has(t.metadata) || "
                "!has(t.metadata.namespace) || size(t.metadata.namespace) == 0)",
                "message": "namespace cannot be set for VolumeClaimPolicies templates",
            }
        ]
    },
)
_SPEC = _object(
    {
        "replicatedJobs": _list(_REPLICATED_JOB, **_keyed("name")),
        "network": _object(
            {"enableDNSHostnames": _BOOLEAN, "publishNotReadyAddresses": _BOOLEAN, "subdomain": _STRING}, **_IMMUTABLE
        ),
        "successPolicy": _object({"operator": _enum("All", "Any"), "targetReplicatedJobs": _NAMES}, "operator")
        | _IMMUTABLE,
        "failurePolicy": _object(
            {
                "maxRestarts": _INT32,
                "restartStrategy": _enum("Recreate", "BlockingRecreate", "InPlaceRestart") | {"default": "Recreate"},
                "rules": _list(_FAILURE_RULE),
            },
            **_IMMUTABLE,
        ),
        "startupPolicy": _object({"startupPolicyOrder": _enum("AnyOrder", "InOrder")}, "startupPolicyOrder")
        | _IMMUTABLE,
        "suspend": _BOOLEAN,
        "coordinator": _object(
            {"replicatedJob": _STRING, "jobIndex": {"type": "integer"}, "podIndex": {"type": "integer"}},
            "replicatedJob",
        ),
        "managedBy": _STRING,
        "ttlSecondsAfterFinished": _COUNT,
        "volumeClaimPolicies": _list(_CLAIM_POLICY, maxItems=50, **{"x-kubernetes-list-type": "atomic"}, **_IMMUTABLE),
    },
    **{
        "x-kubernetes-validations": [
            {
                "rule": "!(has(self.startupPolicy) && self.startupPolicy.startupPolicyOrder == 'InOrder' && "
                "has(self.replicatedJobs) && self.replicatedJobs.exists(x, has(x.dependsOn)))",
                "message": "StartupPolicy and DependsOn APIs are mutually exclusive",
            }
        ]
    },
)
_CONDITION = _object(
    {
        "type": _STRING,
        "status": _enum("True", "False", "Unknown"),
        "reason": _STRING,
        "message": _STRING,
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
    },
    "lastTransitionTime",
    "message",
    "reason",
    "status",
    "type",
)
_COUNTS = ("active", "failed", "ready", "succeeded", "suspended")
SCHEMA: Schema = _object(
    {
        "apiVersion": _STRING,
        "kind": _STRING,
        "metadata": {"type": "object"},
        "spec": _SPEC,
        "status": _object(
            {
                "conditions": _list(_CONDITION, **_keyed("type")),
                **dict.fromkeys(("restarts", "restartsCountTowardsMax"), _INT32),
                "replicatedJobsStatus": _list(
                    _object({"name": _STRING, **dict.fromkeys(_COUNTS, _INT32)}, "name", *_COUNTS), **_keyed("name")
                ),
                "terminalState": _STRING,
            }
        ),
    }
)
