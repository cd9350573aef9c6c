"""
The intermediate representation of a pipeline (PipelineSpec 2.1.0 and its PlatformSpec) as frozen values.

A package is parsed once, at the border. Everything behind it reads these Structs; ``Pipeline.raw`` keeps the document
exactly as the client sent it.

Source: ``pipeline_spec.proto`` of Kubeflow Pipelines 2.17; field names are its JSON names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct

from shallop.errors import BadRequestError
from shallop.pipelines.package import MAX_PACKAGE_BYTES, load_package, parse_documents

__all__ = [
    "MAX_PACKAGE_BYTES",
    "ArtifactDef",
    "ArtifactType",
    "CachingOptions",
    "Component",
    "Container",
    "Dag",
    "Definitions",
    "Executor",
    "Importer",
    "InputArtifact",
    "InputParameter",
    "OutputArtifact",
    "OutputParameter",
    "ParameterDef",
    "Pipeline",
    "ResourceSpec",
    "RetryPolicy",
    "Task",
    "TriggerPolicy",
    "convert",
    "load_package",
    "parse_documents",
    "parse_duration_s",
    "parse_pipeline",
]

T = TypeVar("T")

SCHEMA_VERSION = "2.1.0"
ALL_COMPLETED = "ALL_UPSTREAM_TASKS_COMPLETED"


class _Ir(Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Base of what is read from the document: camelCase on the wire, unknown fields refused."""


class ArtifactType(_Ir, frozen=True):
    schema_title: str = ""
    schema_version: str = ""
    instance_schema: str = ""
    schema_uri: str = ""


class ParameterDef(_Ir, frozen=True):
    """Declaration of an input or output parameter; ``default_value`` is UNSET where none is declared."""

    parameter_type: str = ""
    default_value: Any = UNSET
    is_optional: bool = False
    literals: tuple[Any, ...] = ()
    description: str = ""
    type: str = ""  # the deprecated PrimitiveType

    @property
    def kind(self) -> str:
        """The ParameterType name; STRING where nothing is said."""
        return self.parameter_type or {"INT": "NUMBER_INTEGER", "DOUBLE": "NUMBER_DOUBLE"}.get(self.type, "STRING")

    @property
    def has_default(self) -> bool:
        return self.default_value is not UNSET and self.default_value is not None


class ArtifactDef(_Ir, frozen=True):
    artifact_type: ArtifactType = ArtifactType()
    is_artifact_list: bool = False
    is_optional: bool = False
    metadata: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    custom_properties: dict[str, Any] = {}
    description: str = ""


class Definitions(_Ir, frozen=True):
    parameters: dict[str, ParameterDef] = {}
    artifacts: dict[str, ArtifactDef] = {}


class RuntimeValue(_Ir, frozen=True):
    """A constant, or the name of a parameter of the enclosing component."""

    constant: Any = UNSET
    runtime_parameter: str = ""
    constant_value: dict[str, Any] | None = None  # deprecated: one of intValue, doubleValue, stringValue

    @property
    def value(self) -> Any:
        """The constant; UNSET when the value is a ``runtime_parameter``."""
        if self.constant_value is not None:
            return next(iter(self.constant_value.values()), None)
        if self.constant is UNSET and not self.runtime_parameter:
            return None  # proto3 JSON writes a null constant as an absent one
        return self.constant


class TaskOutputParameter(_Ir, frozen=True):
    producer_task: str
    output_parameter_key: str


class TaskOutputArtifact(_Ir, frozen=True):
    producer_task: str
    output_artifact_key: str


class TaskFinalStatus(_Ir, frozen=True):
    producer_task: str


class InputParameter(_Ir, frozen=True):
    """Where a task's input parameter comes from: exactly one of the first four is set."""

    runtime_value: RuntimeValue | None = None
    component_input_parameter: str | None = None
    task_output_parameter: TaskOutputParameter | None = None
    task_final_status: TaskFinalStatus | None = None
    parameter_expression_selector: str = ""

    @property
    def producer(self) -> str | None:
        """The sibling task this value waits for."""
        source = self.task_output_parameter or self.task_final_status
        return source.producer_task if source else None


class InputArtifact(_Ir, frozen=True):
    """Where a task's input artifact comes from: exactly one is set."""

    component_input_artifact: str | None = None
    task_output_artifact: TaskOutputArtifact | None = None

    @property
    def producer(self) -> str | None:
        return self.task_output_artifact.producer_task if self.task_output_artifact else None


class TaskInputsSpec(_Ir, frozen=True):
    parameters: dict[str, InputParameter] = {}
    artifacts: dict[str, InputArtifact] = {}


class CachingOptions(_Ir, frozen=True):
    enable_cache: bool = False
    cache_key: str = ""


class TriggerPolicy(_Ir, frozen=True):
    condition: str = ""
    strategy: str = ""


class ParameterItems(_Ir, frozen=True):
    raw: str | None = None
    input_parameter: str | None = None


class ParameterIterator(_Ir, frozen=True):
    items: ParameterItems
    item_input: str


class ArtifactItems(_Ir, frozen=True):
    input_artifact: str


class ArtifactIterator(_Ir, frozen=True):
    items: ArtifactItems
    item_input: str


class IteratorPolicy(_Ir, frozen=True):
    parallelism_limit: int = 0


class RetryPolicy(_Ir, frozen=True):
    """How a failed container task is tried again; durations are seconds as text, such as ``30s``."""

    max_retry_count: int = 0
    backoff_duration: str = "0s"
    backoff_factor: float = 2.0
    backoff_max_duration: str = "3600s"

    def delay_s(self, retry: int) -> float:
        """
        Compute the pause before a retry.

        Args:
            retry: 1 for the first retry.
        """
        longest = parse_duration_s(self.backoff_max_duration) or 3600.0
        factor = self.backoff_factor or 2.0
        exponent = min(retry - 1, 64)  # beyond it every sensible back-off is at its maximum
        return float(min(parse_duration_s(self.backoff_duration) * factor**exponent, longest))


class TaskInfo(_Ir, frozen=True):
    name: str = ""


class ComponentRef(_Ir, frozen=True):
    name: str


class Task(_Ir, frozen=True):
    component_ref: ComponentRef
    task_info: TaskInfo = TaskInfo()
    inputs: TaskInputsSpec = TaskInputsSpec()
    dependent_tasks: tuple[str, ...] = ()
    caching_options: CachingOptions = CachingOptions()
    trigger_policy: TriggerPolicy = TriggerPolicy()
    parameter_iterator: ParameterIterator | None = None
    artifact_iterator: ArtifactIterator | None = None
    iterator_policy: IteratorPolicy = IteratorPolicy()
    retry_policy: RetryPolicy = RetryPolicy()

    @property
    def is_loop(self) -> bool:
        return self.parameter_iterator is not None or self.artifact_iterator is not None

    @property
    def runs_after_any_end(self) -> bool:
        """Whether the task runs when its upstreams ended, in any state: exit tasks and ``ignore_upstream_failure``."""
        return self.trigger_policy.strategy == ALL_COMPLETED

    @property
    def is_exit_task(self) -> bool:
        """Whether this is the exit task of a ``dsl.ExitHandler``: the compiler names its body ``exit-handler-N``."""
        return self.runs_after_any_end and any(name.startswith("exit-handler-") for name in self.dependent_tasks)


class OutputParameter(_Ir, frozen=True):
    producer_subtask: str
    output_parameter_key: str


class OutputParameters(_Ir, frozen=True):
    parameter_selectors: tuple[OutputParameter, ...] = ()


class DagOutputParameter(_Ir, frozen=True):
    value_from_parameter: OutputParameter | None = None
    value_from_oneof: OutputParameters | None = None

    @property
    def selectors(self) -> tuple[OutputParameter, ...]:
        if self.value_from_parameter:
            return (self.value_from_parameter,)
        return self.value_from_oneof.parameter_selectors if self.value_from_oneof else ()


class OutputArtifact(_Ir, frozen=True):
    producer_subtask: str
    output_artifact_key: str


class DagOutputArtifact(_Ir, frozen=True):
    artifact_selectors: tuple[OutputArtifact, ...] = ()


class DagOutputs(_Ir, frozen=True):
    parameters: dict[str, DagOutputParameter] = {}
    artifacts: dict[str, DagOutputArtifact] = {}


class Dag(_Ir, frozen=True):
    tasks: dict[str, Task] = {}
    outputs: DagOutputs = DagOutputs()


class TaskConfigPassthrough(_Ir, frozen=True):
    field: str
    apply_to_task: bool = False


class Component(_Ir, frozen=True):
    """A DAG of tasks, or one executor."""

    input_definitions: Definitions = Definitions()
    output_definitions: Definitions = Definitions()
    dag: Dag | None = None
    executor_label: str = ""
    single_platform_specs: tuple[dict[str, Any], ...] = ()
    task_config_passthroughs: tuple[TaskConfigPassthrough, ...] = ()


class EnvVar(_Ir, frozen=True):
    name: str
    value: str = ""


class Accelerator(_Ir, frozen=True):
    type: str = ""
    count: int = 0
    resource_type: str = ""
    resource_count: str = ""


class ResourceSpec(_Ir, frozen=True):
    """Requests and limits; the texts may hold placeholders, the deprecated numbers are cores and gigabytes."""

    resource_cpu_request: str = ""
    resource_cpu_limit: str = ""
    resource_memory_request: str = ""
    resource_memory_limit: str = ""
    cpu_request: float = 0
    cpu_limit: float = 0
    memory_request: float = 0
    memory_limit: float = 0
    accelerator: Accelerator | None = None


class Container(_Ir, frozen=True):
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    resources: ResourceSpec = ResourceSpec()
    lifecycle: dict[str, Any] | None = None


class Importer(_Ir, frozen=True):
    artifact_uri: RuntimeValue = RuntimeValue()
    type_schema: ArtifactType = ArtifactType()
    metadata: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    custom_properties: dict[str, Any] = {}
    reimport: bool = False
    download_to_workspace: bool = False


class Executor(_Ir, frozen=True):
    """Exactly one is set; ``resolver`` and ``custom_job`` are refused by validation."""

    container: Container | None = None
    importer: Importer | None = None
    resolver: dict[str, Any] | None = None
    custom_job: dict[str, Any] | None = None


class PipelineInfo(_Ir, frozen=True):
    name: str = ""
    display_name: str = ""
    description: str = ""


class Deployment(_Ir, frozen=True):
    executors: dict[str, Executor] = {}


class _PipelineSpec(_Ir, frozen=True):
    root: Component
    pipeline_info: PipelineInfo = PipelineInfo()
    schema_version: str = ""
    sdk_version: str = ""
    default_pipeline_root: str = ""
    components: dict[str, Component] = {}
    deployment_spec: Deployment = Deployment()


class WorkspaceKubernetes(_Ir, frozen=True):
    pvc_spec_patch: dict[str, Any] = {}


class Workspace(_Ir, frozen=True):
    """One volume that all tasks of a run share."""

    size: str = ""
    kubernetes: WorkspaceKubernetes = WorkspaceKubernetes()


class PipelineConfig(_Ir, frozen=True):
    """Options of a whole run; times in seconds, 0 = none."""

    workspace: Workspace | None = None
    resource_ttl_on_completion: int = 0
    resource_ttl_on_success: int = 0
    resource_ttl_on_failure: int = 0
    active_deadline_seconds: int = 0

    def ttl_s(self, *, succeeded: bool) -> int:
        """Return how long the Pods of a run stay after its end."""
        own = self.resource_ttl_on_success if succeeded else self.resource_ttl_on_failure
        return own or self.resource_ttl_on_completion


class Pipeline(Struct, frozen=True):
    """
    One parsed pipeline; share it freely, it never changes.

    Args:
        raw: the PipelineSpec as it was sent.
        raw_platform: the PlatformSpec as it was sent; empty without one.
        kubernetes: executor label -> KubernetesExecutorConfig as it was sent.
    """

    info: PipelineInfo
    root: Component
    components: dict[str, Component]
    executors: dict[str, Executor]
    kubernetes: dict[str, dict[str, Any]]
    config: PipelineConfig
    default_root: str
    schema_version: str
    sdk_version: str
    raw: dict[str, Any]
    raw_platform: dict[str, Any]

    @property
    def name(self) -> str:
        return self.info.name

    def component_of(self, task: Task) -> Component:
        return self.components[task.component_ref.name]

    def executor_of(self, component: Component) -> Executor:
        return self.executors[component.executor_label]


def parse_duration_s(text: str) -> float:
    """
    Read a proto JSON duration such as ``30s`` or ``1.5s``; an empty text is 0.

    Raises:
        BadRequestError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)s", text or "0s")
    if not match:
        raise BadRequestError(f"'{text}' is not a duration: write seconds followed by 's', such as '30s'.")
    return float(match[1])


def parse_pipeline(spec: Mapping[str, Any], platform: Mapping[str, Any] | None = None) -> Pipeline:
    """
    Parse a PipelineSpec and, where there is one, its PlatformSpec.

    Args:
        spec: the IR; a struct ``{"pipeline_spec": ..., "platform_spec": ...}`` is opened.

    Raises:
        BadRequestError: the document is not such a spec; the message names the field. References between
            fields are checked by ``validation.check_pipeline``.
    """
    if "pipeline_spec" in spec:
        platform = platform or spec.get("platform_spec")
        spec = spec["pipeline_spec"]
    _refuse_other_documents(spec)
    parsed = convert(dict(spec), _PipelineSpec)
    kubernetes, config = _parse_platform(platform)
    from shallop.pipelines.loopitems import pass_loop_items  # works on the Structs above

    root, components = pass_loop_items(parsed.root, parsed.components)
    return Pipeline(
        info=parsed.pipeline_info,
        root=root,
        components=components,
        executors=parsed.deployment_spec.executors,
        kubernetes=kubernetes,
        config=config,
        default_root=parsed.default_pipeline_root,
        schema_version=parsed.schema_version,
        sdk_version=parsed.sdk_version,
        raw=dict(spec),
        raw_platform=dict(_object_in(platform, "")),
    )


def _refuse_other_documents(spec: Any) -> None:
    if not isinstance(spec, Mapping):
        raise BadRequestError("The pipeline is not a YAML or JSON object: upload what 'kfp dsl compile' writes.")
    if str(spec.get("apiVersion", "")).startswith("argoproj.io/"):
        raise BadRequestError(
            "This is an Argo Workflow, as written by kfp 1.x: compile the pipeline with kfp 2 and upload the result."
        )
    version = spec.get("schemaVersion", "")
    if version != SCHEMA_VERSION:
        raise BadRequestError(
            f"schemaVersion: '{version}' is not supported, {SCHEMA_VERSION} is: compile the pipeline with kfp 2."
        )
    if "root" not in spec:
        raise BadRequestError("root: Required value: upload what 'kfp dsl compile' writes.")


def _parse_platform(platform: Any) -> tuple[dict[str, dict[str, Any]], PipelineConfig]:
    kubernetes = platform
    path = ""
    for key in ("platforms", "kubernetes"):
        kubernetes = _object_in(kubernetes, path).get(key)
        path = f"{path}.{key}".lstrip(".")
    kubernetes = _object_in(kubernetes, path)
    deployment = _object_in(kubernetes.get("deploymentSpec"), f"{path}.deploymentSpec")
    executors = convert(
        deployment.get("executors") or {},
        dict[str, dict[str, Any]],
        prefix="platforms.kubernetes.deploymentSpec.executors",
    )
    config = convert(
        kubernetes.get("pipelineConfig") or {}, PipelineConfig, prefix="platforms.kubernetes.pipelineConfig"
    )
    return executors, config


def _object_in(value: Any, path: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequestError(f"{path or 'platform_spec'}: Expected an object in the second document (PlatformSpec).")
    return value


def convert(raw: Any, type_: type[T], prefix: str = "") -> T:
    """
    Read a part of the document.

    Args:
        prefix: where in the document it is.

    Raises:
        BadRequestError: it has another shape; the message begins with the field.
    """
    try:
        return msgspec.convert(raw, type_, strict=False)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `")
        keys = _field_path(raw, type_, where.rstrip("`"), str(error))
        place = ".".join(filter(None, (prefix, *map(str, keys)))) or "the document"
        raise BadRequestError(
            f"{place}: {message}. Correct the field, or compile the pipeline with a kfp from 2.0 to 2.17."
        ) from error


def _field_path(raw: Any, type_: Any, path: str, error: str) -> list[str | int]:
    """Name the keys where msgspec says ``[...]``: those whose map, reduced to that one key, gives the same error."""
    keys: list[str | int] = []
    for name, index, any_key in re.findall(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])", path):
        if any_key:
            entries = _at(raw, keys)
            matching = (key for key in entries if _error_of(_replaced(raw, keys, {key: entries[key]}), type_) == error)
            key = next(matching, "*")
            if key == "*":
                return [*keys, key]
            raw = _replaced(raw, keys, {key: entries[key]})
            keys.append(key)
        else:
            keys.append(name or int(index))
    return keys


def _error_of(raw: Any, type_: Any) -> str:
    try:
        msgspec.convert(raw, type_, strict=False)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _at(raw: Any, keys: list[str | int]) -> Any:
    for key in keys:
        raw = raw[key]
    return raw


def _replaced(raw: Any, keys: list[str | int], value: Any) -> Any:
    """Copy ``raw`` along ``keys`` with ``value`` at their end."""
    if not keys:
        return value
    fresh: Any = dict(raw) if isinstance(raw, dict) else list(raw)
    fresh[keys[0]] = _replaced(raw[keys[0]], keys[1:], value)
    return fresh
