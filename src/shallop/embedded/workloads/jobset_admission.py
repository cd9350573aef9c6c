"""What the API server does with a JobSet before it stores it: defaults and validation; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from shallop.errors import FieldError
from shallop.kube.objects import Object

__all__ = ["MANAGER", "default", "validate"]

MANAGER = "jobset.sigs.k8s.io/jobset-controller"
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_RULE_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_MANAGED_BY = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9._~!$&'()*+,;=:@%/-]+")
_MAX_LABEL = 63
# "-" and the five characters that a generated name ends with.
_SUFFIX = 6
_REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")
_ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
# What may change in a Pod template while the JobSet is suspended, or is being suspended or resumed.
_MUTABLE_METADATA = ("labels", "annotations")
_MUTABLE_SPEC = ("nodeSelector", "tolerations", "schedulingGates")


def default(jobset: Object) -> Object:
    """Return the JobSet with defaults set; what has a wrong type stays for the schema to refuse."""
    spec = jobset.get("spec")
    if not isinstance(spec, Mapping):
        return jobset
    result = dict(spec)
    result.setdefault("successPolicy", {"operator": "All"})
    result.setdefault("startupPolicy", {"startupPolicyOrder": "AnyOrder"})
    network = result.get("network") or {}
    if isinstance(network, Mapping):
        result["network"] = {"enableDNSHostnames": True, "publishNotReadyAddresses": True, **network}
    if isinstance(result.get("replicatedJobs"), list):
        result["replicatedJobs"] = [_default_replicated_job(rjob) for rjob in result["replicatedJobs"]]
    policy = result.get("failurePolicy")
    if isinstance(policy, Mapping) and isinstance(policy.get("rules"), list):
        rules = [
            {**rule, "name": rule.get("name") or f"failurePolicyRule{number}"} if isinstance(rule, Mapping) else rule
            for number, rule in enumerate(policy["rules"])
        ]
        result["failurePolicy"] = {**policy, "rules": rules}
    return {**jobset, "spec": result}


def _default_replicated_job(rjob: Any) -> Any:
    try:
        template = rjob["template"]
        job_spec = {"completionMode": "Indexed", **template["spec"]}
        pod_template = job_spec["template"]
        pod_spec = dict(pod_template.get("spec") or {})
        pod_spec["restartPolicy"] = pod_spec.get("restartPolicy") or "OnFailure"
        job_spec["template"] = {**pod_template, "spec": pod_spec}
        return {**rjob, "template": {**template, "spec": job_spec}}
    except (KeyError, TypeError, ValueError, AttributeError):
        return rjob


def validate(jobset: Object, old: Object | None) -> list[FieldError]:
    """Check what a schema cannot say; one error per thing to put right."""
    spec = jobset.get("spec") or {}
    if old is not None:
        return _check_update(spec, old.get("spec") or {})
    rjobs = spec.get("replicatedJobs") or []
    names = {rjob["name"]: number for number, rjob in enumerate(rjobs)}
    errors = _check_manager(spec.get("managedBy"))
    errors += _check_subdomain((spec.get("network") or {}).get("subdomain"))
    for number, rjob in enumerate(rjobs):
        errors += _check_names(jobset["metadata"].get("name") or "", number, rjob)
        errors += _check_dependencies(number, rjob, names)
    for index, name in enumerate((spec.get("successPolicy") or {}).get("targetReplicatedJobs") or ()):
        errors += _check_known(f"spec.successPolicy.targetReplicatedJobs[{index}]", name, names)
    errors += _check_failure_policy(spec.get("failurePolicy") or {}, names)
    return errors + _check_coordinator(spec.get("coordinator"), rjobs, names)


def _check_update(spec: Mapping[str, Any], old: Mapping[str, Any]) -> list[FieldError]:
    errors = []
    rjobs, before = spec.get("replicatedJobs") or [], old.get("replicatedJobs") or []
    if spec.get("suspend") or old.get("suspend"):
        rjobs, before = [_without_mutable(rjob) for rjob in rjobs], [_without_mutable(rjob) for rjob in before]
    if rjobs != before:
        detail = "field is immutable; labels, annotations, nodeSelector, tolerations and schedulingGates of the Pod "
        detail += "templates may change while the JobSet is suspended"
        errors.append(FieldError.forbidden("spec.replicatedJobs", detail))
    if spec.get("managedBy") != old.get("managedBy"):
        errors.append(FieldError.invalid("spec.managedBy", spec.get("managedBy"), "field is immutable"))
    return errors


def _without_mutable(rjob: Mapping[str, Any]) -> dict[str, Any]:
    job_spec = rjob["template"].get("spec") or {}
    template = job_spec.get("template") or {}
    metadata = {key: value for key, value in (template.get("metadata") or {}).items() if key not in _MUTABLE_METADATA}
    pod_spec = {key: value for key, value in (template.get("spec") or {}).items() if key not in _MUTABLE_SPEC}
    fixed = {**job_spec, "template": {**template, "metadata": metadata, "spec": pod_spec}}
    return {**rjob, "template": {**rjob["template"], "spec": fixed}}


def _check_manager(name: str | None) -> list[FieldError]:
    if name is None:
        return []
    if len(name) > _MAX_LABEL or not _MANAGED_BY.fullmatch(name):
        detail = f"must be a domain-prefixed path of at most {_MAX_LABEL} characters (such as acme.io/foo)"
        return [FieldError.invalid("spec.managedBy", name, detail)]
    return []


def _check_subdomain(name: str | None) -> list[FieldError]:
    if name and (len(name) > _MAX_LABEL or not _LABEL.fullmatch(name)):
        detail = f"must be a DNS label of at most {_MAX_LABEL} characters: it is the name of the headless Service"
        return [FieldError.invalid("spec.network.subdomain", name, detail)]
    return []


def _check_names(jobset: str, number: int, rjob: Mapping[str, Any]) -> list[FieldError]:
    """The longest names that will be generated must be DNS labels: they are host names."""
    path = f"spec.replicatedJobs[{number}].name"
    job = f"{jobset}-{rjob['name']}-{max(int(rjob.get('replicas', 1)) - 1, 0)}"
    if not _LABEL.fullmatch(job):
        detail = f"job names generated for this JobSet, such as {job}, must be DNS labels that start with a letter"
        return [FieldError.invalid(path, rjob["name"], detail)]
    if len(job) > _MAX_LABEL:
        detail = "JobSet name is too long, job names generated for this JobSet will exceed 63 characters"
        return [FieldError.invalid(path, rjob["name"], detail)]
    job_spec = rjob["template"].get("spec") or {}
    last = (job_spec.get("completions") or 1) - 1
    if job_spec.get("completionMode") == "Indexed" and len(f"{job}-{last}") + _SUFFIX > _MAX_LABEL:
        detail = "JobSet name is too long, pod names generated for this JobSet will exceed 63 characters"
        return [FieldError.invalid(path, rjob["name"], detail)]
    return []


def _check_dependencies(number: int, rjob: Mapping[str, Any], names: Mapping[str, int]) -> list[FieldError]:
    errors = []
    for index, dependency in enumerate(rjob.get("dependsOn") or ()):
        if names.get(dependency["name"], number) >= number:
            path = f"spec.replicatedJobs[{number}].dependsOn[{index}].name"
            detail = f"replicatedJob {rjob['name']} can only depend on one that is listed before it"
            errors.append(FieldError.invalid(path, dependency["name"], detail))
    return errors


def _check_known(path: str, name: str, names: Iterable[str]) -> list[FieldError]:
    if name in names:
        return []
    return [FieldError.invalid(path, name, "invalid replicatedJob name: it does not appear in .spec.replicatedJobs")]


def _check_failure_policy(policy: Mapping[str, Any], names: Iterable[str]) -> list[FieldError]:
    errors = []
    if policy.get("restartStrategy") == "InPlaceRestart":
        supported = ("Recreate", "BlockingRecreate")
        errors.append(FieldError.not_supported("spec.failurePolicy.restartStrategy", "InPlaceRestart", supported))
    seen = set()
    for number, rule in enumerate(policy.get("rules") or ()):
        path = f"spec.failurePolicy.rules[{number}]"
        name = rule["name"]
        if len(name) > 128 or not _RULE_NAME.fullmatch(name):
            detail = f"must match {_RULE_NAME.pattern} and have at most 128 characters"
            errors.append(FieldError.invalid(f"{path}.name", name, detail))
        if name in seen:
            errors.append(FieldError.invalid(f"{path}.name", name, "rule names must be unique"))
        seen.add(name)
        if rule["action"].startswith("RestartJobAnd") or rule["action"] == "RestartJob":
            errors.append(FieldError.not_supported(f"{path}.action", rule["action"], _ACTIONS))
        for index, reason in enumerate(rule.get("onJobFailureReasons") or ()):
            if reason not in _REASONS:
                errors.append(FieldError.not_supported(f"{path}.onJobFailureReasons[{index}]", reason, _REASONS))
        for index, pattern in enumerate(rule.get("onJobFailureMessagePatterns") or ()):
            try:
                re.compile(pattern)
            except re.error as error:
                where = f"{path}.onJobFailureMessagePatterns[{index}]"
                errors.append(FieldError.invalid(where, pattern, f"not a regular expression: {error}"))
        for index, target in enumerate(rule.get("targetReplicatedJobs") or ()):
            errors += _check_known(f"{path}.targetReplicatedJobs[{index}]", target, names)
    return errors


def _check_coordinator(
    coordinator: Mapping[str, Any] | None, rjobs: list[Mapping[str, Any]], names: Mapping[str, int]
) -> list[FieldError]:
    if not coordinator:
        return []
    name = coordinator["replicatedJob"]
    if errors := _check_known("spec.coordinator.replicatedJob", name, names):
        return errors
    rjob = rjobs[names[name]]
    job_index, pod_index = coordinator.get("jobIndex") or 0, coordinator.get("podIndex") or 0
    if not 0 <= job_index < rjob.get("replicas", 1):
        detail = f"job index is out of range for replicatedJob {name}"
        errors.append(FieldError.invalid("spec.coordinator.jobIndex", job_index, detail))
    job_spec = rjob["template"].get("spec") or {}
    if job_spec.get("completionMode") != "Indexed":
        detail = f"replicatedJob {name} must be indexed: its Pods have no host names"
        errors.append(FieldError.invalid("spec.coordinator.replicatedJob", name, detail))
    elif not 0 <= pod_index < job_spec.get("completions", job_spec.get("parallelism", 1)):
        detail = f"pod index is out of range for replicatedJob {name}"
        errors.append(FieldError.invalid("spec.coordinator.podIndex", pod_index, detail))
    return errors
