"""TCP in a VPC with a flow log against the same VPC without one; and what reading 100,000 flows costs.

Both VPCs are made by the real reconciler in a throw-away world, with one rule each (`bench.network`). The log
wants every packet, accepted and refused, of both ends, and TCP's flags."""

from __future__ import annotations

import json
import resource
import socket
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bench import measure
from bench.network import Pair
from cloister.flow_readings import _dump
from cloister.kernel.flows import Counts
from cloister.kernel.netns import Namespaces
from cloister.kernel.reconcile import Reconciler
from cloister.vpc.compile import compile
from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.flow_records import DEFAULT_FORMAT
from cloister.world import World

FLOWS = 100_000
#: two sets have every flow: the sender's and the receiver's end of it
_FORMAT = DEFAULT_FORMAT + " ${tcp-flags}"


def inside(rounds: int) -> list[measure.Row]:
    with tempfile.TemporaryDirectory() as folder, Namespaces(Path(folder) / "netns") as namespaces:
        off = Pair(namespaces, World(), "1")
        on = Pair(namespaces, off.world, "2")
        fresh = Pair(namespaces, on.world, "3")
        tx = fresh.world.begin()
        for vpc in (on.vpc, fresh.vpc):
            tx.put(
                FlowLog(flow_log_id=f"fl-{vpc}", resource_id=vpc, vpc_id=vpc, log_format=_FORMAT, created=0)
            )
        reconciler = Reconciler(namespaces)
        servers = []
        try:
            reconciler.apply(compile(tx.commit()))
            servers = [pair.serve() for pair in (off, on)]
            rows = []
            for what, word, unit, scale in (
                ("TCP throughput", "send", "Gbit/s", 8e-9),
                ("connections", "connect", "/s", 1.0),
            ):
                ours, peer = on.measured(word), off.measured(word)
                ours(), peer()
                samples = measure.interleave(ours, peer, max(11, 2 * rounds))
                scaled = [[value * scale for value in values] for values in samples]
                rows.append(
                    measure.row(f"flow logs: {what}, on : off", unit, scaled[0], scaled[1], at_least=0.9)
                )
            return [*rows, _reading(namespaces, fresh)]
        finally:
            for server in servers:
                server.communicate()
            reconciler.apply({})
            reconciler.close()


def _reading(namespaces: Namespaces, pair: Pair) -> measure.Row:
    """CPU seconds to read FLOWS new flows, seen at both ends, and a minute's: the share of a core at FLOWS a
    minute."""
    address = pair.ends[1].addresses[0].address
    for source_port in range(20_000, 20_000 + FLOWS // 1000):
        made = namespaces.socket(pair.ends[0].interface_id, socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", source_port))
        for port in range(1, 1001):
            made.sendto(b"", (address, port))
        made.close()
    time.sleep(0.3)
    counts = namespaces.call(pair.vpc, Counts)
    began = resource.getrusage(resource.RUSAGE_SELF)
    _dump(counts, "a", lambda port: None)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    counts.close()
    spent = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    return measure.row(
        "flow logs: CPU to read a minute's 100,000 flows : a minute", "s", [spent], [60.0], at_most=0.1
    )


def run(rounds: int) -> list[measure.Row]:
    return measure.in_world(__name__, rounds)


if __name__ == "__main__":
    print(json.dumps([asdict(row) for row in inside(int(sys.argv[1]))]))
