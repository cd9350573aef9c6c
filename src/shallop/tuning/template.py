"""From a trial template and values to the run of one Trial."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from shallop.kube.objects import Object

__all__ = ["PARAMETER", "TemplateError", "metadata_reference", "placeholders", "render_run", "template_text"]

PARAMETER = re.compile(r"\$\{trialParameters\.([^}]*)\}")
_METADATA = re.compile(r"\$\{trialSpec\.(\w+)(?:\[([^\]]+)\])?\}")
_PLAIN = ("Name", "Namespace", "Kind", "APIVersion")


class TemplateError(ValueError):
    """A template that gives no run; in words for users."""


def placeholders(text: str) -> set[str]:
    """Return the names of the trial parameters that a template uses."""
    return set(PARAMETER.findall(text))


def metadata_reference(reference: str) -> tuple[str, str] | None:
    """Return the field and key of a reference such as ``${trialSpec.Labels[app]}``; None when it is another one."""
    match = _METADATA.fullmatch(reference)
    if match is None:
        return None
    field, key = match[1], match[2] or ""
    is_valid = (field in _PLAIN and not key) or (field in ("Annotations", "Labels") and bool(key))
    return (field, key) if is_valid else None


def render_run(
    template: Mapping[str, Any],
    text: str | None,
    assignments: Mapping[str, str],
    name: str,
    namespace: str,
) -> Object:
    """
    Return the run of a trial, named like the trial.

    Args:
        template: ``spec.trialTemplate``.
        text: the YAML of its ConfigMap; None when the template carries ``trialSpec``.
        assignments: values by parameter.

    In a ``trialSpec`` values are put into texts and stay text; in a ConfigMap they are put into the YAML, so that
    ``replicas: ${trialParameters.workers}`` becomes a number there, as in Katib.

    Raises:
        TemplateError: a value is missing, or the result is no object.
    """
    raw = template.get("trialSpec") or {} if text is None else _load(text, quiet=True)
    values = _values(template, raw, assignments, name, namespace)

    def put(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise TemplateError(f"trialTemplate: ${{trialParameters.{match[1]}}} is not among trialParameters")
        return values[match[1]]

    run = _replace(raw, lambda part: PARAMETER.sub(put, part)) if text is None else _load(PARAMETER.sub(put, text))
    if not isinstance(run, dict) or not run.get("apiVersion") or not run.get("kind"):
        raise TemplateError("trialTemplate: the template must be one object with apiVersion and kind")
    metadata = {key: value for key, value in (run.get("metadata") or {}).items() if value is not None}
    return {**run, "metadata": metadata | {"name": name, "namespace": namespace}}


def _values(
    template: Mapping[str, Any], raw: Any, assignments: Mapping[str, str], name: str, namespace: str
) -> dict[str, str]:
    values = {}
    for parameter in template.get("trialParameters") or ():
        reference = str(parameter["reference"])
        if (metadata := metadata_reference(reference)) is not None:
            values[parameter["name"]] = _metadata_value(raw, metadata, name, namespace)
            continue
        if reference not in assignments:
            raise TemplateError(
                f"trialTemplate.trialParameters: parameter {reference!r}, which {parameter['name']!r} refers to, "
                "has no value in this trial"
            )
        values[parameter["name"]] = assignments[reference]
    return values


def _metadata_value(raw: Any, reference: tuple[str, str], name: str, namespace: str) -> str:
    field, key = reference
    if field == "Name":
        return name
    if field == "Namespace":
        return namespace
    source = raw if isinstance(raw, dict) else {}
    if field in ("Kind", "APIVersion"):
        return str(source.get("kind" if field == "Kind" else "apiVersion", ""))
    values = (source.get("metadata") or {}).get(field.lower()) or {}
    if key not in values:
        raise TemplateError(
            f"trialTemplate: metadata.{field.lower()} has no {key!r}, which a trial parameter refers to"
        )
    return str(values[key])


def _load(text: str, *, quiet: bool = False) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        if quiet:
            return {}
        raise TemplateError(f"trialTemplate.configMap: the template is no YAML: {error}") from error


def _replace(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _replace(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, change) for item in value]
    return value


def template_text(spec: Any) -> str:
    """Return a trialSpec as the text in which placeholders are looked for."""
    return json.dumps(spec, ensure_ascii=False)
