"""One end of a measured TCP conversation, inside a network namespace; started by `bench.network`.

    python -m bench.traffic NETNS serve PORT                     two ports, until its standard input ends
    python -m bench.traffic NETNS send ADDRESS PORT SECONDS      prints bytes per second
    python -m bench.traffic NETNS connect ADDRESS PORT SECONDS   prints connections per second

On PORT the server reads until the client has no more; on PORT + 1 it closes every connection at once: the
side that closes first is left with the used-up ports. `connect` makes connections in several processes, as
one spends its time waiting.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from cloister.kernel import syscalls

BLOCK = 1 << 20
CLIENTS, SERVERS = 4, 2


def serve(port: int) -> None:
    listeners = [socket.create_server(("0.0.0.0", port + i), backlog=1024) for i in range(2)]
    children = []
    for listener, reads in ((listeners[0], True), *[(listeners[1], False)] * SERVERS):
        child = os.fork()
        if child == 0:
            _serve(listener, reads)
        children.append(child)
    print("ready", flush=True)
    sys.stdin.read()
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)


def _serve(listener: socket.socket, reads: bool) -> None:
    buffer = bytearray(BLOCK)
    while True:
        client, _ = listener.accept()
        while reads and client.recv_into(buffer):
            pass
        client.close()


def send(where: tuple[str, int], seconds: float) -> float:
    block = memoryview(bytes(BLOCK))
    with socket.create_connection(where, 5) as client:
        client.settimeout(10)
        began = time.perf_counter()
        sent = 0
        while time.perf_counter() - began < seconds:
            sent += client.send(block)
        client.shutdown(socket.SHUT_WR)
        client.recv(1)  # the server has read all
        return sent / (time.perf_counter() - began)


def connect(where: tuple[str, int], seconds: float) -> float:
    readers = []
    for _ in range(CLIENTS):
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, str(_connect(where, seconds)).encode())
            os._exit(0)
        os.close(write)
        readers.append(read)
    rates = [float(os.read(read, 100)) for read in readers]
    for _ in readers:
        os.wait()
    return sum(rates)


def _connect(where: tuple[str, int], seconds: float) -> float:
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < seconds:
        client = socket.socket()
        client.connect(where)
        client.recv(1)
        client.close()
        count += 1
    return count / (time.perf_counter() - began)


def main(netns: str, what: str, *rest: str) -> None:
    syscalls.set_name("btraffic")
    with Path(netns).open() as file:
        syscalls.setns(file.fileno(), syscalls.CLONE_NEWNET)
    if what == "serve":
        serve(int(rest[0]))
    else:
        measure = {"send": send, "connect": connect}[what]
        print(measure((rest[0], int(rest[1])), float(rest[2])))


if __name__ == "__main__":
    main(*sys.argv[1:])
