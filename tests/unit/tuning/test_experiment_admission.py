"""Defaults and validation of Experiments."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments import experiment

from shallop.tuning.admission import default, validate


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
    ],
)
def test_what_is_wrong_is_named_by_its_field(path: str, value: Any, field: str) -> None:
    assert field in fields(changed(path, value))


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
