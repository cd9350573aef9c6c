"""Defaults and validation of InferenceServices."""

from __future__ import annotations

from typing import Any

import pytest

from shallop.kube.objects import Object
from shallop.serving.admission import DEPLOYMENT_MODE, MODEL_CHECKSUM, default, ignored_fields, validate

STANDARD = {DEPLOYMENT_MODE: "Standard"}


def service(predictor: Any, *, name: str = "iris", annotations: dict[str, str] | None = None, **spec: Any) -> Object:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "team", "annotations": annotations or {}},
        "spec": {"predictor": predictor, **spec},
    }


def model(**fields: Any) -> dict[str, Any]:
    return {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "/models/iris", **fields}}


OWN: dict[str, Any] = {"containers": [{"name": "kserve-container", "image": "python:3.11"}]}
CLASS, METRICS = "serving.kserve.io/autoscalerClass", "serving.kserve.io/metrics"
UTILIZATION, METRIC = "serving.kserve.io/targetUtilizationPercentage", "spec.predictor.autoScaling.metrics[0].resource"


def resource(name: str, **target: Any) -> dict[str, Any]:
    return {"type": "Resource", "resource": {"name": name, "target": target}}


def scaled(metric: dict[str, Any]) -> Object:
    return service({**model(), "autoScaling": {"metrics": [metric]}}, annotations=STANDARD)


def canaries(*predictors: dict[str, Any], percent: int = 10) -> Object:
    entries = [{"predictor": predictor, "trafficPercent": percent} for predictor in predictors]
    return service(model(), annotations=STANDARD, canary=entries)


def test_a_legacy_key_becomes_a_model() -> None:
    result = default(service({"sklearn": {"storageUri": "pvc://models/iris", "name": ""}}))
    assert result["spec"]["predictor"] == {
        "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "pvc://models/iris"}
    }
    assert result["metadata"]["annotations"] == {"modelFormat": "sklearn"}
    assert validate(result, None) == []


def test_a_legacy_manifest_can_be_applied_again() -> None:
    stored = default(service({"sklearn": {"storageUri": "/old"}}))
    merged = {**stored["spec"]["predictor"], "xgboost": {"storageUri": "/new"}}
    again = default({**stored, "spec": {"predictor": merged}})
    assert again["spec"]["predictor"]["model"] == {"modelFormat": {"name": "xgboost"}, "storageUri": "/new"}
    assert again["metadata"]["annotations"]["modelFormat"] == "xgboost"
    assert validate(again, stored) == []


def test_defaults_are_a_fixed_point_and_leave_their_input_alone() -> None:
    given = service({"onnx": {"storageUri": "/m"}})
    once = default(given)
    assert default(once) == once
    assert given["spec"]["predictor"] == {"onnx": {"storageUri": "/m"}}
    assert once["spec"]["predictor"]["model"]["protocolVersion"] == "v2"


@pytest.mark.parametrize(("given", "stored"), [("RawDeployment", "Standard"), ("Serverless", "Knative")])
def test_legacy_modes_get_their_new_names(given: str, stored: str) -> None:
    result = default(service(model(), annotations={DEPLOYMENT_MODE: given}))
    assert result["metadata"]["annotations"][DEPLOYMENT_MODE] == stored


def test_the_only_container_of_a_custom_predictor_gets_the_known_name() -> None:
    result = default(service({"containers": [{"image": "python:3.11"}]}))
    assert result["spec"]["predictor"]["containers"] == [{"image": "python:3.11", "name": "kserve-container"}]


@pytest.mark.parametrize("spec", [{}, {"predictor": None}, {"predictor": []}, {"predictor": {"model": 3}}])
def test_defaults_survive_what_the_schema_will_refuse(spec: Any) -> None:
    default({"apiVersion": "v", "kind": "k", "metadata": {"name": "x"}, "spec": spec})


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (service(model(), name="Iris"), "metadata.name"),
        (service(model(), name="x" * 60), "metadata.name"),
        (service({}), "spec.predictor.model"),
        (service({"sklearn": {}, "xgboost": {}}), "spec.predictor.xgboost"),
        (service(model(name="x")), "spec.predictor.model.name"),
        (service(model(storageUri="models/iris")), "spec.predictor.model.storageUri"),
        (service(model(storageUri="http://x/y#sha256=12")), "spec.predictor.model.storageUri"),
        (service(model(storageUri="http://x/y#main")), "spec.predictor.model.storageUri"),
        (service(model(storageUri=f"pvc://c/x#sha256={'0' * 64}")), "spec.predictor.model.storageUri"),
        (service(model(), annotations={MODEL_CHECKSUM: "12"}), f"metadata.annotations[{MODEL_CHECKSUM}]"),
        (
            service(model(storageUri="pvc://c"), annotations={MODEL_CHECKSUM: "0" * 64}),
            f"metadata.annotations[{MODEL_CHECKSUM}]",
        ),
        (service(model(storageUri="pvc://claim/../other")), "spec.predictor.model.storageUri"),
        (service({**model(), "storageUris": [{"uri": "/x"}]}), "spec.predictor.storageUris"),
        (service({**model(), "minReplicas": -1}), "spec.predictor.minReplicas"),
        (service({**model(), "minReplicas": 3, "maxReplicas": 2}), "spec.predictor.maxReplicas"),
        (service({**model(), "timeout": -1}), "spec.predictor.timeout"),
        (service({**model(), "canaryTrafficPercent": 101}), "spec.predictor.canaryTrafficPercent"),
        (service({**model(), "name": "A"}), "spec.predictor.name"),
        (
            service({**model(), "logger": {"storage": {"key": "k", "path": "p"}}}),
            "spec.predictor.logger.storage.parameters",
        ),
        (
            service(model(), annotations=STANDARD, canary=[{"predictor": {}, "trafficPercent": 5}]),
            "spec.canary[0].predictor.name",
        ),
        (service(model(), canary=[{"predictor": {"name": "new"}, "trafficPercent": 5}]), "spec.canary"),
        (service(model(), transformer={}), "spec.transformer.containers"),
        (service({**model(), "deploymentStrategy": {"type": "Recreate"}}), "spec.predictor.deploymentStrategy"),
        (service({**model(), "scaleMetric": "rps"}, annotations=STANDARD), "spec.predictor.scaleMetric"),
        (service({**model(), "scaleMetric": "cpu", "scaleTarget": 101}), "spec.predictor.scaleTarget"),
        (service(model(), annotations={DEPLOYMENT_MODE: "Odd"}), f"metadata.annotations[{DEPLOYMENT_MODE}]"),
        (service({**model(), "containers": [{"name": "kserve-container"}]}), "spec.predictor.containers[0]"),
        (service(model(), annotations={CLASS: "vpa"}), f"metadata.annotations[{CLASS}]"),
        (service({**model(), "scaleMetric": "rps"}, annotations={CLASS: "hpa"}), "spec.predictor.scaleMetric"),
        (
            service(model(), transformer=OWN | {"scaleMetric": "rps"}, annotations=STANDARD),
            "spec.transformer.scaleMetric",
        ),
        (service({**model(), "scaleTarget": -1}), "spec.predictor.scaleTarget"),
        (service({**model(), "batcher": {"maxLatency": -1}}), "spec.predictor.batcher.maxLatency"),
        (service(model(), annotations={UTILIZATION: "most"}), f"metadata.annotations[{UTILIZATION}]"),
        (service(model(), annotations={UTILIZATION: "101"}), f"metadata.annotations[{UTILIZATION}]"),
        (service(model(), annotations={METRICS: "rps"}), f"metadata.annotations[{METRICS}]"),
        (scaled({"type": "Odd"}), "spec.predictor.autoScaling.metrics[0].type"),
        (scaled({"type": "Resource", "resource": {"name": "disk"}}), f"{METRIC}.name"),
        (scaled({"type": "Resource", "resource": {"name": "cpu", "target": {}}}), f"{METRIC}.target.type"),
        (scaled(resource("cpu", type="Utilization")), f"{METRIC}.target.averageUtilization"),
        (scaled(resource("cpu", type="Utilization", averageUtilization=101)), f"{METRIC}.target.averageUtilization"),
        (scaled(resource("memory", type="AverageValue")), f"{METRIC}.target.averageValue"),
        (canaries({"name": "new", "maxReplicas": 2}), "spec.canary[0].predictor.maxReplicas"),
        (canaries({"name": "new", "autoScaling": {"behavior": {}}}), "spec.canary[0].predictor.autoScaling"),
        (canaries({"name": "new", "minReplicas": 2}), "spec.canary[0].predictor.minReplicas"),
        (canaries({"name": "New"}), "spec.canary[0].predictor.name"),
        (canaries({"name": "new"}, {"name": "new"}), "spec.canary[1].predictor.name"),
        (canaries({"name": "a"}, {"name": "b"}, percent=60), "spec.canary[1].trafficPercent"),
    ],
)
def test_a_bad_field_is_named(bad: Object, field: str) -> None:
    assert [error.field for error in validate(bad, None)] == [field]


def test_what_upstream_accepts_is_not_refused() -> None:
    beside = {"name": "transformer-container", "image": "python:3.11"}
    notes = STANDARD | {CLASS: "hpa", METRICS: "memory", UTILIZATION: "50"}
    metrics = [resource("cpu", type="Utilization", averageUtilization=60), {"type": "External", "external": {}}]
    scaling = {"minReplicas": 1, "maxReplicas": 3, "autoScaling": {"metrics": metrics}}
    canary = [{"predictor": {"name": "new", "model": model()["model"]}, "trafficPercent": 0}]
    given = service({**model(), **scaling, "containers": [beside]}, annotations=notes, transformer=OWN, canary=canary)
    assert validate(given, None) == []


def test_a_predictor_gets_another_name_with_another_model_only() -> None:
    old = service(model())
    assert [error.field for error in validate(service({**model(), "name": "new"}), old)] == ["spec.predictor.name"]
    assert validate(service({**model(storageUri="/models/new"), "name": "new"}), old) == []
    assert validate(service({**model(), "minReplicas": 0}), old) == []


def test_the_deployment_mode_stays() -> None:
    old = service(model(), annotations={DEPLOYMENT_MODE: "Standard"}) | {"status": {"deploymentMode": "Standard"}}
    new = service(model(), annotations={DEPLOYMENT_MODE: "Knative"})
    assert "cannot change from Standard" in validate(new, old)[0].message


def test_fields_without_effect_are_named() -> None:
    given = {**model(), "minReplicas": 0, "canaryTrafficPercent": 5}
    assert ignored_fields(service(given, annotations=STANDARD)) == [
        "spec.predictor.canaryTrafficPercent",
        "spec.predictor.minReplicas of 0 in Standard mode",
    ]
    hidden = service(model(), annotations={"serving.kserve.io/disable-auto-update": "true"})
    hidden["metadata"]["labels"] = {"networking.knative.dev/visibility": "cluster-local"}
    assert [path.partition(" ")[0] for path in ignored_fields(hidden)] == ["label", "annotation"]
    assert ignored_fields(service(model())) == []


@pytest.mark.parametrize(
    ("items", "field", "message"),
    [
        ([{"uri": "s3://b/a"}, {"uri": "s3://b/b"}], "", ""),
        ([{"uri": "s3://b/a", "mountPath": "/mnt/a"}, {"uri": "pvc://c", "mountPath": "/data"}], "", ""),
        ([{"mountPath": "/mnt/a"}], "[0].uri", "storage URI cannot be empty"),
        ([{"uri": "s3://b/a", "mountPath": "/"}], "[0].mountPath", "storage path cannot be empty"),
        ([{"uri": "s3://b/a", "mountPath": "mnt"}], "[0].mountPath", "storage path must be absolute: mnt"),
        ([{"uri": "s3://b/a", "mountPath": "/a/../b"}], "[0].mountPath", "storage path cannot contain '..'"),
        ([{"uri": "pvc://a"}, {"uri": "pvc://b"}], "[1].mountPath", "PVC storage paths must be unique"),
        (
            [{"uri": "s3://b/a", "mountPath": "/mnt/a"}, {"uri": "s3://b/b", "mountPath": "/opt/b"}],
            "",
            "storage paths must have a common parent directory. Current paths: [/mnt/a /opt/b]",
        ),
    ],
)
def test_places_of_several_uris(items: list[dict[str, str]], field: str, message: str) -> None:
    for name in ("predictor", "transformer"):
        components = {"predictor": {"containers": [{"name": "kserve-container"}]}}
        components["transformer"] = {"containers": [{"name": "kserve-container"}]}
        components[name] = components[name] | {"storageUris": items}
        spec = service({})["spec"] | components
        found = validate(service({}) | {"spec": spec}, None)
        expected = [f"spec.{name}.storageUris{field}"] if message else []
        assert [error.field for error in found] == expected
        assert all(message in error.message for error in found)


@pytest.mark.parametrize(
    ("logger", "fields"),
    [
        ({"url": "http://x", "batchSize": 3}, ["spec.predictor.logger.batchSize with an http url"]),
        ({"url": "s3://b/x", "batchSize": 3}, []),
        ({"url": "pvc://c", "mode": "all"}, []),
        ({"url": "gs://b/x"}, ["spec.predictor.logger.url of gs: (use http, s3, pvc or file)"]),
        ({"mode": "all"}, ["spec.predictor.logger without url"]),
    ],
)
def test_loggers_without_effect_are_named(logger: dict[str, Any], fields: list[str]) -> None:
    assert ignored_fields(service({**model(), "logger": logger})) == fields


@pytest.mark.parametrize(
    ("logger", "field"),
    [
        ({"url": "s3://b", "batchInterval": "soon"}, "batchInterval"),
        ({"url": "s3://b", "batchSize": -1}, "batchSize"),
        ({"storage": {"key": "k", "path": "a/../b", "parameters": {"x": "y"}}}, "storage.path"),
        ({"storage": {"key": "k", "path": "a", "parameters": {"format": "xml"}}}, "storage.parameters[format]"),
    ],
)
def test_bad_loggers_are_refused(logger: dict[str, Any], field: str) -> None:
    found = validate(service({**model(), "logger": logger}), None)
    assert [error.field for error in found] == [f"spec.predictor.logger.{field}"]
