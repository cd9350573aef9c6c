"""
Placeholders in commands, arguments, environment, constants, metadata and images.

``{{$.inputs.parameters['x']}}`` and its relatives may stand alone or inside longer text. Text that only looks like a
placeholder, or names an input that the component does not have, stays as it is: component source code travels in the
same fields. Replaced text is not searched again.

Source: the placeholder contract of ExecutorInput in ``pipeline_spec.proto``; the forms that ``kfp.dsl`` compiles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shallop.pipelines.values import Artifact, artifact_json, text_of

__all__ = ["EXECUTOR_INPUT", "WORKSPACE_PATH", "Placeholders", "local_path"]

EXECUTOR_INPUT = "{{$}}"
WORKSPACE_PATH = "/kfp-workspace"

_PLACEHOLDER = re.compile(r"\{\{\$(.*?)\}\}", re.DOTALL)
_KEY = r"\[\s*(?:'([^']*)'|\"([^\"]*)\")\s*\]"
_PARAMETER = re.compile(rf"\.inputs\.parameters{_KEY}")
_ARTIFACT = re.compile(rf"\.(inputs|outputs)\.artifacts{_KEY}(?:\.(uri|path|name|metadata)(?:{_KEY})?)?")
_OUTPUT_FILE = re.compile(rf"\.outputs\.parameters{_KEY}\.output_file")
_OUTPUT_METADATA = (".outputs.output_file", ".outputMetadataUri")
_LOCAL_PREFIXES = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/"}
_STRUCTURE = re.compile(r"\s*\{\s*\"(IfPresent|Concat)\"")
_MISSING = object()


@dataclass(slots=True)
class Placeholders:
    """
    What placeholders stand for in one task.

    Args:
        parameters: resolved inputs, defaults included; None = an optional input that was not given.
        artifacts: resolved inputs; an optional input that was not given is absent or empty.
        names: ``pipeline_job_name`` -> value, and so on.
        executor_input: None where outputs do not exist, such as in constants.
    """

    parameters: Mapping[str, Any]
    artifacts: Mapping[str, Sequence[Artifact]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    executor_input: Mapping[str, Any] | None = None

    def text(self, template: str) -> str:
        """Replace every placeholder inside a text."""
        if "{{$" not in template:
            return template
        return _PLACEHOLDER.sub(self._replace, template)

    def value(self, template: Any) -> Any:
        """
        Replace placeholders inside a JSON value.

        A text that is exactly one placeholder becomes the value itself, so that numbers and lists keep their type;
        inside longer text values are written as text. Values are put in after parsing: quotes in them break nothing.
        """
        if isinstance(template, dict):
            return {self.text(key): self.value(item) for key, item in template.items()}
        if isinstance(template, list | tuple):
            return [self.value(item) for item in template]
        if not isinstance(template, str):
            return template
        whole = _PLACEHOLDER.fullmatch(template.strip())
        if whole and "}}" not in whole[1]:
            value = self._lookup(whole[1])
            return template if value is _MISSING else value
        return self.text(template)

    def argv(self, templates: Sequence[str]) -> list[str]:
        """
        Replace placeholders in a command line; ``IfPresent`` may add or remove elements.

        An element that is exactly ``{{$}}`` stays: the launcher puts the executor input there.
        """
        words: list[str] = []
        for template in templates:
            is_plain = isinstance(template, str) and "{{$" not in template and not _STRUCTURE.match(template)
            if is_plain or template == EXECUTOR_INPUT:
                words.append(template)
            else:
                words.extend(self._expand(_structure_of(template)))
        return words

    def _expand(self, element: Any) -> list[str]:
        """Turn one element of a command line, or of Concat or Then, into zero or more words."""
        if element is None:
            return []
        if isinstance(element, list):
            return [word for item in element for word in self._expand(item)]
        if not isinstance(element, dict):
            return [self.text(text_of(element))]
        if "Concat" in element:
            return ["".join(word for item in element["Concat"] for word in self._expand(_structure_of(item)))]
        choice = element["IfPresent"]
        return self._expand(_structure_of(choice.get("Then" if self._is_present(choice["InputName"]) else "Else")))

    def _is_present(self, name: str) -> bool:
        return self.parameters.get(name) is not None or bool(self.artifacts.get(name))

    def _replace(self, match: re.Match[str]) -> str:
        value = self._lookup(match[1])
        return match[0] if value is _MISSING else text_of(value)

    def _lookup(self, expression: str) -> Any:
        expression = expression.strip()
        if not expression:
            return _MISSING if self.executor_input is None else dict(self.executor_input)
        if match := _PARAMETER.fullmatch(expression):
            return self.parameters.get(match[1] or match[2] or "", _MISSING)
        if match := _ARTIFACT.fullmatch(expression):
            return self._artifact(match)
        if self.executor_input is not None:
            outputs = self.executor_input.get("outputs", {})
            if match := _OUTPUT_FILE.fullmatch(expression):
                return outputs.get("parameters", {}).get(match[1] or match[2] or "", {}).get("outputFile", _MISSING)
            if expression in _OUTPUT_METADATA:
                return outputs.get("outputFile", _MISSING)
        return self.names.get(expression.removeprefix("."), _MISSING)

    def _artifact(self, match: re.Match[str]) -> Any:
        side, name, part = match[1], match[2] or match[3] or "", match[4]
        artifacts = self._input_artifacts(name) if side == "inputs" else self._output_artifacts(name)
        if artifacts is None:
            return _MISSING
        if part is None:
            return artifacts
        if not artifacts:
            return None
        first = artifacts[0]
        if part == "path":
            return local_path(first["uri"], first.get("metadata"))
        key = match[5] or match[6]
        return first.get("metadata", {}).get(key) if key else first.get(part)

    def _input_artifacts(self, name: str) -> list[dict[str, Any]] | None:
        found = self.artifacts.get(name)
        return None if found is None else [artifact_json(artifact) for artifact in found]

    def _output_artifacts(self, name: str) -> list[dict[str, Any]] | None:
        outputs = (self.executor_input or {}).get("outputs", {}).get("artifacts", {})
        return outputs[name]["artifacts"] if name in outputs else None


def _structure_of(template: Any) -> Any:
    """Parse a text that is an ``IfPresent`` or ``Concat``; anything else comes back as it is."""
    if not isinstance(template, str) or not _STRUCTURE.match(template):
        return template
    try:
        structure = json.loads(template)
    except ValueError:
        return template
    if len(structure) != 1:
        return template
    if "Concat" in structure:
        return structure if isinstance(structure["Concat"], list) else template
    choice = structure["IfPresent"]
    return structure if isinstance(choice, dict) and isinstance(choice.get("InputName"), str) else template


def local_path(uri: str, metadata: Mapping[str, Any] | None = None) -> str:
    """
    Map an artifact's URI to the path under which a component finds it; a plain path is its own.

    Source: ``Artifact._get_path`` of ``kfp.dsl``, which does the same inside the component.
    """
    path = uri
    if uri.startswith("oci://"):
        path = f"/oci/{uri.removeprefix('oci://').replace('/', '_')}/models"
    for scheme, prefix in _LOCAL_PREFIXES.items():
        if uri.startswith(scheme):
            path = prefix + uri.removeprefix(scheme)
    if (metadata or {}).get("_kfp_workspace"):
        return f"{WORKSPACE_PATH}/.artifacts/{path.lstrip('/')}"
    return path.removeprefix("file://")
