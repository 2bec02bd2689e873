"""Names as a VPC's DNS servers have them, whatever the host's own resolver says."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any


def getaddrinfo_by(servers: tuple[str, ...]) -> Callable[..., list[Any]]:
    """A `getaddrinfo` that asks these DNS servers, over UDP: the next one when one is silent, twice round."""
    import dnslib

    known: dict[str, tuple[float, list[str]]] = {}

    def lookup(host: str) -> list[str]:
        try:
            socket.inet_aton(host)
            return [host]
        except OSError:
            pass
        expires, addresses = known.get(host, (0.0, []))
        if time.monotonic() < expires:
            return addresses
        query = dnslib.DNSRecord.question(host, "A")
        for server in 2 * servers:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1.5)
                try:
                    sock.connect((server, 53))
                    sock.send(query.pack())
                    answer = dnslib.DNSRecord.parse(sock.recv(4096))
                except (OSError, dnslib.DNSError):
                    continue
            if answer.header.id != query.header.id or answer.header.rcode not in (0, 3):
                continue  # as the C library does: a server that fails or refuses is passed over
            addresses = [str(rr.rdata) for rr in answer.rr if rr.rtype == dnslib.QTYPE.A]
            if addresses:
                known[host] = (time.monotonic() + 30, addresses)
                return addresses
            break
        asked = " and ".join(servers) or "no DNS server"
        raise socket.gaierror(socket.EAI_NONAME, f"{asked} does not resolve {host}")

    def getaddrinfo(
        host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else str(host)
        return [
            (socket.AF_INET, type or socket.SOCK_STREAM, proto or socket.IPPROTO_TCP, "", (a, int(port or 0)))
            for a in lookup(name)
        ]

    return getaddrinfo
