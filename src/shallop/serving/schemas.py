"""
openAPIV3Schemas of the serving kinds: strict in their own fields, open below what Kubernetes itself defines.

Inside a container or a Pod specification the usual fields are typed; the depths (probes, affinity, volume sources)
are kept as they come, because the API server judges them in the Deployment that is made of them.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CLUSTER_STORAGE_CONTAINER",
    "INFERENCE_GRAPH",
    "INFERENCE_SERVICE",
    "KNATIVE_SERVICE",
    "LOCAL_MODEL_CACHE",
    "LOCAL_MODEL_NODE",
    "LOCAL_MODEL_NODE_GROUP",
    "REVISION",
    "SERVING_RUNTIME",
    "TRAINED_MODEL",
]

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
INT32: Schema = {"type": "integer", "format": "int32"}
INT64: Schema = {"type": "integer", "format": "int64"}
ANY: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
QUANTITY: Schema = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
INT_OR_STRING: Schema = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}


def _object(properties: dict[str, Schema], *required: str) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def _described(schema: Schema, **texts: str) -> Schema:
    """Return an object schema with descriptions of some of its fields, for ``kubectl explain``."""
    properties = {
        name: child | ({"description": texts[name]} if name in texts else {})
        for name, child in schema["properties"].items()
    }
    return schema | {"properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


_ENV = _object({"name": STRING, "value": STRING, "valueFrom": ANY}, "name")
_PORT = _object(
    {"name": STRING, "containerPort": INT32, "protocol": STRING, "hostPort": INT32, "hostIP": STRING}, "containerPort"
)
_RESOURCES = _object({"limits": _map(QUANTITY), "requests": _map(QUANTITY), "claims": _list(ANY)})
_MOUNT = _object(
    {
        "name": STRING,
        "mountPath": STRING,
        "subPath": STRING,
        "subPathExpr": STRING,
        "readOnly": BOOLEAN,
        "recursiveReadOnly": STRING,
        "mountPropagation": STRING,
    },
    "mountPath",
    "name",
)
_CONTAINER: dict[str, Schema] = {
    **dict.fromkeys(("name", "image", "imagePullPolicy", "workingDir", "restartPolicy"), STRING),
    **dict.fromkeys(("terminationMessagePath", "terminationMessagePolicy"), STRING),
    **dict.fromkeys(("args", "command"), _list(STRING)),
    **dict.fromkeys(("stdin", "stdinOnce", "tty"), BOOLEAN),
    **dict.fromkeys(("lifecycle", "livenessProbe", "readinessProbe", "startupProbe", "securityContext"), ANY),
    **dict.fromkeys(("envFrom", "resizePolicy", "restartPolicyRules", "volumeDevices"), _list(ANY)),
    "env": _list(_ENV),
    "ports": _list(_PORT),
    "resources": _RESOURCES,
    "volumeMounts": _list(_MOUNT),
}
_POD: dict[str, Schema] = {
    **dict.fromkeys(("dnsPolicy", "hostname", "hostnameOverride", "nodeName", "preemptionPolicy"), STRING),
    **dict.fromkeys(("priorityClassName", "restartPolicy", "runtimeClassName", "schedulerName", "subdomain"), STRING),
    **dict.fromkeys(("serviceAccount", "serviceAccountName"), STRING),
    **dict.fromkeys(("activeDeadlineSeconds", "terminationGracePeriodSeconds"), INT64),
    **dict.fromkeys(("automountServiceAccountToken", "enableServiceLinks", "hostIPC", "hostNetwork"), BOOLEAN),
    **dict.fromkeys(("hostPID", "hostUsers", "setHostnameAsFQDN", "shareProcessNamespace"), BOOLEAN),
    **dict.fromkeys(("affinity", "dnsConfig", "os", "securityContext", "resources"), ANY),
    **dict.fromkeys(("hostAliases", "imagePullSecrets", "readinessGates", "resourceClaims"), _list(ANY)),
    **dict.fromkeys(("schedulingGates", "tolerations", "topologySpreadConstraints", "volumes"), _list(ANY)),
    "priority": INT32,
    "nodeSelector": _map(STRING),
    "overhead": _map(QUANTITY),
    "containers": _list(_object(_CONTAINER)),
    "initContainers": _list(_object(_CONTAINER)),
}
_STORAGE = _object({"key": STRING, "path": STRING, "parameters": _map(STRING), "schemaPath": STRING})
_MODEL: dict[str, Schema] = {
    **_CONTAINER,
    **dict.fromkeys(("storageUri", "runtimeVersion"), STRING),
    "protocolVersion": _enum("v1", "v2", "grpc-v1", "grpc-v2"),
    "storage": _STORAGE,
    "confidential": _object({"enabled": BOOLEAN, "resourceId": STRING}),
}
_EXTENSION: dict[str, Schema] = {
    **dict.fromkeys(("minReplicas", "maxReplicas", "scaleTarget"), INT32),
    **dict.fromkeys(("containerConcurrency", "timeout", "canaryTrafficPercent"), INT64),
    "scaleMetric": _enum("cpu", "memory", "concurrency", "rps"),
    "scaleMetricType": _enum("Utilization", "AverageValue"),
    "autoScaling": _object({"metrics": _list(ANY), "behavior": ANY}),
    "labels": _map(STRING),
    "annotations": _map(STRING),
    "deploymentStrategy": _object({"type": STRING, "rollingUpdate": ANY}),
    "batcher": _object(dict.fromkeys(("maxBatchSize", "maxLatency", "timeout"), INT64)),
    "logger": _object(
        {
            "mode": _enum("all", "request", "response"),
            "url": STRING,
            "storage": _object(_STORAGE["properties"] | {"serviceAccountName": STRING}),
            "metadataHeaders": _list(STRING),
            "metadataAnnotations": _list(STRING),
            "batchSize": INT64,
            "batchInterval": STRING,
            "marshallerUrl": STRING,
        }
    ),
    "storageUris": {
        **_list(
            _object(
                {
                    "uri": STRING | {"minLength": 1},
                    "mountPath": STRING | {"default": "/mnt/models", "pattern": "^/.*", "maxLength": 255},
                },
                "uri",
            )
        ),
        "minItems": 1,
    },
}
FRAMEWORKS = (
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
)
_MODEL_SPEC = _described(
    _object(
        {**_MODEL, "modelFormat": _object({"name": STRING, "version": STRING}, "name"), "runtime": STRING},
        "modelFormat",
    ),
    modelFormat="Format of the model, such as sklearn or xgboost; chooses the runtime.",
    storageUri="Where the model is: /PATH, file:///PATH, pvc://CLAIM/PATH, model-registry://MODEL/VERSION, ...",
    runtime="Name of a ServingRuntime or ClusterServingRuntime; chosen by format and protocol when absent.",
    runtimeVersion="Tag of the runtime's image.",
    protocolVersion="Protocol that the runtime must speak; v1 when absent.",
    storage="Where the model is, by a key of the Secret storage-config; instead of storageUri.",
)
_PREDICTOR_SPEC = _object(
    {
        **_POD,
        **_EXTENSION,
        **dict.fromkeys(FRAMEWORKS, _object(_MODEL)),
        "name": STRING,
        "storageContainerName": STRING,
        "workerSpec": _object({**_POD, **dict.fromkeys(("pipelineParallelSize", "tensorParallelSize"), INT32)}),
        "model": _MODEL_SPEC,
    }
)
_PREDICTOR = _described(
    _PREDICTOR_SPEC,
    model="The model and, merged into the runtime's container, whatever a container can have.",
    containers="Containers of a predictor without runtime, or beside it; the one that serves is kserve-container.",
    timeout="Seconds that one request may take.",
    labels="Labels of the Pods.",
    annotations="Annotations of the Pods.",
    name="Renames the workload to INFERENCESERVICE-NAME-predictor.",
    deploymentStrategy="Strategy of the Deployment; rolling by a quarter when absent.",
    canaryTrafficPercent="Percent of the traffic for the newest revision; the rest goes to the one rolled out before.",
    minReplicas="Least number of replicas, 1 when absent; 0 lets it scale to zero in Knative mode.",
    maxReplicas="Greatest number of replicas; absent or 0 is no bound in Knative mode.",
    scaleTarget="Value of scaleMetric per replica that the autoscaler aims at.",
    scaleMetric="What is scaled by: concurrency or rps (Knative), cpu or memory.",
    containerConcurrency="Requests that one replica may work on at once; 0 is no limit.",
    **{name: f"A model of the format {name}; short for model.modelFormat.name={name}." for name in FRAMEWORKS},
)
_EXPLAINER = _object({**_POD, **_EXTENSION, "art": _object({**_MODEL, "type": STRING, "config": _map(STRING)}, "type")})

INFERENCE_SERVICE = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "spec": _object(
            {
                "predictor": _PREDICTOR | {"description": "What predicts."},
                "transformer": _object({**_POD, **_EXTENSION}) | {"description": "What stands before the predictor."},
                "explainer": _EXPLAINER | {"description": "What explains predictions."},
                "canary": _list(_object({"predictor": _PREDICTOR, "trafficPercent": INT32}, "predictor"))
                | {"description": "Standard mode: further predictors, each with a share of the traffic."},
            },
            "predictor",
        ),
        # Read by clients, written by the controller alone.
        "status": ANY,
    }
)

_WORKER = _object(
    {
        **{name: _POD[name] for name in ("affinity", "hostIPC", "imagePullSecrets", "nodeSelector", "resourceClaims")},
        **{name: _POD[name] for name in ("schedulerName", "tolerations", "volumes", "containers")},
        **dict.fromkeys(("labels", "annotations"), _map(STRING)),
        **dict.fromkeys(("pipelineParallelSize", "tensorParallelSize"), INT32),
    },
    "containers",
)
SERVING_RUNTIME = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "spec": _object(
            {
                **{name: schema for name, schema in _WORKER["properties"].items() if not name.endswith("ParallelSize")},
                "supportedModelFormats": _list(
                    _object({"name": STRING, "version": STRING, "autoSelect": BOOLEAN, "priority": INT32}, "name")
                ),
                "protocolVersions": _list(STRING),
                **dict.fromkeys(("multiModel", "disabled"), BOOLEAN),
                "workerSpec": _WORKER,
                # Of ModelMesh: stored, without effect.
                **dict.fromkeys(("grpcEndpoint", "grpcDataEndpoint", "httpDataEndpoint"), STRING),
                "replicas": INT32,
                "storageHelper": _object({"disabled": BOOLEAN}),
                "builtInAdapter": ANY,
            },
            "containers",
        ),
        "status": ANY,
    }
)

_REVISION_SPEC = _object({**_POD, "containerConcurrency": INT64, "timeoutSeconds": INT64}) | {
    "x-kubernetes-preserve-unknown-fields": True
}
REVISION = _object(
    {"apiVersion": STRING, "kind": STRING, "metadata": {"type": "object"}, "spec": _REVISION_SPEC, "status": ANY}
)
_TARGET = _object(
    {**dict.fromkeys(("revisionName", "configurationName", "tag", "url"), STRING)}
    | {"latestRevision": BOOLEAN, "percent": INT64}
)
KNATIVE_SERVICE = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "spec": _object(
            {
                "template": _object(
                    {
                        "metadata": _object({**dict.fromkeys(("labels", "annotations"), _map(STRING)), "name": STRING}),
                        "spec": _REVISION_SPEC,
                    },
                    "spec",
                ),
                "traffic": _list(_TARGET),
            },
            "template",
        ),
        "status": ANY,
    }
)

_STEP = _object(
    {
        **dict.fromkeys(("name", "nodeName", "serviceName", "serviceUrl", "data", "condition"), STRING),
        "mapPredictionsToInstances": BOOLEAN,
        "weight": INT64,
        "dependency": _enum("Soft", "Hard"),
    }
)
TRAINED_MODEL = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "spec": _described(
            _object(
                {
                    "inferenceService": STRING,
                    "model": _object(
                        {"framework": STRING, "memory": QUANTITY, "storageUri": STRING},
                        *("framework", "memory", "storageUri"),
                    ),
                },
                *("inferenceService", "model"),
            ),
            inferenceService="Name of the service whose server loads the model; its predictor has no storageUri.",
            model="What to load, from where, and how much memory of the server's container it takes.",
        ),
        "status": ANY,
    },
    "spec",
)

INFERENCE_GRAPH = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "spec": _object(
            {
                "nodes": _map(_object({"routerType": STRING, "steps": _list(_STEP)}, "routerType")),
                "timeout": INT64,
                "routerTimeouts": _object(
                    dict.fromkeys(("serverRead", "serverWrite", "serverIdle", "serviceClient"), INT64)
                ),
                **dict.fromkeys(("minReplicas", "maxReplicas", "scaleTarget"), INT32),
                "scaleMetric": _enum("cpu", "memory", "concurrency", "rps"),
                "resources": _RESOURCES,
                **{name: _POD[name] for name in ("affinity", "tolerations", "nodeSelector", "nodeName")},
                "serviceAccountName": STRING,
            },
            "nodes",
        ),
        "status": ANY,
    },
    "spec",
)

_CACHED_STORAGE = _object({"key": STRING, "parameters": _map(STRING)})
LOCAL_MODEL_CACHE = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "spec": _described(
            _object(
                {
                    "sourceModelUri": STRING,
                    "modelSize": QUANTITY,
                    "nodeGroups": _list(STRING) | {"minItems": 1},
                    "serviceAccountName": STRING,
                    "storage": _CACHED_STORAGE,
                },
                *("modelSize", "nodeGroups", "sourceModelUri"),
            ),
            sourceModelUri="Where the model is; services whose storageUri is this, or below it, use the copy.",
            modelSize="What the model takes on a node's disk.",
            nodeGroups="Names of the LocalModelNodeGroups whose nodes get a copy.",
            serviceAccountName="Account whose Secrets reach the model.",
            storage="A key of the Secret storage-config that reaches the model.",
        ),
        "status": ANY,
    },
    "spec",
)
LOCAL_MODEL_NODE = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "spec": _object(
            {
                "localModels": _list(
                    _object(
                        {
                            **dict.fromkeys(("modelName", "namespace", "nodeGroup", "serviceAccountName"), STRING),
                            "sourceModelUri": STRING,
                            "storage": _CACHED_STORAGE,
                        },
                        *("modelName", "sourceModelUri"),
                    )
                )
            },
            "localModels",
        ),
        "status": ANY,
    },
    "spec",
)
LOCAL_MODEL_NODE_GROUP = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "spec": _described(
            _object(
                {"storageLimit": QUANTITY, "persistentVolumeSpec": ANY, "persistentVolumeClaimSpec": ANY},
                *("persistentVolumeClaimSpec", "persistentVolumeSpec", "storageLimit"),
            ),
            storageLimit="What all models of the group may take on the disk of a node.",
            persistentVolumeSpec="Where models lie (local or hostPath), and by nodeAffinity on which nodes.",
            persistentVolumeClaimSpec="Of the claims by which Pods reach them.",
        ),
        "status": ANY,
    },
    "spec",
)
CLUSTER_STORAGE_CONTAINER = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "disabled": BOOLEAN,
        "spec": _described(
            _object(
                {
                    "container": _object(_CONTAINER, "name"),
                    "supportedUriFormats": _list(_object({"prefix": STRING, "regex": STRING})),
                    "supportsMultiModelDownload": BOOLEAN | {"default": False},
                    "workloadType": STRING | {"default": "initContainer"},
                },
                *("container", "supportedUriFormats"),
            ),
            container="What brings a model: it gets pairs of URI and folder as further arguments.",
            supportedUriFormats="The URIs that it brings, by prefix or by regular expression.",
            workloadType="Where it runs: initContainer of a predictor, or localModelDownloadJob.",
        ),
    },
    "spec",
)
