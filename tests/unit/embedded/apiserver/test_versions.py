"""Several versions of one custom resource: one stored, all read and written."""

import asyncio
from typing import Any

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MERGE = [("content-type", "application/merge-patch+json")]


def version(name: str, *, storage: bool = False, **properties: Any) -> dict[str, Any]:
    spec = {"type": "object", "properties": properties}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    return {"name": name, "served": True, "storage": storage, "schema": schema}


def crd(*versions: dict[str, Any], **spec: Any) -> dict[str, Any]:
    names = {"plural": "boats", "kind": "Boat"}
    body = {"group": "h.example.com", "scope": "Namespaced", "names": names, "versions": list(versions), **spec}
    kind = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    return kind | {"metadata": {"name": "boats.h.example.com"}, "spec": body}


async def served(http: Any, path: str) -> None:
    async with asyncio.timeout(10):
        while (await http("GET", path)).status != 200:
            await asyncio.sleep(0.01)


def boats(name: str) -> str:
    return f"/apis/h.example.com/{name}/namespaces/default/boats"


NUMBER, TEXT = {"type": "integer"}, {"type": "string", "default": "sloop"}


def test_each_version_shows_its_fields_and_one_is_stored(api: Any) -> None:
    async def test(http: Any) -> None:
        both = crd(version("v1", storage=True, sails=NUMBER, hull=TEXT), version("v1beta1", sails=NUMBER))
        assert (await http("POST", CRDS, both)).status == 201
        await served(http, boats("v1beta1"))
        old = {"apiVersion": "h.example.com/v1beta1", "kind": "Boat", "metadata": {"name": "a"}, "spec": {"sails": 2}}
        made = await http("POST", boats("v1beta1"), old)
        assert (made.status, made.body["apiVersion"], made.body["spec"]) == (201, old["apiVersion"], {"sails": 2})
        new = (await http("GET", f"{boats('v1')}/a")).body
        assert (new["apiVersion"], new["spec"]) == ("h.example.com/v1", {"sails": 2, "hull": "sloop"})
        changed = await http("PATCH", f"{boats('v1')}/a", {"spec": {"hull": "ketch"}}, headers=MERGE)
        assert changed.body["metadata"]["generation"] == 2
        # What the other version does not know survives a write through it where it is stored.
        assert (await http("GET", f"{boats('v1beta1')}/a")).body["spec"] == {"sails": 2}
        listed = (await http("GET", boats("v1beta1"))).body
        assert [item["apiVersion"] for item in listed["items"]] == [old["apiVersion"]]
        assert listed["apiVersion"] == old["apiVersion"]

    api(test)


def test_the_stored_version_moves_and_objects_stay(api: Any) -> None:
    async def test(http: Any) -> None:
        await http("POST", CRDS, crd(version("v1beta1", storage=True, sails=NUMBER)))
        await served(http, boats("v1beta1"))
        body = {"apiVersion": "h.example.com/v1beta1", "kind": "Boat", "metadata": {"name": "a"}, "spec": {"sails": 2}}
        await http("POST", boats("v1beta1"), body)
        moved = crd(version("v1", storage=True, sails=NUMBER), version("v1beta1", sails=NUMBER))["spec"]
        patched = await http("PATCH", f"{CRDS}/boats.h.example.com", {"spec": moved}, headers=MERGE)
        assert patched.body["status"]["storedVersions"] == ["v1beta1", "v1"]
        await served(http, boats("v1"))
        for name in ("v1", "v1beta1"):
            assert (await http("GET", f"{boats(name)}/a")).body["spec"] == {"sails": 2}
        gone = {"spec": {"versions": moved["versions"][:1]}}
        refused = await http("PATCH", f"{CRDS}/boats.h.example.com", gone, headers=MERGE)
        assert refused.status == 422 and "previously a storage version" in refused.message

    api(test)


def test_a_conversion_webhook_must_be_one_that_can_be_asked(api: Any) -> None:
    async def test(http: Any) -> None:
        def both(**conversion: Any) -> dict[str, Any]:
            return crd(version("v1", storage=True), version("v1beta1"), conversion=conversion)

        def webhook(url: str, *versions: str) -> dict[str, Any]:
            return {"clientConfig": {"url": url}, "conversionReviewVersions": list(versions)}

        for wrong, field in (
            (both(strategy="Webhook"), "spec.conversion.webhookClientConfig"),
            (both(strategy="Webhook", webhook=webhook("http://a", "v1")), "spec.conversion.webhookClientConfig.url"),
            (both(strategy="Webhook", webhook=webhook("https://a", "v7")), "spec.conversion.conversionReviewVersions"),
            (both(strategy="None", webhook=webhook("https://a", "v1")), "spec.conversion.webhookClientConfig"),
        ):
            refused = await http("POST", CRDS, wrong)
            assert refused.status == 422 and field in [cause["field"] for cause in refused.body["details"]["causes"]]
        service = {"namespace": "default", "name": "hook"}
        hook = {"clientConfig": {"service": service}, "conversionReviewVersions": ["v1"]}
        made = await http("POST", CRDS, both(strategy="Webhook", webhook=hook))
        assert made.body["spec"]["conversion"]["webhook"]["clientConfig"]["service"] == service | {"port": 443}

    api(test)
