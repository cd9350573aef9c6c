"""
Trains XGBoost on iris in all processes of an XGBoostJob, or predicts with the model that came of it.

Stands for the image ``kubeflow/training-v1/xgboost-dist-iris``, with its arguments. Models are files: object stores of
Alibaba (``--model_storage_type=oss``) are not there.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Dict, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod.rabit import meet

__all__ = ["main", "parse_parameters"]


def main(argv: Sequence[str]) -> int:
    """Do what ``--job_type`` says."""
    parser = argparse.ArgumentParser(prog="iris")
    parser.add_argument("--job_type", choices=("Train", "Predict"), required=True)
    parser.add_argument("--xgboost_parameter", default="objective:multi:softprob,num_class:3")
    parser.add_argument("--n_estimators", type=int, default=10)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--early_stopping_rounds", type=int, default=0)
    parser.add_argument("--model_path", default="")
    parser.add_argument("--model_storage_type", default="local")
    parser.add_argument("--oss_param", default="")
    options = parser.parse_args(argv)
    if options.model_storage_type != "local":
        parser.error("--model_storage_type: only 'local' is there; give --model_path in a mounted claim")
    if options.job_type == "Train":
        _train(options)
    elif not options.model_path:
        parser.error("--model_path: required to predict")
    else:
        _predict(options)
    return 0


def parse_parameters(text: str) -> Dict[str, str]:  # noqa: UP006
    """Read ``name:value,name:value``; a value may contain colons, and the whole may stand in quotes."""
    pairs = [item.partition(":") for item in text.strip().strip("\"'").split(",") if item.strip()]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _train(options: argparse.Namespace) -> None:
    import xgboost
    from sklearn.datasets import load_iris

    rows, kinds = load_iris(return_X_y=True)
    parameters: Dict[str, Any] = {  # noqa: UP006
        **parse_parameters(options.xgboost_parameter),
        "learning_rate": options.learning_rate,
        "nthread": 1,
    }
    with meet() as (rank, world):
        own = xgboost.DMatrix(rows[rank::world], kinds[rank::world])
        booster = xgboost.train(parameters, own, num_boost_round=options.n_estimators)
    if rank == 0:
        print(f"trained by {world} processes; accuracy {_accuracy(booster):.3f}", flush=True)
    if rank == 0 and options.model_path:
        os.makedirs(os.path.dirname(options.model_path) or ".", exist_ok=True)
        booster.save_model(options.model_path + ".json")
        os.replace(options.model_path + ".json", options.model_path)
        print(f"the model is in {options.model_path}", flush=True)


def _predict(options: argparse.Namespace) -> None:
    import xgboost

    with open(options.model_path, "rb") as file:
        booster = xgboost.Booster(model_file=bytearray(file.read()))
    print(f"accuracy {_accuracy(booster):.3f}")


def _accuracy(booster: Any) -> float:
    import numpy
    import xgboost
    from sklearn.datasets import load_iris

    rows, kinds = load_iris(return_X_y=True)
    guesses = booster.predict(xgboost.DMatrix(rows))
    if guesses.ndim == 2:
        guesses = guesses.argmax(1)
    return float(numpy.mean(guesses == kinds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
