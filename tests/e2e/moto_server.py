"""An S3 server of another project, for tests; run by test_object_stores.py in an environment that has moto."""

import os
import sys
import time

from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
with open(sys.argv[1] + ".part", "w") as file:
    file.write(f"http://127.0.0.1:{port}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
while True:
    time.sleep(60)
