"""What a part declares: its kinds, and the part itself."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from shallop.controller.captures import Captures
from shallop.errors import FieldError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Key, Object, key_of
from shallop.settings import Settings
from shallop.store.database import Database, Migration

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from shallop.controller.manager import Context

__all__ = ["Admission", "Column", "Kind", "Part", "Resource", "Result", "Scale", "Services", "Watch"]

S = TypeVar("S")
# Changes an object that is about to be created, before defaults are set and it is validated; may read other objects.
Admission = Callable[[Object], Awaitable[Object]]


@dataclass(frozen=True)
class Result:
    """What a reconcile asks for; ``requeue_after_s`` in seconds, None = only when something changes."""

    requeue_after_s: float | None = None


@dataclass(frozen=True)
class Resource(Generic[S]):
    """One object during one reconcile: the raw dict and the lens on its spec."""

    raw: Object
    spec: S

    @property
    def key(self) -> Key:
        return key_of(self.raw)

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"].get("namespace", ""))

    @property
    def status(self) -> dict[str, Any]:
        return self.raw.get("status") or {}


@dataclass(frozen=True)
class Watch:
    """Another kind whose changes concern this one; ``to_keys`` maps an object (old and new state) to keys."""

    gvk: Gvk
    to_keys: Callable[[Object], Iterable[Key]]


@dataclass(frozen=True)
class Column:
    """A column of ``kubectl get``; priority 1 shows only with ``-o wide``."""

    name: str
    type: str
    json_path: str
    priority: int = 0


@dataclass(frozen=True)
class Scale:
    """JSON paths of the scale subresource."""

    spec_replicas: str = ".spec.replicas"
    status_replicas: str = ".status.replicas"
    selector: str = ""


@dataclass(frozen=True)
class Kind:
    """
    A resource kind and how its declared state is reached.

    Args:
        api_version, kind, plural: as on the wire; ``singular`` defaults to the kind in lower case.
        spec: msgspec Struct that decodes ``.spec``; None gives the plain dict.
        schema: openAPIV3Schema of a kind of ours; None for a kind that the API server has built in.
        columns: additional printer columns.
        status: whether there is a status subresource.
        default: returns the object with defaults set; runs at admission, must be pure.
        validate: returns what is wrong with an object, given the stored one on updates; runs at admission, pure.
        held: says why a stored object may not be deleted now, empty when it may; runs at admission, pure.
        reconcile: makes the world match one object; None for kinds that are only data.
        on_gone: called with the key of an object that no longer exists.
        owns: kinds of children; a change of one reconciles its controlling owner.
        watches: other kinds whose changes matter.
        reads: kinds of which single objects are fetched without being followed; on a cluster roles are made from these.
        workers: how many objects are reconciled at once.
        component: the name that Events of this controller carry; empty = that of the manager.
    """

    api_version: str
    kind: str
    plural: str
    singular: str = ""
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    categories: tuple[str, ...] = ()
    spec: type[Any] | None = None
    schema: dict[str, Any] | None = None
    columns: tuple[Column, ...] = ()
    status: bool = True
    scale: Scale | None = None
    default: Callable[[Object], Object] | None = None
    validate: Callable[[Object, Object | None], list[FieldError]] | None = None
    held: Callable[[Object], str] | None = None
    reconcile: Callable[[Context, Resource[Any]], Awaitable[Result]] | None = None
    on_gone: Callable[[Context, Key], Awaitable[None]] | None = None
    owns: tuple[Gvk, ...] = ()
    watches: tuple[Watch, ...] = ()
    reads: tuple[Gvk, ...] = ()
    workers: int = 4
    component: str = ""

    @property
    def gvk(self) -> Gvk:
        return Gvk(self.api_version, self.kind)

    def decode(self, obj: Object) -> Resource[Any]:
        """Read an object through the lens; raises msgspec.ValidationError with the field path."""
        spec = obj.get("spec") or {}
        return Resource(obj, msgspec.convert(spec, self.spec) if self.spec else spec)

    def crd(self) -> Object:
        """Return the CustomResourceDefinition of a kind of ours, the same here and on any cluster."""
        if self.schema is None:
            raise ValueError(f"{self.kind} is built in and has no CustomResourceDefinition")
        subresources: dict[str, Any] = {"status": {}} if self.status else {}
        if self.scale:
            subresources["scale"] = {
                "specReplicasPath": self.scale.spec_replicas,
                "statusReplicasPath": self.scale.status_replicas,
            } | ({"labelSelectorPath": self.scale.selector} if self.scale.selector else {})
        version: dict[str, Any] = {
            "name": self.gvk.version,
            "served": True,
            "storage": True,
            "schema": {"openAPIV3Schema": self.schema},
            "subresources": subresources,
        }
        metadata: Object = {"name": f"{self.plural}.{self.gvk.group}"}
        if self.gvk.group.endswith((".k8s.io", ".kubernetes.io")):
            # API servers refuse CRDs in these groups that say nothing about their approval.
            metadata["annotations"] = {"api-approved.kubernetes.io": "unapproved, a schema of shallop's own"}
        if self.columns:
            version["additionalPrinterColumns"] = [_column(column) for column in self.columns]
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": metadata,
            "spec": {
                "group": self.gvk.group,
                "names": {
                    "plural": self.plural,
                    "singular": self.singular or self.kind.lower(),
                    "kind": self.kind,
                    "listKind": f"{self.kind}List",
                    "shortNames": list(self.short_names),
                    "categories": list(self.categories),
                },
                "scope": "Namespaced" if self.namespaced else "Cluster",
                "versions": [version],
            },
        }


def _column(column: Column) -> dict[str, Any]:
    rendered: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    return rendered | ({"priority": column.priority} if column.priority else {})


@dataclass(frozen=True)
class Services:
    """
    What routes and long-running tasks of a part get.

    Args:
        now: gives aware UTC time.
        sockets: listening sockets that the platform has bound, by the name of their setting: ``gateway``.
        cannot_run: why this node cannot run an image with a command, in words for users; None when it can.
        environment_of: what this node would run them with, as a digest of all packages; empty where it cannot know.
        captures: predictions that passed the gateway, for a part that watches models.
    """

    settings: Settings
    client: Client
    database: Database
    now: Callable[[], datetime]
    sockets: Mapping[str, socket.socket] = field(default_factory=dict)
    cannot_run: Callable[[str, Sequence[str]], str | None] = lambda image, argv: None
    environment_of: Callable[[str, Sequence[str]], str] = lambda image, argv: ""
    captures: Captures = field(default_factory=Captures)


@dataclass(frozen=True)
class Part:
    """
    One product: its kinds, manifests, tables, web routes and long-running tasks.

    Args:
        objects: manifests applied at every start.
        migrations: functions of a connection, applied once each, in order.
        admission: changes that the part makes to new objects of kinds that are not its own, such as Pods.
        routes: web routes for the web origin.
        content: routes for the second origin, where content that users made is shown.
        tasks: coroutines that run as long as the platform; cancelled on stop, a failure stops the platform.
    """

    name: str
    kinds: tuple[Kind, ...] = ()
    objects: tuple[Object, ...] = ()
    migrations: tuple[Migration, ...] = ()
    admission: Callable[[Services], Mapping[Gvk, Admission]] | None = None
    routes: Callable[[Services], Sequence[BaseRoute]] | None = None
    content: Callable[[Services], Sequence[BaseRoute]] | None = None
    tasks: Callable[[Services], Sequence[Callable[[], Awaitable[None]]]] | None = None
