"""Runs beside each other in the terminal."""

from __future__ import annotations

from typing import Any

from shallop.runner.compare import render_comparison


def run(id_: str, **values: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"run_id": id_, "display_name": "train", "state": "SUCCEEDED", "duration_s": 1.25}
    return known | {"parameters": {}, "metrics": {}, "outputs": {}} | values


def test_what_differs_is_marked() -> None:
    one = run("aaaaaaaa-1", parameters={"epochs": 3, "data": "iris"}, metrics={"m.accuracy": 0.9})
    two = run("bbbbbbbb-2", parameters={"epochs": 30, "data": "iris"}, duration_s=None)
    assert render_comparison({"runs": [one, two], "differing": ["epochs"]}) == [
        "  run                aaaaaaaa   bbbbbbbb",
        "  name               train      train",
        "  state              SUCCEEDED  SUCCEEDED",
        "  seconds            1.2",
        "* parameter epochs   3          30",
        "  parameter data     iris       iris",
        "* metric m.accuracy  0.9",
    ]
