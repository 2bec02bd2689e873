"""What compiles by itself, and which of it a change touches.

A scope is a resource and a kind of parts of it; `compile` has a function for each kind. `affected` knows
which scopes read a document that changed: it may name too many, never too few (a property test compares an
updated plan with one compiled afresh).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cloister.vpc import flow_logs, gateways, route_tables, security_groups
from cloister.vpc.model import (
    HostAddress,
    InternetGateway,
    NatGateway,
    NetworkAcl,
    NetworkInterface,
    PrefixList,
    RouteTable,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcEndpoint,
    VpcPeering,
)
from cloister.world import Change, World

#: a kind of part and the resource's id; for "groups" the VPC's id and the ids of the groups,
#: for "alike" the number of a link group
Scope = tuple[str, ...]


def all_scopes(world: World) -> Iterator[Scope]:
    yield from (("vpc", vpc.vpc_id) for vpc in world.all(Vpc))
    yield from (("table", table.route_table_id) for table in world.all(RouteTable))
    yield from (("endpoint", endpoint.endpoint_id) for endpoint in world.all(VpcEndpoint))
    yield from (("group", group.group_id) for group in world.all(SecurityGroup))
    if any(gateway.vpc_id for gateway in world.all(InternetGateway)):
        yield ("internet",)
    yield from (("igw", gateway.internet_gateway_id) for gateway in world.all(InternetGateway))
    yield from (("peering", peering.peering_id) for peering in world.all(VpcPeering))
    yield from (("subnet", subnet.subnet_id) for subnet in world.all(Subnet))
    yield from (("acl", acl.network_acl_id) for acl in world.all(NetworkAcl))
    for interface in world.all(NetworkInterface):
        yield from _interface_scopes(interface)


def _interface_scopes(interface: NetworkInterface) -> list[Scope]:
    if not any(held.netns for held in interface.addresses):
        return []
    if interface.interface_type == gateways.NAT_INTERFACE:
        return [("interface", interface.interface_id), ("mark", interface.interface_id)]
    return [
        ("interface", interface.interface_id),
        ("mark", interface.interface_id),
        ("groups", interface.vpc_id, *sorted(interface.group_ids)),
        ("alike", str(interface.link_group)),
    ]


def affected(before: World, after: World, change: Change) -> Iterator[Scope]:
    docs = [doc for doc in (change.before, change.after) if doc is not None]
    born_or_gone = len(docs) == 1
    for doc in docs:
        if isinstance(doc, NetworkInterface):
            yield from _interface_scopes(doc)
            if doc.interface_type == gateways.NAT_INTERFACE:
                yield from _tables_of(before, after, doc.vpc_id)
            if not doc.source_dest_check:
                yield from _forwarding(before, after, doc.vpc_id)
            yield from _led_to(before, after, doc)
        elif isinstance(doc, InternetGateway):
            if born_or_gone or _differs(change, "vpc_id"):
                yield from (("internet",), ("igw", doc.internet_gateway_id))
                if doc.vpc_id is not None:
                    yield from _tables_of(before, after, doc.vpc_id)
                    yield from _public(before, after, doc.vpc_id)
        elif isinstance(doc, HostAddress):
            yield ("internet",)
        elif isinstance(doc, flow_logs.FlowLog):
            if born_or_gone:
                yield ("vpc", doc.vpc_id)
                for world in (before, after):
                    for interface in world.where(NetworkInterface, vpc_id=doc.vpc_id):
                        yield ("interface", interface.interface_id)
        elif isinstance(doc, NatGateway):
            yield from _tables_of(before, after, doc.vpc_id)
        elif isinstance(doc, VpcPeering):
            yield ("peering", doc.peering_id)
            for vpc_id in (doc.requester_vpc_id, doc.accepter_vpc_id):
                yield from _tables_of(before, after, vpc_id)
                if born_or_gone or _differs(change, "status", "requester_vpc_id", "accepter_vpc_id"):
                    yield from _everything_in(before, after, vpc_id)
        elif isinstance(doc, Vpc):
            yield ("vpc", doc.vpc_id)
            for world in (before, after):
                for peering in (
                    *world.where(VpcPeering, requester_vpc_id=doc.vpc_id),
                    *world.where(VpcPeering, accepter_vpc_id=doc.vpc_id),
                ):
                    yield ("peering", peering.peering_id)
                    if born_or_gone:
                        yield from _tables_of(before, after, peering.other(doc.vpc_id))
                        yield from _everything_in(before, after, peering.other(doc.vpc_id))
            if born_or_gone or _differs(change, "cidr", "more_cidrs"):
                yield from _tables_of(before, after, doc.vpc_id)
            if born_or_gone:
                yield from _everything_in(before, after, doc.vpc_id)
        elif isinstance(doc, NetworkAcl):
            yield ("acl", doc.network_acl_id)
            if born_or_gone or _differs(change, "vpc_id"):
                for world in (before, after):
                    for subnet in world.where(Subnet, network_acl_id=doc.network_acl_id):
                        yield ("subnet", subnet.subnet_id)
        elif isinstance(doc, Subnet):
            yield ("subnet", doc.subnet_id)
            if born_or_gone or _differs(change, "cidr", "vpc_id"):
                yield ("vpc", doc.vpc_id)
                for world in (before, after):
                    for interface in world.where(NetworkInterface, subnet_id=doc.subnet_id):
                        yield from _interface_scopes(interface)
        elif isinstance(doc, RouteTable):
            yield ("table", doc.route_table_id)
            if born_or_gone or _differs(change, "routes", "vpc_id"):
                yield ("vpc", doc.vpc_id)
            if born_or_gone or _differs(change, "associations", "number", "vpc_id"):
                yield from _remarked(before, after, doc.vpc_id)
                yield from (("igw", one.gateway_id) for one in doc.associations if one.gateway_id is not None)
        elif isinstance(doc, VpcEndpoint):
            yield ("endpoint", doc.endpoint_id)
            yield from (("interface", interface_id) for interface_id in doc.interface_ids)
            if born_or_gone or _differs(change, "route_table_ids", "state", "service_name", "vpc_id", "kind"):
                yield from _tables_of(before, after, doc.vpc_id)
        elif isinstance(doc, SecurityGroup):
            yield ("group", doc.group_id)
            if born_or_gone or _differs(change, "vpc_id"):
                yield from _referring(before, after, doc)
            elif _opens_otherwise(change):
                for world in (before, after):
                    for interface in world.where(NetworkInterface, group_ids=doc.group_id):
                        yield from (each for each in _interface_scopes(interface) if each[0] == "groups")
        elif isinstance(doc, PrefixList):
            for world in (before, after):
                yield from (("table", table.route_table_id) for table in world.all(RouteTable))
                yield from (("vpc", table.vpc_id) for table in world.all(RouteTable))
                for group in world.all(SecurityGroup):
                    if any(rule.prefix_list_id == doc.prefix_list_id for rule in group.rules):
                        yield ("group", group.group_id)


def _opens_otherwise(change: Change) -> bool:
    ways = (True, False)
    return any(
        security_groups.open_ports(change.before, egress=egress)
        != security_groups.open_ports(change.after, egress=egress)
        for egress in ways
    )


def _differs(change: Change, *fields: str) -> bool:
    return any(getattr(change.before, field) != getattr(change.after, field) for field in fields)


def _tables_of(before: World, after: World, vpc_id: str) -> Iterator[Scope]:
    for world in (before, after):
        yield from (("table", table.route_table_id) for table in world.where(RouteTable, vpc_id=vpc_id))


def _led_to(before: World, after: World, interface: NetworkInterface) -> Iterator[Scope]:
    """The tables with a route to an interface."""
    for world in (before, after):
        for table in world.where(RouteTable, vpc_id=interface.vpc_id):
            if any(route.target == interface.interface_id for route in table.routes):
                yield ("table", table.route_table_id)
                yield ("vpc", table.vpc_id)


def _forwarding(before: World, after: World, vpc_id: str) -> Iterator[Scope]:
    """What in a VPC knows whether interfaces of it pass packets on."""
    yield ("vpc", vpc_id)
    yield from _tables_of(before, after, vpc_id)
    for world in (before, after):
        yield from (("group", group.group_id) for group in world.where(SecurityGroup, vpc_id=vpc_id))
        for interface in world.where(NetworkInterface, vpc_id=vpc_id):
            yield ("groups", vpc_id, *sorted(interface.group_ids))


def _everything_in(before: World, after: World, vpc_id: str) -> Iterator[Scope]:
    for world in (before, after):
        yield from (("endpoint", e.endpoint_id) for e in world.where(VpcEndpoint, vpc_id=vpc_id))
        yield from (("group", g.group_id) for g in world.where(SecurityGroup, vpc_id=vpc_id))
        yield from (("subnet", s.subnet_id) for s in world.where(Subnet, vpc_id=vpc_id))
        yield from (("acl", a.network_acl_id) for a in world.where(NetworkAcl, vpc_id=vpc_id))
        yield from (("igw", g.internet_gateway_id) for g in world.where(InternetGateway, vpc_id=vpc_id))
        for interface in world.where(NetworkInterface, vpc_id=vpc_id):
            yield from _interface_scopes(interface)


def _public(before: World, after: World, vpc_id: str) -> Iterator[Scope]:
    """The interfaces of a VPC that have public addresses."""
    for world in (before, after):
        for interface in world.where(NetworkInterface, vpc_id=vpc_id):
            if any(held.public_ip for held in interface.addresses):
                yield from _interface_scopes(interface)


def _remarked(before: World, after: World, vpc_id: str) -> Iterator[Scope]:
    """The interfaces of subnets whose route table is not what it was."""
    for subnet in [*before.where(Subnet, vpc_id=vpc_id), *after.where(Subnet, vpc_id=vpc_id)]:
        old, new = route_tables.of_subnet(before, subnet), route_tables.of_subnet(after, subnet)
        if (old and old.number) != (new and new.number):
            for world in (before, after):
                for interface in world.where(NetworkInterface, subnet_id=subnet.subnet_id):
                    yield ("mark", interface.interface_id)
                    yield ("alike", str(interface.link_group))


def _referring(before: World, after: World, group: SecurityGroup) -> Iterator[Scope]:
    """Groups whose rules name a group that is new or gone, and its interfaces."""
    for world in (before, after):
        for other in _groups_within(world, gateways.reach(world, group.vpc_id)):
            if any(rule.group_id == group.group_id for rule in other.rules):
                yield ("group", other.group_id)
        for interface in world.where(NetworkInterface, group_ids=group.group_id):
            yield from _interface_scopes(interface)


def _groups_within(world: World, vpc_ids: Iterable[str]) -> Iterator[SecurityGroup]:
    for vpc_id in vpc_ids:
        yield from world.where(SecurityGroup, vpc_id=vpc_id)
