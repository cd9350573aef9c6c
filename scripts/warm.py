"""
Build what the whole suite needs of environments while its first tests run: clients, then the larger ones of Pods.

``make test`` runs this beside pytest, whose unit tests need one core and none of it. A test that comes to an
environment before it is there waits for this build, or builds it itself: nothing depends on this script.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import anyio
import setup

from shallop.embedded.kubelet.environments import Environments
from shallop.errors import EnvironmentBuildError, ImageResolutionError
from shallop.settings import Settings

# In the order in which tests come to them.
CLIENTS = ("demo", "helm", "informer", "katib", "kubeflow", "kubeflow-training", "operators", "tritonclient", "moto")
IMAGES = (
    "kserve/sklearnserver",
    "pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime",
    "shallop/sklearn",
    "kserve/art-explainer",
    "ghcr.io/kubeflow/trainer/xgboost-runtime",
    "nvcr.io/nvidia/jax:25.10-py3",
    "shallop/openmpi:4",
    "tensorflow/tensorflow:2.21.0",
    "kserve/lgbserver",
    "kserve/huggingfaceserver",
)


def main() -> int:
    # Tests go first.
    os.nice(5)
    for name in CLIENTS:
        setup.main([name])
    with tempfile.TemporaryDirectory() as folder:
        # No home: images that this user has mapped are not those of the tests.
        environments = Environments.of(Settings(home=Path(folder)))
        for image in IMAGES:
            anyio.run(_build, environments, image)
    return 0


async def _build(environments: Environments, image: str) -> None:
    try:
        environment = await environments.ensure(environments.resolve(image, ()))
        print(f"{image} is {environment.key}", flush=True)
    except (EnvironmentBuildError, ImageResolutionError) as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
