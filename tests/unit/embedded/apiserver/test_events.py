"""Events in both of their versions, and who may be written of."""

import asyncio
from typing import Any

import pytest

from shallop.embedded.apiserver import event_retention

CORE, NEW = "/api/v1/namespaces/default/events", "/apis/events.k8s.io/v1/namespaces/default/events"
WHEN = "2024-05-01T10:00:00.000000Z"


def event(name: str = "e", **fields: Any) -> dict[str, Any]:
    regarding = {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "p"}
    body = {
        "metadata": {"name": name},
        "regarding": regarding,
        "eventTime": WHEN,
        "reason": "Started",
        "action": "Start",
        "type": "Normal",
        "note": "it goes",
        "reportingController": "example.com/starter",
        "reportingInstance": "starter-0",
    }
    return body | fields


def test_a_series_is_the_same_in_both_versions(api: Any) -> None:
    async def test(http: Any) -> None:
        assert (await http("POST", NEW, event())).status == 201
        series = {"series": {"count": 3, "lastObservedTime": "2024-05-01T10:05:00.000000Z"}}
        merge = [("content-type", "application/merge-patch+json")]
        patched = await http("PATCH", f"{NEW}/e", series, headers=merge)
        assert patched.status == 200, patched.body
        core = (await http("GET", f"{CORE}/e")).body
        assert core["series"] == series["series"]
        assert (core["involvedObject"]["name"], core["message"], core["eventTime"]) == ("p", "it goes", WHEN)
        assert core["reportingComponent"] == "example.com/starter"
        table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")]
        for path in (CORE, NEW):
            shown = (await http("GET", path, headers=table)).body
            cells = dict(zip((c["name"] for c in shown["columnDefinitions"]), shown["rows"][0]["cells"], strict=True))
            assert (cells["Count"], cells["Source"]) == (3, "example.com/starter, starter-0")
            assert cells["Last Seen"] != cells["First Seen"] or "y" in cells["Last Seen"]

    api(test)


def test_only_the_series_of_a_new_event_changes(api: Any) -> None:
    async def test(http: Any) -> None:
        await http("POST", NEW, event())
        merge = [("content-type", "application/merge-patch+json")]
        refused = await http("PATCH", f"{NEW}/e", {"note": "other", "reason": "Stopped"}, headers=merge)
        assert refused.status == 422
        assert [cause["field"] for cause in refused.body["details"]["causes"]] == ["note", "reason"]

    api(test)


def test_a_new_event_says_who_reports_what_and_when(api: Any) -> None:
    async def test(http: Any) -> None:
        refused = await http("POST", NEW, event(eventTime=None, type="Odd", deprecatedCount=2))
        assert refused.status == 422
        assert [cause["field"] for cause in refused.body["details"]["causes"]] == ["eventTime", "type", "count"]
        refused = await http("POST", NEW, event(action="", reportingController="no good", reason="x" * 129))
        fields = [cause["field"] for cause in refused.body["details"]["causes"]]
        assert fields == ["reportingController", "action", "reason"]

    api(test)


def test_an_event_lives_where_its_object_lives(api: Any) -> None:
    async def test(http: Any) -> None:
        involved = {"apiVersion": "v1", "kind": "Pod", "namespace": "elsewhere", "name": "p"}
        refused = await http("POST", CORE, {"metadata": {"name": "e"}, "involvedObject": involved})
        assert refused.status == 422
        assert refused.message.endswith("does not match event.namespace")
        node = {"apiVersion": "v1", "kind": "Node", "name": "n"}
        written = await http("POST", CORE, {"metadata": {"name": "e"}, "involvedObject": node})
        assert written.status == 201
        assert written.body["eventTime"] is None

    api(test)


def test_a_pod_runs_as_a_service_account_that_exists(api: Any) -> None:
    async def test(http: Any) -> None:
        path = "/api/v1/namespaces/default/pods"
        spec = {"containers": [{"name": "a", "image": "a"}], "serviceAccountName": "bot"}
        pod = {"metadata": {"name": "p"}, "spec": spec}
        refused = await http("POST", path, pod)
        assert refused.status == 403
        why = 'error looking up service account default/bot: serviceaccount "bot" not found'
        assert refused.message == f'pods "p" is forbidden: {why}'
        await http("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "bot"}})
        assert (await http("POST", path, pod)).status == 201

    api(test)


def test_a_patch_that_cannot_be_read_is_shown_as_it_was(api: Any) -> None:
    async def test(http: Any) -> None:
        path = "/api/v1/namespaces/default/configmaps"
        await http("POST", path, {"metadata": {"name": "c"}, "data": {"a": "b"}})
        strategic = [("content-type", "application/strategic-merge-patch+json")]
        refused = await http("PATCH", f"{path}/c?fieldValidation=Strict", {"bogus": [1, None]}, headers=strategic)
        assert refused.status == 422
        shown = 'Invalid value: "map[bogus:[1 <nil>]]": strict decoding error: unknown field "bogus"'
        assert refused.body["details"]["causes"][0]["message"] == shown

    api(test)


async def names_once(http: Any, count: int) -> list[str]:
    async with asyncio.timeout(10):
        while len(items := (await http("GET", CORE)).body["items"]) > count:
            await asyncio.sleep(0)
    return [item["metadata"]["name"] for item in items]


def test_the_oldest_events_go_when_there_are_very_many(monkeypatch: pytest.MonkeyPatch, api: Any) -> None:
    monkeypatch.setattr(event_retention, "MAX_EVENTS", 10)

    async def test(http: Any) -> None:
        for number in range(10):
            assert (await http("POST", NEW, event(f"e{number}"))).status == 201
        merge = [("content-type", "application/merge-patch+json")]
        assert (await http("PATCH", f"{CORE}/e0", {"count": 2}, headers=merge)).status == 200
        assert (await http("POST", NEW, event("last"))).status == 201
        left = await names_once(http, 9)
        assert left == ["e0", "e3", "e4", "e5", "e6", "e7", "e8", "e9", "last"]

    api(test)


def test_events_go_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch, api: Any) -> None:
    monkeypatch.setattr(event_retention, "KEEP_S", 0.0)
    monkeypatch.setattr(event_retention, "_LOOK_S", 0.001)

    async def test(http: Any) -> None:
        assert (await http("POST", NEW, event())).status == 201
        assert await names_once(http, 0) == []

    api(test)
