"""Roles and bindings decide: defaults, aggregation, escalation, acting as others."""

import asyncio
from typing import Any

import pytest

from shallop.embedded.apiserver.escalation import uncovered_rules
from shallop.embedded.apiserver.impersonation import impersonated
from shallop.embedded.apiserver.requests import ADMIN, account_groups

RBAC = "/apis/rbac.authorization.k8s.io/v1"
PODS = "/api/v1/namespaces/default/pods"


def role(name: str, *rules: dict[str, Any], kind: str = "Role", **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": RBAC[6:], "kind": kind, "metadata": metadata, "rules": list(rules)}


def rule(verbs: str, resources: str, group: str = "") -> dict[str, Any]:
    return {"verbs": verbs.split(), "apiGroups": [group], "resources": resources.split()}


def binding(name: str, user: str, to: str, kind: str = "RoleBinding", role_kind: str = "ClusterRole") -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": RBAC[6:],
        "kind": kind,
        "metadata": {"name": name},
        "subjects": [{"kind": "User", "name": user, "apiGroup": group}],
        "roleRef": {"kind": role_kind, "name": to, "apiGroup": group},
    }


async def until(check: Any) -> Any:
    async with asyncio.timeout(30):
        while not (found := await check()):
            await asyncio.sleep(0.005)
    return found


def test_without_a_binding_only_discovery_and_questions_are_answered(api: Any) -> None:
    async def test(http: Any) -> None:
        for path in ("/api", "/apis/apps/v1", "/openapi/v3", "/version", "/healthz"):
            assert (await http("GET", path, token="alice")).status == 200, path
        assert (await http("GET", PODS, token="alice")).status == 403
        assert (await http("GET", "/metrics", token="alice")).status == 403
        refused = await http("GET", "/api/v1/namespaces/default", token="alice")
        assert refused.message.endswith('cannot get resource "namespaces" in API group "" in the namespace "default"')
        assert (await http("GET", "/api", token=None)).status == 403
        assert (await http("GET", "/version", token=None)).status == 200

    api(test)


def test_the_default_roles_are_view_edit_and_admin(api: Any) -> None:
    async def test(http: Any) -> None:
        bindings = f"{RBAC}/namespaces/default/rolebindings"

        async def may(verb: str, resource: str, group: str = "") -> bool:
            attributes = {"namespace": "default", "verb": verb, "resource": resource, "group": group}
            body = {"apiVersion": "authorization.k8s.io/v1", "spec": {"resourceAttributes": attributes}}
            path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
            answer = await http("POST", path, body | {"kind": "SelfSubjectAccessReview"}, token="alice")
            return bool(answer.body["status"]["allowed"])

        await http("POST", bindings, binding("b", "alice", "view"))
        assert await may("list", "pods")
        assert not await may("create", "pods") and not await may("get", "secrets")
        await http("DELETE", f"{bindings}/b")
        assert not await may("list", "pods")
        await http("POST", bindings, binding("b", "alice", "edit"))
        assert await may("create", "deployments", "apps") and await may("get", "secrets")
        assert not await may("create", "roles", RBAC[6:-3])
        await http("DELETE", f"{bindings}/b")
        await http("POST", bindings, binding("b", "alice", "admin"))
        assert await may("create", "roles", RBAC[6:-3]) and not await may("create", "resourcequotas")

    api(test)


def test_a_labelled_role_extends_the_role_that_selects_it(api: Any) -> None:
    async def test(http: Any) -> None:
        label = {"rbac.authorization.k8s.io/aggregate-to-view": "true"}
        await http(
            "POST", f"{RBAC}/clusterroles", role("x", rule("get", "widgets", "x.io"), kind="ClusterRole", **label)
        )

        async def extended(name: str = "view") -> bool:
            rules = (await http("GET", f"{RBAC}/clusterroles/{name}")).body.get("rules") or []
            return rule("get", "widgets", "x.io") in rules

        await until(extended)
        assert await extended("edit") and await extended("admin")
        await http("DELETE", f"{RBAC}/clusterroles/x")

        async def reduced() -> bool:
            return not await extended()

        await until(reduced)

    api(test)


def test_nobody_grants_what_he_does_not_have(api: Any) -> None:
    async def test(http: Any) -> None:
        roles, bindings = (f"{RBAC}/namespaces/default/{plural}" for plural in ("roles", "rolebindings"))
        group = RBAC[6:-3]
        own = role("own", rule("get list create update patch", "roles rolebindings", group), rule("get", "pods"))
        await http("POST", roles, own)
        await http("POST", bindings, binding("own", "alice", "own", role_kind="Role"))
        # What alice has, she may pass on; more, in no way.
        assert (await http("POST", roles, role("r", rule("get", "pods")), token="alice")).status == 201
        more = role("r", rule("get list", "pods"), rule("*", "*", "*"))
        refused = await http("PUT", f"{roles}/r", more, token="alice")
        assert refused.status == 403
        assert "attempting to grant RBAC permissions not currently held" in refused.message
        assert '{APIGroups:[""], Resources:["pods"], Verbs:["list"]}' in refused.message
        refused = await http(
            "PATCH",
            f"{roles}/r?fieldManager=a&force=true",
            more,
            token="alice",
            headers=[("content-type", "application/apply-patch+yaml")],
        )
        assert refused.status == 403
        for to in ("cluster-admin", "edit"):
            assert (await http("POST", bindings, binding("up", "alice", to), token="alice")).status == 403
        assert (
            await http("POST", bindings, binding("same", "bob", "r", role_kind="Role"), token="alice")
        ).status == 201
        gone = await http("POST", bindings, binding("up", "alice", "nothing"), token="alice")
        assert gone.status == 404
        # A write that grants nothing new is allowed although alice lacks the rules.
        await http("POST", roles, role("strong", rule("*", "*", "*")))
        labelled = role("strong", rule("*", "*", "*"), note="x")
        assert (await http("PUT", f"{roles}/strong", labelled, token="alice")).status == 200
        await http("PUT", f"{roles}/own", own | {"rules": [*own["rules"], rule("bind escalate", "roles", group)]})
        assert (await http("PUT", f"{roles}/r", more, token="alice")).status == 200
        assert (
            await http("POST", bindings, binding("b", "bob", "strong", role_kind="Role"), token="alice")
        ).status == 201

    api(test)


def test_an_apply_that_creates_needs_the_right_to_create(api: Any) -> None:
    async def test(http: Any) -> None:
        await http("POST", f"{RBAC}/namespaces/default/roles", role("p", rule("patch get", "configmaps")))
        await http("POST", f"{RBAC}/namespaces/default/rolebindings", binding("p", "alice", "p", role_kind="Role"))
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "v"}}
        path = "/api/v1/namespaces/default/configmaps/c?fieldManager=a"
        headers = [("content-type", "application/apply-patch+yaml")]
        assert (await http("PATCH", path, body, token="alice", headers=headers)).status == 403
        assert (await http("PATCH", path, body, headers=headers)).status == 201
        assert (await http("PATCH", path, body | {"data": {}}, token="alice", headers=headers)).status == 200

    api(test)


def test_acting_as_others_needs_the_right_for_each_part(api: Any) -> None:
    async def test(http: Any) -> None:
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        question = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        as_bob = [("Impersonate-User", "bob")]
        who = (await http("POST", path, question, headers=as_bob)).body["status"]["userInfo"]
        assert who == {"username": "bob", "groups": ["system:authenticated"]}
        headers = [*as_bob, ("Impersonate-Group", "a"), ("Impersonate-Group", "b"), ("Impersonate-Extra-Team%2fx", "y")]
        who = (await http("POST", path, question, headers=headers)).body["status"]["userInfo"]
        assert who["groups"] == ["a", "b", "system:authenticated"] and who["extra"] == {"team/x": ["y"]}
        account = [("Impersonate-User", "system:serviceaccount:default:default")]
        who = (await http("POST", path, question, headers=account)).body["status"]["userInfo"]
        assert who["groups"] == ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]
        assert (await http("GET", PODS, headers=as_bob)).status == 403, "the rights are bob's"
        assert (await http("POST", path, question, headers=[("Impersonate-Group", "a")])).status == 400
        refused = await http("POST", path, question, token="alice", headers=as_bob)
        assert refused.status == 403 and 'cannot impersonate resource "users"' in refused.message
        masters = [("Impersonate-User", "alice"), ("Impersonate-Group", "system:masters")]
        some = role("imp", rule("impersonate", "users"), kind="ClusterRole")
        await http("POST", f"{RBAC}/clusterroles", some)
        await http("POST", f"{RBAC}/clusterrolebindings", binding("imp", "alice", "imp", kind="ClusterRoleBinding"))
        assert (await http("POST", path, question, token="alice", headers=as_bob)).status == 201
        assert (await http("POST", path, question, token="alice", headers=masters)).status == 403

    api(test)


def test_a_token_of_a_service_account_has_the_rights_of_its_bindings(api: Any) -> None:
    async def test(http: Any) -> None:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}}
        await http("POST", "/api/v1/namespaces/default/serviceaccounts", account)
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        issued = await http("POST", "/api/v1/namespaces/default/serviceaccounts/bot/token", request)
        token = issued.body["status"]["token"]
        assert (await http("GET", PODS, token=token)).status == 403
        bound = binding("bot", "", "view")
        bound["subjects"] = [{"kind": "ServiceAccount", "name": "bot", "namespace": "default"}]
        await http("POST", f"{RBAC}/namespaces/default/rolebindings", bound)

        async def allowed() -> bool:
            return (await http("GET", PODS, token=token)).status == 200

        await until(allowed)
        assert (await http("GET", "/api/v1/namespaces/kube-system/pods", token=token)).status == 403
        await http("DELETE", "/api/v1/namespaces/default/serviceaccounts/bot")
        assert (await http("GET", PODS, token=token)).status == 401

    api(test)


@pytest.mark.parametrize(
    ("held", "wanted", "missing"),
    [
        ([rule("*", "*", "*")], [rule("get", "pods/log")], 0),
        ([rule("get", "*/log")], [rule("get", "pods/log")], 0),
        ([rule("get", "pods")], [rule("get", "pods/log")], 1),
        ([rule("get", "pods") | {"resourceNames": ["a"]}], [rule("get", "pods")], 1),
        ([rule("get", "pods")], [rule("get", "pods") | {"resourceNames": ["a"]}], 0),
        ([rule("get", "pods"), rule("list", "pods")], [rule("get list", "pods")], 0),
        ([rule("get", "pods")], [rule("*", "pods")], 1),
        ([{"verbs": ["get"], "nonResourceURLs": ["/a/*"]}], [{"verbs": ["get"], "nonResourceURLs": ["/a/b"]}], 0),
        ([{"verbs": ["get"], "nonResourceURLs": ["/a/b"]}], [{"verbs": ["get"], "nonResourceURLs": ["/a/*"]}], 1),
    ],
)
def test_rules_cover_rules(held: list[Any], wanted: list[Any], missing: int) -> None:
    assert len(uncovered_rules(held, wanted)) == missing


def test_only_full_names_of_service_accounts_are_service_accounts() -> None:
    assert account_groups("system:serviceaccount:a:b") == ("system:serviceaccounts", "system:serviceaccounts:a")
    for name in ("system:serviceaccount:a", "system:serviceaccount::b", "system:serviceaccount:a:b:c", "a:b"):
        assert account_groups(name) == ()
    assert impersonated(ADMIN, [(b"x", b"y")], lambda user, attributes: (False, "")) is ADMIN
