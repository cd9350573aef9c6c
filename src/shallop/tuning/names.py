"""Names that Katib's objects share."""

from __future__ import annotations

from shallop.kube.objects import Gvk, Object, controller_of, labels_of

__all__ = ["API_VERSION", "EXPERIMENT", "EXPERIMENT_LABEL", "SUGGESTION", "TRIAL", "TRIAL_LABEL", "experiment_of"]

API_VERSION = "kubeflow.org/v1beta1"
EXPERIMENT = Gvk(API_VERSION, "Experiment")
SUGGESTION = Gvk(API_VERSION, "Suggestion")
TRIAL = Gvk(API_VERSION, "Trial")
EXPERIMENT_LABEL = "katib.kubeflow.org/experiment"
TRIAL_LABEL = "katib.kubeflow.org/trial"


def experiment_of(trial: Object) -> str:
    """Return the name of the Experiment that a Trial belongs to; empty for a Trial that a user made."""
    owner = controller_of(trial) or {}
    return str(owner["name"]) if owner.get("kind") == EXPERIMENT.kind else labels_of(trial).get(EXPERIMENT_LABEL, "")
