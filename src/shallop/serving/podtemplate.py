"""
The Pod template of a component: the runtime's containers merged with the user's; pure.

Source: KServe predictor reconciler (2026-08): arguments are concatenated, runtime first, so that the user's win.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from shallop.kube.objects import Object, annotations_of, labels_of
from shallop.kube.patch import FieldMerge, strategic_merge_patch
from shallop.serving.clusterstoragecontainer import DEFAULT_CONTAINER
from shallop.serving.localmodels import CLAIM_NOTE
from shallop.serving.storage import claim_of

__all__ = [
    "AGENT",
    "AGENT_PORT",
    "CONTAINER",
    "MODEL_PATH",
    "REQUIREMENTS",
    "Source",
    "Storage",
    "common_parent",
    "is_multi_model",
    "is_stored_log",
    "model_config_name",
    "parse_duration",
    "render_pod_template",
    "render_service_port",
    "serving_container",
    "workload_name",
]

CONTAINER, TRANSFORMER = "kserve-container", "transformer-container"
MODEL_PATH = "/mnt/models"
REQUIREMENTS = "environment.shallop.dev/requirements"
READ_ONLY = "storage.kserve.io/readonly"
AGENT_IMAGE = "kserve/agent:v0.21.0"
AGENT, AGENT_PORT = "agent", 9081
LOG_PATH = "/mnt/logs"
EXPLAINER_IMAGE = "kserve/art-explainer:v0.21.0"
PORT = 8080

# Fields of spec.predictor.model that are not the container's.
_MODEL_FIELDS = frozenset(
    ("modelFormat", "runtime", "runtimeVersion", "protocolVersion", "storageUri", "storage", "confidential", "name")
)
# Fields of a component that are not the Pod's.
_COMPONENT_FIELDS = frozenset(
    (
        *("model", "name", "containers", "labels", "annotations", "deploymentStrategy", "timeout", "workerSpec", "art"),
        *("minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling"),
        *("containerConcurrency", "canaryTrafficPercent", "logger", "batcher", "storageUris", "storageContainerName"),
    )
)
_RUNTIME_POD_FIELDS = (
    *("nodeSelector", "affinity", "tolerations", "volumes", "imagePullSecrets"),
    *("hostIPC", "schedulerName", "resourceClaims"),
)
_NOT_PROPAGATED = (
    "autoscaling.knative.dev/",
    "internal.serving.kserve.io/",
    "kubectl.kubernetes.io/last-applied-configuration",
    "modelFormat",
)
_LISTS: Mapping[str, Mapping[str, str]] = {
    "Container": {"env": "name", "ports": "containerPort", "volumeMounts": "mountPath", "volumeDevices": "devicePath"},
    "Pod": {"volumes": "name", "imagePullSecrets": "name", "resourceClaims": "name", "initContainers": "name"},
}
_MLSERVER_CLASSES = {
    "sklearn": "mlserver_sklearn.SKLearnModel",
    "xgboost": "mlserver_xgboost.XGBoostModel",
    "lightgbm": "mlserver_lightgbm.LightGBMModel",
    "mlflow": "mlserver_mlflow.MLflowRuntime",
}
_EXPRESSION = re.compile(r"\{\{-?\s*\.(Name|Namespace|Labels|Annotations)(?:\.([\w./-]+))?\s*-?\}\}")


class Source(NamedTuple):
    """Something to bring into a Pod besides its model; ``host_path`` and ``container`` as in Storage."""

    uri: str
    mount_path: str
    host_path: str = ""
    container: Mapping[str, Any] = {}


class Storage(NamedTuple):
    """
    The model of a component.

    Args:
        uri: where it really lies; empty when the predictor brings its own model.
        requirements: pip requirement lines that it needs; empty for the runtime's own.
        host_path: where ``uri`` is on this machine; the initializer gets it mounted at the same place, because a Pod
            does not see all of the machine's folders (its /tmp is its own).
        mount_path: where the containers find it.
        others: further things, each with a place of its own.
        env: variables of the initializer: how to reach where it lies.
        container: what brings it, as a ClusterStorageContainer has it; empty for the built-in initializer.
    """

    uri: str = ""
    requirements: Sequence[str] = ()
    host_path: str = ""
    mount_path: str = MODEL_PATH
    others: Sequence[Source] = ()
    env: Sequence[Mapping[str, Any]] = ()
    container: Mapping[str, Any] = {}


def common_parent(paths: Sequence[str]) -> str:
    """Return the folder that all of some absolute paths are or lie in."""
    return posixpath.commonpath([posixpath.normpath(path) for path in paths])


def is_multi_model(service: Object) -> bool:
    """Say whether the predictor of a service has a server but no model: its models are TrainedModels."""
    predictor = service["spec"]["predictor"]
    model = predictor.get("model")
    if model is None or predictor.get("storageUris") or model.get("storageUri") or model.get("storage"):
        return False
    return not any(str(argument).startswith("--model_id") for argument in model.get("args") or ())


def model_config_name(service: str) -> str:
    """Return the name of the ConfigMap that lists the TrainedModels of a service."""
    return f"modelconfig-{service}-0"


def workload_name(service: Object, component: str = "predictor") -> str:
    name = (service["spec"][component].get("name") or "").strip() if component == "predictor" else ""
    return "-".join(part for part in (service["metadata"]["name"], name, component) if part)


def render_pod_template(
    service: Object,
    runtime: Object | None,
    storage: Storage,
    component: str = "predictor",
    *,
    logger_env: Sequence[Mapping[str, Any]] = (),
) -> Object:
    """
    Render the template of a component's Pods.

    Args:
        service: the InferenceService, defaulted.
        runtime: what serves its model; None for a component with containers of its own.
        storage: the model, its URI resolved.
        logger_env: variables by which the logger reaches its storage.
    """
    if runtime is not None and component == "predictor":
        service = _with_runtime_labels(service, runtime)
    declared = service["spec"][component]
    runtime_spec = (runtime or {}).get("spec") or {}
    containers = _containers(declared, runtime_spec)
    if component != "predictor":
        containers = [_with_arguments(containers[0], service, component), *containers[1:]]
    spec = {name: runtime_spec[name] for name in _RUNTIME_POD_FIELDS if name in runtime_spec}
    pod_fields = {name: value for name, value in declared.items() if name not in _COMPONENT_FIELDS}
    spec = strategic_merge_patch(spec, pod_fields, "Pod", _merge_rule)
    collocated = any(container.get("name") == TRANSFORMER for container in containers)
    spec["containers"] = [_finish(container, service, collocated=collocated) for container in containers]
    metadata = _metadata(service, runtime_spec, storage, component)
    spec = _add_agent(_add_storage(spec, service, storage), service, component, logger_env)
    if component == "predictor" and not storage.uri and is_multi_model(service):
        spec = _add_puller(spec, service, storage)
    return {"metadata": metadata, "spec": spec}


def _add_puller(spec: dict[str, Any], service: Object, storage: Storage) -> dict[str, Any]:
    """Put what brings TrainedModels beside the container that serves; both see the folder of models."""
    serving = next(item for item in spec["containers"] if item["name"] == CONTAINER)
    port = serving["ports"][0]["containerPort"] if serving.get("ports") else PORT
    models = {"name": "model-dir", "mountPath": MODEL_PATH}
    puller = {
        "name": "puller",
        "image": AGENT_IMAGE,
        "command": ["python3", "-m", "shallop_pod.puller"],
        "args": ["--config-dir", "/mnt/configs", "--model-dir", MODEL_PATH, "--port", str(port)],
        "env": [dict(item) for item in storage.env],
        "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}},
        "volumeMounts": [models, {"name": "model-config", "mountPath": "/mnt/configs", "readOnly": True}],
    }
    serving = {
        **serving,
        "env": [*serving["env"], {"name": "SHALLOP_MULTI_MODEL", "value": "true"}],
        "volumeMounts": [*(serving.get("volumeMounts") or ()), models],
    }
    others = [item for item in spec["containers"] if item["name"] != CONTAINER]
    listed = {"name": model_config_name(service["metadata"]["name"]), "optional": True}
    volumes = [{"name": "model-dir", "emptyDir": {}}, {"name": "model-config", "configMap": listed}]
    return {
        **spec,
        "containers": [serving, *others, puller],
        "volumes": [*(spec.get("volumes") or ()), *volumes],
    }


def _with_runtime_labels(service: Object, runtime: Object) -> Object:
    """Add the labels and variables that runtimes of MLServer and TorchServe refer to, as KServe's webhook does."""
    kind = annotations_of(runtime).get("serving.kserve.io/server-type") or (runtime.get("metadata") or {}).get("name")
    predictor = service["spec"]["predictor"]
    model, format_ = predictor["model"], predictor["model"]["modelFormat"]["name"]
    if kind == "mlserver":
        wanted = {"modelClass": _MLSERVER_CLASSES.get(format_, "")}
        variables = {"MLSERVER_MODEL_NAME": service["metadata"]["name"], "MLSERVER_MODEL_URI": MODEL_PATH}
        given = {item["name"] for item in model.get("env") or ()}
        env = [{"name": name, "value": value} for name, value in variables.items() if name not in given]
        model = {**model, "env": [*(model.get("env") or ()), *env]}
    elif kind == "torchserve":
        wanted = {"serviceEnvelope": "kservev2" if model.get("protocolVersion") == "v2" else "kserve"}
    else:
        return service
    metadata = {**service["metadata"], "labels": wanted | labels_of(service)}
    return {**service, "metadata": metadata, "spec": {**service["spec"], "predictor": {**predictor, "model": model}}}


def is_stored_log(url: str) -> bool:
    """Say whether a logger's URL is a place for files, and no service that takes events."""
    return url.startswith(("s3://", "pvc://", "file://"))


def _add_agent(
    spec: dict[str, Any], service: Object, component: str, logger_env: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Put the agent, which logs and batches, beside the container that serves."""
    declared, metadata = service["spec"][component], service["metadata"]
    logger, batcher = declared.get("logger") or {}, declared.get("batcher")
    url = str(logger.get("url") or "")
    if not url.startswith(("http://", "https://")) and not is_stored_log(url):
        url = ""
    if not url and batcher is None:
        return spec
    named = {item.get("name"): item for item in spec["containers"]}
    ports = (named.get(TRANSFORMER) or named.get(CONTAINER) or {}).get("ports")
    port = ports[0]["containerPort"] if ports else PORT
    args = ["--component-port", str(port), "--component", component]
    args += ["--inference-service", metadata["name"], "--namespace", metadata["namespace"]]
    volumes, mounts = list[dict[str, Any]](), list[dict[str, Any]]()
    stored = is_stored_log(url)
    if stored:
        url, volumes, mounts = _log_place(url)
        args += _store_arguments(logger)
    if url:
        args += ["--log-url", url, "--log-mode", logger.get("mode") or "all"]
        if names := logger.get("metadataHeaders"):
            args += ["--metadata-headers", ",".join(names)]
        notes = {
            name: annotations_of(service)[name]
            for name in logger.get("metadataAnnotations") or ()
            if name in annotations_of(service)
        }
        args += ["--log-annotations", json.dumps(notes)] if notes else []
    if batcher is not None:
        args += ["--enable-batcher", "--max-batchsize", str(batcher.get("maxBatchSize") or 32)]
        args += ["--max-latency", str(batcher.get("maxLatency") or 5000)]
        args += ["--timeout", str(batcher["timeout"])] if batcher.get("timeout") else []
        # A server of the user's own may have other services than those of predictions, or no REST beside them.
        grpc_only = str(ports[0].get("name") or "").startswith(("h2c", "grpc")) if ports else False
        args += ["--batch-grpc"] if declared.get("model") and not grpc_only else []
    parquet = stored and _log_format(logger) == "parquet"
    agent = {
        "name": AGENT,
        "image": f"{AGENT_IMAGE}-parquet" if parquet else AGENT_IMAGE,
        "args": args,
        "ports": [{"name": "http", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}},
        "readinessProbe": {"tcpSocket": {"port": AGENT_PORT}, "periodSeconds": 1, "failureThreshold": 3},
    }
    agent |= {"volumeMounts": mounts} if mounts else {}
    agent |= {"env": [dict(item) for item in logger_env]} if logger_env else {}
    volumes = [*(spec.get("volumes") or ()), *volumes]
    return {**spec, "containers": [*spec["containers"], agent]} | ({"volumes": volumes} if volumes else {})


def _log_place(url: str) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the URL of stored logs as the agent sees it, and the volume and mount that make it so."""
    if claim := claim_of(url):
        source: dict[str, Any] = {"persistentVolumeClaim": {"claimName": claim.name}}
        path = f"/{claim.path}" if claim.path else ""
    elif url.startswith("file://"):
        source = {"hostPath": {"path": url.removeprefix("file://") or "/", "type": "DirectoryOrCreate"}}
        path = ""
    else:
        return url, [], []
    mount = {"name": "kserve-logs", "mountPath": LOG_PATH}
    return f"file://{LOG_PATH}{path}", [{"name": "kserve-logs", **source}], [mount]


def _log_format(logger: Mapping[str, Any]) -> str:
    return str(((logger.get("storage") or {}).get("parameters") or {}).get("format") or "json")


def _store_arguments(logger: Mapping[str, Any]) -> list[str]:
    storage = logger.get("storage") or {}
    args = ["--log-store-path", storage.get("path") or "", "--log-store-format", _log_format(logger)]
    args += ["--log-batch-size", str(logger["batchSize"])] if logger.get("batchSize") else []
    if interval := logger.get("batchInterval"):
        args += ["--log-batch-interval", str(parse_duration(interval))]
    return args + (["--log-marshaller-url", logger["marshallerUrl"]] if logger.get("marshallerUrl") else [])


def parse_duration(text: str) -> float:
    """
    Return the seconds of a duration as Go writes them, such as ``1m30s`` or ``500ms``.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+", text):
        raise ValueError(f"{text!r} is no duration such as 10s, 500ms or 1m30s")
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text))


def _with_arguments(container: Mapping[str, Any], service: Object, component: str) -> dict[str, Any]:
    """Tell a transformer or explainer whose it is and where the predictor is, unless its arguments say so already."""
    args = [str(item) for item in container.get("args") or []]
    namespace = service["metadata"]["namespace"]
    wanted = {
        "--model_name": service["metadata"]["name"],
        "--predictor_host": f"{workload_name(service)}.{namespace}",
        "--http_port": str(PORT),
    }
    if workers := service["spec"][component].get("containerConcurrency"):
        wanted["--workers"] = str(workers)
    for name, value in wanted.items():
        if not any(item == name or item.startswith(f"{name}=") for item in args):
            args += [name, value]
    return {**container, "args": args}


def _containers(predictor: Mapping[str, Any], runtime_spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    own = list(predictor.get("containers") or [])
    if art := predictor.get("art"):
        options = [text for name, value in (art.get("config") or {}).items() for text in (f"--{name}", str(value))]
        fields = {name: value for name, value in art.items() if name not in (*_MODEL_FIELDS, "type", "config")}
        args = ["--adversary_type", art["type"], *options, *(art.get("args") or [])]
        return [{"image": EXPLAINER_IMAGE, **fields, "name": CONTAINER, "args": args}, *own]
    model = predictor.get("model")
    if model is None:
        return own
    merged = serving_container(predictor, runtime_spec)
    base = list(runtime_spec.get("containers") or [])
    others = {item["name"]: item for item in base if item is not _base_container(runtime_spec)}
    for item in own:
        others[item["name"]] = _merge_container(others.get(item["name"], {}), item)
    return [merged, *others.values()]


def _base_container(runtime_spec: Mapping[str, Any]) -> Mapping[str, Any]:
    base = list(runtime_spec.get("containers") or [])
    return next((item for item in base if item.get("name") == CONTAINER), base[0] if base else {})


def serving_container(predictor: Mapping[str, Any], runtime_spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runtime's container with what ``predictor.model`` says of it."""
    model = predictor["model"]
    user = {name: value for name, value in model.items() if name not in _MODEL_FIELDS}
    merged = _merge_container(_base_container(runtime_spec), user) | {"name": CONTAINER}
    if version := model.get("runtimeVersion"):
        merged["image"] = _with_tag(merged.get("image", ""), version)
    return merged


def _merge_container(base: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    merged = strategic_merge_patch(dict(base), dict(user), "Container", _merge_rule)
    if args := [*(base.get("args") or []), *(user.get("args") or [])]:
        merged["args"] = args
    return merged


def _merge_rule(type_name: str, field: str) -> FieldMerge:
    key = _LISTS.get(type_name, {}).get(field, "")
    return FieldMerge("", bool(key), key)


def _with_tag(image: str, tag: str) -> str:
    if "@" in image:
        return image
    repository, colon, last = image.rpartition(":")
    return f"{repository if colon and '/' not in last else image}:{tag}"


def render_service_port(name: str, port: int, target: int) -> dict[str, Any]:
    """Render a port of a Service, from the name and number of the container's; the name says what speaks HTTP/2."""
    rendered = {"name": name, "port": port, "targetPort": target, "protocol": "TCP"}
    return rendered | ({"appProtocol": "kubernetes.io/h2c"} if name.startswith(("h2c", "http2", "grpc")) else {})


def _finish(container: Mapping[str, Any], service: Object, *, collocated: bool) -> dict[str, Any]:
    """
    Complete a container.

    Args:
        collocated: a transformer is in the Pod, and has the port that is asked unless the other one says its own.
    """
    finished: dict[str, Any] = _expand(container, service)
    env = [item for item in finished.get("env") or [] if item["name"] != "INFERENCE_SERVICE_NAME"]
    finished["env"] = [*env, {"name": "INFERENCE_SERVICE_NAME", "value": service["metadata"]["name"]}]
    # What a process said last becomes the message that users read when it could not load its model.
    finished.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    ports = finished.get("ports") or []
    name = finished.get("name")
    if name == TRANSFORMER or (name == CONTAINER and (ports or not collocated)):
        port = ports[0]["containerPort"] if ports else PORT
        probe = {"tcpSocket": {"port": port}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 3}
        finished.setdefault("readinessProbe", probe)
    return finished


def _expand(value: Any, service: Object) -> Any:
    if isinstance(value, str):
        return _EXPRESSION.sub(lambda match: _lookup(match, service["metadata"]), value)
    if isinstance(value, Mapping):
        return {name: _expand(item, service) for name, item in value.items()}
    return [_expand(item, service) for item in value] if isinstance(value, list) else value


def _lookup(match: re.Match[str], metadata: Mapping[str, Any]) -> str:
    name, key = match.groups()
    if name in ("Name", "Namespace"):
        return str(metadata.get(name.lower(), ""))
    return str((metadata.get(name.lower()) or {}).get(key, "<no value>"))


def _metadata(service: Object, runtime_spec: Mapping[str, Any], storage: Storage, component: str) -> dict[str, Any]:
    declared, name = service["spec"][component], service["metadata"]["name"]
    labels = {**(runtime_spec.get("labels") or {}), **labels_of(service), **(declared.get("labels") or {})}
    labels |= {
        "app": f"isvc.{workload_name(service, component)}",
        "component": component,
        "serving.kserve.io/inferenceservice": name,
    }
    annotations = {
        **(runtime_spec.get("annotations") or {}),
        **({REQUIREMENTS: "\n".join(storage.requirements)} if storage.requirements else {}),
        **annotations_of(service),
        **(declared.get("annotations") or {}),
    }
    return {
        "labels": labels,
        "annotations": {key: value for key, value in annotations.items() if not key.startswith(_NOT_PROPAGATED)},
    }


def _add_storage(spec: dict[str, Any], service: Object, storage: Storage) -> dict[str, Any]:
    """Mount what lies in claims, and let init containers bring the rest."""
    sources = [Source(storage.uri, storage.mount_path, storage.host_path, storage.container)] if storage.uri else []
    sources += storage.others
    notes = annotations_of(service)
    # What other services use as well is never written to.
    read_only = notes.get(READ_ONLY, "true") != "false" or CLAIM_NOTE in notes
    volumes, mounts = list(spec.get("volumes") or []), list[dict[str, Any]]()
    for index, source in enumerate(sources):
        if claim := claim_of(source.uri):
            mount = {"name": f"kserve-pvc-source{f'-{index}' if index else ''}", "mountPath": source.mount_path}
            volumes.append({"name": mount["name"], "persistentVolumeClaim": {"claimName": claim.name}})
            mounts.append(mount | ({"subPath": claim.path} if claim.path else {}))
    brought = [source for source in sources if not claim_of(source.uri)]
    place: dict[str, Any] = {"name": "kserve-provision-location"}
    if brought:
        # One folder has them all, as one may lie in another; claims are mounted over it.
        place["mountPath"] = common_parent([source.mount_path for source in brought])
        mounts.insert(0, place)
    result = dict(spec)
    if brought:
        volumes.append({"name": "kserve-provision-location", "emptyDir": {}})
        hosts = {source.host_path: "" for source in brought if source.host_path}
        for number, path in enumerate(hosts):
            hosts[path] = f"kserve-host-source{f'-{number}' if number else ''}"
            volumes.append({"name": hosts[path], "hostPath": {"path": path}})
        initializers = _initializers(brought, place, hosts, storage.env)
        result["initContainers"] = [*initializers, *(spec.get("initContainers") or [])]
    if mounts:
        for_reading = [{**mount, "readOnly": read_only} for mount in mounts]
        path = sources[0].mount_path
        result["containers"] = [_mount(container, for_reading, path) for container in spec["containers"]]
        result["volumes"] = volumes
    return result


def _initializers(
    brought: Sequence[Source], place: Mapping[str, Any], hosts: Mapping[str, str], env: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """
    Render an init container for all that the same container brings.

    Args:
        place: the mount that all of it goes into.
        hosts: path on this machine -> the volume that it is.
    """
    containers: list[Mapping[str, Any]] = []
    for source in brought:
        containers += [source.container] if source.container not in containers else []
    rendered = []
    for number, container in enumerate(containers):
        own = [source for source in brought if source.container == container]
        seen = [source.host_path for source in own if source.host_path]
        base = container or DEFAULT_CONTAINER["spec"]["container"]
        variables = [*(base.get("env") or ()), *(dict(item) for item in env)]
        initializer = {
            "terminationMessagePolicy": "FallbackToLogsOnError",
            **base,
            "name": f"storage-initializer{f'-{number}' if number else ''}",
            "args": [
                *(base.get("args") or ()),
                *(text for source in own for text in (source.uri, source.mount_path)),
            ],
            "volumeMounts": [
                *(base.get("volumeMounts") or ()),
                dict(place),
                *({"name": hosts[path], "mountPath": path, "readOnly": True} for path in dict.fromkeys(seen)),
            ],
        }
        rendered.append(initializer | ({"env": variables} if variables else {}))
    return rendered


def _mount(container: dict[str, Any], mounts: Sequence[Mapping[str, Any]], path: str) -> dict[str, Any]:
    """Mount the model in the container that serves it and set its STORAGE_URI, if it asked, to its path."""
    if container.get("name") != CONTAINER:
        return container
    taken = {mount["mountPath"] for mount in mounts}
    kept = [item for item in container.get("volumeMounts") or [] if item["mountPath"] not in taken]
    env = [{**item, "value": path} if item["name"] == "STORAGE_URI" else item for item in container["env"]]
    return {**container, "env": env, "volumeMounts": [*kept, *(dict(mount) for mount in mounts)]}
