"""The Jobs, the headless Service and the claims of a JobSet; pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from shallop.kube.objects import Object, owner_reference

__all__ = ["JOBSET_NAME", "RESTARTS", "job_name", "render_claims", "render_job", "render_service", "subdomain_of"]

_PREFIX = "jobset.sigs.k8s.io/"
JOBSET_NAME = f"{_PREFIX}jobset-name"
RESTARTS = f"{_PREFIX}restart-attempt"


def job_name(jobset: Object, rjob: Mapping[str, Any], index: int) -> str:
    return f"{jobset['metadata']['name']}-{rjob['name']}-{index}"


def subdomain_of(jobset: Object) -> str:
    """Return the name of the headless Service, "" when host names are switched off."""
    network = jobset["spec"].get("network") or {}
    if not network.get("enableDNSHostnames", True):
        return ""
    return str(network.get("subdomain") or jobset["metadata"]["name"])


def render_service(jobset: Object) -> Object | None:
    """Return the headless Service by which the Pods find each other."""
    if not (name := subdomain_of(jobset)):
        return None
    metadata = jobset["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "ownerReferences": [owner_reference(jobset)],
        },
        "spec": {
            "clusterIP": "None",
            "selector": {JOBSET_NAME: metadata["name"]},
            "publishNotReadyAddresses": (jobset["spec"].get("network") or {}).get("publishNotReadyAddresses", True),
        },
    }


def render_claims(jobset: Object) -> list[Object]:
    """Return the claims of ``volumeClaimPolicies``; those that are to be deleted with the JobSet are owned by it."""
    metadata = jobset["metadata"]
    claims = []
    for policy in jobset["spec"].get("volumeClaimPolicies") or ():
        owned = (policy.get("retentionPolicy") or {}).get("whenDeleted", "Delete") == "Delete"
        for template in policy.get("templates") or ():
            source = template.get("metadata") or {}
            claim_metadata: dict[str, Any] = {
                "name": f"{source.get('name', '')}-{metadata['name']}",
                "namespace": metadata["namespace"],
                "labels": {**(source.get("labels") or {}), JOBSET_NAME: metadata["name"]},
            }
            if source.get("annotations"):
                claim_metadata["annotations"] = source["annotations"]
            if owned:
                claim_metadata["ownerReferences"] = [owner_reference(jobset)]
            spec = template.get("spec") or {}
            claims.append(
                {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim_metadata, "spec": spec}
            )
    return claims


def render_job(jobset: Object, rjob: Mapping[str, Any], index: int, restarts: int) -> Object:
    """
    Return one Job.

    Args:
        index: which of the replicas of ``rjob``.
        restarts: ``status.restarts`` that the Job belongs to.
    """
    marks = _marks(jobset, rjob, index, restarts)
    template = rjob["template"]
    metadata = template.get("metadata") or {}
    job_spec = template["spec"]
    pod_template = job_spec["template"]
    pod_metadata = pod_template.get("metadata") or {}
    pod_spec = _with_claims(dict(pod_template.get("spec") or {}), jobset)
    if subdomain := subdomain_of(jobset):
        pod_spec["subdomain"] = subdomain
    spec = {
        **job_spec,
        "template": {
            "metadata": {
                **pod_metadata,
                "labels": (pod_metadata.get("labels") or {}) | marks,
                "annotations": (pod_metadata.get("annotations") or {}) | marks,
            },
            "spec": pod_spec,
        },
        "suspend": bool(jobset["spec"].get("suspend")),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(jobset, rjob, index),
            "namespace": jobset["metadata"]["namespace"],
            "labels": (metadata.get("labels") or {}) | marks,
            "annotations": (metadata.get("annotations") or {}) | marks,
        },
        "spec": spec,
    }


def _marks(jobset: Object, rjob: Mapping[str, Any], index: int, restarts: int) -> dict[str, str]:
    """Return what Jobs and Pods carry, as labels and as annotations."""
    metadata, spec = jobset["metadata"], jobset["spec"]
    rjobs: Sequence[Mapping[str, Any]] = spec["replicatedJobs"]
    position = next(number for number, other in enumerate(rjobs) if other["name"] == rjob["name"])
    group = rjob.get("groupName", "default")
    earlier = rjobs[:position]
    name = job_name(jobset, rjob, index)
    marks = {
        "jobset-name": metadata["name"],
        "jobset-uid": metadata["uid"],
        "replicatedjob-name": rjob["name"],
        "replicatedjob-replicas": str(rjob.get("replicas", 1)),
        "global-replicas": str(_replicas(rjobs)),
        "group-name": group,
        "group-replicas": str(_replicas([other for other in rjobs if other.get("groupName", "default") == group])),
        "job-index": str(index),
        "job-key": hashlib.sha1(f"{metadata['namespace']}/{name}".encode(), usedforsecurity=False).hexdigest(),
        "job-global-index": str(_replicas(earlier) + index),
        "job-group-index": str(
            _replicas([other for other in earlier if other.get("groupName", "default") == group]) + index
        ),
        "restart-attempt": str(restarts),
    }
    if coordinator := spec.get("coordinator"):
        host = f"{metadata['name']}-{coordinator['replicatedJob']}"
        host += f"-{coordinator.get('jobIndex') or 0}-{coordinator.get('podIndex') or 0}"
        marks["coordinator"] = f"{host}.{subdomain_of(jobset) or metadata['name']}"
    return {f"{_PREFIX}{key}": value for key, value in marks.items()}


def _replicas(rjobs: Sequence[Mapping[str, Any]]) -> int:
    return sum(int(rjob.get("replicas", 1)) for rjob in rjobs)


def _with_claims(pod_spec: dict[str, Any], jobset: Object) -> dict[str, Any]:
    """Add a volume for each claim that a container mounts by the name of its template."""
    names = [
        str((template.get("metadata") or {}).get("name", ""))
        for policy in jobset["spec"].get("volumeClaimPolicies") or ()
        for template in policy.get("templates") or ()
    ]
    if not names:
        return pod_spec
    mounted = {
        mount["name"]
        for key in ("initContainers", "containers")
        for container in pod_spec.get(key) or ()
        for mount in container.get("volumeMounts") or ()
    }
    claimed = [
        {"name": name, "persistentVolumeClaim": {"claimName": f"{name}-{jobset['metadata']['name']}"}}
        for name in names
        if name in mounted
    ]
    kept = [volume for volume in pod_spec.get("volumes") or () if volume["name"] not in names]
    return {**pod_spec, "volumes": [*kept, *claimed]}
