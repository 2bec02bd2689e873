"""What a VPC's router noted of the packets that it refused (`vpc/refusals.py`): read, and cleared.

Both are called in the router's namespace.
"""

from __future__ import annotations

import struct
from socket import inet_ntoa

from cloister.kernel.conntrack import Connection, connections
from cloister.kernel.flows import Counts
from cloister.kernel.nft import Nft
from cloister.kernel.plan import TABLE
from cloister.vpc import refusals

_TO_PORT, _TO = struct.Struct("!16s4sB3xH2x"), struct.Struct("!16s4sB3x")
Noted = tuple[str, str, int, int, int, int]  # port of the router, address, protocol, port, packets, bytes


def look() -> tuple[list[Connection], list[Noted]]:
    """The router's connections, and its notes of what it refused."""
    counts = Counts()
    try:
        noted: list[Noted] = []
        for name, form in ((refusals.BY_PORT, _TO_PORT), (refusals.BY_PROTOCOL, _TO)):
            for key, packets, size in counts.read(name):
                port, address, protocol, *number = form.unpack(key)
                where = port.rstrip(b"\0").decode()
                noted.append((where, inet_ntoa(address), protocol, number[0] if number else 0, packets, size))
        return connections(), noted
    finally:
        counts.close()


def clear(ports: set[str]) -> None:
    """Delete the notes of these ports of the router."""
    counts, nft = Counts(), Nft()
    try:
        commands = []
        for name, form in ((refusals.BY_PORT, _TO_PORT), (refusals.BY_PROTOCOL, _TO)):
            for key, _, _ in counts.read(name):
                port, address, protocol, *number = form.unpack(key)
                where = port.rstrip(b"\0").decode()
                if where in ports:
                    parts = [f'"{where}"', inet_ntoa(address), str(protocol), *map(str, number)]
                    commands.append(f"delete element ip {TABLE} {name} {{ {' . '.join(parts)} }}")
        if commands:
            nft.run("\n".join(commands))
    finally:
        nft.close()
        counts.close()
