"""TCP from one interface to another of a VPC, its rules enforced, against a plain routed veth pair; and the
same between instances that encrypt, by the kernel where it has ESP, and by a process.

Both are made by the real reconciler in a throw-away world (`kernel.holder --exec`): namespace - router -
namespace, the same links, MTU and routes. The peer's nftables are removed, so nothing is tracked or judged.
Ours has a group of 1 or of 5,000 rules, of which only one, in the middle, matches.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from bench import measure
from cloister.ids import resource_id
from cloister.jobs import tunnel
from cloister.kernel import xfrm
from cloister.kernel.netns import Namespaces
from cloister.kernel.nft import Nft
from cloister.kernel.plan import TABLE
from cloister.kernel.reconcile import Reconciler
from cloister.vpc.compile import compile
from cloister.vpc.interfaces import create_interface
from cloister.vpc.isolation import KEY_PORT, tunnel_netns
from cloister.vpc.model import (
    GroupRule,
    NetworkInterface,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    Vpc,
)
from cloister.world import World

PORT = 5001
SECONDS = 0.7
RULES = (1, 5000)
KERNEL, PROCESS = "by-kernel", "by-process"


def vpc(rules: int, name: str) -> list[object]:
    """A VPC with a subnet and a group that has so many rules; one admits the VPC to the port."""
    vpc_id, group_id = f"vpc-{name}", f"sg-{name}"
    others = (
        GroupRule(
            rule_id=resource_id("sgr"),
            egress=False,
            protocol="tcp",
            from_port=6000 + i % 50,
            to_port=6000 + i % 50,
            cidr=f"172.{16 + (i >> 14)}.{i >> 6 & 255}.{(i & 63) * 4}/30",
        )
        for i in range(rules - 1)
    )
    admits = GroupRule(
        rule_id="sgr-this", egress=False, protocol="tcp", from_port=PORT, to_port=PORT + 1, cidr="10.0.0.0/16"
    )
    found = list(others)
    found.insert(len(found) // 2, admits)
    for protocol, port in (("udp", KEY_PORT), ("50", None)) if name in (KERNEL, PROCESS) else ():
        found.append(
            GroupRule(
                rule_id=f"sgr-{protocol}", egress=False, protocol=protocol, from_port=port, to_port=port,
                cidr="10.0.0.0/16",
            )
        )  # fmt: skip
    found.append(GroupRule(rule_id="sgr-out", egress=True, protocol="-1", cidr="0.0.0.0/0"))
    return [
        Vpc(vpc_id=vpc_id, cidr="10.0.0.0/16", cidr_association_id="a"),
        Subnet(
            subnet_id=f"subnet-{name}",
            vpc_id=vpc_id,
            cidr="10.0.0.0/18",
            zone="us-east-1a",
            zone_id="use1-az1",
        ),
        RouteTable(
            route_table_id=f"rtb-{name}",
            vpc_id=vpc_id,
            number=1000,
            associations=(RouteTableAssociation(association_id="m", subnet_id=None, main=True),),
        ),
        SecurityGroup(group_id=group_id, vpc_id=vpc_id, name="bench", description="", rules=tuple(found)),
    ]


class Pair:
    """Two interfaces of a VPC and a server at the second."""

    def __init__(self, namespaces: Namespaces, world: World, name: str) -> None:
        tx = world.begin()
        for doc in vpc(int(name) if name.isdigit() else 1, name):
            tx.put(doc)
        self.ends = [
            create_interface(tx, subnet_id=f"subnet-{name}", group_ids=[f"sg-{name}"], now=0, attach=("",))
            for _ in range(2)
        ]
        if name in (KERNEL, PROCESS):
            self.ends = [_encrypting(end, other) for end, other in (self.ends, self.ends[::-1])]
            for end in self.ends:
                tx.put(end)
        self.world = tx.commit()
        self._namespaces = namespaces
        self.vpc = f"vpc-{name}"

    def command(self, end: int, *words: str) -> list[str]:
        netns = self._namespaces.path(self.ends[end].interface_id)
        return [sys.executable, "-m", "bench.traffic", str(netns), *words]

    def encrypt(self, folder: Path, *, in_kernel: bool) -> Iterator[subprocess.Popen[str]]:
        """The tunnel of each end."""
        for end, other in (self.ends, self.ends[::-1]):
            spec = folder / f"{end.interface_id}.json"
            spec.write_text(
                tunnel.Spec(
                    address=end.addresses[0].address,
                    peers=(other.addresses[0].address,),
                    netns=str(self._namespaces.path(end.interface_id)),
                    tunnel_netns=str(self._namespaces.path(tunnel_netns(end.interface_id))),
                    secret="ab" * 32,
                    in_kernel=in_kernel,
                ).to_json()
            )
            yield subprocess.Popen([sys.executable, "-m", "cloister.jobs.tunnel", str(spec)], text=True)
            while not tunnel.ready_path(spec).exists():
                time.sleep(0.02)

    def serve(self) -> subprocess.Popen[str]:
        command = self.command(1, "serve", str(PORT))
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        return server

    def measured(self, what: str) -> Callable[[], float]:
        port = PORT if what == "send" else PORT + 1
        command = self.command(0, what, self.ends[1].addresses[0].address, str(port), str(SECONDS))

        def run() -> float:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            return float(done.stdout)

        return run


def _encrypting(end: NetworkInterface, other: NetworkInterface) -> NetworkInterface:
    held = replace(end.addresses[0], encrypted_with=(other.addresses[0].address,))
    return replace(end, addresses=(held,))


@contextmanager
def pairs() -> Iterator[dict[str, Pair]]:
    with tempfile.TemporaryDirectory() as folder, Namespaces(Path(folder) / "netns") as namespaces:
        world, found = World(), {}
        encrypting = (PROCESS,) if xfrm.trouble() else (KERNEL, PROCESS)
        for name in ("plain", *map(str, RULES), *encrypting):
            found[name] = Pair(namespaces, world, name)
            world = found[name].world
        reconciler = Reconciler(namespaces)
        servers: list[subprocess.Popen[str]] = []
        tunnels: list[subprocess.Popen[str]] = []
        try:
            reconciler.apply(compile(world))
            plain = found["plain"]
            for netns in (plain.vpc, *(end.interface_id for end in plain.ends)):
                namespaces.call(netns, Nft).run(f"delete table ip {TABLE}")
            for name in encrypting:
                tunnels += found[name].encrypt(Path(folder), in_kernel=name == KERNEL)
            servers += [pair.serve() for pair in found.values()]
            yield found
        finally:
            for server in servers:
                server.communicate()
            for each in tunnels:
                each.kill()
                each.wait()
            reconciler.apply({})
            reconciler.close()


def inside(rounds: int) -> list[measure.Row]:
    rows = []
    with pairs() as found:
        for what, word, unit, scale, limit in (
            ("TCP throughput", "send", "Gbit/s", 8e-9, 0.95),
            ("connections", "connect", "/s", 1.0, 0.8),
        ):
            for rules in RULES:
                ours, plain = found[str(rules)].measured(word), found["plain"].measured(word)
                ours(), plain()
                samples = measure.interleave(ours, plain, max(21, 3 * rounds))
                scaled = [[value * scale for value in values] for values in samples]
                rows.append(
                    measure.row(
                        f"network: {what}, {rules:,} rule{'s' if rules > 1 else ''}",
                        unit, scaled[0], scaled[1], at_least=limit,
                    )
                )  # fmt: skip
        for name in (KERNEL, PROCESS):
            if name in found:
                ours, plain = found[name].measured("send"), found["plain"].measured("send")
                ours(), plain()
                samples = measure.interleave(ours, plain, max(5, rounds))
                scaled = [[value * 8e-9 for value in values] for values in samples]
                rows.append(
                    measure.row(
                        f"network: TCP throughput, encrypted {name.replace('-', ' ')}", "Gbit/s", *scaled,
                        at_least=0.0, note="nothing was promised; the peer does not encrypt",
                    )
                )  # fmt: skip
    return rows


def run(rounds: int) -> list[measure.Row]:
    return measure.in_world(__name__, rounds)


if __name__ == "__main__":
    print(json.dumps([asdict(row) for row in inside(int(sys.argv[1]))]))
