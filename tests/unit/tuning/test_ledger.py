"""The ledger of an Experiment's trials says what looking at all of them would say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shallop.tuning.ledger import Ledger
from shallop.tuning.plan import judge

CLASSES = ("", "Running", "Succeeded", "Failed")


def trial(name: str, type_: str = "", loss: float | None = None, *, deleting: bool = False) -> dict[str, Any]:
    metadata = {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status: dict[str, Any] = {"conditions": [{"type": type_, "status": "True"}]} if type_ else {}
    if loss is not None:
        value = str(loss)
        status["observation"] = {"metrics": [{"name": "loss", "min": value, "max": value, "latest": value}]}
    return {
        "metadata": metadata,
        "spec": {"objective": {"type": "minimize", "objectiveMetricName": "loss"}},
        "status": status,
    }


changes = st.lists(
    st.tuples(
        st.integers(0, 4), st.sampled_from(CLASSES), st.none() | st.sampled_from([1.0, 2.0, 3.0]), st.integers(0, 5)
    ),
    max_size=30,
)


@given(changes, st.booleans())
def test_it_says_what_a_fresh_look_says(steps: list[tuple[int, str, float | None, int]], maximize: bool) -> None:
    ledger = Ledger(maximize=maximize)
    present: dict[str, dict[str, Any]] = {}
    for number, type_, loss, what in steps:
        name = f"t{number}"
        if what == 0:
            present.pop(name, None)
        else:
            present[name] = trial(name, type_, loss, deleting=what == 1)
        ledger.update([present[name] for name in sorted(present)])
        alive = [one for name, one in sorted(present.items()) if "deletionTimestamp" not in one["metadata"]]
        found = {name: sorted(t["metadata"]["name"] for t in trials) for name, trials in ledger.tally().classes.items()}
        expected: dict[str, list[str]] = {}
        for one in alive:
            expected.setdefault(judge(one).name, []).append(one["metadata"]["name"])
        assert found == expected
        assert all((name in ledger) == (name in present) for name in ("t0", "t1", "t2", "t3", "t4"))
        values = [(value, one) for one in alive if (value := judge(one).value) is not None]
        best = ledger.best()
        if not values:
            assert best is None
        else:
            most = (max if maximize else min)(value for value, _ in values)
            first = next(one for value, one in values if value == most)
            assert best == (first, most)
