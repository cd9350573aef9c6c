"""What Python programs see of addresses and names where Pods share the machine's network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import shallop_pod

PROGRAM = """
import asyncio, os, socket, threading
from shallop_pod import netshim
netshim.install()
netshim.install()

async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), None, 0)
    server.close()
    server = await asyncio.start_server(lambda r, w: w.close(), "0.0.0.0", 0)
    address, port = server.sockets[0].getsockname()
    print(address, netshim.is_listening(address, port))
    for host in ("127.0.0.1", "localhost", "me.job"):
        reader, writer = await asyncio.open_connection(host, port, family=socket.AF_INET)
        print(writer.get_extra_info("peername")[0])
        writer.close()
    server.close()

asyncio.run(main())
for family, where in ((socket.AF_INET, "localhost"), (socket.AF_INET6, "::")):
    with socket.socket(family) as sock:
        sock.bind((where, 0))
        print(sock.getsockname()[0])
with socket.create_server(("", 0)) as server:
    print(server.getsockname()[0])
print(socket.gethostbyname("me.job"), socket.getaddrinfo(b"me.job.", 80)[0][4])
try:
    socket.create_connection(("127.0.0.1", 1), 1)
except ConnectionRefusedError:
    print("refused")
with socket.socket(socket.AF_UNIX) as sock:
    sock.bind("\\0shallop-test-%d" % os.getpid())
"""


def run(tmp_path: Path, **variables: str) -> list[str]:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.77.66.55 me.job other\n\nbroken\n")
    env = {"PYTHONPATH": str(Path(shallop_pod.__path__[0]).parent), "SHALLOP_HOSTS": str(hosts), **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_wildcards_and_loopback_are_the_pods_own_address(tmp_path: Path) -> None:
    address = "127.77.66.55"
    lines = run(tmp_path, SHALLOP_POD_IP=address)
    assert lines == [
        f"{address} True",
        *[address] * 3,
        address,
        f"::ffff:{address}",
        address,
        f"{address} ('{address}', 80)",
        "refused",
    ]


def test_variables_of_the_platform_are_needed() -> None:
    assert "SHALLOP_POD_IP" not in os.environ
    code = "import socket; before = socket.socket.bind; from shallop_pod import netshim; netshim.install()"
    subprocess.run([sys.executable, "-c", f"{code}; assert socket.socket.bind is before"], check=True)
