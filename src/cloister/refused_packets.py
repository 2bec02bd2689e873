"""What a VPC's router noted of the packets that it refused (`vpc/refusals.py`).

All is called in its namespace.
"""

from __future__ import annotations

import struct
from socket import IPPROTO_TCP, IPPROTO_UDP, inet_ntoa

from cloister.kernel.conntrack import Connection, connections
from cloister.kernel.flows import Counts
from cloister.kernel.plan import TABLE
from cloister.vpc import refusals

_TO_PORT, _TO = struct.Struct("!16s4sB3xH2x"), struct.Struct("!16s4sB3x")
Noted = tuple[str, str, int, int, int, int]  # port of the router, address, protocol, port, packets, bytes


def look() -> tuple[list[Connection], list[Noted], int]:
    """The router's connections, its notes of what it refused, and the handle of the table that has them."""
    counts = Counts()
    try:
        noted: list[Noted] = []
        for name, form in ((refusals.BY_PORT, _TO_PORT), (refusals.BY_PROTOCOL, _TO)):
            for key, packets, size in counts.read(name):
                port, address, protocol, *number = form.unpack(key)
                where = port.rstrip(b"\0").decode()
                noted.append((where, inet_ntoa(address), protocol, number[0] if number else 0, packets, size))
        return connections(), noted, counts.table() or 0
    finally:
        counts.close()


def table() -> int:
    """The handle of the table: another when it was built anew, and the notes with it."""
    counts = Counts()
    try:
        return counts.table() or 0
    finally:
        counts.close()


def overflow(noted: list[Noted]) -> bool:
    """Whether a set is full, so that some may not have been noted."""
    with_port = sum(protocol in (IPPROTO_TCP, IPPROTO_UDP) for _, _, protocol, *_ in noted)
    return max(with_port, len(noted) - with_port) >= refusals.SIZE


def clearing(ports: set[str]) -> str:
    """The nft commands that delete the notes of these ports of the router."""
    counts = Counts()
    try:
        commands = []
        for name, form in ((refusals.BY_PORT, _TO_PORT), (refusals.BY_PROTOCOL, _TO)):
            for key, _, _ in counts.read(name):
                port, address, protocol, *number = form.unpack(key)
                where = port.rstrip(b"\0").decode()
                if where in ports:
                    parts = [f'"{where}"', inet_ntoa(address), str(protocol), *map(str, number)]
                    commands.append(f"delete element ip {TABLE} {name} {{ {' . '.join(parts)} }}")
        return "\n".join(commands)
    finally:
        counts.close()
