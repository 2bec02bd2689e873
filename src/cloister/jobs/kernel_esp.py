"""What the kernel does of a tunnel's work, where it can: sealing and opening, with keys the tunnel agreed on.
All of it is in the container's namespace, which the container may not configure.

Until there are keys for a peer nothing of it concerns that peer: its packets go by the second link to the
tunnel, which asks for keys. Then come, in this order: states; policies, by which what comes from the peer, or
goes to it by `eth0`, must go by those states; and a route to the peer by `eth0`, in a table asked first. They
go in the other order. So what leaves by `eth0` is sealed or lost, also without the tunnel.

Keys of a request that the tunnel answered come into the kernel when a packet proves that the asker has them.
That packet, and what comes until the kernel has them, the tunnel lays before the kernel again, by the second
link: the kernel opens all packets, and knows a repeated one.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress

from cloister.jobs import esp
from cloister.kernel import rtnl, xfrm
from cloister.kernel.netlink import Message
from cloister.kernel.rtnl import Rtnl

#: the table of routes to peers whose packets the kernel seals, and the rule that asks it before the main one
_TABLE, _PRIORITY = 500, 500
_LINK = "eth0"


class KernelEsp:
    """Of one container, made by a thread in its namespace. `sealed` is the tunnel's raw socket for ESP: the
    kernel gives it a copy of every packet, so it is told which ones not to take. What another tunnel left is
    removed: its keys are not known here."""

    def __init__(self, own: bytes, peers: Iterable[bytes], sealed: socket.socket) -> None:
        self._own = socket.inet_ntoa(own)
        self._sealed = sealed
        self._inbound: dict[bytes, set[int]] = {}
        self._outbound: dict[bytes, esp.Association] = {}
        self.events = xfrm.Events()
        self._xfrm, self._rtnl = xfrm.Xfrm(), Rtnl()
        link = self._rtnl.index(_LINK)
        if link is None:
            raise OSError(errno.ENODEV, f"the container has no {_LINK}")
        self._link = link
        self._hop = next(
            each.via for each in self._rtnl.routes() if each.destination == "0.0.0.0/0" and each.dev == link
        )
        self._rtnl.send(
            rtnl.delete_route(self._to(peer), table=_TABLE, protocol=rtnl.OTHER_PROTOCOL) for peer in peers
        )
        self._rtnl.send([rtnl.add_rule(_PRIORITY, _TABLE, None, rtnl.OTHER_PROTOCOL)])
        self._xfrm.send(xfrm.flush())
        # For packets that the second link brought before the kernel had keys. By this link the policies are
        # for them, also when the route is gone.
        self._clear = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._clear.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _LINK.encode())
        self._clear.bind((self._own, 0))
        self._clear.setblocking(False)

    def seals(self, peer: bytes) -> bool:
        return peer in self._outbound

    def opens(self, peer: bytes, spi: int) -> bool:
        return spi in self._inbound.get(peer, ())

    def send(self, packet: bytes) -> None:
        """To a peer that this seals for."""
        with suppress(OSError):  # no room: lost, as on any network
            self._clear.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

    def take(self, peer: esp.Peer) -> None:
        """Use the keys that a peer has now."""
        other = socket.inet_ntoa(peer.other)
        have = self._inbound.setdefault(peer.other, set())
        want = {each.spi: each for each in peer.in_use()}
        messages: list[Message] = [
            xfrm.add_state(
                xfrm.State(
                    source=other,
                    target=self._own,
                    spi=each.spi,
                    key=each.key,
                    hard_seconds=2 * int(esp.SECONDS) + 60,  # the peer's end goes first
                )
            )
            for each in want.values()
            if each.spi not in have
        ]
        messages += [xfrm.delete_state(self._own, spi) for spi in have - want.keys()]
        new, old = peer.outbound, self._outbound.get(peer.other)
        if new is not None and new is not old:
            messages.append(
                xfrm.add_state(
                    xfrm.State(
                        source=self._own,
                        target=other,
                        spi=new.spi,
                        key=new.key,
                        sent=new.sent,
                        soft_seconds=int(esp.SECONDS),
                        hard_seconds=2 * int(esp.SECONDS),
                        soft_packets=esp.PACKETS,
                    )
                )
            )
            if old is None:
                messages += xfrm.add_policies(self._own, other, self._link)
            else:
                messages.append(xfrm.delete_state(other, old.spi))
        self._xfrm.send(messages)
        self._inbound[peer.other] = set(want)
        xfrm.without(self._sealed, [spi for spis in self._inbound.values() for spi in spis])
        if new is not None:
            if old is None:
                route = rtnl.add_route(
                    self._to(peer.other),
                    table=_TABLE,
                    dev=self._link,
                    via=self._hop,
                    protocol=rtnl.OTHER_PROTOCOL,
                )
                self._rtnl.send([route])
            self._outbound[peer.other] = new

    @staticmethod
    def _to(peer: bytes) -> str:
        return f"{socket.inet_ntoa(peer)}/32"
