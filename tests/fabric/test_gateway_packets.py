"""Internet gateways, NAT gateways and peering on real packets. `INTERNET` stands for the outside: a test
listens in it on an address of an AWS service, or is another VPC's public address."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world, rule

from cloister.ids import resource_id
from cloister.vpc import nat_gateways
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
from cloister.vpc.gateways import INTERNET
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import (
    InternetGateway,
    NatGateway,
    NetworkInterface,
    Route,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    VpcPeering,
)

pytestmark = pytest.mark.fabric

SERVICE = "203.0.113.9"


async def _routes(lab: Lab, table_id: str, *routes: tuple[str, str]) -> None:
    table = lab.engine.world.get(RouteTable, table_id)
    assert table is not None
    made = tuple(Route(destination=destination, target=target) for destination, target in routes)
    await lab.put(replace(table, routes=made))


async def _public(lab: Lab, interface: NetworkInterface, address: str) -> NetworkInterface:
    held = (replace(interface.addresses[0], public_ip=address), *interface.addresses[1:])
    interface = replace(interface, addresses=held)
    await lab.put(interface)
    return interface


def _verdict(lab: Lab, source: NetworkInterface, destination: str, port: int) -> bool:
    return explain(
        lab.engine.world, Flow(source=source.interface_id, destination=destination, port=port)
    ).allowed


def _seen(listener: socket.socket) -> str:
    connection, (address, _) = listener.accept()
    connection.close()
    return str(address)


@in_world
async def test_an_internet_gateway_translates_one_to_one_and_only_public_addresses(lab: Lab) -> None:
    vpc, subnet, table = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE)
    one = await lab.interface(subnet, group)
    gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=vpc)
    await lab.put(gateway)
    listener = lab.listen(INTERNET, "0.0.0.0", 443)
    assert not lab.connects(one, SERVICE, 443)
    await _routes(lab, table, ("0.0.0.0/0", gateway.internet_gateway_id))
    assert not lab.connects(one, SERVICE, 443)
    assert not _verdict(lab, one, SERVICE, 443)
    one = await _public(lab, one, "198.51.100.7")
    assert lab.connects(one, SERVICE, 443)
    assert _verdict(lab, one, SERVICE, 443)
    assert _seen(listener) == "198.51.100.7"
    assert not lab.connects(one, SERVICE, 22)
    # from outside: another VPC with a gateway
    there, far_subnet, far_table = await lab.vpc("10.9.0.0/16")
    far_gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=there)
    await lab.put(far_gateway)
    await _routes(lab, far_table, ("0.0.0.0/0", far_gateway.internet_gateway_id))
    stranger = await lab.interface(far_subnet, await lab.group(there, ANYWHERE))
    stranger = await _public(lab, stranger, "198.51.100.8")
    served = lab.listen(one.interface_id, "0.0.0.0", 5000)
    assert not lab.connects(stranger, "198.51.100.7", 5000)
    assert not _verdict(lab, stranger, "198.51.100.7", 5000)
    await lab.put(
        replace(group, rules=(ANYWHERE, rule(protocol="tcp", ports=(5000, 5000), cidr="198.51.100.8/32")))
    )
    assert lab.connects(stranger, "198.51.100.7", 5000)
    assert _verdict(lab, stranger, "198.51.100.7", 5000)
    assert _seen(served) == "198.51.100.8"
    # a gateway that goes leaves black holes
    await lab.put(replace(gateway, vpc_id=None))
    assert not lab.connects(one, SERVICE, 443)
    assert not _verdict(lab, one, SERVICE, 443)


@in_world
async def test_a_nat_gateway_lets_out_with_its_elastic_ip_and_nothing_in(lab: Lab) -> None:
    vpc, private, private_table = await lab.vpc()
    public = Subnet(
        subnet_id=resource_id("subnet"), vpc_id=vpc, cidr="10.0.1.0/24", zone="us-east-1a", zone_id="use1-az1"
    )
    gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=vpc)
    public_table = RouteTable(
        route_table_id=resource_id("rtb"),
        vpc_id=vpc,
        number=1001,
        routes=(Route(destination="0.0.0.0/0", target=gateway.internet_gateway_id),),
        associations=(RouteTableAssociation(association_id="a", subnet_id=public.subnet_id),),
    )
    await lab.put(public, gateway, public_table)
    group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
    job = await lab.interface(private, group)
    nat = await _nat(lab, vpc, public.subnet_id, group, "198.51.100.20")
    listener = lab.listen(INTERNET, "0.0.0.0", 443)
    assert not lab.connects(job, SERVICE, 443)
    await _routes(lab, private_table, ("0.0.0.0/0", nat.nat_gateway_id))
    assert lab.connects(job, SERVICE, 443)
    assert _verdict(lab, job, SERVICE, 443)
    assert _seen(listener) == "198.51.100.20"
    # the gateway itself answers nobody, neither inside nor outside
    assert not lab.connects(job, nat.private_ip, 443)
    assert not _verdict(lab, job, nat.private_ip, 443)
    bystander = await _public(lab, await lab.interface(public.subnet_id, group), "198.51.100.21")
    assert not lab.connects(bystander, "198.51.100.20", 443)
    # the group of the job still decides
    await lab.put(replace(group, rules=(rule(True, "tcp", (80, 80), cidr="0.0.0.0/0"),)))
    assert not lab.connects(job, SERVICE, 443)
    assert not _verdict(lab, job, SERVICE, 443)
    await lab.put(group, replace(nat, deleted=1.0))
    assert not lab.connects(job, SERVICE, 443)


async def _nat(lab: Lab, vpc: str, subnet: str, group: SecurityGroup, public_ip: str) -> NatGateway:
    with lab.engine.transaction() as tx:
        interface = create_interface(
            tx,
            subnet_id=subnet,
            group_ids=[group.group_id],
            now=0,
            attach=("",),
            interface_type="nat_gateway",
        )
        held = replace(interface.addresses[0], public_ip=public_ip)
        tx.put(replace(interface, group_ids=(), addresses=(held,)))
        nat = NatGateway(
            nat_gateway_id=resource_id("nat"),
            vpc_id=vpc,
            subnet_id=subnet,
            interface_id=interface.interface_id,
            private_ip=held.address,
            public_ip=public_ip,
            created=0,
        )
        tx.put(nat)
    await lab.settle()
    return nat


@in_world
async def test_a_peering_leads_to_the_other_vpcs_interfaces_and_not_beyond(lab: Lab) -> None:
    vpcs = [await lab.vpc(f"10.{n}.0.0/16") for n in (0, 1, 2)]
    groups = [await lab.group(vpc, ANYWHERE) for vpc, _, _ in vpcs]
    ends = [await lab.interface(subnet, group) for (_, subnet, _), group in zip(vpcs, groups, strict=True)]
    peerings = [
        VpcPeering(
            peering_id=resource_id("pcx"),
            requester_vpc_id=vpcs[n][0],
            accepter_vpc_id=vpcs[n + 1][0],
            status="active",
            created=0,
            changed=0,
        )
        for n in (0, 1)
    ]
    await lab.put(*peerings)
    first, second = (peering.peering_id for peering in peerings)
    await _routes(lab, vpcs[0][2], ("10.1.0.0/16", first), ("10.2.0.0/16", first))
    target = ends[1].addresses[0].address
    served = lab.listen(ends[1].interface_id, "0.0.0.0", 5000)
    # a group of the peer can be named
    named = rule(protocol="tcp", ports=(5000, 5000), group_id=groups[0].group_id)
    await lab.put(replace(groups[1], rules=(ANYWHERE, named)))
    assert not lab.connects(ends[0], target, 5000)  # no way back
    assert not _verdict(lab, ends[0], target, 5000)
    await _routes(lab, vpcs[1][2], ("10.0.0.0/16", first), ("10.2.0.0/16", second))
    assert lab.connects(ends[0], target, 5000)
    assert _verdict(lab, ends[0], target, 5000)
    assert _seen(served) == ends[0].addresses[0].address
    assert not lab.connects(ends[0], target, 5001)
    # no transit through the middle
    await _routes(lab, vpcs[2][2], ("10.0.0.0/16", second), ("10.1.0.0/16", second))
    await lab.put(replace(groups[2], rules=(ANYWHERE, rule(cidr="0.0.0.0/0"))))
    lab.listen(ends[2].interface_id, "0.0.0.0", 5000)
    assert lab.connects(ends[1], ends[2].addresses[0].address, 5000)
    assert not lab.connects(ends[0], ends[2].addresses[0].address, 5000)
    assert not _verdict(lab, ends[0], ends[2].addresses[0].address, 5000)
    await lab.put(replace(peerings[0], status="deleted"))
    assert not lab.connects(ends[0], target, 5000)
    assert not _verdict(lab, ends[0], target, 5000)


@in_world
async def test_a_private_nat_gateway_stands_between_two_subnets(lab: Lab) -> None:
    vpc, near, near_table = await lab.vpc()
    middle, far = (
        Subnet(
            subnet_id=resource_id("subnet"),
            vpc_id=vpc,
            cidr=f"10.0.{n}.0/24",
            zone="us-east-1a",
            zone_id="use1-az1",
        )
        for n in (1, 2)
    )
    plain = RouteTable(
        route_table_id=resource_id("rtb"),
        vpc_id=vpc,
        number=1001,
        associations=(
            RouteTableAssociation(association_id="a", subnet_id=middle.subnet_id),
            RouteTableAssociation(association_id="b", subnet_id=far.subnet_id),
        ),
    )
    await lab.put(middle, far, plain)
    group = await lab.group(vpc, ANYWHERE)
    await lab.put(replace(group, group_id=resource_id("sg"), name="default"))
    with lab.engine.transaction() as tx:
        nat = nat_gateways.create(tx, middle, now=0)
    await lab.settle()
    job, target = await lab.interface(near, group), await lab.interface(far.subnet_id, group)
    address = target.addresses[0].address
    served = lab.listen(target.interface_id, "0.0.0.0", 5000)
    from_nat = rule(protocol="tcp", ports=(5000, 5000), cidr=f"{nat.private_ip}/32")
    await lab.put(replace(group, rules=(ANYWHERE, from_nat)))
    assert not lab.connects(job, address, 5000)
    assert not _verdict(lab, job, address, 5000)
    # a route for the far subnet's block is more specific than `local`
    await _routes(lab, near_table, (far.cidr, nat.nat_gateway_id))
    assert lab.connects(job, address, 5000)
    assert _verdict(lab, job, address, 5000)
    assert _seen(served) == nat.private_ip
    assert not lab.connects(job, address, 5001)
    assert not _verdict(lab, job, address, 5001)
