"""The built-in workload controllers: what kube-controller-manager and kube-scheduler do on a cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from shallop.controller import Part, Services
from shallop.embedded.workloads.cronjob import CRONJOB
from shallop.embedded.workloads.daemonset import DAEMONSET
from shallop.embedded.workloads.deployment import DEPLOYMENT
from shallop.embedded.workloads.endpointslice import SERVICE_ENDPOINTS
from shallop.embedded.workloads.garbage import GarbageCollector
from shallop.embedded.workloads.horizontalpodautoscaler import HORIZONTALPODAUTOSCALER
from shallop.embedded.workloads.job import JOB
from shallop.embedded.workloads.jobset import JOBSET
from shallop.embedded.workloads.namespace import NAMESPACE
from shallop.embedded.workloads.persistentvolume import PERSISTENTVOLUME
from shallop.embedded.workloads.persistentvolumeclaim import PERSISTENTVOLUMECLAIM, STANDARD_CLASS
from shallop.embedded.workloads.poddisruptionbudget import PODDISRUPTIONBUDGET
from shallop.embedded.workloads.podgroup import POD_GROUPS
from shallop.embedded.workloads.replicaset import REPLICASET
from shallop.embedded.workloads.scheduler import PLACING, SCHEDULER
from shallop.embedded.workloads.serviceaccount import NAMESPACE_DEFAULTS
from shallop.embedded.workloads.statefulset import STATEFULSET

__all__ = ["PART", "PLACING"]


def _tasks(services: Services) -> Sequence[Callable[[], Awaitable[None]]]:
    return [GarbageCollector(services.client).run]


PART = Part(
    name="workloads",
    kinds=(
        DEPLOYMENT,
        REPLICASET,
        STATEFULSET,
        DAEMONSET,
        JOB,
        CRONJOB,
        JOBSET,
        HORIZONTALPODAUTOSCALER,
        PODDISRUPTIONBUDGET,
        SERVICE_ENDPOINTS,
        PERSISTENTVOLUMECLAIM,
        PERSISTENTVOLUME,
        NAMESPACE,
        NAMESPACE_DEFAULTS,
        SCHEDULER,
        *POD_GROUPS,
    ),
    objects=(STANDARD_CLASS,),
    tasks=_tasks,
)
