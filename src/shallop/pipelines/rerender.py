"""The Pod of a step whose Pod is gone, from its row: to look into the step again."""

from __future__ import annotations

from typing import Any

import msgspec

from shallop.errors import NotFoundError
from shallop.kube.objects import Gvk, Object
from shallop.pipelines.ir import parse_pipeline
from shallop.pipelines.messages import format_micros
from shallop.pipelines.plan import StartTask
from shallop.pipelines.podends import pod_namespace
from shallop.pipelines.render import render_pod
from shallop.pipelines.reuse import component_at
from shallop.pipelines.values import RunInfo, Values

__all__ = ["POD", "render_again"]

POD = Gvk("v1", "Pod")


def render_again(run: dict[str, Any], task: dict[str, Any], document: dict[str, Any], root: str) -> Object:
    """
    Render the Pod that a step had, but for its Kubernetes settings (Secrets, claims): those are not kept.

    Args:
        root: pipeline root of runs that name none.
    """
    pipeline = parse_pipeline(document)
    component = component_at(pipeline, task["path"])
    if not component:
        raise NotFoundError(f"task_id: the pipeline of run {run['id']} has no step {task['path']!r}.")
    created = format_micros(run["created_at"])
    info = RunInfo(
        run_id=run["id"],
        display_name=run["name"],
        resource_name=f"{pipeline.name}-{run['id'][:5]}",
        pipeline_root=run["pipeline_root"] or root,
        created_at=created,
        scheduled_at=format_micros(run["scheduled_at"]) if run["scheduled_at"] else created,
    )
    action = StartTask(
        path=task["path"],
        attempt=task["attempt"],
        retry_index=0,
        delay_s=0.0,
        uuid=task["id"],
        task_name=task["name"],
        component=component,
        executor_label=pipeline.components[component].executor_label,
        inputs=msgspec.convert(task["inputs"], type=Values),
        kubernetes={},
        enable_cache=False,
        cache_key="",
    )
    return render_pod(pipeline, info, action, namespace=pod_namespace(run), service_account=run["service_account"])
