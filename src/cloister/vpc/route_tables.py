"""Route tables: where a packet that leaves an interface goes.

AWS ("Route tables", VPC guide): `local` is always there; the longest prefix wins; a subnet without an
association uses the VPC's main table; no route means dropped; a route whose target is gone is a black
hole and drops. Within a subnet no table is asked (`vpc/middleboxes.py`). A route to an interface with a
source/destination check leads to that interface's own address only. A gateway endpoint's route,
`pl-… → vpce-…`, comes and goes with the endpoint's association; a static route to the same block wins over
it.

`resolve` lists a table's routes by block once; `lookup` reads the result, `parts` renders it: Linux routing
table `number`, chosen by the mark of the sender's port.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from cloister.kernel.plan import Part, PolicyRule, Rule
from cloister.kernel.plan import Route as KernelRoute
from cloister.vpc import gateways
from cloister.vpc.addresses import port
from cloister.vpc.endpoints import outer_if, prefix_list, prefix_list_of
from cloister.vpc.model import (
    InternetGateway,
    NatGateway,
    NetworkInterface,
    Route,
    RouteTable,
    Subnet,
    Vpc,
    VpcEndpoint,
    VpcPeering,
)
from cloister.world import World

LOCAL = "local"
#: the origin of a table's `local` routes, also of one whose target was replaced
OF_TABLE = "CreateRouteTable"
#: a port's mark chooses its subnet's route table
MARKED = (
    Rule(text="meta mark set iifgroup map @marks", comment="the route table of the subnet"),
    Rule(text=f"iifgroup 0 meta mark set iifname map @{gateways.by_name('marks')}", comment="likewise"),
)
#: priority of the rules that lead marked packets to their table: before main (32766)
PRIORITY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """Where packets to `block` go: out of the router's interface `dev`. A hop that is neither local nor has
    a `dev` is a black hole."""

    block: IPv4Network
    route: Route
    dev: str | None = None

    @property
    def local(self) -> bool:
        return self.route.target == LOCAL

    @property
    def kind(self) -> str:
        """ "local", "vpce", "igw", "nat", "eni", "pcx" or, when it leads nowhere, "blackhole"."""
        if self.local or self.dev is not None:
            return self.route.target.partition("-")[0]
        return "blackhole"


def of_subnet(world: World, subnet: Subnet) -> RouteTable | None:
    """The table of a subnet: its own, else the VPC's main one."""
    main: RouteTable | None = None
    for table in world.where(RouteTable, vpc_id=subnet.vpc_id):
        for association in table.associations:
            if association.subnet_id == subnet.subnet_id:
                return table
            if association.main:
                main = table
    return main


def of_gateway(world: World, gateway: InternetGateway) -> RouteTable | None:
    """The table of what an internet gateway brings in (AWS: "Gateway route tables"); None: it goes straight
    to its interface."""
    for table in world.where(RouteTable, vpc_id=gateway.vpc_id):
        if any(one.gateway_id == gateway.internet_gateway_id for one in table.associations):
            return table
    return None


def routes(world: World, table: RouteTable) -> list[Route]:
    """All routes of a table: `local` ones, those made by calls, those of its gateway endpoints."""
    replaced = {route.destination: route for route in table.routes if route.origin == OF_TABLE}
    local = [replaced.get(route.destination, route) for route in local_routes(world, table)]
    made = [
        route
        for route in table.routes
        if route.origin != OF_TABLE and route.target != LOCAL and not route.destination.startswith("pl-")
    ]
    return [*local, *made, *endpoint_routes(world, table)]


def local_routes(world: World, table: RouteTable) -> list[Route]:
    """The `local` route of each block of the VPC, as a table is born with them."""
    vpc = world.get(Vpc, table.vpc_id)
    return [Route(destination=c, target=LOCAL, origin=OF_TABLE) for c in (vpc.cidrs if vpc else ())]


def endpoint_routes(world: World, table: RouteTable) -> list[Route]:
    """The `pl-… → vpce-…` routes of the gateway endpoints associated with a table."""
    return [
        Route(destination=listed.prefix_list_id, target=endpoint.endpoint_id)
        for endpoint in world.where(VpcEndpoint, vpc_id=table.vpc_id)
        if table.route_table_id in endpoint.route_table_ids
        and (listed := prefix_list_of(endpoint)) is not None
    ] + [
        route
        for route in table.routes
        if route.destination.startswith("pl-") and _gateway(world, table, route.target) is None
    ]


def _gateway(world: World, table: RouteTable, target: str) -> VpcEndpoint | None:
    """The gateway endpoint that `target` is, in the table's own VPC."""
    endpoint = world.get(VpcEndpoint, target)
    if endpoint is None or endpoint.kind != "Gateway" or endpoint.vpc_id != table.vpc_id:
        return None
    return endpoint


def resolve(world: World, table: RouteTable) -> dict[IPv4Network, Hop]:
    """The table's hops by block. For one block `local` wins, then a static route, then an endpoint's."""
    hops: dict[IPv4Network, Hop] = {}
    for route in routes(world, table):
        if route.destination.startswith("pl-"):
            listed = prefix_list(world, route.destination)
            blocks = [IPv4Network(cidr) for cidr in listed.entries] if listed else []
        else:
            blocks = [IPv4Network(route.destination, strict=False)]
        dev = None if route.target == LOCAL else device(world, table.vpc_id, route.target)
        for block in blocks:
            hops.setdefault(block, Hop(block=block, route=route, dev=dev))
    return hops


def device(world: World, vpc_id: str, target: str) -> str | None:
    """The interface of the router of `vpc_id` that leads to a route's target; None: it leads nowhere."""
    match target.partition("-")[0]:
        case "vpce":
            endpoint = world.get(VpcEndpoint, target)
            if endpoint is not None and endpoint.kind == "Gateway" and endpoint.vpc_id == vpc_id:
                return outer_if(target) if endpoint.state == "available" else None
        case "igw":
            gateway = world.get(InternetGateway, target)
            return gateways.igw_if(target) if gateway is not None and gateway.vpc_id == vpc_id else None
        case "nat":
            nat = world.get(NatGateway, target)
            interface = world.get(NetworkInterface, nat.interface_id) if nat else None
            there = interface is not None and interface.vpc_id == vpc_id and interface.addresses[0].netns
            if nat is not None and nat.deleted is None and there:
                return port(nat.interface_id, 0)
        case "eni":
            interface = world.get(NetworkInterface, target)
            if interface is not None and interface.vpc_id == vpc_id:
                held = interface.addresses[0]
                # Network isolation leaves a container no port.
                return port(target, 0) if held.netns is not None and held.only != () else None
        case "pcx":
            peering = world.get(VpcPeering, target)
            if peering is not None and gateways.joins(world, peering, vpc_id):
                return gateways.peering_if(target)
    return None


def _checked(world: World, hop: Hop) -> NetworkInterface | None:
    """The interface that a hop leads to, while its source/destination check refuses what is for others."""
    interface = world.get(NetworkInterface, hop.route.target) if hop.kind == "eni" else None
    return interface if interface is not None and interface.source_dest_check else None


def lookup(world: World, table: RouteTable, destination: str) -> Hop | None:
    """The hop for a destination address: the longest prefix that contains it; None: no route, dropped."""
    address = IPv4Address(destination)
    found = [hop for hop in resolve(world, table).values() if address in hop.block]
    return max(found, key=lambda hop: hop.block.prefixlen, default=None)


def parts(world: World, table: RouteTable) -> Iterator[Part]:
    """The policy rule of the table's mark and its Linux routes. `local` is a throw: the look-up goes on
    in the main table, which has one route for each attached address and nothing else."""
    vpc = table.vpc_id
    yield PolicyRule(netns=vpc, priority=PRIORITY, table=table.number, mark=table.number)
    hops = resolve(world, table)
    for block, hop in hops.items():
        checked = _checked(world, hop)
        if checked is not None:
            yield KernelRoute(netns=vpc, table=table.number, destination=str(block), type="blackhole")
            own = IPv4Network(checked.addresses[0].address)
            if own.subnet_of(block) and lookup(world, table, checked.addresses[0].address) == hop:
                yield KernelRoute(netns=vpc, table=table.number, destination=str(own), dev=hop.dev)
        elif hop.local:
            yield KernelRoute(netns=vpc, table=table.number, destination=str(block), type="throw")
        elif hop.dev is not None:
            yield KernelRoute(netns=vpc, table=table.number, destination=str(block), dev=hop.dev)
        else:
            yield KernelRoute(netns=vpc, table=table.number, destination=str(block), type="blackhole")


#: where packets to addresses that nobody has are led: the router's loopback. No gate lets anything out there
NOWHERE = "lo"
_MAIN = 254


def nobody_parts(vpc: Vpc) -> Iterator[Part]:
    """Routes for the VPC's addresses that nobody has: what is sent there is judged at the sender's gates,
    as in AWS, and goes no further. Those that somebody has have a longer one."""
    for block in vpc.cidrs:
        yield KernelRoute(netns=vpc.vpc_id, table=_MAIN, destination=block, dev=NOWHERE)
