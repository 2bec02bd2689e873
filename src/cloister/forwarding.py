"""Queries that resolver rules forward: sent from the interfaces of an outbound endpoint, as its groups allow.

A question is made anew: of the client's packet only name, type and whether it speaks EDNS go out. What a
server says to it comes back as it is.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Awaitable

import dnslib

from cloister.engine import Engine
from cloister.kernel.netns import Namespaces
from cloister.vpc.resolver_rules import ResolverRule, rule_for, sources
from cloister.world import World

_SECONDS = 1.5  # for each try; a client waits some 5
_TRIES = 3
_AT_ONCE = 256
MOST_UDP = 1232
_SERVFAIL = 2


def room(query: dnslib.DNSRecord, limit: int | None) -> int | None:
    """How many bytes a reply may have: the transport's limit, more if the client says so by EDNS."""
    edns = next((extra for extra in query.ar if extra.rtype == dnslib.QTYPE.OPT), None)
    return limit if limit is None or edns is None else max(limit, min(edns.rclass, MOST_UDP))


class Forwarder:
    """`forward` is asked of every query; sockets are of the endpoints' namespaces."""

    def __init__(self, engine: Engine, namespaces: Namespaces, *, region: str) -> None:
        self._engine = engine
        self._namespaces = namespaces
        self._region = region
        self._asking = 0
        self._turn = itertools.count()

    def forward(
        self, vpc_id: str, name: str, packet: bytes, limit: int | None
    ) -> Awaitable[bytes | None] | None:
        """The reply to a query of a VPC, of at most `limit` bytes (None: it came by TCP), when a rule
        forwards it; None: none does."""
        rule = rule_for(self._engine.world, vpc_id, name, region=self._region)
        return None if rule is None else self._ask(rule, packet, limit)

    async def _ask(self, rule: ResolverRule, packet: bytes, limit: int | None) -> bytes | None:
        query = dnslib.DNSRecord.parse(packet)
        limit = room(query, limit)
        said: bytes | None = None
        if self._asking < _AT_ONCE:
            self._asking += 1
            try:
                said = await self._of_any(self._engine.world, rule, query)
            finally:
                self._asking -= 1
        if said is not None and (limit is None or len(said) <= limit):
            return packet[:2] + said[2:]
        reply = query.reply(ra=1, aa=0)
        if said is None:
            reply.header.rcode = _SERVFAIL
        else:
            reply.header.tc = 1
        return bytes(reply.pack())

    async def _of_any(self, world: World, rule: ResolverRule, query: dnslib.DNSRecord) -> bytes | None:
        """What the first server that answers says: they and the interfaces take turns."""
        pairs = [
            (interface.addresses[0].netns or interface.interface_id, target)
            for target in rule.targets
            for interface in sources(world, rule)
        ]
        if not pairs:
            return None
        first = next(self._turn)
        for number in range(_TRIES):
            netns, target = pairs[(first + number) % len(pairs)]
            try:
                async with asyncio.timeout(_SECONDS):
                    return await self._of_one(netns, target, query)
            except (OSError, LookupError, ValueError):  # TimeoutError is an OSError
                continue
        return None

    async def _of_one(self, netns: str, target: tuple[str, int], query: dnslib.DNSRecord) -> bytes:
        """Raises OSError, LookupError, ValueError."""
        asked = dnslib.DNSRecord(dnslib.DNSHeader(rd=1), q=query.q)
        if any(extra.rtype == dnslib.QTYPE.OPT for extra in query.ar):
            asked.add_ar(dnslib.EDNS0(udp_len=MOST_UDP))
        packet = bytes(asked.pack())
        loop = asyncio.get_running_loop()
        with await self._socket(netns, socket.SOCK_DGRAM) as udp:
            await loop.sock_connect(udp, target)
            await loop.sock_sendall(udp, packet)
            while not _is_reply(said := await loop.sock_recv(udp, 65535), asked):
                pass
        if not struct.unpack("!H", said[2:4])[0] & 0x0200:  # TC
            return said
        with await self._socket(netns, socket.SOCK_STREAM) as tcp:
            await loop.sock_connect(tcp, target)
            await loop.sock_sendall(tcp, struct.pack("!H", len(packet)) + packet)
            (size,) = struct.unpack("!H", await _exactly(tcp, 2))
            said = await _exactly(tcp, size)
        if not _is_reply(said, asked):
            raise ValueError("a reply to another question")
        return said

    async def _socket(self, netns: str, kind: socket.SocketKind) -> socket.socket:
        made = await asyncio.to_thread(self._namespaces.socket, netns, socket.AF_INET, kind)
        made.setblocking(False)
        return made


async def _exactly(tcp: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(tcp, size - len(data))
        if not more:
            raise ConnectionResetError("the server ended the connection")
        data += more
    return data


def _is_reply(packet: bytes, asked: dnslib.DNSRecord) -> bool:
    """Of the packet only header and question are read: the rest may be made to take dnslib many seconds."""
    try:
        said = dnslib.DNSBuffer(packet)
        header, question = dnslib.DNSHeader.parse(said), dnslib.DNSQuestion.parse(said)
        return bool(
            header.qr
            and header.q == 1
            and header.id == asked.header.id
            and question.qtype == asked.q.qtype
            and str(question.qname).lower() == str(asked.q.qname).lower()
        )
    except Exception:  # hostile bytes: dnslib has many ways to say no
        return False
