"""OpenAPI documents: what kubectl looks for in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shallop.embedded.apiserver import builtin_types
from shallop.embedded.apiserver.descriptions import DESCRIPTIONS
from shallop.embedded.apiserver.openapi import Served, render_document, render_index
from shallop.embedded.apiserver.schema import builtin_schema, crd_schema
from shallop.kube.objects import Gvk

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
PREFIX = "#/components/schemas/"


def served(api_version: str, kind: str, plural: str, *, namespaced: bool = True, schema: Any = None) -> Served:
    gvk = Gvk(api_version, kind)
    compiled = schema or builtin_schema(gvk)
    assert compiled is not None
    return Served(gvk, plural, namespaced, VERBS, compiled.schema, ("status",))


def document(api_version: str, *resources: Served) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(render_document(api_version, resources).body)
    return parsed


def test_every_write_says_that_the_server_validates_fields() -> None:
    paths = document("apps/v1", served("apps/v1", "Deployment", "deployments"))["paths"]
    item = paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]
    collection = paths["/apis/apps/v1/namespaces/{namespace}/deployments"]
    for operation in (item["put"], item["patch"], collection["post"]):
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert {"dryRun", "fieldManager", "fieldValidation"} <= names
        assert operation["x-kubernetes-group-version-kind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert item["patch"]["x-kubernetes-action"] == "patch"
    assert "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status" in paths


def test_cluster_scoped_core_types_have_short_paths() -> None:
    paths = document("v1", served("v1", "Namespace", "namespaces", namespaced=False))["paths"]
    assert set(paths["/api/v1/namespaces/{name}"]) == {"get", "put", "patch", "delete"}


def test_verbs_that_are_not_served_are_not_offered() -> None:
    review = served("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", namespaced=False)
    paths = document("authorization.k8s.io/v1", review._replace(verbs=("create",), subresources=()))["paths"]
    assert {path: list(operations) for path, operations in paths.items()} == {
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": ["post"]
    }


def test_a_path_of_explain_leads_through_the_references() -> None:
    schemas = document("v1", served("v1", "Pod", "pods"))["components"]["schemas"]
    pod = schemas["io.k8s.api.core.v1.Pod"]
    assert pod["x-kubernetes-group-version-kind"] == [{"group": "", "version": "v1", "kind": "Pod"}]
    spec = schemas[pod["properties"]["spec"]["allOf"][0]["$ref"].removeprefix(PREFIX)]
    containers = spec["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name"
    assert containers["x-kubernetes-list-map-keys"] == ["name"]
    assert containers["description"]
    container = schemas[containers["items"]["$ref"].removeprefix(PREFIX)]
    assert container["properties"]["args"]["items"] == {"type": "string"}
    assert container["required"] == ["name"]


@pytest.mark.parametrize("api_version", sorted({gvk.api_version for gvk in builtin_types.kinds()}))
def test_every_reference_is_there_and_documents_are_small(api_version: str) -> None:
    kinds = [gvk.kind for gvk in builtin_types.kinds() if gvk.api_version == api_version]
    rendered = render_document(api_version, [served(api_version, kind, kind.lower()) for kind in kinds])
    schemas = json.loads(rendered.body)["components"]["schemas"]
    for reference in references(schemas):
        assert reference.removeprefix(PREFIX) in schemas
    assert len(rendered.body) < 180_000


def references(value: Any) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_a_custom_kind_keeps_its_keywords_and_gets_metadata() -> None:
    schema = crd_schema(
        {
            "type": "object",
            "description": "A thing.",
            "properties": {
                "spec": {
                    "type": "object",
                    "required": ["n"],
                    "properties": {"n": {"type": "integer", "minimum": 1, "description": "How many."}},
                }
            },
        }
    )
    schemas = document("example.com/v1", served("example.com/v1", "Thing", "things", schema=schema))["components"][
        "schemas"
    ]
    thing = schemas["com.example.v1.Thing"]
    assert thing["description"] == "A thing."
    assert thing["properties"]["spec"]["properties"]["n"] == {
        "type": "integer",
        "minimum": 1,
        "description": "How many.",
    }
    assert thing["properties"]["spec"]["required"] == ["n"]
    assert "ObjectMeta" in thing["properties"]["metadata"]["allOf"][0]["$ref"]


def test_the_index_names_documents_with_their_hash() -> None:
    pods = render_document("v1", [served("v1", "Pod", "pods")])
    deployments = render_document("apps/v1", [served("apps/v1", "Deployment", "deployments")])
    index = json.loads(render_index({"v1": pods, "apps/v1": deployments}))
    assert index["paths"] == {
        "api/v1": {"serverRelativeURL": f"/openapi/v3/api/v1?hash={pods.hash}"},
        "apis/apps/v1": {"serverRelativeURL": f"/openapi/v3/apis/apps/v1?hash={deployments.hash}"},
    }
    assert render_document("v1", [served("v1", "Pod", "pods")]).hash == pods.hash


def test_descriptions_name_fields_that_exist() -> None:
    for message, texts in DESCRIPTIONS.items():
        assert builtin_types.is_message(message), message
        assert texts.keys() - {""} <= builtin_types.fields(message).keys(), message


def test_version_2_has_all_of_version_3_in_one_document(api: Any) -> None:
    async def test(http: Any) -> None:
        answer = await http("GET", "/openapi/v2", headers=[("accept", "application/json")])
        assert answer.status == 200
        document = answer.body
        assert document["swagger"] == "2.0"
        known = {f"#/definitions/{name}" for name in document["definitions"]}
        assert set(references(document)) <= known
        pod = document["definitions"]["io.k8s.api.core.v1.Pod"]
        assert pod["x-kubernetes-group-version-kind"] == [{"group": "", "version": "v1", "kind": "Pod"}]
        assert pod["properties"]["spec"]["$ref"] == "#/definitions/io.k8s.api.core.v1.PodSpec"
        containers = document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
        assert (containers["type"], containers["x-kubernetes-patch-merge-key"]) == ("array", "name")
        path = document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]
        assert {parameter["name"] for parameter in path["parameters"]} == {"namespace", "name"}
        assert "fieldValidation" in {parameter["name"] for parameter in path["patch"]["parameters"]}
        assert path["put"]["parameters"][-1]["schema"] == {"$ref": "#/definitions/io.k8s.api.core.v1.Pod"}
        assert not {"oneOf", "anyOf", "allOf"} & {key for value in document["definitions"].values() for key in value}

    api(test)
