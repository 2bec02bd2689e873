"""Which connections each interface knows, in VPCs where packets need not come back the way they went.

AWS ("Security group connection tracking"): an interface tracks connections by itself. What it let out or in
once, its groups are not asked about again, in either direction. For two interfaces that speak with each
other directly that is one connection of the kernel's, which is all that most VPCs have. Where an interface
passes packets on for others it is not: a reply may come back by another one, or by none, and what passes two
of them crosses the router three times. So there each interface has its connections in sets: its port, address
and port here, address and port there, as packets have them that leave by this port; those that come by it
have them the other way around. `KNOWN_OUT` and `KNOWN_IN` look there, `track_out` and `track_in` write what
passed the groups.

Packets between the two ends of a connection go on by the kernel's, which is cheaper, and are written there
only while they open one. What is passed on, and what an internet gateway takes or brings, is judged by the
sets alone.

An entry lasts as long as AWS has for its newest instances: 350 s for TCP (here also for closed connections),
180 s for UDP. Of ICMP only answers are known; what is an error is let through where it is about a connection
of the same leg (`ct state related`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cloister.kernel.plan import Chain, Part, Rule, Set

KNOWN_OUT, KNOWN_IN = "known_out", "known_in"
#: the mark of a packet of a connection that groups keep no track of ("Untracked connections")
UNTRACKED = "0x1"
_SECONDS = {"tcp": 350, "udp": 180, "others": 180}
#: connections of all interfaces of a VPC; memory is taken only for what is there
_SIZE = 262_144
_QUESTIONS = "{ echo-request, timestamp-request, info-request, address-mask-request }"
_ANSWERS = "{ echo-reply, timestamp-reply, info-reply, address-mask-reply }"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gate:
    """The sender's gate or the receiver's, and how packets there name a connection from its interface's
    end."""

    known: str
    track: str
    priority: int
    port: str
    pair: str
    ports: str


_GATES = (
    _Gate(
        known=KNOWN_OUT,
        track="track_out",
        priority=1,
        port="iifname",
        pair="ip saddr . ip daddr",
        ports="th sport . th dport",
    ),
    _Gate(
        known=KNOWN_IN,
        track="track_in",
        priority=11,
        port="oifname",
        pair="ip daddr . ip saddr",
        ports="th dport . th sport",
    ),
)


def parts(vpc_id: str, directly: Sequence[str]) -> Iterator[Part]:
    """The sets and chains of a VPC. `directly`: matches that hold of a packet between two ends."""
    for protocol in ("tcp", "udp"):
        yield Set(
            netns=vpc_id,
            name=f"tracked_{protocol}",
            type="ifname . ipv4_addr . ipv4_addr . inet_service . inet_service",
            dynamic=_SIZE,
            timeout=_SECONDS[protocol],
        )
    yield Set(
        netns=vpc_id,
        name="tracked_others",
        type="ifname . ipv4_addr . ipv4_addr . inet_proto",
        dynamic=_SIZE,
        timeout=_SECONDS["others"],
    )
    for gate in _GATES:
        flow = f"{gate.port} . {gate.pair} . {gate.ports}"
        other = f"{gate.port} . {gate.pair} . meta l4proto"
        yield Chain(
            netns=vpc_id,
            name=gate.known,
            rules=(
                *(Rule(text=f"meta l4proto {p} {flow} @tracked_{p} accept") for p in ("tcp", "udp")),
                Rule(text=f"icmp type {_ANSWERS} {other} @tracked_others accept"),
                Rule(text=f"meta l4proto != {{ tcp, udp, icmp }} {other} @tracked_others accept"),
            ),
        )
        yield Chain(
            netns=vpc_id,
            name=gate.track,
            hook=f"type filter hook forward priority {gate.priority}; policy accept;",
            rules=(
                Rule(
                    text=" ".join((*directly, "ct state established,related accept")),
                    comment="the kernel's connection",
                ),
                Rule(text=f"meta mark {UNTRACKED} accept", comment="not tracked"),
                *(Rule(text=f"meta l4proto {p} update @tracked_{p} {{ {flow} }}") for p in ("tcp", "udp")),
                Rule(text=f"icmp type {_QUESTIONS} update @tracked_others {{ {other} }}"),
                Rule(text=f"meta l4proto != {{ tcp, udp, icmp }} update @tracked_others {{ {other} }}"),
            ),
        )
