"""
Search algorithms: latency of a suggestion at 1,000 trials, beside Optuna alone, and what they find.

Run: ``python benchmarks/searches.py [PART...]``, parts as in ``PARTS``; without names all.
Parameters are searched for a linear model of scikit-learn's digits, architectures for a network with random weights of
which only the output is fitted; each algorithm against chance on the same space and budget, with the standard error of
the difference. scikit-learn, and torch for ``darts``, are installed into a folder of their own for the time of the run.
"""

from __future__ import annotations

import argparse
import ast
import copy
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import instance

from shallop.tuning.algorithms import ALGORITHMS
from shallop.tuning.algorithms.contract import Past, Problem, Proposal
from shallop.tuning.earlystopping import asha_stops, median_rules, rules_fire
from shallop.tuning.space import parse_parameter

TRIALS, SEEDS, EPOCHS = 30, 5, 9
# Where a run costs nothing.
FORMULA_SEEDS = 400
RESOURCE = {"resource_name": "epochs", "r_l": str(EPOCHS), "eta": "3"}


def space(*raw: tuple[str, str, dict[str, Any]]) -> tuple[Any, ...]:
    return tuple(parse_parameter({"name": n, "parameterType": t, "feasibleSpace": s}) for n, t, s in raw)


FOUR = space(
    ("a", "double", {"min": "0", "max": "1"}),
    ("b", "double", {"min": "0.001", "max": "1", "distribution": "logUniform"}),
    ("c", "int", {"min": "1", "max": "64"}),
    ("d", "categorical", {"list": ["x", "y", "z"]}),
)

SGD = space(
    ("rate", "double", {"min": "0.0001", "max": "100", "distribution": "logUniform"}),
    ("alpha", "double", {"min": "0.000001", "max": "1", "distribution": "logUniform"}),
    ("ratio", "double", {"min": "0", "max": "1"}),
    ("power", "double", {"min": "0", "max": "1"}),
    ("loss", "categorical", {"list": ["log_loss", "hinge", "modified_huber", "perceptron"]}),
)


LISTED = space(*((name, "discrete", {"list": [str(n / 10) for n in range(1, 11)]}) for name in "abcd"))


def own_history(name: str) -> tuple[Problem, list[Past]]:
    """Return a problem and 1,000 trials that the algorithm itself proposed, fifty at a time."""
    parameters, settings = LISTED, {}
    if name in ("hyperband", "asha"):
        parameters = (*FOUR, *space(("n", "int", {"min": "1", "max": "729"})))
        settings = {"resource_name": "n", "r_l": "729", "eta": "3"}
    elif name == "pbt":
        settings = {"suggestion_trial_dir": "/c", "n_population": "50", "truncation_threshold": "0.25"}
    nas = NAS if name in ("enas", "darts") else {}
    problem = Problem(name, () if nas else parameters, False, 1, settings, nas=nas)
    algorithm, history = ALGORITHMS[name](), []
    while len(history) < 1000:
        proposals = algorithm.suggest(problem, history, min(50, 1000 - len(history))).proposals
        history += [past_of(f"t{len(history) + i}", p) for i, p in enumerate(proposals)]
    return problem, history


def past_of(name: str, proposal: Proposal) -> Past:
    value = float(proposal.assignments.get("a", len(name) + len(proposal.assignments) / 7))
    return Past(proposal.name or name, proposal.assignments, "succeeded", value, proposal.memo)


def foreign_history(name: str) -> tuple[Problem, list[Past]]:
    """Return a problem and 1,000 trials at random values."""
    problem = Problem(name, FOUR, False, 1)
    filler = ALGORITHMS["random"]().suggest(problem, [], 1000).proposals
    memo = {"generation": 0, "run": 0, "x": [0.5, 0.5, 0.5]} if name == "cmaes" else {}
    return problem, [replace(past_of(f"t{i}", p), memo=memo) for i, p in enumerate(filler)]


def latency(name: str, make_history: Callable[[str], tuple[Problem, list[Past]]]) -> dict[str, Any]:
    """Time suggestions one by one while a history grows from 1,000 trials."""
    problem, history = make_history(name)
    algorithm, times = ALGORITHMS[name](), []
    for number in range(31):
        start = time.perf_counter()
        proposal = algorithm.suggest(problem, history, 1).proposals[0]
        times.append(1000 * (time.perf_counter() - start))
        history.append(past_of(f"n{number}", proposal))
    return {"case": f"suggestion at 1,000 trials: {name}", "first_ms": times[0], **quantiles(times[1:])}


def quantiles(times: list[float]) -> dict[str, float]:
    return {"p50_ms": statistics.median(times), "p95_ms": sorted(times)[int(0.95 * len(times))]}


def optuna_alone() -> dict[str, Any]:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    dimensions = {
        "a": FloatDistribution(0, 1),
        "b": FloatDistribution(0.001, 1, log=True),
        "c": IntDistribution(1, 64),
        "d": CategoricalDistribution(["x", "y", "z"]),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(1000):
        trial = study.ask(dimensions)
        study.tell(trial, trial.params["a"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.sampler = optuna.samplers.TPESampler(seed=1, constant_liar=True)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        trial = study.ask(dimensions)
        times.append(1000 * (time.perf_counter() - start))
        study.tell(trial, trial.params["a"])
    return {"case": "suggestion at 1,000 trials: Optuna alone, TPE", **quantiles(times)}


def digits() -> Callable[[dict[str, str], Any, int], tuple[float, Any]]:
    """Return a function of values, a model to go on with and epochs; it returns the error and the model."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, train_size=600, random_state=0, stratify=y)

    def train(values: dict[str, str], model: Any, epochs: int) -> tuple[float, Any]:
        settings = {
            "eta0": float(values["rate"]),
            "alpha": float(values["alpha"]),
            "l1_ratio": float(values["ratio"]),
            "power_t": float(values["power"]),
            "loss": values["loss"],
        }
        if model is None:
            model = SGDClassifier(penalty="elasticnet", learning_rate="invscaling", random_state=0)
        model.set_params(**settings)
        for _ in range(epochs):
            model.partial_fit(x_train, y_train, classes=range(10))
        return 1 - float(model.score(x_test, y_test)), model

    return train


def play(name: str, seed: int, train: Callable[[dict[str, str], Any, int], tuple[float, Any]]) -> float:
    """Search with two trials always on and a budget of TRIALS * EPOCHS epochs; return the least error found."""
    by_epochs, population = name in ("hyperband", "asha"), name == "pbt"
    listed = name in ("grid", "pbt", "random-listed")
    parameters = SGD
    if listed:
        rates = {"list": ["0.0001", "0.001", "0.01", "0.1", "1", "10", "100"]}
        alphas = {"list": ["0.000001", "0.0001", "0.01", "1"]}
        shares = {"list": ["0", "0.25", "0.5", "0.75", "1"]}
        names = (("rate", rates), ("alpha", alphas), ("ratio", shares), ("power", shares))
        parameters = (*space(*((n, "discrete", s) for n, s in names)), parameters[4])
    if by_epochs:
        parameters += space(("epochs", "int", {"min": "1", "max": str(EPOCHS)}))
    settings = RESOURCE if by_epochs else {}
    if population:
        settings = {"suggestion_trial_dir": "/c", "n_population": "8", "truncation_threshold": "0.25"}
    problem = Problem(name, parameters, False, seed, settings)
    algorithm, budget, history = ALGORITHMS[name.removesuffix("-listed")](), TRIALS * EPOCHS, []
    models: dict[str, Any] = {}
    best, ended = 1.0, False
    while budget > 0:
        active = [i for i, past in enumerate(history) if not past.is_over]
        if len(active) < 2 and not ended:
            reply = algorithm.suggest(problem, history, 2 - len(active))
            ended = reply.ended
            history += [
                Past(p.name or f"t{len(history) + i}", p.assignments, memo=p.memo)
                for i, p in enumerate(reply.proposals)
            ]
            active = [i for i, past in enumerate(history) if not past.is_over]
        if not active:
            if not ended:
                continue
            # Hyperband is over before the budget is: the next one begins, with draws of its own.
            problem = Problem(name, parameters, False, problem.seed + 1000, settings)
            history, ended = [], False
            continue
        past = history[active[0]]
        epochs = int(past.assignments["epochs"]) if by_epochs else 3 if population else EPOCHS
        epochs = min(epochs, budget)
        budget -= epochs
        model = None
        if population and past.memo.get("parent"):
            model = copy.deepcopy(models[past.memo["parent"]])
        error, models[past.name] = train(dict(past.assignments), model, epochs)
        best = min(best, error)
        history[active[0]] = Past(past.name, past.assignments, "succeeded", error, past.memo)
    return best


def table() -> list[dict[str, Any]]:
    train = digits()
    names = [name for name in ALGORITHMS if name not in ("enas", "darts")]
    found = {name: [100 * play(name, seed, train) for seed in range(SEEDS)] for name in names}
    # Algorithms that need values to choose from are measured against chance among the same values.
    listed = [100 * play("random-listed", seed, train) for seed in range(SEEDS)]
    chances = {name: listed if name in ("grid", "pbt") else found["random"] for name in names}
    return [compared(f"digits, error in percent: {name}", errors, chances[name]) for name, errors in found.items()]


def compared(case: str, errors: list[float], chances: list[float]) -> dict[str, Any]:
    """Compare what an algorithm found with what chance found, seed by seed."""
    gains = [other - mine for mine, other in zip(errors, chances, strict=True)]
    return {
        "case": case,
        "mean": statistics.fmean(errors),
        "random": statistics.fmean(chances),
        "gain": statistics.fmean(gains),
        "gain_standard_error": statistics.stdev(gains) / math.sqrt(len(gains)),
        "wins_or_ties": sum(gain >= 0 for gain in gains),
        "seeds": len(gains),
        "each": " ".join(f"{error:.2f}" for error in errors[:SEEDS]),
    }


def formula(values: Mapping[str, str]) -> float:
    """Return a made-up error with the shape of the real one: a ridge in the rate, a plateau in alpha, one best loss."""
    rate, alpha = math.log10(float(values["rate"])), math.log10(float(values["alpha"]))
    losses = {"log_loss": 0.0, "modified_huber": 0.05, "hinge": 0.1, "perceptron": 0.3}
    power, ratio = float(values["power"]), float(values["ratio"])
    return (
        (rate - 0.3) ** 2 / 4
        + max(0, alpha + 3) ** 2 / 4
        + 3 * (power - 0.6) ** 2
        + 0.3 * ratio
        + losses[values["loss"]]
    )


def evenness() -> dict[str, Any]:
    """Compare Sobol's points with chance where thousands of trials cost nothing."""
    best: dict[str, list[float]] = {}
    for name in ("sobol", "random"):
        for seed in range(FORMULA_SEEDS):
            proposals = ALGORITHMS[name]().suggest(Problem(name, SGD, False, seed), [], TRIALS).proposals
            best.setdefault(name, []).append(min(formula(proposal.assignments) for proposal in proposals))
    return compared("a formula of the same five parameters: sobol", best["sobol"], best["random"])


NAS = {
    "graphConfig": {"numLayers": 4, "inputSizes": [64], "outputSizes": [10]},
    "operations": [
        {
            "operationType": operation,
            "parameters": [
                {"name": "units", "parameterType": "categorical", "feasibleSpace": {"list": ["8", "24", "72"]}}
            ],
        }
        for operation in ("relu", "tanh", "identity")
    ],
}


def network() -> Callable[[dict[str, str]], float]:
    """Return a function from an architecture to the error in percent of a network of random weights."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16.0, y, test_size=1 / 3, random_state=0, stratify=y)
    functions = {"relu": lambda a: np.maximum(a, 0), "tanh": np.tanh, "identity": lambda a: a}

    def layers(x: Any, architecture: list[list[int]], operations: Mapping[str, Any]) -> Any:
        generator = np.random.default_rng(0)
        outputs = [x]
        for number, *skips in architecture:
            operation = operations[str(number)]
            joined = [outputs[-1], *(out for out, bit in zip(outputs[1:], skips, strict=False) if bit)]
            inputs = np.concatenate(joined, axis=1)
            units = int(operation["opt_params"]["units"])
            weights = generator.normal(size=(inputs.shape[1], units)) / math.sqrt(inputs.shape[1])
            outputs.append(functions[operation["opt_type"]](inputs @ weights + 0.1 * generator.normal(size=units)))
        return np.concatenate([outputs[-1], np.ones((len(x), 1))], axis=1)

    def error(assignments: dict[str, str]) -> float:
        architecture = ast.literal_eval(assignments["architecture"])
        operations = ast.literal_eval(assignments["nn_config"])["embedding"]
        features = layers(x_train, architecture, operations)
        fitted = np.linalg.solve(
            features.T @ features + 1e-3 * np.eye(features.shape[1]), features.T @ np.eye(10)[y_train]
        )
        return float(100 * np.mean((layers(x_test, architecture, operations) @ fitted).argmax(1) != y_test))

    return error


def architectures() -> list[dict[str, Any]]:
    """Compare what enas proposes with what its policy draws while it learns nothing: one by one, a budget of 60."""
    error = network()
    best: dict[str, list[float]] = {}
    late: dict[str, list[float]] = {}
    for name, rate in (("enas", "0.0001"), ("random", "0")):
        for seed in range(2 * SEEDS):
            problem = Problem("enas", (), False, seed, {"controller_learning_rate": rate}, nas=NAS)
            history: list[Past] = []
            for number in range(2 * TRIALS):
                assignments = ALGORITHMS["enas"]().suggest(problem, history, 1).proposals[0].assignments
                history.append(Past(f"t{number}", assignments, "succeeded", error(assignments)))
            errors = [past.value or 0.0 for past in history]
            best.setdefault(name, []).append(min(errors))
            late.setdefault(name, []).append(statistics.fmean(errors[-TRIALS // 3 :]))
    return [
        compared("architectures, error in percent, best of 60: enas", best["enas"], best["random"]),
        compared("architectures, error in percent, mean of the last 10: enas", late["enas"], late["random"]),
    ]


DARTS_NAS = {
    "graphConfig": {"numLayers": 3},
    "operations": [
        {
            "operationType": operation,
            "parameters": [
                {"name": "filter_size", "parameterType": "categorical", "feasibleSpace": {"list": ["3", "5"]}}
            ],
        }
        for operation in ("separable_convolution", "dilated_convolution", "avg_pooling", "max_pooling")
    ]
    + [{"operationType": "skip_connection"}],
}


def differentiable(trained: int) -> list[dict[str, Any]]:
    """
    Compare the architecture that a trial of darts finds with random ones of the same space, all trained anew alike.

    Of the random ones so many are trained as take the CPU time of the search and of the training that follows it, or a
    little more; the best on data kept for it is taken. A single random one is shown beside it. A search pays where a
    training takes longer than it, so there are rows for short trainings and for long ones.

    Args:
        trained: epochs of a training.
    """
    import supernet
    import torch

    torch.set_num_threads(1)
    problem = Problem("darts", (), False, 0, {"num_epochs": "6"}, nas=DARTS_NAS)
    given = ALGORITHMS["darts"]().suggest(problem, [], 1).proposals[0].assignments
    names, layers = ast.literal_eval(given["search-space"]), int(given["num-layers"])
    searched = int(ast.literal_eval(given["algorithm-settings"])["num_epochs"])
    data = supernet.Data()
    supernet.error_of(data, supernet.random_architecture(names, layers, 0), 1, 0)  # what torch does once
    found, chosen, single, counts = [], [], [], []
    for seed in range(SEEDS):
        begun = time.process_time()
        architecture = supernet.search(data, names, layers, searched, seed)
        found.append(supernet.error_of(data, architecture, trained, seed)[1])
        end = 2 * time.process_time() - begun
        errors: list[tuple[float, float]] = []
        while time.process_time() < end:
            one = supernet.random_architecture(names, layers, 1000 * seed + len(errors))
            errors.append(supernet.error_of(data, one, trained, seed))
        chosen.append(min(errors)[1])
        single.append(statistics.fmean(error for _, error in errors))
        counts.append(len(errors))
    case = f"architectures trained for {trained} epochs, error in percent: darts"
    return [
        compared(f"{case}, beside the best of random ones in the same CPU time", found, chosen)
        | {"random_ones": statistics.fmean(counts)},
        compared(f"{case}, beside one random one", found, single),
    ]


def stopping() -> list[dict[str, Any]]:
    """Run random searches with and without stopping trials that fall behind; count epochs."""
    train = digits()
    rows = []
    for rule in ("none", "medianstop", "asha"):
        epochs, errors = 0, []
        for seed in range(SEEDS):
            past: list[list[float]] = []
            for proposal in ALGORITHMS["random"]().suggest(Problem("random", SGD, False, seed), [], TRIALS).proposals:
                reports: list[float] = []
                model = None
                rules = median_rules({}, "error", False, past) if rule == "medianstop" else []
                stopped = False
                while len(reports) < EPOCHS and not stopped:
                    error, model = train(proposal.assignments, model, 1)
                    reports.append(error)
                    stopped = rules_fire(rules, {"error": reports}, "error", False)
                    stopped = stopped or (rule == "asha" and asha_stops({}, reports, past, False))
                epochs += len(reports)
                if not stopped or rule == "asha":
                    past.append(reports)
            errors.append(100 * min(min(reports) for reports in past))
        budget = SEEDS * TRIALS * EPOCHS
        rows.append(
            {
                "case": f"digits, early stopping of random search: {rule}",
                "mean": statistics.fmean(errors),
                "epochs": epochs,
                "saved_percent": 100 * (1 - epochs / budget),
                "seeds": SEEDS,
                "each": " ".join(f"{error:.2f}" for error in errors),
            }
        )
    return rows


def latencies() -> list[dict[str, Any]]:
    foreign = ("random", "sobol", "tpe", "multivariate-tpe", "bayesianoptimization", "cmaes")
    rows = [latency(name, foreign_history) for name in foreign]
    rows += [latency(name, own_history) for name in ("grid", "hyperband", "asha", "pbt", "enas", "darts")]
    return [*rows, optuna_alone()]


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "latency": latencies,
    "digits": table,
    "formula": lambda: [evenness()],
    "architectures": architectures,
    "darts": lambda: differentiable(15),
    "darts-long": lambda: differentiable(40),
    "stopping": stopping,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS))
    parts = parser.parse_args().parts or list(PARTS)
    # Small arrays: more threads only wait for each other.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        uv = str(instance.ROOT / ".venv" / "bin" / "uv")
        wanted = ["scikit-learn", *(["torch==2.13.0"] if {"darts", "darts-long"} & set(parts) else [])]
        command = [uv, "pip", "install", "--quiet", "--target", folder, *wanted]
        subprocess.run(command, check=True, env=instance.uv_environ())
        sys.path.append(folder)
        warnings.simplefilter("ignore")
        for part in parts:
            instance.write("searches", PARTS[part](), key="case")


if __name__ == "__main__":
    main()
