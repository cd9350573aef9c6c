"""
openAPIV3Schemas of the training kinds: strict in their own fields, open below what Kubernetes itself defines.

Pod templates and JobSets are kept as they come: the API server judges them in the objects that are made of them.
"""

from __future__ import annotations

from typing import Any

__all__ = ["TRAINING_RUNTIME", "TRAIN_JOB", "classic_schema"]

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
INT32: Schema = {"type": "integer", "format": "int32"}
INT64: Schema = {"type": "integer", "format": "int64"}
ANY: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
QUANTITY: Schema = {
    "x-kubernetes-int-or-string": True,
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
}
TIME: Schema = {"type": "string", "format": "date-time"}


def _object(properties: dict[str, Schema], *required: str) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _by_name(items: Schema, key: str = "name", **more: Any) -> Schema:
    return _list(items, **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}, **more)


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _rule(rule: str, message: str) -> Schema:
    return {"rule": rule, "message": message}


def _fixed(schema: Schema) -> Schema:
    """Return the schema of a field that cannot change once it is set."""
    rules = [*schema.get("x-kubernetes-validations", []), _rule("self == oldSelf", "field is immutable")]
    return schema | {"x-kubernetes-validations": rules}


def _root(spec: Schema, status: Schema, **more: Any) -> Schema:
    properties = {"apiVersion": STRING, "kind": STRING, "metadata": {"type": "object"}, "spec": spec, "status": status}
    return _object(properties) | more


_ENV = _object({"name": STRING, "value": STRING, "valueFrom": ANY}, "name")
# Amounts may come as numbers with a fraction: the API server of Kubernetes takes none, but defaulting here makes text.
_RESOURCES = _object(
    {
        "claims": _by_name(_object({"name": STRING, "request": STRING}, "name")),
        "limits": _map(QUANTITY),
        "requests": _map(QUANTITY),
    }
)
_METADATA = _object({"labels": _map(STRING), "annotations": _map(STRING)})
_STORAGE_URI = STRING | {
    "maxLength": 2048,
    "x-kubernetes-validations": [
        _rule(
            "self == '' || self.matches('^[A-Za-z][A-Za-z0-9+.-]*://.+$')",
            "storageUri may be empty, or it must be a valid URI (scheme://...)",
        )
    ],
}
_INITIALIZER = _object(
    {
        "storageUri": _STORAGE_URI,
        "env": _by_name(_ENV, maxItems=128),
        "secretRef": _object({"name": STRING}),
    }
)
_PATCH_CONTAINERS = _fixed(
    _by_name(
        _object(
            {
                "name": STRING | {"minLength": 1, "maxLength": 253},
                "env": _by_name(_ENV, maxItems=128),
                "volumeMounts": _list(ANY | {"required": ["name", "mountPath"]}, maxItems=128),
                "securityContext": ANY,
            },
            "name",
        ),
        maxItems=64,
    )
)
_PATCH_POD = _object(
    {
        "serviceAccountName": _fixed(STRING | {"maxLength": 253}),
        "volumes": _fixed(_list(ANY | {"required": ["name"]}, maxItems=128)),
        "initContainers": _PATCH_CONTAINERS,
        "containers": _PATCH_CONTAINERS,
        "imagePullSecrets": _fixed(_list(ANY, maxItems=64)),
        "securityContext": _fixed(ANY),
        "nodeSelector": _map(STRING),
        "affinity": ANY,
        "tolerations": _list(ANY, maxItems=128),
        "schedulingGates": _list(ANY | {"required": ["name"]}, maxItems=16),
        "terminationGracePeriodSeconds": _fixed(INT64),
    }
)
_PATCH_JOB = _object(
    {
        "name": STRING | {"minLength": 1, "maxLength": 253},
        "template": _object(
            {
                "metadata": _METADATA,
                "spec": _object({"template": _object({"metadata": _METADATA, "spec": _PATCH_POD})}),
            }
        ),
    },
    "name",
)
_RUNTIME_PATCH = _object(
    {
        "manager": _fixed(STRING | {"minLength": 1, "maxLength": 253}),
        "time": TIME,
        "trainingRuntimeSpec": _object(
            {
                "template": _object(
                    {"metadata": _METADATA, "spec": _object({"replicatedJobs": _by_name(_PATCH_JOB, maxItems=100)})}
                )
            }
        ),
    },
    "manager",
)
_WORDS = _list(STRING | {"maxLength": 1048576}, maxItems=128)
_TRAINER = _object(
    {
        "image": STRING | {"maxLength": 500, "description": "Image of the container node."},
        "command": _WORDS,
        "args": _WORDS,
        "env": _by_name(_ENV, maxItems=128),
        "numNodes": INT32 | {"minimum": 0, "description": "Number of training nodes, each a Pod."},
        "resourcesPerNode": _RESOURCES,
        "numProcPerNode": INT32
        | {
            "x-kubernetes-validations": [_rule("self >= 1", "numProcPerNode must be greater than or equal to 1")],
            "description": "Processes (or slots) on each node; chosen by the runtime's policy when absent.",
        },
    }
)
_MANAGERS = ("trainer.kubeflow.org/trainjob-controller", "kueue.x-k8s.io/multikueue")
_MANAGED_BY = STRING | {
    "default": _MANAGERS[0],
    "maxLength": 253,
    "x-kubernetes-validations": [
        _rule(f"self in ['{_MANAGERS[0]}', '{_MANAGERS[1]}']", f"ManagedBy must be {' or '.join(_MANAGERS)} if set")
    ],
}
_CONDITION = _object(
    {
        "type": STRING,
        "status": _enum("True", "False", "Unknown"),
        "reason": STRING,
        "message": STRING,
        "lastTransitionTime": TIME,
        "observedGeneration": INT64,
    },
    "lastTransitionTime",
    "message",
    "reason",
    "status",
    "type",
)
_COUNTS = ("active", "failed", "ready", "succeeded", "suspended")
TRAINER_STATUS = _object(
    {
        "progressPercentage": INT32 | {"minimum": 0, "maximum": 100},
        "estimatedRemainingSeconds": INT32 | {"minimum": 0},
        "metrics": _list(
            _object({name: STRING | {"minLength": 1, "maxLength": 64} for name in ("name", "value")}, "name", "value"),
            maxItems=256,
        ),
        "lastUpdatedTime": TIME,
    }
)

TRAIN_JOB = _root(
    _object(
        {
            "runtimeRef": _fixed(
                _object(
                    {
                        "name": STRING | {"minLength": 1, "maxLength": 253},
                        "apiGroup": STRING | {"default": "trainer.kubeflow.org", "maxLength": 253},
                        "kind": STRING | {"default": "ClusterTrainingRuntime", "maxLength": 253},
                    },
                    "name",
                )
            ),
            "initializer": _fixed(_object({"dataset": _INITIALIZER, "model": _INITIALIZER})),
            "trainer": _fixed(_TRAINER),
            "runtimePatches": _by_name(_RUNTIME_PATCH, "manager", maxItems=16),
            "suspend": BOOLEAN | {"default": False, "description": "True ends the Pods, or holds them back."},
            "activeDeadlineSeconds": _fixed(INT64 | {"minimum": 1}),
            "managedBy": _fixed(_MANAGED_BY),
        },
        "runtimeRef",
    ),
    _object(
        {
            "conditions": _by_name(_CONDITION, "type", maxItems=8),
            "jobsStatus": _by_name(
                _object({"name": STRING, **dict.fromkeys(_COUNTS, INT32)}, "name", *_COUNTS), maxItems=100
            ),
            "trainerStatus": TRAINER_STATUS
            | {
                "x-kubernetes-validations": [
                    _rule("has(self.lastUpdatedTime)", "lastUpdatedTime is required when trainerStatus is present")
                ]
            },
        }
    ),
    **{
        "x-kubernetes-validations": [
            _rule(
                "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "metadata.name must match RFC 1035 DNS label format",
            ),
            _rule("size(self.metadata.name) <= 63", "metadata.name must be no more than 63 characters"),
        ]
    },
)

_ML_POLICY = _object(
    {
        "numNodes": INT32 | {"minimum": 1, "default": 1},
        "torch": _object(
            {
                "envInjection": _object(
                    {
                        "targets": _by_name(
                            _object(
                                {
                                    "jobName": STRING | {"minLength": 1, "maxLength": 253},
                                    "containerNames": _list(
                                        STRING | {"maxLength": 63},
                                        minItems=1,
                                        maxItems=8,
                                        **{
                                            "x-kubernetes-validations": [
                                                _rule(
                                                    "!self.exists(c, c == 'node')",
                                                    "containerNames must not include the container node: "
                                                    "its PET_* variables are always set",
                                                )
                                            ]
                                        },
                                    ),
                                },
                                "jobName",
                                "containerNames",
                            ),
                            "jobName",
                            maxItems=16,
                        )
                    }
                )
            }
        ),
        "mpi": _object(
            {
                "numProcPerNode": INT32
                | {
                    "default": 1,
                    "x-kubernetes-validations": [_rule("self >= 1", "NumProcPerNode in mpiPolicy must be >= 1")],
                },
                "mpiImplementation": _enum("OpenMPI", "") | {"default": "OpenMPI"},
                "sshAuthMountPath": STRING | {"default": "/root/.ssh", "maxLength": 4096},
                "runLauncherAsNode": BOOLEAN | {"default": False},
            }
        ),
        "flux": _object({"numProcPerNode": INT32 | {"default": 1, "minimum": 1}}),
        "jax": ANY,
        "xgboost": ANY,
    }
) | {
    "x-kubernetes-validations": [
        _rule(
            "[has(self.torch), has(self.mpi), has(self.jax), has(self.xgboost), has(self.flux)]"
            ".filter(x, x).size() <= 1",
            "Only one of the policy can be configured",
        )
    ]
}
# JobSets as they come, but for what Kubeflow's schema of runtimes says of them beyond their own.
_JOBSET_SPEC = ANY | {
    "properties": {
        **dict.fromkeys(("failurePolicy", "network", "startupPolicy", "successPolicy"), _fixed(ANY)),
        "volumeClaimPolicies": _fixed(_list(ANY)),
        "replicatedJobs": _by_name(
            ANY | {"required": ["name"], "properties": {"name": STRING, "dependsOn": _fixed(_list(ANY))}}
        ),
    },
    "x-kubernetes-validations": [
        _rule(
            "!(has(self.startupPolicy) && self.startupPolicy.startupPolicyOrder == 'InOrder'"
            " && self.replicatedJobs.exists(x, has(x.dependsOn)))",
            "StartupPolicy and DependsOn APIs are mutually exclusive",
        )
    ],
}
TRAINING_RUNTIME = _root(
    _object(
        {
            "mlPolicy": _ML_POLICY,
            "podGroupPolicy": _object(
                {"coscheduling": _object({"scheduleTimeoutSeconds": INT32 | {"default": 60}}), "volcano": ANY}
            ),
            "template": _object({"metadata": ANY, "spec": _JOBSET_SPEC}) | {"minProperties": 1},
        },
        "template",
    )
    | {"minProperties": 1},
    ANY,
)


_RUN_POLICY = _object(
    {
        "cleanPodPolicy": STRING,
        "ttlSecondsAfterFinished": INT32,
        "activeDeadlineSeconds": INT64,
        "backoffLimit": INT32,
        "schedulingPolicy": _object(
            {
                "minAvailable": INT32,
                "queue": _fixed(STRING),
                "minResources": _map(QUANTITY),
                "priorityClass": STRING,
                "scheduleTimeoutSeconds": INT32,
            }
        ),
        "suspend": BOOLEAN | {"default": False},
        "managedBy": STRING,
    }
)
_REPLICA = _object({"replicas": INT32, "template": ANY, "restartPolicy": STRING})


def classic_schema(specs_field: str, extra: dict[str, Schema]) -> Schema:
    """
    Return the schema of a ``kubeflow.org/v1`` job.

    Args:
        specs_field: the map of replica types, such as ``pytorchReplicaSpecs``.
        extra: further fields of the spec.
    """
    fields = {specs_field: _map(_REPLICA), "runPolicy": _RUN_POLICY, **extra}
    return _root(_object(fields, specs_field), ANY)
