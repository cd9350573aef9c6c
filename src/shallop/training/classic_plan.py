"""
What a classic job does next: which Pods to make and to end, and what its status says. Pure.

Source: Kubeflow training-operator 1.9: conditions, run policy, restart policies, who decides over success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from shallop.kube.objects import Object, format_time, is_deleting, labels_of, parse_time
from shallop.training.classic_render import REPLICA_INDEX, REPLICA_TYPE, labels_for
from shallop.training.classic_table import ClassicKind
from shallop.training.classic_view import JobView
from shallop.training.failures import failing_start, first_failure, missing_program, unknown_image

__all__ = ["ClassicPlan", "plan_classic"]

_RETRYABLE = 128
_IN_PLACE = ("OnFailure", "Always")


@dataclass(frozen=True)
class ClassicPlan:
    """
    What a job needs now.

    Args:
        status: to be written before anything else is done.
        create: type and index of replicas to make.
        delete: Pods to end.
        delete_services: the Services have served their purpose.
        requeue_after_s: when time alone changes the answer.
        delete_job: its time to live is over.
        events: reason, message, type; of what has just changed.
    """

    status: dict[str, Any]
    create: tuple[tuple[str, int], ...] = ()
    delete: tuple[Object, ...] = ()
    delete_services: bool = False
    requeue_after_s: float | None = None
    delete_job: bool = False
    events: tuple[tuple[str, str, str], ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, or is held back."""
        over = ("Succeeded", "Failed", "Suspended")
        return any(item["type"] in over and item["status"] == "True" for item in self.status["conditions"])


@dataclass
class _Replicas:
    """Pods of one type by phase."""

    running: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0


class _Conditions:
    """Conditions under change; remembers what is new, for Events."""

    def __init__(self, kind: ClassicKind, job: JobView, before: Sequence[dict[str, Any]], now: datetime) -> None:
        self.kind, self.job, self.now = kind, job, now
        self.items = [dict(item) for item in before]
        self.events: list[tuple[str, str, str]] = []

    def is_true(self, type_: str) -> bool:
        return any(item["type"] == type_ and item["status"] == "True" for item in self.items)

    def set(self, type_: str, message: str, *, status: str = "True", reason: str = "") -> None:
        """Set a condition; the newest goes last, as clients that read the last one expect."""
        reason = f"{self.kind.kind}{reason or type_}"
        old = next((item for item in self.items if item["type"] == type_), None)
        if old is not None and (old["status"], old["reason"]) == (status, reason):
            return
        stamp = format_time(self.now)
        moved = old["lastTransitionTime"] if old is not None and old["status"] == status else stamp
        self.items = [item for item in self.items if item["type"] != type_]
        if status == "True":
            self._give_way(type_, stamp)
        self.items.append(
            {
                "type": type_,
                "status": status,
                "reason": reason,
                "message": message,
                "lastUpdateTime": stamp,
                "lastTransitionTime": moved,
            }
        )
        if status == "True" or type_ == "Suspended":
            self.events.append((reason, message, "Warning" if type_ in ("Failed", "Restarting") else "Normal"))

    def _give_way(self, type_: str, stamp: str) -> None:
        if type_ in ("Running", "Restarting"):
            other = "Restarting" if type_ == "Running" else "Running"
            self.items = [item for item in self.items if item["type"] != other]
        if type_ in ("Succeeded", "Failed", "Suspended"):
            for item in self.items:
                if item["type"] == "Running" and item["status"] == "True":
                    item |= {"status": "False", "lastUpdateTime": stamp, "lastTransitionTime": stamp}


def plan_classic(kind: ClassicKind, raw: Object, pods: Sequence[Object], now: datetime) -> ClassicPlan:
    """
    Decide what a job does next.

    Args:
        raw: the stored job.
        pods: all that it controls, ended and terminating ones included.
    """
    job, before = kind.view(raw), raw.get("status") or {}
    policy: Mapping[str, Any] = job.spec.get("runPolicy") or {}
    conditions = _Conditions(kind, job, before.get("conditions") or (), now)
    status: dict[str, Any] = {"conditions": conditions.items, "startTime": before.get("startTime")}
    status["completionTime"] = before.get("completionTime")
    name = f"{kind.kind} {job.namespace}/{job.name}"
    if not conditions.items:
        conditions.set("Created", f"{name} is created.")
    if conditions.is_true("Succeeded") or conditions.is_true("Failed"):
        return _plan_finished(kind, job, before, pods, policy, now)
    if policy.get("suspend"):
        conditions.set("Suspended", f"{name} is suspended.")
        status |= {"startTime": None, "conditions": conditions.items, "replicaStatuses": _no_replicas(kind, job)}
        alive = tuple(pod for pod in pods if not is_deleting(pod))
        return ClassicPlan(status, delete=alive, delete_services=True, events=tuple(conditions.events))
    if conditions.is_true("Suspended"):
        conditions.set("Suspended", f"{name} is resumed.", status="False", reason="Resumed")
    status["startTime"] = status["startTime"] or format_time(now)
    tallies, delete, restarted = _tally(kind, job, pods)
    restarts = int(before.get("restartCount") or 0) + restarted
    ending = _ending(kind, job, policy, tallies, pods, restarts, status["startTime"], now)
    create: list[tuple[str, int]] = []
    if ending is not None:
        type_, message = ending
        conditions.set(type_, message)
        status["completionTime"] = format_time(now)
        delete = []
    else:
        if restarted:
            conditions.set("Restarting", f"{name} is restarting because {restarted} replica(s) failed.")
        elif _is_running(kind, job, tallies):
            conditions.set("Running", f"{name} is running.")
        elif problem := next(filter(None, map(failing_start, pods)), ""):
            # As on Kubernetes it is tried for ever; upstream's job says only that it is created.
            conditions.set("Restarting", f"{name} cannot start, and tries again after pauses: {problem}")
        create = _missing(kind, job, pods, delete)
    status["conditions"] = conditions.items
    status["replicaStatuses"] = _replica_statuses(kind, job, tallies)
    if restarts:
        status["restartCount"] = restarts
    left = _left_s(status["startTime"], policy.get("activeDeadlineSeconds"), now)
    return ClassicPlan(status, tuple(create), tuple(delete), requeue_after_s=left, events=tuple(conditions.events))


def _tally(kind: ClassicKind, job: JobView, pods: Sequence[Object]) -> tuple[dict[str, _Replicas], list[Object], int]:
    """Count Pods by type; also return those to end (surplus, or to be replaced) and how many of them failed."""
    tallies = {type_: _Replicas() for type_ in job.specs}
    delete, restarted = [], 0
    for pod in pods:
        type_ = kind.type_named(labels_of(pod).get(REPLICA_TYPE, ""))
        if type_ not in tallies or int(labels_of(pod).get(REPLICA_INDEX) or 0) >= job.count(type_):
            if not is_deleting(pod):
                delete.append(pod)
            continue
        if is_deleting(pod):
            continue
        phase = (pod.get("status") or {}).get("phase")
        if phase == "Running":
            tallies[type_].running += 1
        elif phase == "Succeeded":
            tallies[type_].succeeded += 1
        elif phase == "Failed":
            if _is_retried(kind, job, type_, pod):
                tallies[type_].retried += 1
                delete.append(pod)
                restarted += 1
            else:
                tallies[type_].failed += 1
    return tallies, delete, restarted


def _policy_of(kind: ClassicKind, job: JobView, type_: str) -> str:
    return str(job.specs[type_].get("restartPolicy") or kind.restart)


def _is_retried(kind: ClassicKind, job: JobView, type_: str, pod: Object) -> bool:
    policy = _policy_of(kind, job, type_)
    if policy != "ExitCode":
        # A Pod that restarts in place only fails as a whole, for example when its node goes.
        return policy in _IN_PLACE
    codes = [
        int(((container.get("state") or {}).get("terminated") or {}).get("exitCode") or 0)
        for container in (pod.get("status") or {}).get("containerStatuses") or ()
        if container["name"] == job.main_container(type_)
    ]
    return any(code >= _RETRYABLE for code in codes)


def _ending(
    kind: ClassicKind,
    job: JobView,
    policy: Mapping[str, Any],
    tallies: Mapping[str, _Replicas],
    pods: Sequence[Object],
    restarts: int,
    start: str,
    now: datetime,
) -> tuple[str, str] | None:
    """Return the final condition and its message, None while the job goes on."""
    name = f"{kind.kind} {job.namespace}/{job.name}"
    limit = policy.get("backoffLimit")
    if limit is not None and restarts + _container_restarts(kind, job, pods) > limit:
        return "Failed", _because(f"{name} has failed because it has reached the specified backoff limit", pods)
    left = _left_s(start, policy.get("activeDeadlineSeconds"), now)
    if left is not None and left <= 0:
        return "Failed", f"{name} has failed because it was active longer than specified deadline"
    if problem := next(filter(None, map(unknown_image, pods)), ""):
        # Nothing but a mapping of the image helps: say so at once, and do not keep a client waiting.
        return "Failed", f"{name} has failed: {problem}"
    if _has_succeeded(kind, job, tallies):
        return "Succeeded", f"{name} successfully completed."
    for type_, tally in tallies.items():
        if tally.failed:
            return "Failed", _because(f"{name} is failed because {tally.failed} {type_} replica(s) failed", pods)
    if problem := next(filter(None, map(missing_program, pods)), ""):
        # As for an image: what it lacks now it lacks after a restart.
        return "Failed", f"{name} has failed: {problem}"
    return None


def _because(text: str, pods: Sequence[Object]) -> str:
    failure = first_failure(pods)
    return f"{text}: {failure.message}" if failure else f"{text}."


def _container_restarts(kind: ClassicKind, job: JobView, pods: Sequence[Object]) -> int:
    total = 0
    for pod in pods:
        type_ = kind.type_named(labels_of(pod).get(REPLICA_TYPE, ""))
        if type_ in job.specs and _policy_of(kind, job, type_) in _IN_PLACE:
            for name in ("initContainerStatuses", "containerStatuses"):
                statuses = (pod.get("status") or {}).get(name) or ()
                total += sum(int(container.get("restartCount") or 0) for container in statuses)
    return total


def _has_succeeded(kind: ClassicKind, job: JobView, tallies: Mapping[str, _Replicas]) -> bool:
    def done(type_: str) -> bool:
        return tallies[type_].succeeded >= job.count(type_)

    for chief in kind.chiefs:
        if job.count(chief):
            return done(chief)
    if kind.kind == "PaddleJob":
        return all(done(type_) for type_ in tallies)
    if not job.count("Worker"):
        return False
    if kind.kind == "TFJob" and job.spec.get("successPolicy") != "AllWorkers":
        # Worker 0 stands for a chief; which Pod it is does not matter to the count of one.
        return tallies["Worker"].succeeded >= 1
    if kind.kind == "PyTorchJob" and job.spec.get("elasticPolicy") is not None:
        return tallies["Worker"].succeeded >= 1
    return done("Worker")


def _is_running(kind: ClassicKind, job: JobView, tallies: Mapping[str, _Replicas]) -> bool:
    for chief in kind.chiefs:
        if job.count(chief):
            return tallies[chief].running > 0
    return any(tally.running for tally in tallies.values())


def _missing(
    kind: ClassicKind, job: JobView, pods: Sequence[Object], leaving: Sequence[Object]
) -> list[tuple[str, int]]:
    """Return the replicas that have no Pod; a Pod that is still ending keeps its name, and its place."""
    there = {
        (kind.type_named(labels_of(pod).get(REPLICA_TYPE, "")), int(labels_of(pod).get(REPLICA_INDEX) or 0))
        for pod in [*pods, *leaving]
    }
    types = [type_ for type_ in kind.types if type_ in job.specs]
    wanted = [(type_, index) for type_ in types for index in range(job.count(type_))]
    # A launcher that starts with its workers or not at all is made with them, and calls until they answer.
    together = (job.spec.get("runPolicy") or {}).get("schedulingPolicy")
    if kind.kind == "MPIJob" and not together and not _workers_run(kind, job, pods):
        wanted = [item for item in wanted if item[0] != "Launcher"]
    return [item for item in wanted if item not in there]


def _workers_run(kind: ClassicKind, job: JobView, pods: Sequence[Object]) -> bool:
    running = [
        pod
        for pod in pods
        if labels_of(pod).get(REPLICA_TYPE) == "worker" and (pod.get("status") or {}).get("phase") == "Running"
    ]
    return len(running) >= job.count("Worker")


def _no_replicas(kind: ClassicKind, job: JobView) -> dict[str, Any]:
    return _replica_statuses(kind, job, {type_: _Replicas() for type_ in job.specs})


def _replica_statuses(kind: ClassicKind, job: JobView, tallies: Mapping[str, _Replicas]) -> dict[str, Any]:
    statuses = {}
    for type_, tally in tallies.items():
        labels = {**labels_for(kind, job), REPLICA_TYPE: type_.lower()}
        counts = {"active": tally.running, "succeeded": tally.succeeded, "failed": tally.failed + tally.retried}
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        # Zero as null: a merge patch then removes what was counted before.
        statuses[type_] = {**{name: count or None for name, count in counts.items()}, "selector": selector}
    return statuses


def _left_s(start: str, limit_s: float | None, now: datetime) -> float | None:
    if limit_s is None:
        return None
    return (parse_time(start) + timedelta(seconds=limit_s) - now).total_seconds()


def _plan_finished(
    kind: ClassicKind,
    job: JobView,
    status: dict[str, Any],
    pods: Sequence[Object],
    policy: Mapping[str, Any],
    now: datetime,
) -> ClassicPlan:
    clean = policy.get("cleanPodPolicy") or job.spec.get("cleanPodPolicy") or "None"
    ended = ("Succeeded", "Failed")
    doomed = tuple(
        pod
        for pod in pods
        if not is_deleting(pod)
        and (clean == "All" or (clean == "Running" and (pod.get("status") or {}).get("phase") not in ended))
    )
    ttl_s = policy.get("ttlSecondsAfterFinished")
    left = _left_s(status["completionTime"], ttl_s, now) if status.get("completionTime") else None
    if left is not None and left <= 0:
        return ClassicPlan(status, delete_job=True)
    return ClassicPlan(status, delete=doomed, delete_services=clean != "None", requeue_after_s=left)
