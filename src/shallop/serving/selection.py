"""
Which runtime serves a model; pure.

Source: KServe, ``pkg/apis/serving/v1alpha1`` sorting and ``v1beta1`` predictor selection (2026-08).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from shallop.errors import ShallopError
from shallop.kube.objects import Object

__all__ = ["ModelFormat", "RuntimeSpec", "SelectionError", "SupportedFormat", "select_runtime"]

_PROTOCOL_ORDER = {"v1": 1, "v2": 2, "grpc-v1": 3, "grpc-v2": 4}


class ModelFormat(msgspec.Struct, frozen=True):
    """The format of a model; without a version any runtime of the format fits."""

    name: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}" if self.version else self.name


class SupportedFormat(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    version: str = ""
    auto_select: bool = False
    priority: int | None = None


class RuntimeSpec(msgspec.Struct, frozen=True, rename="camel"):
    """The lens on a ServingRuntime that choosing needs."""

    supported_model_formats: list[SupportedFormat] = []
    protocol_versions: list[str] = []
    multi_model: bool = False
    disabled: bool = False
    worker_spec: dict[str, object] | None = None

    def supports(self, format_: ModelFormat, *, automatically: bool) -> bool:
        return any(
            supported.name == format_.name
            and format_.version in ("", supported.version)
            and (supported.auto_select or not automatically)
            for supported in self.supported_model_formats
        )

    def priority(self, format_: ModelFormat) -> int:
        """Return the priority of a format; unset comes after every set one."""
        found = [s.priority for s in self.supported_model_formats if s.name == format_.name and s.priority is not None]
        return max(found, default=-(2**31))

    def speaks(self, protocol: str) -> bool:
        return not self.protocol_versions or protocol in self.protocol_versions


class SelectionError(ShallopError):
    """No runtime can serve the model; ``reason`` is one of ``modelStatus.lastFailureInfo``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class _Candidate(NamedTuple):
    runtime: Object
    spec: RuntimeSpec


def select_runtime(
    format_: ModelFormat,
    protocol: str,
    wanted: str,
    namespaced: Sequence[Object],
    clustered: Sequence[Object],
    *,
    multi_node: bool = False,
) -> Object:
    """
    Choose the runtime of a model.

    Args:
        protocol: ``v1``, ``v2``, ``grpc-v1`` or ``grpc-v2``.
        wanted: name of the runtime that the user chose; empty to choose one.
        namespaced: ServingRuntimes of the namespace; one that fits wins over every cluster-wide one.
        clustered: ClusterServingRuntimes.
        multi_node: the model wants workers beside the server: only a runtime that has them will do.

    Raises:
        SelectionError: nothing fits; the message says what would.
    """
    if wanted:
        return _named(format_, wanted, [*namespaced, *clustered])
    for runtimes in (namespaced, clustered):
        candidates = [_Candidate(runtime, _spec(runtime)) for runtime in runtimes]
        fitting = [item for item in candidates if _fits(item.spec, format_, protocol, multi_node=multi_node)]
        if fitting:
            return _order(fitting, format_)[0].runtime
    if multi_node:
        said = f"spec.predictor.workerSpec: no runtime with a workerSpec serves {format_} with protocol {protocol}"
        raise SelectionError("NoSupportingRuntime", f"{said}; create a ServingRuntime that has one")
    raise SelectionError("NoSupportingRuntime", _explain(format_, protocol, [*namespaced, *clustered]))


def _spec(runtime: Object) -> RuntimeSpec:
    return msgspec.convert(runtime.get("spec") or {}, RuntimeSpec)


def _fits(spec: RuntimeSpec, format_: ModelFormat, protocol: str, *, multi_node: bool) -> bool:
    usable = not spec.disabled and not spec.multi_model and (spec.worker_spec is not None) == multi_node
    return usable and spec.supports(format_, automatically=True) and spec.speaks(protocol)


def _order(candidates: Iterable[_Candidate], format_: ModelFormat) -> list[_Candidate]:
    """Sort by priority, then lowest protocol, then newest, then name; every sort is stable."""
    ordered = sorted(candidates, key=lambda item: str(item.runtime["metadata"]["name"]))
    ordered.sort(key=lambda item: str(item.runtime["metadata"].get("creationTimestamp", "")), reverse=True)
    ordered.sort(key=lambda item: min((_PROTOCOL_ORDER.get(p, 9) for p in item.spec.protocol_versions), default=9))
    ordered.sort(key=lambda item: -item.spec.priority(format_))
    return ordered


def _named(format_: ModelFormat, wanted: str, runtimes: Sequence[Object]) -> Object:
    runtime = next((runtime for runtime in runtimes if runtime["metadata"]["name"] == wanted), None)
    where = "spec.predictor.model.runtime"
    if runtime is None:
        names = sorted({str(runtime["metadata"]["name"]) for runtime in runtimes})
        close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
        hint = f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(names) or 'none'}"
        message = f'{where}: no ServingRuntime "{wanted}" in the namespace or the cluster; {hint}'
        raise SelectionError("RuntimeNotRecognized", message)
    spec = _spec(runtime)
    if spec.disabled:
        raise SelectionError("RuntimeDisabled", f'{where}: runtime "{wanted}" is disabled; set spec.disabled to false')
    if not spec.supports(format_, automatically=False):
        formats = ", ".join(_describe(supported) for supported in spec.supported_model_formats) or "none"
        message = f'{where}: runtime "{wanted}" does not serve {format_}; it serves: {formats}'
        raise SelectionError("NoSupportingRuntime", message)
    return runtime


def _describe(supported: SupportedFormat) -> str:
    return str(ModelFormat(supported.name, supported.version))


def _explain(format_: ModelFormat, protocol: str, runtimes: Sequence[Object]) -> str:
    where = "spec.predictor.model.modelFormat"
    known = {
        _describe(supported)
        for spec in map(_spec, runtimes)
        if not spec.disabled
        for supported in spec.supported_model_formats
    }
    if any(spec.supports(format_, automatically=True) for spec in map(_spec, runtimes) if not spec.disabled):
        return f"{where}: no runtime serves {format_} with protocol {protocol}; choose another protocolVersion"
    served = ", ".join(sorted(known)) or "nothing"
    return f"{where}: no runtime serves {format_}; the runtimes here serve: {served}"
