"""Schemas: pruning, defaults, validation, and what a CRD may declare; recorded answers are the judge."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.apiserver.formats import FORMATS, go_regex, parse_duration
from shallop.embedded.apiserver.schema import builtin_schema, crd_schema
from shallop.embedded.apiserver.structural import check_crd_schema
from shallop.kube.objects import Gvk
from shallop.kube.patch import merge_patch

GOLDEN = Path(__file__).parents[4] / ".." / "shared" / "fixtures" / "kube" / "golden"


def golden(topic: str) -> list[dict[str, Any]]:
    if not GOLDEN.is_dir():
        pytest.skip("../shared is absent")
    steps: list[dict[str, Any]] = json.loads((GOLDEN / f"{topic}.json").read_text())
    return steps


def crd(**properties: Any) -> Any:
    return crd_schema({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})


def thing(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "x/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": spec}


def complaints(schema: Any, obj: Any, old: Any = None) -> list[str]:
    return [f"{error.field}: {error.message}" for error in schema.validate(obj, old)]


# ---- recorded answers

# Checked by the server around the schema: names, kinds, versions.
NOT_SCHEMA = {"wrong-kind", "bad-name", "no-name", "wrong-group", "no-kind", "no-apiversion", "new-rule-active"}


@pytest.mark.parametrize("topic", ["crd_validation", "crd_cel"])
def test_recorded_custom_resources_get_the_recorded_answers(topic: str) -> None:
    steps = golden(topic)
    crd_step = next(step for step in steps if step["name"] == "crd")
    schema = crd_schema(crd_step["request"]["body"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    stored: dict[str, Any] = {}
    compared = 0
    for step in steps:
        request, response = step["request"], step["response"]
        body = request.get("body")
        if "/things" not in request["path"] or not isinstance(body, dict) or step["name"] in NOT_SCHEMA:
            continue
        old = stored.get(request["path"])
        obj, unknown = schema.clean(merge_patch(old, body) if old else body)
        errors = schema.validate(obj, old)
        causes = (response["body"].get("details") or {}).get("causes", [])
        expected = sorted((cause["reason"], cause["message"], cause["field"]) for cause in causes)
        assert sorted(tuple(error) for error in errors) == expected, step["name"]
        warnings = [f'299 - "unknown field \\"{path}\\""' for path in unknown]
        assert warnings == (response.get("warning_headers") or []), step["name"]
        if response["status"] < 300:
            assert obj.get("spec") == response["body"].get("spec"), step["name"]
            if not request.get("query"):
                stored[f"{request['path']}/{obj['metadata']['name']}".replace("/t/t", "/t")] = obj
        compared += 1
    assert compared > 25


@pytest.mark.parametrize("topic", ["crd_lifecycle", "crd_cel", "crd_validation", "apply_cr"])
def test_recorded_definitions_get_the_recorded_answers(topic: str) -> None:
    for step in golden(topic):
        request, response = step["request"], step["response"]
        if request["method"] != "POST" or not request["path"].endswith("/customresourcedefinitions"):
            continue
        if step["name"] == "no-schema":
            continue
        causes = (response["body"].get("details") or {}).get("causes", [])
        expected = [(c["reason"], c["message"], c["field"]) for c in causes if "openAPIV3Schema" in c["field"]]
        found = []
        for version in request["body"]["spec"].get("versions", []):
            found += [tuple(e) for e in check_crd_schema((version.get("schema") or {}).get("openAPIV3Schema", {}))]
        assert found == expected, step["name"]


def test_recorded_built_in_objects_fit_the_table() -> None:
    checked = 0
    for topic in ("defaults_pod", "defaults_workloads", "configmap_crud", "workload_controllers", "rbac_user"):
        for step in golden(topic):
            body = step["response"]["body"]
            if step["response"]["status"] not in (200, 201) or "kind" not in body or "metadata" not in body:
                continue
            schema = builtin_schema(Gvk(body["apiVersion"], body["kind"]))
            if schema is None:
                continue
            text = json.dumps(body).replace("<time>", "2026-01-01T00:00:00Z").replace('"<nodePort>"', "30000")
            body = json.loads(text)
            cleaned, unknown = schema.clean(body)
            assert (unknown, schema.type_error(cleaned)) == ([], ""), step["name"]
            checked += 1
    assert checked > 50


def test_the_definitions_of_the_platforms_kinds_can_be_served() -> None:
    yaml = pytest.importorskip("yaml")
    folder = GOLDEN.parents[2] / "specs" / "trainer" / "manifests" / "crds"
    if not folder.is_dir():
        pytest.skip("../shared is absent")
    for path in sorted(folder.glob("*.yaml"))[:2]:
        for document in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader):
            if document and document.get("kind") == "CustomResourceDefinition":
                for version in document["spec"]["versions"]:
                    assert check_crd_schema(version["schema"]["openAPIV3Schema"]) == []


# ---- cleaning


def test_an_object_without_surprises_is_returned_as_it_is() -> None:
    schema = crd(a={"type": "string"}, items={"type": "array", "items": {"type": "object", "properties": {}}})
    obj = thing(a="x", items=[{}])
    assert schema.clean(obj)[0] is obj


def test_unknown_fields_are_dropped_and_named_with_their_path() -> None:
    item = {"type": "object", "properties": {"k": {"type": "string"}}}
    schema = crd(list={"type": "array", "items": item}, map={"type": "object", "additionalProperties": item})
    obj = thing(list=[{"k": "v"}, {"bad": 1}], map={"m": {"bad": 1}}, other=1)
    before = copy.deepcopy(obj)
    cleaned, unknown = schema.clean(obj)
    assert obj == before
    assert cleaned["spec"] == {"list": [{"k": "v"}, {}], "map": {"m": {}}}
    assert unknown == ["spec.list[1].bad", "spec.map.m.bad", "spec.other"]


def test_unknown_metadata_is_named() -> None:
    obj = thing() | {"metadata": {"name": "t", "bogus": 1}}
    assert crd().clean(obj)[1] == ["metadata.bogus"]


def test_defaults_fill_what_is_absent_or_null_also_inside_defaults() -> None:
    inner = {"type": "object", "default": {}, "properties": {"n": {"type": "integer", "default": 1}}}
    schema = crd(inner=inner, s={"type": "string", "default": "d"}, nullable={"type": "string", "nullable": True})
    cleaned, _ = schema.clean(thing(s=None, nullable=None))
    assert cleaned["spec"] == {"nullable": None, "inner": {"n": 1}, "s": "d"}


def test_whole_numbers_become_integers() -> None:
    cleaned, _ = crd(n={"type": "integer"}).clean(thing(n=2.0))
    assert isinstance(cleaned["spec"]["n"], int)


names = st.text("ab", min_size=1, max_size=2)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
)
NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "default": "x"},
        "b": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer"}}}},
        "ab": {"type": "object", "additionalProperties": {"type": "string"}},
        "ba": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}


@given(st.dictionaries(names, json_values, max_size=4))
def test_cleaning_twice_is_cleaning_once_and_leaves_nothing_unknown(spec: dict[str, Any]) -> None:
    schema = crd_schema({"type": "object", "properties": {"spec": NESTED}})
    obj = thing(**spec)
    before = copy.deepcopy(obj)
    once, _ = schema.clean(obj)
    assert obj == before
    twice, unknown = schema.clean(once)
    assert twice is once
    assert unknown == []


@given(st.dictionaries(names, json_values, max_size=4))
def test_the_fast_answer_and_the_report_agree(spec: dict[str, Any]) -> None:
    schema = crd_schema({"type": "object", "properties": {"spec": NESTED}})
    obj, _ = schema.clean(thing(**spec))
    errors: list[Any] = []
    schema._validator.report(obj, {}, "", errors)
    assert schema._validator.is_valid(obj) is not bool(errors)


# ---- validation


def test_what_did_not_change_is_not_held_against_an_update() -> None:
    schema = crd(s={"type": "string", "maxLength": 2}, t={"type": "string", "maxLength": 2})
    old = thing(s="too long")
    assert complaints(schema, thing(s="too long", t="ok"), old) == []
    assert complaints(schema, thing(s="longer still"), old) == ["spec.s: Too long: may not be more than 2 bytes"]


def test_lists_of_type_map_and_set_are_unique() -> None:
    keyed = {
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["a", "b"],
        "items": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}},
    }
    schema = crd(keyed=keyed, set={"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}})
    assert complaints(schema, thing(keyed=[{"a": "x", "b": 1}, {"a": "x", "b": 2}], set=[1, 2])) == []
    assert complaints(schema, thing(keyed=[{"a": "x", "b": 1}, {"b": 1, "a": "x"}], set=[1, 1])) == [
        'spec.keyed[1]: Duplicate value: {"a":"x","b":1}',
        "spec.set[1]: Duplicate value: 1",
    ]


def test_true_is_no_integer_and_one_is_no_boolean() -> None:
    schema = crd(i={"type": "integer"}, b={"type": "boolean"}, e={"enum": [1]})
    assert len(complaints(schema, thing(i=True, b=1, e=True))) == 3


@pytest.mark.parametrize(("text", "valid"), [("a", True), ("a\n", False), ("b", False), ("1", False), ("é", False)])
def test_patterns_follow_go_not_python(text: str, valid: bool) -> None:
    assert bool(go_regex("^[[:alpha:]]$").search(text) and go_regex("^[^b]$").search(text)) is valid


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h5m", 3900.0), ("1.5s", 1.5), ("-10ms", -0.01), ("0", 0), (".5m", 30)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds * 10**9


@pytest.mark.parametrize("text", ["", "1", "1x", "h", "1h 5m", "--1s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date-time", "2020-01-01T00:00:00.5+01:00", "2020-01-01"),
        ("date", "2020-02-29", "2021-02-29"),
        ("byte", "YQ==", "***"),
        ("ipv4", "1.2.3.4", "1.2.3"),
        ("ipv6", "::1", "1.2.3.4"),
        ("cidr", "10.0.0.0/8", "10.0.0.0"),
        ("uri", "http://a/b", "::"),
        ("email", "a@b", "a"),
        ("uuid", "11111111-1111-1111-1111-111111111111", "1"),
        ("duration", "2 days", "2 dayz"),
        ("hostname", "a.b-c", "-a"),
    ],
)
def test_formats(name: str, good: str, bad: str) -> None:
    assert FORMATS[name](good)
    assert not FORMATS[name](bad)


# ---- built-in kinds


def pod(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


def test_unknown_fields_of_built_in_kinds_are_named() -> None:
    schema = builtin_schema(Gvk("v1", "Pod"))
    assert schema is not None
    obj = pod(containers=[{"name": "a", "imagee": "x"}], volumes=[{"name": "v", "emptyDir": {"x": 1}}], bogus=1)
    assert schema.clean(obj)[1] == ["spec.containers[0].imagee", "spec.volumes[0].emptyDir.x", "spec.bogus"]


def test_a_wrong_type_in_a_built_in_kind_is_named_with_its_path() -> None:
    schema = builtin_schema(Gvk("v1", "Pod"))
    assert schema is not None
    assert schema.type_error(pod(containers=[{"name": "a", "image": True}])).startswith("spec.containers[0].image: ")
    assert (
        schema.type_error(pod(containers=[{"name": "a", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}])) == ""
    )


def test_every_built_in_kind_has_a_schema() -> None:
    for gvk in (Gvk("v1", "Pod"), Gvk("apps/v1", "Deployment"), Gvk("batch/v1", "Job"), Gvk("policy/v1", "Eviction")):
        assert builtin_schema(gvk) is not None
    assert builtin_schema(Gvk("example.com/v1", "Thing")) is None
