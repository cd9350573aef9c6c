"""What the API server does with an InferenceService before it stores it: defaults and validation; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shallop.controller.kind import Admission
from shallop.errors import FieldError, InvalidError
from shallop.kube.client import Client
from shallop.kube.objects import Object, annotations_of, labels_of
from shallop.serving.clusterstoragecontainer import CLUSTER_STORAGE_CONTAINER, select_container
from shallop.serving.podtemplate import (
    CONTAINER,
    MODEL_PATH,
    common_parent,
    is_stored_log,
    parse_duration,
    workload_name,
)
from shallop.serving.schemas import FRAMEWORKS
from shallop.serving.storage import check_uri, has_known_scheme

__all__ = [
    "COMPONENTS",
    "DEPLOYMENT_MODE",
    "MODEL_CHECKSUM",
    "default",
    "ignored_fields",
    "mode_of",
    "refuse_unknown_schemes",
    "validate",
]

COMPONENTS = ("predictor", "transformer", "explainer")

DEPLOYMENT_MODE = "serving.kserve.io/deploymentMode"
# What the one file that a model is brought as must be: its SHA-256.
MODEL_CHECKSUM = "serving.shallop.dev/model-sha256"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
SCALING_METRIC = "serving.kserve.io/metrics"
SCALING_TARGET = "serving.kserve.io/targetUtilizationPercentage"
_LEGACY_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
_MODES = ("Standard", "Knative", "ModelMesh")
_V2_BY_DEFAULT = ("triton", "onnx", "huggingface", "vLLM")
_MAX_NAME = 63
_VISIBILITY = ("networking.kserve.io/visibility", "networking.knative.dev/visibility")
NO_UPDATE = "serving.kserve.io/disable-auto-update"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_REQUESTS, _RESOURCES = ("concurrency", "rps"), ("cpu", "memory")
_METRIC_TYPES = ("Resource", "External", "PodMetric")
# Type of a target -> the field that it has.
_TARGETS = {"Utilization": "averageUtilization", "AverageValue": "averageValue", "Value": "value"}
_NOT_OF_CANARIES = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling", "workerSpec")


def default(service: Object) -> Object:
    """Return the InferenceService with today's name of its deployment mode and one way to name its model."""
    spec = service.get("spec")
    if not isinstance(spec, Mapping):
        return service
    predictor = _default_predictor(spec.get("predictor"))
    annotations = dict(annotations_of(service))
    if mode := annotations.get(DEPLOYMENT_MODE):
        annotations[DEPLOYMENT_MODE] = _LEGACY_MODES.get(mode, mode)
    if format_ := _model_format(predictor):
        annotations["modelFormat"] = format_
    components = {name: _name_container(spec[name]) for name in COMPONENTS[1:] if isinstance(spec.get(name), Mapping)}
    components |= {"predictor": predictor} if predictor is not None else {}
    metadata = {**service["metadata"], "annotations": annotations} if annotations else service["metadata"]
    return {**service, "metadata": metadata, "spec": {**spec, **components}}


def refuse_unknown_schemes(client: Client) -> Admission:
    """Refuse new services whose model nothing here brings, which takes a look at the ClusterStorageContainers."""

    async def check(service: Object) -> Object:
        predictor = (service.get("spec") or {}).get("predictor")
        for path, uri in _declared_uris(predictor) if isinstance(predictor, Mapping) else ():
            if has_known_scheme(uri):
                continue
            containers = (await client.list(CLUSTER_STORAGE_CONTAINER.gvk)).items
            if select_container(uri, containers) is None:
                detail = f"{check_uri(uri)}; or create a ClusterStorageContainer that brings it"
                errors = [FieldError.invalid(f"spec.predictor.{path}", uri, detail)]
                group, name = "serving.kserve.io", str((service.get("metadata") or {}).get("name") or "")
                raise InvalidError.of("InferenceService", group, name, errors)
        return service

    return check


def _declared_uris(predictor: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return field below the predictor and URI of what an object that nobody has checked yet wants to be brought."""
    found = []
    for name in ("model", *FRAMEWORKS):
        block = predictor.get(name)
        if isinstance(block, Mapping) and isinstance(block.get("storageUri"), str):
            found.append((f"{name}.storageUri", block["storageUri"]))
    several = predictor.get("storageUris")
    for index, item in enumerate(several if isinstance(several, list) else ()):
        if isinstance(item, Mapping) and isinstance(item.get("uri"), str):
            found.append((f"storageUris[{index}].uri", item["uri"]))
    return found


def mode_of(service: Object) -> str:
    """Return ``Knative``, the default, or ``Standard``; ModelMesh is served as Standard."""
    return "Knative" if annotations_of(service).get(DEPLOYMENT_MODE, "Knative") == "Knative" else "Standard"


def _name_container(component: Mapping[str, Any]) -> dict[str, Any]:
    """Name the container of a component that has one without a name."""
    containers = component.get("containers")
    if isinstance(containers, list) and len(containers) == 1 and isinstance(containers[0], Mapping):
        return {**component, "containers": [{**containers[0], "name": containers[0].get("name") or CONTAINER}]}
    return dict(component)


def _model_format(predictor: Any) -> str:
    model = predictor.get("model") if isinstance(predictor, Mapping) else None
    format_ = model.get("modelFormat") if isinstance(model, Mapping) else None
    return str(format_.get("name") or "") if isinstance(format_, Mapping) else ""


def _default_predictor(predictor: Any) -> Any:
    if not isinstance(predictor, Mapping):
        return predictor
    result = dict(predictor)
    legacy = [name for name in FRAMEWORKS if isinstance(result.get(name), Mapping)]
    if len(legacy) == 1:
        # Also over a model: applying the same manifest again brings the key back beside the model it became.
        result["model"] = {**result.pop(legacy[0]), "modelFormat": {"name": legacy[0]}}
    if isinstance(result.get("model"), Mapping):
        model = dict(result["model"])
        if model.get("name") == "":
            del model["name"]  # the SDK always sends it
        if _model_format(result) in _V2_BY_DEFAULT:
            model.setdefault("protocolVersion", "v2")
        result["model"] = model
    return _name_container(result)


def validate(service: Object, old: Object | None) -> list[FieldError]:
    """Check what a schema cannot say; one error per thing to put right."""
    spec = service.get("spec") or {}
    predictor = spec.get("predictor") or {}
    errors = _check_name(service) if predictor else []
    errors += _check_implementation(predictor)
    errors += _check_storage(spec)
    errors += _check_checksum(service, predictor)
    errors += _check_workers(service, predictor)
    for name in COMPONENTS:
        component = spec.get(name) or {}
        errors += _check_replicas(f"spec.{name}", component)
        errors += _check_scaling(service, f"spec.{name}", component)
        errors += _check_batcher(f"spec.{name}.batcher", component.get("batcher") or {})
        errors += _check_logger(f"spec.{name}.logger", component.get("logger") or {})
        if (
            name != "predictor"
            and spec.get(name) is not None
            and not (component.get("containers") or component.get("art"))
        ):
            errors.append(FieldError.required(f"spec.{name}.containers", "give the container of your own"))
    errors += _check_scaling_notes(service)
    errors += _check_canaries(service, spec, predictor)
    errors += _check_rename(service, old)
    return errors + _check_mode(service, old)


def _check_name(service: Object) -> list[FieldError]:
    name = service["metadata"].get("name") or ""
    if name and not _NAME.fullmatch(name):
        detail = "must match [a-z]([-a-z0-9]*[a-z0-9])?: lower case letters, digits and '-', starting with a letter"
        return [FieldError.invalid("metadata.name", name, detail)]
    if len(workload_name(service)) > _MAX_NAME:
        detail = (
            f"too long: its Service would be named {workload_name(service)}; a Service's name has at most {_MAX_NAME}"
        )
        return [FieldError.invalid("metadata.name", name, f"{detail} characters")]
    return []


def _check_implementation(predictor: Mapping[str, Any]) -> list[FieldError]:
    given = [name for name in ("model", *FRAMEWORKS) if predictor.get(name) is not None]
    errors = []
    if len(given) > 1:
        detail = f"exactly one implementation is possible; {', '.join(given)} are given"
        errors.append(FieldError.forbidden(f"spec.predictor.{given[1]}", detail))
    if not given and not predictor.get("containers"):
        errors.append(FieldError.required("spec.predictor.model", "give a model, or containers of your own"))
    for index, container in enumerate(predictor.get("containers") or () if given else ()):
        if container.get("name") == CONTAINER:
            detail = f"is the container of spec.predictor.{given[0]}: put its fields there, or leave {given[0]} out"
            errors.append(FieldError.forbidden(f"spec.predictor.containers[{index}]", detail))
    if (predictor.get("model") or {}).get("name"):
        detail = "the 'name' field is not allowed in standard predictor"
        errors.append(FieldError.forbidden("spec.predictor.model.name", detail))
    name = predictor.get("name")
    if name and not _NAME.fullmatch(name):
        errors.append(FieldError.invalid("spec.predictor.name", name, "must match [a-z]([-a-z0-9]*[a-z0-9])?"))
    return errors


def _check_storage(spec: Mapping[str, Any]) -> list[FieldError]:
    predictor = spec.get("predictor") or {}
    uri, errors = (predictor.get("model") or {}).get("storageUri"), []
    if uri and has_known_scheme(uri) and (problem := check_uri(uri)):
        errors.append(FieldError.invalid("spec.predictor.model.storageUri", uri, problem))
    if uri and predictor.get("storageUris"):
        detail = "Setting both StorageURI and StorageURIs is not supported; leave out spec.predictor.model.storageUri"
        errors.append(FieldError.forbidden("spec.predictor.storageUris", detail))
    for name in COMPONENTS:
        errors += _check_storage_uris(f"spec.{name}.storageUris", (spec.get(name) or {}).get("storageUris") or ())
    for index, container in enumerate(predictor.get("containers") or ()):
        if container.get("name") == "transformer-container":
            names = [item["name"] for item in container.get("env") or ()]
            if "STORAGE_URI" in names:
                path = f"spec.predictor.containers[{index}].env[{names.index('STORAGE_URI')}]"
                detail = "storage uri should not be specified in transformer container"
                errors.append(FieldError.forbidden(path, detail))
    return errors


def _check_storage_uris(path: str, items: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """Check several URIs, in the words of KServe."""
    errors, claimed, brought = [], list[str](), list[str]()
    for index, item in enumerate(items):
        uri, place = item.get("uri") or "", item.get("mountPath") or MODEL_PATH
        if not uri:
            errors.append(FieldError.required(f"{path}[{index}].uri", "storage URI cannot be empty"))
        elif has_known_scheme(uri) and (problem := check_uri(uri)):
            errors.append(FieldError.invalid(f"{path}[{index}].uri", uri, problem))
        where = f"{path}[{index}].mountPath"
        if not place.strip("/"):
            errors.append(FieldError.invalid(where, place, "storage path cannot be empty, nor the root"))
        elif not place.startswith("/"):
            errors.append(FieldError.invalid(where, place, f"storage path must be absolute: {place}"))
        elif ".." in place:
            detail = f"storage path cannot contain '..' for security reasons: {place}"
            errors.append(FieldError.invalid(where, place, detail))
        elif uri.startswith("pvc://") and place in claimed:
            errors.append(FieldError.invalid(where, place, "PVC storage paths must be unique"))
        (claimed if uri.startswith("pvc://") else brought).append(place)
    if not errors and len(brought) > 1 and common_parent(brought) == "/":
        detail = (
            f"storage paths must have a common parent directory. Current paths: [{' '.join(brought)}] have no common "
            "parent beyond root"
        )
        errors.append(FieldError.invalid(path, brought, detail))
    return errors


def _check_checksum(service: Object, predictor: Mapping[str, Any]) -> list[FieldError]:
    checksum = annotations_of(service).get(MODEL_CHECKSUM)
    if checksum is None:
        return []
    path, uri = f"metadata.annotations[{MODEL_CHECKSUM}]", str((predictor.get("model") or {}).get("storageUri") or "")
    if not re.fullmatch("[0-9a-fA-F]{64}", checksum):
        return [FieldError.invalid(path, checksum, "must be 64 hexadecimal digits")]
    if uri.startswith(("pvc://", "oci")):
        detail = "is for a model of one file that is brought; a claim is mounted, an image has a digest: @sha256:..."
        return [FieldError.forbidden(path, detail)]
    return []


def _check_workers(service: Object, predictor: Mapping[str, Any]) -> list[FieldError]:
    """Check a predictor of several nodes."""
    path, workers, model = "spec.predictor.workerSpec", predictor.get("workerSpec"), predictor.get("model")
    if workers is None:
        return []
    errors = []
    if mode_of(service) == "Knative":
        errors.append(FieldError.forbidden(path, f"is for Standard mode: set the annotation {DEPLOYMENT_MODE}"))
    scaler, note = annotations_of(service).get(AUTOSCALER) or "", f"metadata.annotations[{AUTOSCALER}]"
    if scaler != "none":
        detail = "Multinode only supports 'none' autoscaler: several nodes are one replica"
        errors.append(FieldError.invalid(note, scaler, detail))
    if model is None:
        detail = "needs spec.predictor.model: the workers are those of its runtime"
        errors.append(FieldError.forbidden(path, detail))
    elif not (model.get("storageUri") or model.get("storage") or predictor.get("storageUris")):
        detail = "StorageURI must be set for multinode enabled"
        errors.append(FieldError.required("spec.predictor.model.storageUri", detail))
    for name in ("pipelineParallelSize", "tensorParallelSize"):
        if (size := workers.get(name)) is not None and size < 1:
            errors.append(FieldError.invalid(f"{path}.{name}", size, "cannot be less than 1"))
    containers = workers.get("containers") or []
    if len(containers) > 1:
        errors.append(FieldError.forbidden(f"{path}.containers", "multiple containers in workerSpec are not allowed"))
    declared = [("spec.predictor.model", model or {}), *((f"{path}.containers[0]", item) for item in containers[:1])]
    for where, container in declared:
        for index, item in enumerate(container.get("env") or ()):
            if item.get("name") in ("PIPELINE_PARALLEL_SIZE", "TENSOR_PARALLEL_SIZE"):
                detail = f"setting {item['name']} in environment variables is not allowed; use the size in {path}"
                errors.append(FieldError.forbidden(f"{where}.env[{index}]", detail))
    return errors


def _check_replicas(path: str, component: Mapping[str, Any]) -> list[FieldError]:
    low, high = component.get("minReplicas"), component.get("maxReplicas") or 0
    errors = []
    if low is not None and low < 0:
        errors.append(FieldError.invalid(f"{path}.minReplicas", low, "must be greater than or equal to 0"))
    if high < 0:
        errors.append(FieldError.invalid(f"{path}.maxReplicas", high, "must be greater than or equal to 0"))
    if low is not None and 0 < high < low:
        errors.append(FieldError.invalid(f"{path}.maxReplicas", high, f"must not be less than minReplicas ({low})"))
    for name in ("containerConcurrency", "timeout"):
        value = component.get(name)
        if value is not None and value < 0:
            errors.append(FieldError.invalid(f"{path}.{name}", value, "must be greater than or equal to 0"))
    percent = component.get("canaryTrafficPercent")
    if percent is not None and not 0 <= percent <= 100:
        errors.append(FieldError.invalid(f"{path}.canaryTrafficPercent", percent, "must be between 0 and 100"))
    return errors


def _check_scaling(service: Object, path: str, component: Mapping[str, Any]) -> list[FieldError]:
    metric, mode = component.get("scaleMetric"), mode_of(service)
    where, errors = f"{path}.scaleMetric", []
    scaler = annotations_of(service).get(AUTOSCALER, "")
    if mode == "Standard" and metric in _REQUESTS:
        detail = "counts requests, which only Knative mode scales by; use cpu or memory, or leave deploymentMode out"
        errors.append(FieldError.invalid(where, metric, detail))
    elif scaler == "hpa" and metric in _REQUESTS:
        detail = f"is nothing that an autoscaler of class hpa knows; use cpu or memory, or leave {AUTOSCALER} out"
        errors.append(FieldError.invalid(where, metric, detail))
    target = component.get("scaleTarget")
    if target is not None and target < 0:
        errors.append(FieldError.invalid(f"{path}.scaleTarget", target, "must be greater than or equal to 0"))
    elif metric == "cpu" and component.get("scaleMetricType") != "AverageValue" and target and not 1 <= target <= 100:
        errors.append(FieldError.invalid(f"{path}.scaleTarget", target, "a CPU utilization is 1 to 100"))
    if component.get("deploymentStrategy") and mode == "Knative":
        detail = "is for Standard mode; in Knative mode a new revision takes over once it is ready"
        errors.append(FieldError.forbidden(f"{path}.deploymentStrategy", detail))
    for index, item in enumerate((component.get("autoScaling") or {}).get("metrics") or ()):
        errors += _check_metric(f"{path}.autoScaling.metrics[{index}]", item)
    return errors


def _check_metric(path: str, metric: Mapping[str, Any]) -> list[FieldError]:
    """Check one metric of ``autoScaling``; those that have no source here are named in an Event, see ignored_fields."""
    if metric.get("type") not in _METRIC_TYPES:
        return [FieldError.not_supported(f"{path}.type", metric.get("type"), _METRIC_TYPES)]
    if metric["type"] != "Resource":
        return []
    resource = metric.get("resource") or {}
    name, target = resource.get("name"), resource.get("target") or {}
    if name not in _RESOURCES:
        return [FieldError.not_supported(f"{path}.resource.name", name, _RESOURCES)]
    kind, where = target.get("type"), f"{path}.resource.target"
    if kind not in _TARGETS:
        return [FieldError.not_supported(f"{where}.type", kind, tuple(_TARGETS))]
    value = target.get(_TARGETS[kind])
    if value is None:
        return [FieldError.required(f"{where}.{_TARGETS[kind]}", f"a target of type {kind} has it")]
    if kind == "Utilization" and not (isinstance(value, int) and value >= 1 and (name != "cpu" or value <= 100)):
        return [FieldError.invalid(f"{where}.averageUtilization", value, "a utilization of CPU is 1 to 100")]
    return []


def _check_scaling_notes(service: Object) -> list[FieldError]:
    """Check the annotations that scale in Standard mode."""
    errors, notes = [], annotations_of(service)
    metric = notes.get(SCALING_METRIC)
    if metric is not None and metric not in _RESOURCES:
        errors.append(FieldError.not_supported(f"metadata.annotations[{SCALING_METRIC}]", metric, _RESOURCES))
    target = notes.get(SCALING_TARGET)
    if target is not None and not (re.fullmatch("[0-9]{1,9}", target) and 1 <= int(target) <= 100):
        detail = "The target utilization percentage should be a [1-100] integer."
        errors.append(FieldError.invalid(f"metadata.annotations[{SCALING_TARGET}]", target, detail))
    return errors


def _check_batcher(path: str, batcher: Mapping[str, Any]) -> list[FieldError]:
    return [
        FieldError.invalid(f"{path}.{name}", value, "must be greater than or equal to 0")
        for name, value in batcher.items()
        if isinstance(value, int) and value < 0
    ]


def _check_logger(path: str, logger: Mapping[str, Any]) -> list[FieldError]:
    storage, errors = logger.get("storage"), []
    if interval := logger.get("batchInterval"):
        try:
            parse_duration(interval)
        except ValueError as error:
            errors.append(FieldError.invalid(f"{path}.batchInterval", interval, str(error)))
    if (logger.get("batchSize") or 0) < 0:
        errors.append(FieldError.invalid(f"{path}.batchSize", logger["batchSize"], "must be at least 1"))
    if storage is None:
        return errors
    missing = [name for name in ("key", "parameters", "path") if not storage.get(name)]
    errors += [
        FieldError.required(f"{path}.storage.{name}", "key, parameters and path go together") for name in missing
    ]
    format_ = (storage.get("parameters") or {}).get("format") or "json"
    if format_ not in ("json", "csv", "parquet"):
        where = f"{path}.storage.parameters[format]"
        errors.append(FieldError.not_supported(where, format_, ("json", "csv", "parquet")))
    if ".." in (storage.get("path") or "").split("/"):
        errors.append(FieldError.invalid(f"{path}.storage.path", storage["path"], "must not contain '..'"))
    return errors


def _check_canaries(service: Object, spec: Mapping[str, Any], predictor: Mapping[str, Any]) -> list[FieldError]:
    errors, names, total = [], {predictor.get("name") or ""}, 0
    if spec.get("canary") and mode_of(service) == "Knative":
        detail = (
            f"is for Standard mode: set the annotation {DEPLOYMENT_MODE}, or use spec.predictor.canaryTrafficPercent"
        )
        errors.append(FieldError.forbidden("spec.canary", detail))
    for index, canary in enumerate(spec.get("canary") or []):
        path = f"spec.canary[{index}]"
        name, percent = (canary.get("predictor") or {}).get("name") or "", canary.get("trafficPercent") or 0
        total += percent
        if not name:
            errors.append(FieldError.required(f"{path}.predictor.name"))
        elif name in names:
            errors.append(FieldError.invalid(f"{path}.predictor.name", name, "is already the name of a predictor"))
        names.add(name)
        errors += _check_canary(f"{path}.predictor", canary.get("predictor") or {}, predictor)
        if not 0 <= percent <= 100 or total > 100:
            detail = "must be between 0 and 100, and all of them together at most 100"
            errors.append(FieldError.invalid(f"{path}.trafficPercent", percent, detail))
    return errors


def _check_canary(path: str, canary: Mapping[str, Any], stable: Mapping[str, Any]) -> list[FieldError]:
    detail = "a canary has as many replicas as minReplicas, or its share of the traffic, says"
    errors = [FieldError.forbidden(f"{path}.{name}", detail) for name in _NOT_OF_CANARIES if canary.get(name)]
    low, most = canary.get("minReplicas") or 0, stable.get("minReplicas")
    most = 1 if most is None else most
    if low > most:
        errors.append(FieldError.invalid(f"{path}.minReplicas", low, f"must not be more than the stable one's, {most}"))
    if canary.get("name") and not _NAME.fullmatch(canary["name"]):
        errors.append(FieldError.invalid(f"{path}.name", canary["name"], "must match [a-z]([-a-z0-9]*[a-z0-9])?"))
    return errors


def _check_rename(service: Object, old: Object | None) -> list[FieldError]:
    """Refuse another name for the same model: the running Pods would go, for nothing."""
    after, before = (((item or {}).get("spec") or {}).get("predictor") or {} for item in (service, old))
    uri, name = (after.get("model") or {}).get("storageUri"), after.get("name") or ""
    if not uri or name == (before.get("name") or "") or uri != (before.get("model") or {}).get("storageUri"):
        return []
    detail = "cannot change while spec.predictor.model.storageUri stays: a name is of a model; give it another one"
    return [FieldError.invalid("spec.predictor.name", name, detail)]


def _check_mode(service: Object, old: Object | None) -> list[FieldError]:
    annotations = annotations_of(service)
    mode, errors = annotations.get(DEPLOYMENT_MODE, "Knative"), []
    path = f"metadata.annotations[{DEPLOYMENT_MODE}]"
    if mode not in _MODES:
        errors.append(FieldError.not_supported(path, mode, _MODES))
    scaler = annotations.get(AUTOSCALER)
    if scaler is not None and scaler not in ("hpa", "external", "keda", "none"):
        choices = ("hpa", "external", "keda", "none")
        errors.append(FieldError.not_supported(f"metadata.annotations[{AUTOSCALER}]", scaler, choices))
    before = ((old or {}).get("status") or {}).get("deploymentMode")
    if before is not None and before != mode_of(service):
        detail = f"cannot change from {before}; delete the object and create it anew"
        errors.append(FieldError.invalid(path, mode, detail))
    return errors


def _ignored_of_logger(path: str, logger: Mapping[str, Any] | None) -> list[str]:
    if logger is None:
        return []
    url, fields = str(logger.get("url") or ""), ("storage", "marshallerUrl", "batchSize", "batchInterval")
    if not url:
        return [f"{path} without url"]
    if is_stored_log(url):
        return []
    if not url.startswith(("http://", "https://")):
        return [f"{path}.url of {url.partition(':')[0]}: (use http, s3, pvc or file)"]
    return [f"{path}.{field} with an http url" for field in fields if logger.get(field)]


def ignored_fields(service: Object) -> list[str]:
    """Return the paths of fields that are stored but have no effect here yet."""
    spec, mode, paths = service["spec"], mode_of(service), []
    for name in COMPONENTS:
        component = spec.get(name) or {}
        paths += _ignored_of_logger(f"spec.{name}.logger", component.get("logger"))
        metrics = (component.get("autoScaling") or {}).get("metrics") or []
        paths += [
            f"spec.{name}.autoScaling.metrics[{index}]"
            for index, metric in enumerate(metrics)
            if mode == "Knative" or metric.get("type") != "Resource"
        ]
        if mode == "Standard":
            standard = ("canaryTrafficPercent", "containerConcurrency")
            paths += [f"spec.{name}.{field}" for field in standard if component.get(field) is not None]
    if mode == "Standard" and spec["predictor"].get("minReplicas") == 0:
        paths.append("spec.predictor.minReplicas of 0 in Standard mode")
    if annotations_of(service).get(AUTOSCALER) == "keda":
        paths.append(f"annotation {AUTOSCALER} of keda: (nobody scales; use hpa)")
    for label in _VISIBILITY:
        if labels_of(service).get(label) == "cluster-local":
            paths.append(f"label {label} of cluster-local: (the gateway serves every service)")
    if annotations_of(service).get(NO_UPDATE) == "true":
        paths.append(f"annotation {NO_UPDATE}")
    if annotations_of(service).get(DEPLOYMENT_MODE) == "ModelMesh":
        paths.append(f"annotation {DEPLOYMENT_MODE} of ModelMesh")
    return paths
