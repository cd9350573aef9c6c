"""The table of built-in types, against the JSON schemas that the real project publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.apiserver import builtin_types
from shallop.embedded.apiserver.openapi import component_name
from shallop.kube.objects import Gvk


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    package = pytest.importorskip("kubernetes_validate")
    path = Path(package.__file__).parent / "kubernetes-json-schema" / "v1.36.0-local" / "_definitions.json"
    if not path.is_file():
        pytest.skip("kubernetes-validate has no schemas of Kubernetes 1.36")
    definitions: dict[str, Any] = json.loads(path.read_text())["$defs"]
    return definitions


def messages() -> list[str]:
    return sorted(builtin_types._table()["messages"])


def test_fields_are_named_as_the_api_names_them(published: dict[str, Any]) -> None:
    compared = 0
    for message in messages():
        schema = published.get(component_name(message))
        if schema is None:
            continue
        names = set(schema.get("properties", {})) - {"apiVersion", "kind"}
        assert set(builtin_types.fields(message)) - {"apiVersion", "kind"} == names, message
        compared += 1
    assert compared > 400


SCALARS = {"string": "string", "bytes": "string", "bool": "boolean", "double": "number", "time": "string"}


def test_fields_have_the_types_of_the_api(published: dict[str, Any]) -> None:
    for message in messages():
        properties = published.get(component_name(message), {}).get("properties", {})
        for name, field in builtin_types.fields(message).items():
            kind = properties.get(name, {}).get("type", ())
            kinds = {kind} if isinstance(kind, str) else set(kind)
            if not kinds or "$ref" in properties[name]:
                continue
            expected = {"list": "array", "map": "object"}.get(field.shape) or SCALARS.get(field.type)
            if expected is not None:
                assert expected in kinds, f"{message}.{name}"
            elif field.type in ("int32", "int64"):
                assert "integer" in kinds, f"{message}.{name}"


def test_merge_rules_find_their_way_through_nested_types() -> None:
    spec = builtin_types.merge_rule("apps.v1.Deployment", "spec").type_name
    template = builtin_types.merge_rule(spec, "template").type_name
    pod = builtin_types.merge_rule(template, "spec").type_name
    containers = builtin_types.merge_rule(pod, "containers")
    assert containers == ("core.v1.Container", True, "name")
    assert builtin_types.merge_rule("core.v1.Container", "ports").key == "containerPort"
    assert builtin_types.merge_rule("core.v1.ServiceSpec", "ports").key == "port"
    assert builtin_types.merge_rule("meta.v1.ObjectMeta", "finalizers") == ("string", True, "")
    assert builtin_types.merge_rule("core.v1.PodSpec", "tolerations").merge is False
    assert builtin_types.merge_rule("", "anything").merge is False


def test_embedded_structs_are_flat_in_json_only() -> None:
    assert "emptyDir" in builtin_types.fields("core.v1.Volume")
    assert "volumeSource" in builtin_types.wire_fields("core.v1.Volume")
    assert builtin_types.fields("core.v1.ConfigMapKeySelector").keys() == {"name", "key", "optional"}


def test_options_of_every_group_have_the_same_type() -> None:
    assert builtin_types.type_name(Gvk("apps/v1", "DeleteOptions")) == "meta.v1.DeleteOptions"
    assert builtin_types.type_name(Gvk("example.com/v1", "Thing")) == ""
