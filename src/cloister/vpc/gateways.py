"""Internet gateways, NAT gateways, peering: how packets leave a VPC, and how some come in.

AWS (VPC guide): an internet gateway translates one to one, and only for interfaces with a public address.
A public NAT gateway has an interface in a public subnet and an Elastic IP; it translates ports; TCP, UDP and
ICMP; idle connections end after 350 s; nothing can be opened from outside. A peering joins two VPCs whose
blocks do not overlap; it leads to the other VPC's interfaces only, never on to its gateways (no transit).

How it is built:

    internet   one namespace, `INTERNET`, that owns the public addresses of the AWS services and leads on to
               the host's way out where there is one (the link `OUTSIDE`, made by `way_out.py`)
    igw-…      a pair between the VPC's router and `INTERNET`; the router translates at its end of it
    nat-…      the namespace of its interface, which translates what comes by that interface and sends it back
               by it, where the route table of its own subnet leads on
    pcx-…      a pair between the two routers, whose main tables decide: they know interfaces only
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from cloister.kernel.plan import Chain, Element, Netns, Part, Route, Rule, Set, Veth
from cloister.vpc.endpoints import managed_prefix_lists
from cloister.vpc.model import HostAddress, InternetGateway, Vpc, VpcPeering
from cloister.world import World

#: the namespace of everything that is outside
INTERNET = "internet"
#: its link to the host's way out
OUTSIDE = "tap0"
#: where names of AWS services other than S3 point to (RFC 5737, TEST-NET-3)
STAND_IN = IPv4Network("203.0.113.0/24")
#: where public addresses come from (RFC 5737, TEST-NET-2)
PUBLIC_POOL = IPv4Network("198.51.100.0/24")
#: the interface type of a NAT gateway's interface
NAT_INTERFACE = "nat_gateway"
NAT_IDLE_SECONDS = 350
#: what a host's way out must not lead to: the host's own network and what is no address of a public host
_NOT_PUBLIC = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",  # where Azure's hosts answer to their guests
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    str(PUBLIC_POOL),
    "224.0.0.0/3",
)
#: the first letter of every internet gateway's link in a router
IGW_PREFIX = "w"
_MAIN = 254
_INVALID = Rule(text="ct state invalid drop", comment="belongs to no connection")
_REPLIES = Rule(text="ct state established,related accept", comment="a reply")
#: the maps of a router, verdicts by link group: one for each gate
GATES = ("egress_groups", "acls_out", "acls_in", "ingress_groups")


def by_name(gate: str) -> str:
    """The same map for ports that are like no other, which have link group 0: by a port's name."""
    return f"{gate}_by_name"


def igw_if(gateway_id: str) -> str:
    """The router's end of an internet gateway's pair."""
    return f"{IGW_PREFIX}{gateway_id[-12:]}"


def peering_if(peering_id: str) -> str:
    """Both ends of a peering's pair."""
    return f"x{peering_id[-12:]}"


def _inside_if(gateway_id: str) -> str:
    """The end of an internet gateway's pair in `INTERNET`."""
    return f"v{gateway_id[-12:]}"


def link_address(resource_id: str) -> str:
    """The next hop towards the namespace behind a resource: out of 240.0.0.0/4, which no VPC can have."""
    return str(IPv4Address(0xF0 << 24 | int(resource_id[-7:], 16) & 0xFFFFFFF))


def link_mac(resource_id: str, prefix: int) -> str:
    digits = resource_id[-10:]
    return ":".join((f"{prefix:02x}", *(digits[i : i + 2] for i in range(0, 10, 2))))


def of_vpc(world: World, vpc_id: str) -> InternetGateway | None:
    """The internet gateway attached to a VPC."""
    return next(world.where(InternetGateway, vpc_id=vpc_id), None)


def peerings(world: World, vpc_id: str) -> list[VpcPeering]:
    """The active peerings of a VPC."""
    found = [
        *world.where(VpcPeering, requester_vpc_id=vpc_id),
        *world.where(VpcPeering, accepter_vpc_id=vpc_id),
    ]
    return [peering for peering in found if joins(world, peering, vpc_id)]


def joins(world: World, peering: VpcPeering, vpc_id: str) -> bool:
    """Whether this peering leads from `vpc_id` to another VPC that is there."""
    ends = (peering.requester_vpc_id, peering.accepter_vpc_id)
    if peering.status != "active" or vpc_id not in ends or ends[0] == ends[1]:
        return False
    return all(world.get(Vpc, end) is not None for end in ends)


def reach(world: World, vpc_id: str) -> list[str]:
    """The VPCs in which a group of `vpc_id` can be named: itself and its peers."""
    return [vpc_id, *dict.fromkeys(peering.other(vpc_id) for peering in peerings(world, vpc_id))]


# --- rendering -------------------------------------------------------------------------------------------


@cache
def _services() -> tuple[IPv4Network, ...]:
    """The public blocks of AWS services."""
    blocks = [IPv4Network(cidr) for listed in managed_prefix_lists() for cidr in listed.entries]
    return tuple(collapse_addresses([*blocks, STAND_IN]))


def is_service(address: str) -> bool:
    """Whether a public address is one of AWS services'."""
    return any(IPv4Address(address) in block for block in _services())


def is_public(address: str) -> bool:
    """Whether the way out may lead to an address."""
    return not any(IPv4Address(address) in IPv4Network(block) for block in _NOT_PUBLIC)


def internet_parts(world: World) -> Iterator[Part]:
    """The namespace of what is outside: doors of AWS services, other VPCs' public addresses, the way out."""
    yield Netns(name=INTERNET, forward=True, local=tuple(str(block) for block in _services()))
    yield Chain(
        netns=INTERNET,
        name="input",
        hook="type filter hook input priority 0; policy drop;",
        rules=(_INVALID, Rule(text='iifname "v*" tcp dport { 80, 443 } accept', comment="doors of services")),
    )
    yield Chain(
        netns=INTERNET,
        name="output",
        hook="type filter hook output priority 0; policy drop;",
        rules=(Rule(text="ct state established ct direction reply accept", comment="a reply"),),
    )
    yield Set(netns=INTERNET, name="host_addresses", type="ipv4_addr")
    for host in world.all(HostAddress):
        yield _element(INTERNET, "host_addresses", host.address, "this host")
    # What is behind the host's way out knows one address of this namespace, that of its own link.
    yield Chain(
        netns=INTERNET,
        name="way_out",
        hook="type nat hook postrouting priority 100; policy accept;",
        rules=(Rule(text=f'oifname "{OUTSIDE}" masquerade', comment="the host's way out"),),
    )
    yield Chain(
        netns=INTERNET,
        name="forward",
        hook="type filter hook forward priority 0; policy drop;",
        rules=(
            _REPLIES,
            _INVALID,
            Rule(text='iifname "v*" oifname "v*" accept', comment="another public address"),
            Rule(text=f"ip daddr {{ {', '.join(_NOT_PUBLIC)} }} drop", comment="no public address"),
            Rule(text="ip daddr @host_addresses drop", comment="this host"),
            Rule(text=f'iifname "v*" oifname "{OUTSIDE}" accept', comment="the host's way out"),
        ),
    )


def igw_parts(gateway: InternetGateway, *, noted: Rule) -> Iterator[Part]:
    """The pair of an attached gateway, and the translation at the router's end of it. `noted` is the rule for
    what is refused."""
    vpc_id, gateway_id = gateway.vpc_id, gateway.internet_gateway_id
    assert vpc_id is not None
    name = igw_if(gateway_id)
    yield Veth(
        outer=vpc_id,
        outer_if=name,
        outer_mac=link_mac(gateway_id, 0x0E),
        inner=INTERNET,
        inner_if=_inside_if(gateway_id),
        inner_mac=link_mac(gateway_id, 0x0A),
        addresses=(link_address(gateway_id),),
    )
    yield Set(netns=vpc_id, name="public_sources", type="ipv4_addr")
    yield Set(netns=vpc_id, name="public_out", type="ipv4_addr", data="ipv4_addr")
    yield Set(netns=vpc_id, name="public_in", type="ipv4_addr", data="ipv4_addr")
    yield Chain(
        netns=vpc_id,
        name="igw_out",
        hook="type nat hook postrouting priority 100; policy accept;",
        rules=(Rule(text=f'oifname "{name}" snat to ip saddr map @public_out', comment=gateway_id),),
    )
    yield Chain(
        netns=vpc_id,
        name="igw_in",
        hook="type nat hook prerouting priority -100; policy accept;",
        rules=(Rule(text=f'iifname "{name}" dnat to ip daddr map @public_in', comment=gateway_id),),
    )
    yield Chain(
        netns=vpc_id,
        name="to_internet",
        rules=(
            Rule(text="ip saddr @public_sources accept", comment=gateway_id),
            noted,
            Rule(text="drop", comment=f"no public address for {gateway_id} to translate to"),
        ),
    )
    for gate in GATES:
        verdict = "jump to_internet" if gate == "ingress_groups" else "accept"
        yield _element(vpc_id, by_name(gate), f'"{name}"', gateway_id, verdict)
    yield _element(vpc_id, "endpoint_sources", f'"{name}" . 0.0.0.0/0', gateway_id)


def public_parts(gateway: InternetGateway, address: str, public_ip: str, origin: str) -> Iterator[Part]:
    """An address with a public one, in a VPC with a gateway."""
    vpc_id = gateway.vpc_id
    assert vpc_id is not None
    yield _element(vpc_id, "public_sources", address, origin)
    yield _element(vpc_id, "public_out", address, origin, public_ip)
    yield _element(vpc_id, "public_in", public_ip, origin, address)
    yield Route(
        netns=INTERNET,
        table=_MAIN,
        destination=f"{public_ip}/32",
        dev=_inside_if(gateway.internet_gateway_id),
    )


def nat_parts(nat_interface_id: str, netns: str, address: str) -> Iterator[Part]:
    """The namespace that a NAT gateway is, with its one interface, `eth0`."""
    timeouts = {
        "tcp_timeout_established": NAT_IDLE_SECONDS,
        "udp_timeout_stream": NAT_IDLE_SECONDS,
        "udp_timeout": NAT_IDLE_SECONDS,
        "icmp_timeout": NAT_IDLE_SECONDS,
    }
    yield Netns(
        name=netns,
        forward=True,
        sysctls=tuple((f"net/netfilter/nf_conntrack_{name}", str(s)) for name, s in timeouts.items()),
    )
    yield Chain(netns=netns, name="input", hook="type filter hook input priority 0; policy drop;")
    yield Chain(netns=netns, name="output", hook="type filter hook output priority 0; policy drop;")
    yield Chain(
        netns=netns,
        name="forward",
        hook="type filter hook forward priority 0; policy drop;",
        rules=(
            _INVALID,
            Rule(text="ct status snat meta l4proto { tcp, udp, icmp } accept", comment="translated"),
            Rule(text="ct state new meta l4proto { tcp, udp, icmp } accept", comment="to be translated"),
            Rule(text="ct state related accept", comment="about a connection"),
        ),
    )
    yield Chain(
        netns=netns,
        name="translate",
        hook="type nat hook postrouting priority 100; policy accept;",
        rules=(Rule(text=f'oifname "eth0" snat to {address} random', comment=nat_interface_id),),
    )


def peering_parts(world: World, peering: VpcPeering) -> Iterator[Part]:
    one, other = peering.requester_vpc_id, peering.accepter_vpc_id
    name = peering_if(peering.peering_id)
    yield Veth(
        outer=one,
        outer_if=name,
        outer_mac=link_mac(peering.peering_id, 0x0E),
        inner=other,
        inner_if=name,
        inner_mac=link_mac(peering.peering_id, 0x0A),
        addresses=(link_address(peering.peering_id),),
    )
    for here, there in ((one, other), (other, one)):
        for gate in GATES:
            yield _element(here, by_name(gate), f'"{name}"', peering.peering_id, "accept")
        far = world.get(Vpc, there)
        for cidr in far.cidrs if far else ():
            yield _element(here, "endpoint_sources", f'"{name}" . {cidr}', peering.peering_id)


def _element(netns: str, set_name: str, text: str, origin: str, data: str | None = None) -> Element:
    return Element(netns=netns, set=set_name, key=text, data=data, comment=origin)
