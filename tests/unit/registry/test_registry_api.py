"""The registry's REST rules: identity, parents, upsert, patch, paging, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Call = Callable[..., Any]
TEXT = {"metadataType": "MetadataStringValue", "string_value": "x"}


def make_model(call: Call, name: str = "flights", **fields: Any) -> Any:
    answer = call("POST", "registered_models", {"name": name, **fields})
    assert answer.status == 201, answer.body
    return answer.json


def make_version(call: Call, model: Any, name: str = "1", **fields: Any) -> Any:
    answer = call("POST", "model_versions", {"name": name, "registeredModelId": model["id"], **fields})
    assert answer.status == 201, answer.body
    return answer.json


def test_a_created_model_has_an_id_times_and_the_default_state(call: Call) -> None:
    model = make_model(call, owner="team", language=["en"], customProperties={"a": TEXT})
    assert model == {
        "id": "1",
        "name": "flights",
        "state": "LIVE",
        "owner": "team",
        "language": ["en"],
        "customProperties": {"a": TEXT},
        "createTimeSinceEpoch": "1767312000000",
        "lastUpdateTimeSinceEpoch": "1767312000000",
    }
    assert call("GET", "registered_models/1").json == model
    assert call("GET", "registered_model", name="flights").json == model


@pytest.mark.parametrize("version", ["v1", "v1alpha3"])
def test_both_versions_serve_the_same_rows(call: Call, version: str) -> None:
    make_model(call)
    answer = call("GET", "registered_models", version=version)
    assert [item["name"] for item in answer.json["items"]] == ["flights"]
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"
    assert answer.headers.get("deprecation") == ("true" if version == "v1alpha3" else None)


def test_an_unknown_field_is_refused_with_the_text_that_clients_compare(call: Call) -> None:
    answer = call("POST", "registered_models", {"name": "m", "ext_id": "1"})
    assert (answer.status, answer.json) == (400, {"code": "Bad Request", "message": 'json: unknown field "ext_id"'})


def test_a_missing_name_is_unprocessable(call: Call) -> None:
    answer = call("POST", "registered_models", {})
    assert answer.status == 422
    assert answer.json == {"code": "Bad Request", "message": "required field 'name' is zero value."}


def test_a_second_model_of_the_same_name_conflicts(call: Call) -> None:
    make_model(call)
    answer = call("POST", "registered_models", {"name": "flights"})
    assert answer.status == 409
    assert answer.json == {
        "code": "Conflict",
        "message": "registered model with name flights already exists: conflict",
    }


def test_external_ids_are_unique_across_all_contexts(call: Call) -> None:
    model = make_model(call, externalId="e1")
    body = {"name": "1", "registeredModelId": model["id"], "externalId": "e1"}
    assert call("POST", "model_versions", body).status == 409
    assert call("GET", "registered_model", externalId="e1").json["id"] == model["id"]


def test_version_names_are_unique_within_their_model_only(call: Call) -> None:
    first, second = make_model(call, "a"), make_model(call, "b")
    make_version(call, first, "1")
    version = make_version(call, second, "1")
    assert call("POST", f"registered_models/{first['id']}/versions", {"name": "1"}).status == 409
    found = call("GET", "model_version", name="1", parentResourceId=second["id"])
    assert found.json == version
    assert [item["id"] for item in call("GET", f"registered_models/{second['id']}/versions").json["items"]] == [
        version["id"]
    ]


def test_a_version_of_no_model_is_not_found(call: Call) -> None:
    answer = call("POST", "model_versions", {"name": "1", "registeredModelId": "99"})
    assert answer.status == 404
    assert "not found" in answer.json["message"]


def test_a_version_name_of_250_characters_works_and_255_fails(call: Call) -> None:
    model = make_model(call)
    make_version(call, model, "x" * 250)
    assert call("POST", "model_versions", {"name": "x" * 255, "registeredModelId": model["id"]}).status == 400


def test_names_may_hold_colons_and_wildcards(call: Call) -> None:
    make_model(call, "a_b")
    model = make_model(call, "a:b%")
    make_model(call, "axb")
    assert call("GET", "registered_model", name="a:b%").json == model
    assert call("GET", "registered_model", name="a_b").status == 200


def test_find_without_parameters_is_a_bad_request_and_without_match_not_found(call: Call) -> None:
    assert call("GET", "registered_model").status == 400
    assert call("GET", "model_version", name="1").status == 400
    missing = call("GET", "registered_model", name="nope")
    assert missing.status == 404
    assert missing.json["message"].endswith(": not found")


def test_a_patch_changes_what_it_gives_and_nothing_else(call: Call) -> None:
    model = make_model(call, state="ARCHIVED", owner="a", customProperties={"a": TEXT})
    changed = call("PATCH", "registered_models/1", {"owner": "b", "description": None}).json
    assert changed["lastUpdateTimeSinceEpoch"] > model["lastUpdateTimeSinceEpoch"]
    assert changed == model | {"owner": "b", "lastUpdateTimeSinceEpoch": changed["lastUpdateTimeSinceEpoch"]}
    assert call("PATCH", "registered_models/1", {"customProperties": {}}).json["customProperties"] == {}


def test_a_patch_of_the_name_is_an_unknown_field(call: Call) -> None:
    make_model(call)
    answer = call("PATCH", "registered_models/1", {"name": "other"})
    assert (answer.status, answer.json["message"]) == (400, 'json: unknown field "name"')


def test_an_unknown_enum_value_is_refused(call: Call) -> None:
    answer = call("POST", "registered_models", {"name": "m", "state": "DEAD"})
    assert (answer.status, answer.json["message"]) == (400, "state: 'DEAD' is not one of LIVE, ARCHIVED")


def test_artifacts_of_a_version_are_created_with_a_state_and_a_name(call: Call) -> None:
    version = make_version(call, make_model(call))
    path = f"model_versions/{version['id']}/artifacts"
    created = call("POST", path, {"artifactType": "model-artifact", "uri": "/models/a", "unknown": 1})
    assert created.status == 201
    artifact = created.json
    assert (artifact["artifactType"], artifact["uri"], artifact["state"]) == ("model-artifact", "/models/a", "UNKNOWN")
    assert artifact["name"]
    assert call("GET", f"model_artifacts/{artifact['id']}").json == artifact
    assert call("GET", f"artifacts/{artifact['id']}").json == artifact
    assert call("GET", path).json["items"] == [artifact]
    assert call("GET", path, artifactType="doc-artifact").json["items"] == []


def test_an_artifact_with_an_id_is_updated_and_linked_to_a_second_parent(call: Call) -> None:
    model = make_model(call)
    first, second = make_version(call, model, "1"), make_version(call, model, "2")
    body = {"artifactType": "model-artifact", "name": "m", "uri": "/a"}
    artifact = call("POST", f"model_versions/{first['id']}/artifacts", body).json
    again = call("POST", f"model_versions/{second['id']}/artifacts", {**artifact, "uri": "/b"})
    assert (again.status, again.json["id"], again.json["uri"]) == (200, artifact["id"], "/b")
    for version in (first, second):
        items = call("GET", f"model_versions/{version['id']}/artifacts").json["items"]
        assert [item["uri"] for item in items] == ["/b"]


def test_a_model_artifact_of_a_known_name_conflicts(call: Call) -> None:
    version = make_version(call, make_model(call))
    body = {"artifactType": "model-artifact", "name": "m", "uri": "/a"}
    path = f"model_versions/{version['id']}/artifacts"
    assert [call("POST", path, body).status for _ in range(2)] == [201, 409]


def test_a_metric_of_a_known_name_is_updated_and_steps_differ_by_version(call: Call) -> None:
    version = make_version(call, make_model(call))
    path = f"model_versions/{version['id']}/artifacts"
    body = {"artifactType": "metric", "name": "auc", "value": 0.7, "step": 3}
    first = call("POST", path, body)
    second = call("POST", path, {**body, "value": 0.8})
    assert (first.status, second.status) == (201, 200)
    assert second.json["id"] == first.json["id"]
    assert (second.json["value"], second.json["step"]) == (0.8, "3")
    assert call("GET", path, version="v1alpha3").json["items"][0]["step"] == 3


@pytest.mark.parametrize(
    "body",
    [{"uri": "x"}, {"artifactType": "thing"}, {"artifactType": "metric", "name": "m"}],
    ids=["no type", "unknown type", "metric without value"],
)
def test_an_artifact_without_what_its_type_needs_is_refused(call: Call, body: Any) -> None:
    assert call("POST", "artifacts", body).status == 400


def test_the_type_of_an_artifact_cannot_change(call: Call) -> None:
    artifact = call("POST", "artifacts", {"artifactType": "doc-artifact", "uri": "a"}).json
    answer = call("PATCH", f"artifacts/{artifact['id']}", {"artifactType": "model-artifact"})
    assert answer.status == 400
    assert "doc-artifact" in answer.json["message"]
    assert "model-artifact" in answer.json["message"]


def test_an_artifact_of_no_version_is_not_found(call: Call) -> None:
    answer = call("POST", "model_versions/9/artifacts", {"artifactType": "doc-artifact"})
    assert answer.status == 404
    assert "not found" in answer.json["message"]


def test_serving_records_name_the_model_and_the_version_served(call: Call) -> None:
    model = make_model(call)
    make_version(call, model, "1")
    newest = make_version(call, model, "2")
    environment = call("POST", "serving_environments", {"name": "default"}).json
    path = f"serving_environments/{environment['id']}/inference_services"
    service = call("POST", path, {"name": "flights", "registeredModelId": model["id"]}).json
    assert (service["servingEnvironmentId"], service["desiredState"]) == (environment["id"], "DEPLOYED")
    base = f"inference_services/{service['id']}"
    assert call("GET", f"{base}/model").json["id"] == model["id"]
    assert call("GET", f"{base}/version").json["id"] == newest["id"]
    serve = call("POST", f"{base}/serves", {"modelVersionId": newest["id"]})
    assert (serve.status, serve.json["lastKnownState"]) == (201, "UNKNOWN")
    assert call("GET", f"{base}/serves").json["items"] == [serve.json]


def test_pages_follow_each_other_and_the_last_has_an_empty_token(call: Call) -> None:
    for number in range(21):
        make_model(call, f"m{number}")
    names, token, pages = [], "", 0
    while True:
        page = call("GET", "registered_models", pageSize=10, nextPageToken=token).json
        names += [item["name"] for item in page["items"]]
        assert (page["pageSize"], page["size"]) == (10, len(page["items"]))
        pages += 1
        token = page["nextPageToken"]
        if not token:
            break
    assert (pages, names) == (3, [f"m{number}" for number in range(21)])
    everything = call("GET", "registered_models").json
    assert (everything["pageSize"], everything["size"], everything["nextPageToken"]) == (0, 21, "")


def test_order_by_update_time_follows_updates_made_in_one_millisecond(call: Call) -> None:
    for name in "abc":
        make_model(call, name)
    for id_ in (2, 1, 3):
        call("PATCH", f"registered_models/{id_}", {"description": "x"})
    listed = call("GET", "registered_models", orderBy="LAST_UPDATE_TIME", sortOrder="DESC", pageSize=2).json
    rest = call(
        "GET",
        "registered_models",
        orderBy="LAST_UPDATE_TIME",
        sortOrder="DESC",
        pageSize=2,
        nextPageToken=listed["nextPageToken"],
    ).json
    assert [item["name"] for item in listed["items"] + rest["items"]] == ["c", "a", "b"]


@pytest.mark.parametrize(
    "query",
    [{"pageSize": "x"}, {"pageSize": "-1"}, {"nextPageToken": "!"}, {"nextPageToken": "eA=="}, {"filterQuery": "a ="}],
)
def test_a_bad_list_parameter_is_a_bad_request(call: Call, query: dict[str, str]) -> None:
    assert call("GET", "registered_models", **query).status == 400


def test_unknown_order_falls_back_silently(call: Call) -> None:
    assert call("GET", "registered_models", orderBy="COLOUR", sortOrder="UP").status == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"name": "a\\u0000"}', b'{"name": "a\0"}', b'{"name": 1}', b""])
def test_a_body_that_is_no_good_is_a_bad_request(call: Call, body: bytes) -> None:
    assert call("POST", "registered_models", body).status == 400


def test_a_nul_in_a_query_is_a_bad_request(call: Call) -> None:
    assert call("GET", "registered_model", name="a\0").status == 400


def test_an_id_that_is_no_number_is_a_bad_request(call: Call) -> None:
    answer = call("GET", "registered_models/abc")
    assert answer.status == 400
    assert answer.json["message"].startswith("invalid registered model ID: ")


def test_unknown_paths_and_methods_answer_as_upstream(call: Call) -> None:
    unknown = call("GET", "nothing")
    assert (unknown.status, unknown.body) == (404, b"404 page not found")
    wrong = call("DELETE", "registered_models/1")
    assert (wrong.status, wrong.body) == (405, b"")


def test_health_is_answered_at_the_root_and_below_the_versions(call: Call) -> None:
    for path in ("/readyz/isDirty", "/readyz/health", "/api/model_registry/v1/readyz/health"):
        answer = call("GET", path)
        assert (answer.status, answer.body) == (200, b"OK")
    assert call("GET", "/readyz/health", format="json").json["status"] == "pass"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", "customProperties.p: expected an object with metadataType, got text"),
        ({"string_value": "x"}, "customProperties.p.metadataType: None is not one of"),
        ({"metadataType": "MetadataIntValue", "int_value": "x"}, "customProperties.p.int_value: expected a whole"),
        ({"metadataType": "MetadataProtoValue"}, "customProperties.p.metadataType: 'MetadataProtoValue' is not"),
        ({"metadataType": "MetadataStructValue", "struct_value": "{}"}, "customProperties.p.struct_value: expected"),
        ({"metadataType": "MetadataBoolValue", "bool_value": True, "x": 1}, 'json: unknown field "x"'),
    ],
)
def test_a_bad_custom_property_is_refused_with_its_path(call: Call, value: Any, message: str) -> None:
    answer = call("POST", "registered_models", {"name": "m", "customProperties": {"p": value}})
    assert answer.status == 400
    assert answer.json["message"].startswith(message)


def test_custom_properties_of_every_type_round_trip(call: Call) -> None:
    properties = {
        "label": {"metadataType": "MetadataStringValue", "string_value": ""},
        "int": {"metadataType": "MetadataIntValue", "int_value": "7"},
        "double": {"metadataType": "MetadataDoubleValue", "double_value": 0.5},
        "bool": {"metadataType": "MetadataBoolValue", "bool_value": False},
        "struct": {"metadataType": "MetadataStructValue", "struct_value": "eyJhIjogMX0="},
    }
    model = make_model(call, customProperties=properties)
    assert call("GET", f"registered_models/{model['id']}").json["customProperties"] == properties
    again = call("PATCH", f"registered_models/{model['id']}", {"customProperties": model["customProperties"]})
    assert again.json["customProperties"] == properties
