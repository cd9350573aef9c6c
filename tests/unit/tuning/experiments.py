"""Experiments for tests."""

from __future__ import annotations

import copy
from typing import Any

EXPERIMENT: dict[str, Any] = {
    "apiVersion": "kubeflow.org/v1beta1",
    "kind": "Experiment",
    "metadata": {"name": "search", "namespace": "default"},
    "spec": {
        "objective": {"type": "minimize", "objectiveMetricName": "loss", "additionalMetricNames": ["accuracy"]},
        "algorithm": {"algorithmName": "random"},
        "parallelTrialCount": 2,
        "maxTrialCount": 4,
        "maxFailedTrialCount": 2,
        "parameters": [
            {"name": "lr", "parameterType": "double", "feasibleSpace": {"min": "0.01", "max": "0.1"}},
            {"name": "depth", "parameterType": "int", "feasibleSpace": {"min": "1", "max": "8"}},
        ],
        "trialTemplate": {
            "primaryContainerName": "main",
            "trialParameters": [
                {"name": "rate", "reference": "lr"},
                {"name": "depth", "reference": "depth"},
            ],
            "trialSpec": {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "spec": {
                    "template": {
                        "spec": {
                            "restartPolicy": "Never",
                            "containers": [
                                {
                                    "name": "main",
                                    "image": "python:3.11",
                                    "command": ["python3", "train.py", "${trialParameters.rate}"],
                                    "args": ["--depth=${trialParameters.depth}"],
                                }
                            ],
                        }
                    }
                },
            },
        },
    },
}


def experiment(**changes: Any) -> dict[str, Any]:
    """Return an Experiment with fields of its spec replaced; None removes one."""
    result = copy.deepcopy(EXPERIMENT)
    for key, value in changes.items():
        if value is None:
            result["spec"].pop(key, None)
        else:
            result["spec"][key] = value
    return result
