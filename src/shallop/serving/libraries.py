"""
What a model of some format needs beside its server's image; pure.

Images of servers of one format bring its library. Those of several formats (MLServer, Triton, KServe's predictive
server) bring none here: a Pod gets the one that its model needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["merge_requirements", "requirements_for"]

_SEVERAL = ("mlserver", "tritonserver", "predictiveserver")
# Where the model's files do not say which version: those of KServe's own images.
_LIBRARIES = {
    "sklearn": ("scikit-learn~=1.5.1",),
    "xgboost": ("xgboost~=2.1.1",),
    "lightgbm": ("lightgbm~=4.6.0", "scikit-learn~=1.5.1"),
    "mlflow": ("mlflow-skinny", "scikit-learn~=1.5.1"),
    "onnx": ("onnxruntime",),
    "pytorch": ("torch==2.13.0",),
    "tensorflow": ("tensorflow~=2.21.0",),
}


def requirements_for(
    image: str, format_: str, inspected: Sequence[str], formats: Iterable[str] = ()
) -> tuple[str, ...]:
    """
    Return the requirements of a model's server beyond its image.

    Args:
        image: of the container that serves.
        format_: of ``modelFormat``.
        inspected: requirements that the model's files name; they win over ours.
        formats: that the model's files have.
    """
    repository = image.rpartition("@")[0] or image
    name = repository.rpartition("/")[2].partition(":")[0]
    if name not in _SEVERAL:
        return tuple(inspected)
    known = [item for item in (*formats, format_) if item in _LIBRARIES]
    if format_ == "mlflow" and inspected:
        return tuple(inspected)  # an MLflow model names all that it needs
    return merge_requirements([line for item in known for line in _LIBRARIES[item]], inspected)


def merge_requirements(base: Iterable[str], over: Iterable[str]) -> tuple[str, ...]:
    """Return both; one in ``over`` replaces those of its package in ``base``."""
    over = tuple(over)
    named = {_package_of(line) for line in over}
    kept = dict.fromkeys(line for line in base if _package_of(line) not in named)
    return (*kept, *over)


def _package_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[;@<>=!~(]", requirement, maxsplit=1)[0]).lower()
