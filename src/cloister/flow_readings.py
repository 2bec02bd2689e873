"""What the kernel counted for flow logs, read and kept until every log has had it.

A reading is what one VPC's sets held between two moments. It is durable before the kernel's sets are emptied:

    1. lead the packets to the other generation of sets       (one transaction)
    2. wait until no packet is under way in the old one
    3. read it; write the reading, "not flushed"              (durable)
    4. empty the old generation; note "flushed"               (one transaction)

After a crash between 1 and 3 the old generation is found filled, and read; between 3 and 4 it is found noted,
and only emptied: nothing is counted twice or lost. A table that was built anew has lost its counts, which its
handle tells: the reading then says so, and SKIPDATA is recorded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from socket import inet_aton, inet_ntoa

from cloister.fabric import Fabric
from cloister.kernel.flows import Counts
from cloister.kernel.netns import Namespaces
from cloister.kernel.plan import TABLE
from cloister.kernel.reconcile import Reconciler
from cloister.kernel.ruleset import refill
from cloister.vpc.flow_logs import (
    GENERATIONS,
    KINDS,
    POINTS,
    Point,
    counting,
    counting_chain,
    dispatch,
    set_name,
)
from cloister.vpc.flow_records import ACK, FIN, RST, SYN, TCP, UDP, Counted, Key, Logged

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS reading (
    id INTEGER PRIMARY KEY,
    vpc TEXT NOT NULL,
    generation TEXT NOT NULL,
    table_handle INTEGER NOT NULL,
    flushed INTEGER NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    lost INTEGER NOT NULL,
    skipped TEXT NOT NULL,
    interfaces TEXT NOT NULL,
    flows BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS reading_end ON reading (vpc, "end");
CREATE TABLE IF NOT EXISTS vpc (id TEXT PRIMARY KEY, table_handle INTEGER NOT NULL, read_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS delivered (flow_log TEXT PRIMARY KEY, until INTEGER NOT NULL);
"""
#: seconds; a packet is through the hooks of its namespace within microseconds
GRACE = 0.05
#: until sets that do not add up are read again
_PAUSES = (0.05, 0.2, 1.0)
#: point, whether it is of flags, port, addresses, protocol, flags, ports, packets, bytes
_FLOW = struct.Struct(">BB16s4s4sBBHHQQ")
#: a flow's key, that of a packet without a counter but for its length, that of what has no ports
_PORTS = struct.Struct(">16s4s4sH2xH2x")
_NO_PORTS = struct.Struct(">16s4s4sB3x")
_PROTOCOLS = {"flows_tcp": TCP, "flows_udp": UDP}
#: what AWS records of a packet's flags; of ACK only that of a SYN-ACK
_FLAGS = {"flags_syn": SYN, "flags_synack": SYN | ACK, "flags_fin": FIN, "flags_rst": RST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`skipped` are ports (the router's ends) some packets of which were not told apart; `lost`: of all.
    `interfaces` are those of the ports in `flows`."""

    start: int
    end: int
    lost: bool
    skipped: tuple[str, ...]
    interfaces: dict[str, Logged]
    flows: bytes


class Readings:
    """The file, and the kernel's side of reading. Used from the loop's thread."""

    def __init__(
        self, path: Path | str, fabric: Fabric, reconciler: Reconciler, namespaces: Namespaces
    ) -> None:
        self._fabric = fabric
        self._reconciler = reconciler
        self._namespaces = namespaces
        # Readings of 100,000 flows are written by another thread; calls never overlap.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        if str(path) != ":memory:":
            Path(path).chmod(0o600)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    # --- reading -----------------------------------------------------------------------------------------

    async def read(self, vpc_id: str, interface_of: Callable[[str], Logged | None], now: int) -> None:
        """Take what the kernel counted of a VPC until `now`. Raises LookupError, OSError, NftError."""
        # Opened in the namespace, read from anywhere: others need the thread that enters namespaces.
        counts = await asyncio.to_thread(self._namespaces.call, vpc_id, Counts)
        try:
            await self._read(counts, vpc_id, interface_of, now)
        finally:
            counts.close()

    async def _read(
        self, counts: Counts, vpc_id: str, interface_of: Callable[[str], Logged | None], now: int
    ) -> None:
        table, active = counts.table(), _active(counts)
        if table is None or active is None:
            return
        known = self._db.execute("SELECT table_handle, read_at FROM vpc WHERE id = ?", (vpc_id,)).fetchone()
        since = known[1] if known else now
        lost = known is not None and known[0] != table
        idle = GENERATIONS[1 - GENERATIONS.index(active)]
        keep = partial(self._keep, counts, vpc_id, table, interface_of, since, now)
        noted = self._db.execute(
            "SELECT 1 FROM reading WHERE vpc = ? AND table_handle = ? AND generation = ? AND NOT flushed",
            (vpc_id, table, idle),
        ).fetchone()
        if noted or await asyncio.to_thread(keep, idle, False):
            await self._flush(vpc_id, idle)
        switch = "\n".join(
            f"flush chain ip {TABLE} {dispatch(point)}\n"
            f"add rule ip {TABLE} {dispatch(point)} goto {counting(point, idle)}"
            for point in POINTS
        )
        await self._fabric.in_turn(partial(self._reconciler.steer, vpc_id, switch))
        await asyncio.sleep(GRACE)
        if await asyncio.to_thread(keep, active, lost):
            await self._flush(vpc_id, active)
        self._db.execute("INSERT OR REPLACE INTO vpc VALUES (?, ?, ?)", (vpc_id, table, now))

    def _keep(
        self,
        counts: Counts,
        vpc_id: str,
        table: int,
        interface_of: Callable[[str], Logged | None],
        since: int,
        now: int,
        generation: str,
        lost: bool,
    ) -> bool:
        """Read a generation and write it down; whether there was anything."""
        flows, skipped, ports, complete = _dump(counts, generation, interface_of)
        lost = lost or not complete
        if not flows and not skipped and not lost:
            return False
        interfaces = {port: asdict(found) for port in ports if (found := interface_of(port)) is not None}
        self._db.execute(
            "INSERT INTO reading VALUES (NULL, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
            (vpc_id, generation, table, min(since, now), now, lost, json.dumps(skipped),
             json.dumps(interfaces), flows),
        )  # fmt: skip
        return True

    async def _flush(self, vpc_id: str, generation: str) -> None:
        names = (set_name(kind, point, generation) for point in POINTS for kind in KINDS)
        lines = [f"flush set ip {TABLE} {name}" for name in names]
        for point in POINTS:
            lines += refill(counting_chain(vpc_id, point, generation))
        commands = "\n".join(lines)
        await self._fabric.in_turn(partial(self._reconciler.steer, vpc_id, commands))
        self._db.execute(
            "UPDATE reading SET flushed = 1 WHERE vpc = ? AND generation = ?", (vpc_id, generation)
        )

    # --- what was read -----------------------------------------------------------------------------------

    def between(self, vpc_id: str, after: int, until: int) -> list[Reading]:
        """The readings that ended in (after, until]."""
        rows = self._db.execute(
            'SELECT start, "end", lost, skipped, interfaces, flows FROM reading'
            ' WHERE vpc = ? AND "end" > ? AND "end" <= ? ORDER BY id',
            (vpc_id, after, until),
        )
        return [
            Reading(
                start=start,
                end=end,
                lost=bool(lost),
                skipped=tuple(json.loads(skipped)),
                interfaces={
                    port: Logged(**{**each, "addresses": tuple(each["addresses"])})
                    for port, each in json.loads(interfaces).items()
                },
                flows=flows,
            )
            for start, end, lost, skipped, interfaces, flows in rows
        ]

    def ends(self, vpc_id: str, after: int) -> list[int]:
        """When the readings after a moment ended."""
        rows = self._db.execute(
            'SELECT DISTINCT "end" FROM reading WHERE vpc = ? AND "end" > ?', (vpc_id, after)
        )
        return [end for (end,) in rows]

    def delivered(self, flow_log_id: str) -> int | None:
        found = self._db.execute("SELECT until FROM delivered WHERE flow_log = ?", (flow_log_id,)).fetchone()
        return None if found is None else int(found[0])

    def set_delivered(self, flow_log_id: str, until: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO delivered VALUES (?, ?)", (flow_log_id, until))

    def forget(self, vpc_id: str, before: int) -> None:
        """Readings that every log has had."""
        self._db.execute('DELETE FROM reading WHERE flushed AND vpc = ? AND "end" <= ?', (vpc_id, before))


def _active(counts: Counts) -> str | None:
    """The generation that counts now."""
    candidates = {counting(POINTS[0], generation): generation for generation in GENERATIONS}
    leads_to = counts.leads_to(dispatch(POINTS[0]), candidates)
    return candidates[leads_to] if leads_to else None


def _dump(
    counts: Counts, generation: str, interface_of: Callable[[str], Logged | None]
) -> tuple[bytes, list[str], set[str], bool]:
    """The flows of a generation, the ports of which some were not told apart, all ports; and whether that is
    every packet there was."""
    out: list[bytes] = []
    skipped: set[str] = set()
    ports: set[bytes] = set()
    complete = True
    for number, point in enumerate(POINTS):
        found, whole = _settled(counts, point, generation, interface_of)
        complete = complete and whole
        for kind, elements in found.items():
            if kind == "overflow":
                skipped.update(_text(key[:16]) for key in elements)
                continue
            out += _packed(number, kind, elements.items())
            ports.update(key[:16] for key in elements)
    return b"".join(out), sorted(skipped), {_text(port) for port in ports} | skipped, complete


Elements = dict[bytes, tuple[int, int]]


def _settled(
    counts: Counts, point: Point, generation: str, interface_of: Callable[[str], Logged | None]
) -> tuple[dict[str, Elements], bool]:
    """The sets of a point, and whether they add up to the packets it saw. The kernel's hash tables grow in
    the background: a walk meanwhile may miss an element, or come by one twice."""
    seen = counts.packets(counting(point, generation))
    for pause in (*_PAUSES, 0.0):
        found: dict[str, Elements] = {}
        for kind in KINDS if seen else ():
            elements = counts.read(set_name(kind, point, generation))
            found[kind] = {key: (packets, size) for key, packets, size in elements}
        for protocol in ("tcp", "udp"):
            late = found.pop(f"late_{protocol}", {})
            _merge(found.get(f"flows_{protocol}", {}), late, point, interface_of)
        told = sum(packets for kind in (*_PROTOCOLS, "others") for packets, _ in found.get(kind, {}).values())
        if told == seen:
            return found, True
        time.sleep(pause)
        seen = counts.packets(counting(point, generation))
    log.warning("%s of %s packets are told of %s", told, seen, point.name)
    # Of which interfaces is known when a set was full.
    return found, bool(found.get("overflow"))


def _merge(
    flows: Elements, late: Elements, point: Point, interface_of: Callable[[str], Logged | None]
) -> None:
    """Packets that had no counter: each is its port, the other end's address, the ports, and its length in
    the machine's byte order."""
    addresses: dict[bytes, bytes] = {}
    for one in late:
        port, peer, ports = one[:16], one[16:20], one[20:28]
        if port not in addresses:
            logged = interface_of(_text(port))
            addresses[port] = inet_aton(logged.address) if logged is not None else bytes(4)
        ends = (addresses[port], peer) if point.egress else (peer, addresses[port])
        key = b"".join((port, *ends, ports))
        packets, size = flows.get(key, (0, 0))
        flows[key] = (packets + 1, size + int.from_bytes(one[28:], sys.byteorder))


def _packed(number: int, kind: str, found: Iterable[tuple[bytes, tuple[int, int]]]) -> Iterator[bytes]:
    pack = _FLOW.pack
    if kind == "others":
        for key, (packets, size) in found:
            port, source, destination, protocol = _NO_PORTS.unpack(key)
            yield pack(number, 0, port, source, destination, protocol, 0, 0, 0, packets, size)
        return
    protocol, flags = _PROTOCOLS.get(kind, TCP), _FLAGS.get(kind, 0)
    for key, (packets, size) in found:
        port, source, destination, source_port, destination_port = _PORTS.unpack(key)
        yield pack(
            number, flags != 0, port, source, destination, protocol, flags, source_port, destination_port,
            packets, size,
        )  # fmt: skip


def _text(port: bytes) -> str:
    return port.rstrip(b"\0").decode()


# --- from readings to flows ------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Traffic:
    """What an interface had in an interval."""

    logged: Logged
    flows: dict[Key, Counted] = field(default_factory=dict)
    skipped: bool = False


def aggregate(
    readings: Iterable[Reading], covered: Callable[[Logged], bool], points: Iterable[Point] = POINTS
) -> dict[str, Traffic]:
    """The traffic of the covered interfaces, by id."""
    wanted = {number for number, point in enumerate(POINTS) if point in points}
    found: dict[str, Traffic] = {}
    for reading in readings:
        traffic: dict[bytes, Traffic] = {}
        for port, logged in reading.interfaces.items():
            if covered(logged):
                its = found.setdefault(logged.interface_id, Traffic(logged=logged))
                its.skipped = its.skipped or port in reading.skipped
                traffic[port.encode().ljust(16, b"\0")] = its
        for (
            number, of_flags, port_bytes, source, destination, protocol, flags, source_port, destination_port,
            packets, size,
        ) in _FLOW.iter_unpack(reading.flows):  # fmt: skip
            here = traffic.get(port_bytes)
            if here is None or number not in wanted:
                continue
            point = POINTS[number]
            key = Key(
                source=inet_ntoa(source),
                destination=inet_ntoa(destination),
                source_port=source_port,
                destination_port=destination_port,
                protocol=protocol,
                egress=point.egress,
                accept=point.accept,
            )
            counted = here.flows.get(key)
            if of_flags:
                if counted is not None:
                    counted.flags |= flags
                continue
            if counted is None:
                counted = here.flows[key] = Counted(start=reading.start)
            counted.packets += packets
            counted.bytes += size
            counted.end = reading.end
    return found
