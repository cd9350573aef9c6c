"""What the failure of one Pod means for its Job: ``spec.podFailurePolicy``, and the back-off after failures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from shallop.kube.objects import Object, parse_time

__all__ = ["Verdict", "back_off_s", "finished_at", "index_back_off_s", "judge_failure"]

_FIRST_S = 10
_MAX_S = 600


class Verdict(NamedTuple):
    """``action`` is Count, Ignore, FailJob or FailIndex; ``message`` says which rule decided, for FailJob."""

    action: str
    message: str = ""


def judge_failure(policy: Mapping[str, Any] | None, pod: Object) -> Verdict:
    """Find the first rule that matches a failed Pod; without one the failure counts."""
    for number, rule in enumerate((policy or {}).get("rules") or ()):
        what = _match_exit_codes(rule.get("onExitCodes"), pod) or _match_conditions(rule.get("onPodConditions"), pod)
        if what:
            action = str(rule["action"])
            return Verdict(action, f"{what} matching {action} rule at index {number}")
    return Verdict("Count")


def _match_exit_codes(rule: Mapping[str, Any] | None, pod: Object) -> str:
    if not rule:
        return ""
    status = pod.get("status") or {}
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    values = rule.get("values") or ()
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        code = ((container.get("state") or {}).get("terminated") or {}).get("exitCode")
        if not code or rule.get("containerName") not in (None, container["name"]):
            continue
        if (code in values) == (rule["operator"] == "In"):
            return f"Container {container['name']} for pod {name} failed with exit code {code}"
    return ""


def _match_conditions(patterns: Sequence[Mapping[str, Any]] | None, pod: Object) -> str:
    for pattern in patterns or ():
        for condition in (pod.get("status") or {}).get("conditions") or ():
            wanted = (pattern["type"], pattern.get("status", "True"))
            if (condition["type"], condition["status"]) == wanted:
                name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                return f"Pod {name} has condition {pattern['type']}"
    return ""


def finished_at(pod: Object, now: datetime) -> datetime:
    """Return when the last container of an ended Pod ended."""
    times = [
        parse_time(text)
        for container in (pod.get("status") or {}).get("containerStatuses") or ()
        if (text := ((container.get("state") or {}).get("terminated") or {}).get("finishedAt"))
    ]
    deleted = pod["metadata"].get("deletionTimestamp")
    return max(times, default=min(parse_time(deleted), now) if deleted else now)


def back_off_s(failed: Iterable[Object], succeeded: Iterable[Object], now: datetime) -> float:
    """Return seconds until the next Pod: 10 s, doubling with each failure since the last success, at most 600."""
    last_success = max((finished_at(pod, now) for pod in succeeded), default=None)
    times = [finished_at(pod, now) for pod in failed]
    recent = [time for time in times if last_success is None or time > last_success]
    if not recent:
        return 0.0
    return _left_s(max(recent), len(recent), now)


def index_back_off_s(last: Object, failures: int, now: datetime) -> float:
    """Return seconds until an index may be tried again whose last Pod is ``last``, after so many failures."""
    return _left_s(finished_at(last, now), failures, now)


def _left_s(last: datetime, failures: int, now: datetime) -> float:
    delay = min(_FIRST_S * 2 ** min(failures - 1, 16), _MAX_S)
    return max(0.0, (last + timedelta(seconds=delay) - now).total_seconds())
