"""What the kernel tells of connections, from its bytes."""

from __future__ import annotations

import socket
import struct

from cloister.kernel.conntrack import Connection, ended
from cloister.kernel.netlink import NESTED, attribute, pack


def _way(source: str, destination: str, protocol: int, *ports: int) -> bytes:
    ends = attribute(1, socket.inet_aton(source)) + attribute(2, socket.inet_aton(destination))
    told = attribute(1, bytes([protocol]))
    told += b"".join(attribute(2 + i, port.to_bytes(2, "big")) for i, port in enumerate(ports))
    return attribute(NESTED | 1, ends) + attribute(NESTED | 2, told)


def _message(kind: int, family: int = socket.AF_INET, *, counted: bool = True, protocol: int = 6) -> bytes:
    ports = (40000, 443) if protocol == 6 else ()
    body = struct.pack("=BBH", family, 0, 0)
    body += attribute(NESTED | 1, _way("10.0.0.4", "10.0.0.9", protocol, *ports))
    body += attribute(NESTED | 2, _way("10.0.0.9", "10.0.0.4", protocol, *reversed(ports)))
    body += attribute(12, (0xABCD1234).to_bytes(4, "big"))
    if counted:
        for which, (packets, size) in ((9, (7, 4000)), (10, (5, 6_000_000_000))):
            counters = attribute(1, packets.to_bytes(8, "big")) + attribute(2, size.to_bytes(8, "big"))
            body += attribute(NESTED | which, counters)
    return pack(kind, 0, 0, body)


def test_the_end_of_a_connection_is_told_with_its_final_counts() -> None:
    (told,) = ended(_message(1 << 8 | 2))
    assert told == Connection(
        number=0xABCD1234,
        protocol=6,
        source="10.0.0.4",
        destination="10.0.0.9",
        port=443,
        sent=(7, 4000),
        received=(5, 6_000_000_000),
    )


def test_one_without_ports_or_counts_is_told_too() -> None:
    (told,) = ended(_message(1 << 8 | 2, counted=False, protocol=47))
    assert (told.protocol, told.port, told.sent, told.received) == (47, 0, (0, 0), (0, 0))


def test_what_is_no_end_or_not_of_ipv4_is_passed_over() -> None:
    assert ended(_message(1 << 8 | 0) + _message(1 << 8 | 2, socket.AF_INET6)) == []
