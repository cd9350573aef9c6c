"""The environment of containers: references and their expansion."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from shallop.embedded.kubelet.containerenv import container_environment, expand, field_value
from shallop.errors import NodeError

POD: dict[str, Any] = {
    "metadata": {"name": "p", "namespace": "team", "labels": {"b": "2", "a": "1"}, "annotations": {"x/y": "z"}},
    "spec": {"nodeName": "shallop", "containers": [{"name": "main"}]},
    "status": {"podIP": "10.244.0.7"},
}  # fmt: skip
OBJECTS = {
    ("ConfigMap", "config"): {"data": {"COLOR": "red"}},
    ("Secret", "secret"): {"data": {"TOKEN": base64.b64encode(b"abc").decode()}},
    ("Node", "shallop"): {"status": {"allocatable": {"cpu": "8", "memory": "16Gi"}}},
}


def environment(*env: dict[str, Any], **container: Any) -> dict[str, str]:
    return container_environment(
        POD, {"name": "main", "env": list(env), **container}, lambda *key: OBJECTS.get(key), {}
    )


def test_references_to_earlier_variables_are_expanded() -> None:
    assert expand("$(A)/$(B)/$$(A)/$A", {"A": "1"}) == "1/$(B)/$(A)/$A"
    found = environment({"name": "A", "value": "$(B)"}, {"name": "B", "value": "x"}, {"name": "C", "value": "$(B)"})
    assert found == {"A": "$(B)", "B": "x", "C": "x"}


def test_values_come_from_objects_fields_and_resources() -> None:
    found = environment(
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "COLOR"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "TOKEN"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "x", "optional": True}}},
        envFrom=[{"prefix": "P_", "configMapRef": {"name": "config"}}],
        resources={"limits": {"memory": "2Gi"}},
    )
    assert found == {"P_COLOR": "red", "COLOR": "red", "TOKEN": "abc", "MEMORY": "2048"}


def test_who_has_no_limit_may_take_what_the_node_has() -> None:
    def variable(name: str, resource: str, **more: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, **more}}}

    asked = [variable("CPU", "limits.cpu"), variable("MEMORY", "limits.memory", divisor="1Gi")]
    asked += [variable("REQUEST", "requests.cpu"), variable("GPU", "limits.nvidia.com/gpu")]
    limits = {"limits": {"cpu": "1500m"}}
    assert environment(*asked) == {"CPU": "8", "MEMORY": "16", "REQUEST": "0", "GPU": "0"}
    assert environment(*asked, resources=limits)["CPU"] == "2"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"configMapKeyRef": {"name": "none", "key": "a"}}, 'configmap "none" not found'),
        ({"configMapKeyRef": {"name": "config", "key": "a"}}, "couldn't find key a in ConfigMap team/config"),
        ({"fieldRef": {"fieldPath": "spec.shoeSize"}}, "spec.shoeSize"),
    ],
)
def test_what_is_missing_is_named_with_its_place(source: dict[str, Any], text: str) -> None:
    with pytest.raises(NodeError, match=r"env|fieldPath") as raised:
        environment({"name": "A", "valueFrom": source})
    assert text in str(raised.value)


def test_fields_of_the_downward_api() -> None:
    assert field_value(POD, "metadata.labels['a']") == "1"
    assert field_value(POD, "metadata.labels") == 'a="1"\nb="2"'
    assert field_value(POD, "metadata.annotations['x/y']") == "z"
    assert field_value(POD, "status.podIP") == "10.244.0.7"
