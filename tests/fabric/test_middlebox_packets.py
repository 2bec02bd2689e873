"""Routes to interfaces: a middlebox between two subnets, with and without its source/destination check."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from dataclasses import dataclass, replace

import pytest
from tests.fabric.lab import ANYWHERE, QUIET, Lab, in_world, rule
from tests.patience import PATIENCE

from cloister.flow_readings import aggregate
from cloister.flowlog import FlowLogs
from cloister.ids import resource_id
from cloister.kernel.conntrack import connections
from cloister.kernel.nft import Nft
from cloister.logs import LogStore
from cloister.vpc import explain as why
from cloister.vpc import nat_gateways
from cloister.vpc.flow import Flow
from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.flow_records import DEFAULT_FORMAT
from cloister.vpc.gateways import INTERNET
from cloister.vpc.model import (
    InternetGateway,
    NetworkInterface,
    Route,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    VpcPeering,
)

pytestmark = pytest.mark.fabric

_TRANSPARENT = 19  # linux/in.h: IP_TRANSPARENT, a source that is not its own
ALL = (ANYWHERE, rule(cidr="0.0.0.0/0"))


@dataclass(kw_only=True)
class Scene:
    """Subnets a (10.0.0.0/24), b (10.0.1.0/24) and m (10.0.2.0/24), with an interface each; a's and b's
    tables lead to each other by m."""

    vpc: str
    a: NetworkInterface
    b: NetworkInterface
    m: NetworkInterface
    groups: dict[str, SecurityGroup]
    tables: dict[str, RouteTable]


async def _scene(lab: Lab, *, check: bool = False) -> Scene:
    vpc, first, _ = await lab.vpc()
    subnets = {"a": first, "b": resource_id("subnet"), "m": resource_id("subnet")}
    for number, name in ((1, "b"), (2, "m")):
        await lab.put(
            Subnet(
                subnet_id=subnets[name],
                vpc_id=vpc,
                cidr=f"10.0.{number}.0/24",
                zone="us-east-1a",
                zone_id="use1-az1",
            )
        )
    groups = {name: await lab.group(vpc, *ALL) for name in subnets}
    made = {
        name: await lab.interface(subnet, groups[name], addresses=(f"10.0.{number}.{10 + number}",))
        for number, (name, subnet) in enumerate(subnets.items())
    }
    made["m"] = replace(made["m"], source_dest_check=check)
    await lab.put(made["m"])
    tables = {}
    for number, (name, far) in enumerate((("a", "10.0.1.0/24"), ("b", "10.0.0.0/24")), 1001):
        tables[name] = RouteTable(
            route_table_id=resource_id("rtb"),
            vpc_id=vpc,
            number=number,
            routes=(Route(destination=far, target=made["m"].interface_id),),
            associations=(RouteTableAssociation(association_id=name, subnet_id=subnets[name]),),
        )
    await lab.put(*tables.values())
    return Scene(vpc=vpc, groups=groups, tables=tables, **made)


def _heard(lab: Lab, at: NetworkInterface, source: NetworkInterface, target: NetworkInterface) -> int:
    """How many UDP packets of a connection from `source` to `target` come to the port of `at`."""
    ear = lab.namespaces.socket(at.interface_id, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    ear.settimeout(QUIET)
    client = lab.socket(source.interface_id, socket.SOCK_DGRAM)
    client.bind((source.addresses[0].address, 0))
    ends = [socket.inet_aton(one.addresses[0].address) for one in (source, target)]
    client.sendto(b"?", (target.addresses[0].address, 7000))
    count = 0
    try:
        while True:
            frame, (_, _, kind, *_) = ear.recvfrom(2000)
            count += kind != socket.PACKET_OUTGOING and frame[26:34] == ends[0] + ends[1]
    except TimeoutError:
        return count
    finally:
        ear.close()


@in_world
async def test_an_interface_without_a_check_passes_on_between_two_subnets(lab: Lab) -> None:
    scene = await _scene(lab)
    assert lab.reaches(scene.a, scene.b, 5000)
    assert lab.reaches(scene.b, scene.a, 5000)
    assert lab.reaches(scene.a, scene.m, 5000)
    assert lab.reaches(scene.m, scene.b, 5000)
    assert lab.reaches(scene.m, scene.a, 5000)
    assert _heard(lab, scene.m, scene.a, scene.b) == 1
    # each leg is a connection of its own
    zones = {
        one.zone
        for one in lab.namespaces.call(scene.vpc, connections)
        if {one.source, one.destination} == {"10.0.0.10", "10.0.1.11"}
    }
    assert len(zones) == 2
    assert 0 not in zones
    # nobody listens: the refusal comes back all the way
    client = lab.socket(scene.a.interface_id)
    with pytest.raises(ConnectionRefusedError):
        client.connect(("10.0.1.11", 5999))


@in_world
async def test_with_its_check_an_interface_takes_and_sends_only_what_is_its_own(lab: Lab) -> None:
    scene = await _scene(lab, check=True)
    assert not lab.reaches(scene.a, scene.b, 5000)
    verdict = why.explain(
        lab.engine.world, Flow(source=scene.a.interface_id, destination=scene.b.interface_id, port=5000)
    )
    assert verdict.refusal is not None
    assert verdict.refusal.code == "ENI_SOURCE_DEST_CHECK_RESTRICTION"
    assert _heard(lab, scene.m, scene.a, scene.b) == 0
    assert lab.reaches(scene.a, scene.m, 5000)
    # a route for its own subnet as well: its own address is still its own
    more = Route(destination="10.0.2.0/24", target=scene.m.interface_id)
    await lab.put(replace(scene.tables["a"], routes=(*scene.tables["a"].routes, more)))
    assert lab.reaches(scene.a, scene.m, 5001)
    assert not _spoofed(lab, scene)
    await lab.put(replace(scene.m, source_dest_check=False))
    assert lab.reaches(scene.a, scene.m, 5002)
    assert lab.reaches(scene.a, scene.b, 5000)
    assert _spoofed(lab, scene)
    await lab.put(scene.m)
    assert not lab.reaches(scene.a, scene.b, 5000)
    assert not _spoofed(lab, scene)


def _spoofed(lab: Lab, scene: Scene) -> bool:
    """Whether b gets what m sends with another address as its source."""
    ear = lab.socket(scene.b.interface_id, socket.SOCK_DGRAM)
    ear.bind(("10.0.1.11", 7000))
    raw = lab.namespaces.socket(scene.m.interface_id, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    udp = struct.pack("!HHHH", 7001, 7000, 8 + 1, 0) + b"!"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 7, 0, 64, 17, 0)
    raw.sendto(head + socket.inet_aton("10.0.0.77") + socket.inet_aton("10.0.1.11") + udp, ("10.0.1.11", 0))
    raw.close()
    try:
        return ear.recvfrom(100)[1][0] == "10.0.0.77"
    except TimeoutError:
        return False
    finally:
        ear.close()


@in_world
async def test_each_leg_is_judged_by_the_groups_of_both_its_ends(lab: Lab) -> None:
    scene = await _scene(lab)
    for name, rules in (
        ("a", (rule(True, cidr="10.0.2.0/24"), ALL[1])),  # to the interface is not to what is behind it
        ("m", (ALL[0], rule(cidr="10.0.1.0/24"))),
        ("m", (rule(True, cidr="10.0.0.0/24"), ALL[1])),
        ("b", (ALL[0], rule(cidr="10.0.2.0/24"))),
        # AWS: a group does not stand for what comes by way of a middlebox
        ("b", (ALL[0], rule(group_id=scene.groups["a"].group_id))),
        ("a", (rule(True, group_id=scene.groups["b"].group_id), ALL[1])),
    ):
        await lab.put(replace(scene.groups[name], rules=rules))
        assert not lab.reaches(scene.a, scene.b, 5000), (name, rules)
        await lab.put(scene.groups[name])
        assert lab.reaches(scene.a, scene.b, 5000)
    narrow = {
        "a": (rule(True, "tcp", (5000, 5000), cidr="10.0.1.11/32"),),
        "m": (
            rule(False, "tcp", (5000, 5000), cidr="10.0.0.10/32"),
            rule(True, "tcp", (5000, 5000), cidr="10.0.1.11/32"),
        ),
        "b": (rule(False, "tcp", (5000, 5000), cidr="10.0.0.10/32"),),
    }
    for name, rules in narrow.items():
        await lab.put(replace(scene.groups[name], rules=rules))
    assert lab.reaches(scene.a, scene.b, 5000)
    assert not lab.reaches(scene.a, scene.b, 5001)
    assert not lab.reaches(scene.b, scene.a, 5000)


@in_world
async def test_an_interface_that_passes_on_cannot_open_what_the_ends_do_not_allow(lab: Lab) -> None:
    """It answers in b's name to what a opened, and a never to what b opened: b's own groups stay asked."""
    scene = await _scene(lab)
    await lab.put(replace(scene.groups["b"], rules=(ALL[0],)), replace(scene.groups["a"], rules=(ALL[0],)))
    # m answers a in b's name, so that the first leg is established; b still gets nothing
    ear = lab.socket(scene.b.interface_id, socket.SOCK_DGRAM)
    ear.bind(("10.0.1.11", 7000))
    client = lab.socket(scene.a.interface_id, socket.SOCK_DGRAM)
    client.bind(("10.0.0.10", 7001))
    raw = lab.namespaces.socket(scene.m.interface_id, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for _ in range(2):
        client.sendto(b"?", ("10.0.1.11", 7000))
        raw.sendto(_udp("10.0.1.11", 7000, "10.0.0.10", 7001), ("10.0.0.10", 0))
        assert client.recvfrom(100)[1] == ("10.0.1.11", 7000)
    with pytest.raises(TimeoutError):
        ear.recvfrom(100)
    # m opens in a's name to b and answers itself in b's name: a's groups refuse
    await lab.put(scene.groups["b"])
    other = lab.socket(scene.a.interface_id, socket.SOCK_DGRAM)
    other.bind(("10.0.0.10", 7002))
    raw.sendto(_udp("10.0.0.10", 7002, "10.0.1.11", 7000), ("10.0.1.11", 0))
    assert ear.recvfrom(100)[1] == ("10.0.0.10", 7002)
    raw.sendto(_udp("10.0.1.11", 7000, "10.0.0.10", 7002), ("10.0.0.10", 0))
    with pytest.raises(TimeoutError):
        other.recvfrom(100)
    raw.close()


def _udp(source: str, source_port: int, destination: str, port: int) -> bytes:
    udp = struct.pack("!HHHH", source_port, port, 8 + 1, 0) + b"!"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 7, 0, 64, 17, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(destination) + udp


@in_world
async def test_a_route_to_an_interface_that_goes_is_a_black_hole(lab: Lab) -> None:
    scene = await _scene(lab)
    assert lab.reaches(scene.a, scene.b, 5000)
    with lab.engine.transaction() as tx:
        tx.delete(NetworkInterface, scene.m.interface_id)
    await lab.settle()
    assert not lab.reaches(scene.a, scene.b, 5000)
    verdict = why.explain(
        lab.engine.world, Flow(source=scene.a.interface_id, destination=scene.b.interface_id, port=5000)
    )
    assert verdict.refusal is not None
    assert verdict.refusal.code == "BAD_STATE_ROUTE"
    await lab.put(scene.m)
    assert lab.reaches(scene.a, scene.b, 5000)
    # without the routes it is `local` again
    await lab.put(*(replace(table, routes=()) for table in scene.tables.values()))
    assert lab.reaches(scene.a, scene.b, 5000)
    assert _heard(lab, scene.m, scene.a, scene.b) == 0


@in_world
async def test_replies_may_come_back_without_the_interface(lab: Lab) -> None:
    """AWS: each interface tracks by itself. b knows what came in, a what it sent: neither is asked again."""
    scene = await _scene(lab)
    await lab.put(replace(scene.tables["b"], routes=()))
    await lab.put(
        replace(scene.groups["a"], rules=(ALL[0],)),
        replace(scene.groups["b"], rules=(ALL[1],)),
        replace(scene.groups["m"], rules=ALL),
    )
    assert lab.reaches(scene.a, scene.b, 5000)
    assert _echoes(lab, scene.a, scene.b)
    assert _talks(lab, scene.a, scene.b)
    # b may open nothing, and nothing may be opened to a
    assert not lab.reaches(scene.b, scene.a, 5000)
    # the interface itself is passed in one direction only
    await lab.put(
        replace(scene.groups["m"], rules=(rule(True, cidr="10.0.1.0/24"), rule(cidr="10.0.0.0/24")))
    )
    assert lab.reaches(scene.a, scene.b, 5001)


@in_world
async def test_replies_that_come_by_an_interface_are_new_to_it(lab: Lab) -> None:
    """b's table leads to a by m, which saw nothing of the beginning: its groups are asked about replies."""
    scene = await _scene(lab)
    await lab.put(replace(scene.tables["a"], routes=()))
    assert lab.reaches(scene.a, scene.b, 5000)
    assert _talks(lab, scene.a, scene.b)
    narrow = (rule(True, cidr="10.0.0.0/24"), rule(cidr="10.0.1.0/24"))
    await lab.put(
        replace(scene.groups["a"], rules=(ALL[0],)),
        replace(scene.groups["b"], rules=(ALL[1],)),
        replace(scene.groups["m"], rules=narrow),
    )
    assert lab.reaches(scene.a, scene.b, 5001)
    assert _talks(lab, scene.a, scene.b)
    other = rule(False, "tcp", (5000, 5999), cidr="10.0.1.0/24")
    for rules in (narrow[:1], narrow[1:], (narrow[0], other)):
        await lab.put(replace(scene.groups["m"], rules=rules))
        assert not lab.reaches(scene.a, scene.b, 5002), rules


def _talks(lab: Lab, source: NetworkInterface, target: NetworkInterface) -> bool:
    """Whether more than the window goes both ways in one connection, and it ends in order."""
    listener = lab.listen(target.interface_id, target.addresses[0].address, 6000)
    client = lab.socket(source.interface_id)
    client.settimeout(5 * PATIENCE)
    client.connect((target.addresses[0].address, 6000))
    server = listener.accept()[0]
    server.settimeout(5 * PATIENCE)
    listener.close()
    data = bytes(2_000_000)
    for one, other in ((client, server), (server, client)):
        sending = threading.Thread(target=one.sendall, args=(data,))
        sending.start()
        left = len(data)
        while left > 0 and (piece := other.recv(65536)):
            left -= len(piece)
        sending.join()
        if left:
            return False
    client.close()
    ended = server.recv(1) == b""
    server.close()
    return ended


def _echoes(lab: Lab, source: NetworkInterface, target: NetworkInterface) -> bool:
    """Whether an answer comes to UDP, and to ping."""
    ear = lab.socket(target.interface_id, socket.SOCK_DGRAM)
    ear.bind((target.addresses[0].address, 7000))
    client = lab.socket(source.interface_id, socket.SOCK_DGRAM)
    client.bind((source.addresses[0].address, 0))
    client.sendto(b"?", (target.addresses[0].address, 7000))
    ear.sendto(b"!", ear.recvfrom(10)[1])
    answered = client.recvfrom(10)[0] == b"!"
    ear.close()
    raw = lab.namespaces.socket(source.interface_id, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.settimeout(QUIET)
    raw.connect((target.addresses[0].address, 0))
    raw.send(struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - 7 - 1, 7, 1))
    kind = raw.recv(100)[20]
    raw.close()
    return answered and kind == 0


@in_world
async def test_a_replaced_local_route_leads_all_but_the_own_subnet_by_the_interface(lab: Lab) -> None:
    scene = await _scene(lab)
    neighbour = await lab.interface(scene.a.subnet_id, scene.groups["a"], addresses=("10.0.0.77",))
    local = Route(destination="10.0.0.0/16", target=scene.m.interface_id, origin="CreateRouteTable")
    await lab.put(*(replace(table, routes=(local,)) for table in scene.tables.values()))
    assert lab.reaches(scene.a, scene.b, 5000)
    assert _heard(lab, scene.m, scene.a, scene.b) == 1
    assert lab.reaches(scene.a, neighbour, 5000)
    assert _heard(lab, scene.m, scene.a, neighbour) == 0
    assert lab.reaches(scene.a, scene.m, 5000)


async def _second(lab: Lab, scene: Scene) -> tuple[NetworkInterface, SecurityGroup, RouteTable]:
    """One more interface without a check, to which m's table leads for b, with a group of its own."""
    subnet = lab.engine.world.get(Subnet, scene.m.subnet_id)
    assert subnet is not None
    apart = replace(subnet, subnet_id=resource_id("subnet"), cidr="10.0.3.0/24")
    await lab.put(apart)
    group = await lab.group(scene.vpc, *ALL)
    other = replace(await lab.interface(apart.subnet_id, group), source_dest_check=False)
    table = RouteTable(
        route_table_id=resource_id("rtb"),
        vpc_id=scene.vpc,
        number=1005,
        routes=(Route(destination="10.0.1.0/24", target=other.interface_id),),
        associations=(RouteTableAssociation(association_id="m", subnet_id=scene.m.subnet_id),),
    )
    await lab.put(other, table)
    return other, group, table


@in_world
async def test_a_packet_may_pass_two_interfaces_in_a_row(lab: Lab) -> None:
    scene = await _scene(lab)
    other, group, table = await _second(lab, scene)
    assert lab.reaches(scene.a, scene.b, 5000)  # there by both, back by m alone
    assert _heard(lab, other, scene.a, scene.b) == 1
    assert lab.reaches(scene.m, scene.b, 5000)  # what the first has of its own, and b answers directly
    far = replace(
        table,
        route_table_id=resource_id("rtb"),
        number=1006,
        routes=(Route(destination="10.0.0.0/24", target=scene.m.interface_id),),
        associations=(RouteTableAssociation(association_id="o", subnet_id=other.subnet_id),),
    )
    back = Route(destination="10.0.0.0/24", target=other.interface_id)
    await lab.put(far, replace(scene.tables["b"], routes=(back,)))  # and back by both
    assert lab.reaches(scene.a, scene.b, 5001)
    assert lab.reaches(scene.b, scene.a, 5001)
    assert _talks(lab, scene.a, scene.b)
    for one in (scene.groups["m"], group):
        for rules in (ALL[:1], ALL[1:]):
            await lab.put(replace(one, rules=rules))
            assert not lab.reaches(scene.a, scene.b, 5002), rules
        await lab.put(one)
    # only what a opens may pass both
    opened = (rule(True, cidr="10.0.1.0/24"), rule(cidr="10.0.0.0/24"))
    await lab.put(*(replace(one, rules=opened) for one in (scene.groups["m"], group)))
    assert lab.reaches(scene.a, scene.b, 5003)
    assert not lab.reaches(scene.b, scene.a, 5003)


@in_world
async def test_routes_that_lead_in_a_circle_lead_nowhere(lab: Lab) -> None:
    scene = await _scene(lab)
    other, _, table = await _second(lab, scene)
    round_again = replace(
        table,
        route_table_id=resource_id("rtb"),
        number=1006,
        routes=(Route(destination="10.0.1.0/24", target=scene.m.interface_id),),
        associations=(RouteTableAssociation(association_id="o", subnet_id=other.subnet_id),),
    )
    await lab.put(round_again)
    assert not lab.reaches(scene.a, scene.b, 5000)


@in_world
async def test_there_by_one_interface_and_back_by_another(lab: Lab) -> None:
    scene = await _scene(lab)
    other, group, table = await _second(lab, scene)
    back = Route(destination="10.0.0.0/24", target=other.interface_id)
    await lab.put(replace(table, routes=()), replace(scene.tables["b"], routes=(back,)))
    assert lab.reaches(scene.a, scene.b, 5000)
    assert _talks(lab, scene.a, scene.b)
    there = (rule(True, cidr="10.0.1.0/24"), rule(cidr="10.0.0.0/24"))
    await lab.put(replace(scene.groups["m"], rules=there))
    assert lab.reaches(scene.a, scene.b, 5001)
    await lab.put(replace(group, rules=there))  # to the other it is not a reply
    assert not lab.reaches(scene.a, scene.b, 5002)


@in_world
async def test_what_everybody_may_both_ways_is_not_remembered(lab: Lab) -> None:
    """AWS: an untracked connection ends with its rule, a tracked one goes on."""
    scene = await _scene(lab)
    ear = lab.socket(scene.b.interface_id, socket.SOCK_DGRAM)
    ear.bind(("10.0.1.11", 7000))
    for more, goes_on in (((), True), ((rule(True, "udp", (0, 65535), cidr="0.0.0.0/0"),), False)):
        narrow = rule(True, "udp", (0, 65535), cidr="10.0.0.0/16")
        await lab.put(
            replace(
                scene.groups["b"], rules=(rule(False, "udp", (7000, 7000), cidr="0.0.0.0/0"), narrow, *more)
            )
        )
        client = lab.socket(scene.a.interface_id, socket.SOCK_DGRAM)
        client.bind(("10.0.0.10", 0))
        client.sendto(b"?", ("10.0.1.11", 7000))
        ear.sendto(b"!", ear.recvfrom(10)[1])
        assert client.recvfrom(10)[0] == b"!"
        await lab.put(replace(scene.groups["b"], rules=(narrow, *more)))
        client.sendto(b"?", ("10.0.1.11", 7000))
        try:
            heard = bool(ear.recvfrom(10))
        except TimeoutError:
            heard = False
        assert heard is goes_on


@in_world
async def test_an_interface_that_translates_lets_others_out_of_the_vpc(lab: Lab) -> None:
    """A NAT instance. What it passes on without translating has no public address, and does not leave."""
    scene = await _scene(lab)
    gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=scene.vpc)
    held = (replace(scene.m.addresses[0], public_ip="198.51.100.7"),)
    public = RouteTable(
        route_table_id=resource_id("rtb"),
        vpc_id=scene.vpc,
        number=1005,
        routes=(Route(destination="0.0.0.0/0", target=gateway.internet_gateway_id),),
        associations=(RouteTableAssociation(association_id="m", subnet_id=scene.m.subnet_id),),
    )
    out = Route(destination="0.0.0.0/0", target=scene.m.interface_id)
    private = replace(scene.tables["a"], routes=(*scene.tables["a"].routes, out))
    await lab.put(gateway, replace(scene.m, addresses=held), public, private)
    listener = lab.listen(INTERNET, "0.0.0.0", 443)
    assert not lab.connects(scene.a, "203.0.113.9", 443)
    translate = (
        "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; }; "
        "add rule ip nat out ip daddr 203.0.113.0/24 masquerade"
    )
    lab.namespaces.call(scene.m.interface_id, lambda: Nft().run(translate))
    assert lab.connects(scene.a, "203.0.113.9", 443)
    assert listener.accept()[1][0] == "198.51.100.7"
    flow = Flow(source=scene.a.interface_id, destination="203.0.113.9", port=443)
    verdict = why.explain(lab.engine.world, flow)
    assert verdict.allowed, verdict
    assert "10.0.2.12" in [step.becomes for step in verdict.steps]
    await lab.put(replace(scene.groups["m"], rules=(rule(cidr="0.0.0.0/0"),)))
    assert not lab.connects(scene.a, "203.0.113.9", 443)
    assert not why.explain(lab.engine.world, flow).allowed


@in_world
async def test_by_way_of_an_interface_to_a_nat_gateway_and_back(lab: Lab) -> None:
    scene = await _scene(lab)
    gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=scene.vpc)
    subnet = lab.engine.world.get(Subnet, scene.m.subnet_id)
    assert subnet is not None
    apart = replace(subnet, subnet_id=resource_id("subnet"), cidr="10.0.3.0/24")
    default = replace(scene.groups["m"], group_id=resource_id("sg"), name="default")
    await lab.put(gateway, apart, default)
    with lab.engine.transaction() as tx:
        nat = nat_gateways.create(tx, apart, public_ip="198.51.100.20", now=0)
    await lab.settle()
    tables = [
        RouteTable(
            route_table_id=resource_id("rtb"),
            vpc_id=scene.vpc,
            number=1010 + number,
            routes=tuple(Route(destination=destination, target=target) for destination, target in routes),
            associations=(RouteTableAssociation(association_id=subnet_id, subnet_id=subnet_id),),
        )
        for number, (subnet_id, *routes) in enumerate(
            (
                (scene.m.subnet_id, ("0.0.0.0/0", nat.nat_gateway_id)),
                (
                    apart.subnet_id,
                    ("0.0.0.0/0", gateway.internet_gateway_id),
                    ("10.0.0.0/24", scene.m.interface_id),
                ),
            )
        )
    ]
    out = Route(destination="0.0.0.0/0", target=scene.m.interface_id)
    await lab.put(*tables, replace(scene.tables["a"], routes=(out,)))
    listener = lab.listen(INTERNET, "0.0.0.0", 443)
    flow = Flow(source=scene.a.interface_id, destination="203.0.113.9", port=443)
    assert lab.connects(scene.a, "203.0.113.9", 443)
    assert listener.accept()[1][0] == "198.51.100.20"
    assert why.explain(lab.engine.world, flow).allowed
    await lab.put(replace(tables[1], routes=tables[1].routes[:1]))  # and directly back
    assert lab.connects(scene.a, "203.0.113.9", 443)
    assert why.explain(lab.engine.world, flow).allowed
    await lab.put(replace(scene.groups["a"], rules=(ALL[0],)))
    assert lab.connects(scene.a, "203.0.113.9", 443)


def _hears(ear: socket.socket, opener: socket.socket) -> bool:
    """Whether an answer to `opener` comes by; what is sent again for earlier connections is none."""
    port = opener.getsockname()[1].to_bytes(2)
    deadline = time.monotonic() + QUIET
    while time.monotonic() < deadline:
        try:
            packet = ear.recv(2000)
        except TimeoutError:
            return False
        if packet[26:30] == socket.inet_aton("203.0.113.9") and packet[36:38] == port:
            return True
    return False


@in_world
async def test_an_interface_passes_on_to_gateways_without_translating(lab: Lab) -> None:
    """To a gateway endpoint, to a peer, and to an internet gateway that has a public address for the sender.
    Replies come to the sender directly: gateways have no route table."""
    scene = await _scene(lab)
    gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=scene.vpc)
    far_vpc, far_subnet, far_table = await lab.vpc("10.9.0.0/16")
    far = await lab.interface(far_subnet, await lab.group(far_vpc, *ALL))
    peering = VpcPeering(
        peering_id=resource_id("pcx"), requester_vpc_id=scene.vpc, accepter_vpc_id=far_vpc,
        status="active", created=0, changed=0,
    )  # fmt: skip
    routes = (("0.0.0.0/0", gateway.internet_gateway_id), ("10.9.0.0/16", peering.peering_id))
    of_m = RouteTable(
        route_table_id=resource_id("rtb"),
        vpc_id=scene.vpc,
        number=1005,
        routes=tuple(Route(destination=to, target=target) for to, target in routes),
        associations=(RouteTableAssociation(association_id="m", subnet_id=scene.m.subnet_id),),
    )
    back = lab.engine.world.get(RouteTable, far_table)
    assert back is not None
    back = replace(back, routes=(Route(destination="10.0.0.0/16", target=peering.peering_id),))
    out = Route(destination="0.0.0.0/0", target=scene.m.interface_id)
    await lab.put(gateway, peering, of_m, back, replace(scene.tables["a"], routes=(out,)))
    endpoint = await lab.endpoint(scene.vpc, of_m.route_table_id)
    inside = {"10.9.0.0/16": far.addresses[0].address, "pl": "52.216.0.10", "0.0.0.0/0": "203.0.113.9"}
    listeners = [
        lab.listen(endpoint.endpoint_id, "0.0.0.0", 443),
        lab.listen(INTERNET, "0.0.0.0", 443),
        lab.listen(far.interface_id, "0.0.0.0", 443),
    ]
    held = (replace(scene.a.addresses[0], public_ip="198.51.100.7"),)

    def reached() -> list[bool]:
        found = []
        for address in inside.values():
            flow = Flow(source=scene.a.interface_id, destination=address, port=443)
            found.append(lab.connects(scene.a, address, 443))
            verdict = why.explain(lab.engine.world, flow)
            assert verdict.allowed is found[-1] or "must translate" in str(verdict), verdict
        return found

    assert reached() == [True, True, False]
    await lab.put(replace(scene.a, addresses=held))
    assert reached() == [True, True, True]
    assert listeners[1].accept()[1][0] == "198.51.100.7"
    assert listeners[0].accept()[1][0] == listeners[2].accept()[1][0] == "10.0.0.10"
    await lab.put(replace(scene.groups["a"], rules=(ALL[0],)))  # replies are known to a
    assert reached() == [True, True, True]
    await lab.put(replace(scene.groups["m"], rules=(ALL[1],)))
    assert reached() == [False, False, False]
    # in a's name m opens something to the internet: a did not, and its groups refuse the answer
    await lab.put(scene.groups["m"])
    ear = lab.namespaces.socket(scene.a.interface_id, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    ear.settimeout(QUIET)
    spoof = lab.socket(scene.m.interface_id)
    spoof.setsockopt(socket.SOL_IP, _TRANSPARENT, 1)
    spoof.bind(("10.0.0.10", 0))
    with pytest.raises(TimeoutError):
        spoof.connect(("203.0.113.9", 443))
    assert not _hears(ear, spoof)
    await lab.put(replace(scene.groups["a"], rules=ALL))
    again = lab.socket(scene.m.interface_id)
    again.setsockopt(socket.SOL_IP, _TRANSPARENT, 1)
    again.bind(("10.0.0.10", 0))
    again.setblocking(False)
    with pytest.raises(BlockingIOError):
        again.connect(("203.0.113.9", 443))
    assert _hears(ear, again)
    ear.close()


@in_world
async def test_what_comes_from_the_internet_goes_by_the_interface_that_the_gateways_table_names(
    lab: Lab,
) -> None:
    """AWS ("Gateway route tables"): in by the interface, and out by it where a's own table says so."""
    scene = await _scene(lab)
    gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=scene.vpc)
    out = Route(destination="0.0.0.0/0", target=gateway.internet_gateway_id)
    by = Route(destination="0.0.0.0/0", target=scene.m.interface_id)
    into = Route(destination="10.0.0.0/24", target=scene.m.interface_id)
    of_m, of_gateway = (
        RouteTable(
            route_table_id=resource_id("rtb"),
            vpc_id=scene.vpc,
            number=number,
            routes=(route,),
            associations=(
                RouteTableAssociation(association_id=str(number), subnet_id=subnet, gateway_id=igw),
            ),
        )
        for number, route, subnet, igw in (
            (1005, out, scene.m.subnet_id, None),
            (1006, into, None, gateway.internet_gateway_id),
        )
    )
    a = replace(scene.a, addresses=(replace(scene.a.addresses[0], public_ip="198.51.100.7"),))
    b = replace(scene.b, addresses=(replace(scene.b.addresses[0], public_ip="198.51.100.8"),))
    at_b, at_a = scene.tables["b"], scene.tables["a"]
    await lab.put(gateway, a, b, of_m, of_gateway)
    await lab.put(replace(at_b, routes=(out,)), replace(at_a, routes=(by,)))
    lab.listen(INTERNET, "0.0.0.0", 443)

    def both() -> tuple[bool, bool]:
        """Whether b, by its public address, opens a connection to a's, and a one to the internet."""
        listener = lab.listen(a.interface_id, "0.0.0.0", 5000)
        found = []
        for source, destination, port in ((b, "198.51.100.7", 5000), (a, "203.0.113.9", 443)):
            found.append(lab.connects(source, destination, port))
            flow = Flow(source=source.interface_id, destination=destination, port=port)
            verdict = why.explain(lab.engine.world, flow)
            assert verdict.allowed is found[-1], verdict
        listener.close()
        return found[0], found[1]

    ear = lab.namespaces.socket(scene.m.interface_id, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    ear.setblocking(False)
    assert both() == (True, True)
    seen = set()
    while True:
        try:
            frame = ear.recv(2000)
        except BlockingIOError:
            break
        seen.add((socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])))
    ear.close()
    ends = {("198.51.100.8", "10.0.0.10"), ("203.0.113.9", "10.0.0.10")}
    assert seen == ends | {(two, one) for one, two in ends}  # all that comes and goes, with a's own address
    # out directly, and the replies in by m, to which they are new
    await lab.put(replace(at_a, routes=(out,)))
    assert both() == (True, True)
    await lab.put(replace(scene.groups["m"], rules=(rule(cidr="198.51.100.8/32"), ALL[0])))
    assert both() == (True, False)
    # in by m is judged by the groups of both
    await lab.put(replace(scene.groups["m"], rules=(rule(cidr="203.0.113.0/24"), ALL[0])))
    assert both() == (False, True)
    await lab.put(scene.groups["m"], replace(scene.groups["a"], rules=(ALL[0],)))
    assert both() == (False, True)
    # a check drops it, a table without the route leads straight to a
    await lab.put(scene.groups["a"], replace(scene.m, source_dest_check=True))
    assert both() == (False, False)
    await lab.put(replace(of_gateway, routes=()))
    assert both() == (True, True)


@in_world
async def test_flow_logs_have_each_leg_at_both_its_ends_with_the_packets_own_addresses(lab: Lab) -> None:
    scene = await _scene(lab)
    await lab.put(
        replace(scene.groups["b"], rules=(ALL[0], rule(False, "udp", (53, 53), cidr="10.0.0.0/24")))
    )
    log = FlowLog(
        flow_log_id=resource_id("fl"),
        resource_id=scene.vpc,
        vpc_id=scene.vpc,
        log_format=DEFAULT_FORMAT,
        created=0,
    )
    await lab.put(log)
    flow_logs = FlowLogs(
        ":memory:", lab.engine, lab.fabric, lab.reconciler, lab.namespaces, LogStore(":memory:"), None,
        account="123456789012", region="us-east-1",
    )  # fmt: skip
    lab.engine.subscribe(flow_logs._committed)
    await flow_logs.collect(0)
    client = lab.socket(scene.a.interface_id, socket.SOCK_DGRAM)
    client.bind(("10.0.0.10", 5000))
    for port, count in ((53, 3), (54, 2)):
        for _ in range(count):
            client.sendto(b"?", ("10.0.1.11", port))
    await asyncio.sleep(0.3)
    await flow_logs.collect(60)
    found = aggregate(flow_logs.readings.between(scene.vpc, 0, 1 << 40), lambda logged: True)
    seen = {
        (name, key.egress, key.destination_port, key.accept): counted.packets
        for name, interface in (("a", scene.a), ("m", scene.m), ("b", scene.b))
        for key, counted in found[interface.interface_id].flows.items()
        if (key.source, key.destination, key.protocol) == ("10.0.0.10", "10.0.1.11", 17)
    }
    assert seen == {
        ("a", True, 53, True): 3,
        ("m", False, 53, True): 3,
        ("m", True, 53, True): 3,
        ("b", False, 53, True): 3,
        ("a", True, 54, True): 2,
        ("m", False, 54, True): 2,
        ("m", True, 54, True): 2,
        ("b", False, 54, False): 2,
    }
