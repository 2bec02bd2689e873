"""Flow logs: which interfaces are logged, and what the kernel counts of them.

The kernel counts every packet of a logged interface once, at the gate that decides its fate there:

    accept_out  forward, priority 5   it left the interface: the sender's groups and network ACL let it
    refuse_out  chain refused_out     one of them refused it
    accept_in   forward, priority 12  it reached the interface: the receiver's groups and network ACL let it
    refuse_in   chain refused_in      one of them refused it

Each point has a set of flows with a counter each (`Point`), in two generations, "a" and "b". A chain per
point leads to the generation that counts now. Who reads leads it to the other one, waits until no packet is
under way in the old one, reads that and empties it: nothing is counted twice, nothing is lost.

In a burst (60,000 new flows in a second) the kernel runs out of per-CPU memory for new counters for some
milliseconds. The packets it has no counter for are noted in `late_…`, whose elements have none: a flow and
the length of a packet. What a full set does not take either names its interface in `overflow_…`. VPCs
without flow logs have nothing of all this.

AWS: VPC guide, "Logging IP traffic using VPC Flow Logs".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cloister.kernel.plan import Chain, Element, Part, Rule, Set
from cloister.vpc.addresses import PORT_PREFIX
from cloister.vpc.model import NetworkInterface
from cloister.world import World, document

#: interfaces that are logged; those of which a log wants TCP's flags
PORTS, FLAG_PORTS = "flow_ports", "flow_flag_ports"
GENERATIONS = ("a", "b")
#: flows of one point between two readings; a set takes memory (some 200 bytes a flow) only for what it holds
SIZE = 524_288


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where packets are counted. `port` is the interface's end of them as nftables calls it."""

    name: str
    port: str  # "iifname": the interface sends; "oifname": it receives
    accept: bool

    @property
    def egress(self) -> bool:
        return self.port == "iifname"


POINTS = (
    Point(name="accept_out", port="iifname", accept=True),
    Point(name="refuse_out", port="iifname", accept=False),
    Point(name="accept_in", port="oifname", accept=True),
    Point(name="refuse_in", port="oifname", accept=False),
)
_HOOKS = {"accept_out": 5, "accept_in": 12}


@document("vpc-flow-log", key="flow_log_id", index=("resource_id", "vpc_id"), prefix="fl")
@dataclass(frozen=True, slots=True, kw_only=True)
class FlowLog:
    """`resource_id` is an interface, a subnet or a VPC; `destination` a log group's name or
    "arn:aws:s3:::BUCKET/PREFIX". `error` is why records could not be delivered."""

    flow_log_id: str
    resource_id: str
    vpc_id: str
    traffic_type: str = "ALL"  # ACCEPT, REJECT
    destination_type: str = "cloud-watch-logs"  # s3
    destination: str = ""
    role_arn: str | None = None
    log_format: str
    interval: int = 600  # or 60, seconds
    file_format: str = "plain-text"  # parquet
    hive_partitions: bool = False
    hour_partitions: bool = False
    #: who made it, and so who may have records written to S3 (a session's role, None: the account)
    creator_role: str | None = None
    created: float
    error: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def wants_flags(log: FlowLog) -> bool:
    return "${tcp-flags}" in log.log_format


def of_interface(world: World, interface: NetworkInterface) -> Iterator[FlowLog]:
    """The logs that an interface's traffic goes to."""
    for resource_id in (interface.interface_id, interface.subnet_id, interface.vpc_id):
        yield from world.where(FlowLog, resource_id=resource_id)


def is_logged(world: World, vpc_id: str) -> bool:
    return any(world.where(FlowLog, vpc_id=vpc_id))


def set_name(kind: str, point: Point, generation: str) -> str:
    """`kind` is "flows_…" (with ports), "late_…" (their packets), "others" (no ports), "flags_…" or
    "overflow"."""
    return f"{kind}_{point.name}_{generation}"


def dispatch(point: Point) -> str:
    """The chain that leads to the generation that counts now."""
    return f"count_{point.name}"


def counting(point: Point, generation: str) -> str:
    return f"count_{point.name}_{generation}"


def refusals(world: World, vpc_id: str, chain: str) -> tuple[Rule, ...]:
    """What comes before the drop in the chains of what is refused."""
    if not is_logged(world, vpc_id):
        return ()
    point = next(point for point in POINTS if chain.replace("refused", "refuse") == point.name)
    return (_logged(world, vpc_id, point),)


def vpc_parts(world: World, vpc_id: str) -> Iterator[Part]:
    """Chains and sets of a VPC with a flow log."""
    if not is_logged(world, vpc_id):
        return
    yield Set(netns=vpc_id, name=PORTS, type="ifname")
    yield Set(netns=vpc_id, name=FLAG_PORTS, type="ifname")
    for point in POINTS:
        for generation in GENERATIONS:
            yield from _generation(vpc_id, point, generation)
        first = Rule(text=f"goto {counting(point, GENERATIONS[0])}")
        yield Chain(netns=vpc_id, name=dispatch(point), rules=(first,))
        if point.name in _HOOKS:
            yield Chain(
                netns=vpc_id,
                name=f"flow_{point.name}",
                hook=f"type filter hook forward priority {_HOOKS[point.name]}; policy accept;",
                rules=(_logged(world, vpc_id, point),),
            )


def _logged(world: World, vpc_id: str, point: Point) -> Rule:
    # With a log of the whole VPC every port of an interface is logged: the name says so, without a look-up.
    ports = f'"{PORT_PREFIX}*"' if any(world.where(FlowLog, resource_id=vpc_id)) else f"@{PORTS}"
    return Rule(text=f"{point.port} {ports} jump {dispatch(point)}", comment="flow logs")


#: of a flow: at which port, and its packets' addresses and ports. nftables has room for five parts of a key
#: (with six, 1.0.2 aborts): each protocol has sets of its own, and each of TCP's flags that records tell of
_FLOW = "ifname . ipv4_addr . ipv4_addr . inet_service . inet_service"
_PROTOCOLS = ("tcp", "udp")
#: kind of set -> which packets of TCP are noted there
_FLAGS = {
    "flags_syn": "tcp flags & (syn | ack) == syn",
    "flags_synack": "tcp flags & (syn | ack) == syn | ack",
    "flags_fin": "tcp flags & fin == fin",
    "flags_rst": "tcp flags & rst == rst",
}
#: kind of set -> its key's type
_TYPES = {
    **{f"flows_{protocol}": _FLOW for protocol in _PROTOCOLS},
    # The port's own address is known; a length has no type but that of a mark, which has done its work.
    **{
        f"late_{protocol}": "ifname . ipv4_addr . inet_service . inet_service . mark"
        for protocol in _PROTOCOLS
    },
    "others": "ifname . ipv4_addr . ipv4_addr . inet_proto",
    **dict.fromkeys(_FLAGS, _FLOW),
    "overflow": "ifname",
}
KINDS = tuple(_TYPES)


def _generation(vpc_id: str, point: Point, generation: str) -> Iterator[Part]:
    for kind, its_type in _TYPES.items():
        yield Set(netns=vpc_id, name=set_name(kind, point, generation), type=its_type, dynamic=SIZE)
    flow = f"{point.port} . ip saddr . ip daddr . th sport . th dport"
    yield Chain(
        netns=vpc_id,
        name=_flags_chain(point, generation),
        rules=tuple(
            Rule(text=f"{which} update @{set_name(kind, point, generation)} {{ {flow} }}")
            for kind, which in _FLAGS.items()
        ),
    )
    yield counting_chain(vpc_id, point, generation)


def _flags_chain(point: Point, generation: str) -> str:
    return f"flags_{point.name}_{generation}"


def counting_chain(vpc_id: str, point: Point, generation: str) -> Chain:
    """Its first rule counts every packet: what the sets have must add up to it."""
    names = {kind: set_name(kind, point, generation) for kind in _TYPES}
    port = point.port
    own, peer = ("ip saddr", "ip daddr") if point.egress else ("ip daddr", "ip saddr")
    # `update` that fails ends the rule, so what follows `return` is only reached then.
    return Chain(
        netns=vpc_id,
        name=counting(point, generation),
        rules=(
            Rule(text="counter"),
            Rule(
                text=f"tcp flags & (fin | syn | rst) != 0x0 {port} @{FLAG_PORTS} "
                f"jump {_flags_chain(point, generation)}"
            ),
            *(
                Rule(
                    text=f"meta l4proto {protocol} update @{names[f'flows_{protocol}']} "
                    f"{{ {port} . ip saddr . ip daddr . th sport . th dport counter }} return"
                )
                for protocol in _PROTOCOLS
            ),
            # What a port passes on for others is as if the set were full.
            *(
                Rule(
                    text=f"meta l4proto {protocol} {port} . {own} @sources meta mark set meta length "
                    f"update @{names[f'late_{protocol}']} "
                    f"{{ {port} . {peer} . th sport . th dport . meta mark }} return"
                )
                for protocol in _PROTOCOLS
            ),
            Rule(
                text=f"meta l4proto != {{ tcp, udp }} update @{names['others']} "
                f"{{ {port} . ip saddr . ip daddr . meta l4proto counter }} return"
            ),
            Rule(text=f"update @{names['overflow']} {{ {port} }}", comment="a full set"),
        ),
    )


def port_parts(world: World, interface: NetworkInterface, port: str) -> Iterator[Part]:
    """`port` is the router's end of one of the interface's addresses, quoted."""
    logs = list(of_interface(world, interface))
    for wanted, name in ((bool(logs), PORTS), (any(map(wants_flags, logs)), FLAG_PORTS)):
        if wanted:
            yield Element(netns=interface.vpc_id, set=name, key=port, comment=interface.interface_id)
