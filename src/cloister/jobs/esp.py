"""IPsec between two instances: its packets (RFC 4303, AES-256-GCM of RFC 4106), how keys are agreed. No I/O.

Both sides know a secret of the job. Who has packets to send and no keys asks, the other answers, over UDP:

    request   1, the asker's SPI, a fresh X25519 key, and an HMAC of it all under the job's secret
    reply     2, the answerer's SPI, a fresh X25519 key, and an HMAC of request and reply

Keys are HKDF(secret, X25519, both SPIs), one per direction. So nobody without the secret takes part, and what
was captured stays closed when the secret is known later. The answerer goes over to new keys with the first
packet that proves that the asker has them, as anybody can repeat an old request. It is not IKE, which would
agree on what is given here: who the sides are, and the one algorithm.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

#: a security association ends after so many packets, long before its sequence numbers do, or seconds
PACKETS, SECONDS = 1 << 31, 3600.0
#: associations that a peer may have open towards us: the one in use, the one before, one being agreed on
ASSOCIATIONS = 4
#: how far behind the newest a packet may be (RFC 4303, 3.4.3)
WINDOW = 1024
_IPV4, _NOTHING = 4, 59  # the next header: a whole packet (tunnel mode), or none (a dummy)
_HEAD = struct.Struct("!II")
_VECTOR = struct.Struct("!Q")
_HELLO = struct.Struct("!BI32s")
_TAG = 32
_DONT, _MORE = 0x4000, 0x2000  # "don't fragment" and "more fragments"


@dataclass(slots=True)
class Association:
    """One direction's keys. `spi` is the receiver's name for it."""

    spi: int
    key: bytes  # 32 bytes of key, 4 of salt
    born: float
    sent: int = 0
    newest: int = 0
    seen: int = 0  # bit n: newest - n came
    _cipher: AESGCM = field(init=False)

    def __post_init__(self) -> None:
        self._cipher = AESGCM(self.key[:32])

    def seal(self, packet: bytes) -> bytes:
        """An ESP packet of an IP packet; of b"" a dummy."""
        self.sent += 1
        head = _HEAD.pack(self.spi, self.sent)
        vector = _VECTOR.pack(self.sent)
        padding = -(len(packet) + 2) % 4
        trailer = bytes((*range(1, padding + 1), padding, _IPV4 if packet else _NOTHING))
        return head + vector + self._cipher.encrypt(self.key[32:] + vector, packet + trailer, head)

    def open(self, data: bytes) -> bytes:
        """The IP packet in an ESP packet; b"" of a dummy. Raises ValueError of a forged or repeated one."""
        if len(data) < 16 + 2 + 16:
            raise ValueError("too short")
        number = _HEAD.unpack_from(data)[1]
        behind = self.newest - number
        if number == 0 or behind >= WINDOW or (behind >= 0 and self.seen >> behind & 1):
            raise ValueError("a repeated packet")
        try:
            plain = self._cipher.decrypt(self.key[32:] + data[8:16], data[16:], data[:8])
        except InvalidTag:
            raise ValueError("not sealed by the peer") from None
        if behind < 0:
            self.seen = (self.seen << -behind | 1) & ((1 << WINDOW) - 1)
            self.newest = number
        else:
            self.seen |= 1 << behind
        padding, kind = plain[-2], plain[-1]
        if kind == _NOTHING:
            return b""
        if kind != _IPV4 or padding + 2 > len(plain):
            raise ValueError("not a packet")
        return plain[: -2 - padding]


def spi_of(data: bytes) -> int:
    """Which association an ESP packet is for; 0 (none) of one that is too short."""
    return int(_HEAD.unpack_from(data)[0]) if len(data) >= _HEAD.size else 0


def fragments(packet: bytes, mtu: int) -> list[bytes]:
    """An IP packet cut to fit (RFC 791): the kernel's ESP seals a large datagram whole, and what is sealed is
    larger than a link for what is not."""
    head = (packet[0] & 15) * 4
    if len(packet) <= mtu:
        return [packet]
    where = int.from_bytes(packet[6:8], "big")
    step = (mtu - head) & ~7
    found = []
    for start in range(head, len(packet), step):
        data = packet[start : start + step]
        more = _MORE if start + step < len(packet) else 0
        place = ((where & ~_DONT) + (start - head) // 8 | more).to_bytes(2, "big")
        cut = bytearray(
            packet[:2] + (head + len(data)).to_bytes(2, "big") + packet[4:6] + place + packet[8:head]
        )
        cut[10:12] = b"\0\0"
        total = sum(struct.unpack(f"!{head // 2}H", cut))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        cut[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
        found.append(bytes(cut) + data)
    return found


@dataclass(slots=True)
class Peer:
    """What one side (`own`) knows of another (`other`), both addresses of 4 bytes."""

    secret: bytes
    own: bytes
    other: bytes
    outbound: Association | None = None
    inbound: dict[int, Association] = field(default_factory=dict)
    #: outbound associations of requests that we answered, by the SPI of their inbound side
    _unproven: dict[int, Association] = field(default_factory=dict)
    _asked: tuple[X25519PrivateKey, bytes] | None = None

    def request(self) -> bytes:
        """Ask for keys; asking again repeats the same request until there is an answer."""
        if self._asked is None:
            private = X25519PrivateKey.generate()
            hello = _HELLO.pack(1, _new_spi(), private.public_key().public_bytes_raw())
            self._asked = private, hello + self._tag(self.own, self.other, hello)
        return self._asked[1]

    def hear(self, message: bytes, now: float) -> bytes | None:
        """The reply to a request. None of anything else: of a reply to ours, `outbound` is new after it.
        What does not belong to this exchange is ignored."""
        if len(message) != _HELLO.size + _TAG:
            return None
        hello, tag = message[: _HELLO.size], message[_HELLO.size :]
        kind, spi, key = _HELLO.unpack(hello)
        if kind == 1 and hmac.compare_digest(tag, self._tag(self.other, self.own, hello)):
            return self._answer(hello, spi, key, now)
        if kind == 2 and self._asked is not None:
            private, request = self._asked
            if hmac.compare_digest(tag, self._tag(self.other, self.own, request + hello)):
                self._asked = None
                own_spi = _HELLO.unpack_from(request)[1]
                there, back = self._keys(private, key, own_spi, spi)
                self._accept(Association(spi=own_spi, key=back, born=now))
                self.outbound = Association(spi=spi, key=there, born=now)
        return None

    def proven(self, spi: int) -> None:
        """A packet of this inbound association was genuine: what we send may use its other direction."""
        outbound = self._unproven.pop(spi, None)
        if outbound is not None:
            self.outbound = outbound

    def in_use(self) -> list[Association]:
        """Of the inbound ones, those that the peer is known to have."""
        return [each for spi, each in self.inbound.items() if spi not in self._unproven]

    def _answer(self, request: bytes, asker_spi: int, key: bytes, now: float) -> bytes:
        private = X25519PrivateKey.generate()
        spi = _new_spi()
        hello = _HELLO.pack(2, spi, private.public_key().public_bytes_raw())
        there, back = self._keys(private, key, asker_spi, spi)
        self._accept(Association(spi=spi, key=there, born=now))
        self._unproven[spi] = Association(spi=asker_spi, key=back, born=now)
        asked = request + self._tag(self.other, self.own, request)
        return hello + self._tag(self.own, self.other, asked + hello)

    def _accept(self, association: Association) -> None:
        self.inbound[association.spi] = association
        while len(self.inbound) > ASSOCIATIONS:
            # Old requests, repeated by somebody, must not push out what is in use.
            spare = next((spi for spi in self.inbound if spi in self._unproven), next(iter(self.inbound)))
            self.inbound.pop(spare)
            self._unproven.pop(spare, None)

    def _keys(self, private: X25519PrivateKey, key: bytes, asker: int, answerer: int) -> tuple[bytes, bytes]:
        """Of the asker's packets, of the answerer's."""
        shared = private.exchange(X25519PublicKey.from_public_bytes(key))
        info = b"cloister esp" + _HEAD.pack(asker, answerer)
        material = HKDF(SHA256(), 72, self.secret, info).derive(shared)
        return material[:36], material[36:]

    def _tag(self, sender: bytes, receiver: bytes, text: bytes) -> bytes:
        return hmac.digest(self.secret, sender + receiver + text, hashlib.sha256)


def worn(association: Association, now: float) -> bool:
    """Whether it is time for new keys."""
    return association.sent >= PACKETS or now - association.born >= SECONDS


def _new_spi() -> int:
    return int.from_bytes(os.urandom(4), "big") | 0x100  # RFC 4303: 1 to 255 are reserved
