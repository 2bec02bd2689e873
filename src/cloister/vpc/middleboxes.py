"""Interfaces without a source/destination check: what passes through them, and how its legs are told apart.

AWS (VPC guide, "Middlebox routing"): a route may lead to a network interface. With the check on, an interface
takes and sends only what is its own; with it off it takes packets for others and sends packets from others.
Traffic within a subnet meets no route table. A rule that names a group does not let through what comes by way
of a middlebox: its rules must name addresses.

A packet from A to B that an interface M passes on crosses the router twice with the same addresses and ports:
A to M, then M to B. For connection tracking that is one connection, and the groups of M and of B would not be
asked once it is established. So each leg is a connection of its own, in a conntrack zone. Which zone follows
from the packet alone, alike in both directions: the subnet of the end that is not M. What goes into M has
that end's address as its source, what comes out of M as its destination. A and B are in different subnets, or
no route led from one to the other by M. Everything else stays in zone 0 and never meets these rules' cost but
in VPCs that have such an interface.

Whether groups know a connection, and so let its replies through, is not told by these connections, because a
reply may come back by another interface or by none: `vpc/tracking.py`. The zones keep the legs' connections
apart, whose counts are a job's record. From one interface without a check to the next a packet has a zone of
its own, and what is passed on to an internet gateway has none: its reply must find the gateway's translation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network

from cloister.kernel.plan import Chain, Element, Part, Rule, Set
from cloister.vpc import gateways, route_tables, tracking
from cloister.vpc.addresses import port
from cloister.vpc.model import NetworkInterface, RouteTable, Subnet, Vpc
from cloister.world import World

#: the zone of an end that is in no subnet of the VPC
_OUTSIDE = 65535
#: the zone of what is passed on from one interface without a check to another
_BETWEEN = 65534
#: smallest blocks of a subnet (/28) in the largest of a VPC (/16)
_SLOTS = 4096
#: ports of interfaces without a check; subnets to themselves; destinations by way of an interface, by mark
_PORTS, _WITHIN, _VIA, _LEGS = "forwarding", "within", "via", "legs"
#: destinations by way of an internet gateway, by mark
_OUTWARD = "outward"
#: what an interface sends on for others; what is sent to one to be passed on; by way of an internet gateway
_PASSED_ON = f"iifname @{_PORTS} iifname . ip saddr != @sources"
_TO_PASS_ON = f"oifname @{_PORTS} oifname . ip daddr != @sources"
_GATEWAY = f'"{gateways.IGW_PREFIX}*"'


def forwards(world: World, vpc_id: str) -> bool:
    """Whether an interface of the VPC has no source/destination check."""
    return any(one.vpc_id == vpc_id for one in world.where(NetworkInterface, source_dest_check=False))


def redirects(world: World, vpc_id: str) -> bool:
    """Whether a route within the VPC leads elsewhere than `local`."""
    vpc = world.get(Vpc, vpc_id)
    blocks = [IPv4Network(cidr) for cidr in vpc.cidrs] if vpc is not None else []
    return any(
        not hop.local and any(hop.block.subnet_of(block) for block in blocks)
        for table in world.where(RouteTable, vpc_id=vpc_id)
        for hop in route_tables.resolve(world, table).values()
    )


def within_subnet(subnet: Subnet, source: str, destination: str) -> bool:
    """Whether a packet stays in a subnet, and so meets no route table."""
    block = IPv4Network(subnet.cidr)
    return all(IPv4Network(address).subnet_of(block) for address in (source, destination))


# --- rendering -------------------------------------------------------------------------------------------


def vpc_parts(world: World, vpc_id: str, resolver: Sequence[str]) -> Iterator[Part]:
    """What a router has of this, as far as the VPC needs it. `resolver` are its own addresses."""
    subnets = {subnet.cidr: subnet for subnet in world.where(Subnet, vpc_id=vpc_id)}
    inside = redirects(world, vpc_id)
    if inside:
        yield Set(netns=vpc_id, name=_WITHIN, type="ipv4_addr . ipv4_addr", interval=True)
        for cidr, subnet in subnets.items():
            yield Element(netns=vpc_id, set=_WITHIN, key=f"{cidr} . {cidr}", comment=subnet.subnet_id)
    if not forwards(world, vpc_id):
        return
    yield Set(netns=vpc_id, name=_PORTS, type="ifname")
    for destinations in (_VIA, _OUTWARD):
        yield Set(netns=vpc_id, name=destinations, type="mark . ipv4_addr", interval=True)
    # With a protocol, because nftables 1.0.6 cannot add a map of plain intervals before the chains it names.
    yield Set(netns=vpc_id, name=_LEGS, type="ipv4_addr . inet_proto", data="verdict", interval=True)
    vpc = world.get(Vpc, vpc_id)
    for cidr, subnet in subnets.items():
        zone = _zone(vpc.cidrs if vpc else (), cidr)
        chain = f"z_{subnet.subnet_id.replace('-', '')}"
        yield Chain(netns=vpc_id, name=chain, rules=(Rule(text=f"ct zone set {zone}"),))
        key, verdict = f"{cidr} . 0-255", f"goto {chain}"
        yield Element(netns=vpc_id, set=_LEGS, key=key, data=verdict, comment=subnet.subnet_id)
    own = f"ip daddr {{ {', '.join(resolver)} }}"
    yield Chain(netns=vpc_id, name="between", rules=(Rule(text=f"ct zone set {_BETWEEN}"),))
    yield Chain(
        netns=vpc_id,
        name="leg_out",
        rules=(
            *route_tables.MARKED,
            *((Rule(text=f"{own} drop", comment="the resolver answers who asks"),) if resolver else ()),
            Rule(text=f"meta mark . ip daddr @{_OUTWARD} accept", comment="its reply must be translated"),
            Rule(text=f"meta mark . ip daddr @{_VIA} goto between", comment="two in a row"),
            Rule(text=f"ip daddr . meta l4proto vmap @{_LEGS}"),
            Rule(text=f"ct zone set {_OUTSIDE}"),
        ),
    )
    yield Chain(
        netns=vpc_id,
        name="leg_in",
        rules=(Rule(text=f"ip saddr . meta l4proto vmap @{_LEGS}"), Rule(text=f"ct zone set {_OUTSIDE}")),
    )
    # Before connection tracking (-200), which looks for a packet's connection in its zone.
    yield Chain(
        netns=vpc_id,
        name="forwarded",
        hook="type filter hook prerouting priority -290; policy accept;",
        rules=(
            Rule(text=f"{_PASSED_ON} goto leg_out", comment="passed on"),
            *((Rule(text=f"{own} accept"),) if resolver else ()),
            *((Rule(text=f"ip saddr . ip daddr @{_WITHIN} accept"),) if inside else ()),
            *route_tables.MARKED,
            Rule(text=f"meta mark . ip daddr @{_VIA} goto leg_in", comment="to be passed on"),
        ),
    )
    directly = ("ct zone 0", f"iifname != {_GATEWAY}", f"oifname != {_GATEWAY}")
    yield from tracking.parts(vpc_id, directly)


def is_of(world: World, interface: NetworkInterface, zone: int) -> bool:
    """Whether what is tracked in a zone is a connection of this interface, as one of its ends: its own leg,
    where it goes by way of another interface."""
    vpc, subnet = world.get(Vpc, interface.vpc_id), world.get(Subnet, interface.subnet_id)
    return zone == 0 or (vpc is not None and subnet is not None and zone == _zone(vpc.cidrs, subnet.cidr))


def _zone(cidrs: Sequence[str], subnet: str) -> int:
    """A number of a subnet that no other one of its VPC has."""
    block = IPv4Network(subnet)
    for place, cidr in enumerate(cidrs):
        whole = IPv4Network(cidr)
        if block.subnet_of(whole):
            start = int(block.network_address) - int(whole.network_address)
            return 1 + place * _SLOTS + start // 16
    return _OUTSIDE


def mark_rules(world: World, vpc_id: str) -> tuple[Rule, ...]:
    """What takes the mark of a route table away again."""
    if not redirects(world, vpc_id):
        return ()
    return (Rule(text=f"ip saddr . ip daddr @{_WITHIN} meta mark set 0x0", comment="within a subnet"),)


def gate_parts(vpc_id: str, gate: str, judged: Sequence[Rule]) -> Chain:
    """What judges packets at the gate "forward" or "ingress" that are passed on, or come or go by an internet
    gateway. `judged` are the rules that ask the groups."""
    known = tracking.KNOWN_OUT if gate == "forward" else tracking.KNOWN_IN
    rules = (
        Rule(text="ct state related accept", comment="about a connection"),
        Rule(text=f"jump {known}", comment="a connection that the interface knows"),
        *judged,
    )
    return Chain(netns=vpc_id, name=_passed(gate), rules=rules)


def gate_rules(gate: str, tracked: Sequence[Rule]) -> tuple[Rule, ...]:
    """What comes before the groups at a gate. `tracked` are the rules that let the kernel's connections pass.
    What is no beginning of a connection is judged all the same: its beginning may have gone another way."""
    known = tracking.KNOWN_OUT if gate == "forward" else tracking.KNOWN_IN
    return (
        Rule(text="meta mark set 0x0", comment="the route is chosen"),
        *(
            Rule(text=f"{which} goto {_passed(gate)}", comment=comment)
            for which, comment in (
                (_PASSED_ON, "passed on"),
                (_TO_PASS_ON, "to be passed on"),
                (f"iifname {_GATEWAY}", "from an internet gateway"),
                (f"oifname {_GATEWAY}", "to an internet gateway"),
            )
        ),
        *tracked,
        Rule(text=f"jump {known}", comment="a connection that the interface knows"),
    )


def _passed(gate: str) -> str:
    return f"passed_{gate}"


def source_rules(world: World, vpc_id: str) -> tuple[Rule, ...]:
    """An interface without a check may send with any source. The set that says so also chooses the zone."""
    if not forwards(world, vpc_id):
        return ()
    return (Rule(text=f"iifname @{_PORTS} accept", comment="no source/destination check"),)


def port_parts(interface: NetworkInterface, name: str) -> Iterator[Part]:
    """The router's end of an interface without a check."""
    origin = interface.interface_id
    yield Element(netns=interface.vpc_id, set=_PORTS, key=f'"{name}"', comment=origin)


def table_parts(world: World, table: RouteTable) -> Iterator[Part]:
    """Which destinations a table sends through an interface or an internet gateway, each with no more
    specific route in between."""
    if not forwards(world, table.vpc_id):
        return
    hops = route_tables.resolve(world, table)
    for block, hop in hops.items():
        others = [other for other in hops if other != block and other.subnet_of(block)]
        interface = world.get(NetworkInterface, hop.route.target)
        if hop.kind == "igw":
            destinations = _OUTWARD
        elif interface is not None and hop.dev is not None and not interface.source_dest_check:
            destinations = _VIA
            others.append(IPv4Network(interface.addresses[0].address))
        else:
            continue
        for piece in _without(block, others):
            key = f"{table.number} . {piece}"
            yield Element(
                netns=table.vpc_id, set=destinations, key=key, comment=f"{table.route_table_id}/{block}"
            )


def _without(block: IPv4Network, others: Sequence[IPv4Network]) -> list[IPv4Network]:
    """A block less what is in others."""
    pieces = [block]
    for other in others:
        kept: list[IPv4Network] = []
        for piece in pieces:
            if piece.subnet_of(other):
                continue
            kept += piece.address_exclude(other) if other.subnet_of(piece) else [piece]
        pieces = kept
    return sorted(pieces)


def is_port(interface: NetworkInterface, name: str) -> bool:
    """Whether packets for others come to this port of an interface: its first address's."""
    return not interface.source_dest_check and name == port(interface.interface_id, 0)
