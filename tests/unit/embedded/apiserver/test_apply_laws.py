"""Laws of server-side apply and of strategic merge patches on nested objects, made up and recorded."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shallop.embedded.apiserver.apply import server_side_apply, track_update
from shallop.embedded.apiserver.builtin_types import merge_rule, type_name
from shallop.embedded.apiserver.schema import builtin_schema
from shallop.errors import ConflictError
from shallop.kube.objects import Gvk
from shallop.kube.patch import merge_patch, strategic_merge_patch

GOLDEN = Path(__file__).parents[4] / ".." / "shared" / "fixtures" / "kube" / "golden"
NOW = "2026-01-01T00:00:00Z"
POD = Gvk("v1", "Pod")
_compiled = builtin_schema(POD)
assert _compiled is not None
SCHEMA = _compiled.schema
few = settings(derandomize=True, max_examples=80)

# ---- Pods that managers might apply: maps, lists by one key and by two, sets, and a part that is owned whole

words = st.sampled_from(["1", "2"])
labels = st.dictionaries(st.sampled_from("xyz"), words, max_size=3)
ports = st.lists(
    st.fixed_dictionaries(
        {"containerPort": st.sampled_from([80, 81]), "protocol": st.sampled_from(["TCP", "UDP"])},
        optional={"name": words},
    ),
    unique_by=lambda port: (port["containerPort"], port["protocol"]),
    max_size=3,
)
env = st.lists(st.fixed_dictionaries({"name": st.sampled_from("AB"), "value": words}), unique_by=lambda e: e["name"])
containers = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from("abc")},
        optional={"image": words, "ports": ports, "env": env, "command": st.lists(words, min_size=1, max_size=2)},
    ),
    unique_by=lambda container: container["name"],
    max_size=3,
)
finalizers = st.lists(st.sampled_from(["e.com/1", "e.com/2", "e.com/3"]), unique=True, max_size=3)


@st.composite
def pods(draw: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "p"}
    spec: dict[str, Any] = {}
    parts = [(metadata, "labels", labels), (metadata, "finalizers", finalizers), (spec, "containers", containers)]
    parts += [(spec, "nodeSelector", labels), (spec, "hostname", words)]
    for target, key, values in parts:
        if (value := draw(values)) and draw(st.booleans()):
            target[key] = value
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata} | ({"spec": spec} if spec else {})


def apply(current: Any, applied: Any, manager: str, *, force: bool = False) -> Any:
    return server_side_apply(current, applied, manager=manager, force=force, schema=SCHEMA, now=NOW)


def owned(obj: Any, manager: str) -> Any:
    entries = obj["metadata"].get("managedFields") or []
    return next((entry["fieldsV1"] for entry in entries if entry["manager"] == manager), {})


def content(obj: Any) -> Any:
    """The object without its owners and without what is empty: lists of named things and sets in any order."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: plain(item) for key, item in value.items() if key != "managedFields"}
            if "finalizers" in kept:
                kept["finalizers"] = sorted(kept["finalizers"] or ())
            return {key: item for key, item in kept.items() if item not in ({}, [])}
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return sorted((plain(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
        return value

    return plain(obj)


def conflicts(current: Any, applied: Any, manager: str) -> list[str]:
    try:
        apply(current, applied, manager)
    except ConflictError as error:
        assert error.details is not None
        return sorted(cause["field"] for cause in error.details["causes"])
    return []


conditions = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["Ready", 'quo"ted']), "status": words}, optional={"reason": words}),
    unique_by=lambda condition: condition["type"],
    max_size=2,
)
addresses = st.lists(st.fixed_dictionaries({"ip": words}), unique_by=lambda address: address["ip"], max_size=2)
statuses = st.fixed_dictionaries({}, optional={"phase": words, "conditions": conditions, "podIPs": addresses})


@few
@given(pods(), statuses, statuses)
def test_what_a_status_brings_its_writer_is_no_matter_of_who_else_owns_it(pod: Any, before: Any, after: Any) -> None:
    made = track_update(None, pod, manager="one", schema=SCHEMA, now=NOW)
    assume(made["metadata"].get("managedFields") and before != after)
    other = {"manager": "three", "operation": "Update", "apiVersion": "v1", "time": NOW, "fieldsType": "FieldsV1"}
    shared = {**made["metadata"], "managedFields": [*made["metadata"]["managedFields"], other]}
    other["fieldsV1"] = {"f:status": {"f:phase": {}}}
    for metadata in (made["metadata"], shared):
        old = made | {"metadata": metadata, "status": before}
        written = old | {"status": after}
        new = track_update(old, written, manager="two", schema=SCHEMA, subresource="status", now=NOW)
        assert owned(new, "one") == owned(made, "one")
        if metadata is made["metadata"]:
            alone = owned(new, "two")
    assert owned(new, "two") == alone


@few
@given(pods(), statuses, statuses, statuses)
def test_what_its_writer_owns_of_a_status_is_no_matter_of_how_it_came(pod: Any, a: Any, b: Any, c: Any) -> None:
    made = track_update(None, pod, manager="one", schema=SCHEMA, now=NOW)
    assume(made["metadata"].get("managedFields"))
    shown = made["metadata"]["managedFields"][0]

    def write(old: Any, status: Any, manager: str = "two") -> Any:
        new = old | {"status": status}
        return track_update(old, new, manager=manager, schema=SCHEMA, subresource="status", now=NOW)

    short = write(write(write(made, a), b), c)
    # With its entries in another form, and so read as a client's, each write is compared as a whole.
    long = made
    for status in (a, b, c):
        entries = [{**entry, "time": "2025-01-01T00:00:00Z"} for entry in long["metadata"].get("managedFields") or []]
        given = long | {"metadata": {**long["metadata"], "managedFields": entries or [shown]}, "status": status}
        long = track_update(long, given, manager="two", schema=SCHEMA, subresource="status", now=NOW)
    assert owned(short, "two") == owned(long, "two")
    assert owned(short, "one") == owned(long, "one")


@few
@given(pods(), pods())
def test_what_is_owned_may_be_applied_again(first: Any, second: Any) -> None:
    current = apply(apply(None, first, "one"), second, "two", force=True)
    assert apply(current, second, "two") is current


@few
@given(pods(), pods())
def test_a_conflict_is_one_from_either_side(first: Any, second: Any) -> None:
    there = conflicts(apply(None, first, "one"), second, "two")
    back = conflicts(apply(None, second, "two"), first, "one")
    assert there == back


@few
@given(pods(), pods())
def test_managers_that_agree_may_come_in_any_order(first: Any, second: Any) -> None:
    assume(not conflicts(apply(None, first, "one"), second, "two"))
    one_two = apply(apply(None, first, "one"), second, "two")
    two_one = apply(apply(None, second, "two"), first, "one")
    assert content(one_two) == content(two_one)
    for manager in ("one", "two"):
        assert owned(one_two, manager) == owned(two_one, manager)


@few
@given(pods(), pods())
def test_who_forces_owns_what_he_applied_and_nothing_else(first: Any, second: Any) -> None:
    alone = owned(apply(None, second, "two"), "two")
    current = apply(apply(None, first, "one"), second, "two", force=True)
    assert owned(current, "two") == alone
    assert content(apply(current, second, "two")) == content(current)


@few
@given(pods(), pods())
def test_who_withdraws_everything_leaves_what_others_own(first: Any, second: Any) -> None:
    assume(not conflicts(apply(None, first, "one"), second, "two"))
    both = apply(apply(None, first, "one"), second, "two")
    nothing = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    left = apply(both, nothing, "two")
    assert owned(left, "two") == {}
    assert content(left) == content(apply(None, first, "one"))


@few
@given(pods(), pods())
def test_an_update_takes_what_it_changes(first: Any, second: Any) -> None:
    created = apply(None, first, "one")
    written = {**second, "metadata": {**second["metadata"], "managedFields": created["metadata"].get("managedFields")}}
    updated = track_update(created, written, manager="hand", schema=SCHEMA, now=NOW)
    assert content(updated) == content(second)
    # Applying what is there now brings no conflict: whoever agrees may share.
    assert conflicts(updated, second, "one") == []


# ---- patches: the difference of two objects, merged into the first, is the second


def merge_difference(old: Any, new: Any) -> Any:
    """The merge patch from one map to another; neither holds nulls."""
    patch = dict.fromkeys(old.keys() - new.keys())
    for key in new:
        if isinstance(old.get(key), dict) and isinstance(new[key], dict):
            if inner := merge_difference(old[key], new[key]):
                patch[key] = inner
        elif key not in old or old[key] != new[key]:
            patch[key] = new[key]
    return patch


def strategic_difference(old: Any, new: Any, type_: str) -> Any:
    """The strategic patch from one object to another, as kubectl makes it."""
    patch: Any = dict.fromkeys(old.keys() - new.keys())
    for key in new:
        before, after = old.get(key), new[key]
        if before == after:
            continue
        rule = merge_rule(type_, key)
        if isinstance(after, list) and rule.merge and before:
            patch |= list_difference(before, after, key, rule)
        elif isinstance(after, dict) and isinstance(before, dict):
            patch[key] = strategic_difference(before, after, rule.type_name)
        else:
            patch[key] = after
    return patch


def list_difference(old: Any, new: Any, key: str, rule: Any) -> Any:
    order = {f"$setElementOrder/{key}": [{rule.key: item[rule.key]} for item in new] if rule.key else new}
    if not rule.key:
        gone = [item for item in old if item not in new]
        added = [item for item in new if item not in old]
        deleted = {f"$deleteFromPrimitiveList/{key}": gone} if gone else {}
        return order | deleted | ({key: added} if added else {})
    known = {item[rule.key]: item for item in old}
    changes = [{rule.key: name, "$patch": "delete"} for name in known.keys() - {item[rule.key] for item in new}]
    for item in new:
        before = known.get(item[rule.key])
        if before is None:
            changes.append(item)
        elif before != item:
            changes.append({rule.key: item[rule.key]} | strategic_difference(before, item, rule.type_name))
    return order | ({key: changes} if changes else {})


@few
@given(pods(), pods())
def test_a_merged_difference_is_the_other_object(old: Any, new: Any) -> None:
    before = copy.deepcopy(old)
    assert merge_patch(old, merge_difference(old, new)) == new
    assert old == before


def one_protocol(pod: Any) -> Any:
    """Strategic merge knows ports by their number alone: of two with one number only the first stays."""
    pod = copy.deepcopy(pod)
    for container in (pod.get("spec") or {}).get("containers") or ():
        container["ports"] = list({port["containerPort"]: port for port in container.get("ports") or ()}.values())
        if not container["ports"]:
            del container["ports"]
    return pod


@few
@given(pods().map(one_protocol), pods().map(one_protocol))
def test_a_strategic_difference_merged_is_the_other_object(old: Any, new: Any) -> None:
    patch = strategic_difference(old, new, type_name(POD))
    merged = strategic_merge_patch(old, patch, type_name(POD), merge_rule)
    assert content(merged) == content(new)
    again = strategic_merge_patch(merged, patch, type_name(POD), merge_rule)
    assert content(again) == content(merged)


# ---- objects of a real server


def recorded() -> Iterator[Any]:
    """Every object of a built-in kind that a real server has shown, once."""
    seen = set()
    for path in sorted(GOLDEN.glob("*.json")):
        for step in json.loads(path.read_text().replace('"<nodePort>"', "30080")):
            body = (step.get("response") or {}).get("body")
            items = body.get("items") or [body] if isinstance(body, dict) else []
            for obj in items:
                kind = (obj.get("apiVersion"), obj.get("kind")) if isinstance(obj, dict) else (None, None)
                if not all(kind) or not (obj.get("metadata") or {}).get("name"):
                    continue
                text = json.dumps(obj, sort_keys=True)
                if builtin_schema(Gvk(*kind)) is not None and text not in seen:
                    seen.add(text)
                    yield obj


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded answers (../shared/fixtures/kube) are not here")
def test_recorded_objects_keep_the_laws() -> None:
    count = 0
    for obj in recorded():
        gvk = Gvk(obj["apiVersion"], obj["kind"])
        compiled = builtin_schema(gvk)
        assert compiled is not None
        live = copy.deepcopy(obj)
        # The recording gave all owners the same uid.
        live["metadata"] = {k: v for k, v in live["metadata"].items() if k not in ("managedFields", "ownerReferences")}
        mine = compiled.clean({key: value for key, value in live.items() if key != "status"})[0]
        created = track_update(None, live, manager="creator", schema=compiled.schema, now=NOW)
        assert track_update(created, dict(created), manager="other", schema=compiled.schema, now=NOW) == created
        applied = server_side_apply(created, mine, manager="m", force=False, schema=compiled.schema, now=NOW)
        assert content(applied) == content(created), gvk
        again = server_side_apply(applied, mine, manager="m", force=False, schema=compiled.schema, now=NOW)
        assert again is applied, gvk
        count += 1
    assert count > 200
