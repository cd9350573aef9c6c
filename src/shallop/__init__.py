"""Kubeflow's APIs on one machine, in one process."""

__version__ = "0.1.0"
