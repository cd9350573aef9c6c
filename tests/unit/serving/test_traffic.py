"""Traffic moves only to revisions that are ready; what was rolled out can be rolled back to."""

from __future__ import annotations

from typing import Any

from shallop.serving.traffic import Rollout, next_rollout, render_targets, resolve_targets, weights


def traffic(**shares: int) -> list[dict[str, Any]]:
    (latest, percent), *others = shares.items()
    items = [{"revisionName": latest, "latestRevision": True, "percent": percent}]
    return items + [{"revisionName": name, "latestRevision": False, "percent": share} for name, share in others]


def test_without_a_percent_or_anything_to_go_back_to_the_newest_gets_all() -> None:
    everything = [{"latestRevision": True, "percent": 100}]
    assert render_targets(None, "r1", tag_latest=False) == everything
    assert render_targets(10, "", tag_latest=False) == everything
    assert render_targets(100, "r1", tag_latest=True) == [{"latestRevision": True, "percent": 100, "tag": "latest"}]


def test_a_canary_shares_with_the_revision_that_was_rolled_out() -> None:
    latest, previous = render_targets(10, "r1", tag_latest=False)
    assert latest == {"latestRevision": True, "percent": 10}
    assert previous == {"latestRevision": False, "revisionName": "r1", "percent": 90, "tag": "prev"}


def test_latest_means_the_newest_that_is_ready() -> None:
    targets = render_targets(10, "r1", tag_latest=False)
    resolved = resolve_targets(targets, "r1", {"r1"})
    assert resolved is not None
    assert weights(resolved) == {"r1": 100}
    resolved = resolve_targets(targets, "r2", {"r1", "r2"})
    assert resolved is not None
    assert weights(resolved) == {"r2": 10, "r1": 90}
    assert [item["latestRevision"] for item in resolved] == [True, False]


def test_nothing_is_resolved_before_every_target_is_ready() -> None:
    assert resolve_targets([], "", set()) is None
    assert resolve_targets([{"revisionName": "gone", "percent": 100}], "r1", {"r1"}) is None


def test_a_revision_with_all_traffic_is_rolled_out() -> None:
    first = next_rollout(Rollout(), "r1", "r1", traffic(r1=100))
    assert first == Rollout("r1", "r1", "r1", "")
    canary = next_rollout(first, "r2", "r2", traffic(r2=10, r1=90))
    assert canary == Rollout("r2", "r2", "r1", "")
    assert next_rollout(canary, "r2", "r2", traffic(r2=100)) == Rollout("r2", "r2", "r2", "r1")


def test_a_revision_that_is_still_starting_changes_nothing() -> None:
    rolled = Rollout("r1", "r1", "r1", "r0")
    assert next_rollout(rolled, "r2", "r1", [*traffic(r1=10), *traffic(r1=90)]) == Rollout("r2", "r1", "r1", "r0")


def test_less_traffic_for_what_was_rolled_out_goes_to_the_one_before() -> None:
    rolled = Rollout("r2", "r2", "r2", "r1")
    both = [*traffic(r2=0), {"revisionName": "r2", "latestRevision": False, "percent": 100}]
    assert next_rollout(rolled, "r2", "r2", both) == Rollout("r2", "r2", "r1", "r1")
