"""Names of the internet, asked of the host's own DNS servers: for VPCs that can reach what they stand for.

Only a question made anew goes out, only addresses of public hosts come back. What a client sent is never
passed on, and a client that asks too much at once is told to try again.
"""

from __future__ import annotations

import asyncio
import re
from ipaddress import IPv4Address
from pathlib import Path

import dnslib

from cloister.vpc import dns

_PORT = 53
_SECONDS = 2.0  # for each server and try
_AT_ONCE = 64
_SERVFAIL = 2
_MOST_TTL = 300
_NAME = re.compile(r"([a-z0-9_][a-z0-9_-]{0,62}\.)+[a-z0-9][a-z0-9-]{0,62}")
#: top-level names that are nobody's (RFC 6761, RFC 6762), or ours to answer
_OURS = (
    "amazonaws.com",
    "amazonaws.com.cn",
    "internal",
    "local",
    "localhost",
    "arpa",
    "test",
    "invalid",
    "onion",
)


def is_public(name: str) -> bool:
    """Whether the internet may know this name: it has a dot, and is not below what a VPC answers itself."""
    name = name.rstrip(".").lower()
    return (
        len(name) <= 253
        and _NAME.fullmatch(name) is not None
        and not any(name == one or name.endswith(f".{one}") for one in _OURS)
    )


def servers(resolv_conf: str | None = None) -> list[str]:
    """The IPv4 DNS servers of the host."""
    try:
        text = Path("/etc/resolv.conf").read_text() if resolv_conf is None else resolv_conf
    except OSError:
        return []
    words = [line.split() for line in text.splitlines()]
    named = [each[1] for each in words if each[:1] == ["nameserver"] and len(each) > 1]
    return [each for each in named if ":" not in each][:3]


class HostNames:
    """`ask` answers one question. Sockets are of the host's network namespace."""

    def __init__(self) -> None:
        self._asking = 0

    async def ask(self, name: str, qtype: int) -> dns.Answer:
        """The public addresses of a name, and their TTL; NXDOMAIN when the host's servers say so."""
        if self._asking >= _AT_ONCE:
            return dns.Answer(rcode=_SERVFAIL)
        self._asking += 1
        try:
            for server in servers():
                try:
                    found = await _ask(server, name)
                except (OSError, ValueError):  # TimeoutError is an OSError
                    continue
                if found.rcode in (dns.NOERROR, dns.NXDOMAIN):
                    records = found.records if qtype in (dns.A, dns.ANY) else ()
                    return dns.Answer(rcode=found.rcode, records=records, ttl=found.ttl)
            return dns.Answer(rcode=_SERVFAIL)
        finally:
            self._asking -= 1


async def _ask(server: str, name: str) -> dns.Answer:
    """Raises OSError, TimeoutError, ValueError."""
    query = dnslib.DNSRecord.question(name, "A")
    loop = asyncio.get_running_loop()
    coming: asyncio.Future[bytes] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _One(coming, int(query.header.id)), remote_addr=(server, _PORT)
    )
    try:
        transport.sendto(bytes(query.pack()))
        async with asyncio.timeout(_SECONDS):
            return read(await coming, name)
    finally:
        transport.close()


class _One(asyncio.DatagramProtocol):
    """Waits for the one reply with our id."""

    def __init__(self, coming: asyncio.Future[bytes], number: int) -> None:
        self._coming = coming
        self._number = number

    def datagram_received(self, data: bytes, addr: tuple[str | None, int]) -> None:
        if data[:2] == self._number.to_bytes(2, "big") and not self._coming.done():
            self._coming.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._coming.done():
            self._coming.set_exception(exc)


def read(packet: bytes, name: str) -> dns.Answer:
    """A server's reply to our question. Addresses that no public host can have are left out.
    Raises ValueError for what is no reply to it."""
    try:
        said = dnslib.DNSRecord.parse(packet)
        asked = str(said.q.qname).rstrip(".").lower()
        found = [(str(rr.rdata), int(rr.ttl)) for rr in said.rr if rr.rtype == dns.A]
        rcode = int(said.header.rcode)
    except Exception as error:  # hostile bytes: dnslib has many ways to say no
        raise ValueError("no reply") from error
    if not said.header.qr or asked != name.rstrip(".").lower():
        raise ValueError("a reply to another question")
    public = [(address, ttl) for address, ttl in found if IPv4Address(address).is_global]
    ttl = min([_MOST_TTL, *(ttl for _, ttl in public)])
    return dns.Answer(rcode=rcode, records=tuple(address for address, _ in public), ttl=ttl)
