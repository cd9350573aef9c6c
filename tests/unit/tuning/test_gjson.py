"""Conditions of trial templates."""

from __future__ import annotations

from typing import Any

import pytest

from shallop.tuning.gjson import ABSENT, GjsonError, Match, evaluate, find

JOB: dict[str, Any] = {
    "metadata": {"labels": {"a.b/c": "x"}},
    "status": {
        "phase": "Succeeded",
        "succeeded": 2,
        "conditions": [
            {"type": "Failed", "status": "False", "reason": "no"},
            {"type": "Complete", "status": "True", "reason": "Done", "message": "all done"},
        ],
    },
}


@pytest.mark.parametrize(
    ("condition", "match"),
    [
        ('status.conditions.#(type=="Complete")#|#(status=="True")#', Match("Done", "all done")),
        ('status.conditions.#(type=="Failed")#|#(status=="True")#', None),
        ('status.conditions.#(type=="Failed")#|#(status=="False")#', Match("no", "")),
        ('status.[@this].#(phase=="Succeeded")', Match()),
        ('status.[@this].#(phase=="Failed")', None),
        ("status.[@this].#(succeeded>=2)#", Match()),
        ("status.[@this].#(succeeded>2)#", None),
        ('status.conditions.#(type%"Comp*")', Match("Done", "all done")),
        ("status.nothing.#(a==1)#", None),
    ],
)
def test_a_condition_holds_when_it_finds_an_object(condition: str, match: Match | None) -> None:
    assert evaluate(condition, JOB) == match


def test_paths_find_values() -> None:
    assert find("status.conditions.#", JOB) == 2
    assert find("status.conditions.#.type", JOB) == ["Failed", "Complete"]
    assert find("status.conditions.1.reason", JOB) == "Done"
    assert find(r"metadata.labels.a\.b/c", JOB) == "x"
    assert find("metadata.none", JOB) is ABSENT


@pytest.mark.parametrize("path", ["", "a.#(b==1", "a.[b"])
def test_what_cannot_be_read_is_an_error(path: str) -> None:
    with pytest.raises(GjsonError):
        evaluate(path, JOB)
