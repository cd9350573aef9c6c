"""MutatingAdmissionPolicies of users: expressions that change what is written."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shallop.embedded.apiserver import ApiServer
from shallop.embedded.apiserver.client import LocalClient
from shallop.errors import ApiError, InvalidError
from shallop.kube.objects import Gvk

Test = Callable[[LocalClient], Awaitable[None]]
POD, CONFIG_MAP = Gvk("v1", "Pod"), Gvk("v1", "ConfigMap")
API = "admissionregistration.k8s.io/v1"


def run(test: Test) -> None:
    async def inside() -> None:
        server = ApiServer(None, admin_token="t")
        await server.start()
        try:
            await test(server.client())
        finally:
            await server.stop()

    asyncio.run(inside())


def merging(expression: str) -> dict[str, Any]:
    return {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}


def patching(expression: str) -> dict[str, Any]:
    return {"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}


def policy(name: str, *mutations: dict[str, Any], resource: str = "pods", **spec: Any) -> dict[str, Any]:
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": [resource],
    }
    return {
        "apiVersion": API,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "mutations": list(mutations),
            "reinvocationPolicy": "Never",
            **spec,
        },
    }


def binding(name: str, **spec: Any) -> dict[str, Any]:
    kind = {"apiVersion": API, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name}}
    return kind | {"spec": {"policyName": name, **spec}}


async def bind(client: LocalClient, wanted: dict[str, Any], **spec: Any) -> None:
    await client.create(wanted)
    await client.create(binding(wanted["metadata"]["name"], **spec))


def pod(name: str, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "labels": labels}
    spec = {"containers": [{"name": "main", "image": "a/b:1"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": data}


SIDECAR = """
Object{
  spec: Object.spec{
    initContainers: [Object.spec.initContainers{
      name: "mesh", image: variables.image, restartPolicy: "Always",
      ?terminationMessagePath: optional.none(),
    }]
  }
}
"""


def test_a_configuration_is_merged_as_an_apply_would() -> None:
    async def test(client: LocalClient) -> None:
        variables = [{"name": "image", "expression": '"mesh/" + object.metadata.name'}]
        conditions = [{"name": "once", "expression": 'object.metadata.name != "plain"'}]
        await bind(client, policy("mesh", merging(SIDECAR), variables=variables, matchConditions=conditions))
        made = await client.create(pod("web"))
        assert [(c["name"], c["image"], c["restartPolicy"]) for c in made["spec"]["initContainers"]] == [
            ("mesh", "mesh/web", "Always")
        ]
        assert made["spec"]["initContainers"][0]["imagePullPolicy"] == "Always", "defaults come after it"
        assert [c["name"] for c in made["spec"]["containers"]] == ["main"]
        assert "initContainers" not in (await client.create(pod("plain")))["spec"]

    run(test)


def test_a_json_patch_is_applied_to_what_the_mutation_before_left() -> None:
    async def test(client: LocalClient) -> None:
        first = patching('[JSONPatch{op: "add", path: "/data/first", value: "1"}]')
        second = patching(
            "has(object.data.first) ? [JSONPatch{op: 'add', path: '/metadata/labels', value: {}}, "
            "JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a.b/keys'), "
            "value: string(size(object.data))}, "
            "JSONPatch{op: 'copy', from: '/data/first', path: '/data/copy'}] : []"
        )
        await bind(client, policy("twice", first, second, resource="configmaps"))
        made = await client.create(config_map("a", own="x"))
        assert made["data"] == {"own": "x", "first": "1", "copy": "1"}
        assert made["metadata"]["labels"] == {"a.b/keys": "2"}

    run(test)


def test_parameters_and_later_rounds() -> None:
    async def test(client: LocalClient) -> None:
        kind = {"apiVersion": "v1", "kind": "ConfigMap"}
        team = merging("Object{metadata: Object.metadata{labels: {'team': params.data.team}}}")
        await bind(
            client,
            policy("team", team, paramKind=kind),
            paramRef={"name": "team", "namespace": "default", "parameterNotFoundAction": "Deny"},
        )
        with pytest.raises(ApiError, match="no params found for policy binding"):
            await client.create(pod("early"))
        await client.create(config_map("team", team="blue"))
        assert (await client.create(pod("a")))["metadata"]["labels"] == {"team": "blue"}
        # A policy that comes first sees what later ones did when it asks for it.
        counting = merging(
            "Object{metadata: Object.metadata{annotations: {'n': string(size(object.metadata.labels))}}}"
        )
        await bind(client, policy("a-counter", counting, reinvocationPolicy="IfNeeded"))
        assert (await client.create(pod("b", own="x")))["metadata"]["annotations"] == {"n": "2"}

    run(test)


def test_what_cannot_be_evaluated_is_refused_or_passed_by() -> None:
    async def test(client: LocalClient) -> None:
        wrong = merging("Object{metadata: Object.metadata{labels: {'x': object.metadata.labels.nothing}}}")
        await bind(client, policy("strict", wrong))
        with pytest.raises(ApiError) as refused:
            await client.create(pod("a", own="x"))
        said = "MutatingAdmissionPolicy 'strict' with binding 'strict' denied request: expression"
        assert said in refused.value.message and "no such key: nothing" in refused.value.message
        await client.delete(Gvk(API, "MutatingAdmissionPolicy"), "strict")
        await bind(client, policy("lenient", wrong, failurePolicy="Ignore"))
        assert (await client.create(pod("a", own="x")))["metadata"]["labels"] == {"own": "x"}
        atomic = merging(
            "Object{spec: Object.spec{containers: [Object.spec.containers{name: 'main', command: ['a']}]}}"
        )
        await bind(client, policy("atomic", atomic))
        with pytest.raises(ApiError, match="may not mutate atomic arrays, maps or structs"):
            await client.create(pod("b"))

    run(test)


@pytest.mark.parametrize(
    ("mutation", "message"),
    [
        (merging("Object{spec: Object.status{}}"), 'unexpected type name "Object.status", expected "Object.spec"'),
        (merging("{'a': 1}"), "must evaluate to Object"),
        (merging("[JSONPatch{op: 'add'}]"), "undeclared reference to 'JSONPatch'"),
        (patching("Object{}"), "must evaluate to list(JSONPatch)"),
        (merging("Object{spec"), "Syntax error"),
        (merging(" "), "expression is not specified"),
        ({"patchType": "Else"}, "supported values"),
    ],
)
def test_a_mutation_that_cannot_be_one_is_refused(mutation: dict[str, Any], message: str) -> None:
    async def test(client: LocalClient) -> None:
        with pytest.raises(InvalidError) as refused:
            await client.create(policy("p", mutation))
        assert message in refused.value.message

    run(test)


def test_policies_and_bindings_are_listed_with_what_matters(api: Any) -> None:
    group = "/apis/admissionregistration.k8s.io/v1"

    async def rows(http: Any, plural: str) -> list[list[Any]]:
        table = "application/json;as=Table;v=v1;g=meta.k8s.io"
        listed = (await http("GET", f"{group}/{plural}", headers=[("accept", table)])).body
        return [[c["name"] for c in listed["columnDefinitions"]], *(row["cells"][:-1] for row in listed["rows"])]

    async def test(http: Any) -> None:
        kind = {"apiVersion": "v1", "kind": "ConfigMap"}
        wanted = policy("p", merging("Object{}"), patching("[]"), paramKind=kind)
        assert (await http("POST", f"{group}/mutatingadmissionpolicies", wanted)).status == 201
        bound = binding("p", paramRef={"name": "c", "namespace": "n", "parameterNotFoundAction": "Deny"})
        assert (await http("POST", f"{group}/mutatingadmissionpolicybindings", bound)).status == 201
        assert await rows(http, "mutatingadmissionpolicies") == [
            ["Name", "Mutations", "ParamKind", "Age"],
            ["p", 2, "v1/ConfigMap"],
        ]
        assert await rows(http, "mutatingadmissionpolicybindings") == [
            ["Name", "PolicyName", "ParamRef", "Age"],
            ["p", "p", "n/c"],
        ]

    api(test)
