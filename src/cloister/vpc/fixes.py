"""The smallest change that lets through what a gate refused, as a command of the AWS CLI. Pure.

Whoever runs one must find that it helps also the next time: a job gets other addresses each time it runs, and
S3 answers from many, so rules are for the subnet or the blocks that such an address is of.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

from cloister.vpc import gateways, network_acls, route_tables
from cloister.vpc.endpoints import GatewayService, prefix_list_in, service_at
from cloister.vpc.flow import Flow
from cloister.vpc.model import (
    InternetGateway,
    NatGateway,
    NetworkAcl,
    NetworkInterface,
    RouteTable,
    Subnet,
    Vpc,
    VpcEndpoint,
    place,
)
from cloister.vpc.steps import permission
from cloister.world import World

_RESERVED = 5  # addresses of a subnet that AWS keeps
_REST = 32767  # the number of an ACL's last rule, which denies what no other matched


def covering(world: World, vpc_id: str, address: str) -> tuple[str, ...]:
    """The blocks that a rule about `address`, seen from a VPC, must be for."""
    for near in gateways.reach(world, vpc_id):
        for interface in world.where(NetworkInterface, places=place(near, address)):
            subnet = world.get(Subnet, interface.subnet_id)
            if interface.requester_managed and interface.interface_type == "interface" and subnet:
                return (subnet.cidr,)
    subnet = next(world.where(Subnet, vpc_id=vpc_id), None)
    service = service_at(address, subnet.region) if subnet is not None else None
    if subnet is not None and service is not None:
        return tuple(prefix_list_in(service, subnet.region).entries)
    return (f"{address}/32",)


def named(world: World, owner: NetworkInterface, address: str) -> str:
    """An address, with the prefix list of the service that it is of."""
    subnet = world.get(Subnet, owner.subnet_id)
    service = service_at(address, subnet.region) if subnet is not None else None
    if subnet is None or service is None:
        return address
    listed = prefix_list_in(service, subnet.region)
    return f"{address} of {listed.prefix_list_id} ({listed.name})"


def of_groups(
    world: World,
    owner: NetworkInterface,
    group_id: str,
    peer: str,
    flow: Flow,
    *,
    egress: bool,
    whom: str | None,
) -> str:
    """One more rule for a group of `owner`; `whom` is a group of the peer's, if the rule can name one."""
    subnet = world.get(Subnet, owner.subnet_id)
    service = service_at(peer, subnet.region) if egress and subnet is not None else None
    if whom is not None:
        peers = f"UserIdGroupPairs=[{{GroupId={whom}}}]"
    elif subnet is not None and service is not None:
        peers = f"PrefixListIds=[{{PrefixListId={prefix_list_in(service, subnet.region).prefix_list_id}}}]"
    else:
        blocks = ",".join(f"{{CidrIp={block}}}" for block in covering(world, owner.vpc_id, peer))
        peers = f"IpRanges=[{blocks}]"
    gate = "egress" if egress else "ingress"
    return (
        f"aws ec2 authorize-security-group-{gate} --group-id {group_id} "
        f"--ip-permissions '{permission(flow)},{peers}'"
    )


def of_acl(
    world: World,
    subnet: Subnet,
    decision: network_acls.Decision,
    flow: Flow,
    *,
    egress: bool,
    peer: str,
    ports: tuple[int, int] | None,
) -> str | None:
    """An entry for each block that needs one, with free numbers before the entry that denies; where there are
    none, that entry's end."""
    acl = world.get(NetworkAcl, decision.acl_id)
    if acl is None:
        return None
    way = "--egress" if egress else "--ingress"
    taken = {entry.number for entry in network_acls.in_order(acl, egress=egress)}
    before = decision.entry.number if decision.entry else _REST
    free = [number for number in range(min(before - 1, 100), 0, -1) if number not in taken]
    blocks = covering(world, subnet.vpc_id, peer)
    if len(free) < len(blocks):
        return (
            f"aws ec2 delete-network-acl-entry --network-acl-id {acl.network_acl_id} --rule-number {before} "
            f"{way}"
            if decision.entry
            else None
        )
    protocol = {"tcp": "6", "udp": "17", "icmp": "1"}.get(flow.protocol, flow.protocol)
    if flow.protocol == "icmp" and ports is not None:
        narrow = f" --icmp-type-code Type={ports[0] >> 8},Code={ports[0] & 0xFF}"
    else:
        narrow = f" --port-range From={ports[0]},To={ports[1]}" if ports is not None else ""
    return " && ".join(
        f"aws ec2 create-network-acl-entry --network-acl-id {acl.network_acl_id} --rule-number {number} "
        f"{way} --protocol {protocol}{narrow} --cidr-block {block} --rule-action allow"
        for number, block in zip(free, blocks, strict=False)
    )


def of_route(world: World, sender: NetworkInterface, table: RouteTable, destination: str) -> str | None:
    """A route where there is none: by a gateway endpoint to its service; from a public NAT gateway to
    the internet."""
    subnet = world.get(Subnet, sender.subnet_id)
    name = table.route_table_id
    if sender.interface_type == gateways.NAT_INTERFACE and sender.addresses[0].public_ip is not None:
        gateway = gateways.of_vpc(world, sender.vpc_id)
        if gateway is None:
            return (
                "gateway=$(aws ec2 create-internet-gateway --query InternetGateway.InternetGatewayId "
                f"--output text) && aws ec2 attach-internet-gateway --internet-gateway-id $gateway "
                f"--vpc-id {sender.vpc_id} && aws ec2 create-route --route-table-id {name} "
                "--destination-cidr-block 0.0.0.0/0 --gateway-id $gateway"
            )
        return (
            f"aws ec2 create-route --route-table-id {name} --destination-cidr-block 0.0.0.0/0 "
            f"--gateway-id {gateway.internet_gateway_id}"
        )
    service = service_at(destination, subnet.region) if subnet is not None else None
    if subnet is None or service is None:
        return None
    endpoint = gateway_endpoint(world, sender.vpc_id, service, subnet.region)
    if endpoint is not None:
        return f"aws ec2 modify-vpc-endpoint --vpc-endpoint-id {endpoint} --add-route-table-ids {name}"
    return (
        f"aws ec2 create-vpc-endpoint --vpc-id {sender.vpc_id} "
        f"--service-name {service.name(subnet.region)} --route-table-ids {name}"
    )


def of_blackhole(world: World, table: RouteTable, hop: route_tables.Hop, destination: str) -> str | None:
    """What the route led to, made anew; else another target that is there; else the route's end, where a less
    specific one takes over."""
    target = hop.route.target
    route = f"--route-table-id {table.route_table_id} --destination-cidr-block {hop.route.destination}"
    if target.startswith("igw-") and (gateway := world.get(InternetGateway, target)) is not None:
        if gateway.vpc_id is None and gateways.of_vpc(world, table.vpc_id) is None:
            return f"aws ec2 attach-internet-gateway --internet-gateway-id {target} --vpc-id {table.vpc_id}"
        return None
    if target.startswith("nat-"):
        gone = world.get(NatGateway, target)
        others = world.where(NatGateway, vpc_id=table.vpc_id)
        other = next((one for one in others if one.deleted is None and one.public), None)
        if other is not None:
            return f"aws ec2 replace-route {route} --nat-gateway-id {other.nat_gateway_id}"
        if gone is not None and gone.public and world.get(Subnet, gone.subnet_id) is not None:
            return (
                f"nat=$(aws ec2 create-nat-gateway --subnet-id {gone.subnet_id} --allocation-id "
                "$(aws ec2 allocate-address --query AllocationId --output text) "
                "--query NatGateway.NatGatewayId --output text) && "
                "aws ec2 wait nat-gateway-available --nat-gateway-ids $nat && "
                f"aws ec2 replace-route {route} --nat-gateway-id $nat"
            )
    rest = tuple(one for one in table.routes if one != hop.route)
    below = route_tables.lookup(world, replace(table, routes=rest), destination)
    if below is not None and below.kind != "blackhole" and below.block != hop.block:
        return f"aws ec2 delete-route {route}"
    return None


def gateway_endpoint(world: World, vpc_id: str, service: GatewayService, region: str) -> str | None:
    """The VPC's gateway endpoint of a service."""
    for endpoint in world.where(VpcEndpoint, vpc_id=vpc_id):
        if endpoint.service_name == service.name(region) and endpoint.kind == "Gateway":
            return endpoint.endpoint_id
    return None


def larger_subnet(world: World, subnet: Subnet, need: int) -> str | None:
    """A subnet beside this one, with the same routes, that has `need` addresses for a job. None: the VPC has
    no block left for it."""
    vpc = world.get(Vpc, subnet.vpc_id)
    taken = [IPv4Network(one.cidr) for one in world.where(Subnet, vpc_id=subnet.vpc_id)]
    length = min(28, 32 - (need + _RESERVED - 1).bit_length())
    blocks = (
        block
        for cidr in (vpc.cidrs if vpc is not None else ())
        if IPv4Network(cidr).prefixlen <= length
        for block in IPv4Network(cidr).subnets(new_prefix=length)
    )
    block = next((one for one in blocks if not any(one.overlaps(other) for other in taken)), None)
    if block is None:
        return None
    make = (
        f"aws ec2 create-subnet --vpc-id {subnet.vpc_id} --cidr-block {block} "
        f"--availability-zone {subnet.zone} --query Subnet.SubnetId --output text"
    )
    table = route_tables.of_subnet(world, subnet)
    if table is None or any(one.main for one in table.associations):
        return make
    return (
        f"subnet=$({make}) && aws ec2 associate-route-table --route-table-id {table.route_table_id} "
        "--subnet-id $subnet && echo $subnet"
    )
