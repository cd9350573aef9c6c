"""
The shape of a KubernetesExecutorConfig, the settings of a task for Kubernetes: what may be where.

Only checked at the border, so that a mistake is said with its field at submission. What is read later is the document
itself, whose names may be references to parameters. Fields that are not known here are left to a warning.

Source: ``kubernetes_executor_config.proto`` of Kubeflow Pipelines 2.17.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from shallop.pipelines.ir import InputParameter

__all__ = ["ExecutorConfig"]

_Labels = dict[str, str]


class _Shape(Struct, frozen=True, rename="camel"):
    """Base of what is checked: camelCase on the wire, unknown fields pass."""


class _Pair(_Shape, frozen=True):
    env_var: str
    secret_key: str = ""
    config_map_key: str = ""


class _SecretAsVolume(_Shape, frozen=True):
    mount_path: str
    secret_name: str = ""
    secret_name_parameter: InputParameter | None = None
    optional: bool = False


class _SecretAsEnv(_Shape, frozen=True):
    key_to_env: list[_Pair] = []
    secret_name: str = ""
    secret_name_parameter: InputParameter | None = None
    optional: bool = False


class _ConfigMapAsVolume(_Shape, frozen=True):
    mount_path: str
    config_map_name: str = ""
    config_map_name_parameter: InputParameter | None = None
    optional: bool = False


class _ConfigMapAsEnv(_Shape, frozen=True):
    key_to_env: list[_Pair] = []
    config_map_name: str = ""
    config_map_name_parameter: InputParameter | None = None
    optional: bool = False


class _PvcMount(_Shape, frozen=True):
    mount_path: str
    constant: str = ""
    component_input_parameter: str = ""
    task_output_parameter: dict[str, str] = {}
    pvc_name_parameter: InputParameter | None = None
    sub_path: str = ""


class _NodeSelector(_Shape, frozen=True):
    labels: _Labels = {}
    node_selector_json: InputParameter | None = None


class _Metadata(_Shape, frozen=True):
    labels: _Labels = {}
    annotations: _Labels = {}


class _ImagePullSecret(_Shape, frozen=True):
    secret_name: str = ""
    secret_name_parameter: InputParameter | None = None


class _FieldPath(_Shape, frozen=True):
    name: str
    field_path: str


class _Toleration(_Shape, frozen=True):
    key: str = ""
    operator: str = ""
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None
    toleration_json: InputParameter | None = None


class _EphemeralVolume(_Shape, frozen=True):
    volume_name: str
    mount_path: str
    access_modes: list[str] = []
    size: str = ""
    default_storage_class: bool = False
    storage_class_name: str = ""
    metadata: _Metadata = _Metadata()


class _Requirement(_Shape, frozen=True):
    key: str
    operator: str
    values: list[str] = []


class _NodeAffinity(_Shape, frozen=True):
    match_expressions: list[_Requirement] = []
    match_fields: list[_Requirement] = []
    weight: float | None = None
    node_affinity_json: InputParameter | None = None


class _PodAffinity(_Shape, frozen=True):
    match_pod_expressions: list[_Requirement] = []
    match_pod_labels: _Labels = {}
    topology_key: str = ""
    namespaces: list[str] = []
    match_namespace_expressions: list[_Requirement] = []
    match_namespace_labels: _Labels = {}
    weight: float | None = None
    anti: bool = False


class _SharedMemory(_Shape, frozen=True):
    volume_name: str = ""
    size: str = ""


class _EmptyDir(_Shape, frozen=True):
    volume_name: str
    mount_path: str
    medium: str = ""
    size_limit: str = ""


class _Security(_Shape, frozen=True):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None


class _Env(_Shape, frozen=True):
    name: str
    value: str = ""


class _Mount(_Shape, frozen=True):
    volume_name: str
    mount_path: str


class _InitContainer(_Shape, frozen=True):
    name: str
    image: str
    command: list[str] = []
    args: list[str] = []
    env: list[_Env] = []
    volume_mounts: list[_Mount] = []
    resources: dict[str, Any] = {}
    restart_policy: str = ""


class ExecutorConfig(_Shape, frozen=True):
    """All settings of one task."""

    secret_as_volume: list[_SecretAsVolume] = []
    secret_as_env: list[_SecretAsEnv] = []
    pvc_mount: list[_PvcMount] = []
    node_selector: _NodeSelector = _NodeSelector()
    pod_metadata: _Metadata = _Metadata()
    image_pull_secret: list[_ImagePullSecret] = []
    image_pull_policy: str = ""
    config_map_as_volume: list[_ConfigMapAsVolume] = []
    config_map_as_env: list[_ConfigMapAsEnv] = []
    active_deadline_seconds: int = 0
    field_path_as_env: list[_FieldPath] = []
    tolerations: list[_Toleration] = []
    generic_ephemeral_volume: list[_EphemeralVolume] = []
    node_affinity: list[_NodeAffinity] = []
    pod_affinity: list[_PodAffinity] = []
    enabled_shared_memory: _SharedMemory | None = None
    empty_dir_mounts: list[_EmptyDir] = []
    security_context: _Security = _Security()
    init_containers: list[_InitContainer] = []
