"""What is installed into a cluster."""

from __future__ import annotations

import json
from typing import Any

import yaml

from shallop.cluster.install import dump
from shallop.cluster.manifests import Installation, render_crds, render_objects, render_rules

CHOICES = Installation("team", "registry.example/shallop:1", 3)


def rules() -> dict[tuple[str, str], set[str]]:
    return {(r["apiGroups"][0], r["resources"][0]): set(r["verbs"]) for r in render_rules()}


def test_roles_grant_what_the_kinds_declare_and_nothing_else() -> None:
    granted = rules()
    assert granted[("apps", "deployments")] == {"get", "list", "watch", "create", "patch", "delete"}
    assert granted[("", "pods")] == {"get", "list", "watch"}
    assert granted[("serving.kserve.io", "inferenceservices")] == {"get", "list", "watch"}
    assert granted[("serving.kserve.io", "inferenceservices/status")] == {"patch"}
    assert granted[("", "events")] == {"get", "create", "patch"}
    assert granted[("", "secrets")] == {"get"}, "by name only: models name their credentials"
    assert not {("", "pods/exec"), ("coordination.k8s.io", "leases")} & granted.keys()
    everything = [*granted, *granted.values()]
    assert not any("*" in entry for entry in everything)


def test_only_ones_own_lease_can_be_changed() -> None:
    role = next(obj for obj in render_objects(CHOICES) if obj["kind"] == "Role")
    by_verb = {verb: rule.get("resourceNames") for rule in role["rules"] for verb in rule["verbs"]}
    assert by_verb == {"create": None, "get": ["shallop-controllers"], "update": ["shallop-controllers"]}


def test_the_deployment_has_what_the_user_chose_and_no_power_over_its_node() -> None:
    spec = next(obj for obj in render_objects(CHOICES) if obj["kind"] == "Deployment")["spec"]
    pod: dict[str, Any] = spec["template"]["spec"]
    container = pod["containers"][0]
    assert (spec["replicas"], container["image"]) == (3, "registry.example/shallop:1")
    assert "--leader-elect" in container["command"]
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]


def test_what_is_printed_is_what_is_installed() -> None:
    wanted = [*render_crds(), *render_objects(CHOICES)]
    assert list(yaml.safe_load_all(dump(CHOICES, "yaml"))) == wanted
    assert json.loads(dump(CHOICES, "json"))["items"] == wanted
