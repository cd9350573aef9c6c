"""Tokens that browsers keep in cookies: when they count, when they do not."""

from __future__ import annotations

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from shallop.webserver import OriginGuard, TokenCookie, token_cookie


def seen(method: str, **headers: str) -> str | None:
    """Return the header ``Authorization`` that an application gets behind both guards; None: it was not asked."""
    asked: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(dict(scope["headers"]).get(b"authorization", b"").decode())

    async def run() -> None:
        given = {"host": "127.0.0.1:8080", "cookie": "other=1; shallop-8080=abc.def", **headers}
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            pass

        scope = {"type": "http", "method": method, "path": "/", "headers": pairs}
        await OriginGuard(TokenCookie(app, 8080), [])(scope, receive, send)

    anyio.run(run)
    return asked[0] if asked else None


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("GET", {}, "Bearer abc.def"),
        ("GET", {"authorization": "Bearer own"}, "Bearer own"),
        ("GET", {"cookie": "shallop-8090=abc.def"}, ""),
        ("GET", {"cookie": "shallop-8080="}, ""),
        ("POST", {"sec_fetch_site": "same-origin"}, "Bearer abc.def"),
        ("POST", {"origin": "http://127.0.0.1:8080"}, "Bearer abc.def"),
        # Nothing says where the write comes from: a program, which sends its token in a header.
        ("POST", {}, ""),
        ("DELETE", {"sec_fetch_site": "none"}, ""),
        # Another port of the same machine is the same site, and gets the cookie: it may change nothing.
        ("POST", {"sec_fetch_site": "same-site"}, None),
        ("POST", {"origin": "http://127.0.0.1:8082"}, None),
        ("POST", {"origin": "null", "sec_fetch_site": "cross-site"}, None),
    ],
)
def test_when_a_cookie_counts(method: str, headers: dict[str, str], expected: str | None) -> None:
    assert seen(method, **headers) == expected


def test_a_cookie_is_out_of_reach_of_scripts_and_other_sites() -> None:
    assert token_cookie(8080, "abc") == "shallop-8080=abc; Path=/; HttpOnly; SameSite=Strict"
    assert token_cookie(8080, "").endswith("; Max-Age=0")
