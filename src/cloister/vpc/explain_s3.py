"""Why an interface reaches S3 of its own Region, or does not: names, route, groups, ACLs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cloister.vpc import addresses as ip
from cloister.vpc import dhcp, interface_endpoints, route_tables
from cloister.vpc.endpoints import s3_prefix_list, s3_service_name
from cloister.vpc.explain import dns_support_step, end_of, explain, path, verdict_of
from cloister.vpc.explain_gates import End, admitted, near_acl_steps
from cloister.vpc.flow import Flow, Step, Verdict
from cloister.vpc.model import NetworkInterface, RouteTable, Subnet, Vpc, VpcEndpoint
from cloister.vpc.steps import allowed, either, refused
from cloister.world import World

_HTTPS, _DNS = 443, 53


def explain_s3(world: World, interface: NetworkInterface) -> Verdict:
    """Whether `interface` reaches S3 of its own Region by a gateway endpoint or over the
    internet: names, route, groups."""
    return verdict_of(_s3_steps(world, interface))


def _s3_steps(world: World, interface: NetworkInterface) -> Iterator[Step]:
    vpc, subnet = world.get(Vpc, interface.vpc_id), world.get(Subnet, interface.subnet_id)
    if vpc is None or subnet is None:
        yield refused("interface", interface.interface_id, f"{interface.interface_id} is in no subnet.")
        return
    region = subnet.zone.rstrip("abcdefghijklmnopqrstuvwxyz")
    yield _servers_step(world, vpc, interface, region)
    private = interface_endpoints.resolve_private(world, vpc, f"s3.{region}.amazonaws.com", region)
    if private:
        source = End(interface=interface, address=interface.addresses[0].address)
        flow = Flow(source=interface.interface_id, destination=private[0], protocol="tcp", port=_HTTPS)
        yield from path(world, source, end_of(world, private[0], vpc.vpc_id), private[0], flow)
        return
    service, listed = s3_service_name(region), s3_prefix_list(region)
    table = route_tables.of_subnet(world, subnet)
    endpoints = [
        endpoint
        for endpoint in world.where(VpcEndpoint, vpc_id=vpc.vpc_id)
        if endpoint.service_name == service and endpoint.kind == "Gateway"
    ]
    address = str(next(iter(listed.entries))).partition("/")[0]
    flow = Flow(source=interface.interface_id, destination=address, protocol="tcp", port=_HTTPS)
    hop = route_tables.lookup(world, table, address) if table else None
    if hop is not None and hop.kind in ("nat", "igw", "eni"):
        source = End(interface=interface, address=interface.addresses[0].address)
        yield from path(world, source, None, address, flow)
        return
    yield _s3_route_step(world, vpc, subnet, table, endpoints, service)
    yield from near_acl_steps(world, interface, address, flow)
    match = admitted(world, interface, address, flow, egress=True)
    if match is not None:
        yield match
    else:
        group_id = interface.group_ids[0] if interface.group_ids else ""
        permission = (
            f"IpProtocol=tcp,FromPort={_HTTPS},ToPort={_HTTPS},"
            f"PrefixListIds=[{{PrefixListId={listed.prefix_list_id}}}]"
        )
        yield refused(
            "egress",
            group_id,
            f"No egress rule of {either(interface.group_ids)} allows tcp port {_HTTPS} to "
            f"{listed.prefix_list_id} ({service}).",
            f"aws ec2 authorize-security-group-egress --group-id {group_id} --ip-permissions '{permission}'",
        )


def _s3_route_step(
    world: World,
    vpc: Vpc,
    subnet: Subnet,
    table: RouteTable | None,
    endpoints: Sequence[VpcEndpoint],
    service: str,
) -> Step:
    where = table.route_table_id if table else vpc.vpc_id
    hops = route_tables.resolve(world, table).values() if table else ()
    routed = next(
        (
            hop
            for hop in hops
            if hop.kind == "vpce" and hop.route.target in {e.endpoint_id for e in endpoints}
        ),
        None,
    )
    if routed is not None:
        route = f"{routed.route.destination} to {routed.route.target}"
        return allowed(
            "route", f"{where}/{routed.route.destination}", f"{where} of {subnet.subnet_id} routes {route}."
        )
    if endpoints:
        endpoint_id = endpoints[0].endpoint_id
        return refused(
            "route",
            where,
            f"The route table {where} of {subnet.subnet_id} has no route to S3: "
            f"the gateway endpoint {endpoint_id} is not associated with it.",
            f"aws ec2 modify-vpc-endpoint --vpc-endpoint-id {endpoint_id} --add-route-table-ids {where}",
        )
    return refused(
        "route",
        where,
        f"The route table {where} of {subnet.subnet_id} has no route to S3: "
        f"{vpc.vpc_id} has no gateway endpoint for {service}.",
        f"aws ec2 create-vpc-endpoint --vpc-id {vpc.vpc_id} --service-name {service} "
        f"--route-table-ids {where}",
    )


def _servers_step(world: World, vpc: Vpc, interface: NetworkInterface, region: str) -> Step:
    """Whether a DNS server is reached: the VPC's resolver, or another that its DHCP options name."""
    servers = dhcp.servers(world, vpc, region)
    first: Step | None = None
    for server in servers:
        if server == ip.resolver_address(vpc):
            step = dns_support_step(vpc)
        else:
            flow = Flow(source=interface.interface_id, destination=server, protocol="udp", port=_DNS)
            refusal = explain(world, flow).refusal
            said = f"{server}, a DNS server of {vpc.dhcp_options_id}, is "
            step = allowed("dns", vpc.dhcp_options_id, f"{said}reached.")
            if refusal is not None:
                step = replace(refusal, gate="dns", sentence=f"{said}not reached: {refusal.sentence}")
        if step.allowed:
            return step
        first = first or step
    said = f"{vpc.vpc_id} has no DNS server, so no S3 name resolves in it."
    return first or refused("dns", vpc.dhcp_options_id or vpc.vpc_id, said)
