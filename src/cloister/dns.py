"""The Amazon DNS server of each VPC: UDP and TCP sockets inside its router namespace.

What is answered is `vpc.dns`; here are only bytes. Packets that are no query are dropped without a word.
A name that `vpc.dns` does not know may be one of the internet: `Elsewhere` knows whom to ask.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import cast

import dnslib

from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.forwarding import MOST_UDP, room
from cloister.kernel.netns import Namespaces
from cloister.listening import Listening
from cloister.room import Room
from cloister.servers import Close, Servers
from cloister.vpc import addresses as ip
from cloister.vpc import dns
from cloister.vpc.model import Vpc
from cloister.world import World

PORT = 53
_PLAIN_UDP = 512
_MOST_TCP = 4096
_CONNECTIONS = 64  # per VPC, at once
_OF_ONE = 8  # of them from one address
_IDLE = 10.0  # seconds
_NOTIMP = 4
#: bytes of a query, of which a name has 255 at most: the rest is for EDNS
_MOST_QUERY = 1232
_MOST_NAME = 255  # with its lengths and its end

#: (name, type) -> what to say
Answerer = Callable[[str, int], dns.Answer]
#: the same for names that do not exist inside, in a VPC; None: nobody is to be asked
Elsewhere = Callable[[str, str, int], Awaitable[dns.Answer] | None]
#: who in a VPC, by address, was told which addresses of a name; none: that there is no such name
Told = Callable[[str, str, str, tuple[str, ...]], None]
#: the reply to a packet that asks for a name in a VPC, within a limit, when a rule forwards it elsewhere
Forward = Callable[[str, str, bytes, int | None], Awaitable[bytes | None] | None]


def reply(packet: bytes, answer: Answerer, *, limit: int | None = None) -> bytes | None:
    """The reply to one query; None: no query, say nothing. `limit` is the transport's size in bytes without
    EDNS (None: no limit); a reply that is too long comes empty and truncated, so the client uses TCP."""
    if not _is_query(packet):
        return None
    try:
        query = dnslib.DNSRecord.parse(packet)
        question = query.questions[0]
        labels = [bytes(label).decode("ascii") for label in question.qname.label]
        if sum(len(label) + 1 for label in labels) >= _MOST_NAME:
            return None  # dnslib reads it, and could not write it
    except Exception:  # hostile bytes: dnslib has many ways to say no
        return None
    said = query.reply(ra=1, aa=0)
    if query.header.opcode != dnslib.OPCODE.QUERY or question.qclass not in (dnslib.CLASS.IN, 255):
        said.header.rcode = _NOTIMP
    else:
        found = answer(".".join(labels), question.qtype)
        said.header.rcode = found.rcode
        for data in found.records:
            rdata = dnslib.PTR(data) if found.rtype == dns.PTR else dnslib.A(data)
            said.add_answer(dnslib.RR(question.qname, found.rtype, ttl=found.ttl, rdata=rdata))
    if any(extra.rtype == dnslib.QTYPE.OPT for extra in query.ar):
        said.add_ar(dnslib.EDNS0(udp_len=MOST_UDP))
    limit = room(query, limit)
    packed = bytes(said.pack())
    if limit is not None and len(packed) > limit:
        said.rr = []
        said.header.tc = 1
        packed = bytes(said.pack())
    return packed


def _is_query(packet: bytes) -> bool:
    """Whether this is one question and not much more. Names that point to names, thousands of them, would
    take dnslib, and so everybody, many seconds to read."""
    if not 12 < len(packet) <= _MOST_QUERY:
        return False
    flags, questions, answers, authorities, further = struct.unpack("!2x5H", packet[:12])
    return not flags & 0x8000 and (questions, answers, authorities) == (1, 0, 0) and further <= 2


class _Names:
    """What is said in one VPC, and how."""

    def __init__(
        self, vpc_id: str, answer: Answerer, elsewhere: Elsewhere, forward: Forward, told: Told
    ) -> None:
        self._told = told
        self._vpc_id = vpc_id
        self._answer = answer
        self._elsewhere = elsewhere
        self._forward = forward

    def reply(
        self, packet: bytes, source: str, *, limit: int | None = None
    ) -> tuple[bytes | None, Awaitable[bytes | None] | None]:
        """What can be said at once; or who will say it."""
        later: list[Awaitable[bytes | None]] = []

        def answer(name: str, qtype: int) -> dns.Answer:
            forwarded = self._forward(self._vpc_id, name, packet, limit)
            if forwarded is not None:
                later.append(forwarded)
                return dns.Answer(rcode=dns.REFUSED)  # said by nobody
            found = self._answer(name, qtype)
            if found.rtype == dns.A and found.records:
                self._told(self._vpc_id, source, name.lower(), found.records)
            if found.rcode == dns.NXDOMAIN:
                asked = self._elsewhere(self._vpc_id, name, qtype)
                if asked is None and not name.lower().endswith(".in-addr.arpa"):
                    self._told(self._vpc_id, source, name.lower(), ())
                if asked is not None:
                    later.append(_reply_later(packet, asked, limit))
            return found

        said = reply(packet, answer, limit=limit)
        return (None, later[0]) if later else (said, None)


async def _reply_later(packet: bytes, later: Awaitable[dns.Answer], limit: int | None) -> bytes | None:
    found = await later
    return reply(packet, lambda name, qtype: found, limit=limit)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, names: _Names) -> None:
        self._names = names
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The selector loop's transport has no DatagramTransport among its classes in Python 3.11.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | None, int]) -> None:
        said, later = self._names.reply(data, str(addr[0]), limit=_PLAIN_UDP)
        if later is not None:
            task = asyncio.ensure_future(self._send_later(later, addr))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif said is not None and self._transport is not None:
            self._transport.sendto(said, addr)

    async def _send_later(self, later: Awaitable[bytes | None], addr: tuple[str | None, int]) -> None:
        said = await later
        if said is not None and self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(said, addr)


class _Resolver:
    """The server of one VPC."""

    def __init__(self, names: _Names) -> None:
        self._names = names
        self._udp: list[asyncio.BaseTransport] = []
        self._tcp: list[asyncio.Server] = []
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        room = Room(_CONNECTIONS, _OF_ONE)
        for one in sockets:
            if one.type == socket.SOCK_DGRAM:
                transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(self._names), sock=one)
                self._udp.append(transport)
            else:
                listening = Listening(one, room)
                self._tcp.append(await asyncio.start_server(self._serve, sock=listening, limit=_MOST_TCP))

    async def close(self) -> None:
        for transport in self._udp:
            transport.close()
        for server in self._tcp:
            server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        source = str((writer.get_extra_info("peername") or ("",))[0])
        try:
            while True:
                async with asyncio.timeout(_IDLE):
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                    said, later = self._names.reply(await reader.readexactly(size), source)
                    if later is not None:
                        said = await later
                    if said is None:
                        return
                    writer.write(struct.pack("!H", len(said)) + said)
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()


class Resolvers(Servers[tuple[str, str]]):
    """One DNS server for each VPC with DNS support, by the VPC's id and its base + 2."""

    def __init__(
        self,
        engine: Engine,
        fabric: Fabric,
        namespaces: Namespaces,
        *,
        region: str,
        elsewhere: Elsewhere = lambda vpc_id, name, qtype: None,
        forward: Forward = lambda vpc_id, name, packet, limit: None,
        told: Told = lambda vpc_id, source, name, addresses: None,
    ) -> None:
        super().__init__("resolvers", engine, fabric, _wanted, self._open)
        self._namespaces = namespaces
        self._elsewhere = elsewhere
        self._forward = forward
        self._told = told
        self._region = region

    async def _open(self, key: tuple[str, str]) -> Close:
        vpc_id, address = key
        resolver = _Resolver(
            _Names(vpc_id, self._answerer(vpc_id), self._elsewhere, self._forward, self._told)
        )
        await resolver.start(await asyncio.to_thread(self._sockets, vpc_id, address))
        return resolver.close

    def _answerer(self, vpc_id: str) -> Answerer:
        def answer(name: str, qtype: int) -> dns.Answer:
            return dns.answer(self._engine.world, vpc_id, name, qtype, region=self._region)

        return answer

    def _sockets(self, vpc_id: str, address: str) -> list[socket.socket]:
        made: list[socket.socket] = []
        try:
            for host in (address, ip.LINK_LOCAL_RESOLVER):
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    made.append(self._namespaces.bound(vpc_id, PORT, host, kind))
        except BaseException:
            for one in made:
                one.close()
            raise
        return made


def _wanted(world: World) -> set[tuple[str, str]]:
    return {(v.vpc_id, ip.resolver_address(v)) for v in world.all(Vpc) if v.enable_dns_support}
