"""Server-side apply and managedFields, against laws and against the recorded answers of a real API server."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.apiserver.apply import server_side_apply, track_update, written_part
from shallop.embedded.apiserver.schema import builtin_schema, crd_schema
from shallop.errors import ApiError, BadRequestError, ConflictError
from shallop.kube.objects import Gvk
from shallop.kube.patch import merge_patch

yaml = pytest.importorskip("yaml")
GOLDEN = Path(__file__).parents[4] / ".." / "shared" / "fixtures" / "kube" / "golden"
NOW = "2026-01-01T00:00:00Z"

_compiled = builtin_schema(Gvk("v1", "ConfigMap"))
assert _compiled is not None
CONFIG_MAP = _compiled.schema
_compiled = builtin_schema(Gvk("v1", "Pod"))
assert _compiled is not None
POD = _compiled.schema


def config_map(data: Any, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", **metadata}, "data": data}


def apply(current: Any, applied: Any, manager: str = "m", *, force: bool = False, schema: Any = CONFIG_MAP) -> Any:
    before = copy.deepcopy((current, applied))
    result = server_side_apply(current, applied, manager=manager, force=force, schema=schema, now=NOW)
    assert (current, applied) == before, "an input was changed"
    return result


def update(old: Any, new: Any, manager: str = "u", schema: Any = CONFIG_MAP) -> Any:
    before = copy.deepcopy((old, new))
    result = track_update(old, new, manager=manager, schema=schema, now=NOW)
    assert (old, new) == before, "an input was changed"
    return result


def owners(obj: Any) -> dict[str, Any]:
    return {entry["manager"]: entry["fieldsV1"] for entry in obj["metadata"].get("managedFields", [])}


# ---- recorded answers

# The server around it refuses these, or they are no objects.
NOT_OURS = {
    *("no-manager", "name-mismatch", "no-kind", "no-apiversion", "wrong-kind", "with-rv-stale", "with-uid-on-missing"),
    *("long-manager", "invalid-manager", "force-on-merge", "wrong-version", "bad-yaml", "array"),
}


@pytest.mark.parametrize("topic", ["apply_builtin", "apply_cr"])
def test_recorded_applies_have_the_recorded_results(topic: str) -> None:
    if not GOLDEN.is_dir():
        pytest.skip("../shared is absent")
    compiled = builtin_schema(Gvk("v1", "ConfigMap"))
    stored: dict[str, Any] = {}
    compared = 0
    for step in json.loads((GOLDEN / f"{topic}.json").read_text()):
        request, response = step["request"], step["response"]
        if step["name"] == "crd":
            compiled = crd_schema(request["body"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        if request["method"] not in ("PATCH", "PUT") or step["name"] in NOT_OURS:
            continue
        path = request["path"].removesuffix("/status")
        assert compiled is not None
        try:
            result = replay(request, stored.get(path), compiled, has_status=topic == "apply_cr")
        except ApiError as error:
            assert response["status"] in (error.code, 500), step["name"]
            if response["status"] != 500:
                assert error.message == response["body"]["message"], step["name"]
                assert (error.details or {}).get("causes") == response["body"].get("details", {}).get("causes")
            continue
        expected = response["body"]
        for part in ("data", "spec", "status"):
            assert result.get(part) == expected.get(part), step["name"]
        assert result["metadata"].get("managedFields") == expected["metadata"].get("managedFields"), step["name"]
        stored[path] = expected
        compared += 1
    assert compared > 15


def replay(request: dict[str, Any], old: Any, compiled: Any, *, has_status: bool) -> Any:
    query = request.get("query") or {}
    body = request["body"]
    body = yaml.safe_load(body) if isinstance(body, str) else body
    subresource = "status" if request["path"].endswith("/status") else ""
    common = {"manager": query.get("fieldManager", "golden"), "schema": compiled.schema, "now": "<time>"}
    if "apply" in request["headers"]["Content-Type"]:
        applied = written_part(body, subresource, has_status=has_status)
        force = query.get("force") in ("true", "perhaps")
        return compiled.clean(server_side_apply(old, applied, force=force, subresource=subresource, **common))[0]
    if request["method"] == "PUT":
        kept = {key: value for key, value in old["metadata"].items() if key != "managedFields"}
        new = {**body, "metadata": {**kept, **body["metadata"]}}
        return track_update(old, new, **common)
    return track_update(old, merge_patch(old, body), subresource=subresource, **common)


# ---- laws

data = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("12"), max_size=4)


@given(data, data)
def test_applying_the_same_again_returns_the_same_object(first: dict[str, str], second: dict[str, str]) -> None:
    current = apply(apply(None, config_map(first), "one"), config_map(second), "two", force=True)
    assert apply(current, config_map(second), "two") is current


@given(data, data, data)
def test_after_a_forced_apply_everything_applied_is_there_and_owned(
    first: dict[str, str], second: dict[str, str], third: dict[str, str]
) -> None:
    current = apply(apply(None, config_map(first), "one"), config_map(second), "two", force=True)
    current = apply(current, config_map(third), "one", force=True)
    assert third.items() <= current["data"].items()
    assert set(owners(current)["one"].get("f:data", {})) == {f"f:{key}" for key in third}
    for key in first.keys() - third.keys() - second.keys():
        assert key not in current["data"]
    for key in second.keys() - third.keys():
        assert current["data"][key] == second[key]


@given(data, data)
def test_an_apply_conflicts_exactly_where_another_owns_another_value(
    first: dict[str, str], second: dict[str, str]
) -> None:
    current = apply(None, config_map(first), "one")
    expected = sorted(f".data.{key}" for key in first.keys() & second.keys() if first[key] != second[key])
    try:
        apply(current, config_map(second), "two")
        found = []
    except ConflictError as error:
        assert error.details is not None
        found = sorted(cause["field"] for cause in error.details["causes"])
    assert found == expected


@given(data, data)
def test_every_value_that_an_update_writes_has_one_owner(first: dict[str, str], second: dict[str, str]) -> None:
    created = update(None, config_map(first), "one")
    changed = update(created, {**created, "data": second}, "two")
    owned = owners(changed)
    for key, value in second.items():
        expected = "one" if first.get(key) == value else "two"
        holders = [name for name, fields in owned.items() if f"f:{key}" in fields.get("f:data", {})]
        assert holders == [expected]
    held = {key for fields in owned.values() for key in fields.get("f:data", {}) if key != "."}
    assert held == {f"f:{key}" for key in second}


# ---- details


def test_a_create_is_recorded_as_the_real_server_does() -> None:
    created = update(None, config_map({"a": "1"}, labels={"l": "x"}))
    assert owners(created) == {"u": {"f:data": {".": {}, "f:a": {}}, "f:metadata": {"f:labels": {".": {}, "f:l": {}}}}}


def test_an_update_that_changes_nothing_keeps_the_entries() -> None:
    created = update(None, config_map({"a": "1"}))
    assert update(created, dict(created), "other") == created


def test_one_empty_entry_forgets_all_owners_and_later_updates_record_none() -> None:
    created = update(None, config_map({"a": "1"}))
    reset = update(created, config_map({"a": "2"}, managedFields=[{}]))
    assert owners(reset) == {}
    assert owners(update(reset, config_map({"a": "3"}))) == {}


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [*containers], **spec}}


def test_managers_share_lists_of_named_items() -> None:
    current = apply(None, pod({"name": "a", "image": "x"}), "one", schema=POD)
    current = apply(current, pod({"name": "b", "image": "y"}), "two", schema=POD)
    assert [item["name"] for item in current["spec"]["containers"]] == ["a", "b"]
    current = apply(current, pod({"name": "c", "image": "z"}), "one", schema=POD)
    assert [item["name"] for item in current["spec"]["containers"]] == ["b", "c"]
    assert owners(current)["one"]["f:spec"]["f:containers"] == {
        'k:{"name":"c"}': {".": {}, "f:image": {}, "f:name": {}}
    }


def test_a_key_that_is_left_out_counts_with_its_default() -> None:
    current = apply(None, pod({"name": "a", "ports": [{"containerPort": 80}]}), schema=POD)
    ports = owners(current)["m"]["f:spec"]["f:containers"]['k:{"name":"a"}']["f:ports"]
    assert list(ports) == ['k:{"containerPort":80,"protocol":"TCP"}']
    stored = copy.deepcopy(current)
    stored["spec"]["containers"][0]["ports"][0]["protocol"] = "TCP"
    assert apply(stored, pod({"name": "a", "ports": [{"containerPort": 80}]}), schema=POD) is stored


def test_a_field_that_the_server_filled_in_stays_when_its_neighbour_goes() -> None:
    current = apply(None, pod({"name": "a", "image": "x", "workingDir": "/w"}), schema=POD)
    stored = copy.deepcopy(current)
    stored["spec"]["containers"][0]["imagePullPolicy"] = "Always"
    current = apply(stored, pod({"name": "a", "image": "x"}), schema=POD)
    assert current["spec"]["containers"] == [{"name": "a", "image": "x", "imagePullPolicy": "Always"}]


def test_atomic_parts_have_one_owner() -> None:
    selector = {"nodeSelector": {"a": "1"}}
    current = apply(None, pod({"name": "a"}, **selector), "one", schema=POD)
    with pytest.raises(ConflictError, match=r'conflict with "one": \.spec\.nodeSelector'):
        apply(current, pod({"name": "a"}, nodeSelector={"b": "1"}), "two", schema=POD)


@pytest.mark.parametrize(
    ("applied", "message"),
    [
        (config_map({"a": 1}), r"\(/a; v1, Kind=ConfigMap\): \.data\.a: expected string, got 1"),
        ({**config_map({}), "bogus": 1}, r"\.bogus: field not declared in schema"),
        (config_map({}, managedFields=[{"manager": "x"}]), "managedFields must be nil"),
        (config_map({}, finalizers=["a", "a"]), r"finalizers: duplicate entries for key \[=\"a\"\]"),
        (config_map({}, ownerReferences=[{"name": "x"}]), "omits its key field"),
    ],
)
def test_an_applied_object_that_does_not_fit_is_refused(applied: Any, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        apply(None, applied)


def test_a_status_endpoint_writes_the_status_only() -> None:
    applied = {**config_map({"a": "1"}, labels={"l": "x"}), "status": {"s": 1}}
    assert written_part(applied, "status", has_status=True) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a"},
        "status": {"s": 1},
    }
    assert "status" not in written_part(applied, "", has_status=True)
    assert "status" in written_part(applied, "", has_status=False)
