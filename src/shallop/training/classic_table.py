"""
The classic jobs of Kubeflow (``kubeflow.org/v1``) as a table: what differs between them is here, as data.

Source: Kubeflow training-operator 1.9, its CRDs, defaults and the variables that its controllers set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shallop.kube.objects import Object
from shallop.training import classic_env as env
from shallop.training.classic_view import JobView
from shallop.training.schemas import ANY, BOOLEAN, INT32, STRING, Schema

__all__ = ["CLASSIC", "ClassicKind"]

Variables = Callable[[JobView, str, int], list[dict[str, Any]]]


@dataclass(frozen=True)
class ClassicKind:
    """
    One kind of job.

    Args:
        specs: field of the map of replica types.
        types: its keys, in the order in which replicas are made.
        container: name of the container that trains.
        port: name and number that this container gets when it has no port of this name.
        restart: restart policy when a replica type does not say.
        variables: environment of one replica.
        chiefs: types of which the first decides over success when they are there; else it is up to the workers.
        single: types that may have one replica at most.
        required: types that must be there.
        main_only: variables go to ``container`` only, not to all containers of a Pod.
        extra: further fields of the spec, for the schema.
        scalable: type that ``kubectl scale`` changes.
    """

    kind: str
    plural: str
    specs: str
    types: tuple[str, ...]
    container: str
    port: tuple[str, int]
    restart: str
    variables: Variables
    chiefs: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    main_only: bool = False
    extra: Mapping[str, Schema] = field(default_factory=dict)
    scalable: str = ""

    def view(self, job: Object) -> JobView:
        """Read a stored job."""
        return JobView.of(job, self.specs, self.container, self.port)

    def type_named(self, name: str) -> str:
        """Return the type in the spelling of the table, ``name`` itself when there is none."""
        return next((known for known in self.types if known.lower() == name.lower()), name)


_ELASTIC: Schema = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("minReplicas", "maxReplicas", "rdzvPort", "nProcPerNode", "maxRestarts"), INT32),
        **dict.fromkeys(("rdzvBackend", "rdzvHost", "rdzvId"), STRING),
        "rdzvConf": {"type": "array", "items": {"type": "object", "properties": {"key": STRING, "value": STRING}}},
        "standalone": BOOLEAN,
        "metrics": {"type": "array", "items": ANY | {"required": ["type"]}},
    },
}

CLASSIC: tuple[ClassicKind, ...] = (
    ClassicKind(
        kind="PyTorchJob",
        plural="pytorchjobs",
        specs="pytorchReplicaSpecs",
        types=("Master", "Worker"),
        container="pytorch",
        port=("pytorchjob-port", 23456),
        restart="OnFailure",
        variables=env.pytorch,
        chiefs=("Master",),
        single=("Master",),
        extra={"elasticPolicy": _ELASTIC, "nprocPerNode": STRING},
        scalable="Worker",
    ),
    ClassicKind(
        kind="TFJob",
        plural="tfjobs",
        specs="tfReplicaSpecs",
        types=("PS", "Worker", "Chief", "Master", "Evaluator"),
        container="tensorflow",
        port=("tfjob-port", 2222),
        restart="Never",
        variables=env.tensorflow,
        chiefs=("Chief", "Master"),
        single=("Chief", "Master", "Evaluator"),
        main_only=True,
        extra={"successPolicy": STRING, "enableDynamicWorker": BOOLEAN},
    ),
    ClassicKind(
        kind="XGBoostJob",
        plural="xgboostjobs",
        specs="xgbReplicaSpecs",
        types=("Master", "Worker"),
        container="xgboost",
        port=("xgboostjob-port", 9999),
        restart="Never",
        variables=env.xgboost,
        chiefs=("Master",),
        single=("Master",),
        required=("Master",),
    ),
    ClassicKind(
        kind="JAXJob",
        plural="jaxjobs",
        specs="jaxReplicaSpecs",
        types=("Worker",),
        container="jax",
        port=("jaxjob-port", 6666),
        restart="Never",
        variables=env.jax,
        required=("Worker",),
        scalable="Worker",
    ),
    ClassicKind(
        kind="PaddleJob",
        plural="paddlejobs",
        specs="paddleReplicaSpecs",
        types=("Master", "Worker"),
        container="paddle",
        port=("master", 36543),
        restart="OnFailure",
        variables=env.paddle,
        extra={"elasticPolicy": _ELASTIC},
        scalable="Worker",
    ),
    ClassicKind(
        kind="MPIJob",
        plural="mpijobs",
        specs="mpiReplicaSpecs",
        types=("Worker", "Launcher"),
        container="mpi",
        port=("", 0),
        restart="Never",
        variables=env.mpi,
        chiefs=("Launcher",),
        single=("Launcher",),
        required=("Launcher",),
        extra={"slotsPerWorker": INT32, "mainContainer": STRING, "cleanPodPolicy": STRING},
    ),
)
