"""What keeps the API server answering: sizes, numbers and times of requests are bounded, each with the attack tried."""

import asyncio
import base64
import json
from typing import Any

import pytest

from shallop.embedded.apiserver.inflight import InFlight
from shallop.embedded.apiserver.requests import ADMIN, User
from shallop.errors import TimeoutStatusError, TooManyRequestsError

MAPS = "/api/v1/namespaces/default/configmaps"
ALICE = User("alice", ("system:authenticated",))


def test_a_body_that_announces_too_much_is_refused_unread(api: Any) -> None:
    async def test(http: Any) -> None:
        received = 0
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            nonlocal received
            received += 1
            return {"type": "http.request", "body": b"x" * 65536, "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"authorization", b"Bearer admin")]
        scope = {"type": "http", "method": "POST", "path": MAPS, "query_string": b""}
        announced = [*headers, (b"content-length", str(100 * 2**20).encode())]
        await http.server.asgi({**scope, "headers": announced}, receive, send)
        assert (sent[0]["status"], received) == (413, 0)
        sent.clear()
        await http.server.asgi({**scope, "headers": headers}, receive, send)
        assert sent[0]["status"] == 413
        assert received <= 3 * 2**20 // 65536 + 1, (
            "chunks without an announced length are read to the limit, not further"
        )

    api(test)


def test_one_user_cannot_take_every_place() -> None:
    async def test() -> None:
        limits = InFlight()
        entered = [limits.request(ALICE) for _ in range(200)]
        for each in entered:
            await each.__aenter__()
        with pytest.raises(TooManyRequestsError) as refused:
            async with limits.request(ALICE):
                pass
        assert refused.value.details == {"retryAfterSeconds": 1}
        async with limits.request(ADMIN), limits.request(User("bob")):
            pass
        for each in entered:
            await each.__aexit__(None, None, None)
        async with limits.request(ALICE):
            pass

    asyncio.run(test())


def test_one_user_cannot_send_without_end() -> None:
    async def test() -> None:
        now = 0.0
        limits = InFlight(clock=lambda: now)

        async def send(user: User, count: int) -> int:
            """Return how many are let in."""
            for number in range(count):
                try:
                    async with limits.request(user):
                        pass
                except TooManyRequestsError as error:
                    assert error.details == {"retryAfterSeconds": 1} and "500 requests a second" in str(error)
                    return number
            return count

        assert await send(ALICE, 3000) == 2000, "a burst"
        assert await send(User("bob"), 10) == 10, "others are not concerned"
        assert await send(ADMIN, 3000) == 3000, "who must repair is not bound"
        now = 1.0
        assert await send(ALICE, 3000) == 500
        now = 100.0
        assert await send(ALICE, 3000) == 2000, "a quiet time gives no more than a burst"

    asyncio.run(test())


def test_a_request_that_never_ends_is_ended() -> None:
    async def test() -> None:
        limits = InFlight(timeout_s=0.01)
        with pytest.raises(TimeoutStatusError):
            async with limits.request(ALICE):
                await asyncio.Event().wait()
        async with limits.request(ALICE):
            pass

    asyncio.run(test())


def test_a_refusal_says_when_to_come_back(api: Any) -> None:
    async def test(http: Any) -> None:
        limits = http.server._app._in_flight
        limits._requests["alice"] = 200
        answer = await http("GET", MAPS, token="alice")
        assert answer.status == 403, "who may not do it learns that first"
        binding = {
            "metadata": {"name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"},
            "subjects": [{"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}],
        }
        path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
        assert (await http("POST", path, binding)).status == 201
        answer = await http("GET", MAPS, token="alice")
        assert answer.status == 429 and (b"retry-after", b"1") in answer.headers

    api(test)


def test_keys_for_verifiers_are_published_to_service_accounts(api: Any) -> None:
    async def test(http: Any) -> None:
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        await http("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "bot"}})
        issued = await http("POST", "/api/v1/namespaces/default/serviceaccounts/bot/token", request)
        token = issued.body["status"]["token"]
        header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
        found = await http("GET", "/.well-known/openid-configuration", token=token)
        assert found.body["jwks_uri"] == "https://localhost/openid/v1/jwks"
        (key,) = (await http("GET", "/openid/v1/jwks", token=token)).body["keys"]
        assert (key["kid"], key["alg"], key["crv"]) == (header["kid"], "ES256", "P-256")
        assert "d" not in key, "the private part stays here"
        assert (await http("GET", "/openid/v1/jwks", token="alice")).status == 403

    api(test)


def test_a_refused_request_still_warns(api: Any) -> None:
    async def test(http: Any) -> None:
        answer = await http("GET", "/api/v1/namespaces/default/endpoints/none")
        assert answer.status == 404 and "Endpoints is deprecated" in answer.warnings[0]

    api(test)


@pytest.mark.parametrize("value", ["y", "no", "1.5", "[a]"])
def test_names_that_yaml_reads_as_something_else_are_refused(api: Any, value: str) -> None:
    async def test(http: Any) -> None:
        text = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {value}}}\n".encode()
        answer = await http("POST", MAPS, text, headers=[("content-type", "application/yaml")])
        assert answer.status == 400 and "metadata.name" in answer.message

    api(test)
