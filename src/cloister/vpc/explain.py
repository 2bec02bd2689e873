"""Why a connection is allowed or refused: the rules that `compile` renders, read instead.

The gates come in the order in which the router asks them. Every step names the resource and rule that
decided, and a refusal the AWS CLI command that would change it. `explain` goes on after a refusal where it
can, so that all that is missing is seen at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network

from cloister.vpc import addresses as ip
from cloister.vpc import (
    fixes,
    gateways,
    interface_endpoints,
    isolation,
    middleboxes,
    route_tables,
)
from cloister.vpc.endpoints import prefix_list_of, s3_service_name
from cloister.vpc.explain_gates import (
    End,
    acl_step,
    egress_step,
    far_acl_steps,
    ingress_step,
    near_acl_steps,
    reply_ports,
    there_ports,
)
from cloister.vpc.flow import Flow, Step, Verdict
from cloister.vpc.model import (
    NatGateway,
    NetworkInterface,
    Subnet,
    Vpc,
    VpcEndpoint,
    VpcPeering,
    place,
)
from cloister.vpc.steps import NO_PUBLIC_ADDRESS, allowed, refused, traffic
from cloister.world import World


def explain(world: World, flow: Flow) -> Verdict:
    """Whether `flow` is let through, gate by gate."""
    return verdict_of(_flow_steps(world, flow))


def verdict_of(steps: Iterator[Step]) -> Verdict:
    found = tuple(steps)
    return Verdict(allowed=bool(found) and all(step.allowed for step in found), steps=found)


def _flow_steps(world: World, flow: Flow) -> Iterator[Step]:
    source = end_of(world, flow.source, flow.vpc_id)
    if source is None:
        yield refused("interface", flow.source, f"No network interface has the address {flow.source}.")
        return
    sender = source.interface
    if sender.interface_type == interface_endpoints.ENDPOINT_INTERFACE:
        sentence = f"{sender.interface_id} is an interface endpoint's: it opens nothing."
        yield refused("endpoint", sender.interface_id, sentence)
    if not any(held.address == source.address and held.netns for held in sender.addresses):
        sentence = f"{sender.interface_id} is not attached to anything with its address {source.address}."
        yield refused("interface", sender.interface_id, sentence, code="UNASSOCIATED_COMPONENT")
    vpc = world.get(Vpc, sender.vpc_id)
    target = end_of(world, flow.destination, sender.vpc_id)
    if vpc is None or (target is None and flow.destination.startswith("eni-")):
        yield refused("interface", flow.destination, f"There is no network interface {flow.destination}.")
        return
    destination = target.address if target is not None else flow.destination
    if destination == source.address:
        yield allowed("interface", sender.interface_id, f"{destination} is its own: nothing leaves it.")
        return
    isolated = _isolation_step(source, target, destination)
    if isolated is not None:
        yield isolated
        return
    if destination in (ip.resolver_address(vpc), ip.LINK_LOCAL_RESOLVER):
        yield _resolver_step(vpc, flow)
        return
    if target is None:
        target = _public_end(world, destination)
    for carried in _carried(source, destination, flow):
        yield from path(world, source, target, destination, carried)


def _isolation_step(source: End, target: End | None, destination: str) -> Step | None:
    """The refusal of network isolation, at either end."""
    for end, other in ((source, destination), (target, source.address)):
        only = end.held.only if end is not None and end.held is not None else None
        if end is None or only is None or other in only:
            continue
        whom = f"only {', '.join(only)}, the other instances of its job" if only else "nobody"
        sentence = f"{end.address} ({end.interface.interface_id}) has network isolation: it reaches {whom}."
        return refused("interface", end.interface.interface_id, sentence)
    return None


def _carried(source: End, destination: str, flow: Flow) -> tuple[Flow, ...]:
    """The flows by which a flow travels: between instances that encrypt, keys and IPsec."""
    if source.held is None or destination not in source.held.encrypted_with:
        return (flow,)
    keys = replace(flow, protocol="udp", port=isolation.KEY_PORT, source_port=isolation.KEY_PORT)
    return keys, replace(flow, protocol=isolation.ESP, port=None, source_port=None)


def path(
    world: World,
    source: End,
    target: End | None,
    destination: str,
    flow: Flow,
    passed: tuple[str, ...] = (),
) -> Iterator[Step]:
    """From an interface on: route, groups, ACLs, gateways. `passed` are the NAT gateways behind it. When
    `source.address` is not the interface's own, it passes the packet on."""
    sender = source.interface
    passes_on = _passes_on(source)
    hop, step = _route_step(world, source, destination)
    yield step
    by = world.get(NetworkInterface, hop.route.target) if hop is not None and hop.kind == "eni" else None
    if by is not None and destination == by.addresses[0].address:
        by = None  # its own: nothing to pass on
    if sender.interface_type != gateways.NAT_INTERFACE:
        on_way = passes_on or by is not None
        yield egress_step(world, sender, destination, target, flow, forwarded=on_way)
    if hop is None or not step.allowed:
        return
    if by is not None:
        yield from _forwarding_steps(world, source, target, destination, by, flow, passed)
        return
    if passes_on and hop.kind in ("pcx", "vpce", "igw"):
        yield from _translating_steps(world, source, target, destination, flow, passed)
        return
    if hop.kind in ("local", "eni", "pcx"):
        yield from _neighbour_steps(world, source, target, destination, hop, flow)
        return
    yield from near_acl_steps(world, sender, destination, flow)
    if hop.kind == "vpce":
        yield _endpoint_step(world, hop.route.target, destination, flow)
    elif hop.kind == "nat":
        yield from _nat_steps(world, source, target, destination, hop.route.target, flow, passed)
    else:
        yield from _igw_steps(world, source, target, destination, hop.route.target, flow)


def _neighbour_steps(
    world: World, source: End, target: End | None, destination: str, hop: route_tables.Hop, flow: Flow
) -> Iterator[Step]:
    """To an interface of this VPC or of a peer, and its replies back."""
    sender, vpc_id = source.interface, source.interface.vpc_id
    if hop.kind == "pcx":
        peering = world.get(VpcPeering, hop.route.target)
        vpc_id = peering.other(vpc_id) if peering is not None else ""
        target = end_of(world, destination, vpc_id)
    if target is None or target.interface.vpc_id != vpc_id or target.address != destination:
        # What goes to nobody is judged where it is sent, all the same.
        near = world.get(Subnet, sender.subnet_id)
        if near is not None and not ip.contains(near.cidr, destination):
            yield from near_acl_steps(world, sender, destination, flow)
        sentence = f"No network interface of {vpc_id} has the address {destination}."
        yield refused("interface", vpc_id, sentence)
        return
    if target.interface.subnet_id != sender.subnet_id:
        yield from near_acl_steps(world, sender, destination, flow)
    if target.interface.subnet_id != sender.subnet_id or _passes_on(source):
        yield from far_acl_steps(world, target.interface, source.address, flow)
    if target.interface.interface_type == gateways.NAT_INTERFACE:
        sentence = f"{target.interface.interface_id} is a NAT gateway's: it answers nobody."
        yield refused("ingress", target.interface.interface_id, sentence)
        return
    yield ingress_step(world, target.interface, source, flow, forwarded=_passes_on(source))
    if target.interface.interface_type == interface_endpoints.ENDPOINT_INTERFACE:
        yield _service_step(world, target.interface, flow)
    if _passes_on(source):
        yield from _way_back_steps(world, sender, target, source.address)
    elif hop.kind != "pcx":
        yield from _direct_back_steps(world, sender, target, source.address)
    if hop.kind == "pcx":
        back, step = _route_step(world, target, source.address)
        if back is None or not step.allowed or back.route.target != hop.route.target:
            table = step.origin.partition("/")[0]
            yield refused(
                "route",
                step.origin,
                f"Replies of {target.interface.interface_id}: {step.sentence}",
                f"aws ec2 create-route --route-table-id {table} "
                f"--destination-cidr-block {fixes.covering(world, vpc_id, source.address)[0]} "
                f"--vpc-peering-connection-id {hop.route.target}",
            )


def _passes_on(source: End) -> bool:
    """Whether an interface sends on what is another's."""
    return all(held.address != source.address for held in source.interface.addresses)


def _forwarding_steps(
    world: World,
    source: End,
    target: End | None,
    destination: str,
    by: NetworkInterface,
    flow: Flow,
    passed: tuple[str, ...],
) -> Iterator[Step]:
    """Into an interface that is neither end, and on from it: what runs there is taken to pass it on."""
    name = by.interface_id
    yield from near_acl_steps(world, source.interface, destination, flow)
    if by.source_dest_check:
        sentence = f"{name} has a source/destination check and {destination} is not its own: it is dropped."
        fix = (
            f"aws ec2 modify-network-interface-attribute --network-interface-id {name} --no-source-dest-check"
        )
        yield refused("interface", name, sentence, fix, code="ENI_SOURCE_DEST_CHECK_RESTRICTION")
        return
    if _passes_on(source):
        sentence = f"{source.interface.interface_id} passes it on to {name}: only one in a row may."
        yield refused("interface", name, sentence)
        return
    subnet = world.get(Subnet, by.subnet_id)
    if subnet is not None and not ip.contains(subnet.cidr, source.address):
        yield from far_acl_steps(world, by, source.address, flow)
    yield ingress_step(world, by, source, flow, forwarded=True)
    yield allowed("interface", name, f"{name} has no source/destination check: it may pass it on.")
    here = End(interface=by, address=source.address)
    yield from path(world, here, target, destination, flow, passed)


def _translating_steps(
    world: World, source: End, target: End | None, destination: str, flow: Flow, passed: tuple[str, ...]
) -> Iterator[Step]:
    """Out of the VPC with an address of its own, as a NAT instance does. Replies to another's address would
    go to that, not by way of the interface: nothing else leaves."""
    by = source.interface
    own = by.addresses[0].address
    sentence = f"{by.interface_id} must translate {source.address} to its own {own}: replies come to that."
    yield replace(allowed("interface", by.interface_id, sentence), becomes=own)
    onward = replace(flow, source_port=None)
    yield from path(world, End(interface=by, address=own), target, destination, onward, passed)


def _way_back_steps(world: World, by: NetworkInterface, far: End, address: str) -> Iterator[Step]:
    """Replies must go by the interface that the connection went by, and from it to who opened it: else they
    belong to no connection that is tracked."""
    back, step = _route_step(world, far, address)
    if back is None or not step.allowed or back.route.target != by.interface_id:
        table = step.origin.partition("/")[0]
        near = next(
            (s.cidr for s in world.where(Subnet, vpc_id=by.vpc_id) if ip.contains(s.cidr, address)), ""
        )
        sentence = f"Replies of {far.interface.interface_id} do not go by {by.interface_id}: {step.sentence}"
        fix = (
            f"aws ec2 create-route --route-table-id {table} --destination-cidr-block {near} "
            f"--network-interface-id {by.interface_id}"
        )
        yield refused("route", step.origin, sentence, fix)
        return
    home, step = _route_step(world, End(interface=by, address=far.address), address)
    if home is None or not step.allowed or home.kind != "local":
        sentence = f"Replies that {by.interface_id} passes on do not go to {address}: {step.sentence}"
        yield refused("route", step.origin, sentence)


def _direct_back_steps(world: World, opener: NetworkInterface, far: End, address: str) -> Iterator[Step]:
    """Replies to what went straight there may not go by way of another interface."""
    back, step = _route_step(world, far, address)
    if back is not None and not back.local and back.route.target != opener.interface_id:
        sentence = f"Replies of {far.interface.interface_id} go another way: {step.sentence}"
        yield refused("route", step.origin, sentence)


def _nat_steps(
    world: World,
    source: End,
    target: End | None,
    destination: str,
    nat_id: str,
    flow: Flow,
    passed: tuple[str, ...],
) -> Iterator[Step]:
    """Through a NAT gateway, then on from its own interface."""
    nat = world.get(NatGateway, nat_id)
    interface = world.get(NetworkInterface, nat.interface_id) if nat else None
    subnet = world.get(Subnet, interface.subnet_id) if interface else None
    if nat is None or interface is None or subnet is None:
        yield refused("gateway", nat_id, f"{nat_id} is gone.")
        return
    if nat_id in passed:
        sentence = f"The route table of {subnet.subnet_id} leads from {nat_id} back to it."
        yield refused("gateway", nat_id, sentence)
        return
    if flow.protocol not in ("tcp", "udp", "icmp"):
        sentence = f"{nat_id} translates tcp, udp and icmp, not {traffic(flow)}."
        yield refused("gateway", nat_id, sentence)
        return
    if not ip.contains(subnet.cidr, source.address):
        yield from acl_step(world, subnet, flow, egress=False, peer=source.address, ports=there_ports(flow))
        yield from acl_step(
            world, subnet, flow, egress=True, peer=source.address, ports=reply_ports(flow), reply=True
        )
    sentence = f"{nat_id} translates {source.address} to {nat.private_ip}."
    yield replace(allowed("gateway", nat_id, sentence), becomes=nat.private_ip)
    # it chooses another source port: replies go to any port
    onward = replace(flow, source_port=None)
    here = End(interface=interface, address=nat.private_ip)
    far = End(interface=interface, address=destination)
    if _passes_on(source):
        yield from _way_back_steps(world, source.interface, far, source.address)
    else:
        yield from _direct_back_steps(world, source.interface, far, source.address)
    yield from path(world, here, target, destination, onward, (*passed, nat_id))


def _igw_steps(
    world: World, source: End, target: End | None, destination: str, gateway_id: str, flow: Flow
) -> Iterator[Step]:
    interface = source.interface
    held = next(held for held in interface.addresses if held.address == source.address)
    if held.public_ip is None:
        sentence = f"{interface.interface_id} has no public address that {gateway_id} could translate to."
        fix: str | None = (
            f"aws ec2 associate-address --network-interface-id {interface.interface_id} "
            "--allocation-id $(aws ec2 allocate-address --query AllocationId --output text)"
        )
        if interface.interface_type == gateways.NAT_INTERFACE:
            sentence, fix = f"{sentence} It is a private NAT gateway's.", None
        elif interface.requester_managed:
            sentence = f"{sentence} A job gets none: only a NAT gateway in another subnet leads it out."
            fix = None
        yield refused("gateway", gateway_id, sentence, fix, code=NO_PUBLIC_ADDRESS)
        return
    sentence = f"{gateway_id} translates {source.address} to {held.public_ip}."
    yield replace(allowed("gateway", gateway_id, sentence), becomes=held.public_ip)
    if target is None:
        if gateways.is_service(destination):
            if flow.protocol != "tcp" or flow.port not in (80, 443):
                sentence = f"AWS services at {destination} answer tcp ports 80 and 443 only."
                yield refused("gateway", gateway_id, sentence)
        elif not gateways.is_public(destination):
            sentence = f"{destination} is no public address: {gateway_id} leads nowhere to it."
            yield refused("gateway", gateway_id, sentence)
        return
    there = gateways.of_vpc(world, target.interface.vpc_id)
    if there is None:
        sentence = f"{destination} is an address of {target.interface.vpc_id}, which has no internet gateway."
        yield refused("gateway", target.interface.vpc_id, sentence)
        return
    outside = End(interface=interface, address=held.public_ip)
    yield from far_acl_steps(world, target.interface, held.public_ip, flow)
    if target.interface.interface_type == gateways.NAT_INTERFACE:
        sentence = f"{target.interface.interface_id} is a NAT gateway's: nothing can be opened from outside."
        yield refused("ingress", target.interface.interface_id, sentence)
        return
    yield ingress_step(world, target.interface, outside, flow)
    back, step = _route_step(world, target, held.public_ip)
    if back is None or not step.allowed or back.kind != "igw":
        yield refused("route", step.origin, f"Replies of {target.interface.interface_id}: {step.sentence}")


def dns_support_step(vpc: Vpc) -> Step:
    if vpc.enable_dns_support:
        return allowed("dns", vpc.vpc_id, f"{vpc.vpc_id} has a resolver at {ip.resolver_address(vpc)}.")
    return refused(
        "dns",
        vpc.vpc_id,
        f"DNS support of {vpc.vpc_id} is off, so no name resolves in it.",
        f"aws ec2 modify-vpc-attribute --vpc-id {vpc.vpc_id} --enable-dns-support",
    )


def _resolver_step(vpc: Vpc, flow: Flow) -> Step:
    step = dns_support_step(vpc)
    if step.allowed and (flow.protocol not in ("tcp", "udp") or flow.port != 53):
        return refused("dns", vpc.vpc_id, f"The resolver of {vpc.vpc_id} answers udp and tcp port 53 only.")
    return step


def _route_step(world: World, source: End, destination: str) -> tuple[route_tables.Hop | None, Step]:
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
        if fixes.is_s3(destination, subnet.region):
            sentence = _no_s3_route(world, subnet, name)
        return None, refused("route", name, sentence, fixes.of_route(world, sender, table, destination))
    origin = f"{name}/{hop.route.destination}"
    if hop.kind == "blackhole":
        sentence = (
            f"The route {hop.route.destination} of {name} is a black hole: "
            f"{hop.route.target} is gone or leads nowhere."
        )
        fix = fixes.of_blackhole(world, table, hop, destination)
        return hop, refused("route", origin, sentence, fix, code="BAD_STATE_ROUTE")
    sentence = f"{name} of {subnet.subnet_id} routes {hop.route.destination} to {hop.route.target}."
    return hop, allowed("route", origin, sentence)


def _no_s3_route(world: World, subnet: Subnet, where: str) -> str:
    """Why a route table leads nowhere to S3: no endpoint, or not with this table."""
    region = subnet.region
    endpoint = fixes.s3_endpoint(world, subnet.vpc_id, region)
    service = s3_service_name(region)
    why = (
        f"the gateway endpoint {endpoint} is not associated with it."
        if endpoint is not None
        else f"{subnet.vpc_id} has no gateway endpoint for {service}."
    )
    return f"The route table {where} of {subnet.subnet_id} has no route to S3: {why}"


def _endpoint_step(world: World, endpoint_id: str, destination: str, flow: Flow) -> Step:
    endpoint = world.get(VpcEndpoint, endpoint_id)
    blocks = prefix_list_of(world, endpoint).entries if endpoint is not None else ()
    if not any(ip.contains(block, destination) for block in blocks):
        return refused("endpoint", endpoint_id, f"{destination} is no address of S3 behind {endpoint_id}.")
    if flow.protocol == "tcp" and flow.port in (80, 443):
        return allowed("endpoint", endpoint_id, f"{endpoint_id} takes it to S3, where policies decide.")
    return refused("endpoint", endpoint_id, f"Behind {endpoint_id} S3 answers tcp ports 80 and 443 only.")


def _service_step(world: World, interface: NetworkInterface, flow: Flow) -> Step:
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


def _public_end(world: World, address: str) -> End | None:
    """The interface with this public address."""
    for interface in world.all(NetworkInterface):
        for held in interface.addresses:
            if held.public_ip == address:
                return End(interface=interface, address=held.address)
    return None
