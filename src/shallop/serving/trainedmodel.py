"""
TrainedModel: one of several models in the server of an InferenceService whose predictor has no storage of its own.

Honoured: all of the spec. The models of a service are listed in the ConfigMap ``modelconfig-<service>-0``, which the
service's own reconcile keeps; beside the server a puller (``shallop_pod.puller``) brings what the list names and has
the server load it. ``memory`` adds up against the memory limit of the predictor's container.

Source: KServe v1alpha1 TrainedModel controller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from shallop.controller.kind import Column, Kind, Resource, Result
from shallop.controller.manager import Context
from shallop.errors import FieldError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    find_condition,
    is_deleting,
    labels_of,
    parse_quantity,
    set_condition,
)
from shallop.serving.podtemplate import CONTAINER, is_multi_model, model_config_name
from shallop.serving.schemas import TRAINED_MODEL as SCHEMA
from shallop.serving.status import merge_status
from shallop.serving.storage import check_uri

__all__ = ["TRAINED_MODEL", "fitting", "models_of", "render_model_config"]

INFERENCE_SERVICE = Gvk("serving.kserve.io/v1beta1", "InferenceService")
POD = Gvk("v1", "Pod")
_LABEL = "serving.kserve.io/inferenceservice"
_WAITING_S, _LOOK_AGAIN_S = 1.0, 30.0


def render_model_config(service: Object, models: Iterable[Object]) -> Object:
    """Render the list of models that the puller beside a server reads."""
    entries = [
        {"modelName": model["metadata"]["name"], "modelSpec": dict(model["spec"]["model"])}
        for model in sorted(models, key=_name)
    ]
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": model_config_name(name), "namespace": namespace, "labels": {_LABEL: name}},
        "data": {"models.json": json.dumps(entries, sort_keys=True)},
    }


def validate(model: Object, old: Object | None) -> list[FieldError]:
    """Check what a schema cannot say."""
    spec = (model.get("spec") or {}).get("model") or {}
    name, errors = str(model["metadata"].get("name") or ""), []
    if name and not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        detail = "must match [a-z]([-a-z0-9]*[a-z0-9])?: it becomes part of the path of its predictions"
        errors.append(FieldError.invalid("metadata.name", name, detail))
    if problem := check_uri(spec.get("storageUri") or "/"):
        errors.append(FieldError.invalid("spec.model.storageUri", spec["storageUri"], problem))
    if str(spec.get("storageUri")).startswith("pvc://"):
        detail = "a running server cannot mount a claim; name it as the service's storageUri, or use another place"
        errors.append(FieldError.invalid("spec.model.storageUri", spec["storageUri"], detail))
    before = ((old or {}).get("spec") or {}).get("model") or {}
    if old and parse_quantity(before.get("memory", 0)) != parse_quantity(spec.get("memory", 0)):
        errors.append(FieldError.forbidden("spec.model.memory", "cannot change; delete the object and create it anew"))
    return errors


def fitting(models: Iterable[Object], limit_bytes: int | None) -> list[Object]:
    """Return the models that fit into a limit together, the oldest first; those that are being deleted do not count."""
    kept, total = [], 0
    for model in sorted(models, key=lambda item: (item["metadata"].get("creationTimestamp", ""), _name(item))):
        wanted = int(parse_quantity(model["spec"]["model"]["memory"]))
        if is_deleting(model) or (limit_bytes is not None and total + wanted > limit_bytes):
            continue
        total += wanted
        kept.append(model)
    return kept


def models_of(ctx: Context, namespace: str, service: str) -> list[Object]:
    """Return the models of a service for which its server has room."""
    found = ctx.cache(TRAINED_MODEL.gvk).list(namespace)
    wanted = [model for model in found if model["spec"]["inferenceService"] == service]
    return fitting(wanted, _memory_limit(ctx, namespace, service))


async def reconcile(ctx: Context, model: Resource[Any]) -> Result:
    """Say whether a model's server is there, has room and takes models, and where it answers."""
    if is_deleting(model.raw):
        return Result()
    name = model.spec["inferenceService"]
    service = ctx.cache(INFERENCE_SERVICE).get(Key(model.namespace, name))
    fits = model.name in map(_name, models_of(ctx, model.namespace, name))
    conditions = list(model.status.get("conditions") or [])
    checks = _check(model.raw, service, fits=fits)
    for type_, (ready, reason, message) in checks.items():
        conditions = set_condition(conditions, type_, ready, reason, message, ctx.now())
    status = {"conditions": conditions} | (_address(model.name, service) if service else {})
    await ctx.client.patch_status(model.raw, merge_status(model.status, status))
    # A model names its service, a service does not know its models: look now and then, sooner while one waits.
    return Result(requeue_after_s=_LOOK_AGAIN_S if checks["Ready"][0] == "True" else _WAITING_S)


def _check(model: Object, service: Object | None, *, fits: bool) -> dict[str, tuple[str, str, str]]:
    """Return condition -> status, reason, message."""
    name = model["spec"]["inferenceService"]
    if service is None:
        missing = ("False", "InferenceServiceNotFound", f'there is no InferenceService "{name}" in this namespace')
        return {"InferenceServiceReady": missing, "Ready": missing}
    wanted = model["spec"]["model"]["memory"]
    checks = {
        "InferenceServiceReady": (
            (find_condition(service, "Ready") or {}).get("status") == "True",
            "InferenceServiceNotReady",
            f'InferenceService "{name}" is not ready',
        ),
        "IsMMSPredictor": (
            is_multi_model(service),
            "IsNotMMSPredictor",
            f'the predictor of InferenceService "{name}" has a model of its own; leave out its storageUri',
        ),
        "MemoryResourceAvailable": (
            fits,
            "MemoryResourceNotAvailable",
            f"with {wanted} for this model, those of the service exceed the memory limit of its container",
        ),
    }
    found = {type_: ("True", "", "") if ok else ("False", why, text) for type_, (ok, why, text) in checks.items()}
    return found | {"Ready": next((check for check in found.values() if check[0] == "False"), ("True", "", ""))}


def _address(name: str, service: Object) -> dict[str, Any]:
    protocol = str(service["spec"]["predictor"].get("model", {}).get("protocolVersion") or "v1")
    path = f"/v2/models/{name}/infer" if protocol.endswith("v2") else f"/v1/models/{name}:predict"
    status = service.get("status") or {}
    found: dict[str, Any] = {"url": status["url"] + path} if status.get("url") else {}
    inside = (status.get("address") or {}).get("url")
    return found | ({"address": {"url": inside + path}} if inside else {})


def _memory_limit(ctx: Context, namespace: str, service: str) -> int | None:
    """Return the limit of the container that serves, in bytes; None while there is no Pod or no limit."""
    for pod in ctx.cache(POD).list(namespace):
        labels = labels_of(pod)
        if (labels.get(_LABEL), labels.get("component")) != (service, "predictor"):
            continue
        for container in pod["spec"]["containers"]:
            limits: Mapping[str, Any] = (container.get("resources") or {}).get("limits") or {}
            if container["name"] == CONTAINER and "memory" in limits:
                return int(parse_quantity(limits["memory"]))
    return None


def _name(model: Object) -> str:
    return str(model["metadata"]["name"])


TRAINED_MODEL = Kind(
    api_version="serving.kserve.io/v1alpha1",
    kind="TrainedModel",
    plural="trainedmodels",
    short_names=("tm",),
    schema=SCHEMA,
    columns=(
        Column("URL", "string", ".status.url"),
        Column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status"),
        Column("Age", "date", ".metadata.creationTimestamp"),
    ),
    validate=validate,
    reconcile=reconcile,
)
