"""Links, addresses, neighbours, routes and rules through one rtnetlink socket per namespace.

Only what Cloister needs is here: IPv4, veth pairs, point to point. An `Rtnl` belongs to the namespace of the
thread that makes it, and may then be used from any thread.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass

from cloister.kernel.netlink import (
    ERROR,
    REQUEST,
    Message,
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    pack,
    text,
    unpack,
)
from cloister.kernel.plan import ROUTE_PROTOCOL

# message types (linux/rtnetlink.h)
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34

_REPLACE, _EXCL, _CREATE = 0x100, 0x200, 0x400

_IFF_UP = 1
_ROUTE_TYPES = {"unicast": 1, "local": 2, "blackhole": 6, "throw": 9}
_TYPE_NAMES = {number: name for name, number in _ROUTE_TYPES.items()}
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_HOST = 0, 253, 254
_ONLINK = 4
_PERMANENT = 0x80

#: protocol of the routes that belong to a link or namespace, and are no parts of a plan themselves
OWNED_PROTOCOL = ROUTE_PROTOCOL + 1
#: of routes and rules that others than the reconciler make, which it leaves alone
OTHER_PROTOCOL = ROUTE_PROTOCOL + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    index: int
    name: str
    mac: str
    mtu: int
    group: int
    up: bool
    alias: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteEntry:
    table: int
    destination: str
    type: str
    protocol: int
    dev: int | None
    via: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleEntry:
    priority: int
    table: int
    mark: int | None
    protocol: int


class Rtnl(Netlink):
    """An rtnetlink socket of the namespace of the thread that makes it."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)

    # ---- reading -------------------------------------------------------------------------------

    def index(self, name: str) -> int | None:
        """The index of the link of this name, or None."""
        request = _IFINFO.pack(0, 0, 0, 0, 0, 0) + attribute(3, _name(name))
        with self._lock:
            self._sequence += 1
            self._socket.send(pack(GETLINK, REQUEST, self._sequence, request))
            while True:
                for kind, _, sequence, body in unpack(self._socket.recv(1 << 16)):
                    if sequence != self._sequence:
                        continue
                    if kind == NEWLINK:
                        return int(_IFINFO.unpack_from(body)[3])
                    if kind == ERROR:
                        number = -struct.unpack_from("=i", body)[0]
                        if number == errno.ENODEV:
                            return None
                        raise NetlinkError(number, f"link {name}: {os.strerror(number)}")

    def links(self) -> list[Link]:
        found = []
        for body in self.dump(GETLINK, _IFINFO.pack(0, 0, 0, 0, 0, 0)):
            _, _, _, index, flags, _ = _IFINFO.unpack_from(body)
            has = attributes(body, _IFINFO.size)
            info = attributes(has[18], 0) if 18 in has else {}
            found.append(
                Link(
                    index=index,
                    name=text(has.get(3, b"")),
                    mac=has.get(1, b"").hex(":"),
                    mtu=struct.unpack("=I", has[4])[0] if 4 in has else 0,
                    group=struct.unpack("=I", has[27])[0] if 27 in has else 0,
                    up=bool(flags & _IFF_UP),
                    alias=text(has.get(20, b"")),
                    kind=text(info.get(1, b"")),
                )
            )
        return found

    def addresses(self) -> list[tuple[int, str]]:
        """(link index, CIDR) of every IPv4 address."""
        found = []
        for body in self.dump(GETADDR, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0)):
            family, length, _, _, index = _IFADDR.unpack_from(body)
            has = attributes(body, _IFADDR.size)
            if family == socket.AF_INET and (2 in has or 1 in has):
                found.append((index, f"{socket.inet_ntoa(has.get(2) or has[1])}/{length}"))
        return found

    def neighbours(self) -> list[tuple[int, str, str]]:
        """(link index, address, MAC) of every permanent IPv4 neighbour."""
        found = []
        for body in self.dump(GETNEIGH, _NDMSG.pack(socket.AF_INET, 0, 0, 0, 0)):
            family, index, state, _, _ = _NDMSG.unpack_from(body)
            has = attributes(body, _NDMSG.size)
            if family == socket.AF_INET and state & _PERMANENT and 1 in has:
                found.append((index, socket.inet_ntoa(has[1]), has.get(2, b"").hex(":")))
        return found

    def routes(self) -> list[RouteEntry]:
        """Every IPv4 route of every table that Cloister made (protocols 201 and 202)."""
        found = []
        for body in self.dump(GETROUTE, _RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
            family, length, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(body)
            if family != socket.AF_INET or protocol not in (ROUTE_PROTOCOL, OWNED_PROTOCOL):
                continue
            has = attributes(body, _RTMSG.size)
            address = socket.inet_ntoa(has[1]) if 1 in has else "0.0.0.0"
            found.append(
                RouteEntry(
                    table=struct.unpack("=I", has[15])[0] if 15 in has else table,
                    destination=f"{address}/{length}",
                    type=_TYPE_NAMES.get(kind, str(kind)),
                    protocol=protocol,
                    dev=struct.unpack("=I", has[4])[0] if 4 in has else None,
                    via=socket.inet_ntoa(has[5]) if 5 in has else None,
                )
            )
        return found

    def rules(self) -> list[RuleEntry]:
        """Every IPv4 policy rule that Cloister made (protocol 201)."""
        found = []
        for body in self.dump(GETRULE, _RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
            has = attributes(body, _RTMSG.size)
            protocol = has[21][0] if 21 in has else 0
            if protocol != ROUTE_PROTOCOL:
                continue
            found.append(
                RuleEntry(
                    priority=struct.unpack("=I", has[6])[0] if 6 in has else 0,
                    table=struct.unpack("=I", has[15])[0],
                    mark=struct.unpack("=I", has[10])[0] if 10 in has else None,
                    protocol=protocol,
                )
            )
        return found


# ---- messages: what can be asked -----------------------------------------------------------------

_IFINFO = struct.Struct("=BBHiII")
_IFADDR = struct.Struct("=BBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_RTMSG = struct.Struct("=BBBBBBBBI")


# Packets inside one machine never meet a wire: both ends of a pair say that they take and merge TCP segments
# of up to 192 KiB ("BIG TCP" for IPv4, from Linux 6.3), so a transfer crosses the rules a third as often.
# Older kernels pass over the two attributes, IFLA_GSO_IPV4_MAX_SIZE and IFLA_GRO_IPV4_MAX_SIZE.
_SEGMENTS = struct.pack("=I", 192 << 10)
_BIG_TCP = attribute(63, _SEGMENTS) + attribute(64, _SEGMENTS)


def add_veth(
    name: str, mac: str, mtu: int, group: int, peer_name: str, peer_mac: str, peer_netns: int
) -> Message:
    """A veth pair: one end here, the other at once in the namespace that `peer_netns` (a descriptor) is of.
    Making it in place matters: moving a link between namespaces takes 30 ms."""
    peer = (
        _IFINFO.pack(0, 0, 0, 0, 0, 0)
        + attribute(3, _name(peer_name))
        + attribute(1, _mac(peer_mac))
        + attribute(4, struct.pack("=I", mtu))
        + _BIG_TCP
        + attribute(28, struct.pack("=I", peer_netns))
    )
    info = attribute(1, b"veth\0") + attribute(2, attribute(1, peer))
    body = (
        _IFINFO.pack(0, 0, 0, 0, 0, 0)
        + attribute(3, _name(name))
        + attribute(1, _mac(mac))
        + attribute(4, struct.pack("=I", mtu))
        + attribute(27, struct.pack("=I", group))
        + _BIG_TCP
        + attribute(18, info)
    )
    return Message(type=NEWLINK, flags=_CREATE | _EXCL, body=body, what=f"add link {name}, peer {peer_name}")


def delete_link(name: str) -> Message:
    body = _IFINFO.pack(0, 0, 0, 0, 0, 0) + attribute(3, _name(name))
    return Message(type=DELLINK, flags=0, body=body, what=f"delete link {name}", ignore=(errno.ENODEV,))


def set_up(index: int) -> Message:
    body = _IFINFO.pack(0, 0, 0, index, _IFF_UP, _IFF_UP)
    return Message(type=SETLINK, flags=0, body=body, what=f"set link {index} up")


def set_alias(index: int, alias: str) -> Message:
    body = _IFINFO.pack(0, 0, 0, index, 0, 0) + attribute(20, alias.encode())
    return Message(type=SETLINK, flags=0, body=body, what=f"set the alias of link {index}")


def set_group(index: int, group: int) -> Message:
    body = _IFINFO.pack(0, 0, 0, index, 0, 0) + attribute(27, struct.pack("=I", group))
    return Message(type=SETLINK, flags=0, body=body, what=f"set the group of link {index}")


def add_address(index: int, cidr: str, *, own: bool = False) -> Message:
    """`own`: of this host alone, never the source of packets that leave by a link without an address."""
    return Message(
        type=NEWADDR,
        flags=_CREATE | _REPLACE,
        body=_address(index, cidr, _SCOPE_HOST if own else _SCOPE_UNIVERSE),
        what=f"add address {cidr}",
    )


def delete_address(index: int, cidr: str) -> Message:
    return Message(
        type=DELADDR,
        flags=0,
        body=_address(index, cidr),
        what=f"delete address {cidr}",
        ignore=(errno.EADDRNOTAVAIL,),
    )


def _address(index: int, cidr: str, scope: int = _SCOPE_UNIVERSE) -> bytes:
    interface = ipaddress.IPv4Interface(cidr)
    packed = interface.ip.packed
    return (
        _IFADDR.pack(socket.AF_INET, interface.network.prefixlen, 0, scope, index)
        + attribute(2, packed)
        + attribute(1, packed)
    )


def add_neighbour(index: int, address: str, mac: str) -> Message:
    body = (
        _NDMSG.pack(socket.AF_INET, index, _PERMANENT, 0, 0)
        + attribute(1, socket.inet_aton(address))
        + attribute(2, _mac(mac))
    )
    return Message(type=NEWNEIGH, flags=_CREATE | _REPLACE, body=body, what=f"add neighbour {address}")


def delete_neighbour(index: int, address: str) -> Message:
    body = _NDMSG.pack(socket.AF_INET, index, 0, 0, 0) + attribute(1, socket.inet_aton(address))
    return Message(
        type=DELNEIGH, flags=0, body=body, what=f"delete neighbour {address}", ignore=(errno.ENOENT,)
    )


def add_route(
    destination: str,
    *,
    table: int = 254,
    type: str = "unicast",
    dev: int | None = None,
    via: str | None = None,
    protocol: int = ROUTE_PROTOCOL,
) -> Message:
    """Add a route, or replace the one to the same destination in the same table."""
    return Message(
        type=NEWROUTE,
        flags=_CREATE | _REPLACE,
        body=_route(destination, table, type, dev, via, protocol),
        what=f"add {type} route {destination} in table {table}",
    )


def delete_route(destination: str, *, table: int = 254, protocol: int = ROUTE_PROTOCOL) -> Message:
    network = ipaddress.IPv4Network(destination)
    body = _RTMSG.pack(
        socket.AF_INET, network.prefixlen, 0, 0, _small(table), protocol, 255, 0, 0
    ) + attribute(15, struct.pack("=I", table))
    if network.prefixlen:
        body += attribute(1, network.network_address.packed)
    return Message(
        type=DELROUTE,
        flags=0,
        body=body,
        what=f"delete route {destination} of table {table}",
        ignore=(errno.ESRCH,),
    )


def _route(destination: str, table: int, type: str, dev: int | None, via: str | None, protocol: int) -> bytes:
    network = ipaddress.IPv4Network(destination)
    scope = _SCOPE_UNIVERSE
    if type == "local":
        scope = _SCOPE_HOST
    elif type == "unicast" and via is None:
        scope = _SCOPE_LINK
    body = _RTMSG.pack(
        socket.AF_INET,
        network.prefixlen,
        0,
        0,
        _small(table),
        protocol,
        scope,
        _ROUTE_TYPES[type],
        _ONLINK if via else 0,
    ) + attribute(15, struct.pack("=I", table))
    if network.prefixlen:
        body += attribute(1, network.network_address.packed)
    if dev is not None:
        body += attribute(4, struct.pack("=I", dev))
    if via is not None:
        body += attribute(5, socket.inet_aton(via))
    return body


def _small(table: int) -> int:
    """The 8-bit field; RT_TABLE_COMPAT when the number only fits into the attribute."""
    return table if table < 256 else 252


def add_rule(priority: int, table: int, mark: int | None, protocol: int = ROUTE_PROTOCOL) -> Message:
    return Message(
        type=NEWRULE,
        flags=_CREATE | _EXCL,
        body=_rule(priority, table, mark, protocol),
        what=f"add rule {priority}: mark {mark} lookup {table}",
        ignore=(errno.EEXIST,),
    )


def delete_rule(priority: int, table: int, mark: int | None) -> Message:
    return Message(
        type=DELRULE,
        flags=0,
        body=_rule(priority, table, mark, ROUTE_PROTOCOL),
        what=f"delete rule {priority}: mark {mark} lookup {table}",
        ignore=(errno.ENOENT,),
    )


def _rule(priority: int, table: int, mark: int | None, protocol: int) -> bytes:
    body = (
        _RTMSG.pack(socket.AF_INET, 0, 0, 0, _small(table), 0, 0, 1, 0)
        + attribute(6, struct.pack("=I", priority))
        + attribute(15, struct.pack("=I", table))
        + attribute(21, bytes([protocol]))
    )
    if mark is not None:
        body += attribute(10, struct.pack("=I", mark)) + attribute(16, struct.pack("=I", 0xFFFFFFFF))
    return body


def _name(name: str) -> bytes:
    if not 0 < len(name.encode()) < 16:
        raise ValueError(f"{name!r} cannot be the name of a link: 1 to 15 bytes")
    return name.encode() + b"\0"


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
