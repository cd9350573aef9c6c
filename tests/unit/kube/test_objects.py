"""Conditions, quantities, references."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from shallop.kube.objects import Gvk, controller_of, new_uid, owner_reference, parse_quantity, set_condition

T0, T1 = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


def test_the_transition_time_moves_only_with_the_status() -> None:
    first = set_condition([], "Ready", "False", "Starting", "", T0)
    same = set_condition(first, "Ready", "False", "Loading", "half way", T1)
    changed = set_condition(same, "Ready", "True", "Loaded", "", T1)
    assert same[0]["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    assert same[0]["reason"] == "Loading"
    assert changed[0]["lastTransitionTime"] == "2026-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("2Gi", str(2 * 2**30)), ("1e3", "1000"), ("1E", str(10**18)), (3, "3"), ("1.5k", "1500")],
)
def test_quantities(text: str | int, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "Gi", "1Q", "a"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)


def test_the_controller_of_a_child_is_found() -> None:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "uid": "u"}}
    child = {"metadata": {"ownerReferences": [owner_reference(owner, controller=False), owner_reference(owner)]}}
    assert (controller_of(child) or {})["uid"] == "u"
    assert Gvk("apps/v1", "Deployment").group == "apps"
    assert Gvk("v1", "Pod").group == ""


def test_a_uid_is_a_random_uuid() -> None:
    uids = [new_uid() for _ in range(100)]
    assert len(set(uids)) == 100
    for uid in uids:
        read = uuid.UUID(uid)
        assert (str(read), read.version, read.variant) == (uid, 4, uuid.RFC_4122)
