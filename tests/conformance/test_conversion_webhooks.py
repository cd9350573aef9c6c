"""Custom resources whose versions a webhook converts: a real HTTPS server answers, the real kubectl asks."""

import asyncio
import base64
import json
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shallop.embedded.apiserver import ApiServer, ensure_tls, write_kubeconfig
from shallop.errors import ApiError
from shallop.kube.objects import Gvk
from shallop.webserver import Server, bind

GROUP = "net.example.com"
OLD, NEW = Gvk(f"{GROUP}/v1beta1", "Peer"), Gvk(f"{GROUP}/v1", "Peer")
CRD = Gvk("apiextensions.k8s.io/v1", "CustomResourceDefinition")


def convert(obj: dict[str, Any], version: str) -> dict[str, Any]:
    """Version v1beta1 has ``spec.address: host:port``, v1 has both apart, which no sharing of fields can do."""
    spec = obj.get("spec") or {}
    if version == NEW.api_version:
        host, _, port = spec["address"].rpartition(":")
        spec = {"host": host, "port": int(port)}
    else:
        spec = {"address": f"{spec['host']}:{spec['port']}"}
    return obj | {"apiVersion": version, "spec": spec}


class Hook:
    """The webhook server: remembers how many objects it was given, may spoil its answers."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[str, int]] = []
        self.spoil: Callable[[dict[str, Any]], None] = lambda _: None

    async def handle(self, request: web.Request) -> web.Response:
        review = await request.json()
        asked = review["request"]
        self.asked.append((asked["desiredAPIVersion"], len(asked["objects"])))
        response = {
            "uid": asked["uid"],
            "result": {"status": "Success"},
            "convertedObjects": [convert(obj, asked["desiredAPIVersion"]) for obj in asked["objects"]],
        }
        self.spoil(response)
        body = {"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": response}
        return web.json_response(body)


def version(name: str, *, storage: bool, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    whole = {"type": "object", "properties": {"spec": schema, "status": {"type": "object"}}}
    whole["properties"]["status"]["x-kubernetes-preserve-unknown-fields"] = True  # type: ignore[index]
    return {
        "name": name,
        "served": True,
        "storage": storage,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": whole},
    }


def peers(client: dict[str, Any], *, stored: str = "v1") -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "integer", "minimum": 1}
    versions = [
        version("v1", storage=stored == "v1", host=text, port=number),
        version("v1beta1", storage=stored == "v1beta1", address=text),
    ]
    hook = {"clientConfig": client, "conversionReviewVersions": ["v2", "v1"]}
    spec = {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": "peers", "kind": "Peer"},
        "versions": versions,
        "conversion": {"strategy": "Webhook", "webhook": hook},
    }
    return {"apiVersion": CRD.api_version, "kind": CRD.kind, "metadata": {"name": f"peers.{GROUP}"}, "spec": spec}


def old(name: str, address: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": OLD.api_version, "kind": "Peer", "metadata": metadata, "spec": {"address": address}}


def new(name: str, host: str, port: int) -> dict[str, Any]:
    return old(name, "") | {"apiVersion": NEW.api_version, "spec": {"host": host, "port": port}}


class World:
    def __init__(self, server: ApiServer, hook: Hook, by_url: dict[str, Any], by_service: dict[str, Any]) -> None:
        self.server, self.hook, self.client = server, hook, server.client()
        self.by_url, self.by_service = by_url, by_service

    async def establish(self, crd: dict[str, Any]) -> None:
        await self.client.apply(crd)
        async with asyncio.timeout(30):
            while self.server.registry.by_gvk(OLD) is None:
                await asyncio.sleep(0.01)


Test = Callable[[World], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Test], None]:
    tls = ensure_tls(tmp_path / "tls", hosts=["hook.default.svc"])

    async def inside(test: Test) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.certificate, tls.key)
        hook = Hook()
        app = web.Application()
        app.router.add_post("/convert", hook.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        hook.port = runner.addresses[0][1]
        services = {("default", "hook", "443"): ("127.0.0.1", hook.port)}
        server = ApiServer(None, admin_token="t", resolve_service=lambda *key: services.get(key))
        await server.start()
        bundle = {"caBundle": base64.b64encode(tls.ca.read_bytes()).decode()}
        service = {"namespace": "default", "name": "hook", "path": "/convert"}
        world = World(
            server,
            hook,
            bundle | {"url": f"https://localhost:{hook.port}/convert"},
            bundle | {"service": service},
        )
        try:
            await test(world)
        finally:
            await server.stop()
            await runner.cleanup()

    return lambda test: asyncio.run(inside(test))


def test_each_version_is_read_and_written_and_one_is_stored(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        client = world.client
        await world.establish(peers(world.by_url))
        made = await client.create(old("a", "db:5432"))
        assert made["apiVersion"] == OLD.api_version and made["spec"] == {"address": "db:5432"}
        stored = world.server.store.get(f"peers.{GROUP}", "default", "a")
        assert stored is not None and json.loads(stored.raw)["spec"] == {"host": "db", "port": 5432}
        assert (await client.get(NEW, "a", "default"))["spec"] == {"host": "db", "port": 5432}
        patched = await client.patch(OLD, "a", "default", {"spec": {"address": "db:1"}})
        assert patched["spec"] == {"address": "db:1"} and patched["metadata"]["generation"] == 2
        updated = await client.update(patched | {"spec": {"address": "db:2"}})
        assert (await client.get(NEW, "a", "default"))["spec"]["port"] == 2
        assert updated["metadata"]["uid"] == made["metadata"]["uid"]
        applied = await client.apply(old("a", "db:3"), field_manager="me")
        assert applied["spec"] == {"address": "db:3"}
        status = await client.patch_status(applied, {"phase": "Up"})
        assert (status["apiVersion"], status["status"]) == (OLD.api_version, {"phase": "Up"})
        await client.delete(OLD, "a", "default")
        with pytest.raises(ApiError, match="not found"):
            await client.get(OLD, "a", "default")

    run(test)


def test_a_list_is_converted_at_once_and_the_service_is_found(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        client = world.client
        await world.establish(peers(world.by_service))
        for number in range(3):
            await client.create(new(f"p{number}", "h", number + 1))
        world.hook.asked.clear()
        items = (await client.list(OLD, "default")).items
        assert [item["spec"]["address"] for item in items] == ["h:1", "h:2", "h:3"]
        assert world.hook.asked == [(OLD.api_version, 3)]
        assert len((await client.list(NEW, "default")).items) == 3
        # Both are what was converted before.
        await client.list(OLD, "default", field_selector="metadata.name=p1")
        assert len(world.hook.asked) == 1

    run(test)


def test_a_watch_shows_its_version(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        client = world.client
        await world.establish(peers(world.by_url))
        revision = (await client.list(OLD, "default")).resource_version
        events = client.watch(OLD, "default", resource_version=revision, label_selector="on=yes")
        await client.create(new("a", "h", 1))
        seen = asyncio.create_task(anext(events))
        await client.patch(NEW, "a", "default", {"metadata": {"labels": {"on": "yes"}}})
        event = await asyncio.wait_for(seen, 30)
        assert (event.type, event.object["spec"]) == ("ADDED", {"address": "h:1"})
        await client.patch(NEW, "a", "default", {"metadata": {"labels": {"on": None}}})
        event = await asyncio.wait_for(anext(events), 30)
        assert (event.type, event.object["apiVersion"]) == ("DELETED", OLD.api_version)
        await events.aclose()

    run(test)


def test_the_stored_version_moves_and_both_are_known_to_be_stored(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        client = world.client
        await world.establish(peers(world.by_url, stored="v1beta1"))
        await client.create(new("a", "h", 1))
        await world.establish(peers(world.by_url))
        async with asyncio.timeout(30):
            while world.server.registry.by_gvk(NEW).storage_version != "v1":  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        crd = await client.get(CRD, f"peers.{GROUP}")
        assert crd["status"]["storedVersions"] == ["v1beta1", "v1"]
        assert (await client.get(NEW, "a", "default"))["spec"] == {"host": "h", "port": 1}
        await client.patch(NEW, "a", "default", {"spec": {"port": 2}})
        stored = world.server.store.get(f"peers.{GROUP}", "default", "a")
        assert stored is not None and stored.object["apiVersion"] == NEW.api_version
        assert (await client.get(OLD, "a", "default"))["spec"] == {"address": "h:2"}

    run(test)


def spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda response: response.update(changes)


def rename(response: dict[str, Any]) -> None:
    response["convertedObjects"][0]["metadata"]["name"] = "b"


def test_what_goes_wrong_is_said_as_kubernetes_says_it(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        await world.establish(peers(world.by_url))
        await world.client.create(new("a", "h", 1))
        failed = f"conversion webhook for {NEW.api_version}, Kind=Peer"
        for wrong, message in (
            (spoil(result={"status": "Failed", "message": "no such port"}), f"{failed} failed: no such port"),
            (
                spoil(result={"status": "Failed"}),
                f"{failed} failed: response.result.status was 'Failed', not 'Success'",
            ),
            (spoil(convertedObjects=[]), f"{failed} returned 0 objects, expected 1"),
            (rename, 'metadata.name: Invalid value: "b": must be unchanged'),
            (spoil(uid="x"), "expected response.uid="),
        ):
            world.hook.spoil = wrong
            with pytest.raises(ApiError) as refused:
                await world.client.get(OLD, "a", "default")
            assert refused.value.code == 500 and message in refused.value.message
        with pytest.raises(ApiError, match=r"expected response\.uid="):
            await world.client.create(old("b", "h:1"))
        assert [item["metadata"]["name"] for item in (await world.client.list(NEW)).items] == ["a"]
        # What may change of the metadata are labels and annotations: the rest stays, whatever the webhook says.
        world.hook.spoil = lambda response: response["convertedObjects"][0]["metadata"].update(
            labels={"seen": "yes"}, creationTimestamp=None, finalizers=["a/b"]
        )
        found = (await world.client.get(OLD, "a", "default"))["metadata"]
        assert found["labels"] == {"seen": "yes"} and found["creationTimestamp"] and "finalizers" not in found

    run(test)


def test_a_definition_goes_with_its_objects_although_its_webhook_fails(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        await world.establish(peers(world.by_url, stored="v1beta1"))
        await world.client.create(old("a", "h:1") | {"metadata": {"name": "a", "namespace": "default"}})
        world.hook.spoil = spoil(result={"status": "Failed"})
        await world.client.delete(CRD, f"peers.{GROUP}")
        async with asyncio.timeout(30):
            while world.server.store.get("customresourcedefinitions.apiextensions.k8s.io", "", f"peers.{GROUP}"):
                await asyncio.sleep(0.01)
        assert world.server.store.count(f"peers.{GROUP}") == 0

    run(test)


def test_admission_sees_the_version_that_it_asks_for(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        await world.establish(peers(world.by_url))
        rule = {"apiGroups": [GROUP], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["peers"]}
        constraints = {"matchConstraints": {"resourceRules": [rule]}}
        expression = "Object{spec: Object.spec{port: object.spec.port + 1000}}"
        mutation = {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}
        check = {"expression": "object.spec.port < 2000 && request.kind.version == 'v1'"}
        for kind, spec in (
            ("Mutating", {"mutations": [mutation], "reinvocationPolicy": "Never"}),
            ("Validating", {"validations": [check]}),
        ):
            api = "admissionregistration.k8s.io/v1"
            policy = {"apiVersion": api, "kind": f"{kind}AdmissionPolicy", "metadata": {"name": "ports"}}
            await world.client.create(policy | {"spec": constraints | spec})
            bound: dict[str, Any] = {"policyName": "ports"}
            if kind == "Validating":
                bound["validationActions"] = ["Deny"]
            await world.client.create(policy | {"kind": f"{kind}AdmissionPolicyBinding", "spec": bound})
        made = await world.client.create(old("a", "db:1"))
        assert (made["apiVersion"], made["spec"]) == (OLD.api_version, {"address": "db:1001"})
        with pytest.raises(ApiError, match="failed expression"):
            await world.client.create(old("b", "db:1500"))

    run(test)


def test_kubectl_works_with_both_versions(run: Callable[[Test], None], kubectl: str, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        tls = ensure_tls(tmp_path / "api")
        sock = bind("127.0.0.1", 0, "api_port")
        http = Server(world.server.asgi, sock, tls=(str(tls.certificate), str(tls.key)))
        await http.start()
        config = tmp_path / "kubeconfig"
        url = f"https://127.0.0.1:{sock.getsockname()[1]}"
        write_kubeconfig(config, server=url, ca_pem=tls.ca.read_bytes(), token="t")

        async def k(*arguments: str, stdin: Any = None) -> str:
            process = await asyncio.create_subprocess_exec(
                kubectl,
                *arguments,
                env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(config)},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            out, _ = await asyncio.wait_for(process.communicate(json.dumps(stdin).encode()), 60)
            return out.decode()

        try:
            await k("apply", "-f", "-", stdin=peers(world.by_url))
            await k("wait", "--for=condition=Established", f"crd/peers.{GROUP}", "--timeout=30s")
            assert "created" in await k("apply", "-f", "-", stdin=old("a", "db:1"))
            assert "unchanged" in await k("apply", "-f", "-", stdin=old("a", "db:1"))
            assert await k("get", f"peers.v1.{GROUP}", "a", "-o", "jsonpath={.spec.host}") == "db"
            assert "configured" in await k("apply", "-f", "-", stdin=old("a", "db:2"))
            assert await k("get", f"peers.v1.{GROUP}", "-o", "jsonpath={.items[0].spec.port}") == "2"
            assert await k("get", f"peers.v1beta1.{GROUP}", "a", "-o", "jsonpath={.spec}") == '{"address":"db:2"}'
            invalid = await k("apply", "-f", "-", stdin=new("b", "h", 0))
            assert "spec.port: Invalid value: 0" in invalid
            await k("apply", "-f", "-", stdin=new("c", "h", 3))
            world.hook.spoil = spoil(result={"status": "Failed", "message": "not today"})
            said = f"Error from server: conversion webhook for {NEW.api_version}, Kind=Peer failed: not today"
            assert said in await k("get", f"peers.v1beta1.{GROUP}", "c", "-o", "name")
        finally:
            await http.stop()

    run(test)
