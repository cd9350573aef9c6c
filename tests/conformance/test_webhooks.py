"""Admission webhooks of users: a real HTTPS server answers what the API server asks."""

import asyncio
import base64
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shallop.embedded.apiserver import ApiServer, ensure_tls
from shallop.embedded.apiserver.client import LocalClient
from shallop.embedded.apiserver.requests import WriteOptions
from shallop.errors import ApiError, InternalError
from shallop.kube.objects import Gvk

CONFIG_MAP = Gvk("v1", "ConfigMap")
Test = Callable[["Hook", ApiServer, LocalClient], Awaitable[None]]


def config_map(name: str, namespace: str = "default", **data: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def core_rule(resource: str, *operations: str) -> dict[str, Any]:
    return {"apiGroups": [""], "apiVersions": ["v1"], "operations": list(operations), "resources": [resource]}


class Hook:
    """The webhook server: remembers what it is asked, answers as ``answers`` says for each path."""

    def __init__(self, port: int, ca: bytes) -> None:
        self.port = port
        self.ca = base64.b64encode(ca).decode()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self.delay_s = 0.0

    async def handle(self, request: web.Request) -> web.Response:
        review = await request.json()
        self.asked.append((request.path, review["request"]))
        await asyncio.sleep(self.delay_s)
        answer = self.answers.get(request.path, lambda _: {"allowed": True})(review["request"])
        response = {"uid": review["request"]["uid"], **answer}
        return web.json_response({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})

    def configuration(self, kind: str, *hooks: dict[str, Any]) -> dict[str, Any]:
        rule = {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE"],
            "resources": ["configmaps"],
        }
        filled = [
            {
                "name": f"h{index}.example.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "rules": [rule],
                "clientConfig": {"url": f"https://localhost:{self.port}/{index}", "caBundle": self.ca},
                **hook,
            }
            for index, hook in enumerate(hooks)
        ]
        group = "admissionregistration.k8s.io/v1"
        return {"apiVersion": group, "kind": kind, "metadata": {"name": kind.lower()}, "webhooks": filled}


def patching(*operations: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    patch = base64.b64encode(json.dumps(operations).encode()).decode()
    return lambda _: {"allowed": True, "patchType": "JSONPatch", "patch": patch}


def adding(key: str, value: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return patching({"op": "add", "path": f"/data/{key}", "value": value})


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Test], None]:
    tls = ensure_tls(tmp_path / "tls", hosts=["hook.default.svc"])

    async def inside(test: Test) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.certificate, tls.key)
        hook = Hook(0, tls.ca.read_bytes())
        app = web.Application()
        app.router.add_post("/{path:.*}", hook.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        hook.port = runner.addresses[0][1]
        services = {("default", "hook", "443"): ("127.0.0.1", hook.port)}
        server = ApiServer(None, admin_token="t", resolve_service=lambda *key: services.get(key))
        await server.start()
        try:
            await test(hook, server, server.client())
        finally:
            await server.stop()
            await runner.cleanup()

    return lambda test: asyncio.run(inside(test))


def test_a_mutating_webhook_changes_what_is_stored(run: Callable[[Test], None]) -> None:
    async def test(hook: Hook, server: ApiServer, client: LocalClient) -> None:
        await client.create(hook.configuration("MutatingWebhookConfiguration", {}, {}))
        hook.answers = {"/0": adding("first", "1"), "/1": adding("second", "2")}
        made = await client.create(config_map("a", own="x"))
        assert made["data"] == {"own": "x", "first": "1", "second": "2"}
        path, request = hook.asked[0]
        assert (path, request["operation"], request["name"]) == ("/0", "CREATE", "a")
        assert request["userInfo"]["username"] == "admin" and request["oldObject"] is None
        assert request["resource"] == {"group": "", "version": "v1", "resource": "configmaps"}
        assert hook.asked[1][1]["object"]["data"] == {"own": "x", "first": "1"}, "each sees what the one before did"
        changed = await client.patch(CONFIG_MAP, "a", "default", {"data": {"own": "y"}})
        assert changed["data"]["own"] == "y" and hook.asked[-1][1]["oldObject"]["data"]["own"] == "x"
        applied = await client.apply(config_map("b", own="z"))
        assert applied["data"] == {"own": "z", "first": "1", "second": "2"}

    run(test)


def test_who_asks_for_it_is_asked_again_after_later_changes(run: Callable[[Test], None]) -> None:
    async def test(hook: Hook, server: ApiServer, client: LocalClient) -> None:
        await client.create(
            hook.configuration("MutatingWebhookConfiguration", {"reinvocationPolicy": "IfNeeded"}, {}, {})
        )
        hook.answers = {"/1": adding("k", "v")}
        await client.create(config_map("a"))
        assert [path for path, _ in hook.asked] == ["/0", "/1", "/2", "/0"]
        assert hook.asked[-1][1]["object"]["data"] == {"k": "v"}

    run(test)


def test_a_validating_webhook_refuses_with_its_words(run: Callable[[Test], None]) -> None:
    async def test(hook: Hook, server: ApiServer, client: LocalClient) -> None:
        rule = {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["configmaps"]}
        await client.create(hook.configuration("ValidatingWebhookConfiguration", {"rules": [rule]}))
        await client.create(config_map("kept"))
        hook.answers = {"/0": lambda _: {"allowed": False, "status": {"code": 403, "message": "not today"}}}
        for write in (
            client.create(config_map("a")),
            client.patch(CONFIG_MAP, "kept", "default", {"data": {"k": "v"}}),
            client.delete(CONFIG_MAP, "kept", "default"),
        ):
            with pytest.raises(ApiError) as refused:
                await write
            text = 'admission webhook "h0.example.com" denied the request: not today'
            assert (refused.value.code, refused.value.message) == (403, text)
        assert hook.asked[-1][1]["operation"] == "DELETE" and hook.asked[-1][1]["object"] is None
        assert (await client.get(CONFIG_MAP, "kept", "default")).get("data") == {}
        hook.answers = {"/0": lambda _: {"allowed": True, "warnings": ["old habits"]}}
        resource = server.registry.by_gvk(CONFIG_MAP)
        assert resource is not None
        options = WriteOptions()
        await server.verbs.create(resource, "default", config_map("w"), options)
        assert options.warnings == ["old habits"]

    run(test)


def test_selectors_conditions_and_rules_pick_what_is_asked(run: Callable[[Test], None]) -> None:
    async def test(hook: Hook, server: ApiServer, client: LocalClient) -> None:
        metadata = {"name": "team", "labels": {"checked": "yes"}}
        await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        await client.create(
            hook.configuration(
                "ValidatingWebhookConfiguration",
                {"namespaceSelector": {"matchLabels": {"checked": "yes"}}},
                {"objectSelector": {"matchLabels": {"me": "too"}}},
                {"matchConditions": [{"name": "big", "expression": "size(object.data) > 1"}]},
                {
                    "rules": [
                        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                    ]
                },
            )
        )
        await client.create(config_map("a", "team", k="v"))
        await client.create(config_map("b", k="v") | {"metadata": {"name": "b", "labels": {"me": "too"}}})
        await client.create(config_map("c", k="v", l="w"))
        assert [(path, request["name"]) for path, request in hook.asked] == [("/0", "a"), ("/1", "b"), ("/2", "c")]

    run(test)


def test_the_failure_policy_decides_when_a_webhook_fails(run: Callable[[Test], None]) -> None:
    async def test(hook: Hook, server: ApiServer, client: LocalClient) -> None:
        bad = {"clientConfig": {"url": f"https://localhost:{hook.port}/0"}}  # its certificate is not trusted
        gone = {"clientConfig": {"service": {"namespace": "default", "name": "gone"}, "caBundle": hook.ca}}
        slow = {"timeoutSeconds": 1}
        for broken in (bad, gone, slow):
            hook.delay_s = 3.0 if broken is slow else 0.0
            configuration = hook.configuration("ValidatingWebhookConfiguration", broken)
            await client.create(configuration)
            with pytest.raises(InternalError, match=r'failed calling webhook "h0.example.com"'):
                await client.create(config_map("a"))
            configuration["webhooks"][0]["failurePolicy"] = "Ignore"
            await client.update(configuration)
            await client.create(config_map("a"))
            await client.delete(CONFIG_MAP, "a", "default")
            gvk = Gvk("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration")
            await client.delete(gvk, configuration["metadata"]["name"])

    run(test)


def test_a_service_is_called_by_its_name(run: Callable[[Test], None]) -> None:
    async def test(hook: Hook, server: ApiServer, client: LocalClient) -> None:
        service = {"namespace": "default", "name": "hook", "path": "check/it"}
        config = {"clientConfig": {"service": service, "caBundle": hook.ca}}
        await client.create(hook.configuration("ValidatingWebhookConfiguration", config))
        await client.create(config_map("a"))
        assert [path for path, _ in hook.asked] == ["/check/it"]

    run(test)


def test_a_dry_run_is_not_sent_where_it_would_have_effects(run: Callable[[Test], None]) -> None:
    async def test(hook: Hook, server: ApiServer, client: LocalClient) -> None:
        await client.create(hook.configuration("ValidatingWebhookConfiguration", {"sideEffects": "NoneOnDryRun"}))
        resource = server.registry.by_gvk(CONFIG_MAP)
        assert resource is not None
        await server.verbs.create(resource, "default", config_map("a"), WriteOptions(dry_run=True))
        assert hook.asked[0][1]["dryRun"] is True

    run(test)


# ---- connections and scales


async def ask(server: ApiServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Send a request to the server in process."""
    path, _, query = path.partition("?")
    given = {"host": "localhost", "authorization": "Bearer t", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    raw = json.dumps(body).encode() if body is not None else b""
    answer: dict[str, Any] = {"body": b""}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: Any) -> None:
        answer["status"] = message.get("status", answer.get("status"))
        answer["body"] += message.get("body", b"")

    await server.asgi(scope, receive, send)  # type: ignore[arg-type]
    return answer["status"], json.loads(answer["body"])


def test_a_webhook_sees_and_refuses_connections_to_pods(run: Callable[[Test], None]) -> None:
    async def test(hook: Hook, server: ApiServer, client: LocalClient) -> None:
        spec = {"containers": [{"name": "main", "image": "a"}]}
        await client.create(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec}
        )
        rules = [core_rule("pods/exec", "CONNECT"), core_rule("services/proxy", "CONNECT")]
        await client.create(hook.configuration("ValidatingWebhookConfiguration", {"rules": rules}))
        path = "/api/v1/namespaces/default/pods/p/exec?command=ls&command=-l&container=main&stdout=true"
        status, _ = await ask(server, "POST", path)
        assert status == 400  # allowed, and then no upgrade
        ((_, request),) = hook.asked
        assert request["operation"] == "CONNECT" and "options" not in request
        assert request["kind"] == {"group": "", "version": "v1", "kind": "PodExecOptions"}
        assert (request["resource"]["resource"], request["subResource"], request["name"]) == ("pods", "exec", "p")
        wanted = {
            "kind": "PodExecOptions",
            "apiVersion": "v1",
            "stdout": True,
            "container": "main",
            "command": ["ls", "-l"],
        }
        assert (request["object"], request["oldObject"]) == (wanted, None)
        hook.answers["/0"] = lambda _: {"allowed": False, "status": {"message": "nobody looks inside", "code": 403}}
        status, body = await ask(server, "POST", path)
        assert (status, body["message"]) == (
            403,
            'admission webhook "h0.example.com" denied the request: nobody looks inside',
        )
        await client.create(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "s", "namespace": "default"},
                "spec": {"ports": [{"port": 80}]},
            }
        )
        status, body = await ask(server, "GET", "/api/v1/namespaces/default/services/s/proxy/deep/path")
        assert status == 403 and hook.asked[-1][1]["object"]["path"] == "/deep/path"

    run(test)


def test_a_webhook_sees_and_changes_scales(run: Callable[[Test], None]) -> None:
    async def test(hook: Hook, server: ApiServer, client: LocalClient) -> None:
        template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "main", "image": "a"}]}}
        spec = {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}
        metadata = {"name": "d", "namespace": "default"}
        await client.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
        rule = core_rule("deployments/scale", "UPDATE") | {"apiGroups": ["apps"]}
        await client.create(hook.configuration("MutatingWebhookConfiguration", {"rules": [rule]}))
        hook.answers["/0"] = patching({"op": "replace", "path": "/spec/replicas", "value": 3})
        path = "/apis/apps/v1/namespaces/default/deployments/d/scale"
        patch = {"spec": {"replicas": 9}}
        status, scale = await ask(server, "PATCH", path, patch, content_type="application/merge-patch+json")
        assert (status, scale["spec"]["replicas"]) == (200, 3)
        ((_, request),) = hook.asked
        assert request["kind"] == {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        assert (request["object"]["spec"], request["oldObject"]["spec"]) == ({"replicas": 9}, {"replicas": 1})
        stored = await client.get(Gvk("apps/v1", "Deployment"), "d", "default")
        assert (stored["spec"]["replicas"], stored["metadata"]["generation"]) == (3, 2)

    run(test)
