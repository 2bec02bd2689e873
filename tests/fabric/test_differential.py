"""The packet's fate in the kernel is what `explain` says: random VPCs, random probes, no disagreement.

Each example turns one World into another, so it also shows that what the kernel does depends on the data and
not on the way that led there. CLOISTER_FUZZ=1 (`make fuzz`) asks 10,000 probes and more.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.fabric.lab import Lab, in_world

from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
from cloister.vpc.gateways import INTERNET, NAT_INTERFACE
from cloister.vpc.interface_endpoints import ENDPOINT_INTERFACE
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import (
    AclEntry,
    GroupRule,
    InternetGateway,
    NatGateway,
    NetworkAcl,
    NetworkInterface,
    PrefixList,
    Route,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcEndpoint,
    VpcPeering,
)
from cloister.world import KINDS, World, key_of

pytestmark = pytest.mark.fabric

FUZZ = bool(os.environ.get("CLOISTER_FUZZ"))
EXAMPLES, PROBES = (200, 60) if FUZZ else (8, 60)
WAIT = 0.5  # seconds until what has not answered is taken for dropped
VPCS = ("vpc-0000000000000000a", "vpc-0000000000000000b")
S3, DYNAMODB, SERVICE, NOBODY = "52.216.0.10", "52.94.0.10", "203.0.113.9", "10.0.0.250"
PEERING, LIST = "pcx-0000000000000000c", "pl-0000000000000000d"
TCP_PORTS, UDP_PORTS = (80, 443, 5000), (5000, 6001)

one_of = st.sampled_from


@dataclass(frozen=True)
class Probe:
    source: int  # which interface
    target: int  # which of the addresses there are
    protocol: str
    port: int


probes = st.builds(
    Probe,
    source=st.integers(0, 9),
    target=st.integers(0, 30),
    protocol=one_of(["tcp", "tcp", "udp", "icmp"]),
    port=one_of([80, 443, 5000, 6001]),
)


def _ids(kind: str, vpc: int, count: int) -> list[str]:
    return [f"{kind}-00000000000000{vpc}{n}{vpc}" for n in range(count)]


@st.composite
def group_rules(draw: st.DrawFn, vpc: int, number: int) -> GroupRule:
    protocol = draw(one_of(["-1", "-1", "tcp", "udp", "icmp"]))
    low = high = None
    if protocol in ("tcp", "udp"):
        low = draw(one_of([0, 80, 5000]))
        high = draw(one_of([port for port in (80, 443, 5000, 65535) if port >= low]))
    elif protocol == "icmp":
        low, high = draw(one_of([(-1, -1), (8, -1), (0, 0)]))
    peer: dict[str, str] = draw(
        one_of(
            [
                *(
                    {"cidr": cidr}
                    for cidr in ("0.0.0.0/0", "0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "52.216.0.0/15")
                ),
                *({"group_id": group} for group in (*_ids("sg", 0, 2), *_ids("sg", 1, 2))),
                {"prefix_list_id": LIST},
                {"cidr": "198.51.100.0/24"},
            ]
        )
    )
    return GroupRule(
        rule_id=f"sgr-{vpc}{number}",
        egress=draw(st.booleans()),
        protocol=protocol,
        from_port=low,
        to_port=high,
        **peer,  # type: ignore[arg-type]
    )


@st.composite
def acl_entries(draw: st.DrawFn) -> tuple[AclEntry, ...]:
    base = [
        AclEntry(number=100, egress=egress, allow=True, cidr="0.0.0.0/0", protocol="-1")
        for egress in draw(one_of([(True, False), (True, False), (True,), (False,)]))
    ]
    extra = draw(
        st.lists(
            st.tuples(
                st.integers(1, 99),
                st.booleans(),
                st.booleans(),
                one_of(["0.0.0.0/0", "10.0.0.0/24", "10.1.0.0/16", "203.0.113.0/24"]),
                one_of(
                    [("-1", None, None), ("6", 80, 443), ("6", 1024, 65535), ("17", 5000, 5999), ("1", 8, -1)]
                ),
            ),
            max_size=3,
            unique_by=lambda entry: (entry[0], entry[1]),
        )
    )
    for number, egress, allow, cidr, (protocol, low, high) in extra:
        base.append(
            AclEntry(
                number=number,
                egress=egress,
                allow=allow,
                cidr=cidr,
                protocol=protocol,
                from_port=low,
                to_port=high,
            )
        )
    return tuple(base)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Two VPCs with two subnets each; six interfaces; every kind of gate, there or not; and, there or not, a
    third and a fourth subnet, each with an interface by way of which the others lead to each other or out.

    In half of them most passes: else hardly anything would pass the gates of several interfaces."""
    is_open = draw(st.booleans())

    def rather(usual: list[Any], every: list[Any]) -> Any:
        return draw(one_of([*(usual * 4), *every] if is_open else every))

    middles: dict[int, list[str]] = {}
    docs: list[object] = [
        PrefixList(prefix_list_id=LIST, name="l", owner_id="1", entries={"10.0.1.0/24": "", S3 + "/32": ""})
    ]
    for vpc, vpc_id in enumerate(VPCS):
        subnets, groups, acls = (_ids(kind, vpc, 2) for kind in ("subnet", "sg", "acl"))
        igw, vpce, nat = (_ids(kind, vpc, 1)[0] for kind in ("igw", "vpce", "nat"))
        docs.append(Vpc(vpc_id=vpc_id, cidr=f"10.{vpc}.0.0/16", cidr_association_id="x"))
        for n in range(2):
            rules = tuple(draw(group_rules(vpc, 10 * n + i)) for i in range(draw(st.integers(1, 4))))
            # Not for 0.0.0.0/0, which both ways is no tracked connection.
            rules += tuple(
                GroupRule(rule_id=f"sgr-{vpc}{n}w{egress}", egress=egress, protocol="-1", cidr=cidr)
                for egress in (True, False)
                for cidr in rather([["0.0.0.0/1", "128.0.0.0/1"]], [[]])
            )
            docs.append(
                SecurityGroup(group_id=groups[n], vpc_id=vpc_id, name=f"g{n}", description="", rules=rules)
            )
            docs.append(NetworkAcl(network_acl_id=acls[n], vpc_id=vpc_id, entries=draw(acl_entries())))
            docs.append(
                Subnet(
                    subnet_id=subnets[n],
                    vpc_id=vpc_id,
                    cidr=f"10.{vpc}.{n}.0/24",
                    zone="us-east-1a",
                    zone_id="use1-az1",
                    network_acl_id=rather([""], ["", acls[0], acls[1]]),
                )
            )
        middles[vpc] = [f"eni-00000{c}0000000000{c}" for c in ("ac", "bd")[vpc][: rather([1, 2], [0, 1, 2])]]
        if middles[vpc]:
            everything = tuple(
                GroupRule(rule_id=f"sgr-{vpc}o{egress}", egress=egress, protocol="-1", cidr="0.0.0.0/0")
                for egress in (True, False)
            )
            docs.append(
                SecurityGroup(
                    group_id=_ids("sg", vpc, 3)[2],
                    vpc_id=vpc_id,
                    name="open",
                    description="",
                    rules=everything,
                )
            )
        for n, middle in enumerate(middles[vpc], 2):
            docs.append(
                Subnet(
                    subnet_id=_ids("subnet", vpc, 4)[n],
                    vpc_id=vpc_id,
                    cidr=f"10.{vpc}.{n}.0/24",
                    zone="us-east-1a",
                    zone_id="use1-az1",
                    network_acl_id=rather([""], ["", acls[0], acls[1]]),
                )
            )
            others = [one for one in middles[vpc] if one != middle]
            onward = {
                f"10.{vpc}.0.0/24": rather([None], [None, *others]),
                f"10.{vpc}.1.0/24": rather([None], [None, *others]),
                "0.0.0.0/0": rather([igw], [None, igw, nat, PEERING, *others]),
                f"10.{1 - vpc}.0.0/16": rather([PEERING], [None, igw, nat, PEERING, *others]),
            }
            docs.append(
                RouteTable(
                    route_table_id=_ids("rtb", vpc, 4)[n],
                    vpc_id=vpc_id,
                    number=1000 + n,
                    routes=tuple(Route(destination=to, target=by) for to, by in onward.items() if by),
                    associations=(
                        RouteTableAssociation(association_id=f"c{n}", subnet_id=_ids("subnet", vpc, 4)[n]),
                    ),
                )
            )
        if rather([True], [True, False]):
            docs.append(InternetGateway(internet_gateway_id=igw, vpc_id=rather([vpc_id], [vpc_id, None])))
        targets = [igw, nat, PEERING, vpce, *middles[vpc]]
        other = f"10.{1 - vpc}.0.0/16"
        for n in range(2):
            routes = draw(
                st.lists(
                    st.builds(
                        Route,
                        destination=one_of(["0.0.0.0/0", other, "203.0.113.0/24"]),
                        target=one_of(targets),
                    ),
                    max_size=2,
                    unique_by=lambda route: route.destination,
                )
            )
            if is_open and not any(route.destination == "0.0.0.0/0" for route in routes):
                routes.append(Route(destination="0.0.0.0/0", target=draw(one_of([igw, *middles[vpc]]))))
            by = draw(one_of([*middles[vpc], *middles[vpc], None]))
            peered = draw(st.booleans()) and not any(route.destination == other for route in routes)
            docs.append(
                RouteTable(
                    route_table_id=_ids("rtb", vpc, 2)[n],
                    vpc_id=vpc_id,
                    number=1000 + n,
                    routes=(
                        *routes,
                        *([Route(destination=other, target=PEERING)] if peered else []),
                        *([Route(destination=f"10.{vpc}.{1 - n}.0/24", target=by)] if by else []),
                    ),
                    associations=(
                        RouteTableAssociation(association_id="m", subnet_id=None, main=True)
                        if n == 0
                        else RouteTableAssociation(association_id="a", subnet_id=subnets[1]),
                    ),
                )
            )
        if draw(st.booleans()):
            docs.append(
                VpcEndpoint(
                    endpoint_id=vpce,
                    vpc_id=vpc_id,
                    service_name=f"com.amazonaws.us-east-1.{draw(one_of(['s3', 's3', 'dynamodb']))}",
                    policy="",
                    route_table_ids=tuple(
                        draw(st.lists(one_of(_ids("rtb", vpc, 4)), max_size=2, unique=True))
                    ),
                    created=0,
                )
            )
        # AWS: a gateway's table leads to interfaces only
        if middles[vpc] and draw(st.booleans()):
            onto = rather([[0, 1], [0], [1]], [[], [0, 1]])
            docs.append(
                RouteTable(
                    route_table_id=_ids("rtb", vpc, 5)[4],
                    vpc_id=vpc_id,
                    number=1004,
                    routes=tuple(
                        Route(destination=f"10.{vpc}.{k}.0/24", target=draw(one_of(middles[vpc])))
                        for k in onto
                    ),
                    associations=(RouteTableAssociation(association_id="g", subnet_id=None, gateway_id=igw),),
                )
            )
    status = rather(["active"], ["active", "active", "pending-acceptance"])
    docs.append(
        VpcPeering(
            peering_id=PEERING,
            requester_vpc_id=VPCS[0],
            accepter_vpc_id=VPCS[1],
            status=status,
            created=0,
            changed=0,
        )
    )
    tx = World.of(docs).begin()
    for place, (vpc, n) in enumerate([(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 1)]):
        groups = draw(st.lists(one_of(_ids("sg", vpc, 2)), min_size=1, max_size=2, unique=True))
        public = f"198.51.100.{10 + place}" if rather([True], [True, False]) else None
        _add_interface(tx, f"eni-00000{place}0000000000{place}", vpc, n, groups, public)
    for vpc, n, middle in ((v, n, one) for v, found in middles.items() for n, one in enumerate(found, 2)):
        groups = [rather([_ids("sg", vpc, 3)[2]], _ids("sg", vpc, 3))]
        made = _add_interface(tx, middle, vpc, n, groups, None)
        tx.put(replace(made, source_dest_check=rather([False], [True, False])))
    for vpc, vpc_id in enumerate(VPCS):
        if draw(st.booleans()):
            number = f"eni-00000{6 + vpc}0000000000{6 + vpc}"
            held = _add_interface(tx, number, vpc, 0, [], f"198.51.100.{20 + vpc}", NAT_INTERFACE)
            tx.put(
                NatGateway(
                    nat_gateway_id=_ids("nat", vpc, 1)[0],
                    vpc_id=vpc_id,
                    subnet_id=_ids("subnet", vpc, 1)[0],
                    interface_id=number,
                    private_ip=held.addresses[0].address,
                    created=0,
                )
            )
        if draw(st.booleans()):
            number = f"eni-00000{8 + vpc}0000000000{8 + vpc}"
            groups = draw(st.lists(one_of(_ids("sg", vpc, 2)), min_size=1, max_size=2, unique=True))
            _add_interface(tx, number, vpc, 1, groups, None, ENDPOINT_INTERFACE)
            tx.put(
                VpcEndpoint(
                    endpoint_id=f"vpce-{vpc}0000000000000009",
                    vpc_id=vpc_id,
                    service_name=f"com.amazonaws.us-east-1.{draw(one_of(['s3', 'sts']))}",
                    kind="Interface",
                    policy="",
                    created=0,
                    subnet_ids=(_ids("subnet", vpc, 2)[1],),
                    interface_ids=(number,),
                    group_ids=tuple(groups),
                )
            )
    return tx.commit()


def _add_interface(
    tx: Any,
    interface_id: str,
    vpc: int,
    n: int,
    groups: list[str],
    public: str | None,
    kind: str = "interface",
) -> NetworkInterface:
    made = create_interface(
        tx, subnet_id=_ids("subnet", vpc, 4)[n], group_ids=_ids("sg", vpc, 1), now=0, addresses=()
    )
    tx.delete(NetworkInterface, made.interface_id)
    address = str(IPv4Network(f"10.{vpc}.{n}.0/24")[10 + int(interface_id[-1], 16)])
    held = replace(made.addresses[0], address=address, netns=interface_id, public_ip=public)
    mac = f"0a:00:00:00:00:0{interface_id[-1]}"
    made = replace(
        made,
        interface_id=interface_id,
        addresses=(held,),
        mac=mac,
        group_ids=tuple(groups),
        interface_type=kind,
    )
    tx.put(made)
    return made


# --- the same in the kernel --------------------------------------------------------------------------------


class Arena:
    """Takes the lab from World to World, and sends probes."""

    def __init__(self, lab: Lab, loop: asyncio.AbstractEventLoop) -> None:
        self.lab = lab
        self.loop = loop
        self.source_ports = itertools.cycle(range(10_000, 60_000))

    def become(self, wanted: World) -> None:
        # On the loop: the engine belongs to it.
        asyncio.run_coroutine_threadsafe(self._become(wanted), self.loop).result(60)

    async def _become(self, wanted: World) -> None:
        with self.lab.engine.transaction() as tx:
            for cls in [kind.cls for kind in KINDS.values()]:
                for doc in list(tx.all(cls)):
                    if wanted.get(cls, key_of(doc)) is None:
                        tx.delete(cls, key_of(doc))
                for doc in wanted.all(cls):
                    if tx.get(cls, key_of(doc)) != doc:
                        tx.put(doc)
        await self.lab.settle()
        assert self.lab.fabric.problem is None

    def addresses(self, world: World) -> list[str]:
        found = [S3, DYNAMODB, SERVICE, NOBODY]
        for interface in world.all(NetworkInterface):
            for held in interface.addresses:
                found += [held.address, *([held.public_ip] if held.public_ip else [])]
        return found

    def serve(self, world: World, stop: threading.Event) -> tuple[list[socket.socket], threading.Thread]:
        """TCP listeners and UDP echoes everywhere; what is in no namespace is not served."""
        places = [i.interface_id for i in world.all(NetworkInterface) if i.interface_type != NAT_INTERFACE]
        places += [e.endpoint_id for e in world.all(VpcEndpoint) if e.kind == "Gateway"]
        if any(gateway.vpc_id for gateway in world.all(InternetGateway)):
            places.append(INTERNET)
        opened: list[socket.socket] = []
        echoes: list[socket.socket] = []
        for place in places:
            for port in TCP_PORTS:
                listener = self.lab.namespaces.socket(place, socket.AF_INET, socket.SOCK_STREAM)
                listener.bind(("0.0.0.0", port))
                listener.listen(64)
                opened.append(listener)
            for port in UDP_PORTS:
                echo = self.lab.namespaces.socket(place, socket.AF_INET, socket.SOCK_DGRAM)
                echo.bind(("0.0.0.0", port))
                echo.setblocking(False)
                echoes.append(echo)

        def answer() -> None:
            while not stop.is_set():
                for echo in select.select(echoes, [], [], 0.05)[0]:
                    data, peer = echo.recvfrom(100)
                    echo.sendto(data, peer)

        thread = threading.Thread(target=answer)
        thread.start()
        return [*opened, *echoes], thread

    def ask(self, world: World, asked: list[Probe]) -> list[tuple[Flow, bool]]:
        """Every probe at once; those that are answered within the time were let through, both ways."""
        interfaces = [i for i in world.all(NetworkInterface) if i.interface_type != NAT_INTERFACE]
        targets = self.addresses(world)
        stop = threading.Event()
        opened, thread = self.serve(world, stop)
        waiting: dict[socket.socket, Flow] = {}
        answered: set[socket.socket] = set()
        try:
            for probe in asked:
                source = interfaces[probe.source % len(interfaces)]
                destination = targets[probe.target % len(targets)]
                flow = Flow(
                    source=source.interface_id,
                    destination=destination,
                    protocol=probe.protocol,
                    port=_port(probe),
                    source_port=None if probe.protocol == "icmp" else next(self.source_ports),
                    vpc_id=source.vpc_id,
                )
                waiting[self._send(source, flow)] = flow
            end = time.monotonic() + WAIT
            while (left := end - time.monotonic()) > 0 and len(answered) < len(waiting):
                rest = [one for one in waiting if one not in answered]
                reads = [one for one in rest if waiting[one].protocol != "tcp"]
                writes = [one for one in rest if waiting[one].protocol == "tcp"]
                readable, writable, _ = select.select(reads, writes, [], left)
                answered.update(one for one in readable if _replied(one, waiting[one]))
                answered.update(writable)
            return [(flow, one in answered and _connected(one, flow)) for one, flow in waiting.items()]
        finally:
            stop.set()
            thread.join()
            for one in [*opened, *waiting]:
                one.close()

    def _send(self, source: NetworkInterface, flow: Flow) -> socket.socket:
        kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "icmp": socket.SOCK_RAW}[flow.protocol]
        protocol = socket.IPPROTO_ICMP if flow.protocol == "icmp" else 0
        made = self.lab.namespaces.socket(source.interface_id, socket.AF_INET, kind, protocol)
        made.setblocking(False)
        if flow.protocol == "icmp":
            number = next(self.source_ports)
            head = struct.pack("!BBHHH", 8, 0, 0, number, 1)
            total = sum(struct.unpack("!4H", head))
            checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            made.connect((flow.destination, 0))
            _quietly(made.send, struct.pack("!BBHHH", 8, 0, checksum, number, 1))
            return made
        if flow.protocol == "tcp":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.bind((source.addresses[0].address, flow.source_port or 0))
        _quietly(made.connect, (flow.destination, flow.port or 0))
        if flow.protocol == "udp":
            _quietly(made.send, b"?")
        return made


def _port(probe: Probe) -> int:
    """UDP is asked where it is answered: silence must mean that it was dropped."""
    if probe.protocol == "icmp":
        return 8 << 8
    return probe.port if probe.protocol == "tcp" else UDP_PORTS[probe.port % 2]


def _quietly(call: Any, argument: Any) -> None:
    """A refusal comes out when the answer is awaited."""
    try:
        call(argument)
    except OSError as error:
        if error.errno not in (errno.EINPROGRESS, errno.EPERM, errno.ENETUNREACH, errno.EHOSTUNREACH):
            raise


def _replied(one: socket.socket, flow: Flow) -> bool:
    try:
        data = one.recv(1000)
    except OSError:
        return False
    return flow.protocol == "udp" or data[20:21] == b"\0"  # an echo's reply


def _connected(one: socket.socket, flow: Flow) -> bool:
    """A connection, or the other end's own refusal of a port nobody listens at."""
    if flow.protocol != "tcp":
        return True
    error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error == 0:  # also of a socket whose connect was refused at once
        try:
            one.getpeername()
        except OSError:
            return False
    return error in (0, errno.ECONNREFUSED)


@in_world
async def test_the_packets_fate_is_what_explain_says(lab: Lab) -> None:
    arena = Arena(lab, asyncio.get_running_loop())

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # Shrinking takes minutes: the long run does it.
        phases=(Phase.explicit, Phase.generate, Phase.shrink) if FUZZ else (Phase.explicit, Phase.generate),
        derandomize=not FUZZ,
        database=None,
    )
    @given(worlds(), st.lists(probes, min_size=PROBES, max_size=PROBES))
    def agree(world: World, asked: list[Probe]) -> None:
        arena.become(world)
        current = lab.engine.world
        wrong = [
            f"{'passed' if passed else 'dropped'}: {flow}\n    "
            + "\n    ".join(f"{step.allowed} {step.gate} {step.sentence}" for step in verdict.steps)
            for flow, passed in arena.ask(world, asked)
            if (verdict := explain(current, flow)).allowed is not passed
        ]
        assert not wrong, "\n".join(wrong)

    await asyncio.to_thread(agree)
