"""Defaults and validation of Experiments."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments import experiment

from shallop.tuning.admission import default, validate

CONFIG_MAP = {"configMapName": "a", "configMapNamespace": "b", "templatePath": "c"}
NAS = {
    "graphConfig": {"numLayers": 1, "inputSizes": [1], "outputSizes": [1]},
    "operations": [{"operationType": "identity"}],
}


def fields(obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    return [error.field for error in validate(default(obj), old)]


def changed(path: str, value: Any) -> dict[str, Any]:
    obj = experiment()
    *parents, last = path.split(".")
    target: Any = obj
    for part in parents:
        target = target[int(part) if part.isdigit() else part]
    if value is None:
        target.pop(last)
    else:
        target[last] = value
    return obj


def test_defaults_are_written_down() -> None:
    spec = default(experiment(parallelTrialCount=None))["spec"]
    assert (spec["parallelTrialCount"], spec["resumePolicy"]) == (3, "Never")
    assert spec["objective"]["metricStrategies"] == [
        {"name": "loss", "value": "min"},
        {"name": "accuracy", "value": "min"},
    ]
    assert spec["metricsCollectorSpec"] == {"collector": {"kind": "StdOut"}}
    assert spec["parameters"][0]["feasibleSpace"]["distribution"] == "uniform"
    assert "Complete" in spec["trialTemplate"]["successCondition"]
    assert default(default(experiment())) == default(experiment())


def test_a_training_job_gets_conditions_and_labels_of_its_kind() -> None:
    obj = changed("spec.trialTemplate.trialSpec.apiVersion", "trainer.kubeflow.org/v1alpha1")
    obj["spec"]["trialTemplate"]["trialSpec"]["kind"] = "TrainJob"
    template = default(obj)["spec"]["trialTemplate"]
    assert template["primaryPodLabels"]["jobset.sigs.k8s.io/replicatedjob-name"] == "node"


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("metadata.name", "Upper", "metadata.name"),
        ("metadata.name", "x" * 41, "metadata.name"),
        ("spec.maxTrialCount", 0, "spec.maxTrialCount"),
        ("spec.parallelTrialCount", 9, "spec.parallelTrialCount"),
        ("spec.maxFailedTrialCount", 9, "spec.maxFailedTrialCount"),
        ("spec.objective", None, "spec.objective"),
        ("spec.objective.type", "best", "spec.objective.type"),
        ("spec.objective.objectiveMetricName", "", "spec.objective.objectiveMetricName"),
        ("spec.objective.additionalMetricNames", ["loss"], "spec.objective.additionalMetricNames"),
        ("spec.algorithm.algorithmName", "magic", "spec.algorithm.algorithmName"),
        ("spec.earlyStopping", {"algorithmName": "x"}, "spec.earlyStopping.algorithmName"),
        ("spec.parameters.0.parameterType", "float", "spec.parameters[0].parameterType"),
        ("spec.parameters.0.feasibleSpace", {"min": "1"}, "spec.parameters[0].feasibleSpace.max"),
        ("spec.parameters.0.feasibleSpace", {"min": "2", "max": "1"}, "spec.parameters[0].feasibleSpace.max"),
        ("spec.parameters.1.name", "lr", "spec.parameters[1].name"),
        ("spec.parameters", None, "spec"),
        ("spec.trialTemplate", None, "spec.trialTemplate"),
        ("spec.trialTemplate.primaryContainerName", None, "spec.trialTemplate.primaryContainerName"),
        ("spec.trialTemplate.trialSpec", None, "spec.trialTemplate.TrialSource"),
        ("spec.trialTemplate.trialParameters", [], "spec.trialTemplate.trialParameters"),
        ("spec.trialTemplate.trialParameters.0.reference", "none", "spec.trialTemplate.trialParameters[0].reference"),
        ("spec.trialTemplate.trialParameters.0.name", "other", "spec.trialTemplate.trialParameters[0].name"),
        ("spec.trialTemplate.trialSpec.metadata", {"name": "x"}, "spec.trialTemplate"),
        ("spec.trialTemplate.trialSpec.kind", "", "spec.trialTemplate"),
        ("spec.resumePolicy", "Sometimes", "spec.resumePolicy"),
        (
            "spec.metricsCollectorSpec",
            {"collector": {"kind": "Pigeon"}},
            "spec.metricsCollectorSpec.collector.kind",
        ),
        (
            "spec.metricsCollectorSpec",
            {"collector": {"kind": "File"}, "source": {"fileSystemPath": {"path": "x"}}},
            "spec.metricsCollectorSpec.source.fileSystemPath.path",
        ),
        (
            "spec.metricsCollectorSpec",
            {"collector": {"kind": "StdOut"}, "source": {"filter": {"metricsFormat": ["(a)"]}}},
            "spec.metricsCollectorSpec.source.filter.metricsFormat",
        ),
        (
            "spec.metricsCollectorSpec",
            {"collector": {"kind": "Custom"}},
            "spec.metricsCollectorSpec.collector.customCollector",
        ),
        ("spec", None, "spec"),
        ("spec.parallelTrialCount", 0, "spec.parallelTrialCount"),
        ("spec.maxFailedTrialCount", -1, "spec.maxFailedTrialCount"),
        (
            "spec.objective.metricStrategies",
            [{"name": "f1", "value": "min"}],
            "spec.objective.metricStrategies[0].name",
        ),
        (
            "spec.objective.metricStrategies",
            [{"name": "loss", "value": "x"}],
            "spec.objective.metricStrategies[0].value",
        ),
        ("spec.algorithm", None, "spec.algorithm.algorithmName"),
        ("spec.earlyStopping", {}, "spec.earlyStopping.algorithmName"),
        ("spec.parameters.0.name", "", "spec.parameters[0].name"),
        ("spec.parameters.0.feasibleSpace", {}, "spec.parameters[0].feasibleSpace"),
        ("spec.parameters.0.feasibleSpace", {"max": "1"}, "spec.parameters[0].feasibleSpace.min"),
        ("spec.parameters.0.feasibleSpace.min", "low", "spec.parameters[0].feasibleSpace.min"),
        ("spec.parameters.0.feasibleSpace.list", ["1"], "spec.parameters[0].feasibleSpace.list"),
        ("spec.parameters.0.feasibleSpace.distribution", "beta", "spec.parameters[0].feasibleSpace.distribution"),
        ("spec.parameters.0.parameterType", "discrete", "spec.parameters[0].feasibleSpace.list"),
        ("spec.parameters.0.parameterType", "categorical", "spec.parameters[0].feasibleSpace"),
        ("spec.nasConfig", NAS, "spec"),
        ("spec.trialTemplate.trialSpec.kind", "Other", "spec.trialTemplate"),
        ("spec.trialTemplate.configMap", CONFIG_MAP, "spec.trialTemplate"),
        ("spec.trialTemplate.trialParameters.1.name", "rate", "spec.trialTemplate.trialParameters[1].name"),
        ("spec.trialTemplate.trialParameters.1.reference", "lr", "spec.trialTemplate.trialParameters[1].reference"),
        ("spec.trialTemplate.trialParameters.0.name", "{rate}", "spec.trialTemplate.trialParameters[0]"),
        ("spec.trialTemplate.trialParameters.0.name", "", "spec.trialTemplate.trialParameters[0]"),
        (
            "spec.trialTemplate.trialParameters.0.reference",
            "${trialSpec.Color}",
            "spec.trialTemplate.trialParameters[0].reference",
        ),
        ("spec.trialTemplate.trialSpec.metadata", {"namespace": "x"}, "spec.trialTemplate"),
        ("spec.trialTemplate.trialSpec.apiVersion", "", "spec.trialTemplate"),
        (
            "spec.trialTemplate.trialSpec.spec.template.spec.containers.0.args",
            ["${trialParameters.depth}", "${trialParameters.width}"],
            "spec.trialTemplate",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_field(path: str, value: Any, field: str) -> None:
    assert field in fields(changed(path, value))


@pytest.mark.parametrize(
    ("kind", "source", "field"),
    [
        ("File", {"fileSystemPath": {"path": "/a", "kind": "Directory"}}, "fileSystemPath.kind"),
        ("File", {"fileSystemPath": {"path": "/a", "format": "XML"}}, "fileSystemPath.format"),
        ("File", {"fileSystemPath": {"format": "JSON"}, "filter": {"metricsFormat": ["(a)=(b)"]}}, "filter"),
        ("TensorFlowEvent", {"fileSystemPath": {"path": "/a", "kind": "File"}}, "fileSystemPath.kind"),
        ("TensorFlowEvent", {"fileSystemPath": {"path": "/a", "format": "TEXT"}}, "fileSystemPath.format"),
        ("TensorFlowEvent", {"fileSystemPath": {"path": "a"}}, "fileSystemPath.path"),
        ("PrometheusMetric", {"httpGet": {"path": "metrics"}}, "httpGet.path"),
        ("PrometheusMetric", {"httpGet": {"port": "many"}}, "httpGet.port"),
        ("StdOut", {"filter": {"metricsFormat": ["(a"]}}, "filter.metricsFormat"),
    ],
)
def test_what_is_wrong_with_a_collector_is_named_by_its_field(kind: str, source: Any, field: str) -> None:
    spec = {"collector": {"kind": kind}, "source": source}
    assert f"spec.metricsCollectorSpec.source.{field}" in fields(changed("spec.metricsCollectorSpec", spec))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"graphConfig": {}}, "graphConfig.numLayers"),
        ({"graphConfig": {"numLayers": 1, "outputSizes": [1]}}, "graphConfig.inputSizes"),
        ({"graphConfig": {"numLayers": 1, "inputSizes": [1]}}, "graphConfig.outputSizes"),
        ({"operations": []}, "operations"),
        ({"operations": [{"parameters": []}]}, "operations[0].operationType"),
        ({"operations": [{"operationType": "c", "parameters": [{}]}]}, "operations[0].parameters[0].parameterType"),
    ],
)
def test_what_is_wrong_with_a_space_of_architectures_is_named_by_its_field(change: Any, field: str) -> None:
    assert f"spec.nasConfig.{field}" in fields(experiment(parameters=None, nasConfig=NAS | change))


def test_a_template_in_a_config_map_needs_to_be_found() -> None:
    template = experiment()["spec"]["trialTemplate"] | {
        "trialSpec": None,
        "successCondition": "a",
        "failureCondition": "b",
    }
    for key in CONFIG_MAP:
        source = {**CONFIG_MAP, key: ""}
        assert "spec.trialTemplate.configMap" in fields(experiment(trialTemplate=template | {"configMap": source}))
    assert fields(experiment(trialTemplate=template | {"configMap": CONFIG_MAP})) == []


def test_only_the_budget_can_change() -> None:
    old = default(experiment())
    assert fields(experiment(maxTrialCount=9), old) == []
    assert fields(experiment(algorithm={"algorithmName": "grid"}), old) == ["spec"]


def test_a_finished_experiment_goes_on_only_as_its_policy_says() -> None:
    done = {"type": "Succeeded", "status": "True", "reason": "ExperimentMaxTrialsReached"}
    for policy, most, errors in (
        ("Never", 9, ["spec.resumePolicy"]),
        ("LongRunning", 9, []),
        ("LongRunning", 3, ["spec.maxTrialCount"]),
    ):
        old = default(experiment(resumePolicy=policy)) | {"status": {"conditions": [done], "trials": 4}}
        new = copy.deepcopy(old)
        new["spec"]["maxTrialCount"] = most
        new["spec"]["maxFailedTrialCount"] = 1
        assert fields(new, old) == errors, policy


def test_the_examples_of_katib_are_accepted(shared: Path) -> None:
    # Katib refuses these two as well: more failed trials than trials, and a parameter that the template does not use.
    wrong = {
        "simple-pbt.yaml": "spec.maxFailedTrialCount",
        "pipeline-run.yaml": "spec.trialTemplate.trialParameters[0].name",
    }
    refused = {}
    for path in sorted((shared / "specs/katib/examples").rglob("*.yaml")):
        for obj in yaml.safe_load_all(path.read_text()):
            if obj and obj.get("kind") == "Experiment" and (errors := validate(default(obj), None)):
                refused[path.name] = ", ".join(error.field for error in errors)
    assert refused == wrong
