"""Routes to interfaces: a middlebox between two subnets, with and without its source/destination check."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, replace

import pytest
from tests.fabric.lab import ANYWHERE, QUIET, Lab, in_world, rule

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
)

pytestmark = pytest.mark.fabric

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
async def test_replies_must_come_by_the_same_interface(lab: Lab) -> None:
    scene = await _scene(lab)
    await lab.put(replace(scene.tables["b"], routes=()))
    assert not lab.reaches(scene.a, scene.b, 5000)
    assert not lab.reaches(scene.b, scene.a, 5000)
    await lab.put(scene.tables["b"])
    assert lab.reaches(scene.b, scene.a, 5000)


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


@in_world
async def test_two_interfaces_in_a_row_are_one_too_many(lab: Lab) -> None:
    scene = await _scene(lab)
    subnet = lab.engine.world.get(Subnet, scene.m.subnet_id)
    assert subnet is not None
    apart = replace(subnet, subnet_id=resource_id("subnet"), cidr="10.0.3.0/24")
    await lab.put(apart)
    other = await lab.interface(apart.subnet_id, scene.groups["m"])
    other = replace(other, source_dest_check=False)
    await lab.put(other)
    table = RouteTable(
        route_table_id=resource_id("rtb"),
        vpc_id=scene.vpc,
        number=1005,
        routes=(Route(destination="10.0.1.0/24", target=other.interface_id),),
        associations=(RouteTableAssociation(association_id="m", subnet_id=scene.m.subnet_id),),
    )
    await lab.put(table)
    assert not lab.reaches(scene.a, scene.b, 5000)
    # what the first has of its own goes by the second, and back
    assert not lab.reaches(scene.m, scene.b, 5000)  # b answers to m's subnet directly
    routes = (*scene.tables["b"].routes, Route(destination="10.0.2.0/24", target=other.interface_id))
    await lab.put(replace(scene.tables["b"], routes=routes))
    assert lab.reaches(scene.m, scene.b, 5000)


@in_world
async def test_an_interface_that_translates_lets_others_out_of_the_vpc(lab: Lab) -> None:
    """A NAT instance. What it passes on without translating does not leave the VPC."""
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
    await lab.put(replace(tables[1], routes=tables[1].routes[:1]))  # the way back is not the way there
    assert not lab.connects(scene.a, "203.0.113.9", 443)
    assert not why.explain(lab.engine.world, flow).allowed


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
