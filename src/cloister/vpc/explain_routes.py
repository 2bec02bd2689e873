"""Where a packet goes next and what answers there, read for `explain`: routes, endpoints, interfaces."""

from __future__ import annotations

from ipaddress import IPv4Network

from cloister.vpc import addresses as ip
from cloister.vpc import fixes, interface_endpoints, middleboxes, route_tables
from cloister.vpc.endpoints import PORTS, GatewayService, prefix_list_of, service_at, service_of
from cloister.vpc.explain_gates import End
from cloister.vpc.flow import Flow, Step
from cloister.vpc.model import InternetGateway, NetworkInterface, RouteTable, Subnet, VpcEndpoint, place
from cloister.vpc.steps import allowed, refused, traffic
from cloister.world import World


def route_step(world: World, source: End, destination: str) -> tuple[route_tables.Hop | None, Step]:
    sender = source.interface
    subnet = world.get(Subnet, sender.subnet_id)
    table = route_tables.of_subnet(world, subnet) if subnet else None
    if subnet is None or table is None:
        return None, refused("route", sender.subnet_id, f"{sender.subnet_id} has no route table.")
    hop = route_tables.lookup(world, table, destination)
    name = table.route_table_id
    if hop is not None and not hop.local and middleboxes.within_subnet(subnet, source.address, destination):
        local = next(
            one
            for one in route_tables.local_routes(world, table)
            if ip.contains(one.destination, destination)
        )
        sentence = f"{destination} is in {subnet.subnet_id} itself, where no route table is asked."
        hop = route_tables.Hop(block=IPv4Network(local.destination), route=local)
        return hop, allowed("route", f"{name}/{local.destination}", sentence)
    if hop is None:
        sentence = f"The route table {name} of {subnet.subnet_id} has no route to {destination}."
        service = service_at(destination, subnet.region)
        if service is not None:
            sentence = _no_service_route(world, subnet, name, service)
        return None, refused("route", name, sentence, fixes.of_route(world, sender, table, destination))
    return hop, _taken(world, table, hop, destination, subnet.subnet_id)


def edge_step(
    world: World, gateway: InternetGateway, destination: str
) -> tuple[route_tables.Hop | None, Step | None]:
    """Where an internet gateway's own table leads what it brings in; no step: it has none."""
    table = route_tables.of_gateway(world, gateway)
    if table is None:
        return None, None
    name = gateway.internet_gateway_id
    hop = route_tables.lookup(world, table, destination)
    if hop is None:
        sentence = f"The route table {table.route_table_id} of {name} has no route to {destination}."
        return None, refused("route", table.route_table_id, sentence)
    return hop, _taken(world, table, hop, destination, name)


def _taken(world: World, table: RouteTable, hop: route_tables.Hop, destination: str, whose: str) -> Step:
    """The route that was found in the table of a subnet or gateway."""
    name, to = table.route_table_id, hop.route.target
    origin = f"{name}/{hop.route.destination}"
    if hop.kind == "blackhole":
        sentence = (
            f"The route {hop.route.destination} of {name} is a black hole: {to} is gone or leads nowhere."
        )
        fix = fixes.of_blackhole(world, table, hop, destination)
        return refused("route", origin, sentence, fix, code="BAD_STATE_ROUTE")
    return allowed("route", origin, f"{name} of {whose} routes {hop.route.destination} to {to}.")


def _no_service_route(world: World, subnet: Subnet, where: str, service: GatewayService) -> str:
    """Why a route table leads nowhere to a service: no gateway endpoint, or not with this table."""
    endpoint = fixes.gateway_endpoint(world, subnet.vpc_id, service, subnet.region)
    why = (
        f"the gateway endpoint {endpoint} is not associated with it."
        if endpoint is not None
        else f"{subnet.vpc_id} has no gateway endpoint for {service.name(subnet.region)}."
    )
    return f"The route table {where} of {subnet.subnet_id} has no route to {service.title}: {why}"


def endpoint_step(world: World, endpoint_id: str, destination: str, flow: Flow) -> Step:
    endpoint = world.get(VpcEndpoint, endpoint_id)
    service = service_of(endpoint) if endpoint is not None else None
    listed = prefix_list_of(endpoint) if endpoint is not None else None
    if service is None or listed is None:
        return refused("endpoint", endpoint_id, f"{endpoint_id} is gone.")
    if not any(ip.contains(block, destination) for block in listed.entries):
        sentence = f"{destination} is no address of {service.title} behind {endpoint_id}."
        return refused("endpoint", endpoint_id, sentence)
    if flow.protocol == "tcp" and flow.port in PORTS:
        sentence = f"{endpoint_id} takes it to {service.title}, where policies decide."
        return allowed("endpoint", endpoint_id, sentence)
    sentence = f"Behind {endpoint_id} {service.title} answers tcp ports 80 and 443 only."
    return refused("endpoint", endpoint_id, sentence)


def service_step(world: World, interface: NetworkInterface, flow: Flow) -> Step:
    """What an interface endpoint's interface answers."""
    endpoint = interface_endpoints.endpoint_of(world, interface)
    name = endpoint.endpoint_id if endpoint is not None else interface.interface_id
    ports = interface_endpoints.ports_of(world, interface)
    if endpoint is not None and flow.protocol == "tcp" and flow.port in ports:
        sentence = f"{name} takes it to {endpoint.service_name}, where policies decide."
        return allowed("endpoint", name, sentence)
    answered = " and ".join(str(port) for port in ports) or "none"
    return refused("endpoint", name, f"{name} answers tcp ports {answered} only, not {traffic(flow)}.")


def end_of(world: World, text: str, vpc_id: str | None) -> End | None:
    """The interface that `text` names by id (its primary address) or by an address in `vpc_id`."""
    interface = world.get(NetworkInterface, text)
    if interface is not None:
        primary = next((a for a in interface.addresses if a.primary), None) or interface.addresses[0]
        return End(interface=interface, address=primary.address)
    near = (
        world.where(NetworkInterface, places=place(vpc_id, text)) if vpc_id else world.all(NetworkInterface)
    )
    for one in near:
        if any(held.address == text for held in one.addresses):
            return End(interface=one, address=text)
    return None


def public_end(world: World, address: str) -> End | None:
    """The interface with this public address."""
    for interface in world.all(NetworkInterface):
        for held in interface.addresses:
            if held.public_ip == address:
                return End(interface=interface, address=held.address)
    return None
