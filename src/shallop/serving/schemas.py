"""
openAPIV3Schemas of the serving kinds: strict in their own fields, open below what Kubernetes itself defines.

Inside a container or a Pod specification the usual fields are typed; the depths (probes, affinity, volume sources)
are kept as they come, because the API server judges them in the Deployment that is made of them.
"""

from __future__ import annotations

from typing import Any

__all__ = ["INFERENCE_SERVICE", "SERVING_RUNTIME"]

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
_PREDICTOR = _object(
    {
        **_POD,
        **_EXTENSION,
        **dict.fromkeys(FRAMEWORKS, _object(_MODEL)),
        "name": STRING,
        "storageContainerName": STRING,
        "workerSpec": ANY,
        "model": _object(
            {**_MODEL, "modelFormat": _object({"name": STRING, "version": STRING}, "name"), "runtime": STRING},
            "modelFormat",
        ),
    }
)
_EXPLAINER = _object({**_POD, **_EXTENSION, "art": _object({**_MODEL, "type": STRING, "config": _map(STRING)}, "type")})

INFERENCE_SERVICE = _object(
    {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        "spec": _object(
            {
                "predictor": _PREDICTOR,
                "transformer": _object({**_POD, **_EXTENSION}),
                "explainer": _EXPLAINER,
                "canary": _list(_object({"predictor": _PREDICTOR, "trafficPercent": INT32}, "predictor")),
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
