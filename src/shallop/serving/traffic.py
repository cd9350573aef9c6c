"""
Which revision gets which share of the traffic; pure.

Source: Knative Serving v1 ``Service.spec.traffic``; KServe v1beta1, rollout of a component in Knative mode.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Rollout", "next_rollout", "render_targets", "resolve_targets", "weights"]

Target = dict[str, Any]


class Rollout(NamedTuple):
    """The revisions of a component as clients read them; empty where there is none."""

    latest_created: str = ""
    latest_ready: str = ""
    latest_rolled_out: str = ""
    previous_rolled_out: str = ""


def render_targets(percent: int | None, rolled_out: str, *, tag_latest: bool) -> list[Target]:
    """
    Render ``spec.traffic`` of a component.

    Args:
        percent: of the traffic for the newest revision; None for all of it.
        rolled_out: the revision that last had all traffic; the rest goes to it.
        tag_latest: whether the newest revision can be asked by a host name of its own.
    """
    if percent is None or not rolled_out:
        percent = 100
    latest: Target = {"latestRevision": True, "percent": percent} | ({"tag": "latest"} if tag_latest else {})
    if percent == 100:
        return [latest]
    return [latest, {"latestRevision": False, "revisionName": rolled_out, "percent": 100 - percent, "tag": "prev"}]


def resolve_targets(targets: Sequence[Target], latest_ready: str, ready: Collection[str]) -> list[Target] | None:
    """
    Name the revision of each target; None while one of them cannot take traffic.

    Args:
        latest_ready: the newest revision that has become ready; what "latest" means.
        ready: all revisions that have become ready.
    """
    resolved = []
    for target in targets or [{"latestRevision": True, "percent": 100}]:
        latest = bool(target.get("latestRevision", not target.get("revisionName")))
        revision = latest_ready if latest else target["revisionName"]
        if not revision or revision not in ready:
            return None
        item: Target = {"revisionName": revision, "latestRevision": latest, "percent": int(target.get("percent") or 0)}
        resolved.append(item | ({"tag": target["tag"]} if target.get("tag") else {}))
    return resolved


def weights(traffic: Sequence[Target]) -> dict[str, int]:
    """Return revision -> percent, in the order of ``traffic``, which keeps a request's revision while a share grows."""
    shares: dict[str, int] = {}
    for target in traffic:
        shares[target["revisionName"]] = shares.get(target["revisionName"], 0) + int(target.get("percent") or 0)
    return shares


def next_rollout(old: Rollout, created: str, ready: str, traffic: Sequence[Mapping[str, Any]]) -> Rollout:
    """
    Remember which revisions have been rolled out.

    A revision is rolled out once all traffic is its own. When one that was rolled out gets less again, and nothing
    newer is on its way, it is rolled back: the one before is what the rest of the traffic goes to.
    """
    rolled_out, previous = old.latest_rolled_out, old.previous_rolled_out
    latest = next((target for target in traffic if target.get("latestRevision")), None)
    if latest and latest["revisionName"] == ready:
        percent = int(latest.get("percent") or 0)
        if rolled_out != ready:
            if percent == 100:
                rolled_out, previous = ready, rolled_out
        elif ready == created and percent < 100 and previous and weights([dict(t) for t in traffic])[ready] == 100:
            rolled_out = previous
    return Rollout(created, ready, rolled_out, previous)
