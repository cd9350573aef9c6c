"""
What is checked before anything runs: of a pipeline at upload, of parameters when a run is created.

Both give a list of FieldErrors with paths into the document that the user sent, all at once and not only the first;
``refuse`` turns them into the one error that a client gets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from shallop.errors import BadRequestError, FieldError
from shallop.pipelines.executorconfig import ExecutorConfig
from shallop.pipelines.expressions import ExpressionError, compile_condition, compile_selector
from shallop.pipelines.inputs import task_needs
from shallop.pipelines.ir import (
    Component,
    Container,
    Dag,
    Executor,
    InputArtifact,
    InputParameter,
    ParameterDef,
    Pipeline,
    Task,
    convert,
    parse_duration_s,
)
from shallop.pipelines.render import CREATE_PVC, DELETE_PVC
from shallop.pipelines.values import plain

__all__ = ["CanResolve", "check_parameters", "check_pipeline", "refuse", "warnings_of"]

CanResolve = Callable[[str, Sequence[str]], str | None]  # (image, argv) -> why it cannot run here, None when it can

STRATEGIES = ("", "TRIGGER_STRATEGY_UNSPECIFIED", "ALL_UPSTREAM_TASKS_SUCCEEDED", "ALL_UPSTREAM_TASKS_COMPLETED")
PARAMETER_TYPES = {
    "STRING": "a text",
    "NUMBER_INTEGER": "an integer",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": "a list",
    "STRUCT": "an object",
}
INJECTED_TYPES = ("TASK_FINAL_STATUS", "TASK_CONFIG")
_PIPELINE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,126}[a-z0-9])?")
# What the SDK calls values that constants, conditions and settings of a task name beside what its component declares.
_CHANNEL = "pipelinechannel--"
# What the SDK calls settings of a task that are values of the run: set_cpu_limit(parameter), set_container_image(...).
_SETTINGS = {
    "base_image",
    "accelerator_count",
    "accelerator_type",
    "cpu_limit",
    "cpu_request",
    "memory_limit",
    "memory_request",
}
# Names become folders and parts of paths such as root/loop[2]/train.
_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\[\]\x00-\x1f]{1,250}")

# KubernetesExecutorConfig fields that this engine gives a meaning; for the others a warning says that they have none.
KNOWN_KUBERNETES = {
    "secretAsVolume",
    "secretAsEnv",
    "pvcMount",
    "nodeSelector",
    "podMetadata",
    "imagePullSecret",
    "imagePullPolicy",
    "configMapAsVolume",
    "configMapAsEnv",
    "activeDeadlineSeconds",
    "fieldPathAsEnv",
    "tolerations",
    "genericEphemeralVolume",
    "nodeAffinity",
    "podAffinity",
    "enabledSharedMemory",
    "emptyDirMounts",
    "securityContext",
    "initContainers",
}


def refuse(errors: Sequence[FieldError], what: str) -> None:
    """
    Raise one error for all that is wrong; return when nothing is.

    Args:
        what: opens the message, such as ``Pipeline 'train'``.

    Raises:
        BadRequestError: with one line per field, at most 20.
    """
    if not errors:
        return
    lines = [f"{error.field}: {error.message}" for error in errors[:20]]
    if len(errors) > 20:
        lines.append(f"and {len(errors) - 20} more")
    raise BadRequestError(f"{what}: {'; '.join(lines)}")


def check_pipeline(pipeline: Pipeline, can_resolve: CanResolve) -> list[FieldError]:
    """
    Check what parsing could not: names, references, expressions, cycles, unsupported constructs, images.

    Args:
        can_resolve: says whether an image can run here; asked once for each image whose name holds no placeholder.
    """
    errors = list(_check_name(pipeline))
    errors.extend(_check_component(pipeline, pipeline.root, "root"))
    for name, component in pipeline.components.items():
        errors.extend(_check_component(pipeline, component, f"components.{name}"))
    if not errors:
        errors.extend(_check_recursion(pipeline))
    used = [component.executor_label for component in pipeline.components.values() if component.executor_label]
    for label in dict.fromkeys(used):
        if label in pipeline.executors:
            path = f"deploymentSpec.executors.{label}"
            errors.extend(_check_executor(pipeline.executors[label], path, can_resolve))
    for label, config in pipeline.kubernetes.items():
        errors.extend(_check_shape(config, f"platforms.kubernetes.deploymentSpec.executors.{label}"))
    return errors


def _check_shape(config: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    try:
        convert(config, ExecutorConfig, path)
    except BadRequestError as error:
        field, _, message = error.message.partition(": ")
        yield FieldError("FieldValueInvalid", message, field)


def warnings_of(pipeline: Pipeline) -> list[str]:
    """List settings that are recorded and have no effect here."""
    warnings: list[str] = []
    for name in pipeline.raw_platform.get("platforms") or {}:
        if name != "kubernetes":
            warnings.append(f"platforms.{name}: only the settings of platform 'kubernetes' are used, ignored.")
    for label, config in pipeline.kubernetes.items():
        path = f"platforms.kubernetes.deploymentSpec.executors.{label}"
        warnings.extend(f"{path}.{key}: not known, ignored." for key in config if key not in KNOWN_KUBERNETES)
    return warnings


def _check_name(pipeline: Pipeline) -> Iterator[FieldError]:
    if not _PIPELINE_NAME.fullmatch(pipeline.name):
        detail = "use at most 128 lower-case letters, digits and '-', beginning and ending with a letter or digit"
        yield FieldError.invalid("pipelineInfo.name", pipeline.name, detail)


def _check_component(pipeline: Pipeline, component: Component, path: str) -> Iterator[FieldError]:
    if component.dag is None and not component.executor_label:
        yield FieldError.required(path, "a 'dag' or an 'executorLabel'")
    if component.dag is not None and component.executor_label:
        yield FieldError.forbidden(f"{path}.executorLabel", "may not be set together with 'dag'")
    if path == "root" and component.dag is None:
        yield FieldError.required("root.dag", "a pipeline is a DAG; compile a pipeline, or let kfp wrap the component")
    if component.executor_label and component.executor_label not in pipeline.executors:
        detail = "no such executor in deploymentSpec.executors"
        yield FieldError.invalid(f"{path}.executorLabel", component.executor_label, detail)
    if component.single_platform_specs:
        yield FieldError.forbidden(
            f"{path}.singlePlatformSpecs", "not supported; use the second document (PlatformSpec)"
        )
    yield from _check_definitions(component, path)
    if component.dag is not None:
        yield from _check_dag(pipeline, component, component.dag, f"{path}.dag")


def _check_definitions(component: Component, path: str) -> Iterator[FieldError]:
    known = (*PARAMETER_TYPES, *INJECTED_TYPES)
    for side, definitions in (
        ("inputDefinitions", component.input_definitions),
        ("outputDefinitions", component.output_definitions),
    ):
        for name, definition in definitions.parameters.items():
            where = f"{path}.{side}.parameters.{name}"
            if definition.kind not in known:
                yield FieldError.not_supported(f"{where}.parameterType", definition.kind, known)
            if side == "outputDefinitions":
                yield from _check_output_name(name, where)
        for name in definitions.artifacts:
            yield from _check_output_name(name, f"{path}.{side}.artifacts.{name}")


def _check_output_name(name: str, path: str) -> Iterator[FieldError]:
    if not _NAME.fullmatch(name):
        yield FieldError.invalid(
            path, name, "a name becomes a file name: no '/', '\\', '[', ']' and no control characters"
        )


def _check_dag(pipeline: Pipeline, component: Component, dag: Dag, path: str) -> Iterator[FieldError]:
    sound = True
    for name, task in dag.tasks.items():
        for error in _check_task(pipeline, component, dag, task, f"{path}.tasks.{name}"):
            sound = False
            yield error
        yield from _check_output_name(name, f"{path}.tasks.{name}")
    yield from _check_dag_outputs(pipeline, dag, f"{path}.outputs")
    if sound:
        yield from _check_cycles(pipeline, dag, path)


def _check_task(pipeline: Pipeline, parent: Component, dag: Dag, task: Task, path: str) -> Iterator[FieldError]:
    component = pipeline.components.get(task.component_ref.name)
    if component is None:
        yield FieldError.invalid(
            f"{path}.componentRef.name", task.component_ref.name, "no such component in 'components'"
        )
        return
    for index, name in enumerate(task.dependent_tasks):
        if name not in dag.tasks:
            yield FieldError.invalid(f"{path}.dependentTasks[{index}]", name, _no_such_task(dag))
    for name, source in task.inputs.parameters.items():
        yield from _check_parameter_source(pipeline, parent, dag, source, f"{path}.inputs.parameters.{name}")
    for name, artifact in task.inputs.artifacts.items():
        yield from _check_artifact_source(pipeline, parent, dag, artifact, f"{path}.inputs.artifacts.{name}")
    yield from _check_required_inputs(task, component, path)
    yield from _check_declared_inputs(task, component, path)
    yield from _check_policies(task, path)
    yield from _check_iterator(task, component, path)
    for name in task_needs(pipeline, task):
        if name not in dag.tasks and name not in task.dependent_tasks and not _is_source(task, name):
            label = component.executor_label
            yield FieldError.invalid(
                f"platforms.kubernetes.deploymentSpec.executors.{label}", name, f"producerTask: {_no_such_task(dag)}"
            )


def _is_source(task: Task, name: str) -> bool:
    parameters, artifacts = task.inputs.parameters.values(), task.inputs.artifacts.values()
    return any(source.producer == name for source in parameters) or any(one.producer == name for one in artifacts)


def _no_such_task(dag: Dag) -> str:
    names = ", ".join(list(dag.tasks)[:10])
    return f"no such task in the same DAG; there are: {names}"


def _check_parameter_source(
    pipeline: Pipeline, parent: Component, dag: Dag, source: InputParameter, path: str
) -> Iterator[FieldError]:
    kinds = (
        source.runtime_value,
        source.component_input_parameter,
        source.task_output_parameter,
        source.task_final_status,
    )
    if sum(kind is not None for kind in kinds) != 1:
        kinds_text = "runtimeValue, componentInputParameter, taskOutputParameter or taskFinalStatus"
        yield FieldError.required(path, f"exactly one of {kinds_text}")
    name = source.component_input_parameter or (source.runtime_value.runtime_parameter if source.runtime_value else "")
    if name and name not in parent.input_definitions.parameters:
        yield FieldError.invalid(f"{path}.componentInputParameter", name, "no such input of the enclosing component")
    if source.task_output_parameter:
        output = source.task_output_parameter
        where = f"{path}.taskOutputParameter"
        yield from _check_output(pipeline, dag, output.producer_task, output.output_parameter_key, "parameters", where)
    if source.task_final_status and source.task_final_status.producer_task not in dag.tasks:
        producer = source.task_final_status.producer_task
        yield FieldError.invalid(f"{path}.taskFinalStatus.producerTask", producer, _no_such_task(dag))
    if source.parameter_expression_selector:
        try:
            compile_selector(source.parameter_expression_selector)
        except ExpressionError as error:
            yield FieldError.forbidden(f"{path}.parameterExpressionSelector", str(error))


def _check_artifact_source(
    pipeline: Pipeline, parent: Component, dag: Dag, source: InputArtifact, path: str
) -> Iterator[FieldError]:
    if (source.component_input_artifact is None) == (source.task_output_artifact is None):
        yield FieldError.required(path, "exactly one of componentInputArtifact or taskOutputArtifact")
    name = source.component_input_artifact
    if name and name not in parent.input_definitions.artifacts:
        yield FieldError.invalid(f"{path}.componentInputArtifact", name, "no such input of the enclosing component")
    if source.task_output_artifact:
        output = source.task_output_artifact
        where = f"{path}.taskOutputArtifact"
        yield from _check_output(pipeline, dag, output.producer_task, output.output_artifact_key, "artifacts", where)


def _check_output(pipeline: Pipeline, dag: Dag, producer: str, key: str, side: str, path: str) -> Iterator[FieldError]:
    """Check that a task exists and declares an output; ``side`` is ``parameters`` or ``artifacts``."""
    task = dag.tasks.get(producer)
    if task is None:
        yield FieldError.invalid(f"{path}.producerTask", producer, _no_such_task(dag))
        return
    component = pipeline.components.get(task.component_ref.name)
    if component is None:
        return
    declared = getattr(component.output_definitions, side)
    if key not in declared:
        names = ", ".join(declared) or "none"
        yield FieldError.invalid(
            path, key, f"task '{producer}' has no such output among its {side}; there are: {names}"
        )


def _check_required_inputs(task: Task, component: Component, path: str) -> Iterator[FieldError]:
    iterator = task.parameter_iterator or task.artifact_iterator
    item = iterator.item_input if iterator else ""
    for name, definition in component.input_definitions.parameters.items():
        given = name in task.inputs.parameters or name == item or definition.kind in INJECTED_TYPES
        if not given and not definition.is_optional and not definition.has_default:
            yield FieldError.required(f"{path}.inputs.parameters.{name}", "the component declares it without a default")
    for name, artifact in component.input_definitions.artifacts.items():
        if name not in task.inputs.artifacts and name != item and not artifact.is_optional:
            yield FieldError.required(f"{path}.inputs.artifacts.{name}", "the component declares it as not optional")


def _check_declared_inputs(task: Task, component: Component, path: str) -> Iterator[FieldError]:
    """Refuse inputs that nothing reads, such as one whose name is misspelt; upstream drops them without a word."""
    values = [source.runtime_value.value for source in task.inputs.parameters.values() if source.runtime_value]
    readers = json.dumps([values, task.trigger_policy.condition], default=str)
    for side in ("parameters", "artifacts"):
        declared = getattr(component.input_definitions, side)
        for name in getattr(task.inputs, side):
            if name in declared or name.startswith(_CHANNEL) or name in _SETTINGS or f"['{name}']" in readers:
                continue
            names = ", ".join(declared) or "none"
            detail = (
                f"component '{task.component_ref.name}' declares no such input among its {side}; there are: {names}"
            )
            yield FieldError.invalid(f"{path}.inputs.{side}.{name}", name, detail)


def _check_policies(task: Task, path: str) -> Iterator[FieldError]:
    if task.trigger_policy.strategy not in STRATEGIES:
        yield FieldError.not_supported(f"{path}.triggerPolicy.strategy", task.trigger_policy.strategy, STRATEGIES[1:])
    if task.trigger_policy.condition:
        try:
            compile_condition(task.trigger_policy.condition)
        except ExpressionError as error:
            yield FieldError.forbidden(f"{path}.triggerPolicy.condition", str(error))
    policy = task.retry_policy
    for name, text in (
        ("backoffDuration", policy.backoff_duration),
        ("backoffMaxDuration", policy.backoff_max_duration),
    ):
        try:
            parse_duration_s(text)
        except BadRequestError as error:
            yield FieldError.invalid(f"{path}.retryPolicy.{name}", text, error.message)
    if policy.max_retry_count < 0:
        yield FieldError.invalid(f"{path}.retryPolicy.maxRetryCount", policy.max_retry_count, "must not be negative")
    if task.iterator_policy.parallelism_limit < 0:
        limit = task.iterator_policy.parallelism_limit
        yield FieldError.invalid(f"{path}.iteratorPolicy.parallelismLimit", limit, "must not be negative; 0 = no limit")


def _check_iterator(task: Task, component: Component, path: str) -> Iterator[FieldError]:
    if task.parameter_iterator and task.artifact_iterator:
        yield FieldError.forbidden(f"{path}.artifactIterator", "may not be set together with 'parameterIterator'")
    if task.artifact_iterator:
        name = task.artifact_iterator.items.input_artifact
        if name not in task.inputs.artifacts and name not in component.input_definitions.artifacts:
            yield FieldError.invalid(f"{path}.artifactIterator.items.inputArtifact", name, "no such input of the loop")
    if task.parameter_iterator:
        items = task.parameter_iterator.items
        where = f"{path}.parameterIterator.items"
        if (items.raw is None) == (items.input_parameter is None):
            yield FieldError.required(where, "exactly one of 'raw' or 'inputParameter'")
        elif items.raw is not None:
            yield from _check_raw_items(items.raw, where)
        elif items.input_parameter not in {**task.inputs.parameters, **component.input_definitions.parameters}:
            yield FieldError.invalid(f"{where}.inputParameter", items.input_parameter, "no such input of the loop")


def _check_raw_items(raw: str, path: str) -> Iterator[FieldError]:
    try:
        is_list = isinstance(json.loads(raw), list)
    except ValueError:
        is_list = False
    if not is_list:
        yield FieldError.invalid(f"{path}.raw", raw[:80], "must be a JSON list")


def _check_dag_outputs(pipeline: Pipeline, dag: Dag, path: str) -> Iterator[FieldError]:
    for name, output in dag.outputs.parameters.items():
        where = f"{path}.parameters.{name}"
        if not output.selectors:
            yield FieldError.required(where, "valueFromParameter or valueFromOneof")
        for selector in output.selectors:
            key = selector.output_parameter_key
            yield from _check_output(pipeline, dag, selector.producer_subtask, key, "parameters", where)
    for name, artifact in dag.outputs.artifacts.items():
        for choice in artifact.artifact_selectors:
            key, where = choice.output_artifact_key, f"{path}.artifacts.{name}"
            yield from _check_output(pipeline, dag, choice.producer_subtask, key, "artifacts", where)


def _check_cycles(pipeline: Pipeline, dag: Dag, path: str) -> Iterator[FieldError]:
    needs = {name: task_needs(pipeline, task) for name, task in dag.tasks.items()}
    if cycle := _find_cycle(needs):
        yield FieldError.forbidden(f"{path}.tasks", f"tasks wait for each other: {' -> '.join(cycle)}")


def _check_recursion(pipeline: Pipeline) -> Iterator[FieldError]:
    uses = {
        name: tuple(task.component_ref.name for task in component.dag.tasks.values()) if component.dag else ()
        for name, component in pipeline.components.items()
    }
    if cycle := _find_cycle(uses):
        yield FieldError.forbidden("components", f"components contain each other without end: {' -> '.join(cycle)}")


def _find_cycle(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the nodes of one cycle, the first again at the end; empty when there is none."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def _check_executor(executor: Executor, path: str, can_resolve: CanResolve) -> Iterator[FieldError]:
    if executor.resolver is not None:
        yield FieldError.forbidden(f"{path}.resolver", "resolvers are not supported; use dsl.importer with a URI")
    elif executor.custom_job is not None:
        yield FieldError.forbidden(
            f"{path}.customJob", "Google custom jobs are not supported; use a container component"
        )
    elif executor.container is not None:
        yield from _check_container(executor.container, f"{path}.container", can_resolve)
    elif executor.importer is None:
        yield FieldError.required(path, "'container' or 'importer'")


def _check_container(container: Container, path: str, can_resolve: CanResolve) -> Iterator[FieldError]:
    if container.lifecycle:
        yield FieldError.forbidden(f"{path}.lifecycle", "lifecycle hooks are not supported; remove them")
    if not container.image:
        yield FieldError.required(f"{path}.image")
    elif container.image not in (CREATE_PVC, DELETE_PVC) and "{{$" not in container.image:
        reason = can_resolve(container.image, [*container.command, *container.args])
        if reason:
            yield FieldError.invalid(f"{path}.image", container.image, reason)


# ---- parameters of a run


def check_parameters(pipeline: Pipeline, parameters: Mapping[str, Any]) -> list[FieldError]:
    """
    Check the parameters of a new run against the pipeline's declaration; nothing is converted.

    An optional parameter may be null. Numbers with an integral value are integers, as in JSON.
    """
    definitions = pipeline.root.input_definitions.parameters
    errors = []
    for name in parameters:
        if name not in definitions:
            known = ", ".join(definitions) or "none"
            message = f"pipeline '{pipeline.name}' has no such parameter; it has: {known}"
            errors.append(FieldError.invalid(f"runtime_config.parameters.{name}", parameters[name], message))
    for name, definition in definitions.items():
        errors.extend(_check_parameter(name, definition, parameters))
    for name, artifact in pipeline.root.input_definitions.artifacts.items():
        if not artifact.is_optional:
            detail = "the pipeline needs an artifact as input, and a run can only be given parameters: use dsl.importer"
            errors.append(FieldError.required(f"root.inputDefinitions.artifacts.{name}", detail))
    return errors


def _check_parameter(name: str, definition: ParameterDef, parameters: Mapping[str, Any]) -> Iterator[FieldError]:
    path = f"runtime_config.parameters.{name}"
    if name not in parameters:
        if not definition.is_optional and not definition.has_default:
            yield FieldError.required(
                path, f"{PARAMETER_TYPES.get(definition.kind, definition.kind)}, without a default"
            )
        return
    value = plain(parameters[name])
    if value is None:
        if not definition.is_optional:
            yield FieldError.invalid(
                path, None, f"null is only allowed for optional parameters; give {definition.kind}"
            )
        return
    if not _has_type(value, definition.kind):
        expected = PARAMETER_TYPES.get(definition.kind, "nothing: the engine sets it")
        shown = json.dumps(value, ensure_ascii=False)[:80]
        yield FieldError("FieldValueTypeInvalid", f"Invalid value: {shown}: {definition.kind} takes {expected}", path)
    elif definition.literals and value not in plain(definition.literals):
        choices = [str(choice) for choice in plain(definition.literals)]
        yield FieldError.not_supported(path, value, choices)


def _has_type(value: Any, kind: str) -> bool:
    types: dict[str, type | tuple[type, ...]] = {
        "STRING": str,
        "NUMBER_INTEGER": int,
        "NUMBER_DOUBLE": (int, float),
        "BOOLEAN": bool,
        "LIST": list,
        "STRUCT": dict,
    }
    if kind not in types or (isinstance(value, bool) and kind != "BOOLEAN"):
        return False
    return isinstance(value, types[kind])
