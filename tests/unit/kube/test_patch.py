"""Patches: laws as properties, details against the recorded answers of a real API server."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.errors import ApiError, BadRequestError, InvalidError
from shallop.kube.patch import FieldMerge, json_patch, merge_patch, strategic_merge_patch

GOLDEN = Path(__file__).parents[3] / ".." / "shared" / "fixtures" / "kube" / "golden"
GONE = "the server rejected our request due to an error in our request"

RULES = {
    ("Pod", "containers"): FieldMerge("Container", True, "name"),
    ("Pod", "volumes"): FieldMerge("Volume", True, "name"),
    ("Pod", "finalizers"): FieldMerge("string", True, ""),
    ("Pod", "spec"): FieldMerge("Pod"),
    ("Container", "env"): FieldMerge("Env", True, "name"),
    ("Container", "ports"): FieldMerge("Port", True, "containerPort"),
}


def lookup(type_name: str, field: str) -> FieldMerge:
    return RULES.get((type_name, field), FieldMerge())


def strategic(obj: dict[str, Any], patch: Any) -> dict[str, Any]:
    before = copy.deepcopy((obj, patch))
    result = strategic_merge_patch(obj, patch, "Pod", lookup)
    assert (obj, patch) == before, "an input was changed"
    return result


# ---- laws

scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab$~/", max_size=3)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
)
objects = st.dictionaries(st.text("abc", max_size=2), values, max_size=4)
maps_without_lists = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=3),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
)
plain_maps = st.dictionaries(st.text("abc", min_size=1, max_size=2), maps_without_lists, max_size=4)
plain_patches = st.dictionaries(st.text("abc", min_size=1, max_size=2), maps_without_lists | st.none(), max_size=4)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


@given(objects, objects)
def test_a_merge_patch_applied_twice_is_applied_once(obj: dict[str, Any], patch: dict[str, Any]) -> None:
    once = merge_patch(obj, patch)
    assert merge_patch(once, patch) == once


@given(objects)
def test_merging_the_empty_patch_changes_nothing(obj: dict[str, Any]) -> None:
    assert merge_patch(obj, {}) == obj


@given(objects, objects)
def test_merging_never_changes_its_inputs(obj: dict[str, Any], patch: dict[str, Any]) -> None:
    before = copy.deepcopy((obj, patch))
    merge_patch(obj, patch)
    assert (obj, patch) == before


@given(objects, objects)
def test_what_a_merge_patch_sets_is_there_afterwards(obj: dict[str, Any], patch: dict[str, Any]) -> None:
    result = merge_patch(obj, patch)
    for key, value in patch.items():
        if value is None:
            assert key not in result
        elif not isinstance(value, dict):
            assert result[key] == value


@given(plain_maps, plain_patches)
def test_without_directives_and_lists_a_strategic_patch_is_a_merge_patch(
    obj: dict[str, Any], patch: dict[str, Any]
) -> None:
    assert strategic(obj, patch) == merge_patch(obj, patch)


@given(st.lists(st.sampled_from("abcd"), unique=True), st.lists(st.sampled_from("abcd"), unique=True))
def test_a_merging_list_holds_the_union_of_both_and_merging_again_changes_nothing(
    old: list[str], new: list[str]
) -> None:
    obj = {"containers": [{"name": name, "image": "old"} for name in old]}
    patch = {"containers": [{"name": name, "image": "new"} for name in new]}
    result = strategic(obj, patch)
    images = {item["name"]: item["image"] for item in result["containers"]}
    assert images == {name: "new" if name in new else "old" for name in {*old, *new}}
    assert strategic(result, patch) == result


@given(st.permutations("abc"), st.permutations("abc"))
def test_an_order_that_names_all_items_is_obeyed(old: list[str], order: list[str]) -> None:
    obj = {"containers": [{"name": name} for name in old]}
    patch = {"$setElementOrder/containers": [{"name": name} for name in order]}
    assert [item["name"] for item in strategic(obj, patch)["containers"]] == list(order)


@given(objects, st.text("abc", min_size=1, max_size=2), values)
def test_add_then_remove_of_a_new_key_is_nothing(obj: dict[str, Any], key: str, value: Any) -> None:
    key = f"new-{key}"
    operations = [{"op": "add", "path": f"/{key}", "value": value}, {"op": "remove", "path": f"/{key}"}]
    assert json_patch(obj, operations) == obj


@given(objects)
def test_a_json_patch_never_changes_its_input(obj: dict[str, Any]) -> None:
    before = copy.deepcopy(obj)
    json_patch(obj, [{"op": "add", "path": "/x", "value": 1}, {"op": "copy", "from": "", "path": "/y"}])
    assert obj == before


directives = st.sampled_from(
    [
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/finalizers",
        "containers",
        "env",
        "finalizers",
        "name",
        "ports",
    ]
)
wild = st.recursive(
    scalars | st.sampled_from(["replace", "delete", "merge"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(directives, inner, max_size=3),
)


@given(wild, wild)
def test_any_strategic_patch_is_applied_or_refused(obj: Any, patch: Any) -> None:
    try:
        strategic(obj if isinstance(obj, dict) else {}, patch)
    except ApiError:
        pass


pointers = st.text("/a01~-", max_size=5) | scalars
operations = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]) | scalars, "path": pointers},
    optional={"value": values, "from": pointers},
)


@given(objects, st.lists(operations, max_size=3))
def test_any_json_patch_is_applied_or_refused(obj: dict[str, Any], patch: Any) -> None:
    try:
        json_patch(obj, patch)
    except ApiError:
        pass


# ---- JSON patch


def test_unchanged_parts_are_shared() -> None:
    obj = {"a": {"x": 1}, "b": {"y": 1}}
    assert merge_patch(obj, {"b": {"y": 2}})["a"] is obj["a"]
    assert json_patch(obj, [{"op": "add", "path": "/b/y", "value": 2}])["a"] is obj["a"]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "add", "path": "/l/1", "value": 9}, {"l": [1, 9, 2], "m": {"k": "v"}}),
        ({"op": "add", "path": "/l/-", "value": 9}, {"l": [1, 2, 9], "m": {"k": "v"}}),
        ({"op": "remove", "path": "/l/0"}, {"l": [2], "m": {"k": "v"}}),
        ({"op": "replace", "path": "/l/0", "value": 9}, {"l": [9, 2], "m": {"k": "v"}}),
        ({"op": "replace", "path": "/m/none", "value": 9}, {"l": [1, 2], "m": {"k": "v", "none": 9}}),
        ({"op": "move", "from": "/m/k", "path": "/k"}, {"l": [1, 2], "m": {}, "k": "v"}),
        ({"op": "copy", "from": "/l", "path": "/m/l"}, {"l": [1, 2], "m": {"k": "v", "l": [1, 2]}}),
        ({"op": "test", "path": "/l", "value": [1, 2]}, {"l": [1, 2], "m": {"k": "v"}}),
        ({"op": "test", "path": "/none", "value": None}, {"l": [1, 2], "m": {"k": "v"}}),
        ({"op": "add", "path": "/m/a~1b~0", "value": 1}, {"l": [1, 2], "m": {"k": "v", "a/b~": 1}}),
        ({"op": "replace", "path": "", "value": {"n": 1}}, {"n": 1}),
    ],
)
def test_an_operation(operation: dict[str, Any], expected: dict[str, Any]) -> None:
    assert json_patch({"l": [1, 2], "m": {"k": "v"}}, [operation]) == expected


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/l", "value": [1]},
        {"op": "test", "path": "/t", "value": 1},
        {"op": "remove", "path": "/none"},
        {"op": "add", "path": "/none/x", "value": 1},
        {"op": "add", "path": "/l/9", "value": 1},
        {"op": "add", "path": "/l/01", "value": 1},
        {"op": "replace", "path": "/l/-1", "value": 1},
        {"op": "add", "path": "l", "value": 1},
        {"op": "add", "value": 1},
        {"op": "frob", "path": "/l"},
        {"op": "move", "from": "/m", "path": "/m/x"},
        {"op": "remove", "path": ""},
        {},
    ],
)
def test_an_operation_that_cannot_be_applied_refuses_the_patch(operation: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match=GONE):
        json_patch({"l": [1, 2], "m": {"k": "v"}, "t": True}, [operation])


@pytest.mark.parametrize("body", [{"op": "add"}, "x", [1], None])
def test_a_json_patch_that_is_no_list_of_operations_is_a_bad_request(body: Any) -> None:
    with pytest.raises(BadRequestError):
        json_patch({}, body)


@pytest.mark.parametrize("body", [[], "x", 1, None])
def test_a_merge_patch_that_is_no_map_is_a_bad_request(body: Any) -> None:
    with pytest.raises(BadRequestError, match="must be an object"):
        merge_patch({}, body)
    with pytest.raises(BadRequestError, match="must be an object"):
        strategic_merge_patch({}, body, "", lookup)


# ---- Strategic merge patch

POD = {"containers": [{"name": "a", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}, {"name": "b"}]}


def test_nested_lists_merge_by_their_own_keys() -> None:
    patch = {"containers": [{"name": "a", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": None}]}]}
    env = strategic(POD, patch)["containers"][0]["env"]
    assert env == [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C"}]


def test_an_item_is_deleted_by_directive_and_a_missing_one_is_no_error() -> None:
    patch = {"containers": [{"name": "a", "$patch": "delete"}, {"name": "ghost", "$patch": "delete"}]}
    assert strategic(POD, patch) == {"containers": [{"name": "b"}]}


def test_replace_takes_the_list_or_map_of_the_patch() -> None:
    assert strategic(POD, {"containers": [{"name": "n"}, {"$patch": "replace"}]}) == {"containers": [{"name": "n"}]}
    assert strategic({"labels": {"a": "1"}}, {"labels": {"$patch": "replace", "b": "2"}}) == {"labels": {"b": "2"}}
    assert strategic({"labels": {"a": "1"}}, {"labels": {"$patch": "delete"}}) == {"labels": {}}


def test_retain_keys_drops_what_it_does_not_name() -> None:
    obj = {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}
    patch = {"volumes": [{"name": "v", "$retainKeys": ["name", "emptyDir"], "emptyDir": {}}]}
    assert strategic(obj, patch) == {"volumes": [{"name": "v", "emptyDir": {}}]}
    with pytest.raises(BadRequestError, match="retainKeys does not name x"):
        strategic({}, {"$retainKeys": ["y"], "x": 1})


def test_scalars_are_added_removed_and_ordered() -> None:
    obj = {"finalizers": ["a", "b"]}
    assert strategic(obj, {"finalizers": ["c"]}) == {"finalizers": ["c", "a", "b"]}
    assert strategic(obj, {"$deleteFromPrimitiveList/finalizers": ["a"]}) == {"finalizers": ["b"]}
    patch = {"$setElementOrder/finalizers": ["c", "b"], "finalizers": ["c"]}
    assert strategic(obj, patch) == {"finalizers": ["c", "a", "b"]}


def test_a_list_without_a_rule_is_replaced() -> None:
    assert strategic({"args": ["x"]}, {"args": ["y"]}) == {"args": ["y"]}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"containers": [{"image": "x"}]}, "does not contain declared merge key: name"),
        ({"containers": [{"name": "a", "$patch": "frob"}]}, "unknown patch type: frob"),
        ({"$patch": "frob"}, "unknown patch type: frob"),
        (
            {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "n"}]},
            "doesn't match \\$setElementOrder",
        ),
    ],
)
def test_a_patch_that_contradicts_itself_says_so(patch: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        strategic(POD, patch)


# ---- recorded answers

SERVER_SIDE = {  # the server itself, not the patch, decides these
    *("volume-two-sources", "strategy-rolling", "strategy-conflict", "selector-immutable", "stale-rv", "cr-strategic"),
    *("pod-status-on-main", "merge-wrong-type", "merge-invalid", "merge-remove-name", "merge-remove-uid", "json-add"),
    *("json-array-append-forbidden", "merge-list-replaces"),
}
DEFAULTED = {
    *("defaultMode", "imagePullPolicy", "resources", "terminationMessagePath", "terminationMessagePolicy", "protocol"),
    *("apiVersion", "lastProbeTime", "targetPort", "securityContext", "generation", "replicas", "name"),
}


@pytest.mark.parametrize("topic", ["patch_strategic", "patch_merge_json"])
def test_recorded_patches_have_the_recorded_results(topic: str) -> None:
    builtin_types = pytest.importorskip("shallop.embedded.apiserver.builtin_types")
    if not GOLDEN.is_dir():
        pytest.skip("../shared is absent")
    stored: dict[str, Any] = {}
    compared = 0
    for step in json.loads((GOLDEN / f"{topic}.json").read_text()):
        request, response = step["request"], step["response"]
        path = request["path"].removesuffix("/status")
        if request["method"] == "POST" and response["status"] == 201:
            stored[f"{path}/{response['body']['metadata']['name']}"] = response["body"]
        elif request["method"] == "GET" and response["status"] == 200:
            stored.setdefault(path, response["body"])
        elif request["method"] == "PATCH" and step["name"] in SERVER_SIDE:
            if response["status"] == 200:
                stored[path] = response["body"]
        elif request["method"] == "PATCH" and path in stored:
            old = stored[path]
            kind = builtin_types.type_name(builtin_types.Gvk(old["apiVersion"], old["kind"]))
            try:
                new = patched(old, request, kind, builtin_types.merge_rule)
            except ApiError as error:
                assert response["status"] in (error.code, 500), step["name"]
                continue
            assert response["status"] == 200, step["name"]
            assert list(differences(new, response["body"])) == [], step["name"]
            stored[path] = response["body"]
            compared += 1
    assert compared > 10


def patched(old: dict[str, Any], request: dict[str, Any], kind: str, rule: Any) -> dict[str, Any]:
    content_type = request["headers"]["Content-Type"]
    if "strategic" in content_type:
        return strategic_merge_patch(old, request["body"], kind, rule)
    if "json-patch" in content_type:
        return json_patch(old, request["body"])
    return merge_patch(old, request["body"])


def differences(ours: Any, real: Any, path: str = "") -> Any:
    if isinstance(ours, dict) and isinstance(real, dict):
        for key in (ours | real).keys() - {"resourceVersion", "generation"}:
            if key not in real or (key not in ours and key not in DEFAULTED):
                yield f"{path}.{key}"
            elif key in ours:
                yield from differences(ours[key], real[key], f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(real, list) and len(ours) == len(real):
        for index, pair in enumerate(zip(ours, real, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif ours != real:
        yield f"{path}: {ours} != {real}"
