"""Volumes that runs ask for: the tasks ``CreatePVC`` and ``DeletePVC``, and the workspace of a run."""

from __future__ import annotations

from shallop.errors import AlreadyExistsError, ApiError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, key_of, labels_of
from shallop.pipelines.ir import Pipeline
from shallop.pipelines.plan import StartTask, TaskFailed, TaskSucceeded
from shallop.pipelines.render import (
    CREATE_PVC,
    RUN_LABEL,
    WORKSPACE_SUFFIX,
    claim_name,
    render_claim,
    render_workspace_claim,
    workspace_claim_name,
)
from shallop.pipelines.values import RunInfo, TaskError, Values

__all__ = ["create_workspace", "delete_workspace", "run_claim_task", "tidy_workspaces"]

_CLAIM = Gvk("v1", "PersistentVolumeClaim")


async def run_claim_task(
    client: Client, namespace: str, run: RunInfo, action: StartTask, image: str
) -> TaskSucceeded | TaskFailed:
    """Create or delete a claim, as the built-in ``image`` says; doing it twice is doing it once."""
    name = claim_name(run, action)
    try:
        if image == CREATE_PVC:
            await _create(client, namespace, run, action, name)
            return TaskSucceeded(action.path, action.attempt, Values(parameters={"name": name}))
        await _delete(client, namespace, name)
        return TaskSucceeded(action.path, action.attempt, Values())
    except ApiError as error:
        message = f"PersistentVolumeClaim {namespace}/{name}: {error}"
        return TaskFailed(action.path, action.attempt, TaskError(message), retryable=error.code >= 500)


async def _create(client: Client, namespace: str, run: RunInfo, action: StartTask, name: str) -> None:
    try:
        await client.create(render_claim(run, action, namespace=namespace))
    except AlreadyExistsError:
        # Ours, from before a restart; somebody else's claim must not be written into.
        if labels_of(await client.get(_CLAIM, name, namespace)).get(RUN_LABEL) != run.run_id:
            raise


async def _delete(client: Client, namespace: str, name: str) -> None:
    try:
        await client.delete(_CLAIM, name, namespace)
    except NotFoundError:
        pass


async def create_workspace(client: Client, namespace: str, pipeline: Pipeline, run: RunInfo) -> None:
    """Make the run's workspace, if its pipeline has one; nothing happens when it is there."""
    claim = render_workspace_claim(pipeline, run, namespace=namespace)
    if claim is None:
        return
    try:
        await client.create(claim)
    except AlreadyExistsError:
        pass


async def delete_workspace(client: Client, namespace: str, pipeline: Pipeline, run: RunInfo) -> None:
    """Remove the workspace of a run that is over."""
    if pipeline.config.workspace is not None:
        await _delete(client, namespace, workspace_claim_name(run))


async def tidy_workspaces(client: Client, active: set[str]) -> None:
    """Remove workspaces whose runs are over or deleted; a kill can come before ``delete_workspace``."""
    for claim in (await client.list(_CLAIM)).items:
        run_id, (namespace, name) = labels_of(claim).get(RUN_LABEL, ""), key_of(claim)
        if run_id and run_id not in active and name.endswith(WORKSPACE_SUFFIX):
            await _delete(client, namespace, name)
