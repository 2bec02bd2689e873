"""Runs inside a job of another VPC: algo-1 listens, algo-2 proves that it does, both stay until they are stopped."""

import json
import pathlib
import socket
import sys
import threading
import time

PORT = int(sys.argv[1])
config = json.loads(pathlib.Path("/opt/ml/config/resourceconfig.json").read_text())
if config["current_host"] == "algo-1":
    server = socket.create_server(("", PORT))

    def serve():
        while True:
            peer, _ = server.accept()
            peer.close()

    threading.Thread(target=serve, daemon=True).start()
    print("listening", flush=True)
else:
    for _ in range(100):
        try:
            socket.create_connection(("algo-1", PORT), timeout=1).close()
            print("algo-1 is reachable from its own VPC", flush=True)
            break
        except OSError:
            time.sleep(0.1)
time.sleep(120)
