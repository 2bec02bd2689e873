"""What the kernel counted, put together."""

from __future__ import annotations

import struct
import sys
from socket import inet_aton

import pytest

from cloister.flow_readings import Elements, _merge
from cloister.vpc.flow_logs import POINTS, Point
from cloister.vpc.flow_records import Logged

PORT = b"e0000000000010".ljust(16, b"\0")
OWN, PEER = "10.0.0.4", "10.0.0.9"


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_packets_without_a_counter_are_added_to_the_flow_they_are_of(point: Point) -> None:
    logged = Logged(
        interface_id="eni-1", subnet_id="s", vpc_id="v", zone_id="z", addresses=("10.0.0.7",), address=OWN
    )
    ends = (OWN, PEER) if point.egress else (PEER, OWN)
    ports = struct.pack(">H2xH2x", 5000, 80)
    known = PORT + inet_aton(ends[0]) + inet_aton(ends[1]) + ports
    flows: Elements = {known: (3, 120)}
    other = struct.pack(">H2xH2x", 5001, 80)
    late = {PORT + inet_aton(PEER) + which + size.to_bytes(4, sys.byteorder): (0, 0)
            for which, size in ((ports, 40), (ports, 70_000), (other, 60))}  # fmt: skip
    _merge(flows, late, point, {PORT.rstrip(b"\0").decode(): logged}.get)
    assert flows == {known: (5, 70_160), known[:24] + other: (1, 60)}
