"""WebSockets to Services through the API server, over its real socket."""

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from shallop.embedded.apiserver import ApiServer, ensure_tls
from shallop.webserver import Server, bind


async def echo(request: web.Request) -> web.StreamResponse:
    if "upgrade" not in request.headers:
        return web.Response(text="plain")
    socket = web.WebSocketResponse(protocols=["chat"])
    await socket.prepare(request)
    await socket.send_str(f"{request.path_qs} {request.headers.get('authorization')} {request.headers['host']}")
    async for message in socket:
        await socket.send_str(message.data.upper())
        if message.data == "bye":
            break
    return socket


async def talk(home: Path) -> None:
    app = web.Application()
    app.router.add_get("/{path:.*}", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    tls = ensure_tls(home)
    server = ApiServer(None, admin_token="t", resolve_service=lambda *key: ("127.0.0.1", port if key[2] == "80" else 9))
    await server.start()
    sock = bind("127.0.0.1", 0, "api_port")
    http = Server(server.asgi, sock, tls=(str(tls.certificate), str(tls.key)))
    await http.start()
    spec = {"ports": [{"port": 80}]}
    metadata = {"name": "chat", "namespace": "default"}
    await server.client().create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    base = f"https://127.0.0.1:{sock.getsockname()[1]}/api/v1/namespaces/default/services"
    trusted = ssl.create_default_context(cadata=tls.ca.read_text())
    try:
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer t"}) as session:
            url = f"{base}/chat:80/proxy/room/1?name=ada"
            async with session.ws_connect(url, ssl=trusted, protocols=["chat"]) as socket:
                assert socket.protocol == "chat"
                assert (await socket.receive_str()) == f"/room/1?name=ada None 127.0.0.1:{port}"
                for text in ("hello", "x" * 200_000, "bye"):
                    await socket.send_str(text)
                    assert await socket.receive_str() == text.upper()
                assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSE
            async with session.get(url, ssl=trusted) as answer:
                assert await answer.text() == "plain"
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{base}/chat:81/proxy/", ssl=trusted)
            assert refused.value.status == 503
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(url, ssl=trusted)
            assert refused.value.status == 403
    finally:
        await http.stop()
        await server.stop()
        await runner.cleanup()


def test_a_websocket_reaches_a_service_through_the_api(tmp_path: Path) -> None:
    asyncio.run(talk(tmp_path / "tls"))
