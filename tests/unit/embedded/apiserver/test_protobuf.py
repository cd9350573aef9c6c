"""Protobuf bodies as kubectl 1.32 sends them (recorded with a listening socket, base64)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.apiserver.protobuf import decode
from shallop.embedded.apiserver.schema import builtin_schema
from shallop.errors import ApiError, BadRequestError, UnsupportedMediaTypeError
from shallop.kube.objects import gvk_of

BODIES: dict[str, str] = json.loads((Path(__file__).parent / "kubectl_protobuf_bodies.json").read_text())
RBAC = "rbac.authorization.k8s.io"

EXPECTED: dict[str, Any] = {
    "namespace": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "foo"}},
    "configmap": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1", "b": ""}},
    "secret": {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "dg=="}},
    "deployment": {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "labels": {"app": "d"}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "d"}},
            "template": {
                "metadata": {"labels": {"app": "d"}},
                "spec": {"containers": [{"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}]}]},
            },
        },
    },
    "service-np": {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "labels": {"app": "s"}},
        "spec": {
            "ports": [{"name": "80-http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
            "selector": {"app": "s"},
            "type": "NodePort",
        },
        "status": {"loadBalancer": {}},
    },
    "quota": {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q"},
        "spec": {"hard": {"cpu": "1", "memory": "1Gi"}},
    },
    "role": {
        "apiVersion": f"{RBAC}/v1",
        "kind": "Role",
        "metadata": {"name": "r"},
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
    },
    "rolebinding": {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "sa", "namespace": "default"}],
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "r"},
    },
    "pdb": {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "p"},
        "spec": {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}},
    },
    "priorityclass": {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "p"},
        "value": 0,
        "description": "d",
        "preemptionPolicy": "PreemptLowerPriority",
    },
    "token": {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}},
    "can-i": {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"namespace": "default", "verb": "create", "resource": "pods"}},
    },
    "drain": {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0},
}


def body(name: str) -> bytes:
    return base64.b64decode(BODIES[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_body_of_kubectl_becomes_the_object_that_was_meant(name: str) -> None:
    assert decode(body(name)) == EXPECTED[name]


def test_embedded_structs_are_flat_and_pointers_to_zero_are_kept() -> None:
    spec = decode(body("job-from"))["spec"]
    assert spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    assert pod["volumes"] == [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "c"}}]
    container = pod["containers"][0]
    assert container["env"][0]["valueFrom"] == {"configMapKeyRef": {"name": "c", "key": "k", "optional": False}}
    assert container["livenessProbe"] == {"httpGet": {"path": "/", "port": "http"}}
    assert container["resources"] == {"limits": {"cpu": "1"}}


@pytest.mark.parametrize("name", BODIES)
def test_every_decoded_body_fits_the_schema_of_its_kind(name: str) -> None:
    obj = decode(body(name))
    schema = builtin_schema(gvk_of(obj))
    assert schema is not None
    assert schema.clean(obj)[1] == []
    assert schema.type_error(obj) == ""


def envelope(api_version: str, kind: str, raw: bytes, content_type: str = "") -> bytes:
    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    meta = field(1, api_version.encode()) + field(2, kind.encode())
    return b"k8s\0" + field(1, meta) + field(2, raw) + (field(4, content_type.encode()) if content_type else b"")


def test_a_custom_kind_has_no_protobuf_form() -> None:
    with pytest.raises(UnsupportedMediaTypeError, match=r"example.com/v1 Thing has no protobuf form"):
        decode(envelope("example.com/v1", "Thing", b""))


def test_json_inside_the_envelope_is_read() -> None:
    assert decode(envelope("v1", "Pod", b'{"kind":"Pod"}', "application/json")) == {"kind": "Pod"}


def test_negative_numbers_and_times_are_read() -> None:
    ten_bytes = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # -1
    assert decode(envelope("v1", "DeleteOptions", b"\x08" + ten_bytes))["gracePeriodSeconds"] == -1
    time = b"\x08\x80\xc2\xaf\xf0\x05"  # seconds
    metadata = b"\x42" + bytes([len(time)]) + time  # creationTimestamp
    obj = decode(envelope("v1", "Pod", b"\x0a" + bytes([len(metadata)]) + metadata))
    assert obj["metadata"]["creationTimestamp"] == "2020-01-01T00:00:00Z"


@pytest.mark.parametrize("data", [b"", b"{}", b"k8s\0\x0a", b"k8s\0\x0a\xff", b"k8s\0" + b"\xff" * 20])
def test_what_is_no_protobuf_is_a_bad_request(data: bytes) -> None:
    with pytest.raises(BadRequestError):
        decode(data)


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_not_fatal(data: bytes) -> None:
    try:
        decode(envelope("v1", "Pod", data))
    except ApiError:
        pass
