"""The World as a kernel plan.

Each resource compiles by itself into parts that no other resource yields, so a change of a few resources is a
change of their parts: `update` compiles what changed, before and after, and never walks the rest.

The router namespace of a VPC judges a packet in this order (hook, priority):

    prerouting -300  source      it carries an address of the port it came by, else dropped; of an isolated
                                 port it is for one of its peers
    prerouting -290  forwarded   (with interfaces that pass packets on: the conntrack zone of their legs)
    prerouting -150  routes      the port's mark chooses the Linux routing table of its subnet's route table
    forward       0  forward     a tracked connection; or a rule of the sender's groups
    forward       2  acl_out     the network ACL of the sender's subnet
    forward       8  acl_in      the network ACL of the receiver's subnet
    forward      10  ingress     a tracked connection; or a rule of the receiver's groups; or an endpoint
                 5, 12           flow logs count (`vpc.flow_logs`), where there are any
                 1, 11           (with interfaces that pass packets on: what each one knows, `vpc.tracking`)
    input         0  input       DNS to the resolver's addresses, nothing else
    output        0  output      the resolver's replies, nothing else

`accept` ends one base chain only, so all four of `forward` must accept. What a gate of the sender refuses
goes to the chain `refused_out`, what one of the receiver refuses to `refused_in`. `input`, `forward` and
`output` are the names of the chains that every namespace is born with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from cloister.kernel.conntrack import ACCOUNTING
from cloister.kernel.plan import Chain, Element, Key, Netns, Part, Rule, Set, Veth, key
from cloister.vpc import addresses as ip
from cloister.vpc import (
    endpoints,
    flow_logs,
    gateways,
    interface_endpoints,
    isolation,
    middleboxes,
    network_acls,
    refusals,
    route_tables,
    security_groups,
)
from cloister.vpc.endpoints import outer_if, prefix_list_of
from cloister.vpc.gateways import GATES, by_name, link_address, link_mac
from cloister.vpc.model import (
    InternetGateway,
    NetworkAcl,
    NetworkInterface,
    PrivateAddress,
    RouteTable,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcEndpoint,
    VpcPeering,
)
from cloister.vpc.scopes import Scope, affected, all_scopes
from cloister.vpc.security_groups import (
    REFUSED_IN,
    REFUSED_OUT,
    UNTRACKED_BY_RECEIVER,
    UNTRACKED_BY_SENDER,
)
from cloister.world import Change, World

#: where a container asks for its role's credentials: an address on its own loopback
CREDENTIALS_ADDRESS = "169.254.170.2"
#: next hop of an endpoint's namespace; on its link only
_ENDPOINT_GATEWAY = "169.254.1.1"
#: which bit of a connection's mark tells that the groups at this gate keep no track of it, by direction
_AT_SENDER = {"original": UNTRACKED_BY_SENDER, "reply": UNTRACKED_BY_RECEIVER}
_AT_RECEIVER = {"original": UNTRACKED_BY_RECEIVER, "reply": UNTRACKED_BY_SENDER}
#: what runs on an interface listens on any port of it, also without root, as in containers elsewhere
_ANY_PORT = (("net/ipv4/ip_unprivileged_port_start", "0"),)
_INVALID = Rule(text="ct state invalid drop", comment="belongs to no connection")


def compile(world: World) -> dict[Key, Part]:
    """The plan of the whole World."""
    plan: dict[Key, Part] = {}
    for scope in all_scopes(world):
        plan.update((key(part), part) for part in _parts(world, scope))
    return plan


def update(plan: dict[Key, Part], before: World, after: World, changes: Iterable[Change]) -> set[Key]:
    """Make `plan`, which is `compile(before)`, equal to `compile(after)`; the keys that changed.
    `changes` are those between the two Worlds."""
    scopes: dict[Scope, None] = {}
    for change in changes:
        scopes.update(dict.fromkeys(affected(before, after, change)))
    old: dict[Key, Part] = {}
    new: dict[Key, Part] = {}
    for scope in scopes:
        old.update((key(part), part) for part in _parts(before, scope))
        new.update((key(part), part) for part in _parts(after, scope))
    touched = {k for k in old.keys() | new.keys() if old.get(k) != new.get(k)}
    for k in touched:
        if k in new:
            plan[k] = new[k]
        else:
            del plan[k]
    return touched


def _parts(world: World, scope: Scope) -> Iterator[Part]:
    return _COMPILERS[scope[0]](world, *scope[1:])


# --- compilers -------------------------------------------------------------------------------------------


def _vpc(world: World, vpc_id: str) -> Iterator[Part]:
    vpc = world.get(Vpc, vpc_id)
    if vpc is None:
        return
    resolver = (ip.resolver_address(vpc), ip.LINK_LOCAL_RESOLVER) if vpc.enable_dns_support else ()
    yield Netns(
        name=vpc_id,
        forward=True,
        loopback=tuple(f"{address}/32" for address in resolver),
        sysctls=((ACCOUNTING, "1"),),
    )
    yield from route_tables.nobody_parts(vpc)
    yield from refusals.parts(vpc_id)
    yield Set(netns=vpc_id, name="sources", type="ifname . ipv4_addr")
    yield Set(netns=vpc_id, name="peer_sources", type="ifname . ipv4_addr . ipv4_addr")
    yield Set(netns=vpc_id, name="endpoint_sources", type="ifname . ipv4_addr", interval=True)
    for name, data in (("marks", "mark"), *((gate, "verdict") for gate in GATES)):
        yield Set(netns=vpc_id, name=name, type="devgroup", data=data)
        yield Set(netns=vpc_id, name=by_name(name), type="ifname", data=data)
    for refused in (REFUSED_OUT, REFUSED_IN):
        counted = flow_logs.refusals(world, vpc_id, refused)
        yield Chain(netns=vpc_id, name=refused, rules=(*counted, refusals.NOTED, Rule(text="drop")))
    yield from flow_logs.vpc_parts(world, vpc_id)
    yield from middleboxes.vpc_parts(world, vpc_id, resolver)
    yield Chain(
        netns=vpc_id,
        name="source",
        hook="type filter hook prerouting priority -300; policy drop;",
        rules=(
            Rule(text="iifname . ip saddr @sources accept", comment="an address of the port"),
            Rule(text="iifname . ip saddr @endpoint_sources accept", comment="a service behind an endpoint"),
            Rule(text="iifname . ip saddr . ip daddr @peer_sources accept", comment="to a peer in isolation"),
            *middleboxes.source_rules(world, vpc_id),
        ),
    )
    yield Chain(
        netns=vpc_id,
        name="routes",
        hook="type filter hook prerouting priority -150; policy accept;",
        rules=(
            *route_tables.MARKED,
            *middleboxes.mark_rules(world, vpc_id),
            refusals.unrouted(resolver),
        ),
    )
    egress = tuple(_judged("iif", "egress_groups", "the sender's groups"))
    ingress = tuple(_judged("oif", "ingress_groups", "the receiver's groups"))
    before = {"forward": tuple(_tracked(_AT_SENDER)), "ingress": tuple(_tracked(_AT_RECEIVER))}
    if middleboxes.forwards(world, vpc_id):
        for gate, judged in (("forward", egress), ("ingress", ingress)):
            before[gate] = middleboxes.gate_rules(gate, before[gate])
            yield middleboxes.gate_parts(vpc_id, gate, judged)
    else:
        before["forward"] += (Rule(text=f"ct state invalid goto {REFUSED_OUT}", comment=_INVALID.comment),)
    yield Chain(
        netns=vpc_id,
        name="forward",
        hook="type filter hook forward priority 0; policy drop;",
        rules=(*before["forward"], *egress),
    )
    for name, priority, end in (("acl_out", 2, "iif"), ("acl_in", 8, "oif")):
        yield Chain(
            netns=vpc_id,
            name=name,
            hook=f"type filter hook forward priority {priority}; policy drop;",
            rules=(
                *_judged(end, name.replace("acl", "acls"), "the subnet's border"),
                *((refusals.NOBODY,) if end == "oif" else ()),
            ),
        )
    yield Chain(
        netns=vpc_id,
        name="ingress",
        hook="type filter hook forward priority 10; policy drop;",
        rules=(*before["ingress"], *ingress),
    )
    dns = f"ip daddr {{ {', '.join(resolver)} }} meta l4proto {{ tcp, udp }} th dport 53"
    yield Chain(
        netns=vpc_id,
        name="input",
        hook="type filter hook input priority 0; policy drop;",
        rules=(Rule(text=f'iifname "{ip.PORT_PREFIX}*" {dns} accept', comment="the resolver"),)
        if resolver
        else (),
    )
    yield Chain(
        netns=vpc_id,
        name="output",
        hook="type filter hook output priority 0; policy drop;",
        rules=(Rule(text="ct state established ct direction reply accept", comment="the resolver's reply"),),
    )


def _judged(end: str, gate: str, comment: str) -> Iterator[Rule]:
    """`end` is "iif" (the sender's port) or "oif" (the receiver's)."""
    yield Rule(text=f"{end}group vmap @{gate}", comment=comment)
    yield Rule(text=f"{end}name vmap @{by_name(gate)}", comment=comment)


def _tracked(untracked: Mapping[str, int]) -> Iterator[Rule]:
    """What passes without asking the groups: packets of connections that they keep track of."""
    yield Rule(text="ct state established,related ct mark 0x0 accept", comment="a tracked connection")
    for direction, bit in untracked.items():
        text = f"ct state established,related ct direction {direction} ct mark and {bit:#x} == 0x0 accept"
        yield Rule(text=text, comment="tracked at this gate")


def _table(world: World, route_table_id: str) -> Iterator[Part]:
    table = world.get(RouteTable, route_table_id)
    if table is not None and world.get(Vpc, table.vpc_id) is not None:
        yield from route_tables.parts(world, table)
        yield from middleboxes.table_parts(world, table)


def _subnet(world: World, subnet_id: str) -> Iterator[Part]:
    subnet = world.get(Subnet, subnet_id)
    if subnet is not None and world.get(Vpc, subnet.vpc_id) is not None:
        yield from network_acls.subnet_parts(world, subnet)


def _acl(world: World, acl_id: str) -> Iterator[Part]:
    acl = world.get(NetworkAcl, acl_id)
    if acl is not None and world.get(Vpc, acl.vpc_id) is not None:
        yield from network_acls.acl_parts(acl)


def _internet(world: World) -> Iterator[Part]:
    if any(gateway.vpc_id for gateway in world.all(InternetGateway)):
        yield from gateways.internet_parts(world)


def _igw(world: World, gateway_id: str) -> Iterator[Part]:
    gateway = world.get(InternetGateway, gateway_id)
    if gateway is not None and gateway.vpc_id and world.get(Vpc, gateway.vpc_id) is not None:
        yield from gateways.igw_parts(gateway, noted=refusals.NOTED)
        table = route_tables.of_gateway(world, gateway)
        if table is not None:
            port, mark = f'"{gateways.igw_if(gateway_id)}"', str(table.number)
            yield _element(gateway.vpc_id, by_name("marks"), port, table.route_table_id, mark)


def _peering(world: World, peering_id: str) -> Iterator[Part]:
    peering = world.get(VpcPeering, peering_id)
    if peering is not None and gateways.joins(world, peering, peering.requester_vpc_id):
        yield from gateways.peering_parts(world, peering)


def _group(world: World, group_id: str) -> Iterator[Part]:
    group = world.get(SecurityGroup, group_id)
    if group is not None and world.get(Vpc, group.vpc_id) is not None:
        forwards = middleboxes.forwards(world, group.vpc_id)
        yield from security_groups.chain_parts(world, group, forwards=forwards)


def _groups(world: World, vpc_id: str, *group_ids: str) -> Iterator[Part]:
    """The chains of interfaces with exactly these groups, while there is one."""
    if world.get(Vpc, vpc_id) is None:
        return
    if group_ids:
        candidates = world.where(NetworkInterface, group_ids=group_ids[0])
    else:
        candidates = world.where(NetworkInterface, vpc_id=vpc_id)
    for interface in candidates:
        if interface.interface_type == gateways.NAT_INTERFACE:
            continue
        same = interface.vpc_id == vpc_id and tuple(sorted(interface.group_ids)) == group_ids
        if same and any(_attached(world, interface)):
            forwards = middleboxes.forwards(world, vpc_id)
            yield from security_groups.shared_parts(world, vpc_id, group_ids, forwards=forwards)
            return


def _attached(world: World, interface: NetworkInterface) -> Iterator[tuple[str, PrivateAddress, Subnet]]:
    """Port name, address and subnet of each address that is in a namespace and reaches anybody."""
    subnet = world.get(Subnet, interface.subnet_id)
    if subnet is None or subnet.vpc_id != interface.vpc_id:
        return
    if world.get(Vpc, interface.vpc_id) is not None:
        for index, held in enumerate(interface.addresses):
            if held.netns is not None and not isolation.cut_off(held):
                yield ip.port(interface.interface_id, index), held, subnet


def _interface(world: World, interface_id: str) -> Iterator[Part]:
    interface = world.get(NetworkInterface, interface_id)
    if interface is None:
        return
    router = interface.vpc_id
    for held in filter(isolation.cut_off, interface.addresses):
        if held.netns is not None:
            yield Netns(name=held.netns)
            yield from _instance_chains(held.netns)
    for name, held, subnet in _attached(world, interface):
        assert held.netns is not None
        yield Veth(
            outer=router,
            outer_if=name,
            outer_mac=ip.mac(router, held.address, prefix=0x0E),
            inner=held.netns,
            inner_if="eth0",
            inner_mac=interface.mac if held.primary else ip.mac(router, held.address),
            addresses=(held.address,),
            gateway=ip.router_address(subnet),
            group=interface.link_group if _like_others(interface, held) else 0,
        )
        port = f'"{name}"'
        yield from flow_logs.port_parts(world, interface, port)
        if not _like_others(interface, held):
            for gate, verdict in _verdicts(interface, held, name).items():
                yield _element(router, by_name(gate), port, interface_id, verdict)
        if interface.interface_type == gateways.NAT_INTERFACE:
            yield from gateways.nat_parts(interface_id, held.netns, held.address)
            yield _element(router, "endpoint_sources", f"{port} . 0.0.0.0/0", interface_id)
        else:
            if interface.interface_type == interface_endpoints.ENDPOINT_INTERFACE:
                yield Netns(name=held.netns)
                ports = interface_endpoints.ports_of(world, interface)
                yield from interface_endpoints.chains(held.netns, ports)
            else:
                served = held.netns == interface_id and held.only is None
                credentials = (f"{CREDENTIALS_ADDRESS}/32",) if served else ()
                passes_on = middleboxes.is_port(interface, name)
                yield Netns(name=held.netns, forward=passes_on, loopback=credentials, sysctls=_ANY_PORT)
                yield from _instance_chains(held.netns, forward=passes_on)
                if passes_on:
                    yield from middleboxes.port_parts(interface, name)
                yield from isolation.tunnel_parts(router, held)
            yield from isolation.source_elements(interface, held, port)
            yield from isolation.gate_parts(router, interface.group_ids, held, name)
            yield from _members(world, interface, held)
        gateway = gateways.of_vpc(world, router)
        if gateway is not None and held.public_ip is not None:
            yield from gateways.public_parts(gateway, held.address, held.public_ip, interface_id)


def _like_others(interface: NetworkInterface, held: PrivateAddress) -> bool:
    """Whether an address's packets are judged by the interface's subnet and groups and nothing else."""
    if interface.interface_type == gateways.NAT_INTERFACE:
        return False
    return not isolation.has_gate(held)


def _verdicts(interface: NetworkInterface, held: PrivateAddress, port: str) -> dict[str, str]:
    """What each gate does with an address's packets. `port` matters only to those not `_like_others`."""
    found = {
        f"acls_{way}": f"jump {network_acls.subnet_chain(interface.subnet_id, egress=way == 'out')}"
        for way in ("out", "in")
    }
    for direction in ("egress", "ingress"):
        if interface.interface_type == gateways.NAT_INTERFACE:
            verdict = "accept"
        else:
            verdict = f"jump {isolation.gate(interface.group_ids, held, port, egress=direction == 'egress')}"
        found[f"{direction}_groups"] = verdict
    return found


def _alike(world: World, link_group: str) -> Iterator[Part]:
    """What the ports of a link group have in common, while there is one."""
    for interface in world.where(NetworkInterface, link_group=int(link_group)):
        for name, held, subnet in _attached(world, interface):
            if _like_others(interface, held):
                router, origin = interface.vpc_id, " ".join(interface.alike)
                for gate, verdict in _verdicts(interface, held, name).items():
                    yield _element(router, gate, link_group, origin, verdict)
                table = route_tables.of_subnet(world, subnet)
                if table is not None:
                    yield _element(router, "marks", link_group, table.route_table_id, str(table.number))
                return


def _members(world: World, interface: NetworkInterface, held: PrivateAddress) -> Iterator[Element]:
    """One of an interface's addresses in the sets of its groups' members."""
    for group_id in interface.group_ids:
        group = world.get(SecurityGroup, group_id)
        if group is not None and group.vpc_id == interface.vpc_id:
            for netns in gateways.reach(world, interface.vpc_id):
                members = security_groups.members_set(group_id)
                yield _element(netns, members, held.address, interface.interface_id)


def _mark(world: World, interface_id: str) -> Iterator[Part]:
    """Which Linux routing table the packets of an interface take, of those that are like no other."""
    interface = world.get(NetworkInterface, interface_id)
    if interface is None:
        return
    for name, held, subnet in _attached(world, interface):
        table = route_tables.of_subnet(world, subnet)
        if table is not None and not _like_others(interface, held):
            origin, mark = table.route_table_id, str(table.number)
            yield _element(interface.vpc_id, by_name("marks"), f'"{name}"', origin, mark)


def _instance_chains(netns: str, *, forward: bool = False) -> Iterator[Part]:
    """An instance may use its loopback and its port, and has no other link. The walls are outside, in the
    router. So nothing is judged: chains without a hook stand in place of those that a namespace is born with,
    and packets meet no rule at either end."""
    for name in ("input", "output", *(("forward",) if forward else ())):
        yield Chain(netns=netns, name=name)


def _endpoint(world: World, endpoint_id: str) -> Iterator[Part]:
    endpoint = world.get(VpcEndpoint, endpoint_id)
    service = endpoints.service_of(endpoint) if endpoint is not None else None
    listed = prefix_list_of(endpoint) if endpoint is not None else None
    if endpoint is None or service is None or listed is None or world.get(Vpc, endpoint.vpc_id) is None:
        return
    router, name, blocks = endpoint.vpc_id, outer_if(endpoint_id), tuple(listed.entries)
    yield Netns(name=endpoint_id, local=blocks)
    doors = f"ip daddr {{ {', '.join(blocks)} }} tcp dport {{ {', '.join(map(str, endpoints.PORTS))} }}"
    yield Chain(
        netns=endpoint_id,
        name="input",
        hook="type filter hook input priority 0; policy drop;",
        rules=(
            _INVALID,
            Rule(text=f'iifname "eth0" {doors} accept', comment=f"the doors of {service.title}"),
        ),
    )
    yield Chain(
        netns=endpoint_id,
        name="output",
        hook="type filter hook output priority 0; policy drop;",
        rules=(
            Rule(text='oifname "eth0" ct state established ct direction reply accept', comment="a reply"),
        ),
    )
    yield Veth(
        outer=router,
        outer_if=name,
        outer_mac=link_mac(endpoint_id, 0x0E),
        inner=endpoint_id,
        inner_if="eth0",
        inner_mac=link_mac(endpoint_id, 0x0A),
        addresses=(link_address(endpoint_id),),
        gateway=_ENDPOINT_GATEWAY,
    )
    for block in blocks:
        yield _element(router, "endpoint_sources", f'"{name}" . {block}', endpoint_id)
    for gate in ("acls_out", "acls_in", "ingress_groups"):
        yield _element(router, by_name(gate), f'"{name}"', endpoint_id, "accept")


def _element(netns: str, set_name: str, text: str, origin: str, data: str | None = None) -> Element:
    return Element(netns=netns, set=set_name, key=text, data=data, comment=origin)


_COMPILERS: dict[str, Callable[..., Iterator[Part]]] = {
    "vpc": _vpc,
    "table": _table,
    "internet": _internet,
    "igw": _igw,
    "peering": _peering,
    "subnet": _subnet,
    "acl": _acl,
    "group": _group,
    "groups": _groups,
    "endpoint": _endpoint,
    "interface": _interface,
    "mark": _mark,
    "alike": _alike,
}
