"""IPsec between instances: what is sealed opens once, by the peer, unaltered; keys need the job's secret."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.jobs.esp import ASSOCIATIONS, WINDOW, Association, Peer, fragments, spi_of, worn

A, B = b"\x0a\0\0\4", b"\x0a\0\0\5"


def _pair(one: bytes = b"secret", other: bytes = b"secret") -> tuple[Peer, Peer]:
    return Peer(one, A, B), Peer(other, B, A)


def _agreed() -> tuple[Peer, Peer]:
    asker, answerer = _pair()
    reply = answerer.hear(asker.request(), 0.0)
    assert reply is not None
    assert asker.hear(reply, 0.0) is None
    return asker, answerer


def _open(peer: Peer, data: bytes) -> bytes:
    packet = peer.inbound[spi_of(data)].open(data)
    peer.proven(spi_of(data))
    return packet


@given(packets=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5))
def test_what_one_side_seals_the_other_opens(packets: list[bytes]) -> None:
    asker, answerer = _agreed()
    assert asker.outbound is not None
    for packet in packets:
        sealed = asker.outbound.seal(packet)
        assert packet not in sealed or len(packet) < 4
        assert (len(sealed) - 16) % 4 == 0
        assert _open(answerer, sealed) == packet
    assert answerer.outbound is not None
    for packet in packets:
        assert _open(asker, answerer.outbound.seal(packet)) == packet


@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_packet_with_any_bit_changed_does_not_open(at: int, bit: int) -> None:
    association = Association(spi=300, key=b"k" * 36, born=0.0)
    sealed = bytearray(association.seal(b"a packet"))
    at %= len(sealed)
    sealed[at] ^= 1 << bit
    if at < 4:  # the name of the association is checked with the rest
        assert spi_of(bytes(sealed)) != 300
    with pytest.raises(ValueError, match=r"."):
        Association(spi=300, key=b"k" * 36, born=0.0).open(bytes(sealed))


@given(order=st.permutations(range(20)))
def test_every_packet_opens_once_in_whatever_order_they_come(order: list[int]) -> None:
    sender, receiver = (Association(spi=300, key=b"k" * 36, born=0.0) for _ in range(2))
    sealed = [sender.seal(bytes([n + 1])) for n in range(20)]
    assert [receiver.open(sealed[n]) for n in order] == [bytes([n + 1]) for n in order]
    for each in sealed:
        with pytest.raises(ValueError, match="repeated"):
            receiver.open(each)


def test_a_packet_from_before_the_window_is_refused() -> None:
    sender, receiver = (Association(spi=300, key=b"k" * 36, born=0.0) for _ in range(2))
    first = sender.seal(b"x")
    for _ in range(WINDOW):
        receiver.open(sender.seal(b"x"))
    with pytest.raises(ValueError, match="repeated"):
        receiver.open(first)


def test_without_the_jobs_secret_nobody_gets_keys() -> None:
    asker, answerer = _pair(b"secret", b"another")
    assert answerer.hear(asker.request(), 0.0) is None
    assert not answerer.inbound


def test_a_request_is_for_one_receiver_from_one_sender() -> None:
    asker, _ = _pair()
    somebody = Peer(b"secret", b"\x0a\0\0\6", A)
    assert somebody.hear(asker.request(), 0.0) is None
    assert asker.hear(asker.request(), 0.0) is None  # its own, reflected


def test_a_reply_is_for_one_request() -> None:
    asker, answerer = _pair()
    old = answerer.hear(asker.request(), 0.0)
    assert old is not None
    asker.hear(old, 0.0)
    first = asker.outbound
    asker.request()
    asker.hear(old, 0.0)
    assert asker.outbound is first


def test_repeated_old_requests_do_not_change_what_is_used() -> None:
    asker, answerer = _pair()
    request = asker.request()
    reply = answerer.hear(request, 0.0)
    assert reply is not None
    asker.hear(reply, 0.0)
    assert asker.outbound is not None
    _open(answerer, asker.outbound.seal(b""))
    used = answerer.outbound
    for _ in range(3 * ASSOCIATIONS):
        answerer.hear(request, 0.0)
    assert answerer.outbound is used
    assert len(answerer.inbound) <= ASSOCIATIONS
    assert _open(answerer, asker.outbound.seal(b"still")) == b"still"


def test_keys_wear_with_packets_and_time() -> None:
    association = Association(spi=300, key=b"k" * 36, born=100.0)
    assert not worn(association, 200.0)
    assert worn(association, 100.0 + 3600)
    association.sent = 1 << 31
    assert worn(association, 200.0)


@pytest.mark.parametrize("message", [b"", b"x" * 69, b"\2" + b"\0" * 68, b"\1" + b"\0" * 68])
def test_noise_on_the_key_port_is_ignored(message: bytes) -> None:
    asker, answerer = _pair()
    asker.request()
    assert asker.hear(message, 0.0) is None
    assert answerer.hear(message, 0.0) is None
    assert asker.outbound is None


@given(size=st.integers(1, 3000), mtu=st.integers(68, 1500), offset=st.integers(0, 1000), more=st.booleans())
def test_fragments_fit_and_put_together_are_the_packet(size: int, mtu: int, offset: int, more: bool) -> None:
    where = offset | (0x2000 if more else 0)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, 7, where, 64, 17, 0, A, B)
    data = bytes(n % 251 for n in range(size))
    parts = fragments(head + data, mtu)
    assert all(len(part) <= mtu for part in parts)
    if len(parts) == 1:
        assert parts == [head + data]
        return
    together = bytearray(size)
    for part in parts:
        length, number, place = struct.unpack_from("!HHH", part, 2)
        assert (length, number, part[12:20]) == (len(part), 7, A + B)
        total = sum(struct.unpack("!10H", part[:20]))
        assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
        start = 8 * ((place & 0x1FFF) - offset)
        together[start : start + length - 20] = part[20:]
        assert bool(place & 0x2000) is (more or start + length - 20 < size)
    assert together == data


def test_of_the_inbound_keys_those_are_in_use_that_the_peer_has_proven() -> None:
    asker, answerer = _agreed()
    assert len(asker.in_use()) == 1
    assert not answerer.in_use()
    assert asker.outbound is not None
    _open(answerer, asker.outbound.seal(b""))
    assert answerer.in_use() == list(answerer.inbound.values())
