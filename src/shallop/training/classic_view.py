"""What the functions of the classic jobs read of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from shallop.kube.objects import Object

__all__ = ["JobView"]


@dataclass(frozen=True)
class JobView:
    """
    A stored job, defaults set.

    Args:
        specs: replica types as in the spec.
        container: name of the container that trains.
        port: its name and number when a replica has no own one.
    """

    name: str
    namespace: str
    uid: str
    spec: Mapping[str, Any]
    specs: Mapping[str, Mapping[str, Any]]
    container: str
    port: tuple[str, int]

    @classmethod
    def of(cls, job: Object, specs: str, container: str, port: tuple[str, int]) -> Self:
        spec, metadata = job["spec"], job["metadata"]
        replicas = spec.get(specs) or {}
        if "Launcher" in replicas or container == "mpi":
            container = spec.get("mainContainer") or _first_container(replicas) or container
        namespace, uid = metadata.get("namespace", ""), metadata.get("uid", "")
        return cls(metadata["name"], namespace, uid, spec, replicas, container, port)

    def count(self, type_: str) -> int:
        """Replicas of a type, 0 when it is not there."""
        spec = self.specs.get(type_)
        return 0 if spec is None else int(spec.get("replicas", 1))

    @property
    def total(self) -> int:
        return sum(self.count(type_) for type_ in self.specs)

    def elastic_range(self) -> tuple[int, int]:
        """Least and most workers of an elastic job; one that is not said is the other, or the number of workers."""
        policy, workers = self.spec.get("elasticPolicy") or {}, self.count("Worker")
        least, most = policy.get("minReplicas"), policy.get("maxReplicas")
        return int(least or most or workers), int(most or least or workers)

    def host(self, type_: str, index: int) -> str:
        """Name of a replica, of its Pod and of its Service."""
        return f"{self.name}-{type_.lower()}-{index}"

    def main_container(self, type_: str) -> str:
        """Name of the container that trains in Pods of a type; of an MPIJob the first, where none has the name."""
        names = [str(container.get("name", "")) for container in self._containers(type_)]
        return names[0] if names and self.container not in names else self.container

    def port_of(self, type_: str) -> int:
        """Port of the container that trains, by its name in the template."""
        for container in self._containers(type_):
            if container.get("name") == self.main_container(type_):
                for port in container.get("ports") or ():
                    if port.get("name") == self.port[0]:
                        return int(port["containerPort"])
        return self.port[1]

    def _containers(self, type_: str) -> list[dict[str, Any]]:
        template = (self.specs.get(type_) or {}).get("template") or {}
        containers: list[dict[str, Any]] = (template.get("spec") or {}).get("containers") or []
        return containers


def _first_container(replicas: Mapping[str, Mapping[str, Any]]) -> str:
    template = (replicas.get("Launcher") or {}).get("template") or {}
    containers = (template.get("spec") or {}).get("containers") or [{}]
    return str(containers[0].get("name", ""))
