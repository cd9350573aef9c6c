"""How many replicas an autoscaler wants, for measured loads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.workloads.hpa_plan import History, Usage, limit_replicas, propose

Object = dict[str, Any]
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HALF = {"type": "Utilization", "averageUtilization": 50}


def load(*cores: float | None, request: float | None = 1, ready: bool = True) -> dict[str, Usage]:
    wanted = None if request is None else Decimal(str(request))
    return {
        f"p{number}": Usage(None if used is None else Decimal(str(used)), wanted, ready)
        for number, used in enumerate(cores)
    }


@pytest.mark.parametrize(
    ("usage", "replicas"),
    [
        (load(1, 1), 4),
        (load(0.5, 0.5), 2),
        (load(0.54, 0.54), 2),  # within the tolerance
        (load(0.1, 0.1), 1),
        (load(1, None), 2),  # the unknown one may be idle
        (load(1, 1, None), 4),
        (load(0.1, None), 2),  # the unknown one may be busy
    ],
)
def test_replicas_bring_the_load_to_its_target(usage: dict[str, Usage], replicas: int) -> None:
    assert propose(HALF, usage, len(usage), "cpu").replicas == replicas


def test_an_average_value_needs_no_request() -> None:
    target = {"type": "AverageValue", "averageValue": "250m"}
    proposal = propose(target, load(0.5, 0.5, request=None), 2, "cpu")
    assert (proposal.replicas, proposal.current) == (4, {"averageValue": "500m"})


@pytest.mark.parametrize("usage", [load(1, request=None), load(None), {}])
def test_what_cannot_be_computed_is_said(usage: dict[str, Usage]) -> None:
    with pytest.raises(ValueError, match=r"no metrics returned|missing request for cpu"):
        propose(HALF, usage, 1, "cpu")


def test_pods_go_only_after_the_window() -> None:
    history = History()
    spec: Object = {"minReplicas": 1, "maxReplicas": 10}
    first = limit_replicas(spec, 5, 2, history, NOW)
    assert (first.replicas, first.stabilized) == (5, "ScaleDownStabilized")
    assert limit_replicas(spec, 5, 3, history, NOW + timedelta(seconds=200)).replicas == 5
    assert limit_replicas(spec, 5, 2, history, NOW + timedelta(seconds=310)).replicas == 3


def test_growth_is_limited_by_the_policies() -> None:
    history = History()
    spec: Object = {"maxReplicas": 100}
    assert limit_replicas(spec, 1, 50, history, NOW).replicas == 5
    history.changes.append((NOW, 4))
    assert limit_replicas(spec, 5, 50, history, NOW + timedelta(seconds=1)).replicas == 5
    assert limit_replicas(spec, 5, 50, history, NOW + timedelta(seconds=16)).replicas == 10
    none = {**spec, "behavior": {"scaleUp": {"selectPolicy": "Disabled"}}}
    assert limit_replicas(none, 5, 50, History(), NOW).limited[1] == "ScaleUpLimit"


@given(
    current=st.integers(0, 50),
    desired=st.integers(0, 200),
    least=st.integers(1, 20),
    room=st.integers(0, 50),
    window=st.sampled_from([None, 0, 60]),
)
def test_the_bounds_always_hold(current: int, desired: int, least: int, room: int, window: int | None) -> None:
    behavior = {} if window is None else {"behavior": {"scaleDown": {"stabilizationWindowSeconds": window}}}
    spec = {"minReplicas": least, "maxReplicas": least + room, **behavior}
    assert least <= limit_replicas(spec, current, desired, History(), NOW).replicas <= least + room
