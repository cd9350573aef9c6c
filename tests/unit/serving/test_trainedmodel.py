"""Several models in one server: which fit, how they are listed, what the server's Pod has."""

from __future__ import annotations

import json
from typing import Any

from shallop.kube.objects import Object
from shallop.serving.podtemplate import Storage, is_multi_model, render_pod_template
from shallop.serving.servingruntime import load_runtimes
from shallop.serving.trainedmodel import fitting, render_model_config, validate

SKLEARN = next(item for item in load_runtimes() if item["metadata"]["name"] == "kserve-sklearnserver")


def service(**model: Any) -> Object:
    return {
        "metadata": {"name": "many", "namespace": "team"},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, **model}}},
    }


def trained(name: str, memory: str = "100Mi", created: str = "2026-01-01T00:00:00Z", uri: str = "s3://b/m") -> Object:
    model = {"framework": "sklearn", "memory": memory, "storageUri": uri}
    return {
        "metadata": {"name": name, "namespace": "team", "creationTimestamp": created},
        "spec": {"inferenceService": "many", "model": model},
    }


def test_a_predictor_without_storage_takes_trained_models() -> None:
    assert is_multi_model(service())
    assert not is_multi_model(service(storageUri="s3://bucket/model"))
    assert not is_multi_model(service(args=["--model_id=owner/model"]))
    assert not is_multi_model({"spec": {"predictor": {"containers": [{}]}}})


def test_models_fit_in_the_order_of_their_age() -> None:
    models = [trained("new", "300Mi", "2026-01-03T00:00:00Z"), trained("old", "600Mi"), trained("small", "100Mi")]
    assert [model["metadata"]["name"] for model in fitting(models, 800 * 2**20)] == ["old", "small"]
    assert len(fitting(models, None)) == 3


def test_models_that_go_are_off_the_list() -> None:
    going = trained("going")
    going["metadata"]["deletionTimestamp"] = "2026-01-04T00:00:00Z"
    config = render_model_config(service(), fitting([trained("b"), trained("a"), going], None))
    assert config["metadata"]["name"] == "modelconfig-many-0"
    assert [item["modelName"] for item in json.loads(config["data"]["models.json"])] == ["a", "b"]


def test_the_server_has_a_puller_beside_it_and_waits_for_models() -> None:
    spec = render_pod_template(service(), SKLEARN, Storage())["spec"]
    serving, puller = spec["containers"]
    assert {"name": "SHALLOP_MULTI_MODEL", "value": "true"} in serving["env"]
    assert "initContainers" not in spec
    assert {mount["name"] for mount in puller["volumeMounts"]} == {"model-dir", "model-config"}
    assert spec["volumes"][1]["configMap"] == {"name": "modelconfig-many-0", "optional": True}


def test_memory_cannot_change_and_claims_cannot_be_mounted_later() -> None:
    assert [error.field for error in validate(trained("m", "2Gi"), trained("m", "1Gi"))] == ["spec.model.memory"]
    assert validate(trained("m", "1Gi"), trained("m", "1024Mi")) == []
    assert [error.field for error in validate(trained("m", uri="pvc://c/m"), None)] == ["spec.model.storageUri"]


def test_a_name_becomes_part_of_a_path() -> None:
    assert [error.field for error in validate(trained("1model"), None)] == ["metadata.name"]
