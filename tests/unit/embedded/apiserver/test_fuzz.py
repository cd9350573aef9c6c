"""Requests made at random from the schema of every resource: whatever comes in, no answer is a defect of ours (5xx)."""

import json
import random
from typing import Any
from urllib.parse import quote

import pytest

from shallop.embedded.apiserver.resources import Registry, Resource
from shallop.embedded.apiserver.schema import Schema

STRINGS = (
    *(
        "",
        "a",
        "web",
        "1",
        "-1",
        "500m",
        "1Gi",
        "10%",
        "Always",
        "TCP",
        "v1",
        "apps/v1",
        "true",
        "2020-01-01T00:00:00Z",
    ),
    *("é", "a/b", "../x", "A_B", "x" * 300, "\u0000", "null", "{}", "aGk=", "*", "ClusterIP", "None", "=", "a=b,c"),
)
NUMBERS = (0, 1, -1, 3, 80, 65536, 2**31, 2**63, -(2**63), 1.5, 1e30)
QUERIES = (
    *("dryRun=All", "dryRun=x", "fieldManager=f", "fieldManager=%00", "force=true", "fieldValidation=Strict"),
    *("limit=1", "limit=-1", "limit=x", "continue=x", "continue=eyJ2IjoiIn0", "resourceVersion=0", "resourceVersion=1"),
    *("resourceVersion=abc", "resourceVersionMatch=Exact", "labelSelector=a in (b,c)", "labelSelector=!!"),
    *("fieldSelector=metadata.name=a", "fieldSelector=x=y", "fieldSelector=\\", "timeoutSeconds=1", "pretty=true"),
    *("propagationPolicy=Orphan", "propagationPolicy=x", "gracePeriodSeconds=0", "gracePeriodSeconds=-5"),
    *("includeObject=None", "labelSelector=,"),
)
PATCHES = ("merge-patch+json", "strategic-merge-patch+json", "json-patch+json", "apply-patch+yaml")
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
ACCEPTS = ("application/json", "application/yaml", TABLE, "x/y", "", "*/*;q=0.1")
OFTEN = ("Pod", "Deployment", "Service", "Job", "CustomResourceDefinition")
STREAMS = ("exec", "attach", "portforward", "proxy", "log")
PARTLY = 0.5


def any_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return rng.choice(STRINGS)
    if kind < 5:
        return (rng.choice(NUMBERS), None, rng.random() < PARTLY)[kind - 2]
    if kind == 5:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(STRINGS): any_value(rng, depth + 1) for _ in range(rng.randrange(3))}


def value_of(rng: random.Random, schema: Schema, wrong: float, depth: int = 0) -> Any:
    """A value as a schema wants it, here and there not."""
    if rng.random() < wrong or depth > 9:
        return any_value(rng)
    if schema.type == "object" or schema.properties:
        chosen = [name for name in schema.properties if rng.random() < (0.9 if depth == 0 else 0.3)]
        found = {name: value_of(rng, schema.properties[name], wrong, depth + 1) for name in chosen}
        if schema.additional is not None:
            keys = [rng.choice(STRINGS) for _ in range(rng.randrange(3))]
            found |= {key: value_of(rng, schema.additional, wrong, depth + 1) for key in keys}
        return found
    if schema.type == "array" and schema.items is not None:
        return [value_of(rng, schema.items, wrong, depth + 1) for _ in range(rng.randrange(1, 3))]
    if schema.type in ("integer", "number"):
        return rng.choice((0, 1, 2, 5, 80, *NUMBERS[-3:]))
    if schema.type == "boolean":
        return rng.random() < PARTLY
    return rng.choice(STRINGS)


def body_of(rng: random.Random, resource: Resource) -> Any:
    wrong = rng.choice((0.0, 0.0, 0.02, 0.1))
    schema = resource.schema
    body = value_of(rng, schema.schema, wrong) if schema is not None else any_value(rng)
    if isinstance(body, dict) and rng.random() < 0.95:
        body |= {"apiVersion": resource.api_version, "kind": resource.kind}
        metadata = {"name": rng.choice(("a", "b", "web.example.com", "1"))}
        if rng.random() < 0.2 and isinstance(body.get("metadata"), dict):
            metadata = body["metadata"] | metadata
        body["metadata"] = metadata
    return body


def pointer_patch(rng: random.Random) -> Any:
    paths = ("", "/metadata/labels/x", "/spec", "/spec/containers/0", "/spec/replicas", "/~", "/status", "x")
    operations = ("add", "remove", "replace", "move", "copy", "test", "jump")
    return [
        {"op": rng.choice(operations), "path": rng.choice(paths), "from": rng.choice(paths), "value": any_value(rng)}
        for _ in range(rng.randrange(1, 4))
    ]


def request_of(rng: random.Random, resource: Resource) -> tuple[str, str, Any, list[tuple[str, str]]]:
    """Method, path with query, body and headers of one request."""
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else "/api/v1"
    if resource.namespaced:
        base += f"/namespaces/{rng.choice(('default', 'default', 'default', 'gone', 'A'))}"
    path = f"{base}/{resource.plural}"
    method = rng.choice(("POST", "POST", "POST", "GET", "PUT", "PATCH", "PATCH", "DELETE", "GET", "OPTIONS"))
    if method in ("PUT", "PATCH") or (method in ("GET", "DELETE") and rng.random() < PARTLY):
        path += "/" + quote(rng.choice(("a", "b", "web.example.com", "%", "..", "x" * 300)), safe="")
        subresources = [sub.name for sub in resource.subresources if sub.name not in STREAMS]
        if subresources and rng.random() < 0.3:
            path += f"/{rng.choice(subresources)}"
    queries = rng.sample(QUERIES, rng.choice((0, 0, 1, 2)))
    headers = [("accept", rng.choice(ACCEPTS))] if rng.random() < 0.3 else []
    body: Any = body_of(rng, resource) if method in ("POST", "PUT", "PATCH") else None
    if method == "PATCH":
        type_ = rng.choice(PATCHES)
        headers.append(("content-type", f"application/{type_}"))
        if type_ == "json-patch+json" and rng.random() < 0.9:
            body = pointer_patch(rng)
    elif method == "DELETE" and rng.random() < 0.3:
        body = {"preconditions": any_value(rng), "propagationPolicy": rng.choice(STRINGS), "dryRun": any_value(rng)}
    query = "&".join(quote(text, safe="=%") for text in queries)
    return method, f"{path}?{query}", body, headers


async def hunt(http: Any, rng: random.Random, resources: list[Resource], count: int) -> list[str]:
    found = []
    for _ in range(count):
        resource = rng.choice(resources)
        method, path, body, headers = request_of(rng, resource)
        raw = json.dumps(body).encode() if body is not None else b""
        if rng.random() < 0.02:
            raw = raw[: rng.randrange(len(raw) + 1)]
        answer = await http(method, path, raw, headers=headers)
        if answer.status >= 500 and answer.status not in (503, 504):
            found.append(f"{method} {path} {headers} {raw.decode()[:1500]} -> {answer.status} {answer.body}")
    return found


def custom_resource_definition() -> dict[str, Any]:
    set_of_strings = {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}
    spec = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0},
            "s": {"type": "string", "pattern": "^[a-z]*$", "default": "d"},
            "l": set_of_strings,
        },
        "x-kubernetes-validations": [{"rule": "!has(self.n) || self.n < 100"}],
    }
    status = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [version],
        },
    }


@pytest.mark.parametrize("seed", range(3))
def test_no_request_makes_the_server_fail(api: Any, seed: int) -> None:
    async def test(http: Any) -> None:
        crd = custom_resource_definition()
        await http("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        registry: Registry = http.server.registry
        resources = [resource for resource in registry.all() if resource.kind != "Namespace"]
        resources += [resource for resource in resources if resource.custom or resource.kind in OFTEN] * 4
        found = await hunt(http, random.Random(seed), resources, 400)
        assert not found, "\n".join(found)

    api(test)
