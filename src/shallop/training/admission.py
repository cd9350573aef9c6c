"""What a TrainJob becomes when it is written, and when it is refused. Pure, but for the stamp of a new patch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from shallop.errors import FieldError
from shallop.kube.objects import Object, format_time
from shallop.training.podsets import DATASET, MODEL, NODE
from shallop.training.policies import validate_policy

__all__ = ["default", "validate", "validate_with_runtime"]

_PATCHES = "spec.runtimePatches"
# Their variables come from spec.trainer and spec.initializer.
_OWN_CONTAINERS = (NODE, DATASET, MODEL)


def default(job: Object) -> Object:
    """Write amounts as text, as Kubernetes does (its SDK sends 1.0), and stamp patches that are new."""
    spec = dict(job.get("spec") or {})
    trainer = spec.get("trainer")
    if isinstance(trainer, dict) and isinstance(trainer.get("resourcesPerNode"), dict):
        resources = {
            kind: {name: _quantity(amount) for name, amount in amounts.items()}
            if kind in ("limits", "requests") and isinstance(amounts, dict)
            else amounts
            for kind, amounts in trainer["resourcesPerNode"].items()
        }
        spec["trainer"] = {**trainer, "resourcesPerNode": resources}
    if patches := spec.get("runtimePatches"):
        stamp = format_time(datetime.now(UTC))
        spec["runtimePatches"] = [patch if patch.get("time") else {**patch, "time": stamp} for patch in patches]
    return {**job, "spec": spec}


def _quantity(amount: Any) -> Any:
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        return amount
    return str(int(amount)) if amount == int(amount) else f"{round(amount * 1000)}m"


def validate(job: Object, old: Object | None) -> list[FieldError]:
    """Check what the schema cannot say."""
    patches = job["spec"].get("runtimePatches") or []
    errors = []
    for index, patch in enumerate(patches):
        for replicated in _patched_jobs(patch):
            for container in _containers(replicated):
                if container.get("env") and container["name"] in _OWN_CONTAINERS:
                    detail = (
                        f"must not have envs for the {', '.join(_OWN_CONTAINERS)} containers: "
                        "set them in spec.trainer.env or spec.initializer"
                    )
                    errors.append(FieldError.invalid(f"{_PATCHES}[{index}]", container["name"], detail))
    if old is not None and _unstamped(patches) != _unstamped((old.get("spec") or {}).get("runtimePatches") or []):
        if not (job["spec"].get("suspend") or (old.get("spec") or {}).get("suspend")):
            errors.append(FieldError.forbidden(_PATCHES, "can only be modified when the TrainJob is suspended"))
        elif any(item.get("active") for item in (job.get("status") or {}).get("jobsStatus") or ()):
            errors.append(FieldError.forbidden(_PATCHES, "cannot be modified while Pods of the job are active"))
    return errors


def validate_with_runtime(job: Object, runtime: Object) -> list[FieldError]:
    """Check a TrainJob against the runtime that it names."""
    jobs = ((runtime["spec"].get("template") or {}).get("spec") or {}).get("replicatedJobs") or []
    containers = {item["name"]: [c["name"] for c in _containers(item)] for item in jobs}
    reference = json.dumps(job["spec"]["runtimeRef"], sort_keys=True)
    errors: list[FieldError] = []
    for field, step in (("dataset", DATASET), ("model", MODEL)):
        if (job["spec"].get("initializer") or {}).get(field) is None:
            continue
        where = "spec.runtimeRef"
        if step not in containers:
            detail = f"must have {step} job when trainJob is configured with input {field}Config"
            errors.append(FieldError.invalid(where, reference, detail))
        elif step not in containers[step]:
            errors.append(
                FieldError.invalid(where, reference, f"must have container with name - {step} in the {step} job")
            )
    for index, patch in enumerate(job["spec"].get("runtimePatches") or ()):
        errors += _check_patch(patch, f"{_PATCHES}[{index}]", containers)
    return errors + validate_policy(job, runtime)


def _check_patch(patch: Mapping[str, Any], path: str, known: Mapping[str, list[str]]) -> Iterable[FieldError]:
    for replicated in _patched_jobs(patch):
        name = replicated["name"]
        if name not in known:
            detail = f"the runtime has no replicated job of this name; it has {', '.join(known) or 'none'}"
            yield FieldError.invalid(path, name, detail)
            continue
        for container in _containers(replicated):
            if container["name"] not in known[name]:
                detail = f"the replicated job {name} has no container of this name; it has {', '.join(known[name])}"
                yield FieldError.invalid(path, container["name"], detail)


def _patched_jobs(patch: Mapping[str, Any]) -> list[dict[str, Any]]:
    template = (patch.get("trainingRuntimeSpec") or {}).get("template") or {}
    jobs: list[dict[str, Any]] = (template.get("spec") or {}).get("replicatedJobs") or []
    return jobs


def _containers(replicated: Mapping[str, Any]) -> list[dict[str, Any]]:
    job = (replicated.get("template") or {}).get("spec") or {}
    pod = (job.get("template") or {}).get("spec") or {}
    return [*(pod.get("initContainers") or ()), *(pod.get("containers") or ())]


def _unstamped(patches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in patch.items() if key != "time"} for patch in patches]
