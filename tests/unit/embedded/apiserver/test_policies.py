"""ValidatingAdmissionPolicy, and what configurations of admission may say."""

from typing import Any

import pytest

from shallop.embedded.apiserver.admission_validation import validate_policy, validate_webhooks

GROUP = "/apis/admissionregistration.k8s.io/v1"
MAPS = "/api/v1/namespaces/default/configmaps"
MERGE = [("content-type", "application/merge-patch+json")]


def policy(*validations: dict[str, Any], **spec: Any) -> dict[str, Any]:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}
    constraints = {"matchConstraints": {"resourceRules": [rule]}}
    body = {"apiVersion": GROUP[6:], "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}}
    return body | {"spec": {**constraints, "validations": list(validations), **spec}}


def binding(**spec: Any) -> dict[str, Any]:
    body = {"apiVersion": GROUP[6:], "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "b"}}
    return body | {"spec": {"policyName": "p", "validationActions": ["Deny"], **spec}}


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def install(http: Any, *bodies: dict[str, Any]) -> None:
    plurals = {"ValidatingAdmissionPolicy": "policies", "ValidatingAdmissionPolicyBinding": "policybindings"}
    for body in bodies:
        answer = await http("POST", f"{GROUP}/validatingadmission{plurals[body['kind']]}", body)
        assert answer.status == 201, answer.body


def test_a_bound_policy_denies_what_it_finds_wrong(api: Any) -> None:
    async def test(http: Any) -> None:
        short = {"expression": "size(object.data) <= 1", "messageExpression": "'has ' + string(variables.n) + ' keys'"}
        variables = [{"name": "n", "expression": "size(object.data)"}]
        rules = policy(short, {"expression": "!('x' in object.data)", "reason": "Forbidden"}, variables=variables)
        await install(http, rules)
        assert (await http("POST", MAPS, config_map("free", a="1", b="2"))).status == 201, "nothing binds it yet"
        await install(http, binding())
        refused = await http("POST", MAPS, config_map("a", a="1", b="2"))
        assert refused.status == 422 and refused.body["reason"] == "Invalid"
        assert refused.message == (
            "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: has 2 keys"
        )
        refused = await http("POST", MAPS, config_map("a", x="1"))
        assert refused.status == 403 and "failed expression: !('x' in object.data)" in refused.message
        assert (await http("POST", MAPS, config_map("a", y="1"))).status == 201
        assert (await http("PATCH", f"{MAPS}/a", {"data": {"z": "1"}}, headers=MERGE)).status == 422
        assert (await http("DELETE", f"{MAPS}/a")).status == 200, "the policy does not look at deletions"

    api(test)


def test_a_policy_may_only_warn(api: Any) -> None:
    async def test(http: Any) -> None:
        await install(http, policy({"expression": "false", "message": "no"}), binding(validationActions=["Warn"]))
        made = await http("POST", MAPS, config_map("a"))
        assert made.status == 201
        assert made.warnings == ["299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': no\""]

    api(test)


def test_parameters_come_from_the_object_that_the_binding_names(api: Any) -> None:
    async def test(http: Any) -> None:
        kind = {"apiVersion": "v1", "kind": "ConfigMap"}
        conditions = [{"name": "not the limits", "expression": "object.metadata.name != 'limits'"}]
        rule = {"expression": "size(object.data) <= int(params.data.most)"}
        reference = {"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"}
        await install(http, policy(rule, paramKind=kind, matchConditions=conditions), binding(paramRef=reference))
        refused = await http("POST", MAPS, config_map("a"))
        assert refused.status == 422 and "no params found" in refused.message
        # The condition is looked at per parameter object: without one, nothing can be let through but by others.
        await http("DELETE", f"{GROUP}/validatingadmissionpolicybindings/b")
        await http("POST", MAPS, config_map("limits", most="1"))
        await install(http, binding(paramRef=reference))
        assert (await http("POST", MAPS, config_map("a", k="1"))).status == 201
        assert (await http("POST", MAPS, config_map("b", k="1", l="2"))).status == 422
        assert (await http("PATCH", f"{MAPS}/limits", {"data": {"most": "2"}}, headers=MERGE)).status == 200
        assert (await http("POST", MAPS, config_map("b", k="1", l="2"))).status == 201

    api(test)


def test_an_expression_that_fails_is_a_no_unless_failures_are_ignored(api: Any) -> None:
    async def test(http: Any) -> None:
        await install(http, policy({"expression": "object.data.missing == 'x'"}), binding())
        refused = await http("POST", MAPS, config_map("a"))
        assert refused.status == 422 and "resulted in error: no such key: missing" in refused.message
        await http(
            "PATCH",
            f"{GROUP}/validatingadmissionpolicies/p",
            {"spec": {"failurePolicy": "Ignore"}},
            headers=MERGE,
        )
        assert (await http("POST", MAPS, config_map("a"))).status == 201

    api(test)


def test_nobody_is_locked_out_by_a_policy_on_policies(api: Any) -> None:
    async def test(http: Any) -> None:
        everything = {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*", "*"]}
        closed = policy({"expression": "false"}, matchConstraints={"resourceRules": [everything]})
        await install(http, closed, binding())
        assert (await http("POST", MAPS, config_map("a"))).status == 422
        assert (await http("DELETE", f"{GROUP}/validatingadmissionpolicybindings/b")).status == 200
        assert (await http("POST", MAPS, config_map("a"))).status == 201

    api(test)


def test_a_policy_must_compile() -> None:
    assert [e.field for e in validate_policy(policy({"expression": "object.x ++"}), None)] == [
        "spec.validations[0].expression"
    ]
    assert [e.field for e in validate_policy(policy({"expression": "1 + 1"}), None)] == [
        "spec.validations[0].expression"
    ]
    assert validate_policy(policy({"expression": "params.x && variables.y"}), None) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "short"}, "name"),
        ({"sideEffects": "Some"}, "sideEffects"),
        ({"sideEffects": None}, "sideEffects"),
        ({"admissionReviewVersions": ["v2"]}, "admissionReviewVersions"),
        ({"timeoutSeconds": 31}, "timeoutSeconds"),
        ({"failurePolicy": "Maybe"}, "failurePolicy"),
        ({"clientConfig": {"url": "http://x/y"}}, "clientConfig.url"),
        ({"clientConfig": {}}, "clientConfig"),
        ({"clientConfig": {"url": "https://x", "caBundle": "eHg="}}, "clientConfig.caBundle"),
        ({"matchConditions": [{"name": "c", "expression": "object."}]}, "matchConditions[0].expression"),
        ({"rules": [{"operations": ["READ"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["x"]}]}, "rules"),
    ],
)
def test_a_webhook_that_cannot_be_called_is_refused(changes: dict[str, Any], field: str) -> None:
    hook = {
        "name": "a.example.com",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://x/y"},
    }
    assert validate_webhooks({"webhooks": [hook]}, None) == []
    (error,) = validate_webhooks({"webhooks": [hook | changes]}, None)
    assert error.field.startswith(f"webhooks[0].{field}")


def test_a_policy_may_ask_what_else_its_user_may_do(api: Any) -> None:
    async def test(http: Any) -> None:
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]}
        role = {"apiVersion": rbac[6:], "kind": "ClusterRole", "metadata": {"name": "writer"}, "rules": [rule]}
        bound = {
            "apiVersion": rbac[6:],
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "writer"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "writer"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
        }
        assert (await http("POST", f"{rbac}/clusterroles", role)).status == 201
        assert (await http("POST", f"{rbac}/clusterrolebindings", bound)).status == 201
        may = "authorizer.group('').resource('secrets').namespace('default').check('create').allowed()"
        itself = (
            "authorizer.requestResource.check('create').allowed() && authorizer.path('/x').check('get').error() == ''"
        )
        other = "!authorizer.serviceAccount('default', 'default').requestResource.check('create').allowed()"
        message = "'no secrets: ' + string(authorizer.group('').resource('secrets').check('get').errored())"
        rules = ({"expression": itself}, {"expression": other}, {"expression": may, "messageExpression": message})
        await install(http, policy(*rules), binding())
        assert (await http("POST", MAPS, config_map("a"))).status == 201
        refused = await http("POST", MAPS, config_map("b"), token="alice")
        assert refused.status == 422 and "denied request: no secrets: false" in refused.message

    api(test)
