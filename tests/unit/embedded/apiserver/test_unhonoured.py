"""What is stored without effect is said."""

from __future__ import annotations

from typing import Any

import pytest

from shallop.embedded.apiserver.resources import Registry
from shallop.embedded.apiserver.unhonoured import warnings_of
from shallop.kube.objects import Gvk


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        (Gvk("v1", "Service"), {"type": "ClusterIP", "ports": [{"port": 1}]}, []),
        (Gvk("v1", "Service"), {"sessionAffinity": "ClientIP"}, ["spec.sessionAffinity: ClientIP"]),
        (Gvk("v1", "Service"), {"type": "NodePort"}, ["spec.type: NodePort"]),
        (Gvk("v1", "Service"), {"ports": [{"port": 1, "protocol": "UDP"}]}, ["spec.ports[0].protocol: UDP"]),
        (Gvk("networking.k8s.io/v1", "Ingress"), {}, ["an Ingress"]),
        (Gvk("networking.k8s.io/v1", "NetworkPolicy"), {}, ["a NetworkPolicy"]),
        (Gvk("v1", "ConfigMap"), {}, []),
    ],
)
def test_fields_without_effect_are_named(kind: Gvk, spec: dict[str, Any], said: list[str]) -> None:
    resource = Registry().by_gvk(kind)
    assert resource is not None
    assert [text.split(" has no effect")[0] for text in warnings_of(resource, {"spec": spec})] == said
