"""The tunnel of one instance of a job that encrypts: takes what the container sends to its peers, and sends
it on as IPsec from the container's own address (`jobs/esp.py`).

    python -m cloister.jobs.tunnel SPEC.json

One process per instance, outside of what the container can see: it reads the far end of the container's
second link (`vpc/isolation.py`), and opens its sockets for ESP and keys in the container's namespace, on its
port. It outlives the daemon; another one started for the same spec waits to take its place. A packet for a
peer without keys waits for them; what does not fit is lost, as on any network. Nothing goes in the clear.

Where the kernel can (`jobs/kernel_esp.py`), this process only agrees on keys, and hands them to it. A peer
cannot tell which of the two it speaks with.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cloister.jobs import esp
from cloister.jobs.agent import lock_path, result_path
from cloister.jobs.kernel_esp import KernelEsp
from cloister.kernel import syscalls, xfrm
from cloister.vpc.isolation import CLEAR_LINK, ESP, ESP_LINK, ESP_MTU, KEY_PORT

#: packets that wait for keys, per peer
_WAITING = 256
#: seconds between two requests for keys
_PATIENCE = 0.25
#: packets taken from one socket before the others have their turn
_TURN = 64
_BUFFER = 4 << 20
_ETHERNET_IPV4 = 0x0800
_FRAME_HEAD = 14
_OUTGOING = 4  # PACKET_OUTGOING
_SIOCETHTOOL, _SIOCGIFHWADDR, _ETHTOOL_STXCSUM = 0x8946, 0x8927, 0x17


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """`netns` is the container's, `tunnel_netns` where its second link ends. `secret` is in hex; `in_kernel`
    is whether the kernel seals and opens."""

    address: str
    peers: tuple[str, ...]
    netns: str
    tunnel_netns: str
    secret: str
    in_kernel: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def ready_path(spec_path: Path) -> Path:
    """It is there when packets are taken."""
    return spec_path.with_suffix(".ready")


def main(argv: Sequence[str]) -> int:
    spec_path = Path(argv[1])
    with open(lock_path(spec_path), "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if result_path(spec_path).exists():
            return 0
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        tunnel = Tunnel(Spec(**json.loads(spec_path.read_text())))
        ready_path(spec_path).touch()
        tunnel.serve()
    return 0


class Tunnel:
    def __init__(self, spec: Spec) -> None:
        self._own = socket.inet_aton(spec.address)
        others = [socket.inet_aton(each) for each in spec.peers]
        secret = bytes.fromhex(spec.secret)
        self._peers = {other: esp.Peer(secret, self._own, other) for other in others}
        self._waiting: dict[bytes, deque[bytes]] = {other: deque(maxlen=_WAITING) for other in others}
        self._asked: dict[bytes, float] = {}
        #: peers whose keys in the kernel are worn, or gone
        self._worn: set[bytes] = set()
        #: packets of peers that have just proven to have keys that the kernel is to have
        self._proofs: dict[bytes, list[bytes]] = {}
        _enter(spec.netns)
        _without_offload(ESP_LINK)
        self._sealed = socket.socket(socket.AF_INET, socket.SOCK_RAW, int(ESP))
        self._keys = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for each, port in ((self._sealed, 0), (self._keys, KEY_PORT)):
            # The route to a peer is the second link; these go by the port.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            each.bind((spec.address, port))
        self._kernel: KernelEsp | None = None
        if spec.in_kernel:
            for each in (self._sealed, self._keys):
                xfrm.exempt(each)
            self._kernel = KernelEsp(self._own, others, self._sealed)
        container = _mac(ESP_LINK)
        _enter(spec.tunnel_netns)
        self._clear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERNET_IPV4))
        self._clear.bind((CLEAR_LINK, _ETHERNET_IPV4))
        self._frame_head = container + _mac(CLEAR_LINK) + struct.pack("!H", _ETHERNET_IPV4)
        for each in (self._sealed, self._keys, self._clear):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            each.setblocking(False)

    def serve(self) -> None:
        """Until somebody ends the process."""
        sockets = {self._clear: self._from_container, self._sealed: self._from_peer, self._keys: self._key}
        poll = select.poll()
        for each in sockets:
            poll.register(each, select.POLLIN)
        by_number = {each.fileno(): (each, take) for each, take in sockets.items()}
        if self._kernel is not None:
            poll.register(self._kernel.events, select.POLLIN)
        while True:
            waits = self._worn or any(self._waiting.values())
            for number, _ in poll.poll(_PATIENCE * 1000 if waits else None):
                if number in by_number:
                    self._turn(*by_number[number])
                elif self._kernel is not None:
                    self._worn |= {socket.inet_aton(each) for each in self._kernel.events.read()}
                    self._worn &= self._peers.keys()
            while self._proofs:
                self._hand_over(*self._proofs.popitem())
            for other, packets in self._waiting.items():
                if packets or other in self._worn:
                    self._ask(other)

    @staticmethod
    def _turn(ready: socket.socket, take: Callable[[bytes, tuple[object, ...]], None]) -> None:
        for _ in range(_TURN):
            try:
                data, sender = ready.recvfrom(65536)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error of an earlier packet
                continue
            take(data, sender)

    def _from_container(self, frame: bytes, sender: tuple[object, ...]) -> None:
        packet = frame[_FRAME_HEAD:]
        peer = self._peers.get(packet[16:20])
        # a container's root may write any source; the router would drop it, were it in the clear
        if peer is None or sender[2] == _OUTGOING or packet[12:16] != self._own:
            return
        if self._kernel is not None and self._kernel.seals(peer.other):
            self._kernel.send(packet)
        elif self._kernel is not None or peer.outbound is None or esp.worn(peer.outbound, time.monotonic()):
            self._waiting[peer.other].append(packet)
        else:
            self._send(self._sealed, peer.outbound.seal(packet), peer.other, 0)

    def _from_peer(self, data: bytes, sender: tuple[object, ...]) -> None:
        other = socket.inet_aton(str(sender[0]))
        peer = self._peers.get(other)
        if peer is None:
            return
        outer, data = data, data[(data[0] & 15) * 4 :]
        spi = esp.spi_of(data)
        association = peer.inbound.get(spi)
        if association is None:  # it has keys that we lost, with the process before this one
            self._ask(other)
            return
        if self._kernel is not None and self._kernel.opens(other, spi):
            self._deliver(outer)
            return
        try:
            packet = association.open(data)
        except ValueError:
            return
        peer.proven(spi)
        if self._kernel is not None:
            self._proofs.setdefault(other, []).append(outer)
            return
        self._flush(peer)
        if packet and packet[12:16] == other and packet[16:20] == self._own:
            self._deliver(packet)

    def _key(self, message: bytes, sender: tuple[object, ...]) -> None:
        peer = self._peers.get(socket.inet_aton(str(sender[0])))
        if peer is None:
            return
        before = peer.outbound
        try:
            reply = peer.hear(message, time.monotonic())
        except ValueError:  # a key of X25519 that is none
            return
        if reply is not None:
            self._send(self._keys, reply, peer.other, KEY_PORT)
        elif peer.outbound is not None and peer.outbound is not before:
            proof = peer.outbound.seal(b"")
            if self._kernel is not None:  # what answers the proof finds the keys there
                self._kernel.take(peer)
                self._worn.discard(peer.other)
            self._send(self._sealed, proof, peer.other, 0)
            self._flush(peer)

    def _hand_over(self, other: bytes, packets: list[bytes]) -> None:
        """Have the kernel use the keys that these packets prove, and open them."""
        if self._kernel is not None:
            self._kernel.take(self._peers[other])
            self._worn.discard(other)
            for each in packets:
                self._deliver(each)
            self._flush(self._peers[other])

    def _deliver(self, packet: bytes) -> None:
        """To the container, by the second link."""
        for part in esp.fragments(packet, ESP_MTU):
            with suppress(OSError):  # no room: lost, as on any network
                self._clear.send(self._frame_head + part)

    def _ask(self, other: bytes) -> None:
        now = time.monotonic()
        if now - self._asked.get(other, -_PATIENCE) >= _PATIENCE:
            self._asked[other] = now
            self._send(self._keys, self._peers[other].request(), other, KEY_PORT)

    def _flush(self, peer: esp.Peer) -> None:
        waiting = self._waiting[peer.other]
        while waiting and peer.outbound is not None:
            if self._kernel is not None:
                self._kernel.send(waiting.popleft())
                continue
            self._send(self._sealed, peer.outbound.seal(waiting.popleft()), peer.other, 0)

    @staticmethod
    def _send(out: socket.socket, data: bytes, other: bytes, port: int) -> None:
        with suppress(OSError):  # no room, or an ICMP error of an earlier packet: lost, as on any network
            out.sendto(data, (socket.inet_ntoa(other), port))


def _enter(netns: str) -> None:
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    finally:
        os.close(fd)


def _without_offload(link: str) -> None:
    """Have the kernel put whole packets with checksums on a link: nothing behind it would cut them or sum
    them up. (Without checksums there is no segmentation either.)"""
    import array

    value = array.array("B", struct.pack("II", _ETHTOOL_STXCSUM, 0))
    address, _ = value.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, struct.pack("16sP16x", link.encode(), address))


def _mac(link: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, struct.pack("16s24x", link.encode()))
    return answer[18:24]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
