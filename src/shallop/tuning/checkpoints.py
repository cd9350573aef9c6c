"""Folders in which members of a population keep their checkpoints; a new member begins with a copy of its parent's."""

from __future__ import annotations

import shutil
from pathlib import Path

from shallop.kube.objects import Object, labels_of
from shallop.settings import Settings
from shallop.tuning.algorithms.pbt import GENERATION, PARENT

__all__ = ["checkpoint_folder", "needs_checkpoint", "prepare_checkpoint", "remove_checkpoint"]


def checkpoint_folder(settings: Settings, namespace: str, trial: str) -> Path:
    """Return the folder of this machine that a trial's Pods see as ``suggestion_trial_dir``."""
    return settings.home / "tuning" / namespace / f"{trial}.checkpoint"


def needs_checkpoint(trial: Object) -> bool:
    """Whether a trial is a member of a population."""
    return GENERATION in labels_of(trial)


def prepare_checkpoint(settings: Settings, trial: Object) -> None:
    """Make the folder of a member, once and as a whole; does nothing for other trials. Blocks on files."""
    labels, metadata = labels_of(trial), trial["metadata"]
    if not needs_checkpoint(trial):
        return
    folder = checkpoint_folder(settings, metadata["namespace"], metadata["name"])
    if folder.exists():
        return
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = folder.with_suffix(".copying")
    shutil.rmtree(unfinished, ignore_errors=True)
    parent = checkpoint_folder(settings, metadata["namespace"], labels.get(PARENT, ""))
    if labels.get(PARENT) and parent.is_dir():
        shutil.copytree(parent, unfinished, symlinks=True)
    else:
        unfinished.mkdir()
    unfinished.rename(folder)


def remove_checkpoint(settings: Settings, namespace: str, trial: str) -> None:
    shutil.rmtree(checkpoint_folder(settings, namespace, trial), ignore_errors=True)
