"""The way of a connection through a VPC and of its replies back, gate by gate, read for `explain`.

A packet crosses the router once for each interface that passes it on (`vpc/middleboxes.py`), and replies
need not come back the way the first packet went. So both ways are walked. What an interface let out or in,
it knows (`vpc/tracking.py`): of replies its groups are asked only where they are new to it. Network ACLs know
nothing. A gateway that translates ends one connection and begins another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from cloister.vpc import addresses as ip
from cloister.vpc import fixes, gateways, interface_endpoints, network_acls
from cloister.vpc.explain_gates import End, acl_step, egress_step, ingress_step, reply_ports, there_ports
from cloister.vpc.explain_routes import edge_step, end_of, endpoint_step, route_step, service_step
from cloister.vpc.flow import Flow, Step
from cloister.vpc.model import InternetGateway, NatGateway, NetworkInterface, Subnet, VpcPeering
from cloister.vpc.route_tables import Hop
from cloister.vpc.steps import NO_PUBLIC_ADDRESS, allowed, refused, traffic
from cloister.world import World


@dataclass(slots=True, kw_only=True)
class _Known:
    """The interfaces that know a connection: it left by their gate, or came in by it."""

    left: set[str] = field(default_factory=set)
    entered: set[str] = field(default_factory=set)


#: steps, and in the end where they led: the last hop, and who sends to it; None: nowhere
_Walk = Generator[Step, None, tuple[Hop, End] | None]


def path(
    world: World,
    source: End,
    target: End | None,
    destination: str,
    flow: Flow,
    passed: tuple[str, ...] = (),
) -> Iterator[Step]:
    """From an interface to its destination and back. `passed` are the NAT gateways behind it."""
    known = _Known()
    led = yield from _there(world, source, source, target, destination, flow, known)
    if led is None:
        return
    hop, here = led
    if hop.kind in ("local", "eni", "pcx"):
        yield from _neighbour_steps(world, source, target, destination, hop, here, flow, known)
        return
    yield from _border(world, here.interface, destination, flow, egress=True)
    if hop.kind == "vpce":
        yield from _border(world, source.interface, destination, flow, egress=False, reply=True)
        yield endpoint_step(world, hop.route.target, destination, flow)
    elif hop.kind == "nat":
        yield from _nat_steps(world, source, target, destination, hop.route.target, flow, known, passed)
    elif _passes_on(here) and _public(source) is None:
        yield from _translating_steps(world, source, target, destination, here, flow, known, passed)
    else:
        yield from _igw_steps(world, source, target, destination, hop.route.target, flow, known)


def _there(
    world: World, here: End, source: End, target: End | None, destination: str, flow: Flow, known: _Known
) -> _Walk:
    """From `here` on, with the address of `source`: by way of interfaces that pass it on, as far as those go.
    What runs on them is taken to pass it on."""
    while True:
        sender = here.interface
        hop, step = route_step(world, here, destination)
        yield step
        by = _by(world, hop, destination)
        known.left.add(sender.interface_id)
        if sender.interface_type != gateways.NAT_INTERFACE:
            on_way = by is not None or _passes_on(here)
            yield egress_step(world, sender, destination, target, flow, forwarded=on_way)
        if hop is None or not step.allowed:
            return None
        if by is None:
            return hop, here
        yield from _border(world, sender, destination, flow, egress=True)
        refusal = _will_not_pass(by, destination, known.left)
        if refusal is not None:
            yield refusal
            return None
        yield from _into(world, by, source, flow, known)
        here = End(interface=by, address=source.address)


def _into(world: World, by: NetworkInterface, source: End, flow: Flow, known: _Known) -> Iterator[Step]:
    """Into an interface that passes it on."""
    yield from _border(world, by, source.address, flow, egress=False)
    yield ingress_step(world, by, source, flow, forwarded=True)
    known.entered.add(by.interface_id)
    name = by.interface_id
    yield allowed("interface", name, f"{name} has no source/destination check: it may pass it on.")


def _back(
    world: World,
    here: End | None,
    source: End,
    sender: str,
    flow: Flow,
    known: _Known,
    ends: Callable[[Hop], bool],
    fix: Callable[[Step], str | None] = lambda step: None,
) -> Iterator[Step]:
    """Replies to `source` with the address `sender`, from `here` on. `ends`: whether a hop is the last one,
    as it should be; `fix`: what would change a route that is none."""
    seen: set[str] = set()
    while here is not None:
        interface = here.interface
        name = interface.interface_id
        hop, step = route_step(world, here, source.address)
        by = _by(world, hop, source.address)
        if hop is None or not step.allowed or (by is None and not ends(hop)):
            why = "" if hop is None or not step.allowed else "they go another way: "
            yield refused("route", step.origin, f"Replies of {name}: {why}{step.sentence}", fix(step))
            return
        if name not in known.entered and interface.interface_type != gateways.NAT_INTERFACE:
            judge = partial(egress_step, world, interface, source.address, source, forwarded=True)
            yield _of_replies(flow, judge)
        yield from _border(world, interface, source.address, flow, egress=True, reply=True)
        seen.add(name)
        if by is None:
            return
        refusal = _will_not_pass(by, source.address, seen)
        if refusal is not None:
            yield replace(refusal, sentence=f"Replies of {name}: {refusal.sentence}")
            return
        yield from _border(world, by, sender, flow, egress=False, reply=True)
        if by.interface_id not in known.left:
            far = End(interface=interface, address=sender)
            yield _of_replies(flow, partial(ingress_step, world, by, far, forwarded=True))
        here = End(interface=by, address=sender)


def _of_replies(flow: Flow, judge: Callable[[Flow], Step]) -> Step:
    """What groups say of a reply that is new to their interface: it may go to any port that `flow` opens
    from."""
    if flow.protocol == "icmp":
        ports: tuple[int | None, ...] = (0,)  # an echo's reply
    elif flow.protocol not in ("tcp", "udp"):
        ports = (None,)
    else:
        ports = network_acls.EPHEMERAL if flow.source_port is None else (flow.source_port,)
    steps = [judge(replace(flow, port=port, source_port=flow.port)) for port in ports]
    step = next((one for one in steps if not one.allowed), steps[0])
    return replace(step, sentence=f"Of replies: {step.sentence}")


def _border(
    world: World, interface: NetworkInterface, peer: str, flow: Flow, *, egress: bool, reply: bool = False
) -> Iterator[Step]:
    """The network ACL of an interface's subnet, for what goes to or comes from an address outside of it."""
    subnet = world.get(Subnet, interface.subnet_id)
    if subnet is not None and not ip.contains(subnet.cidr, peer):
        ports = reply_ports(flow) if reply else there_ports(flow)
        yield from acl_step(world, subnet, flow, egress=egress, peer=peer, ports=ports, reply=reply)


def _by(world: World, hop: Hop | None, destination: str) -> NetworkInterface | None:
    """The interface that a hop leads to, when it is to pass on what goes to `destination`."""
    by = world.get(NetworkInterface, hop.route.target) if hop is not None and hop.kind == "eni" else None
    return by if by is not None and destination != by.addresses[0].address else None


def _passes_on(source: End) -> bool:
    """Whether an interface sends on what is another's."""
    return all(held.address != source.address for held in source.interface.addresses)


def _public(source: End) -> str | None:
    return source.held.public_ip if source.held is not None else None


def _will_not_pass(by: NetworkInterface, destination: str, seen: set[str]) -> Step | None:
    """Why an interface does not pass on what is sent to it."""
    name = by.interface_id
    if by.source_dest_check:
        sentence = f"{name} has a source/destination check and {destination} is not its own: it is dropped."
        fix = (
            f"aws ec2 modify-network-interface-attribute --network-interface-id {name} --no-source-dest-check"
        )
        return refused("interface", name, sentence, fix, code="ENI_SOURCE_DEST_CHECK_RESTRICTION")
    if name in seen:
        return refused("interface", name, f"Routes lead to {name} again: it goes in a circle.")
    return None


def _neighbour_steps(
    world: World,
    source: End,
    target: End | None,
    destination: str,
    hop: Hop,
    here: End,
    flow: Flow,
    known: _Known,
) -> Iterator[Step]:
    """To an interface of this VPC or of a peer, and its replies back."""
    sender, vpc_id = here.interface, here.interface.vpc_id
    peering = world.get(VpcPeering, hop.route.target) if hop.kind == "pcx" else None
    if hop.kind == "pcx":
        vpc_id = peering.other(vpc_id) if peering is not None else ""
        target = end_of(world, destination, vpc_id)
    yield from _border(world, sender, destination, flow, egress=True)
    if target is None or target.interface.vpc_id != vpc_id or target.address != destination:
        # What goes to nobody is judged where it is sent, all the same.
        sentence = f"No network interface of {vpc_id} has the address {destination}."
        yield refused("interface", vpc_id, sentence)
        return
    receiver = target.interface
    yield from _border(world, receiver, source.address, flow, egress=False)
    if receiver.interface_type == gateways.NAT_INTERFACE:
        sentence = f"{receiver.interface_id} is a NAT gateway's: it answers nobody."
        yield refused("ingress", receiver.interface_id, sentence)
        return
    known.entered.add(receiver.interface_id)

    def fix(step: Step) -> str | None:
        if hop.kind != "pcx":
            return None
        return (
            f"aws ec2 create-route --route-table-id {step.origin.partition('/')[0]} "
            f"--destination-cidr-block {fixes.covering(world, vpc_id, source.address)[0]} "
            f"--vpc-peering-connection-id {hop.route.target}"
        )

    replies = [
        *_back(world, target, source, destination, flow, known, _ends_like(hop), fix),
        *_border(world, source.interface, destination, flow, egress=False, reply=True),
    ]
    yield from _let_back(replies)
    # A peer does not know what was passed on on its way there.
    on_way = _passes_on(here) and hop.kind != "pcx"
    yield ingress_step(world, receiver, source, flow, forwarded=on_way)
    if receiver.interface_type == interface_endpoints.ENDPOINT_INTERFACE:
        yield service_step(world, receiver, flow)
    yield from _kept_back(replies)


def _let_back(replies: list[Step]) -> list[Step]:
    """What is said of replies before the receiver's groups: its subnet's ACL comes before them."""
    return [step for step in replies if step.allowed or step.gate == "acl"]


def _kept_back(replies: list[Step]) -> list[Step]:
    """What is said of replies in the end."""
    return [step for step in replies if not step.allowed and step.gate != "acl"]


def _ends_like(hop: Hop) -> Callable[[Hop], bool]:
    """How replies to a neighbour leave the last router but one: by the same peering, or to an interface."""
    if hop.kind == "pcx":
        return lambda back: back.route.target == hop.route.target
    return lambda back: back.kind in ("local", "eni")


def _nat_steps(
    world: World,
    source: End,
    target: End | None,
    destination: str,
    nat_id: str,
    flow: Flow,
    known: _Known,
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
    yield from _border(world, interface, source.address, flow, egress=False)
    replies = End(interface=interface, address=destination)
    yield from _back(
        world, replies, source, destination, flow, known, lambda hop: hop.kind in ("local", "eni")
    )
    yield from _border(world, source.interface, destination, flow, egress=False, reply=True)
    sentence = f"{nat_id} translates {source.address} to {nat.private_ip}."
    yield replace(allowed("gateway", nat_id, sentence), becomes=nat.private_ip)
    # it chooses another source port: replies go to any port
    onward = replace(flow, source_port=None)
    here = End(interface=interface, address=nat.private_ip)
    yield from path(world, here, target, destination, onward, (*passed, nat_id))


def _translating_steps(
    world: World,
    source: End,
    target: End | None,
    destination: str,
    here: End,
    flow: Flow,
    known: _Known,
    passed: tuple[str, ...],
) -> Iterator[Step]:
    """To an internet gateway that has no public address for `source`: the interface that passes it on must
    translate it to its own, as a NAT instance does."""
    by = here.interface
    own = by.addresses[0].address
    replies = End(interface=by, address=destination)
    yield from _back(
        world, replies, source, destination, flow, known, lambda hop: hop.kind in ("local", "eni")
    )
    yield from _border(world, source.interface, destination, flow, egress=False, reply=True)
    sentence = f"{by.interface_id} must translate {source.address} to its own {own}: replies come to that."
    yield replace(allowed("interface", by.interface_id, sentence), becomes=own)
    onward = replace(flow, source_port=None)
    yield from path(world, End(interface=by, address=own), target, destination, onward, passed)


def _igw_steps(
    world: World,
    source: End,
    target: End | None,
    destination: str,
    gateway_id: str,
    flow: Flow,
    known: _Known,
) -> Iterator[Step]:
    interface, public_ip = source.interface, _public(source)
    if public_ip is None:
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
    yield from _back_in(world, gateway_id, source, destination, flow, known)
    yield from _border(world, interface, destination, flow, egress=False, reply=True)
    sentence = f"{gateway_id} translates {source.address} to {public_ip}."
    yield replace(allowed("gateway", gateway_id, sentence), becomes=public_ip)
    if target is not None:
        outside = End(interface=interface, address=public_ip)
        yield from _from_outside(world, outside, target, destination, flow)
    elif gateways.is_service(destination):
        if flow.protocol != "tcp" or flow.port not in (80, 443):
            sentence = f"AWS services at {destination} answer tcp ports 80 and 443 only."
            yield refused("gateway", gateway_id, sentence)
    elif not gateways.is_public(destination):
        sentence = f"{destination} is no public address: {gateway_id} leads nowhere to it."
        yield refused("gateway", gateway_id, sentence)


def _back_in(
    world: World, gateway_id: str, source: End, sender: str, flow: Flow, known: _Known
) -> Iterator[Step]:
    """Replies of `sender` that an internet gateway brings in, as its own route table has it."""
    gateway = world.get(InternetGateway, gateway_id)
    hop, step = edge_step(world, gateway, source.address) if gateway is not None else (None, None)
    by = _by(world, hop, source.address)
    if step is not None and not step.allowed:
        yield replace(step, sentence=f"Replies of {sender}: {step.sentence}")
    elif by is not None:
        refusal = _will_not_pass(by, source.address, set())
        if refusal is not None:
            yield replace(refusal, sentence=f"Replies of {sender}: {refusal.sentence}")
            return
        yield from _border(world, by, sender, flow, egress=False, reply=True)
        if by.interface_id not in known.left:
            far = End(interface=source.interface, address=sender)
            yield _of_replies(flow, partial(ingress_step, world, by, far, forwarded=True))
        here = End(interface=by, address=sender)
        yield from _back(world, here, source, sender, flow, known, lambda back: back.kind in ("local", "eni"))


def _from_outside(world: World, outside: End, target: End, destination: str, flow: Flow) -> Iterator[Step]:
    """From the internet to an interface with a public address, and back to `outside`."""
    receiver, vpc_id = target.interface, target.interface.vpc_id
    gateway = gateways.of_vpc(world, vpc_id)
    if gateway is None:
        sentence = f"{destination} is an address of {vpc_id}, which has no internet gateway."
        yield refused("gateway", vpc_id, sentence)
        return
    known = _Known()
    hop, step = edge_step(world, gateway, target.address)
    by = _by(world, hop, target.address)
    if step is not None:
        yield step
        if not step.allowed:
            return
    if by is not None:
        refusal = _will_not_pass(by, target.address, set())
        if refusal is not None:
            yield refusal
            return
        yield from _into(world, by, outside, flow, known)
        here = End(interface=by, address=outside.address)
        led = yield from _there(world, here, outside, target, target.address, flow, known)
        if led is None:
            return
        yield from _border(world, led[1].interface, target.address, flow, egress=True)
    yield from _border(world, receiver, outside.address, flow, egress=False)
    if receiver.interface_type == gateways.NAT_INTERFACE:
        sentence = f"{receiver.interface_id} is a NAT gateway's: nothing can be opened from outside."
        yield refused("ingress", receiver.interface_id, sentence)
        return
    known.entered.add(receiver.interface_id)
    replies = [*_back(world, target, outside, target.address, flow, known, lambda back: back.kind == "igw")]
    yield from _let_back(replies)
    yield ingress_step(world, receiver, outside, flow, forwarded=by is not None)
    yield from _kept_back(replies)
