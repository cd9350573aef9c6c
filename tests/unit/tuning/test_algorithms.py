"""The conformance kit of search algorithms, and what each of them promises beyond it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from shallop.tuning.algorithms import ALGORITHMS
from shallop.tuning.algorithms.contract import Past, Problem, SettingError
from shallop.tuning.algorithms.sobol import scrambled_point, sobol_point
from shallop.tuning.space import parse_parameter


def space(*, steps: bool = False, listed: bool = True) -> tuple[Any, ...]:
    step = {"step": "0.05"} if steps else {}
    raw = [
        {"name": "x", "parameterType": "double", "feasibleSpace": {"min": "0", "max": "1", **step}},
        {"name": "y", "parameterType": "double", "feasibleSpace": {"min": "0", "max": "1", **step}},
        {"name": "epochs", "parameterType": "int", "feasibleSpace": {"min": "1", "max": "9"}},
    ]
    if listed:
        raw.append({"name": "kind", "parameterType": "categorical", "feasibleSpace": {"list": ["a", "b", "c"]}})
    return tuple(parse_parameter(one) for one in raw)


NAS = {
    "graphConfig": {"numLayers": 4, "inputSizes": [32, 32, 3], "outputSizes": [10]},
    "operations": [
        {
            "operationType": "convolution",
            "parameters": [
                {"name": "filter_size", "parameterType": "categorical", "feasibleSpace": {"list": ["3", "5"]}},
            ],
        },
        {"operationType": "skip_connection"},
    ],
}
RESOURCE = {"r_l": "9", "resource_name": "epochs", "eta": "3"}
SETTINGS: dict[str, dict[str, str]] = {
    "hyperband": RESOURCE,
    "asha": RESOURCE,
    "pbt": {"suggestion_trial_dir": "/ckpt", "n_population": "5", "truncation_threshold": "0.4"},
}


def problem(name: str, *, seed: int = 1, maximize: bool = False) -> Problem:
    if name in ("enas", "darts"):
        return Problem(name, (), maximize, seed, nas=NAS)
    steps = name in ("grid", "pbt")
    return Problem(name, space(steps=steps), maximize, seed, SETTINGS.get(name, {}))


def loss(values: Any) -> float:
    """A valley with its floor at x = 0.7, y = 0.2, kind b; more epochs measure it better."""
    if "x" not in values:
        return float(len(str(values)) % 7)
    offset = 0.0 if values.get("kind", "b") == "b" else 0.1
    return (float(values["x"]) - 0.7) ** 2 + (float(values["y"]) - 0.2) ** 2 + offset + 0.01 / int(values["epochs"])


def play(name: str, search: Problem, budget: int, parallel: int = 2, fresh: bool = False) -> list[Past]:
    """Run a search in which ``parallel`` trials are always on; ``fresh`` asks a new object each time."""
    algorithm = ALGORITHMS[name]()
    algorithm.check(search)
    history: list[Past] = []
    while len(history) < budget or any(not past.is_over for past in history):
        active = [index for index, past in enumerate(history) if not past.is_over]
        want = min(parallel - len(active), budget - len(history))
        reply = (ALGORITHMS[name]() if fresh else algorithm).suggest(search, history, want) if want > 0 else None
        for proposal in reply.proposals if reply else ():
            name_ = proposal.name or f"t{len(history)}"
            history.append(Past(name_, proposal.assignments, memo=proposal.memo))
        active = [index for index, past in enumerate(history) if not past.is_over]
        if not active:
            break
        first = history[active[0]]
        value = loss(first.assignments)
        history[active[0]] = Past(
            first.name, first.assignments, "succeeded", -value if search.maximize else value, first.memo
        )
    return history


def best(history: Sequence[Past]) -> float:
    return min(loss(past.assignments) for past in history)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
class TestConformance:
    def test_values_are_in_range(self, name: str) -> None:
        search = problem(name)
        for past in play(name, search, 24):
            for one in search.parameters:
                text = past.assignments[one.name]
                if one.is_listed:
                    assert text in one.choices
                else:
                    assert one.low <= float(text) <= one.high

    def test_the_same_seed_gives_the_same_search(self, name: str) -> None:
        assert play(name, problem(name), 20) == play(name, problem(name), 20)

    def test_another_object_goes_on_from_the_history_in_the_same_way(self, name: str) -> None:
        assert play(name, problem(name), 20, fresh=True) == play(name, problem(name), 20)

    def test_another_seed_gives_another_search(self, name: str) -> None:
        if name == "darts":
            return
        assert play(name, problem(name, seed=1), 20) != play(name, problem(name, seed=2), 20)

    def test_failed_trials_and_missing_values_do_no_harm(self, name: str) -> None:
        search = problem(name)
        algorithm = ALGORITHMS[name]()
        history: list[Past] = []
        for _ in range(20):
            for proposal in algorithm.suggest(search, history, 2).proposals:
                number = len(history)
                state = "failed" if number % 3 == 0 else "succeeded"
                value = None if state == "failed" else math.nan if number % 7 == 1 else float(number % 5)
                history.append(Past(proposal.name or f"t{number}", proposal.assignments, state, value, proposal.memo))
        assert len(history) >= 20

    def test_never_more_proposals_than_asked_for(self, name: str) -> None:
        assert len(ALGORITHMS[name]().suggest(problem(name), [], 3).proposals) <= 3


def test_grid_tries_every_combination_once() -> None:
    raw = [
        {"name": "x", "parameterType": "double", "feasibleSpace": {"min": "0", "max": "1", "step": "0.25"}},
        {"name": "k", "parameterType": "categorical", "feasibleSpace": {"list": ["a", "b", "c"]}},
        {"name": "n", "parameterType": "int", "feasibleSpace": {"min": "1", "max": "2"}},
    ]
    search = Problem("grid", tuple(parse_parameter(one) for one in raw), False, 3)
    found: list[Past] = []
    ended = False
    while not ended:
        reply = ALGORITHMS["grid"]().suggest(search, found, 4)
        found += [Past(f"t{len(found)}", proposal.assignments, "succeeded", 0.0) for proposal in reply.proposals]
        ended = reply.ended
    assert len(found) == 30
    assert len({tuple(sorted(past.assignments.items())) for past in found}) == 30


def test_grid_refuses_a_continuum_and_a_budget_that_is_too_great() -> None:
    with pytest.raises(SettingError, match="step"):
        ALGORITHMS["grid"]().check(Problem("grid", space(), False, 1))
    with pytest.raises(SettingError, match="combinations"):
        ALGORITHMS["grid"]().check(Problem("grid", space(steps=True), False, 1, budget=10**6))


@pytest.mark.parametrize("name", ["tpe", "multivariate-tpe", "bayesianoptimization", "cmaes"])
def test_at_equal_budget_no_worse_than_random_on_a_valley(name: str) -> None:
    mine = [best(play(name, problem(name, seed=seed), 30)) for seed in range(3)]
    chance = [best(play("random", problem("random", seed=seed), 30)) for seed in range(3)]
    assert sum(mine) <= sum(chance) * 1.05, (mine, chance)


def test_maximizing_is_minimizing_the_opposite() -> None:
    assert best(play("bayesianoptimization", problem("x", maximize=True), 25)) < 0.1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tpe", {"gamma": "2"}, "gamma"),
        ("tpe", {"speed": "1"}, "speed"),
        ("cmaes", {"restart_strategy": "x"}, "restart_strategy"),
        ("bayesianoptimization", {"acq_func": "x"}, "acq_func"),
        ("hyperband", {"resource_name": "epochs"}, "r_l"),
        ("hyperband", {"r_l": "9", "resource_name": "none"}, "none"),
        ("asha", {**RESOURCE, "r_min": "20"}, "r_min"),
        ("pbt", {"n_population": "5"}, "suggestion_trial_dir"),
        ("pbt", {**SETTINGS["pbt"], "n_population": "2"}, "n_population"),
        ("darts", {}, "nasConfig"),
        ("enas", {}, "nasConfig"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ALGORITHMS[name]().check(Problem(name, space(steps=True), False, 1, settings))


def test_hyperband_runs_the_brackets_of_the_paper_and_ends() -> None:
    history = play("hyperband", problem("hyperband"), 1000, parallel=4)
    counts: dict[tuple[int, int], list[str]] = {}
    for past in history:
        counts.setdefault((past.memo["bracket"], past.memo["rung"]), []).append(past.assignments["epochs"])
    assert {key: len(values) for key, values in counts.items()} == {
        (2, 0): 9, (2, 1): 3, (2, 2): 1, (1, 0): 5, (1, 1): 2, (0, 0): 3,
    }  # fmt: skip
    assert {key: set(values) for key, values in counts.items()} == {
        (2, 0): {"1"}, (2, 1): {"3"}, (2, 2): {"9"}, (1, 0): {"3"}, (1, 1): {"9"}, (0, 0): {"9"},
    }  # fmt: skip


def test_asha_promotes_the_best_third() -> None:
    history = play("asha", problem("asha"), 60)
    for past in history:
        if past.memo["rung"]:
            parent = history[past.memo["parent"]]
            assert parent.memo["rung"] == past.memo["rung"] - 1
            assert parent.assignments["x"] == past.assignments["x"]
    assert {past.assignments["epochs"] for past in history} == {"1", "3", "9"}


def test_pbt_members_descend_from_the_generation_before() -> None:
    history = play("pbt", problem("pbt"), 24)
    names = {past.name: past.memo["generation"] for past in history}
    assert max(names.values()) >= 3
    for past in history:
        if past.memo["generation"]:
            assert names[past.memo["parent"]] == past.memo["generation"] - 1


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_sobol_fills_every_interval_of_each_axis_and_every_box_of_two_once(seed: int | None) -> None:
    points = [
        sobol_point(number, 21) if seed is None else scrambled_point(number, 21, random.Random(seed))
        for number in range(64)
    ]
    for axis in range(21):
        assert sorted(int(point[axis] * 64) for point in points) == list(range(64))
    assert len({(int(point[0] * 8), int(point[1] * 8)) for point in points}) == 64


def test_enas_learns_what_is_rewarded() -> None:
    search = Problem("enas", (), True, 1, nas=NAS)
    algorithm = ALGORITHMS["enas"]()
    history: list[Past] = []
    for number in range(100):
        values = algorithm.suggest(search, history, 1).proposals[0].assignments
        history.append(Past(f"t{number}", values, "succeeded", float(values["architecture"].count("[2"))))
    early, late = (sum(past.value or 0 for past in part) for part in (history[:30], history[-30:]))
    assert late > early


def test_darts_tells_space_and_settings() -> None:
    values = ALGORITHMS["darts"]().suggest(problem("darts"), [], 1).proposals[0].assignments
    assert values["num-layers"] == "4"
    assert values["search-space"] == "['convolution_3x3', 'convolution_5x5', 'skip_connection']"
    assert "'num_epochs': '50'" in values["algorithm-settings"]


def test_a_grid_has_tried_every_value_of_every_parameter_soon() -> None:
    values = {"list": [str(number) for number in range(8)]}
    raw = [{"name": name, "parameterType": "discrete", "feasibleSpace": values} for name in ("a", "b", "c", "d")]
    search = Problem("grid", tuple(parse_parameter(one) for one in raw), False, 5)
    first = ALGORITHMS["grid"]().suggest(search, [], 8).proposals
    for name in ("a", "b", "c", "d"):
        assert len({proposal.assignments[name] for proposal in first}) == 8


@pytest.mark.parametrize("name", ["tpe", "multivariate-tpe", "bayesianoptimization"])
def test_long_histories_are_answered_alike_by_any_object(name: str) -> None:
    search = problem(name)
    filler = ALGORITHMS["random"]().suggest(search, [], 450).proposals
    history = [Past(f"t{n}", one.assignments, "succeeded", loss(one.assignments)) for n, one in enumerate(filler)]
    algorithm = ALGORITHMS[name]()
    algorithm.suggest(search, history[:-1], 2)
    assert algorithm.suggest(search, history, 2) == ALGORITHMS[name]().suggest(search, history, 2)
    proposed = algorithm.suggest(search, history, 4).proposals
    assert min(loss(one.assignments) for one in proposed) < sorted(loss(past.assignments) for past in history)[100]
