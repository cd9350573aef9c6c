"""A predictor that speaks HTTP/2 without TLS and nothing else, on the library h2; streams its answer where asked to."""

import asyncio
import json

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.exceptions import ProtocolError


class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.bodies = {}
        self.paths = {}
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        transport.write(self.h2.data_to_send())

    def data_received(self, data):
        try:
            events = self.h2.receive_data(data)
        except ProtocolError:
            self.transport.abort()  # it speaks HTTP/1.1
            return
        for event in events:
            if isinstance(event, RequestReceived):
                self.paths[event.stream_id] = dict(event.headers)[":path"]
                self.bodies[event.stream_id] = b""
            elif isinstance(event, DataReceived):
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                asyncio.get_running_loop().create_task(self.answer(event.stream_id))
        self.transport.write(self.h2.data_to_send())

    async def answer(self, stream):
        path, body = self.paths.pop(stream), self.bodies.pop(stream)
        rows = json.loads(body)["instances"] if body else []
        if path.endswith("/stream"):
            self.h2.send_headers(stream, [(":status", "200"), ("content-type", "text/event-stream")])
            for row in rows:
                self.h2.send_data(stream, f"data: {sum(row)}\n\n".encode())
                self.transport.write(self.h2.data_to_send())
                await asyncio.sleep(0.01)
            self.h2.end_stream(stream)
        else:
            said = json.dumps({"predictions": [sum(row) for row in rows]}).encode()
            headers = [(":status", "200"), ("content-type", "application/json"), ("content-length", str(len(said)))]
            self.h2.send_headers(stream, headers)
            self.h2.send_data(stream, said, end_stream=True)
        self.transport.write(self.h2.data_to_send())


async def main():
    server = await asyncio.get_running_loop().create_server(Server, "0.0.0.0", 8080)
    await server.serve_forever()


asyncio.run(main())
