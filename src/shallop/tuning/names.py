"""Names that Katib's objects share."""

from __future__ import annotations

from shallop.kube.objects import Gvk

__all__ = ["API_VERSION", "EXPERIMENT", "EXPERIMENT_LABEL", "SUGGESTION", "TRIAL", "TRIAL_LABEL"]

API_VERSION = "kubeflow.org/v1beta1"
EXPERIMENT = Gvk(API_VERSION, "Experiment")
SUGGESTION = Gvk(API_VERSION, "Suggestion")
TRIAL = Gvk(API_VERSION, "Trial")
EXPERIMENT_LABEL = "katib.kubeflow.org/experiment"
TRIAL_LABEL = "katib.kubeflow.org/trial"
