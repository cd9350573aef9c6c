"""Resolution of task inputs: from constants, parameters and outputs to values, and to the executor input JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from shallop.errors import ShallopError
from shallop.pipelines.expressions import ExpressionError, compile_selector
from shallop.pipelines.ir import (
    Component,
    Importer,
    InputArtifact,
    InputParameter,
    ParameterDef,
    Pipeline,
    RuntimeValue,
    Task,
    TaskOutputParameter,
)
from shallop.pipelines.placeholders import WORKSPACE_PATH, Placeholders
from shallop.pipelines.values import Artifact, RunInfo, TaskError, Values, artifact_json, plain, text_of

__all__ = [
    "Artifact",
    "ImporterInputs",
    "InputError",
    "RunInfo",
    "Scope",
    "TaskError",
    "Values",
    "coerce",
    "collected_outputs",
    "dag_outputs",
    "executor_input",
    "final_status",
    "iteration_inputs",
    "loop_items",
    "parameters_with_defaults",
    "placeholder_names",
    "resolve_importer",
    "resolve_inputs",
    "resolve_kubernetes",
    "root_inputs",
    "task_needs",
]

_INJECTED = ("TASK_FINAL_STATUS", "TASK_CONFIG")  # the engine gives these; nobody passes them
_FINAL_WORDS = {"SUCCEEDED": "COMPLETE", "CACHED": "COMPLETE", "CANCELED": "CANCELLED", "OMITTED": "SKIPPED"}
_MISSING: Any = object()


class InputError(ShallopError):
    """An input of a task cannot be resolved; the task fails with this message."""


@dataclass(frozen=True, slots=True)
class Scope:
    """
    What the inputs of one task may refer to; all values are plain already.

    Args:
        inputs: of the enclosing DAG (of an iteration: its item included).
        results: sibling -> outputs; only siblings that ended well.
        final_status: sibling -> PipelineTaskFinalStatus as JSON.
    """

    run: RunInfo
    task_name: str
    task_uuid: str
    inputs: Values
    results: Mapping[str, Values]
    final_status: Callable[[str], dict[str, Any]]

    def placeholders(self, inputs: Values) -> Placeholders:
        names = placeholder_names(self.run, self.task_name, self.task_uuid)
        return Placeholders(inputs.parameters, inputs.artifacts, names)


class ImporterInputs(NamedTuple):
    uri: str
    metadata: dict[str, Any]


def placeholder_names(run: RunInfo, task_name: str, task_uuid: str) -> dict[str, str]:
    """Name what ``{{$.pipeline_job_name}}`` and its relatives stand for."""
    return {
        "pipeline_job_name": run.display_name,
        "pipeline_job_resource_name": run.resource_name,
        "pipeline_job_uuid": run.run_id,
        "pipeline_job_create_time_utc": run.created_at,
        "pipeline_job_schedule_time_utc": run.scheduled_at,
        "pipeline_task_name": task_name,
        "pipeline_task_uuid": task_uuid,
        "pipeline_root": run.pipeline_root,
        "workspace_path": WORKSPACE_PATH,
    }


# ---- inputs of tasks


def task_needs(pipeline: Pipeline, task: Task) -> tuple[str, ...]:
    """List the siblings a task waits for: those named, and those whose outputs it or its Pod settings use."""
    needs = dict.fromkeys(task.dependent_tasks)
    needs.update((source.producer, None) for source in task.inputs.parameters.values() if source.producer)
    needs.update((source.producer, None) for source in task.inputs.artifacts.values() if source.producer)
    label = pipeline.components[task.component_ref.name].executor_label
    needs.update(dict.fromkeys(_producers_in(pipeline.kubernetes.get(label))))
    return tuple(needs)


def _producers_in(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("producerTask"), str):
            yield config["producerTask"]
        for item in config.values():
            yield from _producers_in(item)
    elif isinstance(config, list):
        for item in config:
            yield from _producers_in(item)


def root_inputs(pipeline: Pipeline, parameters: Mapping[str, Any]) -> Values:
    """
    Fill the pipeline's parameters: given value, else default, else null for an optional one.

    Raises:
        InputError: a required parameter is missing; creation of the run refuses that already.
    """
    values = {}
    for name, definition in pipeline.root.input_definitions.parameters.items():
        value = parameters.get(name)
        if name not in parameters and definition.has_default:
            value = definition.default_value
        if value is None and not definition.is_optional:
            raise InputError(f"Pipeline parameter '{name}' is required and has no value.")
        values[name] = plain(value)
    return Values(values)


def resolve_inputs(scope: Scope, task: Task, component: Component) -> Values:
    """
    Resolve all inputs of a task.

    Omitted inputs of a DAG are its defaults, else null. Those of a container are left out: its own code has the
    defaults. Inputs that the component does not declare are kept, because placeholders use them.

    Raises:
        InputError: a required input has no value, or a value does not fit its type.
    """
    artifacts = _resolve_artifacts(scope, task, component)
    definitions = component.input_definitions.parameters
    parameters: dict[str, Any] = {}
    for name, source in _constants_last(task.inputs.parameters):
        value = _resolve_parameter(scope, name, source, Values(parameters, artifacts))
        definition = definitions.get(name)
        if value is not _MISSING and value is not None:
            kind = definition.kind if definition else ""
            try:
                parameters[name] = _fit(value, kind, f"Input '{name}' of task '{scope.task_name}'")
            except InputError:
                # The compiler declares all fields of a loop's item with the type of the first one.
                if component.dag is None or "-subvar-" not in name:
                    raise
                parameters[name] = value
        elif definition and not definition.is_optional and not definition.has_default:
            raise InputError(_missing_text(scope, name, source))
    item = _item_input(task)
    for name, definition in definitions.items():
        if name in parameters or name == item or definition.kind in _INJECTED:
            continue
        if component.dag is not None:
            parameters[name] = plain(definition.default_value) if definition.has_default else None
        elif not definition.is_optional and not definition.has_default:
            raise InputError(f"Input '{name}' of task '{scope.task_name}': required and not given.")
    return Values(parameters, artifacts)


def _constants_last(sources: Mapping[str, InputParameter]) -> Iterator[tuple[str, InputParameter]]:
    """Order inputs so that a constant's placeholders find the values they name."""
    yield from ((name, source) for name, source in sources.items() if source.runtime_value is None)
    yield from ((name, source) for name, source in sources.items() if source.runtime_value is not None)


def _resolve_parameter(scope: Scope, name: str, source: InputParameter, resolved: Values) -> Any:
    value: Any = _MISSING
    if source.runtime_value is not None:
        value = _runtime_value(source.runtime_value, scope, resolved)
    elif source.component_input_parameter is not None:
        value = scope.inputs.parameters.get(source.component_input_parameter, _MISSING)
    elif source.task_output_parameter is not None:
        value = _task_output(source.task_output_parameter, scope)
    elif source.task_final_status is not None:
        return scope.final_status(source.task_final_status.producer_task)
    if source.parameter_expression_selector and value is not _MISSING and value is not None:
        try:
            value = plain(compile_selector(source.parameter_expression_selector).select(value))
        except ExpressionError as error:
            raise InputError(f"Input '{name}' of task '{scope.task_name}': {error}") from error
    return value


def _runtime_value(source: RuntimeValue, scope: Scope, resolved: Values) -> Any:
    constant = source.value
    if constant is UNSET:
        return scope.inputs.parameters.get(source.runtime_parameter, _MISSING)
    # A constant may name an input of its own task or, as upstream allows, of the enclosing DAG.
    visible = Values(
        {**scope.inputs.parameters, **resolved.parameters}, {**scope.inputs.artifacts, **resolved.artifacts}
    )
    return plain(scope.placeholders(visible).value(constant))


def _task_output(source: TaskOutputParameter, scope: Scope) -> Any:
    outputs = scope.results.get(source.producer_task)
    return outputs.parameters.get(source.output_parameter_key, _MISSING) if outputs else _MISSING


def _missing_text(scope: Scope, name: str, source: InputParameter) -> str:
    where = f"Input '{name}' of task '{scope.task_name}'"
    if source.task_output_parameter:
        output = source.task_output_parameter
        return f"{where}: task '{output.producer_task}' gave no output '{output.output_parameter_key}'."
    if source.component_input_parameter:
        return f"{where}: parameter '{source.component_input_parameter}' is null, and the input is required."
    return f"{where}: required, and its value is null."


def _resolve_artifacts(scope: Scope, task: Task, component: Component) -> dict[str, list[Artifact]]:
    artifacts = {}
    for name, source in task.inputs.artifacts.items():
        found = _resolve_artifact(scope, source)
        definition = component.input_definitions.artifacts.get(name)
        if found or (found is not None and definition and definition.is_artifact_list):
            artifacts[name] = found
        elif definition and not definition.is_optional:
            origin = source.producer or source.component_input_artifact
            raise InputError(f"Input artifact '{name}' of task '{scope.task_name}': '{origin}' gave none.")
    return artifacts


def _resolve_artifact(scope: Scope, source: InputArtifact) -> list[Artifact] | None:
    if source.task_output_artifact is None:
        return scope.inputs.artifacts.get(source.component_input_artifact or "")
    outputs = scope.results.get(source.task_output_artifact.producer_task)
    return outputs.artifacts.get(source.task_output_artifact.output_artifact_key) if outputs else None


def coerce(value: Any, kind: str, where: str) -> Any:
    """
    Fit a value to a declared type.

    STRING takes everything, other values as JSON text. The others take their own type, or a text that is its JSON:
    the item of an untyped list is declared STRING and arrives as text.

    Args:
        kind: a ParameterType name; an unknown or empty one takes everything.
        where: opens the message, such as ``Input 'x' of task 'train'``.

    Raises:
        InputError: it does not fit.
    """
    return _fit(plain(value), kind, where)


def _fit(value: Any, kind: str, where: str) -> Any:
    """Do the same for a value that is plain already: a long list is not copied for every iteration of a loop."""
    if kind == "STRING":
        return text_of(value)
    if kind not in _FITS:
        return value
    candidate = value
    if isinstance(value, str):
        try:
            candidate = plain(json.loads(value))
        except ValueError:
            candidate = None
    if candidate is None or not _FITS[kind](candidate):
        raise InputError(f"{where}: expected {kind}, got {_show(value)}.")
    return candidate


_FITS: dict[str, Callable[[Any], bool]] = {
    "NUMBER_INTEGER": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "NUMBER_DOUBLE": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "BOOLEAN": lambda value: isinstance(value, bool),
    "LIST": lambda value: isinstance(value, list),
    "STRUCT": lambda value: isinstance(value, dict),
}


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---- loops


def _item_input(task: Task) -> str:
    iterator = task.parameter_iterator or task.artifact_iterator
    return iterator.item_input if iterator else ""


def loop_items(task: Task, inputs: Values) -> list[Any]:
    """
    List what a loop runs over: JSON values, or Artifacts.

    Raises:
        InputError: the items are not a list.
    """
    if task.artifact_iterator:
        return list(inputs.artifacts.get(task.artifact_iterator.items.input_artifact, []))
    if task.parameter_iterator is None:
        raise LookupError("the task is no loop")
    items = task.parameter_iterator.items
    name = f"Items of loop '{task.task_info.name}'"
    if items.raw is not None:
        raw = coerce(items.raw, "LIST", name)
        return list(Placeholders(inputs.parameters, inputs.artifacts).value(raw))
    value = inputs.parameters.get(items.input_parameter or "")
    if value is None:
        raise InputError(f"{name}: '{items.input_parameter}' has no value, a list is needed.")
    return list(_fit(value, "LIST", name))


def iteration_inputs(task: Task, component: Component, inputs: Values, item: Any) -> Values:
    """
    Add the item to the inputs of a loop.

    Raises:
        InputError: the item does not fit its declared type.
    """
    name = _item_input(task)
    if isinstance(item, Artifact):
        return Values(inputs.parameters, {**inputs.artifacts, name: [item]})
    definition = component.input_definitions.parameters.get(name, ParameterDef())
    value = None if item is None else coerce(item, definition.kind, f"Item of loop '{task.task_info.name}'")
    return Values({**inputs.parameters, name: value}, inputs.artifacts)


# ---- outputs


def dag_outputs(component: Component, results: Mapping[str, Values]) -> Values:
    """
    Collect the outputs of a DAG: per output the first selector whose producer ended well.

    Args:
        results: task -> outputs; only tasks that ended well. An output without a value is left out.
    """
    if component.dag is None:
        return Values()
    parameters: dict[str, Any] = {}
    for name, output in component.dag.outputs.parameters.items():
        for selector in output.selectors:
            produced = results.get(selector.producer_subtask, Values()).parameters
            if selector.output_parameter_key in produced:
                parameters[name] = produced[selector.output_parameter_key]
                break
    artifacts: dict[str, list[Artifact]] = {}
    for name, collected in component.dag.outputs.artifacts.items():
        for choice in collected.artifact_selectors:
            made = results.get(choice.producer_subtask, Values()).artifacts
            if choice.output_artifact_key in made:
                artifacts[name] = made[choice.output_artifact_key]
                break
    return Values(parameters, artifacts)


def collected_outputs(component: Component, iterations: Sequence[Values]) -> Values:
    """
    Collect the outputs of a loop, in the order of its items.

    Parameters of nested loops become nested lists, artifacts one flat list. An iteration whose producer was skipped
    is left out.
    """
    declared = component.output_definitions
    return Values(
        {
            name: [outputs.parameters[name] for outputs in iterations if name in outputs.parameters]
            for name in declared.parameters
        },
        {
            name: [artifact for outputs in iterations for artifact in outputs.artifacts.get(name, [])]
            for name in declared.artifacts
        },
    )


def final_status(run: RunInfo, producer: str, state: str, error: TaskError | None) -> dict[str, Any]:
    """
    Build the PipelineTaskFinalStatus of a task.

    Source: upstream says COMPLETE where the documentation says SUCCEEDED; ``kfp`` reads ``error`` without a check.
    """
    return {
        "state": _FINAL_WORDS.get(state, str(state)),
        "pipelineTaskName": producer,
        "pipelineJobResourceName": run.resource_name,
        "error": {"code": error.code, "message": error.message} if error else {},
    }


# ---- importers and Pod settings


def resolve_importer(scope: Scope, importer: Importer, component: Component, inputs: Values) -> ImporterInputs:
    """
    Resolve URI and metadata of an importer.

    Raises:
        InputError: no URI.
    """
    parameters = parameters_with_defaults(component, inputs)
    placeholders = scope.placeholders(Values(parameters, inputs.artifacts))
    uri = importer.artifact_uri.value
    if uri is UNSET:
        uri = parameters.get(importer.artifact_uri.runtime_parameter)
    uri = text_of(placeholders.value(uri))
    if not uri:
        raise InputError(f"Importer '{scope.task_name}': the artifact has no URI.")
    return ImporterInputs(uri, plain(placeholders.value(importer.metadata)))


def resolve_kubernetes(scope: Scope, config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Replace every reference to a parameter in a KubernetesExecutorConfig by its value.

    ``secretNameParameter: {componentInputParameter: x}`` becomes ``secretNameParameter: "name"``. An entry that is
    ``optional`` and whose name is null is left out, and so is a null ``...Json``.

    Raises:
        InputError: a name that is not optional has no value.
    """
    resolved = {key: _resolve_config(scope, value, key) for key, value in config.items()}
    return {key: value for key, value in resolved.items() if value is not _MISSING}


def _resolve_config(scope: Scope, value: Any, path: str) -> Any:
    if isinstance(value, list):
        items = [_resolve_config(scope, item, f"{path}[{index}]") for index, item in enumerate(value)]
        return [item for item in items if item is not _MISSING]
    if not isinstance(value, dict):
        return value
    resolved: dict[str, Any] = {}
    for key, item in _with_pvc_name(value).items():
        if key.endswith(("Parameter", "Json")) and isinstance(item, dict):
            found = _reference(scope, item, f"{path}.{key}")
            if found is not _MISSING and found is not None:
                if not isinstance(found, _JSON_TYPES.get(key, object)):
                    raise InputError(
                        f"Kubernetes settings of task '{scope.task_name}', {path}.{key}: {text_of(found)[:100]!r} is "
                        "no object; make the parameter a dict (of tolerations also a list)."
                    )
                resolved[key] = found
            elif value.get("optional"):
                return _MISSING
            elif key.endswith("Parameter"):
                raise InputError(f"Kubernetes settings of task '{scope.task_name}', {path}.{key}: has no value.")
            else:
                return _MISSING
        else:
            resolved[key] = _resolve_config(scope, item, f"{path}.{key}")
    return resolved


# What references whose name ends so may give.
_JSON_TYPES: dict[str, Any] = {"nodeSelectorJson": dict, "nodeAffinityJson": dict, "tolerationJson": (dict, list)}


def _with_pvc_name(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the older ways to name a claim into the newer one."""
    if "mountPath" not in entry:
        return dict(entry)
    kept = {key: value for key, value in entry.items() if key not in ("taskOutputParameter", "constant")}
    if "constant" in entry:
        kept.setdefault("pvcNameParameter", {"runtimeValue": {"constant": entry["constant"]}})
    if "taskOutputParameter" in entry:
        kept.setdefault("pvcNameParameter", {"taskOutputParameter": entry["taskOutputParameter"]})
    if "componentInputParameter" in entry:
        name = kept.pop("componentInputParameter")
        kept.setdefault("pvcNameParameter", {"componentInputParameter": name})
    return kept


def _reference(scope: Scope, raw: Mapping[str, Any], where: str) -> Any:
    try:
        source = msgspec.convert(raw, InputParameter)
    except msgspec.ValidationError as error:
        raise InputError(f"Kubernetes settings of task '{scope.task_name}', {where}: {error}") from error
    return plain(_resolve_parameter(scope, where, source, Values()))


# ---- executor input


def parameters_with_defaults(component: Component, inputs: Values) -> dict[str, Any]:
    """Fill in the defaults of a container task's omitted inputs, for placeholders; null where there is none."""
    defaults = {
        name: plain(definition.default_value) if definition.has_default else None
        for name, definition in component.input_definitions.parameters.items()
    }
    return {**defaults, **inputs.parameters}


def executor_input(component: Component, inputs: Values, folder: str) -> dict[str, Any]:
    """
    Build the ExecutorInput that ``{{$}}`` stands for.

    Args:
        folder: of this attempt of the task, URI or path; outputs go below it. ``dsl.get_uri()`` uses it too.
    """
    declared = component.output_definitions
    artifacts = {
        name: [
            {
                **artifact_json(Artifact(name, f"{folder}/{name}", definition.artifact_type)),
                "metadata": plain(definition.metadata),
            }
        ]
        for name, definition in declared.artifacts.items()
    }
    given: dict[str, Any] = {
        "parameterValues": {
            name: value
            for name, value in inputs.parameters.items()
            if name in component.input_definitions.parameters and value is not None
        },
        "artifacts": {
            name: {"artifacts": [artifact_json(artifact) for artifact in found]}
            for name, found in inputs.artifacts.items()
        },
    }
    wanted: dict[str, Any] = {
        "parameters": {name: {"outputFile": f"{folder}/parameters/{name}"} for name in declared.parameters},
        "artifacts": {name: {"artifacts": found} for name, found in artifacts.items()},
        "outputFile": f"{folder}/output_metadata.json",
    }
    return {
        "inputs": {key: value for key, value in given.items() if value},
        "outputs": {key: value for key, value in wanted.items() if value},
    }
