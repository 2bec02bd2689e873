"""The connections that the kernel tracks in a namespace: what they carried, and those that must be forgotten.

An established connection passes without being judged by rules again. So those of an address end with its
interface: otherwise the next owner of the address would have them.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from cloister.kernel.netlink import NESTED, Message, Netlink, attribute, attributes, unpack

# linux/netfilter/nfnetlink_conntrack.h
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_TUPLE_ORIGIN, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_IP, _V4_SOURCE, _V4_DESTINATION = 1, 1, 2
_FLAG_SOURCE = 1
_PROTOCOL, _NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 2, 1, 2, 3
_COUNTERS_ORIGIN, _COUNTERS_REPLY, _PACKETS, _BYTES = 9, 10, 1, 2
#: the sysctl that has connections counted (bytes of their IP packets)
ACCOUNTING = "net/netfilter/nf_conntrack_acct"
NETFILTER = 12  # the netlink protocol
_HEAD = struct.pack("=BBH", socket.AF_INET, 0, 0)

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
#: A dump walks one table of all namespaces, 10 ms on a large machine, and costs as much again for so many
#: connections. Beyond, it pays to have the kernel look for an address, one dump each way.
_CHEAP = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """By its first packet's addresses. `number` is the kernel's, the same for no two at a time. Counts are
    (packets, bytes) of the opener and of the other; 0 unless `ACCOUNTING` is on."""

    number: int
    protocol: int
    source: str
    destination: str
    port: int  # the destination's; 0 where there are none
    zone: int = 0  # the same addresses and ports may be tracked in several
    sent: tuple[int, int]
    received: tuple[int, int]


def connections() -> list[Connection]:
    """Every connection in the network namespace of this thread. Raises NetlinkError."""
    here = Netlink(NETFILTER)
    try:
        return [_connection(attributes(body, len(_HEAD))) for body in here.dump(_GET, _HEAD)]
    finally:
        here.close()


def ended(data: bytes) -> list[Connection]:
    """The connections in messages of the kernel that tell of their end."""
    return [
        _connection(attributes(body, len(_HEAD)))
        for kind, _, _, body in unpack(data)
        if kind == _DELETE and body[0] == socket.AF_INET
    ]


def _connection(has: dict[int, bytes]) -> Connection:
    way = attributes(has[_TUPLE_ORIGIN], 0)
    ends, protocol = attributes(way[_IP], 0), attributes(way[_PROTOCOL], 0)
    return Connection(
        number=int.from_bytes(has[_ID], "big"),
        protocol=protocol[_NUMBER][0],
        source=socket.inet_ntoa(ends[_V4_SOURCE]),
        destination=socket.inet_ntoa(ends[_V4_DESTINATION]),
        port=int.from_bytes(protocol.get(_DESTINATION_PORT, b""), "big"),
        zone=int.from_bytes(has.get(_ZONE, b""), "big"),
        sent=_counters(has.get(_COUNTERS_ORIGIN)),
        received=_counters(has.get(_COUNTERS_REPLY)),
    )


def _counters(counters: bytes | None) -> tuple[int, int]:
    has = attributes(counters, 0) if counters else {}
    return int.from_bytes(has.get(_PACKETS, b""), "big"), int.from_bytes(has.get(_BYTES, b""), "big")


def forget(addresses: Collection[str]) -> int:
    """Drop every connection from or to these addresses in the network namespace of this thread; how many.

    A connection is somebody's by the source of its first packet or of its replies: what NAT writes over is
    the other end's view. Raises NetlinkError."""
    wanted = {socket.inet_aton(address) for address in addresses}
    try:
        count = int(_COUNT.read_text())
    except FileNotFoundError:  # nothing has ever been tracked
        return 0
    if not wanted or not count:
        return 0
    here = Netlink(NETFILTER)
    try:
        found = {}
        for body in _dumps(here, wanted, count):
            has = attributes(body, len(_HEAD))
            if _source(has.get(_TUPLE_ORIGIN)) in wanted or _source(has.get(_TUPLE_REPLY)) in wanted:
                found[has[_ID]] = has
        here.send(
            Message(
                type=_DELETE,
                flags=0,
                body=_HEAD + b"".join(attribute(kind, has[kind]) for kind in _NAMED if kind in has),
                what="forget a connection",
                ignore=(errno.ENOENT,),
            )
            for has in found.values()
        )
        return len(found)
    finally:
        here.close()


#: what names one connection, and no later one with the same addresses and ports
_NAMED = (_TUPLE_ORIGIN, _ID, _ZONE)


def _dumps(here: Netlink, wanted: set[bytes], count: int) -> Iterator[bytes]:
    if count <= 2 * len(wanted) * _CHEAP:
        yield from here.dump(_GET, _HEAD)
        return
    for address in wanted:
        for direction in (_TUPLE_ORIGIN, _TUPLE_REPLY):
            # Kernels before 5.8 take no notice of the filter and tell all.
            both = attribute(_V4_SOURCE, address) + attribute(_V4_DESTINATION, b"\0" * 4)
            sought = attribute(NESTED | _IP, both)
            flags = attribute(direction, struct.pack("=I", _FLAG_SOURCE))
            yield from here.dump(
                _GET, _HEAD + attribute(NESTED | direction, sought) + attribute(NESTED | _FILTER, flags)
            )


def _source(way: bytes | None) -> bytes | None:
    return attributes(attributes(way, 0).get(_IP, b""), 0).get(_V4_SOURCE) if way else None
