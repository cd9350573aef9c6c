"""openAPIV3Schema of OptimizationJob, with the limits and rules of the published CRD; its TrainJobs are kept open."""

from __future__ import annotations

from typing import Any

__all__ = ["SCHEMA"]

Schema = dict[str, Any]

_ANY: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
_NUMBER: Schema = {**_NAME, "pattern": r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"}
_MIN_LESS = {"rule": "double(self.min) < double(self.max)", "message": "min must be strictly less than max"}
_POSITIVE = {"rule": "double(self.min) > 0.0", "message": "min must be strictly greater than 0"}


_GRID = "Grid search requires all parameters to be Categorical; Uniform and LogUniform are not supported."


def _range(*rules: dict[str, str]) -> Schema:
    return {
        "type": "object",
        "required": ["max", "min"],
        "properties": {
            "min": _NUMBER,
            "max": _NUMBER,
            "type": {"type": "string", "enum": ["Int", "Float"], "default": "Float"},
        },
        "x-kubernetes-validations": list(rules),
    }


def _one_of(names: str) -> dict[str, str]:
    checks = ",".join(f"has(self.{name})" for name in names.split())
    message = f"exactly one of the fields in [{names}] must be set"
    return {"rule": f"[{checks}].filter(x,x==true).size() == 1", "message": message}


_SPACE: Schema = {
    "type": "object",
    "properties": {
        "uniform": _range(_MIN_LESS),
        "logUniform": _range(_POSITIVE, _MIN_LESS),
        "categorical": {
            "type": "object",
            "required": ["choices"],
            "properties": {
                "choices": {
                    "type": "array",
                    "items": {"type": "string", "maxLength": 64},
                    "minItems": 1,
                    "maxItems": 100,
                    "x-kubernetes-list-type": "set",
                }
            },
        },
    },
    "x-kubernetes-validations": [_one_of("uniform logUniform categorical")],
}


def _keyed(items: Schema, key: str, **bounds: int) -> Schema:
    return {
        "type": "array",
        "items": items,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
        **bounds,
    }


def _count() -> Schema:
    return {"type": "integer", "format": "int32", "minimum": 1, "maximum": 100, "default": 1}


_OBJECTIVE: Schema = {
    "type": "object",
    "required": ["metric"],
    "properties": {
        "metric": _NAME,
        "direction": {"type": "string", "enum": ["Maximize", "Minimize"], "default": "Minimize"},
    },
}
_PARAMETER: Schema = {
    "type": "object",
    "required": ["name", "searchSpace"],
    "properties": {"name": _NAME, "searchSpace": _SPACE},
}
_TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_TEMPLATE: Schema = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "metadata": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "namespace": {"type": "string"},
                "labels": _TEXTS,
                "annotations": _TEXTS,
            },
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.name) && !has(self.namespace)",
                    "message": "name and namespace cannot be set in a template.",
                }
            ],
        },
        "spec": _ANY,
    },
}
_SPEC: Schema = {
    "type": "object",
    "required": ["objectives", "parameters", "trainJobTemplate"],
    "properties": {
        "objectives": _keyed(_OBJECTIVE, "metric", minItems=1, maxItems=1),
        "parameters": _keyed(_PARAMETER, "name", minItems=1, maxItems=100),
        "numTrials": _count(),
        "parallelTrials": _count(),
        "searchAlgorithm": {
            "type": "object",
            "default": {"random": {}},
            "properties": {
                "random": {"type": "object", "properties": {"seed": {"type": "integer", "format": "int64"}}},
                "grid": {"type": "object"},
            },
            "x-kubernetes-validations": [_one_of("random grid")],
        },
        "trainJobTemplate": _TEMPLATE,
    },
    "x-kubernetes-validations": [
        {"rule": "self == oldSelf", "message": "OptimizationJobSpec is immutable and cannot be updated after creation"},
        {"rule": "self.parallelTrials <= self.numTrials", "message": "parallelTrials cannot exceed numTrials"},
        {
            "rule": "!has(self.searchAlgorithm.grid) || self.parameters.all(p, has(p.searchSpace.categorical))",
            "message": _GRID,
        },
    ],
}
SCHEMA: Schema = {"type": "object", "properties": {"spec": _SPEC, "status": _ANY}, "required": ["spec"]}
